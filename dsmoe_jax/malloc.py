"""Memory allocator of the C library: freed blocks are kept for reuse.

Owns one setting of the process. A training step on the CPU frees and allocates the same hundred
megabytes of intermediate values again and again. glibc hands such blocks back to the kernel, which
clears every page of the next step's anew.
"""

import ctypes

# Blocks up to this size are kept for reuse, and so much free memory at the end of the heap.
KEPT_BYTES = 1 << 30

# Names of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed() -> bool:
    """Lets the process reuse freed blocks of up to 1 GiB instead of returning them to the kernel.

    Call it before threads start: a thread keeps the arena that it has, and only the main arena can
    keep large blocks.

    Returns:
      Whether the C library is one that can be told; nothing changes otherwise.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, KEPT_BYTES),
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
