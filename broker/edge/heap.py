"""The C library's heap of a serving process: what large arrays took goes back to the system when they are freed.

A segment that is sealed leaves arrays of tens of megabytes behind. The GNU C library gives an array of more than a
bound a mapping of its own, and unmaps it with it; but it raises the bound to the size of whatever it unmaps, up to
32 MiB, so that the next ones stand among small items, which hold on to them. A bound that has been set stays.

Below the bound are the groups that commits are made of: a mapping of its own for each costs as many page faults.
"""

from __future__ import annotations

import ctypes

__all__ = ["settle_heap"]

MAPPED_BYTES_MIN = 4 << 20
SPARE_BYTES_MAX = 4 << 20
"""What may be free at the end of the heap before that is given back."""
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3


def settle_heap() -> bool:
    """Set the bounds, for the whole process; answers whether there are such bounds, which is so with the GNU C library.

    Before any thread has been started.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED_BYTES_MIN)) and bool(mallopt(_TRIM_THRESHOLD, SPARE_BYTES_MAX))
