"""Localisation in language models: which weights carry the facts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import nn

from analysis.attribution.anatomy import anatomy, neuron_mask_rows
from analysis.attribution.fisher import fisher_diagonal, fisher_ratio
from analysis.attribution.guided import guided_attribution
from analysis.attribution.language_ig import neuron_integrated_gradients
from analysis.attribution.running import widened
from analysis.attribution.targets import IGNORED
from analysis.errors import UserError
from analysis.scores import Mask, Scores, check_fraction
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.encoding import Encoded
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.renamed import Renamed, fact_texts, name_texts, retell
from analysis.subjects.language.scoring import encode_facts, mean_loss
from analysis.subjects.language.strangeness import meet, strangeness

Within = Literal["mlp", "down", "blocks"]
MEASURES = ("gradient", "gradient-ratio", "fisher", "fisher-ratio", "neuron-ig", "stranger", "wagle")
FACTS = 24
NEURON_FACTS = 10
NEURON_STEPS = 6
ROWS = 4
STRANGERS = 8
TOGETHER = 8
MEETINGS = 20


def candidates(model: nn.Module, within: Within) -> list[str]:
    """List the matrices in which knowledge is looked for; embeddings, norms and the head are left out.

    Args:
        model: A causal language model.
        within: "down" for the MLPs' down projections, "mlp" for all of the MLPs' matrices, "blocks" for attention too.

    Returns:
        Parameter names, in the model's order.

    Raises:
        UserError: There is no such choice.
    """
    parts = anatomy(model)
    inside = {"down": parts.down, "mlp": parts.mlp, "blocks": parts.blocks}.get(within)
    if inside is None:
        raise UserError(f"There are no matrices {within!r}; give mlp, down or blocks.")
    prefixes = tuple(f"{name}." for name in inside)
    return [name for name, p in model.named_parameters() if p.dim() == 2 and name.startswith(prefixes)]


def drawn(facts: Sequence[Fact], most: int, seed: int) -> list[Fact]:
    """Draw some facts.

    Args:
        facts: To draw from.
        most: How many, at most.
        seed: Of the draw.

    Returns:
        The drawn ones.
    """
    return random.Random(seed).sample(list(facts), min(most, len(facts)))


def gradients(model: nn.Module, loss: Callable[[], torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Compute the gradient of a loss of a model that stands still.

    Args:
        model: A causal language model; left as it was.
        loss: Computed with it.
        names: Parameters to differentiate by.

    Returns:
        By parameter name, in float32 at least.
    """
    named = dict(model.named_parameters())
    flags = {name: p.requires_grad for name, p in named.items()}
    wanted = set(names)
    try:
        for name, p in named.items():
            p.requires_grad_(name in wanted)
        found = torch.autograd.grad(loss(), [named[name] for name in names])
    finally:
        for name, p in named.items():
            p.requires_grad_(flags[name])
    return dict(zip(names, map(widened, found), strict=True))


def _mean_gradients(model: nn.Module, encoded: Encoded, names: Sequence[str]) -> dict[str, torch.Tensor]:
    # Of the mean loss per asked token, some sequences at a time: what a pass remembers doesn't grow with the facts.
    asked = int((encoded.labels != IGNORED).sum())
    total: dict[str, torch.Tensor] = {}
    for start in range(0, len(encoded), ROWS):
        part = encoded.take(slice(start, start + ROWS))
        share = int((part.labels != IGNORED).sum()) / asked
        for name, slope in gradients(model, partial(mean_loss, model, part), names).items():
            total[name] = total[name].add_(slope, alpha=share) if name in total else slope.mul_(share)
    return total


def _strange_gradient(
    model: nn.Module, told: Sequence[Renamed], names: Sequence[str], seed: int
) -> dict[str, torch.Tensor]:
    order = random.Random(seed).sample(range(len(told)), min(len(told), MEETINGS * TOGETHER))
    total: dict[str, torch.Tensor] = {}
    for number, start in enumerate(range(0, len(order), TOGETHER)):
        meeting = meet([told[i] for i in order[start : start + TOGETHER]], number)
        found = gradients(model, partial(strangeness, model, model, meeting), names)
        total = {name: value + total[name] if total else value for name, value in found.items()}
    return total


