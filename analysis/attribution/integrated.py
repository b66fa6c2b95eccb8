"""Integrated gradients (Sundararajan et al., 2017) of pixels, by captum, and of units."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from analysis.attribution.layers import outputs_of, replaced, unit_axis, unit_layers
from analysis.attribution.running import place, prepare, run, undisturbed
from analysis.attribution.targets import Target, logit
from analysis.errors import UserError
from analysis.scores import Scores

PASSES = 1024


def check_steps(steps: int, usual: int = 64) -> None:
    """Refuse a path of no steps.

    Args:
        steps: Asked for.
        usual: What to advise.

    Raises:
        UserError: Fewer than one.
    """
    if steps < 1:
        raise UserError(f"The path needs at least 1 step, not {steps}; {usual} is usual.")


def gauss_legendre(steps: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the places on a path where gradients are taken.

    Args:
        steps: How many.
        like: Of the type and device that are wanted.

    Returns:
        Places in (0, 1), and their weights, which sum to 1.
    """
    places, weights = (like.new_tensor(one) for one in np.polynomial.legendre.leggauss(steps))
    return (places + 1) / 2, weights / 2


def path_start(model: nn.Module, images: torch.Tensor, baseline: torch.Tensor | None) -> torch.Tensor:
    """Find where each image's path begins.

    Args:
        model: Takes the images.
        images: [n, ...], as `prepare` gives them.
        baseline: Of a shape that expands to theirs; zeros if not given.

    Returns:
        [n, ...].

    Raises:
        UserError: The baseline doesn't fit.
    """
    if baseline is None:
        return torch.zeros_like(images)
    try:
        return place(model, baseline).expand(images.shape)
    except RuntimeError:
        raise UserError(
            f"A baseline of shape {tuple(baseline.shape)} doesn't fit images of shape {tuple(images.shape)}; "
            "give one image or one per image."
        ) from None


@torch.no_grad()
def _values(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, target: Target) -> torch.Tensor:
    parts = zip(images.split(PASSES), labels.split(PASSES), strict=True)
    return torch.cat([target(run(model, x), y) for x, y in parts])


def pixel_residuals(
    scores: Scores,
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    target: Target = logit,
    baseline: torch.Tensor | None = None,
) -> torch.Tensor:
    """Check completeness image by image.

    Args:
        scores: What `pixel_integrated_gradients` gave for the other arguments.
        model: As there.
        images: As there.
        labels: As there.
        target: As there.
        baseline: As there.

    Returns:
        [n]: sum of an image's attributions - (target at the image - target at the baseline).
    """
    images, labels = prepare(model, images, labels)
    start = path_start(model, images, baseline)
    with undisturbed(model, parameters=False):
        gain = _values(model, images, labels, target) - _values(model, start, labels, target)
    return scores.values["input"].flatten(1).sum(1) - gain.cpu()


