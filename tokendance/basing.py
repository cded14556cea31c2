"""Mirrors whose shared blocks stand elsewhere in the master: base maps, given or found."""

import weakref
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokendance.block_table import BlockTable
from tokendance.cohort import Master, Mirror
from tokendance.electing import block_prints
from tokendance.kernels.loading import loading
from tokendance.mirroring import Meta, kept_blocks, taken
from tokendance.store.place import Place, Rows

__all__ = ["Base", "based_mirror"]

Base = NDArray[np.int64] | Literal["auto"]

# Blocks that may be equal are gathered side by side to compare them; this much at a time.
_SLAB_BYTES = 16 << 20
_prints: "weakref.WeakKeyDictionary[Rows, dict[int, int]]" = weakref.WeakKeyDictionary()


def based_mirror(
    master: Master,
    rows: NDArray[np.uint8],
    place: Place,
    threshold: float,
    meta: Meta,
    base: Base,
    before: Mirror | None = None,
) -> Mirror:
    """Keep of a cache what the master does not have where `base` says, or, with ``"auto"``, anywhere.

    Parameters
    ----------
    rows : numpy.ndarray
        ``(n_blocks, block_bytes)`` uint8: the cache.
    base : numpy.ndarray or "auto"
        ``(n_blocks,)`` int64: the master block that each block is compared with, -1 for none. ``"auto"`` compares each
        block with the one at its own position, and looks for those that differ by a print of their bytes in the whole
        master; what is found is compared byte by byte.
    before : Mirror, optional
        What the agent was: if it grew, a place may keep only what is new.
    """
    if isinstance(base, str):
        norms, target = _found(master, rows, threshold)
    else:
        norms, target = _norms_at(master, rows, base), base.copy()
        target[~_close(norms, threshold)] = -1
    shared = target >= 0
    dropped = float(norms[shared].max(initial=0.0))
    indices = np.flatnonzero(~shared)
    identity = np.array_equal(target[shared], np.flatnonzero(shared))
    if len(indices) == 0 and identity:
        return Mirror(BlockTable(len(rows)), max(dropped, 0.0), meta)
    like = before.table.own if before else None
    own = place.put_own(indices, taken(rows, indices), None if identity else target, master.block_type, like=like)
    return Mirror(BlockTable(len(rows), own), max(dropped, 0.0), meta)


def _close(norms: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    return ~kept_blocks(norms, threshold)


def _norms_at(master: Master, rows: NDArray[np.uint8], base: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the norms against the master blocks that `base` names, infinity where it names none."""
    with loading:
        from tokendance.kernels.diff import block_norms

    view = master.rows.view()
    norms = np.full(len(base), np.inf)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(base) != 1) + 1)) if len(base) else np.empty(0, np.int64)
    for run, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(base)], strict=False):
        # A run from -1 upwards is -1 alone, or -1 and then block 0 on.
        start = run + (base[run] < 0)
        if start < stop:
            there = view[base[start] : base[start] + stop - start]
            norms[start:stop] = block_norms(there, rows[start:stop], master.block_type.dtype_name)
    return norms


def _found(master: Master, rows: NDArray[np.uint8], threshold: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return norms, and the master block that each block is, found by its position first and by its bytes then."""
    with loading:
        from tokendance.kernels.diff import SAME_BITS, blocks_differ

    positions = np.where(np.arange(len(rows)) < master.rows.n_rows, np.arange(len(rows)), -1)
    norms = _norms_at(master, rows, positions)
    target = np.where(_close(norms, threshold), positions, -1)
    missing = np.flatnonzero(target < 0)
    known = _prints_of(master.rows)
    candidates = np.array([known.get(one, -1) for one in block_prints(rows[at] for at in missing)], np.int64)
    hits = np.flatnonzero(candidates >= 0)
    view, slab = master.rows.view(), max(_SLAB_BYTES // max(rows.shape[1], 1), 1)
    for first in range(0, len(hits), slab):
        some = hits[first : first + slab]
        differ = blocks_differ(taken(rows, missing[some]), taken(view, candidates[some]))
        equal = some[~differ]
        target[missing[equal]] = candidates[equal]
        norms[missing[equal]] = SAME_BITS
    return norms, target


def _prints_of(rows: Rows) -> dict[int, int]:
    """Return where the master has each print, the last place for blocks that are there twice."""
    if rows not in _prints:
        prints: Any = block_prints(rows.view())
        _prints[rows] = {int(one): at for at, one in enumerate(prints)}
    return _prints[rows]
