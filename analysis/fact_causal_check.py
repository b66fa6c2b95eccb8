"""The causal check for facts: are located weights what the answers need, more than chance and single layers?"""

import copy
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

import torch
from torch import nn

from analysis.ablation import CausalCheck, Curve, causal_scores, count_of
from analysis.attribution.anatomy import anatomy
from analysis.fact_localization import FACTS, MEASURES, Within, by_layer, candidates, drawn, mask_of, score
from analysis.scores import Mask
from analysis.subjects.language.bank import Fact
from analysis.subjects.language.facts import FactSubject
from analysis.subjects.language.scoring import ask

FRACTIONS = (0.0001, 0.001, 0.01)
WATCHED = 12


class FactLocalization(CausalCheck):
    """Everything in `localization.json` of a run on facts: values are mean shares of the right answer.

    Attributes:
        within: Which matrices were candidates.
        layers: By measure, each block's part of the mask, adding up to 1.
    """

    within: Within
    layers: dict[str, list[float]]


@torch.no_grad()
def ablated_shares(model: nn.Module, mask: Mask, subject: FactSubject, groups: Sequence[Sequence[Fact]]) -> list[float]:
    """Set the masked weights to zero and ask what is left.

    Args:
        model: Changed while asking, and put back bit for bit.
        mask: What to set to zero.
        subject: Has the tokenizer.
        groups: Facts to be asked about, by their first held-out prompt.

    Returns:
        Mean share of the right answer among its options, for each group.
    """
    named = dict(model.named_parameters())
    before = {name: named[name][bits].clone() for name, bits in mask.bits.items()}
    try:
        for name, bits in mask.bits.items():
            named[name].masked_fill_(bits.to(named[name].device), 0.0)
        facts = [fact for group in groups for fact in group]
        answers = ask(model, subject.tokenizer, facts, [fact.heldout[:1] for fact in facts])
    finally:
        for name, bits in mask.bits.items():
            named[name][bits] = before[name]
    shares = iter(mine[0].share for mine in answers)
    return [fmean(next(shares) for _ in group) for group in groups]


def layer_mask(model: nn.Module, names: Sequence[str], block: str, count: int, seed: int) -> Mask | None:
    """Take weights at random from one block: the control of the layer sweep.

    Args:
        model: The model.
        names: Candidate matrices; where those of the block are too few, all its matrices are candidates.
        block: Name of the block.
        count: How many weights.
        seed: Of the draw.

    Returns:
        The mask; None where the block has too few weights.
    """
    parameters = dict(model.named_parameters())
    for pool in (names, candidates(model, "blocks")):
        mine = [name for name in pool if name.startswith(f"{block}.")]
        sizes = [parameters[name].numel() for name in mine]
        if sum(sizes) >= count:
            break
    else:
        return None
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(sum(sizes), dtype=torch.bool)
    flat[torch.randperm(len(flat), generator=generator)[:count]] = True
    return Mask({n: bits.view(parameters[n].shape) for n, bits in zip(mine, flat.split(sizes), strict=True)})


def fact_localization(
    model: nn.Module,
    subject: FactSubject,
    fraction: float,
    within: Within,
    measures: Sequence[str] = MEASURES,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0, 1, 2),
    every: int = 5,
    progress: Callable[[float], None] | None = None,
) -> FactLocalization:
    """Test whether located weights cause what they were located for, and how far the measures agree.

    Every repeat scores on another half of the facts. The random control takes as many weights of every matrix at
    random, the layer sweep as many from one block (every fifth block). Asked are unseen facts and retained ones, by
    held-out prompts.

    Args:
        model: A causal language model; not changed.
        subject: Whose facts.
        fraction: Of all weights, for the comparison of masks.
        within: See `candidates`.
        measures: From `MEASURES`.
        fractions: Of all weights, for the curves.
        seeds: One for each repeat.
        every: Blocks between two of the layer sweep.
        progress: Called with the share done, 0 to 1.

    Returns:
        The document for `localization.json`.
    """
    work = copy.deepcopy(model).eval().requires_grad_(False)
    groups = [drawn(subject.forget_test, WATCHED, seeds[0]), drawn(subject.retain_test, WATCHED, seeds[0])]
    half = max(2, min(FACTS, len(subject.forget) // 2))
    curves, masks = [], {}
    jobs = len(measures) * len(seeds)
    names = candidates(work, within)
    for number, measure in enumerate(measures):
        own: list[list[list[float]]] = [[] for _ in fractions]
        chance: list[list[list[float]]] = [[] for _ in fractions]
        for repeat, seed in enumerate(seeds):
            scores = score(work, subject, measure, within, seed, half)
            for row, share in enumerate(fractions):
                mask = mask_of(work, scores, share)
                own[row].append(ablated_shares(work, mask, subject, groups))
                chance[row].append(ablated_shares(work, mask.random_like(seed), subject, groups))
            if repeat == 0:
                masks[measure] = mask_of(work, scores, fraction)
            if progress:
                progress((number * len(seeds) + repeat + 1) / (jobs + 1))
        for control, rows in ((None, own), ("random", chance)):
            curves.append(_curve(measure, control, None, list(fractions), rows))  # type: ignore[arg-type]
    for block in anatomy(work).blocks[::every]:
        rows, x = [], []
        for share in fractions:
            swept = [layer_mask(work, names, block, count_of(work, share), seed) for seed in seeds[:1]]
            if all(mask is not None for mask in swept):
                rows.append([ablated_shares(work, mask, subject, groups) for mask in swept if mask is not None])
                x.append(share)
        if x:
            curves.append(_curve("all", "layer", block, x, rows))
    before = ablated_shares(work, Mask({}), subject, groups)
    if progress:
        progress(1.0)
    return FactLocalization(
        measures=list(measures),
        within=within,
        fraction=fraction,
        iou={a: {b: first.iou(second) for b, second in masks.items()} for a, first in masks.items()},
        curves=curves,
        causal=causal_scores(curves),
        n_forget=len(groups[0]),
        n_retain=len(groups[1]),
        forget_before=before[0],
        retain_before=before[1],
        layers={measure: by_layer(work, mask) for measure, mask in masks.items()},
        seeds=list(seeds),
    )


def _curve(
    measure: str,
    control: Literal["random", "layer"] | None,
    layer: str | None,
    x: list[float],
    rows: Sequence[Sequence[Sequence[float]]],
) -> Curve:
    forget, retain = ([[pair[i] for pair in row] for row in rows] for i in (0, 1))
    return Curve(measure=measure, control=control, layer=layer, x=x, forget=forget, retain=retain)
