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
"""Numbers in the per-sample gradients that are held at once, where a layer's rule gives them whole."""

CACHE = 2**17
"""Numbers in a block of one gradient matrix: few enough to be squared before they leave a core's cache."""

Factors = tuple[torch.Tensor, torch.Tensor]
"""A matrix's gradients as products: left [d, n, t, rows] and right [d, n, t, columns], summed over positions t. A side
that is the same for all d scalars has 1 in the place of d."""


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


def _is_matrix(module: nn.Module) -> bool:
    # GPT-2's Conv1D is one too, its weight the other way round; known by name, to do without importing transformers.
    kind = type(module)
    return kind is nn.Linear or (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def _factors(use: Use) -> Factors | None:
    # None unless the parameter is a matrix that inputs are multiplied by.
    if use.own != "weight" or not _is_matrix(use.module):
        return None
    a = use.a.reshape(1, len(use.a), -1, use.a.shape[-1])
    g = use.g.reshape(*use.g.shape[:2], -1, use.g.shape[-1])
    return (g, a) if type(use.module) is nn.Linear else (a, g)


def _lookups(use: Use) -> Factors | None:
    # Of an embedding: the ids [n, t], and the gradients of the rows that they stand for [d, n, t, width].
    module = use.module
    if use.own != "weight" or type(module) is not nn.Embedding:
        return None
    ids = use.a.reshape(len(use.a), -1)
    g = use.g.reshape(*use.g.shape[:2], -1, use.g.shape[-1])
    if module.padding_idx is not None:
        g = g.masked_fill((ids == module.padding_idx).unsqueeze(-1), 0.0)
    return ids, g


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


def _any(module: nn.Module, own: str, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    # The module is differentiated anew for each sample, by itself.
    parameter = dict(module.named_parameters(recurse=False))[own].detach()

    def one(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        pull = vjp(lambda p: functional_call(module, {own: p}, (x.unsqueeze(0),)), parameter)[1]
        return vmap(lambda row: pull(row.unsqueeze(0))[0])(rows)

    return vmap(one, in_dims=(0, 1), out_dims=1)(a.detach(), g)


def _rule(use: Use) -> torch.Tensor:
    # [d, n, *parameter's shape] of what is neither multiplied by nor looked up.
    module, own, a, g = use.module, use.own, use.a, use.g
    kind = type(module)
    if own in {"weight", "bias"}:
        if _is_matrix(module):
            return g.reshape(*g.shape[:2], -1, g.shape[-1]).sum(2)
        if kind is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            return _conv2d(module, own, a, g)  # type: ignore[arg-type]  # the exact type was checked, here and below
        if kind in {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d} and module.running_mean is not None:
            return _batch_norm(module, own, a, g)  # type: ignore[arg-type]
        if kind is nn.LayerNorm:
            return _layer_norm(module, own, a, g)  # type: ignore[arg-type]
    return _any(module, own, a, g)


def _joined(pairs: Sequence[Factors]) -> Factors:
    # Several calls as one that has the positions of all.
    if len(pairs) == 1:
        return pairs[0]
    d = max(len(side) for pair in pairs for side in pair)
    left, right = (torch.cat([one.expand(d, -1, -1, -1) for one in side], 2) for side in zip(*pairs, strict=True))
    return left, right


def gradient(uses: Sequence[Use], shape: torch.Size) -> torch.Tensor:
    """Compute a parameter's per-sample gradients, summed over its calls.

    Linear (and GPT-2's Conv1D), Conv2d, BatchNorm (evaluation mode), LayerNorm and Embedding have closed forms. Other
    modules, subclasses among them, are differentiated by `vmap`, each by itself and without the rest of the model.

    Args:
        uses: The calls, of the same n samples and d scalars; at least one.
        shape: The parameter's.

    Returns:
        [d, n, *shape].
    """
    d, n = uses[0].g.shape[:2]
    pairs = [pair for use in uses if (pair := _factors(use)) is not None]
    lookups = [pair for use in uses if (pair := _lookups(use)) is not None]
    parts = [_rule(use) for use in uses if _factors(use) is None and _lookups(use) is None]
    if pairs:
        left, right = _joined(pairs)
        parts.append(left.transpose(2, 3) @ right)
    if lookups and not pairs:
        parts.append(uses[0].g.new_zeros(d, n, *shape))
    for ids, g in lookups:
        # Onto what was made here last; a rule may give its input back.
        place = ids + shape[0] * torch.arange(n, device=ids.device).unsqueeze(1)
        parts[-1].view(d, n * shape[0], shape[1]).index_add_(1, place.flatten(), g.flatten(1, 2))
    whole, *more = parts
    for part in more:
        whole = whole + part
    return whole


def _live(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    # Which positions add anything, [d, n, t].
    one, other = ((side.amax(3) != 0) | (side.amin(3) != 0) for side in (left, right))
    return one & other


def _span(live: torch.Tensor) -> slice:
    # From the first to the last position that adds anything, so that padding behind the last label costs nothing.
    at = live.view(-1, live.shape[-1]).any(0).nonzero()
    return slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0)


def _add_products(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.shape[2] == 1 and 1 in {len(left), len(right)}:
        # The square of a product is the product of squares.
        one, other = (side[:, :, 0].square() for side in (left, right))
        one, other = (side.sum(0) if len(side) > 1 else side[0] for side in (one, other))
        total.addmm_(one.T, other)
        return
    live, samples = _live(left, right), max(1, CACHE // total.numel())
    left, right = (side.expand(len(live), -1, -1, -1) for side in (left, right))
    parts = []
    for scalar in range(len(live)):
        for some in (slice(start, start + samples) for start in range(0, left.shape[1], samples)):
            at = _span(live[scalar, some])
            parts.append((left[scalar, some, at].transpose(1, 2), right[scalar, some, at]))
    if samples > 1:
        for one, other in parts:
            total += torch.bmm(one, other).square_().sum(0)
        return
    # Sample by sample within a block of rows, so that neither the block nor one sample's gradient leaves the cache.
    rows = max(1, CACHE // total.shape[1])
    large = [(one[0].split(rows), other[0]) for one, other in parts]
    room = total.new_empty(min(rows, len(total)), total.shape[1])
    for i, block in enumerate(total.split(rows)):
        found = room[: len(block)]
        for blocks, other in large:
            torch.mm(blocks[i], other, out=found)
            block.addcmul_(found, found)


def _add_rows(
    total: torch.Tensor, ids: torch.Tensor, g: torch.Tensor, left: torch.Tensor | None, right: torch.Tensor | None
) -> None:
    # Only the rows that a sample looks up are held. Where the table is a matrix of products too, these rows' share in
    # them is added before squaring and taken out of `left`, in place.
    for sample, mine in enumerate(ids):
        rows, position = mine.unique(return_inverse=True)
        sums = g.new_zeros(len(g), len(rows), g.shape[-1]).index_add_(1, position, g[:, sample])
        if left is not None and right is not None:
            sums += left[:, sample][..., rows].transpose(1, 2) @ right[:, sample]
            left[:, sample][..., rows] = 0
        total.index_add_(0, rows, sums.square().sum(0))


def add_squares(total: torch.Tensor, uses: Sequence[Use]) -> None:
    """Square a parameter's per-sample gradients and sum over samples and scalars.

    Contributions of several calls to one sample's gradient (tied weights, a module run twice) are summed before
    they are squared. Gradients of matrices are never held whole, not even one sample's.

    Args:
        total: Of the parameter's shape; changed in place.
        uses: All calls that the parameter has a part in, of the same n samples and d scalars; at least one.
    """
    pairs = [pair for use in uses if (pair := _factors(use)) is not None]
    lookups = [pair for use in uses if (pair := _lookups(use)) is not None]
    if len(pairs) + len(lookups) == len(uses):
        left, right = _joined(pairs) if pairs else (None, None)
        if lookups:
            ids, g = torch.cat([i for i, _ in lookups], 1), torch.cat([g for _, g in lookups], 2)
            if left is not None and right is not None:
                at = _span(_live(left, right))
                left, right = left[:, :, at].expand(len(g), -1, -1, -1).clone(), right[:, :, at]
            _add_rows(total, ids, g, left, right)
        if left is not None and right is not None:
            _add_products(total, left, right)
        return
    room = max(max(len(u.g) * total.numel(), u.a[:1].numel(), u.g[:, :1].numel()) for u in uses)
    step = max(1, BUDGET // max(1, room))
    for start in range(0, len(uses[0].a), step):
        some = slice(start, start + step)
        part = gradient([Use(u.module, u.own, u.a[some], u.g[:, some]) for u in uses], total.shape)
        total += part.square().sum((0, 1))