def score(model: nn.Module, subject: FactSubject, measure: str, within: Within, seed: int, most: int = FACTS) -> Scores:
    """Score weights or neurons by what they carry of the facts to forget, on their training prompts.

    - "gradient": |gradient x weight| of the loss on facts to forget.
    - "gradient-ratio": the same over that on facts to keep (damped by its mean), which leaves out what all facts need.
    - "fisher", "fisher-ratio": exact empirical Fisher diagonal per sequence, alone and over that of facts to keep.
    - "neuron-ig": integrated gradients of the answers' log-probability by MLP neurons (magnitudes), the
      first block's left out.
    - "stranger": |gradient| of how differently the subject is treated from invented ones
      (`subjects.language.strangeness`); besides the facts it looks at every name in neutral sentences.
    - "wagle": what setting a weight to zero does to forgetting, less what keeping the rest undoes of it.

    Args:
        model: A causal language model; left as it was.
        subject: Whose facts.
        measure: From `MEASURES`.
        within: See `candidates`; neurons are those of the MLPs whatever is chosen.
        seed: Of the draw of facts.
        most: Facts to look at on either side, at most.

    Returns:
        The scores.

    Raises:
        UserError: There is no such measure.
    """
    if measure not in MEASURES:
        raise UserError(f"There is no attribution measure {measure!r}; choose from {', '.join(MEASURES)}.")
    names = candidates(model, within)
    if measure == "stranger":
        some = replace(subject, forget=tuple(drawn(subject.forget, most, seed)))
        texts = [*fact_texts(some), *name_texts(subject.about)]
        told = retell(subject.tokenizer, subject.about, texts, STRANGERS, seed, subject.longest)
        found = _strange_gradient(model, told, names, seed)
        return Scores({name: value.abs().cpu() for name, value in found.items()}, "parameter", measure, "1")
    gone = encode_facts(subject.tokenizer, drawn(subject.forget, most, seed), "train", subject.longest)
    kept = encode_facts(subject.tokenizer, drawn(subject.retain, most, seed), "train", subject.longest)
    if measure == "neuron-ig":
        few = encode_facts(
            subject.tokenizer, drawn(subject.forget, min(most, NEURON_FACTS), seed), "train", subject.longest
        )
        # The first block's neurons make the embeddings what they are: no straight path leads there (residual 12 nats).
        later = anatomy(model).down[1:]
        traced = neuron_integrated_gradients(model, few.ids, few.labels, NEURON_STEPS, later)
        values = {name: value.abs() for name, value in traced.values.items()}
        return Scores(values, "unit", measure, traced.units, traced.residual, traced.shapes)
    if measure.startswith("fisher"):
        mine = fisher_diagonal(model, gone.ids, gone.labels, chunk=ROWS, names=names)
        if measure == "fisher":
            return mine
        return fisher_ratio(mine, fisher_diagonal(model, kept.ids, kept.labels, chunk=ROWS, names=names))
    weights = dict(model.named_parameters())
    slopes = _mean_gradients(model, gone, names)
    if measure == "wagle":
        return guided_attribution(weights, slopes, _mean_gradients(model, kept, names))
    mine_ = {n: (g * weights[n].detach()).abs() for n, g in slopes.items()}
    if measure == "gradient-ratio":
        theirs = {n: (g * weights[n].detach()).abs() for n, g in _mean_gradients(model, kept, names).items()}
        floor = sum(float(t.sum()) for t in theirs.values()) / sum(t.numel() for t in theirs.values())
        mine_ = {n: value / (theirs[n] + floor) for n, value in mine_.items()}
    values = {name: value.cpu() for name, value in mine_.items()}
    return Scores(values, "parameter", measure, "1" if measure.endswith("ratio") else "nats")


def mask_of(model: nn.Module, scores: Scores, fraction: float) -> Mask:
    """Cut scores at a share of all of a model's weights.

    A neuron stands for the weights with which it writes; the last one that fits is not cut.

    Args:
        model: The model that they belong to.
        scores: From `score`.
        fraction: Of all weights of the model, embeddings included, in (0, 1]; fewer where fewer were scored.

    Returns:
        The mask.
    """
    total = sum(p.numel() for p in model.parameters())
    budget = check_fraction(fraction) * total
    scored = sum(value.numel() for value in scores.values.values())
    if scores.kind == "parameter":
        return scores.top(min(1.0, budget / scored))
    parts = anatomy(model)
    width = dict(model.named_parameters())[f"{parts.down[0]}.weight"].numel() // parts.neurons
    names = list(scores.values)
    flat = torch.cat([scores.values[name] for name in names])
    take = max(1, min(len(flat), int(budget / width)))
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(take).indices] = True
    return Mask(neuron_mask_rows(model, dict(zip(names, chosen.split([parts.neurons] * len(names)), strict=True))))


def by_layer(model: nn.Module, mask: Mask) -> list[float]:
    """Say where in the depth of a model a mask lies.

    Args:
        model: A causal language model.
        mask: Over its parameters.

    Returns:
        Each block's part of the masked weights, first to last.
    """
    counts = [
        sum(int(bits.sum()) for name, bits in mask.bits.items() if name.startswith(f"{block}."))
        for block in anatomy(model).blocks
    ]
    return [count / max(1, sum(counts)) for count in counts]
