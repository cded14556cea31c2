"""What the rows are compared with: a kernel that only reads, and the arithmetic of a plain numpy implementation."""

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["aligned", "has", "numpy_mirror", "read_both", "synced", "write_npy"]


def has(module: str) -> bool:
    """Say whether a module is installed."""
    return importlib.util.find_spec(module) is not None


@functools.cache
def _read_kernel() -> Callable[..., None]:
    from numba import njit, prange

    @njit(parallel=True, nogil=True)
    def kernel(left: NDArray[np.uint64], right: NDArray[np.uint64], seen: NDArray[np.uint64]) -> None:
        for block in prange(left.shape[0]):
            bits = np.uint64(0)
            for word in range(left.shape[1]):
                bits |= left[block, word] ^ right[block, word]
            seen[block] = bits

    return kernel  # type: ignore[no-any-return]  # what njit returns has no type of its own


def read_both(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.uint64]:
    """Read two caches once, on all cores: the least that telling them apart can cost.

    Parameters
    ----------
    left, right : numpy.ndarray
        ``(n_blocks, ...)``, C order, of the same size; a block must be a whole number of 8 bytes.

    Returns
    -------
    numpy.ndarray
        ``(n_blocks,)`` uint64: the bits in which each block differs anywhere.
    """
    words = [array.reshape(array.shape[0], -1).view(np.uint64) for array in (left, right)]
    seen = np.empty(left.shape[0], np.uint64)
    _read_kernel()(*words, seen)
    return seen


def numpy_mirror(
    master: NDArray[Any], cache: NDArray[Any], threshold: float = 1e-4
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Find a mirror's blocks as plain numpy does it: subtract, take the norm of each block, gather the deltas."""
    delta = cache - master
    norms = np.linalg.norm(delta.reshape(len(delta), -1), axis=1)
    kept = np.flatnonzero(norms > threshold)
    return kept, delta[kept]


def aligned(like: NDArray[Any]) -> NDArray[Any]:
    """Return an array of the same shape and dtype that starts on a 64-byte boundary, every page touched.

    numpy's own large arrays start 16 bytes into a page, where some processors copy three times slower.
    """
    room = np.zeros(like.nbytes + 64, np.uint8)
    room.fill(0)
    start = -room.ctypes.data % 64
    return room[start : start + like.nbytes].view(like.dtype).reshape(like.shape)


def synced(path: Path) -> None:
    """Return when a file is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Save an array and return when it is on the disk."""
    with path.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
