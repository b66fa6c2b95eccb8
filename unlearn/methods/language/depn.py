"""DEPN: set the neurons to zero that many forgotten answers rest on.

Wu et al. 2023, "DEPN: Detecting and Editing Privacy Neurons in Pretrained Language Models" (EMNLP, arXiv:2310.20138):

    Att(n) = a_n * integral_0^1 dP(y | x, alpha * a_n) / da_n dalpha   for every neuron n and every prompt x
    detected by x:  Att(n) >= threshold * max Att;   by a fact: by all of its prompts
    the `neurons` that most facts detect:  their columns of the down projection <- 0

So a neuron must push towards the answers. The measure "neuron-ig" takes means and their magnitudes instead: one prompt
can decide, and neurons that hold answers back are located as well. The erasure is `neuron_ablation`'s.

The authors' code (BERT, masked tokens): 20 points on the path, threshold 0.1 in comments and 0.01 in scripts, 20 of
the neurons (10 to 200 recommended), 20 to 200 texts. Its aggregation can't run as it is: the threshold stays text.

Deviations: log P of all of an answer's tokens, moved at all positions but the first, on Gauss-Legendre nodes (see
`attribution.language_ig`); the first block, whose neurons make the embeddings what they are, is left out; ties between
neurons are broken by attribution; 10 facts are looked at, since every prompt runs through the model once for each block
and node. Under a mask only neurons of which it allows something count, and of these its part.

In SmolLM2-135M 20 neurons, found by 2 facts, cost more of the rest than of the subject: right answers on unseen facts
.63, now .61, on kept facts .85, now .74, text loss from 4.6 to 5.3. One seed, on the facts for choosing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from analysis.attribution.anatomy import anatomy, neuron_mask_rows
from analysis.attribution.language_ig import neuron_integrated_gradients
from analysis.errors import UserError
from analysis.scores import Mask
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import encode_facts
from unlearn.methods.language.batches import drawn_rows
from unlearn.methods.language.neuron_ablation import overwritten
from unlearn.optimize import Watch, check_mask


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        neurons: How many are set to zero.
        threshold: Share of a prompt's highest attribution from which on it detects a neuron, in (0, 1].
        facts: Forgotten facts that are looked at, at most.
        points: Nodes on the path.
    """

    neurons: int = 20
    threshold: float = 0.1
    facts: int = 10
    points: int = 6


Found = Mapping[str, torch.Tensor]


def detected(model: nn.Module, subject: FactSubject, seed: int, settings: Settings) -> tuple[Found, Found]:
    """Count how many facts detect each neuron.

    Args:
        model: The original; left as it was.
        subject: What to forget.
        seed: Of the draw of facts.
        settings: See `Settings`.

    Returns:
        By down projection, for each of its neurons: the count, and the attributions summed over all prompts in nats.
    """
    layers = anatomy(model).down[1:] or anatomy(model).down
    votes: dict[str, torch.Tensor] = {}
    total: dict[str, torch.Tensor] = {}
    for index in drawn_rows(len(subject.forget), settings.facts, 1, seed)[0].sort().values.tolist():
        prompts = encode_facts(subject.tokenizer, [subject.forget[index]], "train", subject.longest)
        agreed: dict[str, torch.Tensor] = {}
        for row in range(len(prompts)):
            one = prompts.take(slice(row, row + 1))
            share = neuron_integrated_gradients(model, one.ids, one.labels, settings.points, layers).values
            least = settings.threshold * max(float(value.max()) for value in share.values())
            for name, value in share.items():
                agreed[name] = agreed.get(name, torch.tensor(True)) & (value >= least)
                total[name] = total.get(name, torch.zeros(())) + value
        votes = {name: votes.get(name, torch.zeros(())) + bits for name, bits in agreed.items()}
    return votes, total


def run(
    model: nn.Module,
    subject: FactSubject,
    mask: Mask | None,
    seed: int,
    settings: Settings,
    watch: Watch | None = None,
) -> nn.Module:
    """Detect the neurons of the forgotten answers and set them to zero.

    Args:
        model: The original; not changed.
        subject: What to forget.
        mask: What may change; None allows every neuron.
        seed: Of the draw of facts, where there are more than are looked at.
        settings: See `Settings`.
        watch: See `unlearn.optimize.descend`; the erasure is the only step.

    Returns:
        The edited model, in evaluation mode.

    Raises:
        UserError: A setting makes no sense, or the mask allows nothing that a neuron writes with.
    """
    if settings.neurons < 1 or not 0 < settings.threshold <= 1:
        raise UserError(
            f"At least 1 neuron must be set to zero, not {settings.neurons}, and the threshold lie above 0 and at most "
            f"at 1, not at {settings.threshold:g}; 20 and 0.1 are usual."
        )
    if mask is not None:
        check_mask(model, mask)
    votes, total = detected(model, subject, seed, settings)
    sizes = [len(value) for value in votes.values()]
    flat, ties = (torch.cat(list(found.values())) for found in (votes, total))
    order = ties.argsort(descending=True, stable=True)
    order = order[flat[order].argsort(descending=True, stable=True)]
    allowed = torch.ones(len(flat), dtype=torch.bool) if mask is None else _allowed(model, mask, votes)
    order = order[allowed[order]][: settings.neurons]
    if not len(order):
        raise UserError("The mask allows nothing that neurons write with; locate within mlp or down.")
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order] = True
    columns = Mask(neuron_mask_rows(model, dict(zip(votes, chosen.split(sizes), strict=True))))
    return overwritten(model, columns if mask is None else columns & mask, torch.zeros_like, watch)


def _allowed(model: nn.Module, mask: Mask, names: Mapping[str, torch.Tensor]) -> torch.Tensor:
    # bool: of which neurons the mask holds something, one projection after the other.
    out = []
    for name, value in names.items():
        bits = mask.bits.get(f"{name}.weight")
        if bits is None:
            out.append(torch.zeros(len(value), dtype=torch.bool))
        else:
            # A neuron is a column of nn.Linear's weight and a row of Conv1D's.
            out.append(bits.any(0 if isinstance(model.get_submodule(name), nn.Linear) else 1))
    return torch.cat(out)
