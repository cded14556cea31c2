"""Blocks of an agent put together again, copied or mapped."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendance.cohort import Cohort
from tokendance.dtypes import dtype_named
from tokendance.store.mapping import aligned_empty
from tokendance.store.page_table import map_agent
from tokendance.store.place import Own
from tokendance.validate import check_out, check_selection

__all__ = ["copy_blocks", "map_blocks", "reconstructed"]

# Importing numba and starting its threads takes 0.7 s, in which numpy alone copies some 4 GiB.
_KERNEL_FROM_BYTES = 4 << 30
_NOTHING = np.empty((0, 1), np.uint8)


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
    rows = cohort.needs_master().rows
    if out is None:
        out = aligned_empty(len(sources) * rows.row_bytes).reshape(len(sources), rows.row_bytes)
    if len(sources) == 0:
        return out
    ours = sources < 0
    master_view = rows.view(sources[~ours])
    own_view = _NOTHING if own is None else own.rows.view(~sources[ours])
    if own_view.shape[0] == 0:
        own_view = master_view[:0]
    if master_view.shape[0] == 0:
        master_view = own_view[:0]
    if "numba" in sys.modules or out.nbytes >= _KERNEL_FROM_BYTES:
        from tokendance.kernels.restore import restore_blocks

        restore_blocks(master_view, own_view, sources, out)
    else:
        _copy_runs(master_view, own_view, sources, out)
    return out


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
    rows = copy_blocks(cohort, sources, own) if copy else map_blocks(cohort, sources, own)
    dtype = dtype_named(master.block_type.dtype_name)
    return rows.reshape(-1).view(dtype).reshape(len(sources), *master.block_type.block_shape)
