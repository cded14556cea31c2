"""Compiling and caching every kernel ahead of time, by calling each once for all that it is compiled for."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba.core.caching import FunctionCache

from tokendance.kernels import compile_policy
from tokendance.kernels.bits import NUMBER_TYPES
from tokendance.kernels.compile_policy import PARALLEL_FROM_BYTES
from tokendance.kernels.diff import block_norms, blocks_differ
from tokendance.kernels.restore import restore_blocks, restore_layer

__all__ = ["WarmUp", "warm_up"]

# Rows of whole 64-bit words run another kernel than those that end in half a word. The functions for whole rounds
# run the same kernels, on one core each.
_WORDS, _BYTES = 32, 28


class WarmUp(NamedTuple):
    """What `warm_up` did.

    Attributes
    ----------
    n_kernels : int
        How many kernels this process has now: serial and parallel twins, for every dtype and word size.
    folder : str or None
        Where their machine code is kept for other processes; None where no folder can be written.
    """

    n_kernels: int
    folder: str | None


def warm_up(progress: Callable[[int, int], None] | None = None) -> WarmUp:
    """Compile every kernel that a storage may call, or load it from the cache, so that no later call waits for that.

    Takes about half a minute where nothing is cached yet, and a second where everything is.

    Parameters
    ----------
    progress : callable, optional
        Called with the number of steps done, and how many there are.

    Returns
    -------
    WarmUp
    """
    steps = list(_steps())
    for done, step in enumerate(steps):
        if progress is not None:
            progress(done, len(steps))
        step()
    if progress is not None:
        progress(len(steps), len(steps))
    return WarmUp(compile_policy._compiled.cache_info().currsize, _folder())


def _steps() -> Iterator[Callable[[], object]]:
    for row_bytes in (_WORDS, _BYTES):
        for n_rows in (2, PARALLEL_FROM_BYTES // row_bytes + 1):
            left = np.zeros((n_rows, row_bytes), np.uint8)
            right, sources, out = left + 1, np.zeros(n_rows, np.int64), np.empty_like(left)
            yield partial(blocks_differ, left, right)
            yield partial(restore_blocks, left, right, sources, out)
            yield partial(restore_layer, left, right, sources, np.empty((1, left.size), np.uint8))
            for name in NUMBER_TYPES:
                if row_bytes % np.dtype(NUMBER_TYPES[name]).itemsize == 0:
                    yield partial(block_norms, left, right, name)


def _folder() -> str | None:
    try:
        cache: Any = FunctionCache(blocks_differ)  # type: ignore[no-untyped-call]  # numba 0.68 leaves it untyped
        return str(cache.cache_path)
    except (RuntimeError, OSError):  # read-only install and no home
        return None
