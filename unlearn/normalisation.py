"""Batch normalisation inside a masked edit: learn with live statistics, and leave the model's own where they are.

Running statistics are buffers, and an edit changes parameters only. But a layer's output depends on statistics and
parameters together, y = scale * (x - mean) / sqrt(var + eps) + shift, so whatever the statistics have become can be
said by scale and shift under the old ones. That needs both of them to be free.
"""

from collections.abc import Collection

import torch
from torch import nn

from analysis.errors import UserError
from analysis.scores import Mask

Normalisation = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def adaptable(model: nn.Module, mask: Mask | None) -> tuple[str, ...]:
    """Find the batch normalisations whose statistics can be folded into what a mask allows.

    Args:
        model: Any network.
        mask: What may change; None allows every parameter.

    Returns:
        Names of those with running statistics whose scale and shift may change in every entry.
    """

    def free(name: str) -> bool:
        return mask is None or all(
            bool(mask.bits.get(f"{name}.{part}", torch.tensor(False)).all()) for part in ("weight", "bias")
        )

    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, Normalisation) and module.affine and module.track_running_stats and free(name)
    )


def check_batch(model: nn.Module, mask: Mask | None, size: int) -> None:
    """Refuse batches that batch normalisations can't learn from.

    Args:
        model: Any network.
        mask: What may change.
        size: Images a batch.

    Raises:
        UserError: The network has normalisations that would use the statistics of a single image.
    """
    live = adaptable(model, mask)
    if size < 2 and live:
        raise UserError(
            f"Batch normalisation ({live[0]}) learns from the statistics of a batch, and one image has none; "
            "give a batch of at least 2 images."
        )


@torch.no_grad()
def fold(model: nn.Module, original: nn.Module, names: Collection[str]) -> None:
    """Put back the original's statistics, in place, without changing what the model computes in evaluation mode.

    scale' = scale * sqrt(var_0 + eps) / sqrt(var + eps); shift' = shift + scale * (mean_0 - mean) / sqrt(var + eps).

    Args:
        model: Whose statistics have moved.
        original: Whose statistics are wanted.
        names: Of the normalisations, from `adaptable`.
    """
    for name in names:
        mine, theirs = (m.get_submodule(name) for m in (model, original))
        now, before = (dict(m.named_buffers()) for m in (mine, theirs))
        scale, shift = mine.get_parameter("weight"), mine.get_parameter("bias")
        width, old = ((b["running_var"] + mine.eps).sqrt() for b in (now, before))  # type: ignore[operator]
        shift.add_(scale * (before["running_mean"] - now["running_mean"]) / width)
        scale.mul_(old / width)
        for buffer, value in now.items():
            value.copy_(before[buffer])
