"""How much memory tensors take while something runs."""

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NEWS = 1.02
"""Growth of the peak that is worth another list of what is alive."""


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still alive, forward and backward.

    Attributes:
        peak: Most bytes at once.
        held: What was alive about then: bytes by operation and shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.held: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._now = 0
        self._told = 0
        self._alive: dict[int, tuple[int, str, tuple[int, ...]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                # Views and results in place hold no memory of their own.
                if size and key not in given and key not in self._alive:
                    self._alive[key] = size, str(func), tuple(tensor.shape)
                    self._now += size
                    weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self._now)
        if self._now > NEWS * self._told:
            self._told = self._now
            self.held = Counter()
            for size, made_by, shape in self._alive.values():
                self.held[made_by, shape] += size
        return out

    def _gone(self, storage: int) -> None:
        self._now -= self._alive.pop(storage)[0]


def peak_bytes(work: Callable[[], Any]) -> int:
    """Find the most memory that tensors made by some work take at one time.

    Args:
        work: What to run.

    Returns:
        Bytes, without what was there before.
    """
    with Alive() as alive:
        work()
    return alive.peak
