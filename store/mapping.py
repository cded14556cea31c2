"""Address space laid out from files: arrays that are mapped, not read.

A range of addresses is reserved by an anonymous `mmap` object, and pieces of files are mapped over it
with ``MAP_FIXED``. The reserving object unmaps the whole range when the last array on it dies, so no
finalizer is needed and no file stays open.
"""

import contextlib
import ctypes
import errno
import functools
import itertools
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_PIECES", "NOWHERE", "NO_RESERVE", "Piece", "lay_out", "let_go", "pages_only", "read_only"]

# Each piece is a map of its own, and Linux allows a process 65,530. Past some thousand, making and
# dropping the maps costs more than copying the blocks.
MOST_PIECES = 4096
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
# Linux has it everywhere; Python names it from 3.13 on. This is its number on these processors.
_NO_RESERVE = 0x4000 if sys.platform == "linux" and os.uname().machine in ("x86_64", "aarch64", "riscv64") else 0
NO_RESERVE: int = getattr(mmap, "MAP_NORESERVE", _NO_RESERVE)
"""The flag for a map that is address space only until it is touched, 0 where there is none."""


@functools.cache
def _most_maps() -> int:
    # Three quarters of what the system allows: the rest is for the rest of the process.
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            return int(file.read()) * 3 // 4
    except (OSError, ValueError):
        return 48_000


class _Region(mmap.mmap):
    """A range of addresses that counts the maps laid over it while it lives.

    On the class, not in a global: an array may outlive this module's globals when Python ends.
    """

    live_maps = 0
    n_maps = 0

    def __del__(self) -> None:
        type(self).live_maps -= self.n_maps


def lay_out(
    pieces: Sequence[Piece],
    over: Sequence[tuple[int, Piece]] = (),
    *,
    n_bytes: int,
    writable: bool,
    share: float = 1.0,
) -> NDArray[np.uint8]:
    """Map pieces of files next to each other into one private array.

    Parameters
    ----------
    pieces : sequence of Piece
        `pages_only` must hold for them. Their files may be closed and removed afterwards.
    over : sequence of (int, Piece)
        What is mapped over them then, each from some offset in the array on; all whole pages.
    n_bytes : int
        Length of the array; what the pieces do not fill is zero.
    writable : bool
        Pages that are written to become private copies; nobody else ever sees the change.
    share : float
        How much of the maps that are allowed to this process may be in use afterwards.

    Returns
    -------
    numpy.ndarray
        ``(n_bytes,)`` uint8, starting on a page. It keeps its maps alive.

    Raises
    ------
    OSError
        The system refuses or has no such maps, or this process has too many maps already.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        raise OSError(errno.ENOSYS, "this system has no private maps of files")
    n_maps = len(pieces) + 2 * len(over) + 1  # a piece that is mapped over another leaves the two ends of that
    if _Region.live_maps + n_maps > _most_maps() * share:
        raise OSError(errno.ENOMEM, f"{_Region.live_maps} maps are in use, {n_maps} more would be too many")
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    flags = mmap.MAP_PRIVATE | NO_RESERVE
    region = _Region(-1, n_bytes, flags=flags | mmap.MAP_ANONYMOUS, prot=protection)
    region.n_maps = n_maps
    _Region.live_maps += n_maps
    array = np.frombuffer(region, np.uint8)
    start, map_over, flags = array.ctypes.data, _system_mmap(), flags | _MAP_FIXED
    ends = itertools.accumulate((piece.n_bytes for piece in pieces), initial=0)
    for offset, (fd, from_byte, length) in itertools.chain(zip(ends, pieces, strict=False), over):
        if fd != NOWHERE and map_over(start + offset, length, protection, flags, fd, from_byte) != start + offset:
            code = ctypes.get_errno()
            raise OSError(code, f"could not map {length} bytes: {os.strerror(code)}")
    return array


def let_go(array: NDArray[np.uint8]) -> None:
    """Give the pages of an array that was laid out read-only back to the page cache, until they are looked at again.

    An array that is something else is left alone.
    """
    base: Any = array
    while base is not None and not isinstance(base, _Region):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED") and not array.flags.writeable:
        with contextlib.suppress(OSError):
            base.madvise(mmap.MADV_DONTNEED)


def read_only(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a view of bytes that cannot be made writable again, as one with its flag cleared could be."""
    return np.frombuffer(array.reshape(-1).data.toreadonly(), np.uint8).reshape(array.shape)
