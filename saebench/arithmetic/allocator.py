"""Keep memory that a pass on a CPU frees and asks for again, layer after layer.

glibc gives large blocks back to the kernel at once, and every page of the next one costs a fault: a tenth of a pass went
there. Linux with glibc only; elsewhere, and on a GPU (whose memory PyTorch keeps itself), nothing is done.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MIB = 2**20
# Blocks up to the first of these that this glibc allows come from the heap (older ones: 32 MiB at most) …
_FROM_HEAP = (64 * _MIB, 32 * _MIB)
# … and this much at its end may lie free before it goes back.
_KEEP = 512 * _MIB


def keep_freed_memory() -> bool:
    """Ask the C library to, for the whole process; returns whether it did."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return any(mallopt(_M_MMAP_THRESHOLD, size) for size in _FROM_HEAP) and bool(mallopt(_M_TRIM_THRESHOLD, _KEEP))
