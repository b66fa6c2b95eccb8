"""Hidden representations: what flows into chosen modules."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import nn
from torch.nn import functional

POOLED_SIDE = 4


def _flat(activation: torch.Tensor) -> torch.Tensor:
    if activation.dim() == 4 and max(activation.shape[2:]) > POOLED_SIDE:
        activation = functional.adaptive_avg_pool2d(activation, POOLED_SIDE)
    return activation.flatten(1)


@torch.no_grad()
def hidden(model: nn.Module, points: Sequence[str], images: torch.Tensor, chunk: int = 2048) -> dict[str, torch.Tensor]:
    """Capture the inputs of modules for every image.

    Feature maps larger than 4 x 4 are average-pooled to 4 x 4 before they are flattened, so that probes of early
    layers have hundreds of features and not tens of thousands.

    Args:
        model: Any module; run in evaluation mode and left in the mode it was in.
        points: Names of modules, as in `Network.points`.
        images: [n, ...].
        chunk: Images at a time.

    Returns:
        float32 [n, features] by module name.
    """
    caught: dict[str, list[torch.Tensor]] = {point: [] for point in points}
    was = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            for point in points:

                def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], point: str = point) -> None:
                    caught[point].append(_flat(inputs[0]).float())

                stack.callback(model.get_submodule(point).register_forward_pre_hook(hook).remove)
            for part in images.split(chunk):
                model(part)
    finally:
        model.train(was)
    return {point: torch.cat(parts) for point, parts in caught.items()}
