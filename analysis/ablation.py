"""The causal check of localisation: what is lost when the highest-scored weights are set to zero."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from analysis.audit.report import Document
from analysis.errors import UserError
from analysis.scores import Mask, Scores, check_fraction
from analysis.subjects.classes import ClassSubject, Split
from analysis.training import Progress

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
ALL = "all"
CHUNK = 2048


class Curve(Document):
    """Accuracies as more and more weights are set to zero.

    Attributes:
        measure: What ranked the weights; "all" for the layer sweep, which is compared with every measure.
        control: None for the measure's own ranking; "random" for as many weights of each parameter at random; "layer"
            for as many weights at random from one layer.
        layer: Name of that layer.
        x: Fractions of all weights that are zero, rising.
        forget: Accuracy on the forgotten classes, `[x][repeat]`, 0 to 1.
        retain: Accuracy on the retained classes, `[x][repeat]`, 0 to 1.
    """

    measure: str
    control: Literal["random", "layer"] | None
    layer: str | None
    x: list[float]
    forget: list[list[float]]
    retain: list[list[float]]


class CausalScore(Document):
    """How much better a measure locates than chance does.

    Attributes:
        measure: Its name.
        mean: Mean over fractions and repeats of (forget accuracy lost - retain accuracy lost), less the same for the
            random control: 0 is chance, 1 would be all that is to be forgotten and nothing else.
        sd: Standard deviation over repeats (0 for one).
        n: Repeats.
        low: One-sided lower confidence limit of the mean (Student t over repeats; all measures' limits together hold
            with 95%), None for one repeat.
        better_than_chance: Whether `low` is above 0; None for one repeat.
    """

    measure: str
    mean: float
    sd: float
    n: int
    low: float | None
    better_than_chance: bool | None


class CausalCheck(Document):
    """What the causal check of either family of subjects finds: the common part of `localization.json`.

    Attributes:
        schema_version: Of this document.
        measures: Names of the attribution measures.
        fraction: Of all weights, at which the masks are compared.
        iou: Intersection over union of any two measures' masks.
        curves: What the model still does as located weights are set to zero, with the controls.
        causal: Which measures locate better than chance, best first.
        n_forget: Test images or facts to forget behind each value.
        n_retain: Test images or facts to keep behind each value.
        forget_before: Accuracy, or mean share of the right answer, on the former with all weights in place.
        retain_before: The same on the latter.
        seeds: Of the repeats.
    """

    schema_version: Literal[1] = 1
    measures: list[str]
    fraction: float
    iou: dict[str, dict[str, float]]
    curves: list[Curve]
    causal: list[CausalScore]
    n_forget: int
    n_retain: int
    forget_before: float
    retain_before: float
    seeds: list[int]


def count_of(model: nn.Module, fraction: float) -> int:
    """Turn a fraction of a model's weights into a number, the same for every measure.

    Args:
        model: Any module.
        fraction: In (0, 1].

    Returns:
        ceil(fraction x number of parameter entries, biases included).
    """
    total = sum(p.numel() for p in model.parameters())
    return min(math.ceil(check_fraction(fraction) * total - 1e-9), total)


def ranking(scores: Scores, model: nn.Module) -> torch.Tensor:
    """Order a model's weights by their scores, highest first.

    A unit stands for its row of incoming weights and its bias, all of which come before those of the next unit (a
    parameter without a row per unit has no place, as in `Scores.top`). Within a row larger weights come first, so
    that a budget smaller than a row means something too. Other ties are broken by position.

    Args:
        scores: Of kind "parameter" or "unit".
        model: The model that they belong to.

    Returns:
        int64 positions in the concatenation of all flattened parameters; entries without a score are absent.

    Raises:
        UserError: The scores belong to another model.
        ValueError: These are scores of an input.
    """
    if scores.kind == "input":
        raise ValueError("scores of an input don't rank weights")
    by_unit = scores.kind == "unit"
    first_unit = dict(zip(scores.values, np.cumsum([0, *map(torch.numel, scores.values.values())]), strict=False))
    positions, values, units, sizes = [], [], [], []
    start = 0
    for name, p in model.named_parameters():
        here = torch.arange(start, start + p.numel())
        start += p.numel()
        key = name.rpartition(".")[0] if by_unit else name
        if key not in scores.values:
            continue
        value = scores.values[key]
        if by_unit and value.shape != p.shape[:1]:
            continue
        if not by_unit and value.shape != p.shape:
            raise UserError(f"The {scores.measure} scores of {key} don't fit the model's weights; score this model.")
        unit = torch.arange(len(value)).repeat_interleave(p.numel() // len(value)) if by_unit else here
        positions.append(here)
        values.append(value[unit] if by_unit else value.flatten())
        units.append(unit + int(first_unit[key]) if by_unit else here)
        sizes.append(p.detach().abs().flatten())
    if not positions:
        raise UserError(f"The {scores.measure} scores fit none of the model's weights; score this model.")
    size, nth, height = (torch.cat(part).double().numpy() for part in (sizes, units, values))
    # Sorted by the last key first; where every weight is a unit of its own the sizes never come to bear.
    return torch.cat(positions)[torch.from_numpy(np.lexsort((-size, nth, -height)))]


def mask_at(positions: torch.Tensor, model: nn.Module) -> Mask:
    """Turn positions among all weights into a mask.

    Args:
        positions: int64, as `ranking` counts them.
        model: The model.

    Returns:
        The mask over all of its parameters.
    """
    named = dict(model.named_parameters())
    flat = torch.zeros(sum(p.numel() for p in named.values()), dtype=torch.bool)
    flat[positions] = True
    parts = flat.split([p.numel() for p in named.values()])
    return Mask({name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)})


def equal_masks(scores: Mapping[str, Scores], model: nn.Module, fraction: float) -> dict[str, Mask]:
    """Cut rankings of weights and of units at the same number of weights, so that they can be compared.

    Args:
        scores: By measure.
        model: The model that they belong to.
        fraction: Of all of the model's weights, in (0, 1].

    Returns:
        By measure, the mask of its top weights (fewer when it scores fewer).
    """
    count = count_of(model, fraction)
    return {measure: mask_at(ranking(one, model)[:count], model) for measure, one in scores.items()}


@torch.no_grad()
def ablated_accuracies(model: nn.Module, mask: Mask, splits: Sequence[Split]) -> list[float]:
    """Set the masked weights to zero and test what is left.

    Args:
        model: Any classifier in evaluation mode; not changed.
        mask: What to set to zero.
        splits: Labelled images, each at least one.

    Returns:
        Accuracy in [0, 1] on each split.
    """
    weights = {n: p.masked_fill(mask.bits[n], 0.0) if n in mask.bits else p for n, p in model.named_parameters()}
    images = torch.cat([split.images for split in splits])
    outputs = torch.cat([functional_call(model, weights, (part,)) for part in images.split(CHUNK)]).argmax(1)
    right = outputs == torch.cat([split.labels for split in splits])
    return [float(part.float().mean()) for part in right.split([len(split) for split in splits])]


def _layers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the positions of each layer's weights by the name of the module that owns them."""
    start = 0
    layers: dict[str, list[torch.Tensor]] = {}
    for name, p in model.named_parameters():
        layers.setdefault(name.rpartition(".")[0] or name, []).append(torch.arange(start, start + p.numel()))
        start += p.numel()
    return {layer: torch.cat(parts) for layer, parts in layers.items()}


