"""Blocks put together again: each block of a result is copied once, from where its block table says."""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tokendance.kernels.bits import as_words
from tokendance.kernels.compile_policy import array_of, run

__all__ = ["restore_blocks"]


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
    words, written = array_of(out_words.dtype.name), array_of(out_words.dtype.name, written=True)
    arguments = (words, words, array_of("int64", ndim=1), written)
    run(_restore, arguments, (master_words, own_words, sources, out_words), 2 * out.nbytes)
