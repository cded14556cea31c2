"""Which blocks differ, and by how much: one pass over both caches.

Bits are compared first, which runs at the speed of memory and settles nearly every block; a norm is
worked out only where bits differ, while the block is still in the processor's cache.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tokendance.kernels.bits import NUMBER_TYPES, SMALL_FLOATS, SmallFloat, as_numbers, as_words, small_float_value
from tokendance.kernels.compile_policy import array_of, inlined, on_all_cores, run, twin, type_of

__all__ = ["SAME_BITS", "block_norms", "blocks_differ", "round_norms"]

SAME_BITS = -1.0

# 2 MiB of the master stay in the cache that the cores share; smaller tiles cost more calls than they save (0.5: +40 %).
_TILE_BYTES = 1 << 21

# 32 partial sums in a fixed order vectorise without fastmath and give the same bits on every processor
# and for any number of threads; float64 sums cost nothing here, because few blocks get this far.
_LANES = 32


@inlined
def _same_bits(left: NDArray[np.uint64], right: NDArray[np.uint64], block: int) -> np.bool_:
    # A whole block without an early exit: a test inside the loop kept it from vectorising (38 ms, not 19, for 512 MiB).
    differing = left[block, 0] ^ right[block, 0]
    for word in range(left.shape[1]):
        differing |= left[block, word] ^ right[block, word]
    same: np.bool_ = differing == 0
    return same


def _differ(left: NDArray[np.uint64], right: NDArray[np.uint64], differs: NDArray[np.uint8]) -> None:
    for block in prange(left.shape[0]):
        differs[block] = 0 if _same_bits(left, right, block) else 1


@inlined
def _squared_delta(
    left: NDArray[np.generic], right: NDArray[np.generic], block: int, at: int, form: SmallFloat | None
) -> np.float64:
    if form is None:
        delta = np.float64(left[block, at]) - np.float64(right[block, at])
    else:
        delta = np.float64(small_float_value(left[block, at], form)) - np.float64(
            small_float_value(right[block, at], form)
        )
    return delta * delta


@inlined
def _distance(left: NDArray[np.generic], right: NDArray[np.generic], block: int, form: SmallFloat | None) -> np.float64:
    lanes = np.zeros(_LANES, np.float64)
    whole = left.shape[1] // _LANES
    for group in range(whole):
        for lane in range(_LANES):
            lanes[lane] += _squared_delta(left, right, block, group * _LANES + lane, form)
    for lane in range(left.shape[1] - whole * _LANES):
        lanes[lane] += _squared_delta(left, right, block, whole * _LANES + lane, form)
    total = np.float64(0.0)
    for lane in range(_LANES):
        total += lanes[lane]
    norm: np.float64 = np.sqrt(total)
    return norm


def _norms(
    left_words: NDArray[np.uint64],
    right_words: NDArray[np.uint64],
    left: NDArray[np.generic],
    right: NDArray[np.generic],
    form: SmallFloat | None,
    norms: NDArray[np.float64],
) -> None:
    for block in prange(left.shape[0]):
        if _same_bits(left_words, right_words, block):
            norms[block] = SAME_BITS
        else:
            norms[block] = _distance(left, right, block, form)


def blocks_differ(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say of each block whether any of its bits differs.

    Parameters
    ----------
    left, right : numpy.ndarray
        ``(n_blocks, block_bytes)`` uint8, C order; only read.

    Returns
    -------
    numpy.ndarray
        ``(n_blocks,)`` bool.

    Examples
    --------
    >>> left = np.zeros((3, 8), np.uint8)
    >>> right = left.copy()
    >>> right[1, 5] = 1
    >>> blocks_differ(left, right).tolist()
    [False, True, False]
    """
    differs = np.zeros(left.shape[0], np.uint8)
    left_words, right_words = as_words(left, right)
    words = array_of(left_words.dtype.name)
    arguments = (words, words, array_of("uint8", written=True, ndim=1))
    run(_differ, arguments, (left_words, right_words, differs), left.nbytes + right.nbytes)
    return differs.view(np.bool_)


