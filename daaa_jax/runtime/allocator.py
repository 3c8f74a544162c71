"""Keeps freed memory in the process, so that each training step reuses that of the last one.

XLA on CPU allocates all temporary memory anew in each step. By default glibc returns large blocks
to the system when they are freed, and the next step pays a page fault, and the zeroing of the page,
for every 4 KiB: a third of a CycleGAN step's time on two cores.
"""

import ctypes
import platform

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Stops glibc from returning freed memory to the system; the process keeps its peak size.

    Call it before JAX starts its threads, each of which would otherwise get a separate arena.

    Returns:
      Whether the C library is glibc and accepted every setting; for others nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = (
        (_M_MMAP_MAX, 0),  # no separate mapping for a block, which would be unmapped when freed
        (_M_TRIM_THRESHOLD, -1),  # never shrink the heap
        (_M_TOP_PAD, 64 << 20),  # grow it in large pieces
        (_M_ARENA_MAX, 1),  # threads share the heap: separate arenas cannot hold large blocks
    )
    return all([mallopt(name, value) == 1 for name, value in settings])
