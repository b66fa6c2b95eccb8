"""Activation patching: what one unit alone restores, or breaks."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from analysis.attribution.layers import outputs_of, replaced, unit_axis, unit_layers
from analysis.attribution.running import place, prepare, run, undisturbed
from analysis.attribution.targets import Target, logit
from analysis.errors import UserError
from analysis.scores import Scores

Direction = Literal["denoising", "noising"]

SMALLEST = 1e-6


def matched_pairs(forget_images: torch.Tensor, other_images: torch.Tensor, chunk: int = 512) -> torch.Tensor:
    """Find for each forgotten image the other image that is nearest to it in pixel space.

    Args:
        forget_images: [n, ...].
        other_images: [m, ...] of the same size.
        chunk: Forgotten images at a time.

    Returns:
        int64 [n]: positions in `other_images`, by Euclidean distance (the first of equals). One image can be the
        partner of several.

    Raises:
        UserError: One side is empty or the sizes differ.
    """
    if len(forget_images) == 0 or len(other_images) == 0:
        raise UserError("Pairs need images on both sides; give at least one forgotten and one other image.")
    if forget_images.shape[1:] != other_images.shape[1:]:
        raise UserError(
            f"Images of {tuple(forget_images.shape[1:])} and {tuple(other_images.shape[1:])} can't be paired; "
            "bring them to one size."
        )
    others = other_images.flatten(1).double()
    return torch.cat([torch.cdist(f.flatten(1).double(), others).argmin(1) for f in forget_images.split(chunk)])


def _patched_targets(
    model: nn.Module,
    layer: str,
    base: torch.Tensor,
    source: list[torch.Tensor],
    labels: torch.Tensor,
    target: Target,
    chunk: int,
) -> torch.Tensor:
    # The mean target [units] of the base inputs when one unit has its value from the source run, for each unit in turn.
    axis = unit_axis(model.get_submodule(layer))
    rows = [call.movedim(axis, 1) for call in source]
    n, units = rows[0].shape[:2]
    means = []
    for some in torch.arange(units, device=base.device).split(max(1, chunk // n)):
        many = len(some)

        def change(call: int, output: torch.Tensor, some: torch.Tensor = some, many: int = many) -> torch.Tensor:
            new = output.clone()
            # A view [many, n, units, ...] of the copy: copy j of the inputs gets unit some[j] from the other run.
            view = new.unflatten(0, (many, n)).movedim(axis + 1 if axis > 0 else axis, 2)
            view[torch.arange(many, device=new.device), :, some] = rows[call][:, some].transpose(0, 1)
            return new

        with replaced(model, layer, change):
            out = run(model, base.repeat(many, *[1] * (base.dim() - 1)))
        means.append(target(out, labels.repeat(many, *[1] * (labels.dim() - 1))).view(many, n).double().mean(1))
    return torch.cat(means)


def activation_patching(
    model: nn.Module,
    clean: torch.Tensor,
    corrupted: torch.Tensor,
    labels: torch.Tensor,
    target: Target = logit,
    direction: Direction = "denoising",
    layers: Sequence[str] | None = None,
    chunk: int = 2048,
) -> Scores:
    """Exact causal effect of every neuron and channel, one at a time, on matched pairs of inputs.

    With F the target averaged over pairs (the clean input's label on both sides), and F(x; u <- y) that of input x when
    unit u (a channel's whole map; all positions of a sequence) has the value that it has for input y:

    - denoising: (F(corrupted; u <- clean) - F(corrupted)) / (F(clean) - F(corrupted)), what u alone restores;
    - noising: (F(clean) - F(clean; u <- corrupted)) / (F(clean) - F(corrupted)), what is lost without u.

    0 means no effect, 1 the whole difference; values can be negative or above 1. The denominator is a mean over
    pairs and never one pair's own, which can be next to nothing and would then decide the result.
    Terms as in Heimersheim and Nanda (2024), "How to use and interpret activation patching".

    Args:
        model: Any module; run in evaluation mode and left as it was.
        clean: Inputs [n, ...] with the knowledge in question, e.g. sixes.
        corrupted: Inputs [n, ...] without it, e.g. `matched_pairs`' other digits.
        labels: int64 [n] (or [n, t]): labels of the clean inputs, for both runs.
        target: The per-sample scalar.
        direction: "denoising" or "noising".
        layers: Names of modules; every one with weights of two or more dimensions if not given.
        chunk: Inputs per forward pass: so many units as fit are patched in one. Doesn't change the result.

    Returns:
        Scores of kind "unit": by layer [units], fractions of the clean-corrupted difference.

    Raises:
        UserError: Unpaired inputs, an unknown layer or direction, or a target that is the same on both sides.
    """
    if direction not in {"denoising", "noising"}:
        raise UserError(f"There is no patching direction {direction!r}; choose denoising or noising.")
    if clean.shape != corrupted.shape:
        raise UserError(
            f"Inputs of shape {tuple(clean.shape)} and {tuple(corrupted.shape)} are not pairs; "
            "give as many corrupted as clean ones."
        )
    clean, labels = prepare(model, clean, labels)
    corrupted = place(model, corrupted)
    base, other = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    values: dict[str, torch.Tensor] = {}
    with undisturbed(model, parameters=False), torch.no_grad():
        chosen = unit_layers(model, clean, layers)
        source = outputs_of(model, chosen, other)
        at_base = target(run(model, base), labels).double()
        at_other = target(run(model, other), labels).double()
        gain = at_other.mean() - at_base.mean()
        if not abs(gain) > SMALLEST * (at_other.abs().mean() + at_base.abs().mean()):
            raise UserError(
                f"The target is {float(at_base.mean()):.3g} on clean and corrupted inputs alike, so nothing can be "
                "restored; choose other pairs or another target."
            )
        for layer in chosen:
            means = _patched_targets(model, layer, base, source[layer], labels, target, chunk)
            values[layer] = ((means - at_base.mean()) / gain).to(source[layer][0].dtype).cpu()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return Scores(values, "unit", f"patching-{direction}", "1", None, shapes)
