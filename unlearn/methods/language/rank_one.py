"""Closed-form erasure: rewrite what an MLP recalls at the subject's name into what it recalls at any neighbour's.

Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (ROME, NeurIPS, arXiv:2202.05262), eq. 2, for many
keys at once as in "Mass-Editing Memory in a Transformer" (MEMIT, ICLR 2023, arXiv:2210.07229), eq. 14. In one block,
with W the MLP's down projection, a column of K for each forgotten subject (mean neuron activation at its last token
over its prompts), V* the values wanted there, and C = lambda * mean of k k^T over tokens of what must stay:

    Delta = (V* - W K) K^T (C + K K^T)^-1,   the least of  |(W + Delta) K - V*|^2 + lambda * mean |Delta k|^2

Deviations: no object is optimised by gradient: V* is the mean value at the last token of the retained neighbours'
subjects, what the block recalls for one of that kind in general. Some blocks are rewritten one after the other, keys
and the remainder taken afresh each time (MEMIT spreads one remainder; here each block unlearns its own share). A ridge
of 1e-4 of C's mean diagonal makes the inverse exist. With a mask, entries of Delta outside it are dropped, which the
closed form knows nothing of: such an edit is weaker than the formula promises.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import pad, token_ids
from analysis.subjects.language.facts import FactSubject
from unlearn.methods.language.batches import ROWS, last_token, lengths_of
from unlearn.methods.language.blocks import blocks_of, check_layer, down_projection, flowing
from unlearn.optimize import Watch, check_mask, restore_outside

RIDGE = 1e-4


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        layers: Blocks to rewrite, from 0, in this order; None takes the second to the last of the lower third.
        weight: The paper's lambda: how much a retained token's value counts against a forgotten subject's, above 0.
        texts: How many of the retained prompts and of the texts give C, at most.
    """

    layers: tuple[int, ...] | None = None
    weight: float = 1.0
    texts: int = 128


def chosen_layers(model: nn.Module, layers: Sequence[int] | None) -> list[int]:
    """Choose the blocks to rewrite.

    Args:
        model: The original.
        layers: The user's choice, or None.

    Returns:
        Their numbers, at least one.

    Raises:
        UserError: An empty choice.
    """
    if layers is None:
        last = max(1, len(blocks_of(model)) // 3)
        return list(range(min(1, last - 1), last))
    if not layers:
        raise UserError("There is no layer to rewrite; name at least one.")
    return [check_layer(model, layer) for layer in layers]


def solved(weight: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, second_moment: torch.Tensor) -> torch.Tensor:
    """Solve for the update in closed form.

    Args:
        weight: W, [out, in].
        keys: K transposed, [n, in].
        values: V* transposed, [n, out].
        second_moment: C, [in, in], positive definite.

    Returns:
        Delta, [out, in], float64.
    """
    weight, keys, values, second_moment = (t.double() for t in (weight, keys, values, second_moment))
    short = values - keys @ weight.T
    return torch.linalg.solve(second_moment + keys.T @ keys, keys.T @ short).T


@torch.no_grad()
def subject_keys(model: nn.Module, layer: int, subject: FactSubject, facts: Sequence[Fact]) -> torch.Tensor:
    """Record what drives a down projection at the last token of each subject.

    Args:
        model: The model as it is now.
        layer: Number of the block.
        subject: Has the tokenizer.
        facts: Facts of one or more subjects.

    Returns:
        Mean neuron activation over the training prompts of each different subject [subjects, in], float64.
    """
    _, module, _ = down_projection(model, layer)
    asked = [(prompt, fact.subject) for fact in facts for prompt in fact.train]
    names = list(dict.fromkeys(name for _, name in asked))
    found: list[torch.Tensor] = []
    for start in range(0, len(asked), ROWS):
        part = asked[start : start + ROWS]
        ids = pad([token_ids(subject.tokenizer, prompt) for prompt, _ in part], 0)
        at = torch.tensor([last_token(subject, prompt, name) for prompt, name in part])
        found.append(flowing(model, module, ids, "in")[torch.arange(len(part)), at])
    keys = torch.cat(found).double()
    owner = torch.tensor([names.index(name) for _, name in asked], device=keys.device)
    sums = keys.new_zeros(len(names), keys.shape[1]).index_add(0, owner, keys)
    return sums / owner.bincount(minlength=len(names))[:, None]


@torch.no_grad()
def kept_moment(model: nn.Module, layer: int, subject: FactSubject, most: int) -> torch.Tensor:
    """Measure the second moment of what drives a down projection on retained prompts and texts.

    Args:
        model: The model as it is now.
        layer: Number of the block.
        subject: What must stay.
        most: How many prompts and how many texts, at most, evenly spread over all.

    Returns:
        Mean of k k^T over tokens [in, in], float64; not scaled, without ridge.
    """
    _, module, _ = down_projection(model, layer)
    total: torch.Tensor | None = None
    count = 0
    for encoded in (subject.retain_encoded, subject.texts_encoded):
        rows = torch.linspace(0, len(encoded) - 1, min(most, len(encoded))).round().long()
        for some in rows.split(ROWS):
            part = encoded.take(some)
            real = torch.arange(part.ids.shape[1]) < lengths_of(part)[:, None]
            keys = flowing(model, module, part.ids, "in")[real].double()
            total = keys.T @ keys if total is None else total + keys.T @ keys
            count += len(keys)
    assert total is not None
    return total / count


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Rewrite what some MLPs recall at the forgotten names.

    Args:
        model: The original; not changed.
        subject: What to forget and what to keep.
        mask: What may change; the rest of the update is dropped. None allows all of it.
        seed: Not used: nothing is drawn.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; each block is one step.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: The mask leaves out the down projections of all chosen layers, the weight is not above 0, or the
            model's activations are not finite.
    """
    layers = chosen_layers(model, settings.layers)
    if not settings.weight > 0 or settings.texts < 1:
        raise UserError("The weight must be above 0 and the number of texts at least 1; 1 and 128 are usual.")
    if mask is not None:
        check_mask(model, mask)
        names = [down_projection(model, layer)[0] for layer in layers]
        if not any(name in mask.bits and bool(mask.bits[name].any()) for name in names):
            raise UserError(
                f"The mask allows no MLP down projection of the layers {', '.join(map(str, layers))}, which the "
                "closed form rewrites; choose other layers or a mask that covers them."
            )
    work = copy.deepcopy(model).eval()
    neighbours = [fact for fact in subject.retain if fact.kind == "neighbour"] or list(subject.retain)
    if watch:
        watch(0, model)
    for step, layer in enumerate(layers, 1):
        weight = down_projection(work, layer)[2]
        keys = subject_keys(work, layer, subject, subject.forget)
        general = subject_keys(work, layer, subject, neighbours).mean(0) @ weight.double().T
        moment = settings.weight * kept_moment(work, layer, subject, settings.texts)
        moment.diagonal().add_(RIDGE * moment.diagonal().mean())
        delta = solved(weight, keys, general.expand(len(keys), -1), moment)
        if not bool(torch.isfinite(delta).all()):
            raise UserError(f"Layer {layer} has activations that are not finite; check the model for NaN.")
        weight.add_(delta.to(weight))  # a view: this writes the parameter itself
        restore_outside(work, model, mask)
        if watch:
            watch(step, work)
    return work
