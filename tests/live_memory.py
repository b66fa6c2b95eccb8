"""How much memory tensors take while something runs."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for one in tree_leaves(out):
            if not isinstance(one, torch.Tensor):
                continue
            storage = one.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in old and key not in self.known:
                self.known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out


def peak_bytes(work: Callable[[], Any]) -> int:
    """Find the most memory that tensors made by some work take at one time.

    Args:
        work: What to run.

    Returns:
        Bytes, without what was there before.
    """
    with _Live() as live:
        work()
    return live.peak
