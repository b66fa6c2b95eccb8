"""How the process deals with memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library to hand freed memory out again instead of returning it to the system.

    A step of training allocates and frees gradients as large as the model. By default each comes as fresh pages that
    the system must zero first, which takes as long as half of the backward pass of a language model; the peak stays
    the same. Only glibc knows these settings (mallopt(3)); elsewhere nothing happens.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))
