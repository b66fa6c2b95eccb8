"""What figures need from the models themselves: attributions, misses, confusions and projections, as tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from analysis.attribution.integrated import pixel_integrated_gradients, pixel_residuals
from analysis.attribution.targets import logit
from analysis.localization import dark
from analysis.representations.capture import hidden
from analysis.representations.projection import align, project
from analysis.representations.similarity import centroid_shift, linear_cka
from analysis.subjects.classes import ClassSubject, Split
from analysis.training import logits_of

ATTRIBUTED = 8
MISSES = 25
POINTS = 600
POINTS_A_CLASS = 60
FEWEST_A_CLASS = 5
ANCHORS = 2000
STEPS = 64
ALIGNED = ("edited", "gold")
"""Brought into the original's basis before they are placed on its map."""


def confusion(model: nn.Module, split: Split, outputs: int) -> torch.Tensor:
    """Count what a model calls each class.

    Args:
        model: Any classifier.
        split: Images with natural labels.
        outputs: Number of classes, and of the model's outputs.

    Returns:
        int64 [outputs, outputs]: rows are natural labels, columns the model's outputs.
    """
    called = logits_of(model, split.images).argmax(1)
    return torch.bincount(split.labels * outputs + called, minlength=outputs**2).view(outputs, outputs)


def few_of_each(split: Split, classes: int, seed: int) -> Split:
    """Draw about equally many images of each class, so many that a projection stays quick.

    Args:
        split: Labelled images.
        classes: Number of classes.
        seed: Of the draw.

    Returns:
        At most 60 images of each class, fewer (5 at least) when there are more than ten classes; sorted by label.
    """
    each = max(FEWEST_A_CLASS, min(POINTS_A_CLASS, POINTS // classes))
    parts = [split.only([label]).sample(each, seed) for label in range(classes)]
    return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def _attributions(models: Mapping[str, nn.Module], subject: ClassSubject, seed: int) -> dict[str, torch.Tensor]:
    """Return pixel attributions of some test images of the forgotten classes, each to its own class's logit."""
    some = subject.forget_test.sample(ATTRIBUTED, seed)
    start = dark(subject.train.images)
    pictures = {"six.images": some.images}
    for name, model in models.items():
        scores = pixel_integrated_gradients(model, some.images, some.labels, logit, start, STEPS)
        pictures[f"six.ig.{name}"] = scores.values["input"]
        pictures[f"six.residual.{name}"] = pixel_residuals(scores, model, some.images, some.labels, logit, start)
    return pictures


def _misses(edited: nn.Module, subject: ClassSubject, seed: int) -> dict[str, torch.Tensor]:
    """Return test images of the forgotten classes that the edited model calls something else."""
    sixes = subject.forget_test.sample(len(subject.forget_test), seed)
    called = logits_of(edited, sixes.images).argmax(1)
    missed = (called != sixes.labels).nonzero().flatten()[:MISSES]
    return {"miss.images": sixes.images[missed], "miss.predicted": called[missed]}


def _shift(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor, classes: Sequence[int]) -> float:
    """Return the mean over classes of how far each moved."""
    moved = [centroid_shift(before[labels == label], after[labels == label]) for label in classes]
    return sum(moved) / len(moved)


def _maps(
    models: Mapping[str, nn.Module], subject: ClassSubject, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the last hidden layer of all models on one map, and what the original space says of them."""
    some = few_of_each(subject.test, len(subject.classes), seed)
    anchors = subject.retain_train.sample(ANCHORS, seed)
    head = subject.network.head

    features = {name: hidden(model, [head], some.images)[head] for name, model in models.items()}
    fixed = {name: hidden(model, [head], anchors.images)[head] for name, model in models.items()}
    before = features["original"]
    others = {name: align(features[name], fixed[name], fixed["original"]) for name in ALIGNED}

    placed = project(before, others, seed)
    pictures = {"umap.original": placed.pop("before"), "umap.labels": some.labels}
    pictures |= {f"umap.{name}": points for name, points in placed.items()}
    facts = {"n": str(len(some)), "seed": str(seed)}
    for name, after in others.items():
        facts[f"cka.{name}"] = f"{linear_cka(before, features[name]):.4f}"
        facts[f"shift.{name}"] = f"{_shift(before, after, some.labels, subject.forget):.4f}"
        facts[f"shift.{name}.retain"] = f"{_shift(before, after, some.labels, subject.retain):.4f}"
    return pictures, facts


def collect_pictures(
    subject: ClassSubject, original: nn.Module, edited: nn.Module, gold: nn.Module, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Collect the content of `pictures.safetensors`.

    With classes = c, and "six" standing for the forgotten classes whatever they are:

    - six.images [k, channels, h, w]: up to 8 of their test images; six.ig.{original,edited,gold} of the same shape:
      signed integrated gradients of the image's own class's logit from a dark image, in units of the logit;
      six.residual.{...} [k]: how far each image's attributions miss the logit's difference.
    - miss.images [m, channels, h, w] and miss.predicted int64 [m]: up to 25 of them as the edited model calls them.
    - confusion.{...} int64 [c, c]: all test images; rows are natural labels, columns outputs.
    - umap.{...} float32 [n, 2] and umap.labels int64 [n]: inputs of the head for about 60 test images a class, on the
      map that UMAP fitted on the original. Gold is another network with another basis, and an edit that draws weights
      afresh makes another basis too; what reads the layer can undo a change of basis, and CKA doesn't see it. So the
      features of both are first aligned to the original's on training images of the retained classes
      (`projection.align`), and the map shows the geometry up to shift, rotation and scale. Directions that only
      the forgotten class uses have no counterpart there, so even another original's sixes seem to shift (by 0.6 of
      their spread, an `mlp` gold's by 1.1, retained classes' by 0.2): compare, and don't expect 0.

    Args:
        subject: What is forgotten, and the images.
        original: The model before.
        edited: The model after.
        gold: A model that never knew.
        seed: Of all draws and of UMAP.

    Returns:
        The tensors by name; and as text "n" and "seed" of the maps, "cka.edited" and "cka.gold" (debiased linear CKA
        to the original on the maps' images), "shift.edited" and "shift.gold" (how far the forgotten class's
        centroid lies from the original's after alignment, in units of its spread there), "shift.edited.retain" and
        "shift.gold.retain" (the same for the retained classes, in the mean).
    """
    models = {"original": original, "edited": edited, "gold": gold}
    outputs = len(subject.classes)
    pictures = _attributions(models, subject, seed) | _misses(edited, subject, seed)
    pictures |= {f"confusion.{name}": confusion(model, subject.test, outputs) for name, model in models.items()}
    maps, facts = _maps(models, subject, seed)
    return pictures | maps, facts