def block_norms(left: NDArray[np.uint8], right: NDArray[np.uint8], dtype_name: str) -> NDArray[np.float64]:
    """Return the L2 norm of each block's difference, `SAME_BITS` where there is none.

    Parameters
    ----------
    left, right : numpy.ndarray
        ``(n_blocks, block_bytes)`` uint8, C order: the bytes of the blocks; only read.
    dtype_name : str
        The dtype whose bytes they are, one of `tokendance.kernels.bits.NUMBER_TYPES`.

    Returns
    -------
    numpy.ndarray
        ``(n_blocks,)`` float64. `SAME_BITS` (-1) for equal bits; 0 or more for finite differences, summed in
        32 float64 lanes, so that nothing that float32 and narrower can hold over- or underflows (float64
        blocks that would are summed again, scaled); infinity where any difference is infinite or NaN.

    Examples
    --------
    >>> left = np.zeros((2, 2), np.float32)
    >>> right = np.array([[0, 0], [3, 4]], np.float32)
    >>> block_norms(left.view(np.uint8), right.view(np.uint8), "float32").tolist()
    [-1.0, 5.0]
    """
    norms = np.empty(left.shape[0], np.float64)
    kinds, arrays = _norm_arguments(left, right, dtype_name, norms)
    run(_norms, kinds, arrays, left.nbytes + right.nbytes)
    _finish(left, right, dtype_name, norms)
    return norms


def round_norms(
    master: NDArray[np.uint8], caches: Sequence[NDArray[np.uint8]], dtype_name: str
) -> list[NDArray[np.float64]]:
    """Return `block_norms` of a master and each of many caches, reading the master from memory once.

    The master is walked in tiles that stay in a core's cache while every cache is compared with them: for eight
    caches nine arrays cross the memory bus, where eight calls of `block_norms` move sixteen.

    Parameters
    ----------
    master : numpy.ndarray
        ``(n_blocks, block_bytes)`` uint8, C order; only read.
    caches : sequence of numpy.ndarray
        Each ``(n, block_bytes)`` uint8 with its own `n`, at most the master's.
    dtype_name : str

    Returns
    -------
    list of numpy.ndarray
        Each ``(n,)`` float64.

    Examples
    --------
    >>> master = np.zeros((2, 1), np.uint8)
    >>> [norms.tolist() for norms in round_norms(master, [master, master[:1] + 3], "uint8")]
    [[-1.0, -1.0], [3.0]]
    """
    found = [np.empty(cache.shape[0], np.float64) for cache in caches]
    prepared = [
        _norm_arguments(master[: cache.shape[0]], cache, dtype_name, norms)
        for cache, norms in zip(caches, found, strict=True)
    ]
    tile = max(_TILE_BYTES // master.shape[1], 1)

    def walk(start: int) -> None:
        for kinds, (left, right, left_numbers, right_numbers, form, norms) in prepared:
            span = slice(start, start + tile)
            if start < norms.shape[0]:
                kernel = twin(_norms, kinds, parallel=False)
                kernel(left[span], right[span], left_numbers[span], right_numbers[span], form, norms[span])

    on_all_cores(walk, range(0, max((len(norms) for norms in found), default=0), tile))
    for cache, norms in zip(caches, found, strict=True):
        _finish(master[: cache.shape[0]], cache, dtype_name, norms)
    return found


def _norm_arguments(
    left: NDArray[np.uint8], right: NDArray[np.uint8], dtype_name: str, norms: NDArray[np.float64]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    form = SMALL_FLOATS.get(dtype_name)
    left_words, right_words = as_words(left, right)
    words, numbers = array_of(left_words.dtype.name), array_of(NUMBER_TYPES[dtype_name])
    kinds = (words, words, numbers, numbers, type_of(form), array_of("float64", written=True, ndim=1))
    return kinds, (left_words, right_words, as_numbers(left, dtype_name), as_numbers(right, dtype_name), form, norms)


def _finish(left: NDArray[np.uint8], right: NDArray[np.uint8], dtype_name: str, norms: NDArray[np.float64]) -> None:
    norms[np.isnan(norms)] = np.inf
    if dtype_name == "float64":
        _rescale(as_numbers(left, dtype_name), as_numbers(right, dtype_name), norms)


def _rescale(left: NDArray[np.generic], right: NDArray[np.generic], norms: NDArray[np.float64]) -> None:
    # Squares of float64 leave its range from 1e154 up and 1e-162 down; scaled by the largest they do not.
    for block in np.flatnonzero((norms == np.inf) | ((norms >= 0.0) & (norms < 1e-140))):
        with np.errstate(over="ignore", invalid="ignore"):
            delta = np.abs(np.subtract(left[block], right[block]))
        largest = delta.max()
        if 0.0 < largest < np.inf:
            scaled = delta / largest
            with np.errstate(over="ignore"):  # a norm past the largest float64 is infinite
                norms[block] = largest * np.sqrt(np.sum(scaled * scaled))
