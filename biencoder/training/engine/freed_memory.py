"""What a training step frees on a CPU stays with the process for the next step.

Tensors on CPUs are made by malloc. That of Linux (glibc) gives blocks above 32 MiB, and what is free at the end of the
heap, back to the system at once. The next step then has the kernel map and clear the same memory again, page by page.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from biencoder import environment

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt: how much may be free at the end of the heap, and from what size on a block is no part of it."""
_NEVER = -1
_STEP_BLOCK = 2**30
"""Bytes: a step's tensors are smaller, embeddings of a large corpus are not."""
_USUAL = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25}
"""Where glibc's own thresholds come to in a process that has freed large blocks."""


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Within this context, for steps on a CPU; what is free at its end goes back to the system.

    Does nothing without a glibc that keeps such blocks (musl and older ones do not), or where the user has tuned malloc.
    """
    libc = _glibc() if device.type == "cpu" and not environment.tunes_malloc() else None
    # First what an older one refuses: any threshold that is set stays where it is from then on.
    if libc is None or not libc.mallopt(_MMAP_THRESHOLD, _STEP_BLOCK):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        for threshold, usual in _USUAL.items():
            libc.mallopt(threshold, usual)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
