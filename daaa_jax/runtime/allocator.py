"""The C library keeps the memory that it has freed: a step allocates what the last one gave back.

XLA on CPU asks for all temporary memory anew in each step. By default glibc returns large blocks to
the system at once, and the step after pays a page fault, and the zeroing of the page, for every
4 KiB: a third of a CycleGAN step's time on two cores.
"""

import ctypes
import platform

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to give no memory back while the process lives, which stays as large as it was.

    Call it before JAX starts its threads: each would already have an arena of its own.

    Returns:
      Whether the C library is glibc and took every setting; elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = (
        (_M_MMAP_MAX, 0),  # no block of its own mapping, which would be unmapped when freed
        (_M_TRIM_THRESHOLD, -1),  # never shrink the heap's end
        (_M_TOP_PAD, 64 << 20),  # grow it in large pieces
        (_M_ARENA_MAX, 1),  # threads share the heap: arenas of their own cannot hold large blocks
    )
    return all([mallopt(name, value) == 1 for name, value in settings])