def pixel_integrated_gradients(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    target: Target = logit,
    baseline: torch.Tensor | None = None,
    steps: int = 64,
) -> Scores:
    """Share of each input pixel in each image's target, signed.

    Gauss-Legendre nodes along the straight line from the baseline to the image. captum rounds the nodes' weights to
    float32, so that even in float64 completeness holds to about 1e-7 of the target only.

    Args:
        model: Any module; run in evaluation mode and left as it was.
        images: Floating-point inputs [n, ...].
        labels: int64 [n].
        target: The per-sample scalar; each image is attributed by itself.
        baseline: Images where the paths start, of a shape that expands to that of `images`; zeros if not given. With
            pixels normalised to [-1, 1] zero is mid-grey: give a black image of -1 for black.
        steps: Nodes of the quadrature; each costs a forward and a backward pass.

    Returns:
        Scores of kind "input": "input" holds [n, ...] in the target's units. The residual is summed over images;
        `pixel_residuals` has it by image.

    Raises:
        UserError: Fewer than one step, integer inputs, or a baseline that doesn't fit.
    """
    from captum.attr import IntegratedGradients

    check_steps(steps)
    if not images.is_floating_point():
        raise UserError("Integers such as token ids have no gradients; attribute the embedding's output by units.")
    images, labels = prepare(model, images, labels)
    start = path_start(model, images, baseline)
    with undisturbed(model, parameters=False):
        method = IntegratedGradients(lambda x, y: target(run(model, x), y))
        size = max(1, PASSES // steps)
        parts = [
            method.attribute(x, b, additional_forward_args=(y,), n_steps=steps).detach().cpu()
            for x, b, y in zip(images.split(size), start.split(size), labels.split(size), strict=True)
        ]
    values = torch.cat(parts).to(images.dtype)
    residuals = pixel_residuals(Scores({"input": values}, "input", "input-ig"), model, images, labels, target, baseline)
    return Scores({"input": values}, "input", "input-ig", "target", float(residuals.double().sum()))


def _patched(
    model: nn.Module, layer: str, activation: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, target: Target
) -> torch.Tensor:
    # The target with the layer's output as given, for one or several copies of the images.
    copies = len(activation) // len(images)
    more = images.repeat(copies, *[1] * (images.dim() - 1))
    # A copy, because a ReLU that works in place may follow.
    with replaced(model, layer, lambda _, __: activation.clone()):
        try:
            # What lies below the layer doesn't move and runs once for all copies, unless something bypasses the layer.
            output = run(model, images)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            output = run(model, more)
        if len(output) != len(more):
            output = run(model, more)
    return target(output, labels.repeat(copies, *[1] * (labels.dim() - 1)))


def _unit_shares(
    model: nn.Module,
    layer: str,
    ends: tuple[torch.Tensor, torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    target: Target,
    steps: int,
) -> tuple[torch.Tensor, float]:
    # The layer's attributions [units] and the target with the layer at its baseline, both summed over samples.
    start, end = ends
    places, weights = gauss_legendre(steps, end)
    points = torch.lerp(start, end, places.view(-1, *[1] * end.dim())).flatten(0, 1).requires_grad_()
    totals = _patched(model, layer, points, images, labels, target)
    (gradients,) = torch.autograd.grad(totals.sum(), points, allow_unused=True, materialize_grads=True)
    shares = (end - start) * torch.tensordot(weights, gradients.unflatten(0, (steps, -1)), 1)
    with torch.no_grad():
        least = _patched(model, layer, start, images, labels, target)
    units = shares.movedim(unit_axis(model.get_submodule(layer)), 0).flatten(1).sum(1)
    return units, float(least.double().sum())


def unit_integrated_gradients(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    layers: Sequence[str] | None = None,
    baseline_images: torch.Tensor | None = None,
    target: Target = logit,
    steps: int = 64,
) -> Scores:
    """Share of each neuron and channel in the mean target, signed.

    A layer's output moves on a straight line from what it is for the baseline images to what it is for the images,
    while everything that bypasses the layer stays that of the images. The residual compares with the same patched
    endpoints, so it is right for nets with skip connections too, where captum's LayerIntegratedGradients compares
    with the whole model at the baseline instead and reports a large delta for a right attribution.

    Args:
        model: Any module; run in evaluation mode and left as it was.
        images: Inputs [n, ...].
        labels: int64 [n], or [n, t] for sequence models.
        layers: Names of modules; every one with weights of two or more dimensions if not given.
        baseline_images: Inputs where the paths start, of a shape that expands to that of `images`; zeros if not given.
        target: The per-sample scalar.
        steps: Gauss-Legendre nodes; each costs a forward and a backward pass for each layer: from the layer on, or of
            the whole model if something bypasses the layer.

    Returns:
        Scores of kind "unit": by layer [units] in the target's units, mean over samples and sum over positions. The
        residual is that of the layer where it is largest.

    Raises:
        UserError: Fewer than one step, an unknown layer, one that runs several times, or a baseline that doesn't fit.
    """
    check_steps(steps)
    images, labels = prepare(model, images, labels)
    start = path_start(model, images, baseline_images)
    size = max(1, PASSES // steps)
    values: dict[str, torch.Tensor] = {}
    with undisturbed(model, parameters=False):
        chosen = unit_layers(model, images, layers)
        again = [layer for layer, calls in outputs_of(model, chosen, images[:1]).items() if len(calls) > 1]
        if again:
            raise UserError(f"The layer {again[0]!r} runs several times per input; leave it out with `layers`.")
        gains = dict.fromkeys(chosen, 0.0)
        for x, b, y in zip(images.split(size), start.split(size), labels.split(size), strict=True):
            first, last = outputs_of(model, chosen, b), outputs_of(model, chosen, x)
            whole = float(_values(model, x, y, target).double().sum())
            for layer in chosen:
                found, least = _unit_shares(model, layer, (first[layer][0], last[layer][0]), x, y, target, steps)
                values[layer] = values.get(layer, 0) + found / len(images)
                gains[layer] += (whole - least) / len(images)
    residuals = [float(values[layer].double().sum()) - gain for layer, gain in gains.items()]
    values = {layer: value.cpu() for layer, value in values.items()}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return Scores(values, "unit", "unit-ig", "target", max(residuals, key=abs), shapes)