@dataclass(frozen=True)
class _Job:
    """One curve to be measured: its name, how many weights it can take, and how its masks are made."""

    measure: str
    control: Literal["random", "layer"] | None
    layer: str | None
    most: int
    repeats: int
    mask: Callable[[int, int], Mask]


def _measure_jobs(model: nn.Module, measure: str, scores: Sequence[Scores], seeds: Sequence[int]) -> list[_Job]:
    rankings = [ranking(one, model) for one in scores]

    def own(count: int, repeat: int) -> Mask:
        return mask_at(rankings[repeat % len(rankings)][:count], model)

    def random(count: int, repeat: int) -> Mask:
        return own(count, repeat).random_like(seeds[repeat])

    most = min(len(order) for order in rankings)
    return [
        _Job(measure, None, None, most, len(rankings), own),
        _Job(measure, "random", None, most, len(seeds), random),
    ]


def _layer_job(model: nn.Module, layer: str, positions: torch.Tensor, seeds: Sequence[int]) -> _Job:
    def random(count: int, repeat: int) -> Mask:
        generator = torch.Generator().manual_seed(seeds[repeat])
        return mask_at(positions[torch.randperm(len(positions), generator=generator)[:count]], model)

    return _Job(ALL, "layer", layer, len(positions), len(seeds), random)


