"""Mirrors told anew against another master, each still the same blocks bit for bit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokendance.block_table import BlockTable
from tokendance.cohort import Cohort, Master, Mirror
from tokendance.kernels.loading import loading
from tokendance.restoring import copy_blocks
from tokendance.store.place import Place, Rows

__all__ = ["Move", "moved_mirrors", "placed_master", "rebased"]


class Move(NamedTuple):
    """From one master's blocks to another's.

    Attributes
    ----------
    rows : Rows
        The new master's blocks.
    new_position : numpy.ndarray
        ``(n_old,)`` int64: where the new master has each block of the old one, -1 where it has not.
    """

    rows: Rows
    new_position: NDArray[np.int64]


def placed_master(old: Master, blocks: NDArray[np.uint8], place: Place) -> Move:
    """Put new content in the master's place, writing only what changed.

    Parameters
    ----------
    blocks : numpy.ndarray
        ``(n_blocks, block_bytes)`` uint8, of the old master's block type.
    """
    with loading:
        from tokendance.kernels.diff import blocks_differ

    compared = min(old.rows.n_rows, blocks.shape[0])
    changed = blocks_differ(old.rows.view()[:compared], blocks[:compared])
    if changed.any() or blocks.shape[0] < old.rows.n_rows:
        rows = place.revise_master(old.rows, blocks, changed)
    elif blocks.shape[0] > compared:
        rows = place.append_master(old.rows, blocks[compared:])
    else:
        rows = old.rows
    new_position = np.full(old.rows.n_rows, -1)
    new_position[:compared] = np.where(changed, -1, np.arange(compared))
    return Move(rows, new_position)


def moved_mirrors(cohort: Cohort, mirrors: Mapping[str, Mirror], move: Move, place: Place) -> dict[str, Mirror]:
    """Tell mirrors of the cohort's master anew against the master that `move` leads to.

    Blocks that the new master does not have become their own; own blocks that it has at their position are
    dropped. Costs what changed hands, not the size of the caches; agents that were forked stay shared.
    """
    told: dict[tuple[int, int, tuple[tuple[int, int], ...]], BlockTable] = {}
    moved: dict[str, Mirror] = {}
    for agent_id, mirror in mirrors.items():
        table = mirror.table
        key = (id(table.own), table.n_blocks, table.tail)
        if key not in told:
            told[key] = _moved(cohort, table, move, place)
        moved[agent_id] = replace(mirror, table=told[key])
    return moved


def _moved(cohort: Cohort, table: BlockTable, move: Move, place: Place) -> BlockTable:
    master = cohort.needs_master()
    sources = table.sources(master.rows.n_rows)
    positions = np.arange(table.n_blocks)
    target = np.full(table.n_blocks, -1)
    shared = sources >= 0
    target[shared] = move.new_position[sources[shared]]
    if np.array_equal(target[shared], sources[shared]) and _stays(table, master, move):
        return table
    blocks = np.flatnonzero(target < 0)
    rows = copy_blocks(cohort, sources[blocks], table.own)
    there = blocks < move.rows.n_rows
    found = np.zeros(len(blocks), np.bool_)
    found[there] = _equal(rows[there], move.rows, blocks[there])
    target[blocks[found]] = blocks[found]
    kept = np.flatnonzero(~found)
    base = None if np.all((target == positions) | (target < 0)) else target
    if len(kept) == 0 and base is None:
        return BlockTable(table.n_blocks)
    own = place.put_own(blocks[kept], rows[kept], base, master.block_type, like=table.own)
    return BlockTable(table.n_blocks, own)


def _stays(table: BlockTable, master: Master, move: Move) -> bool:
    # Own blocks are worth another look only where the new master has something new at their positions.
    if table.own is None or len(table.own.indices) == 0:
        return True
    indices = table.own.indices
    old = indices[indices < master.rows.n_rows]
    unchanged = bool(np.all(move.new_position[old] == old))
    return unchanged and (len(old) == len(indices) or move.rows.n_rows == master.rows.n_rows)


def _equal(rows: NDArray[np.uint8], master: Rows, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    with loading:
        from tokendance.kernels.diff import blocks_differ

    if len(positions) == 0:
        return np.zeros(0, np.bool_)
    return ~blocks_differ(rows, master.view(positions)[positions])


def rebased(cohort: Cohort, master_id: str, place: Place) -> Cohort:
    """Make another agent the master; every agent keeps its blocks bit for bit."""
    old = cohort.needs_master()
    if master_id == old.agent_id:
        return cohort
    chosen = cohort.mirror(master_id)
    sources = chosen.table.sources(old.rows.n_rows)
    blocks = copy_blocks(cohort, sources, chosen.table.own)
    compared = min(old.rows.n_rows, len(sources))
    rows = place.revise_master(old.rows, blocks, sources[:compared] != np.arange(compared))
    new_position = np.full(old.rows.n_rows, -1)
    shared = np.flatnonzero(sources >= 0)
    new_position[sources[shared]] = shared
    before = {old.agent_id: Mirror(BlockTable(old.rows.n_rows), meta=old.meta), **cohort.mirrors}
    del before[master_id]
    mirrors = moved_mirrors(cohort, before, Move(rows, new_position), place)
    return Cohort(Master(master_id, rows, old.block_type, chosen.meta), mirrors)
