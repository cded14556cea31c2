"""Blocks of an agent put together again, copied or mapped."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendance.cohort import Cohort
from tokendance.dtypes import dtype_named
from tokendance.kernels.loading import loading
from tokendance.store.fresh import aligned_empty
from tokendance.store.page_table import map_agent
from tokendance.store.place import Own
from tokendance.validate import check_out, check_selection

__all__ = [
    "copy_blocks",
    "copy_round",
    "kernels_pay",
    "map_blocks",
    "reconstructed",
    "reconstructed_round",
    "source_views",
]

# Importing numba and starting its threads takes 0.7 s, in which numpy alone copies some 4 GiB.
_KERNEL_FROM_BYTES = 4 << 30


def kernels_pay(n_bytes: int) -> bool:
    """Say whether copying this much is work for the kernels, or for numpy alone."""
    return "numba" in sys.modules or n_bytes >= _KERNEL_FROM_BYTES


def copy_blocks(
    cohort: Cohort, sources: NDArray[np.int64], own: Own | None, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Copy the blocks that `sources` names, each byte once.

    Parameters
    ----------
    sources : numpy.ndarray
        ``(n,)`` int64, as `tokendance.block_table.BlockTable.sources` gives them, or some of those.
    own : Own or None
        What ``~i`` refers to.
    out : numpy.ndarray, optional
        ``(n, block_bytes)`` uint8, C order; written. A fresh one starts on a 64-byte boundary.

    Returns
    -------
    numpy.ndarray
        ``(n, block_bytes)`` uint8.
    """
    if out is None:
        out = _fresh(cohort, len(sources))
    if len(sources) == 0:
        return out
    master_view, own_view = source_views(cohort, sources, own)
    if kernels_pay(out.nbytes):
        with loading:
            from tokendance.kernels.restore import restore_blocks

        restore_blocks(master_view, own_view, sources, out)
    else:
        _copy_runs(master_view, own_view, sources, out)
    return out


def copy_round(cohort: Cohort, agent_ids: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Copy the caches of many agents, reading the master from memory once."""
    with loading:
        from tokendance.kernels.restore import restore_round

    found = [cohort.sources(agent_id) for agent_id in agent_ids]
    outs = [_fresh(cohort, len(sources)) for sources, _ in found]
    master_views, own_views = zip(*(source_views(cohort, *one) for one in found), strict=True) if found else ((), ())
    master_view = max(master_views, key=len, default=np.empty((0, 0), np.uint8))
    if master_view.size:
        restore_round(master_view, own_views, [sources for sources, _ in found], outs)
    else:
        for (sources, own), out in zip(found, outs, strict=True):
            copy_blocks(cohort, sources, own, out)
    return outs


def _fresh(cohort: Cohort, n_blocks: int) -> NDArray[np.uint8]:
    row_bytes = cohort.needs_master().rows.row_bytes
    return aligned_empty(n_blocks * row_bytes).reshape(n_blocks, row_bytes)


def source_views(
    cohort: Cohort, sources: NDArray[np.int64], own: Own | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the master's blocks and an agent's own, those that `sources` names checked.

    Returns
    -------
    master, own : numpy.ndarray
        ``(n, block_bytes)`` uint8, read-only; what `sources` does not name may hold anything.
    """
    ours = sources < 0
    rows = cohort.needs_master().rows
    master_view = np.empty((0, rows.row_bytes), np.uint8) if ours.all() else rows.view(sources[~ours])
    if own is None:
        return master_view, master_view[:0]
    return master_view, own.rows.view(~sources[ours])


def _copy_runs(
    master: NDArray[np.uint8], own: NDArray[np.uint8], sources: NDArray[np.int64], out: NDArray[np.uint8]
) -> None:
    address = np.where(sources >= 0, sources, master.shape[0] + ~sources)
    ours = sources < 0
    starts = np.flatnonzero((np.diff(address, prepend=-2) != 1) | (np.diff(ours, prepend=False)))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(sources)], strict=True):
        source = int(sources[start])
        if source >= 0:
            out[start:stop] = master[source : source + stop - start]
        else:
            out[start:stop] = own[~source : ~source + stop - start]


def map_blocks(cohort: Cohort, sources: NDArray[np.int64], own: Own | None) -> NDArray[np.uint8]:
    """Return the blocks that `sources` names as private, writable memory, mapped where they stand in files.

    Contents are not checked where they are mapped; where they have to be copied, they are.
    """
    mapped = map_agent(cohort.needs_master().rows, None if own is None else own.rows, sources)
    return copy_blocks(cohort, sources, own) if mapped is None else mapped


def reconstructed(cohort: Cohort, agent_id: str, out: NDArray[Any] | None, copy: bool, blocks: object) -> NDArray[Any]:
    """Return an agent's cache; `TokenDanceStorage.reconstruct` says how."""
    master = cohort.needs_master()
    sources, own = cohort.sources(agent_id)
    if blocks is not None:
        sources = sources[check_selection(blocks, len(sources))]
    if out is not None:
        if not copy:
            raise ValueError("out= is filled by copying; leave out copy=False, or out")
        copy_blocks(cohort, sources, own, check_out(out, len(sources), master.block_type))
        return out
    return _as_cache(cohort, copy_blocks(cohort, sources, own) if copy else map_blocks(cohort, sources, own))


def reconstructed_round(cohort: Cohort, agent_ids: Sequence[str], copy: bool) -> list[NDArray[Any]]:
    """Return the caches of many agents, of one state."""
    cohort.needs_master()
    if copy:
        return [_as_cache(cohort, rows) for rows in copy_round(cohort, agent_ids)]
    return [_as_cache(cohort, map_blocks(cohort, *cohort.sources(agent_id))) for agent_id in agent_ids]


def _as_cache(cohort: Cohort, rows: NDArray[np.uint8]) -> NDArray[Any]:
    dtype_name, block_shape = cohort.needs_master().block_type
    return rows.reshape(-1).view(dtype_named(dtype_name)).reshape(rows.shape[0], *block_shape)
