"""Activation patching in causal language models: what each place carries, exactly and to first order.

Heimersheim and Nanda (2024), "How to use and interpret activation patching"; Nanda (2023), "Attribution patching:
activation patching at industrial scale".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from analysis.attribution.anatomy import Anatomy, anatomy
from analysis.attribution.patching import Direction
from analysis.attribution.resuming import SITES, Recorded, Site, Variant, record, resumable, resume
from analysis.attribution.running import place, undisturbed
from analysis.errors import UserError

CELLS = 128
SHARE = 16
"""Pairs recorded together are so many times fewer than cells: all blocks' activations are kept of them."""
BATCH = 8
SMALLEST = 1e-6


@dataclass(frozen=True)
class PatchingMap:
    """What single places of a model restore (denoising) or break (noising), for one pair of prompts.

    0 means no effect and 1 the whole difference between the two runs; values can be negative or above 1.

    Attributes:
        values: By site. "resid" (the residual stream entering a block), "attn" (attention output) and "mlp" (MLP
            output): [layers, positions]; "head" (a head's output before the output projection, at all positions):
            [layers, heads].
        direction: "denoising": the corrupt run with one clean place; "noising": the clean run with one corrupt place.
        method: "exact", or "first-order" from gradients.
        clean: log p(answer) - log p(wrong) of the clean prompt, in nats.
        corrupt: The same of the corrupt prompt.
    """

    values: Mapping[str, torch.Tensor]
    direction: Direction
    method: Literal["exact", "first-order"]
    clean: float
    corrupt: float


def equal_length_pairs(
    clean: Sequence[Sequence[int]], variants: Sequence[Sequence[Sequence[int]]]
) -> list[tuple[int, int]]:
    """Find the pairs of prompts that can be patched: equally long, and not the same.

    Args:
        clean: Ids of the clean prompts.
        variants: For each clean prompt, the ids of its corrupt variants.

    Returns:
        For each usable pair the numbers of the clean prompt and of its variant, in order.

    Raises:
        UserError: There is none.
    """
    found = [
        (number, i)
        for number, (prompt, others) in enumerate(zip(clean, variants, strict=True))
        for i, other in enumerate(others)
        if len(other) == len(prompt) and list(other) != list(prompt)
    ]
    if not found:
        raise UserError("No corrupt prompt has as many tokens as its clean one; give variants of the same length.")
    return found


@dataclass(frozen=True)
class Pair:
    """Two prompts to patch between.

    Attributes:
        clean: int64 [t], a prompt that the model continues with the answer.
        corrupt: int64 [t], an equally long one about something else.
        answer: First token of the right answer to the clean prompt.
        wrong: First token of another answer, usually the right one to the corrupt prompt.
    """

    clean: torch.Tensor
    corrupt: torch.Tensor
    answer: int
    wrong: int


def _ready(model: nn.Module, pairs: Sequence[Pair], sites: Iterable[str], direction: str) -> tuple[Anatomy, list[Pair]]:
    parts = anatomy(model)
    if direction not in {"denoising", "noising"}:
        raise UserError(f"There is no patching direction {direction!r}; choose denoising or noising.")
    unknown = [site for site in sites if site not in SITES]
    if unknown:
        raise UserError(f"There is no patching site {unknown[0]!r}; choose from {', '.join(SITES)}.")
    for one in pairs:
        if one.clean.dim() != 1 or one.clean.shape != one.corrupt.shape or not len(one.clean):
            raise UserError(
                f"Prompts of shape {tuple(one.clean.shape)} and {tuple(one.corrupt.shape)} can't be patched; "
                "give the ids of two single prompts of the same length."
            )
        if one.answer == one.wrong:
            raise UserError(
                "The right and the wrong answer begin with the same token; choose a wrong answer that begins otherwise."
            )
    return parts, [replace(one, clean=place(model, one.clean), corrupt=place(model, one.corrupt)) for one in pairs]


def _batches(pairs: Sequence[Pair], size: int) -> Iterator[list[int]]:
    # Numbers of pairs to run together, alike in length.
    order = sorted(range(len(pairs)), key=lambda number: len(pairs[number].clean))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def _sides(pairs: Sequence[Pair], direction: Direction) -> tuple[torch.Tensor, torch.Tensor]:
    # The prompts that are patched and those from which patches come, [n, t]. What they are padded with stands behind
    # them, where it changes nothing.
    clean, corrupt = (
        nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
        for prompts in zip(*((one.clean, one.corrupt) for one in pairs), strict=True)
    )
    return (corrupt, clean) if direction == "denoising" else (clean, corrupt)


def _leads(model: nn.Module, states: torch.Tensor, pairs: Sequence[Pair]) -> torch.Tensor:
    # log p(answer) - log p(wrong) of normed states [n, width], one pair each: the normaliser cancels, so no other logit
    # is needed.
    head = model.get_output_embeddings()  # type: ignore[operator]
    right, wrong = torch.tensor([(one.answer, one.wrong) for one in pairs], device=states.device).unbind(1)
    found = ((head.weight[right].double() - head.weight[wrong].double()) * states.double()).sum(1)
    return found if head.bias is None else found + (head.bias[right] - head.bias[wrong]).double()