def watched_images(subject: ClassSubject, most: int, seed: int) -> tuple[Split, Split]:
    """Choose the images on which ablated models are tested.

    Args:
        subject: What is to be forgotten; the retained classes are those that the original model knows.
        most: At most so many images of each part.
        seed: Of the draw.

    Returns:
        Test images of the forgotten and of the retained classes.
    """
    return subject.test.only(subject.forget).sample(most, seed), subject.test.only(subject.retain).sample(most, seed)


def ablation_curves(
    model: nn.Module,
    subject: ClassSubject,
    scores: Mapping[str, Sequence[Scores]],
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    most: int = 1000,
    progress: Progress | None = None,
) -> list[Curve]:
    """Zero the top k weights of each measure and watch both accuracies, beside two controls.

    The random control takes as many weights of every parameter as the measure did, so that it differs in *which*
    weights only; the layer sweep takes k weights at random from one layer, as far as it has so many: a measure that
    does no better than some layer's random weights has found a layer, not weights. Repeats of a measure are its
    scores on different samples, paired with the controls' seeds.

    Accuracy falling is not erasure: cutting the row of the head that belongs to the class does it (see the audit).
    The curves use `subject.test`, for reporting; to choose a measure or a fraction by them give
    `subject.for_choosing()`.

    Args:
        model: The classifier; not changed.
        subject: Whose classes, and whose test images.
        scores: By measure, its scores on one or several samples of the training images.
        fractions: Of all weights, each in (0, 1].
        seeds: One for each repeat of the controls.
        most: At most so many test images of the forgotten and as many of the retained classes.
        progress: Called with the share done, 0 to 1.

    Returns:
        For every measure its curve and its random control, which end before the measure runs out of scored weights;
        then a curve for each layer that has enough weights for the smallest fraction.

    Raises:
        UserError: There are no seeds, or a fraction is not above 0 and at most 1.
    """
    if not seeds:
        raise UserError("The ablation curves need at least one seed for their controls; give --seed.")
    counts = {fraction: count_of(model, fraction) for fraction in sorted(set(fractions))}
    jobs = [job for measure, some in scores.items() for job in _measure_jobs(model, measure, some, seeds)]
    jobs += [_layer_job(model, layer, positions, seeds) for layer, positions in _layers(model).items()]
    reach = [[fraction for fraction, count in counts.items() if count <= job.most] for job in jobs]
    total = sum(len(x) * job.repeats for job, x in zip(jobs, reach, strict=True))
    splits = watched_images(subject, most, seeds[0])
    still = copy.deepcopy(model).eval()
    curves, done = [], 0
    for job, x in zip(jobs, reach, strict=True):
        rows = []
        for fraction in x:
            masks = (job.mask(counts[fraction], repeat) for repeat in range(job.repeats))
            rows.append([ablated_accuracies(still, mask, splits) for mask in masks])
            done += job.repeats
            if progress:
                progress(done / total)
        forget, retain = ([[pair[i] for pair in row] for row in rows] for i in (0, 1))
        if x:
            curves.append(
                Curve(measure=job.measure, control=job.control, layer=job.layer, x=x, forget=forget, retain=retain)
            )
    return curves


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def causal_scores(curves: Sequence[Curve], level: float = 0.05) -> list[CausalScore]:
    """Sum up curves: does each measure locate better than chance?

    The area between a measure and its random control, on the fractions that were tested, all counted alike.

    Args:
        curves: What `ablation_curves` gave.
        level: Chance that any measure at all is called better than chance when none is (divided among the measures).

    Returns:
        One for each measure, best first.
    """
    from scipy import stats

    own = {curve.measure: curve for curve in curves if curve.control is None}
    random = {curve.measure: curve for curve in curves if curve.control == "random"}
    found = []
    for measure, mine in own.items():
        control = random[measure]
        repeats = max(len(mine.forget[0]), len(control.forget[0]))
        gains = [
            _mean([(r[i % len(r)] - m[i % len(m)]) for r, m in zip(control.forget, mine.forget, strict=True)])
            - _mean([(r[i % len(r)] - m[i % len(m)]) for r, m in zip(control.retain, mine.retain, strict=True)])
            for i in range(repeats)
        ]
        mean = _mean(gains)
        sd = math.sqrt(sum((g - mean) ** 2 for g in gains) / (repeats - 1)) if repeats > 1 else 0.0
        low = None
        if repeats > 1:
            low = mean - float(stats.t.ppf(1 - level / len(own), repeats - 1)) * sd / math.sqrt(repeats)
        better = None if low is None else low > 0
        found.append(CausalScore(measure=measure, mean=mean, sd=sd, n=repeats, low=low, better_than_chance=better))
    return sorted(found, key=lambda score: -score.mean)
