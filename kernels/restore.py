"""Blocks put together again: each block of a result is copied once, from where its block table says."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tokendance.kernels.bits import as_words
from tokendance.kernels.compile_policy import array_of, on_all_cores, run, twin

__all__ = ["restore_blocks", "restore_layer", "restore_round"]

# As for comparing: 2 MiB of the master stay in the cache that the cores share.
_TILE_BYTES = 1 << 21


def _restore(
    master: NDArray[np.uint64], own: NDArray[np.uint64], sources: NDArray[np.int64], out: NDArray[np.uint64]
) -> None:
    for block in prange(sources.shape[0]):
        source = sources[block]
        if source >= 0:
            for word in range(out.shape[1]):
                out[block, word] = master[source, word]
        else:
            for word in range(out.shape[1]):
                out[block, word] = own[~source, word]


def restore_blocks(
    master: NDArray[np.uint8], own: NDArray[np.uint8], sources: NDArray[np.int64], out: NDArray[np.uint8]
) -> None:
    """Fill `out` with the blocks that `sources` names, each byte written once.

    Parameters
    ----------
    master, own : numpy.ndarray
        ``(n, block_bytes)`` uint8, C order: the master's blocks, and the agent's own; only read.
    sources : numpy.ndarray
        ``(n_blocks,)`` int64, C order: `i` for block `i` of the master, ``~i`` (that is ``-1 - i``) for block `i` of
        its own. Trusted: the caller has checked the range.
    out : numpy.ndarray
        ``(n_blocks, block_bytes)`` uint8, C order; written.

    Examples
    --------
    >>> master = np.array([[1], [2], [3]], np.uint8)
    >>> own = np.array([[9]], np.uint8)
    >>> out = np.empty((3, 1), np.uint8)
    >>> restore_blocks(master, own, np.array([0, ~0, 2]), out)
    >>> out.ravel().tolist()
    [1, 9, 3]
    """
    master_words, own_words, out_words = as_words(master, own, out)
    run(_restore, _kinds(out_words.dtype.name), (master_words, own_words, sources, out_words), 2 * out.nbytes)


def _restore_layer(
    master: NDArray[np.uint64], own: NDArray[np.uint64], sources: NDArray[np.int64], out: NDArray[np.uint64]
) -> None:
    strip = master.shape[1] // out.shape[0]
    for block in prange(sources.shape[0]):
        source = sources[block]
        first = block * strip
        width = min(strip, out.shape[1] - first)
        for head in range(out.shape[0]):
            if source >= 0:
                for word in range(width):
                    out[head, first + word] = master[source, head * strip + word]
            else:
                for word in range(width):
                    out[head, first + word] = own[~source, head * strip + word]


def restore_layer(
    master: NDArray[np.uint8], own: NDArray[np.uint8], sources: NDArray[np.int64], out: NDArray[np.uint8]
) -> None:
    """Fill one layer's keys or values with blocks, each cut into its heads, with no array in between.

    A block holds some tokens of every head, head by head; a layer holds every token of the first head, then of the
    next. So each block becomes as many strips as there are heads.

    Parameters
    ----------
    master, own, sources
        As `restore_blocks` takes them; ``block_bytes`` is a multiple of ``heads``.
    out : numpy.ndarray
        ``(heads, n_bytes)`` uint8, C order; written. Strip `h` of the i-th block named begins at ``i * block_bytes //
        heads`` of row `h`; what the last block has beyond the end of a row is left out.

    Examples
    --------
    >>> master = np.array([[1, 2, 11, 12], [3, 4, 13, 14]], np.uint8)
    >>> out = np.empty((2, 3), np.uint8)
    >>> restore_layer(master, master[:0], np.array([0, 1]), out)
    >>> out.tolist()
    [[1, 2, 3], [11, 12, 13]]
    """
    # Strips that are not whole words, and rows that are not, are copied byte by byte.
    whole_words = master.shape[1] // out.shape[0] % 8 == 0
    arrays = as_words(master, own, out) if whole_words else (master, own, out)
    master_words, own_words, out_words = arrays
    run(_restore_layer, _kinds(out_words.dtype.name), (master_words, own_words, sources, out_words), 2 * out.nbytes)


def restore_round(
    master: NDArray[np.uint8],
    owns: Sequence[NDArray[np.uint8]],
    sources: Sequence[NDArray[np.int64]],
    outs: Sequence[NDArray[np.uint8]],
) -> None:
    """Do `restore_blocks` for many agents, walking all of them in tiles so that the master is read from memory once.

    Parameters
    ----------
    master : numpy.ndarray
        ``(n, block_bytes)`` uint8, C order; only read.
    owns, sources, outs : sequences of numpy.ndarray
        For each agent what `restore_blocks` takes; `outs` are written.

    Examples
    --------
    >>> master, own = np.array([[1], [2]], np.uint8), np.array([[9]], np.uint8)
    >>> outs = [np.empty((2, 1), np.uint8), np.empty((1, 1), np.uint8)]
    >>> restore_round(master, [own, own], [np.array([~0, 1]), np.array([0])], outs)
    >>> [out.ravel().tolist() for out in outs]
    [[9, 2], [1]]
    """
    agents = [(*as_words(master, own, out), order) for own, order, out in zip(owns, sources, outs, strict=True)]
    tile = max(_TILE_BYTES // master.shape[1], 1)

    def walk(start: int) -> None:
        for master_words, own_words, out_words, order in agents:
            if start < len(order):
                kernel = twin(_restore, _kinds(out_words.dtype.name), parallel=False)
                kernel(master_words, own_words, order[start : start + tile], out_words[start : start + tile])

    on_all_cores(walk, range(0, max((len(order) for order in sources), default=0), tile))


def _kinds(word: str) -> tuple[Any, ...]:
    return array_of(word), array_of(word), array_of("int64", ndim=1), array_of(word, written=True)
