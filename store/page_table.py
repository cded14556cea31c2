"""An agent's blocks laid out as address space: the master's files and its own, next to each other."""

import mmap

import numpy as np
from numpy.typing import NDArray

from tokendance.store.arrays import close_all
from tokendance.store.mapping import MOST_PIECES, Piece, lay_out, pages_only
from tokendance.store.place import Rows

__all__ = ["map_agent"]


def map_agent(master: Rows, own: Rows | None, sources: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """Map an agent's blocks into one private, writable array.

    Where blocks are whole pages no byte is copied. Where they are not, or where there would be too many
    runs, the master is mapped and the agent's own blocks are written into private pages.

    Parameters
    ----------
    master, own : Rows
        The master's blocks, and the agent's own; None for an agent without any.
    sources : numpy.ndarray
        ``(n_blocks,)`` int64: `i` for block `i` of the master, ``~i`` for block `i` of its own.

    Returns
    -------
    numpy.ndarray or None
        ``(n_blocks, row_bytes)`` uint8, or None where this agent cannot be mapped, or the system refuses.

    Raises
    ------
    StoreCorruptError
        A file is missing or not of the right size.
    """
    if len(sources) == 0:
        return None
    pieces = master.pieces()
    if pieces is None:
        return None
    own_pieces: list[Piece] | None = None
    try:
        own_pieces = own.pieces() if own is not None and own.n_rows else []
        if own_pieces is None:
            return None
        runs = _runs(pieces + own_pieces, master.row_bytes, master.n_rows, sources)
        if runs is not None:
            return lay_out(runs, n_bytes=len(sources) * master.row_bytes, writable=True).reshape(len(sources), -1)
        return _with_copies(pieces, master, own, sources)
    except OSError as error:
        import logging

        logging.getLogger("tokendance.store").info("an agent is copied, not mapped: %s", error)
        return None
    finally:
        close_all(pieces + (own_pieces or []))


def _runs(pieces: list[Piece], row_bytes: int, n_master: int, sources: NDArray[np.int64]) -> list[Piece] | None:
    # Own rows are numbered after the master's, so that every run goes upwards by one.
    address = np.where(sources >= 0, sources, n_master + ~sources)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(address) != 1) + 1))
    if len(starts) + len(pieces) > MOST_PIECES or (len(starts) > 1 and row_bytes % mmap.PAGESIZE):
        return None
    ends = np.append(starts[1:], len(address))
    bounds = np.cumsum([piece.n_bytes for piece in pieces])
    runs: list[Piece] = []
    for start, length in zip(address[starts].tolist(), (ends - starts).tolist(), strict=True):
        at, left = start * row_bytes, length * row_bytes
        index = int(np.searchsorted(bounds, at, side="right"))
        while left:
            piece = pieces[index]
            offset = at - (int(bounds[index]) - piece.n_bytes)
            taken = min(left, piece.n_bytes - offset)
            runs.append(Piece(piece.fd, piece.offset + offset, taken))
            at, left, index = at + taken, left - taken, index + 1
    return runs if pages_only(runs) else None


def _with_copies(
    pieces: list[Piece], master: Rows, own: Rows | None, sources: NDArray[np.int64]
) -> NDArray[np.uint8] | None:
    ours = sources < 0
    if own is None or not np.array_equal(sources[~ours], np.flatnonzero(~ours)):
        return None
    left = min(len(sources), master.n_rows) * master.row_bytes
    used: list[Piece] = []
    for piece in pieces:
        used.append(piece._replace(n_bytes=min(left, piece.n_bytes)))
        left -= used[-1].n_bytes
        if not left:
            break
    if not pages_only(used):
        return None
    n_bytes = len(sources) * master.row_bytes
    array = lay_out(used, n_bytes=n_bytes, writable=True).reshape(len(sources), master.row_bytes)
    array[ours] = own.view(np.empty(0, np.int64))[~sources[ours]]
    return array
