"""Address space laid out from files: arrays that are mapped, not read.

A range of addresses is reserved by an anonymous `mmap` object, and pieces of files are mapped over it
with ``MAP_FIXED``. The reserving object unmaps the whole range when the last array on it dies, so no
finalizer is needed and no file stays open.
"""

import contextlib
import ctypes
import errno
import functools
import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "MOST_PIECES", "NOWHERE", "Piece", "aligned_empty", "lay_out", "pages_only", "read_only"]

# numpy's own large arrays start 16 bytes into a page, where this kind of CPU copies three times slower.
ALIGNMENT = 64
# Each piece is a map of its own, and Linux allows a process 65,530. Past some thousand, making and
# dropping the maps costs more than copying the blocks.
MOST_PIECES = 4096
_HUGE_FROM_BYTES = 4 << 20


NOWHERE = -1


class Piece(NamedTuple):
    """A stretch of a file, in the order in which pieces follow one another in memory; zeros where `fd` is `NOWHERE`."""

    fd: int
    offset: int
    n_bytes: int


def pages_only(pieces: Sequence[Piece]) -> bool:
    """Say whether pieces can be mapped next to each other: whole pages, but for the end of the last."""
    page = mmap.PAGESIZE
    return all(piece.offset % page == 0 for piece in pieces) and all(piece.n_bytes % page == 0 for piece in pieces[:-1])


@functools.cache
def _system_mmap() -> Callable[..., Any]:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t) + (ctypes.c_int,) * 3 + (ctypes.c_longlong,)
    result: Callable[..., Any] = function
    return result


_MAP_FIXED = 0x10
_live_maps = 0


@functools.cache
def _most_maps() -> int:
    # Half of what the system allows: the other half is for the rest of the process.
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            return int(file.read()) // 2
    except (OSError, ValueError):
        return 32_000


class _Region(mmap.mmap):
    """A range of addresses that counts the maps laid over it while it lives."""

    n_maps = 0

    def __del__(self) -> None:
        global _live_maps
        _live_maps -= self.n_maps


def lay_out(pieces: Sequence[Piece], *, n_bytes: int, writable: bool) -> NDArray[np.uint8]:
    """Map pieces of files next to each other into one private array.

    Parameters
    ----------
    pieces : sequence of Piece
        `pages_only` must hold for them. Their files may be closed and removed afterwards.
    n_bytes : int
        Length of the array; what the pieces do not fill is zero.
    writable : bool
        Pages that are written to become private copies; nobody else ever sees the change.

    Returns
    -------
    numpy.ndarray
        ``(n_bytes,)`` uint8, starting on a page. It keeps its maps alive.

    Raises
    ------
    OSError
        The system refuses, or this process has too many maps already.
    """
    global _live_maps
    if _live_maps + len(pieces) > _most_maps():
        raise OSError(errno.ENOMEM, f"{_live_maps} maps are in use, {len(pieces)} more would be too many")
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    region = _Region(-1, n_bytes, flags=flags | mmap.MAP_ANONYMOUS, prot=protection)
    region.n_maps = len(pieces) + 1
    _live_maps += region.n_maps
    array = np.frombuffer(region, np.uint8)
    address = array.ctypes.data
    for piece in pieces:
        if piece.fd == NOWHERE:
            address += piece.n_bytes
            continue
        got = _system_mmap()(address, piece.n_bytes, protection, flags | _MAP_FIXED, piece.fd, piece.offset)
        if got != address:
            code = ctypes.get_errno()
            raise OSError(code, f"could not map {piece.n_bytes} bytes: {os.strerror(code)}")
        address += piece.n_bytes
    return array


def aligned_empty(n_bytes: int) -> NDArray[np.uint8]:
    """Return ``(n_bytes,)`` uint8, not filled, starting on a 64-byte boundary, in huge pages where there are some."""
    if n_bytes >= _HUGE_FROM_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        region = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel built without huge pages
            region.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(region, np.uint8)
    room = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + n_bytes]


def read_only(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a view of bytes that cannot be made writable again, as one with its flag cleared could be."""
    return np.frombuffer(array.reshape(-1).data.toreadonly(), np.uint8).reshape(array.shape)
