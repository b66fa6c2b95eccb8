"""Units: the outputs of layers with weights, read and replaced while a model runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from analysis.attribution.running import run
from analysis.errors import UserError

CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Change = Callable[[int, torch.Tensor], torch.Tensor]


def unit_axis(module: nn.Module) -> int:
    """Tell which dimension of a layer's output counts its units.

    Args:
        module: The layer.

    Returns:
        1 for convolutions, whose units are channels; otherwise -1.
    """
    return 1 if isinstance(module, CHANNELS_FIRST) else -1


@contextmanager
def replaced(model: nn.Module, layer: str, change: Change) -> Iterator[None]:
    """Replace a layer's output whenever the model runs.

    Args:
        model: Any module.
        layer: Name of the module.
        change: Called with the number of the call within this context (from 0) and the output; returns what goes
            on instead. It must not change the output in place.

    Yields:
        Nothing.
    """
    count = 0

    def hook(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return change(count - 1, output)

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def outputs_of(model: nn.Module, layers: Sequence[str], images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Run a model once and keep what some of its layers put out.

    Args:
        model: Any module.
        layers: Names of modules.
        images: Inputs [n, ...].

    Returns:
        By layer in the order in which they first ran, the outputs of its calls (copies, without graph). Layers that
        didn't run, or put out no single tensor, are absent.
    """
    caught: dict[str, list[torch.Tensor]] = {}

    def note(layer: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                caught.setdefault(layer, []).append(output.detach().clone())

        return hook

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(model.get_submodule(layer).register_forward_hook(note(layer)).remove)
        run(model, images)
    return caught


def unit_layers(model: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None) -> list[str]:
    """Choose the layers whose units can be looked at.

    Args:
        model: Any module, in evaluation mode.
        images: Inputs [n, ...], n of at least 1.
        layers: Names of modules; those with a parameter of two or more dimensions of their own if not given.

    Returns:
        The names, in the order in which the layers run, each once. Without `layers`, those that don't run or whose
        output is not one tensor with a row per sample are left out.

    Raises:
        UserError: One of the `layers` doesn't exist or has no such output, or the model has none.
    """
    known = dict(model.named_modules())
    for layer in layers or ():
        if layer not in known:
            raise UserError(f"The model has no layer {layer!r}; its layers are {', '.join(n for n in known if n)}.")
    own = [name for name, m in known.items() if any(p.dim() > 1 for p in m.parameters(recurse=False))]
    two = torch.cat([images[:1], images[-1:]])
    caught = outputs_of(model, own if layers is None else list(layers), two)
    fit = [name for name, calls in caught.items() if all(c.dim() > 1 and len(c) == len(two) for c in calls)]
    unfit = [layer for layer in layers or () if layer not in fit]
    if unfit:
        raise UserError(
            f"The layer {unfit[0]!r} doesn't run or doesn't put out one tensor with a row per sample; leave it out."
        )
    if not fit:
        raise UserError("The model has no layer with weights whose units could be told apart; name some with `layers`.")
    return fit
