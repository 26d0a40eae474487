"""Keeps freed memory mapped, so that a CPU training step does not pay for fresh pages over and over.

XLA allocates and frees the temporary buffers of every step. The C library maps large blocks anew each time and gives
them back when they are freed, so each step touches new pages, which the kernel has to clear one fault at a time: up to
half of the time of a small step. With the settings below large blocks come from the heap and stay there. The price is
that the process keeps its peak memory, which a training run needs again one step later.
"""

from __future__ import annotations

import ctypes
import sys

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4

_NEVER = 2**31 - 1
_TOP_PAD = 64 * 1024 * 1024


def keep_pages() -> bool:
    """Returns whether the allocator took the settings; False where it is not the GNU C library's."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    answers = [mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, _NEVER), mallopt(_M_TOP_PAD, _TOP_PAD)]
    return all(answer == 1 for answer in answers)
