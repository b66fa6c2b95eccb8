"""A second device on a machine that has none, so that tests see every tensor left on the wrong side.

Tensors that are sent to it while `other_device` lasts say that they lie there and keep their numbers in the main
memory. They are computed with for real, so that results can be compared with the CPU's, but whatever a GPU refuses is
refused: to compute with tensors of both sides (but for scalars, and indices of the CPU), to draw with a generator of
the other side, to become an array of numpy. What it can't tell is whether a GPU's own kernels give the same numbers.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

OTHER = torch.device("meta")
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}


class Lent(torch.Tensor):
    """A tensor that says it lies on the other device."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=OTHER,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self):
        return f"Lent({self.held})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            with torch.no_grad():
                copied = self.clone()
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def data_ptr(self):
        """Where the numbers are, as a tensor of a real device would say."""
        return self.held.data_ptr()

    def tolist(self):
        """The numbers, which a GPU gives too."""
        return self.held.tolist()

    def numpy(self):
        """Refused, as a GPU's tensors refuse it."""
        raise TypeError("can't convert a tensor of the other device to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def check(func, args, kwargs):
    """Refuse what a GPU refuses."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    assert not any(x.is_meta and not isinstance(x, Lent) for x in tensors), f"{func}: a tensor without numbers"
    generator = kwargs.get("generator")
    wanted = torch.device(kwargs.get("device") or "cpu")
    there = any(isinstance(x, Lent) for x in tensors)
    if generator is not None and (there or wanted.type == OTHER.type):
        raise RuntimeError(f"{func}: a generator of the CPU can't draw on the other device")
    if func in MOVES:
        return
    if func in INDEXED and isinstance(args[0], Lent):
        tensors = [args[0], *(args[2:3] if func is not aten.index.Tensor else ())]
    here = [x for x in tensors if not isinstance(x, Lent) and x.dim()]
    if there and here:
        raise RuntimeError(f"{func}: expected all tensors on one device, but found some on the CPU: {here[0].shape}")


def computed(func, args, kwargs):
    """Do with the numbers in the main memory what was asked for on the other device."""
    check(func, args, kwargs)
    there = any(isinstance(x, Lent) for x in tree_leaves((args, kwargs)))
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == OTHER.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func is aten._fused_sdp_choice.default:
        return 0  # plain mathematics: the fused kernels of a GPU are none of the CPU's
    bare = tree_map(lambda x: x.held if isinstance(x, Lent) else x, (args, kwargs))
    found = func(*bare[0], **bare[1])
    if not there or func is aten._local_scalar_dense.default:
        return found
    found = tree_map(lambda x: Lent(x) if isinstance(x, torch.Tensor) else x, found)
    return return_and_correct_aliasing(func, args, kwargs, found)


class _Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class _Making(TorchFunctionMode):
    # Of what `torch.tensor` and lists of indices make, the other mode would see the bare result only.
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor:
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        if func in {torch.Tensor.__getitem__, torch.Tensor.__setitem__}:
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(torch.tensor(list(at)) if isinstance(at, list | range) else at for at in places)
            args = (args[0], places, *args[2:])
        return func(*args, **kwargs)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Let there be a second device, without a GPU."""
    fused = [*optimizer._get_fused_kernels_supported_devices(), OTHER.type]
    with patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: fused), _Watching(), _Making():
        yield OTHER


def lent(model):
    """A copy of a Hugging Face model on the other device, its tied weights still tied, as a GPU would have it."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    moved = copy.deepcopy(model).to(OTHER)
    moved.tie_weights()
    for parameter, flag in zip(moved.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    return moved
