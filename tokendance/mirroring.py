"""How a cache becomes a mirror: which of its blocks it keeps, and which the master stands for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendance.block_table import BlockTable
from tokendance.cohort import Cohort, Master, Mirror
from tokendance.dtypes import dtype_named
from tokendance.kernels.loading import loading
from tokendance.restoring import copy_blocks
from tokendance.sparse_diff import SparseKVDiff
from tokendance.store.fresh import aligned_empty
from tokendance.store.place import Place
from tokendance.validate import Blocks

Meta = Mapping[str, Any]

__all__ = ["delta_of", "diff_of", "kept_blocks", "mirrors_of", "taken"]


def kept_blocks(norms: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """Say which blocks a mirror keeps, given the norms of their differences.

    Parameters
    ----------
    norms : numpy.ndarray
        As `tokendance.kernels.diff.block_norms` gives them: -1 for equal bits, infinity for any difference
        that is infinite or NaN.
    threshold : float
        Greater norms are kept; at 0, whatever differs in any bit (0 and -0 differ by a norm of 0).

    Examples
    --------
    >>> kept_blocks(np.array([-1.0, 0.0, 0.5]), 0.0).tolist()
    [False, True, True]
    >>> kept_blocks(np.array([-1.0, 0.0, 0.5]), 0.5).tolist()
    [False, False, False]
    """
    return norms >= 0.0 if threshold == 0.0 else norms > threshold


def mirrors_of(
    master: Master,
    caches: Sequence[Blocks],
    place: Place,
    threshold: float,
    metas: Sequence[Meta],
    before: Sequence[Mirror | None],
) -> list[Mirror]:
    """Keep of each cache what the master does not have at the same positions.

    The master is read from memory once for all of them. What a cache has beyond the master's end it keeps. `before`
    is what each agent was: of one that grew, a place may keep only what is new.
    """
    with loading:
        from tokendance.kernels.diff import block_norms, round_norms

    dtype_name, n_master = master.block_type.dtype_name, master.rows.n_rows
    view = master.rows.view()
    compared = [cache.rows[:n_master] for cache in caches]
    if len(compared) == 1:
        norms = [block_norms(view[: len(compared[0])], compared[0], dtype_name)]
    else:
        norms = round_norms(view, compared, dtype_name)
    return [
        _mirror(master, cache.rows, place, kept_blocks(norm, threshold), norm, meta, mirror)
        for cache, norm, meta, mirror in zip(caches, norms, metas, before, strict=True)
    ]


def _mirror(
    master: Master,
    rows: NDArray[np.uint8],
    place: Place,
    kept_of_compared: NDArray[np.bool_],
    norms: NDArray[np.float64],
    meta: Meta,
    before: Mirror | None,
) -> Mirror:
    kept = np.ones(rows.shape[0], np.bool_)
    kept[: len(norms)] = kept_of_compared
    dropped = max(float(norms[~kept_of_compared].max(initial=0.0)), 0.0)
    indices = np.flatnonzero(kept)
    if len(indices) == 0:
        return Mirror(BlockTable(rows.shape[0]), dropped, meta)
    like = before.table.own if before else None
    own = place.put_own(indices, taken(rows, indices), None, master.block_type, like=like)
    return Mirror(BlockTable(rows.shape[0], own), dropped, meta)


def taken(rows: NDArray[np.uint8], positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return a copy of some rows of ``(n, row_bytes)`` uint8, on a 64-byte boundary."""
    with loading:
        from tokendance.kernels.restore import restore_blocks

    out = aligned_empty(len(positions) * rows.shape[1]).reshape(len(positions), rows.shape[1])
    restore_blocks(rows, rows[:0], positions, out)
    return out


def diff_of(cohort: Cohort, mirror: Mirror, threshold: float) -> SparseKVDiff:
    """Return what a mirror looks like to its owner; nothing is read until it is asked for."""
    own = mirror.table.own

    def indices() -> NDArray[np.int64]:
        return np.empty(0, np.int64) if own is None else own.indices

    return SparseKVDiff(indices, lambda: delta_of(cohort, mirror), mirror.table.n_blocks, threshold, mirror.dropped)


def delta_of(cohort: Cohort, mirror: Mirror) -> NDArray[Any]:
    """Return mirror minus master of a mirror's own blocks, ``(n_own, *block_shape)`` in the cache's dtype.

    A block past the master's end has nothing to be compared with: its delta is the block itself.
    """
    master = cohort.needs_master()
    dtype = dtype_named(master.block_type.dtype_name)
    own = mirror.table.own
    shape = (mirror.table.n_own, *master.block_type.block_shape)
    if own is None or mirror.table.n_own == 0:
        return np.empty(shape, dtype)
    values = own.rows.view().view(dtype).reshape(shape)
    compared = int(np.searchsorted(own.indices, master.rows.n_rows))
    counterparts = copy_blocks(cohort, own.indices[:compared], None).view(dtype).reshape(compared, *shape[1:])
    delta = np.array(values)
    with np.errstate(over="ignore", invalid="ignore"):
        delta[:compared] = values[:compared] - counterparts
    return delta
