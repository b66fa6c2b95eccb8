"""Finding one's way in a causal language model: its blocks, their MLPs, and what flows there."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from analysis.attribution.anatomy import anatomy
from analysis.attribution.running import place
from analysis.errors import UserError
from analysis.scores import Mask


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Find the blocks.

    Args:
        model: A Hugging Face causal language model.

    Returns:
        Its blocks, lowest first.
    """
    return [model.get_submodule(name) for name in anatomy(model).blocks]


def check_layer(model: nn.Module, layer: int) -> int:
    """Check that a model has a layer.

    Args:
        model: A causal language model.
        layer: Number of the block, from 0.

    Returns:
        The same number.

    Raises:
        UserError: There is no such block.
    """
    count = len(blocks_of(model))
    if not 0 <= layer < count:
        raise UserError(f"The model has no layer {layer}; choose one from 0 to {count - 1}.")
    return layer


def down_projection(model: nn.Module, layer: int) -> tuple[str, nn.Module, torch.Tensor]:
    """Find the layer that leads from a block's MLP neurons back to the residual stream.

    Args:
        model: A causal language model.
        layer: Number of the block, from 0.

    Returns:
        The name of its weight in the model, the module, and the weight as [out, in]: a view of it, transposed where the
        module is GPT-2's Conv1D.
    """
    name = anatomy(model).down[check_layer(model, layer)]
    found = model.get_submodule(name)
    weight = found.get_parameter("weight").detach()
    return f"{name}.weight", found, weight if isinstance(found, nn.Linear) else weight.T


def down_mask(model: nn.Module, layers: Sequence[int]) -> Mask:
    """Allow the MLP down projections of some layers, weights only.

    Args:
        model: A causal language model.
        layers: Numbers of blocks, from 0.

    Returns:
        The mask.
    """
    names = [down_projection(model, layer)[0] for layer in layers]
    return Mask({name: torch.ones(model.get_parameter(name).shape, dtype=torch.bool) for name in names})


def mlp_mask(model: nn.Module, layers: Sequence[int]) -> Mask:
    """Allow all parameters of the MLPs of some layers.

    Args:
        model: A causal language model.
        layers: Numbers of blocks, from 0.

    Returns:
        The mask.
    """
    inside = tuple(f"{anatomy(model).mlp[check_layer(model, layer)]}." for layer in layers)
    named = {name: p for name, p in model.named_parameters() if name.startswith(inside)}
    return Mask({name: torch.ones(p.shape, dtype=torch.bool) for name, p in named.items()})


class _EnoughError(Exception):
    # What was asked for has been seen; nothing above needs to run.
    pass


def flowing(model: nn.Module, module: nn.Module, ids: torch.Tensor, side: Literal["in", "out"]) -> torch.Tensor:
    """Run a model up to one of its modules only; differentiable.

    Args:
        model: A causal language model.
        module: One of its modules.
        ids: int64 [n, t], on any device.
        side: Whether to give what goes into the module or what comes out of it.

    Returns:
        [n, t, width].
    """
    caught: list[torch.Tensor] = []

    def hook(_: nn.Module, given: tuple, output: torch.Tensor | tuple) -> None:
        there = given if side == "in" else output
        caught.append(there[0] if isinstance(there, tuple) else there)
        raise _EnoughError

    handle = module.register_forward_hook(hook)
    try:
        model.base_model(input_ids=place(model, ids), use_cache=False)  # type: ignore[operator]
    except _EnoughError:
        pass
    finally:
        handle.remove()
    return caught[0]
