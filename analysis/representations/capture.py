"""Hidden representations: what flows into chosen modules."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn import functional

POOLED_SIDE = 4


def _flat(activation: torch.Tensor) -> torch.Tensor:
    if activation.dim() == 4 and max(activation.shape[2:]) > POOLED_SIDE:
        activation = functional.adaptive_avg_pool2d(activation, POOLED_SIDE)
    return activation.flatten(1)


@contextmanager
def caught(model: nn.Module, points: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Catch the inputs of modules in whatever runs meanwhile, with their gradients.

    Feature maps larger than 4 x 4 are average-pooled to 4 x 4 before they are flattened, so that early layers have
    hundreds of features and not tens of thousands.

    Args:
        model: Any module.
        points: Names of modules, as in `Network.points`.

    Yields:
        [n, features] by module name, of the last run; empty before the first.
    """
    found: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for point in points:

            def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], point: str = point) -> None:
                found[point] = _flat(inputs[0])

            stack.callback(model.get_submodule(point).register_forward_pre_hook(hook).remove)
        yield found


@torch.no_grad()
def hidden(model: nn.Module, points: Sequence[str], images: torch.Tensor, chunk: int = 2048) -> dict[str, torch.Tensor]:
    """Capture the inputs of modules for every image.

    Args:
        model: Any module; run in evaluation mode and left in the mode it was in.
        points: Names of modules, as in `Network.points`.
        images: [n, ...].
        chunk: Images at a time.

    Returns:
        float32 [n, features] by module name, pooled as in `caught`.
    """
    parts: dict[str, list[torch.Tensor]] = {point: [] for point in points}
    was = model.training
    model.eval()
    try:
        with caught(model, points) as found:
            for part in images.split(chunk):
                model(part)
                for point in points:
                    parts[point].append(found[point].float())
    finally:
        model.train(was)
    return {point: torch.cat(tensors) for point, tensors in parts.items()}
