"""Per-sample gradients of one layer's parameters, from its input and the gradient of its output.

Throughout, `a` is a layer's input [n, ...] and `g` the gradient of d scalars per sample with respect to its output,
[d, n, ...]. Positions (of a sequence, of an image) are summed here, before anything is squared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional
from torch.nn.grad import conv2d_weight

BUDGET = 2**22


@dataclass(frozen=True)
class Use:
    """One way in which a parameter acts on the output: one call of one module that holds it.

    Attributes:
        module: The module.
        own: The parameter's name within the module.
        a: Its input in this call, [n, ...].
        g: Gradients of d per-sample scalars with respect to its output, [d, n, ...].
    """

    module: nn.Module
    own: str
    a: torch.Tensor
    g: torch.Tensor


def _linear(module: nn.Linear, own: str, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    d, n, out = *g.shape[:2], g.shape[-1]
    g = g.reshape(d, n, -1, out)
    if own == "bias":
        return g.sum(2)
    a = a.reshape(n, -1, a.shape[-1])
    return (g.permute(1, 0, 3, 2).reshape(n, d * out, -1) @ a).view(n, d, out, -1).transpose(0, 1)


def _conv2d(module: nn.Conv2d, own: str, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    d, n, out = g.shape[:3]
    if own == "bias":
        return g.flatten(3).sum(3)
    groups, shape = module.groups, module.weight.shape
    rows = g.view(d, n, groups, out // groups, *g.shape[3:]).permute(1, 2, 0, 3, 4, 5)
    rows = rows.reshape(n, d * out, *g.shape[3:])

    def one(image: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        size, stride, dilation = (d * out, *shape[1:]), module.stride, module.dilation
        return conv2d_weight(image.unsqueeze(0), size, row.unsqueeze(0), stride, module.padding, dilation, groups)

    # vmap makes one grouped convolution of all samples: on CPUs up to ten times as fast as unfold and bmm.
    grads = vmap(one)(a, rows).view(n, groups, d, out // groups, *shape[1:])
    return grads.permute(2, 0, 1, *range(3, grads.dim())).reshape(d, n, *shape)


def _batch_norm(module: nn.BatchNorm2d, own: str, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    if own == "weight":
        normal = functional.batch_norm(a, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)
        g = g * normal
    return g.flatten(3).sum(3) if g.dim() > 3 else g


def _layer_norm(module: nn.LayerNorm, own: str, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    if own == "weight":
        g = g * functional.layer_norm(a, module.normalized_shape, None, None, module.eps)
    return g.reshape(*g.shape[:2], -1, *module.normalized_shape).sum(2)


def _embedding(module: nn.Embedding, own: str, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    d, n, width = *g.shape[:2], g.shape[-1]
    ids, g = a.reshape(n, -1), g.reshape(d, n, -1, width)
    if module.padding_idx is not None:
        g = g.masked_fill((ids == module.padding_idx).unsqueeze(-1), 0.0)
    rows = module.num_embeddings
    place = ids + rows * torch.arange(n, device=ids.device).unsqueeze(1)
    total = g.new_zeros(d, n * rows, width).index_add_(1, place.flatten(), g.flatten(1, 2))
    return total.view(d, n, rows, width)


def _any(module: nn.Module, own: str, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    # The module is differentiated anew for each sample, by itself.
    parameter = dict(module.named_parameters(recurse=False))[own].detach()

    def one(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        pull = vjp(lambda p: functional_call(module, {own: p}, (x.unsqueeze(0),)), parameter)[1]
        return vmap(lambda row: pull(row.unsqueeze(0))[0])(rows)

    return vmap(one, in_dims=(0, 1), out_dims=1)(a.detach(), g)


def gradient(use: Use) -> torch.Tensor:
    """Compute a parameter's per-sample gradients through one call.

    Linear, Conv2d, BatchNorm (evaluation mode), LayerNorm and Embedding have closed forms. Other modules, subclasses
    among them, are differentiated by `vmap`, each by itself and without the rest of the model.

    Args:
        use: The call.

    Returns:
        [d, n, *parameter's shape].
    """
    module, own, a, g = use.module, use.own, use.a, use.g
    kind = type(module)
    if own in {"weight", "bias"}:
        if kind is nn.Linear:
            return _linear(module, own, a, g)  # type: ignore[arg-type]  # the exact type was checked, here and below
        if kind is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            return _conv2d(module, own, a, g)  # type: ignore[arg-type]
        if kind in {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d} and module.running_mean is not None:
            return _batch_norm(module, own, a, g)  # type: ignore[arg-type]
        if kind is nn.LayerNorm:
            return _layer_norm(module, own, a, g)  # type: ignore[arg-type]
        if kind is nn.Embedding:
            return _embedding(module, own, a, g)  # type: ignore[arg-type]
    return _any(module, own, a, g)


def _sparse_squares(module: nn.Embedding, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    # Only rows that a sample uses are held, not a whole table per sample.
    n, rows, width = len(a), module.num_embeddings, g.shape[-1]
    ids = a.reshape(n, -1)
    g = g.reshape(len(g), -1, width)
    if module.padding_idx is not None:
        g = g.masked_fill((ids.flatten() == module.padding_idx).unsqueeze(-1), 0.0)
    keys = (ids + rows * torch.arange(n, device=ids.device).unsqueeze(1)).flatten()
    unique, position = keys.unique(return_inverse=True)
    sums = g.new_zeros(len(g), len(unique), width).index_add_(1, position, g)
    return g.new_zeros(rows, width).index_add_(0, unique % rows, sums.square().sum(0))


def sum_of_squares(uses: Sequence[Use], shape: torch.Size) -> torch.Tensor:
    """Square a parameter's per-sample gradients and sum over samples and scalars.

    Contributions of several calls to one sample's gradient (tied weights, a module run twice) are summed before
    they are squared.

    Args:
        uses: All calls that the parameter has a part in, of the same n samples and d scalars; at least one.
        shape: The parameter's shape.

    Returns:
        A tensor of the parameter's shape.
    """
    first = uses[0]
    if len(uses) == 1 and type(first.module) is nn.Linear and first.a.dim() == 2:
        if first.own == "weight":
            return first.g.square().sum(0).T @ first.a.square()
        if first.own == "bias":
            return first.g.square().sum((0, 1))
    if len(uses) == 1 and type(first.module) is nn.Embedding:
        return _sparse_squares(first.module, first.a, first.g)
    total = first.g.new_zeros(shape)
    room = max(max(len(u.g) * shape.numel(), u.a[:1].numel(), u.g[:, :1].numel()) for u in uses)
    step = max(1, BUDGET // max(1, room))
    for start in range(0, len(first.a), step):
        rows = slice(start, start + step)
        parts = [gradient(Use(u.module, u.own, u.a[rows], u.g[:, rows])) for u in uses]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole + part
        total += whole.square().sum((0, 1))
    return total
