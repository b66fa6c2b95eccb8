"""Localisation: every attribution measure on one subject, their overlap, and the causal check, as one document."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import nn

from analysis.ablation import (
    FRACTIONS,
    CausalCheck,
    ablated_accuracies,
    ablation_curves,
    causal_scores,
    equal_masks,
    watched_images,
)
from analysis.attribution.contrast import contrast, rank_sum
from analysis.attribution.fisher import Kind, brain_damage, fisher_diagonal, fisher_ratio
from analysis.attribution.gradients import saliency, weight_integrated_gradients
from analysis.attribution.integrated import unit_integrated_gradients
from analysis.attribution.layers import unit_layers
from analysis.attribution.patching import Direction, activation_patching, matched_pairs
from analysis.attribution.targets import logit
from analysis.errors import UserError
from analysis.scores import Mask, Scores
from analysis.subjects.classes import ClassSubject, Split
from analysis.training import Progress

ALONE = ("gradient", "weight-ig", "fisher", "fisher-true", "brain-damage")
"""Measures that look at images to forget alone."""
MEASURES = (
    "gradient",
    "weight-ig",
    "fisher",
    "fisher-true",
    "fisher-ratio",
    "brain-damage",
    "contrast",
    "damage-contrast",
    "unit-ig",
    "patching-denoising",
    "patching-noising",
)
FORGET_IMAGES = 1000
RETAIN_IMAGES = 1000
PATH_IMAGES = 200
UNIT_IMAGES = 64
STEPS = 16
HALF = 0.5
MOST = 1000
MOST_CONVOLVED = 300
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LocalizationReport(CausalCheck):
    """Everything in `localization.json` of a run on classes: values are accuracies.

    Attributes:
        scored_forget: Training images of the forgotten classes from which each repeat scores (a random half).
        scored_retain: Training images of the retained classes, likewise.
    """

    scored_forget: int
    scored_retain: int


def dark(images: torch.Tensor) -> torch.Tensor:
    """Find the picture of nothing, from which integrated gradients of pixels and units start.

    Args:
        images: [n, channels, height, width].

    Returns:
        [1, channels, 1, 1]: each channel's darkest value; black for digits, whatever the normalisation.
    """
    return images.amin((0, 2, 3), keepdim=True)


def sampled(subject: ClassSubject, seed: int, share: float = 1.0) -> tuple[Split, Split]:
    """Draw the training images on which a model is scored.

    Args:
        subject: What is to be forgotten, what is to be kept.
        seed: Of the draw.
        share: Part of the available images to draw from at most, in (0, 1].

    Returns:
        Images of the forgotten classes and of the retained ones (at most 1000 each), natural labels.
    """
    parts = (subject.forget_train, FORGET_IMAGES), (subject.retain_train, RETAIN_IMAGES)
    forget, retain = (part.sample(min(most, max(1, round(share * len(part)))), seed) for part, most in parts)
    return forget, retain


def _ways(model: nn.Module, subject: ClassSubject, forget: Split, retain: Split) -> dict[str, Callable[[], Scores]]:
    """Return how each measure is computed; nothing runs until it is called, and no Fisher diagonal twice."""
    path, units = (forget.take(torch.arange(min(n, len(forget)))) for n in (PATH_IMAGES, UNIT_IMAGES))

    @cache
    def diagonal(forgotten: bool, kind: Kind) -> Scores:
        part = forget if forgotten else retain
        return fisher_diagonal(model, part.images, part.labels, kind)

    @cache
    def inner() -> list[str] | None:
        return [layer for layer in unit_layers(model, units.images) if layer != subject.network.head] or None

    @cache
    def damage() -> Scores:
        return brain_damage(model, diagonal(True, "true"))

    @cache
    def telling() -> Scores:
        return contrast(model, forget.images, retain.images)

    def unit_ig() -> Scores:
        start = dark(retain.images)
        return unit_integrated_gradients(model, units.images, units.labels, inner(), start, logit, STEPS)

    def patching(direction: Direction) -> Scores:
        partners = retain.images[matched_pairs(units.images, retain.images)]
        return activation_patching(model, units.images, partners, units.labels, logit, direction, inner())

    return {
        "gradient": lambda: saliency(model, forget.images, forget.labels),
        "weight-ig": lambda: weight_integrated_gradients(
            model, path.images, path.labels, logit, steps=STEPS, signed=False
        ),
        "fisher": lambda: diagonal(True, "empirical"),
        "fisher-true": lambda: diagonal(True, "true"),
        "fisher-ratio": lambda: fisher_ratio(diagonal(True, "true"), diagonal(False, "true")),
        "brain-damage": damage,
        "contrast": telling,
        "damage-contrast": lambda: rank_sum(damage(), telling(), "damage-contrast"),
        "unit-ig": unit_ig,
        "patching-denoising": partial(patching, "denoising"),
        "patching-noising": partial(patching, "noising"),
    }


def check_measures(subject: ClassSubject, measures: Sequence[str]) -> None:
    """Refuse measures that can't be had, before anything long begins.

    Args:
        subject: Whose training images they would see.
        measures: Their names.

    Raises:
        UserError: One doesn't exist, or there is no retained image that it could compare with.
    """
    unknown = [measure for measure in measures if measure not in MEASURES]
    if unknown:
        raise UserError(f"There is no attribution measure {unknown[0]!r}; choose from {', '.join(MEASURES)}.")
    comparing = [measure for measure in measures if measure not in ALONE]
    if comparing and not len(subject.retain_train):
        raise UserError(
            f"The measure {comparing[0]!r} compares with retained images and may see none; raise --seen-retain, or use "
            f"`yesterday compare` with --locate {' or '.join(ALONE)}."
        )


def locate(
    model: nn.Module,
    subject: ClassSubject,
    measures: Sequence[str] = MEASURES,
    seed: int = 0,
    progress: Progress | None = None,
    share: float = 1.0,
) -> dict[str, Scores]:
    """Score a model's weights or units by what they carry of the classes to forget, on training images.

    In all of them higher means "carries more", so that `Scores.top` takes the right end:

    - "gradient", "fisher", "fisher-true": of the cross-entropy on images to forget; never negative. They say what
      matters for these images, whether or not it matters for the others as well.
    - "fisher-ratio": the true Fisher on images to forget over that on images to keep; what both need drops out.
    - "brain-damage": what deleting a weight would cost on images to forget: the true Fisher times the weight's square.
    - "contrast": how differently a connection is fed by images to forget and images to keep, times its weight: what a
      probe of the layer can read, whether or not the output uses it.
    - "damage-contrast": the sum of a weight's ranks in these two; what `regrow` pulls out.
    - "weight-ig": magnitudes of the weights' shares in the forgotten class's logit, on the path from zero weights (a
      share is what a weight adds in comparison with its ablation). Unsigned, because weights that hold a logit
      down tell classes apart as well: magnitudes located better than signed shares in four of four trials.
    - "unit-ig": signed shares of units in that logit, on the path from a dark image; negative shares hold it down and
      rank last.
    - "patching-denoising", "patching-noising": the part of that logit which a unit alone restores or breaks, each
      image paired with its nearest image of a retained class; negative where a unit works against the class.

    Units of the head are left out: the logit is one of them and would be found by definition. At most 1000 images
    to forget and 1000 to keep are looked at, 200 along paths of weights and 64 for units (16 steps along paths, which
    gave the same top 1% of weights as 64 steps).

    Args:
        model: The classifier; not changed.
        subject: Whose training images.
        measures: Names from `MEASURES`; only these are computed.
        seed: Of the draw of images.
        progress: Called with the share done, 0 to 1.
        share: Part of the available images to draw from at most, in (0, 1].

    Returns:
        Scores by measure, in the order asked for.
    """
    check_measures(subject, measures)
    ways = _ways(copy.deepcopy(model).eval(), subject, *sampled(subject, seed, share))
    scores = {}
    wanted = list(dict.fromkeys(measures))
    for done, measure in enumerate(wanted, 1):
        scores[measure] = ways[measure]()
        if progress:
            progress(done / len(wanted))
    return scores


def overlap(masks: Mapping[str, Mask]) -> dict[str, dict[str, float]]:
    """Compare masks pairwise.

    Args:
        masks: By name, all over the same model; `ablation.equal_masks` makes them comparable.

    Returns:
        Intersection over union by both names, 0 to 1; two random masks of a fraction f have about f / (2 - f).
    """
    return {a: {b: first.iou(second) for b, second in masks.items()} for a, first in masks.items()}


def localization_report(
    model: nn.Module,
    subject: ClassSubject,
    scores: Mapping[str, Scores],
    fraction: float,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    most: int | None = None,
    progress: Progress | None = None,
) -> LocalizationReport:
    """Test whether located weights cause what they were located for, and how far the measures agree.

    The spread of a measure comes from scoring anew on a random half of the training images for every repeat. Scores
    on a half drawn without replacement vary around those on the whole as much as the whole varies around the truth
    (half-sampling; Shao and Wu, 1989), so no factor is needed. Measures that look at few images only (see
    `locate`) draw as many from each half.

    To choose a measure or a fraction by the result give `subject.for_choosing()`; the report on `subject` itself
    uses the test images.

    Args:
        model: The classifier; not changed.
        subject: Whose images.
        scores: What `locate` gave for the same model; decides the measures, and the masks that are compared.
        fraction: Of all weights, for the comparison of masks.
        fractions: Of all weights, for the ablation curves.
        seeds: One for each repeat of measures and controls, at least one.
        most: At most so many test images of the forgotten and as many of the retained classes; if not given 1000, or
            300 where the network has convolutions, which take twenty times as long.
        progress: Called with the share done, 0 to 1.

    Returns:
        The document for `localization.json`.

    Raises:
        UserError: There are no seeds.
    """
    if not seeds:
        raise UserError("The causal check needs at least one seed; give one for each repeat.")

    def tell(done: float, before: float, share: float) -> None:
        if progress:
            progress(before + share * done)

    if most is None:
        most = MOST_CONVOLVED if any(isinstance(m, CONVOLUTIONS) for m in model.modules()) else MOST
    again: dict[str, list[Scores]] = {measure: [] for measure in scores}
    each = 0.5 / len(seeds)
    for i, seed in enumerate(seeds):
        half = locate(model, subject, list(scores), seed, partial(tell, before=i * each, share=each), HALF)
        for measure, found in half.items():
            again[measure].append(found)
    halfway = partial(tell, before=0.5, share=0.5)
    curves = ablation_curves(model, subject, again, fractions, seeds, most, halfway)
    tested = watched_images(subject, most, seeds[0])
    before = ablated_accuracies(copy.deepcopy(model).eval(), Mask({}), tested)
    scored = sampled(subject, seeds[0], HALF)
    return LocalizationReport(
        measures=list(scores),
        fraction=fraction,
        iou=overlap(equal_masks(scores, model, fraction)),
        curves=curves,
        causal=causal_scores(curves),
        n_forget=len(tested[0]),
        n_retain=len(tested[1]),
        forget_before=before[0],
        retain_before=before[1],
        scored_forget=len(scored[0]),
        scored_retain=len(scored[1]),
        seeds=list(seeds),
    )
