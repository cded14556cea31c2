"""Fresh memory for results and for blocks that are kept: aligned, in huge pages, and not given back too soon."""

import contextlib
import mmap
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "aligned_empty"]

# numpy's own large arrays start 16 bytes into a page, where this kind of CPU copies three times slower.
ALIGNMENT = 64
_HUGE_FROM_BYTES = 4 << 20
# Pages that the system has to find and clear first make a copy several times as slow (16 MiB in 1.3 ms, or in 3 to
# 16 ms), and a round of agents frees what the next round asks for. So what was freed last is kept for the next who
# asks, marked as free: the system takes the pages whenever it wants them.
_MOST_SPARE_BYTES = 256 << 20
_CLOSE_FIT = 1.25

# Its methods are atomic, so that no lock is needed that a finalizer or a forked child could wait for.
_spare: deque[mmap.mmap] = deque()


def aligned_empty(n_bytes: int) -> NDArray[np.uint8]:
    """Return ``(n_bytes,)`` uint8, not filled, starting on a 64-byte boundary, in huge pages where there are some.

    Large ones reuse memory that earlier ones have freed: up to 256 MiB of it stay with the process, which
    the system may take back at any time.

    Raises
    ------
    MemoryError
        The system gives no more.

    Examples
    --------
    >>> aligned_empty(1000).ctypes.data % ALIGNMENT
    0
    """
    if n_bytes >= _HUGE_FROM_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        region = _taken(n_bytes) or _mapped(n_bytes) or _mapped_without_spares(n_bytes)
        if region is None:
            raise MemoryError(
                f"the system has no {n_bytes} bytes more for an array: free others, or take fewer blocks="
            )
        array = np.frombuffer(region, np.uint8, n_bytes)
        weakref.finalize(array, _keep, region).atexit = False
        return array
    room = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + n_bytes]


def _mapped_without_spares(n_bytes: int) -> mmap.mmap | None:
    _spare.clear()
    return _mapped(n_bytes)


def _mapped(n_bytes: int) -> mmap.mmap | None:
    try:
        region = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # not what numpy raises where there is no memory
        return None
    with contextlib.suppress(OSError):  # a kernel built without huge pages
        region.madvise(mmap.MADV_HUGEPAGE)
    return region


def _taken(n_bytes: int) -> mmap.mmap | None:
    for _ in range(len(_spare)):
        try:
            region = _spare.pop()
        except IndexError:  # another thread was faster
            return None
        if n_bytes <= len(region) <= n_bytes * _CLOSE_FIT:
            return region
        _spare.appendleft(region)
    return None


def _keep(region: mmap.mmap) -> None:
    if len(region) > _MOST_SPARE_BYTES:
        return
    with contextlib.suppress(OSError):  # a kernel that takes no pages back this way
        region.madvise(mmap.MADV_FREE)
    _spare.append(region)
    with contextlib.suppress(IndexError):
        while sum(map(len, tuple(_spare))) > _MOST_SPARE_BYTES:
            _spare.popleft()