def _ends(states: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    # The states [n, width] after the last tokens of padded prompts.
    return states[range(len(lengths)), [length - 1 for length in lengths]]


def _gain(at_base: float, at_other: float) -> float:
    if not abs(at_other - at_base) > SMALLEST * (abs(at_other) + abs(at_base)):
        raise UserError(
            f"The answer leads by {at_base:.3g} nats after the clean and the corrupt prompt alike, so nothing can be "
            "restored; choose another pair."
        )
    return at_other - at_base


def _map(
    values: Mapping[str, torch.Tensor],
    direction: Direction,
    method: Literal["exact", "first-order"],
    at_base: float,
    at_other: float,
) -> PatchingMap:
    ends = (at_other, at_base) if direction == "denoising" else (at_base, at_other)
    return PatchingMap({site: one.cpu() for site, one in values.items()}, direction, method, *ends)


def _variants(run: Recorded, pairs: Sequence[Pair], sites: Sequence[Site], heads: int) -> Iterator[Variant]:
    # Every base prompt, in the first half of the recording, with everything that another one has, in the second half;
    # lower blocks first. A place that is the same in both has no effect and needs no run.
    n = len(pairs)
    firsts = [int((one.clean != one.corrupt).int().argmax()) for one in pairs]
    for layer in range(len(run.arguments)):
        for site in sites:
            values = run.values[site][layer]
            differs = (values[:n] != values[n:]).unflatten(2, (heads if site == "head" else 1, -1)).any(3)
            for pair, (one, first) in enumerate(zip(pairs, firsts, strict=True)):
                end, mine = len(one.clean), differs[pair, first : len(one.clean)]
                if site == "head":
                    for head in mine.any(0).nonzero().flatten().tolist():
                        yield Variant(pair, n + pair, site, layer, first, end, head)
                else:
                    for position in (first + mine[:, 0].nonzero().flatten()).tolist():
                        yield Variant(pair, n + pair, site, layer, position, position + 1)


def _passes(variants: Iterable[Variant], lengths: Sequence[int], tokens: int) -> Iterator[list[Variant]]:
    # Neighbours that have at most so many tokens to be run in all, or one alone that has more.
    some: list[Variant] = []
    free = tokens
    for one in variants:
        size = lengths[one.prompt] - one.start
        if some and size > free:
            yield some
            some, free = [], tokens
        some.append(one)
        free -= size
    if some:
        yield some


def activation_patching_many(
    model: nn.Module,
    pairs: Sequence[Pair],
    sites: Sequence[Site] = SITES,
    direction: Direction = "denoising",
    cells: int = CELLS,
) -> list[PatchingMap]:
    """Exact causal effect of every place of a model, one at a time, on each of several pairs of prompts.

    With F = log p(answer) - log p(wrong) after the prompt's last token: denoising gives (F(corrupt with the place's
    clean value) - F(corrupt)) / (F(clean) - F(corrupt)), noising (F(clean) - F(clean with the place's corrupt value)) /
    (F(clean) - F(corrupt)).

    What a patch can't change isn't run: each patched copy goes on from its own block and position (see `resuming`), and
    there is none for a place that is the same in both prompts. Copies of all places and pairs run side by side.

    Refused with a `UserError` are prompts of different length, an unknown site or direction, answers that begin alike,
    the same F on both sides, and a model whose attention can't be resumed.

    Args:
        model: A Hugging Face causal language model; run in evaluation mode and left as it was.
        pairs: Pairs of prompts; equally long within a pair, of any lengths otherwise.
        sites: Any of "resid", "attn", "mlp" and "head".
        direction: "denoising" or "noising".
        cells: As many tokens as so many copies of the longest prompt have go into a pass at most. Bounds memory;
            doesn't change the result.

    Returns:
        One map for each pair, in order.
    """
    parts, pairs = _ready(model, pairs, sites, direction)
    maps: dict[int, PatchingMap] = {}
    for numbers in _batches(pairs, max(1, cells // SHARE)):
        some = [pairs[number] for number in numbers]
        lengths = 2 * [len(one.clean) for one in some]
        ids = torch.cat(_sides(some, direction))
        with undisturbed(model, parameters=False), torch.no_grad(), resumable(model, parts):
            run = record(model, parts, ids, sites, keys=True)
            bases, others = _leads(model, _ends(run.leaving, lengths), 2 * some).view(2, -1).tolist()
            gains = [_gain(*both) for both in zip(bases, others, strict=True)]
            values = [
                {
                    site: run.leaving.new_zeros(len(parts.blocks), parts.heads if site == "head" else len(one.clean))
                    for site in sites
                }
                for one in some
            ]
            for variants in _passes(_variants(run, some, sites, parts.heads), lengths, cells * ids.shape[1]):
                states = resume(model, parts, run, lengths, variants)
                leads = _leads(model, states, [some[one.prompt] for one in variants]).tolist()
                for one, lead in zip(variants, leads, strict=True):
                    cell = one.layer, one.head if one.site == "head" else one.start
                    values[one.prompt][one.site][cell] = (lead - bases[one.prompt]) / gains[one.prompt]
        for number, *found in zip(numbers, values, bases, others, strict=True):
            maps[number] = _map(found[0], direction, "exact", *found[1:])
    return [maps[number] for number in range(len(pairs))]


def activation_patching(
    model: nn.Module,
    clean_ids: torch.Tensor,
    corrupt_ids: torch.Tensor,
    answer: int,
    wrong: int,
    sites: Sequence[Site] = SITES,
    direction: Direction = "denoising",
    cells: int = CELLS,
) -> PatchingMap:
    """Exact causal effect of every place of a model, one at a time, on one pair of prompts.

    Args:
        model: As for `activation_patching_many`.
        clean_ids: See `Pair`.
        corrupt_ids: See there.
        answer: See there.
        wrong: See there.
        sites: As for `activation_patching_many`.
        direction: As there.
        cells: As there.

    Returns:
        One map per site.
    """
    pair = Pair(clean_ids, corrupt_ids, answer, wrong)
    return activation_patching_many(model, [pair], sites, direction, cells)[0]


def attribution_patching_many(
    model: nn.Module,
    pairs: Sequence[Pair],
    sites: Sequence[Site] = SITES,
    direction: Direction = "denoising",
    batch: int = BATCH,
) -> list[PatchingMap]:
    """Guess what `activation_patching_many` would give, to first order: two forward passes and one backward per batch.

    Each place's change of activation times the gradient of F, taken on the run that would be patched (Nanda 2023).
    Reliable for small changes such as a head's, poor for large ones such as the residual stream's: compare with
    `rank_correlation`. Any model goes that `anatomy` knows; otherwise the same is refused as there.

    Args:
        model: A Hugging Face causal language model; run in evaluation mode and left as it was.
        pairs: As for `activation_patching_many`.
        sites: As there.
        direction: As there.
        batch: Pairs per pass. Bounds memory; doesn't change the result.

    Returns:
        One map for each pair, in order.
    """
    parts, pairs = _ready(model, pairs, sites, direction)
    maps: dict[int, PatchingMap] = {}
    for numbers in _batches(pairs, batch):
        some = [pairs[number] for number in numbers]
        lengths = [len(one.clean) for one in some]
        base, other = _sides(some, direction)
        effects: dict[str, torch.Tensor] = {}
        with undisturbed(model, parameters=False):
            here = record(model, parts, base, sites)
            bases = _leads(model, _ends(here.leaving, lengths), some)
            wanted = [activation for site in sites for activation in here.values[site]]
            gradients = iter(torch.autograd.grad(bases.sum(), wanted))
            with torch.no_grad():
                there = record(model, parts, other, sites)
                others = _leads(model, _ends(there.leaving, lengths), some)
                for site in sites:
                    both = zip(here.values[site], there.values[site], strict=True)
                    heads = parts.heads if site == "head" else 1
                    changes = [((b - a) * next(gradients)).unflatten(2, (heads, -1)).sum(3) for a, b in both]
                    effects[site] = torch.stack(changes, 1)
        for pair, (number, *leads) in enumerate(zip(numbers, bases.tolist(), others.tolist(), strict=True)):
            gain = _gain(*leads)
            mine = {site: one[pair, :, : lengths[pair]] / gain for site, one in effects.items()}
            values = {site: one.sum(1) if site == "head" else one.squeeze(2) for site, one in mine.items()}
            maps[number] = _map(values, direction, "first-order", *leads)
    return [maps[number] for number in range(len(pairs))]


def attribution_patching(
    model: nn.Module,
    clean_ids: torch.Tensor,
    corrupt_ids: torch.Tensor,
    answer: int,
    wrong: int,
    sites: Sequence[Site] = SITES,
    direction: Direction = "denoising",
) -> PatchingMap:
    """Guess what `activation_patching` would give, to first order.

    Args:
        model: As for `attribution_patching_many`.
        clean_ids: See `Pair`.
        corrupt_ids: See there.
        answer: See there.
        wrong: See there.
        sites: As for `attribution_patching_many`.
        direction: As there.

    Returns:
        One map per site.
    """
    return attribution_patching_many(model, [Pair(clean_ids, corrupt_ids, answer, wrong)], sites, direction)[0]


def rank_correlation(exact: PatchingMap, approximate: PatchingMap) -> dict[str, float]:
    """Compare two maps of one pair by rank.

    Args:
        exact: One map.
        approximate: The other.

    Returns:
        Spearman's rho over all cells, by site that both have, in [-1, 1]; NaN where a map is constant.
    """
    from scipy.stats import spearmanr

    found = {}
    for site, values in exact.values.items():
        if site in approximate.values:
            first, second = values.flatten().numpy(), approximate.values[site].flatten().numpy()
            flat = (first == first[0]).all() or (second == second[0]).all()
            found[site] = float("nan") if flat else float(spearmanr(first, second).statistic)
    return found
