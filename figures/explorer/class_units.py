"""What a classifier's neurons do, computed: what the edit did to each, what it responds to, what is lost without it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from analysis.ablation import ablated_accuracies
from analysis.attribution.integrated import unit_integrated_gradients
from analysis.attribution.layers import outputs_of, unit_axis, unit_layers
from analysis.scores import Mask
from analysis.subjects.classes import Split
from figures.explorer.class_model import STEPS, Explored

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights have one row for each unit of their output."""
TOP = 8
ATTRIBUTED = 64


def layers(explored: Explored) -> list[str]:
    """List the layers whose neurons can be looked at.

    Args:
        explored: The run.

    Returns:
        Names of linear and convolutional layers in the order in which they run, each of which runs once an image.
    """
    found = unit_layers(explored.original, explored.some.images[:2])
    calls = outputs_of(explored.original, found, explored.some.images[:1])
    return [
        name for name in found if isinstance(explored.original.get_submodule(name), KINDS) and len(calls[name]) == 1
    ]


def changed(explored: Explored, layer: str) -> torch.Tensor:
    """Tell how much the edit changed each neuron of a layer.

    Args:
        explored: The run.
        layer: One of `layers`.

    Returns:
        [units], not negative: norm of the change of incoming weights and bias, relative to their norm before.
    """
    before, after = (_rows(model, layer) for model in (explored.original, explored.edited))
    return (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(torch.finfo(before.dtype).tiny)


def _rows(model: nn.Module, layer: str) -> torch.Tensor:
    # [units, weights and bias] of a layer.
    parameters = [p.detach() for p in model.get_submodule(layer).parameters(recurse=False)]
    return torch.cat([p.reshape(len(p), -1) for p in parameters], 1)


def speaking(explored: Explored, layer: str, model: nn.Module) -> torch.Tensor:
    """Tell how much each neuron of a layer speaks for the forgotten classes, by integrated gradients.

    Args:
        explored: The run.
        layer: One of `layers`.
        model: Original or edited.

    Returns:
        [units], signed, in logits: mean over test images of the forgotten classes of the neuron's share in the logit
        of the image's own class.
    """
    some = explored.subject.forget_test.sample(ATTRIBUTED, explored.seed)
    found = unit_integrated_gradients(model, some.images, some.labels, [layer], explored.baseline, steps=STEPS)
    return found.values[layer]


@dataclass(frozen=True)
class Measure:
    """What neurons are coloured by.

    Attributes:
        values: From the run and a layer to one number for each neuron.
        unit: Of the numbers.
    """

    values: Callable[[Explored, str], torch.Tensor]
    unit: str


MEASURES = {
    "how much the edit changed it": Measure(changed, "times the size of its own weights"),
    "how much it spoke for what was forgotten": Measure(lambda e, layer: speaking(e, layer, e.original), "logits"),
    "how much it speaks for it now": Measure(lambda e, layer: speaking(e, layer, e.edited), "logits"),
}


def responses(model: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """Read what a layer's neurons put out.

    Args:
        model: In evaluation mode.
        layer: One of `layers`.
        images: [n, channels, height, width].

    Returns:
        [n, units]: the layer's output, before any nonlinearity that follows; of channels the highest over positions.
    """
    output = outputs_of(model, [layer], images)[layer][0].movedim(unit_axis(model.get_submodule(layer)), 1)
    return output.flatten(2).amax(2) if output.dim() > 2 else output


@dataclass(frozen=True)
class Seen:
    """One neuron in one model.

    Attributes:
        top: Positions among `Explored.some` of the images to which it responds most, the strongest first.
        means: [classes], its mean response to each class's images.
        accuracies: By class, accuracy with the neuron, 0 to 1; classes without images are absent.
        without: Likewise with its output at zero.
    """

    top: list[int]
    means: torch.Tensor
    accuracies: dict[int, float]
    without: dict[int, float]


def _mask(model: nn.Module, layer: str, unit: int | None) -> Mask:
    # The neuron's incoming weights and bias: with these at zero its output is zero. None masks nothing.
    own = model.get_submodule(layer).named_parameters(recurse=False)
    bits = {f"{layer}.{n}": torch.zeros_like(p, dtype=torch.bool) for n, p in own}
    if unit is not None:
        for chosen in bits.values():
            chosen[unit] = True
    return Mask(bits)


def look(explored: Explored, layer: str, unit: int, model: nn.Module) -> Seen:
    """Look at one neuron.

    Args:
        explored: The run.
        layer: One of `layers`.
        unit: Number of the neuron in its layer.
        model: Original or edited.

    Returns:
        What it responds to, and what is lost without it.
    """
    some, classes = explored.some, range(len(explored.subject.classes))
    response = responses(model, layer, some.images)[:, unit]
    of_class: dict[int, Split] = {label: some.only([label]) for label in classes if (some.labels == label).any()}
    with_, without = (
        dict(zip(of_class, ablated_accuracies(model, _mask(model, layer, one), list(of_class.values())), strict=True))
        for one in (None, unit)
    )
    means = torch.stack([response[some.labels == label].mean() for label in classes])
    top = response.argsort(descending=True, stable=True)[:TOP].tolist()
    return Seen(top, means, with_, without)
