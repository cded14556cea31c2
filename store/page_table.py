"""An agent's blocks laid out as address space: the master's files and its own, next to each other."""

import mmap
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokendance.errors import StoreCorruptError
from tokendance.store.arrays import close_all
from tokendance.store.mapping import MOST_PIECES, NOWHERE, Piece, lay_out, pages_only
from tokendance.store.place import Rows

__all__ = ["map_agent"]

# Agents that are mapped run by run may use up two thirds of the maps. The last third is for those that come later and
# then take one for each of the master's files: a hundred agents of a thousand runs each fit so.
_SCATTERED_SHARE = 2 / 3
# Blocks that are copied pass through a gathered copy; this much of it stays in the processor's cache.
_GATHERED_BYTES = 1 << 20


class _Layers(NamedTuple):
    """What is mapped side by side, and what over that, from which offset in the array on."""

    base: list[Piece]
    over: list[tuple[int, Piece]]


def map_agent(master: Rows, own: Rows | None, sources: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """Map an agent's blocks into one private, writable array.

    Where blocks are whole pages no byte is copied. Where they are not, or where there would be too many runs, for one
    agent or for this process, the master is mapped, and what the agent has otherwise is copied into private pages.

    Parameters
    ----------
    master, own : Rows
        The master's blocks, and the agent's own; None for an agent without any.
    sources : numpy.ndarray
        ``(n_blocks,)`` int64: `i` for block `i` of the master, ``~i`` for block `i` of its own.

    Returns
    -------
    numpy.ndarray or None
        ``(n_blocks, row_bytes)`` uint8, or None where this agent is better copied, cannot be mapped, or the system
        refuses; the log says why.

    Raises
    ------
    StoreCorruptError
        A block that is copied is in a file that is missing or damaged.
    """
    if len(sources) == 0:
        return None
    pieces: list[Piece] | None = None
    own_pieces: list[Piece] | None = None
    try:
        try:
            pieces = master.pieces()
            own_pieces = own.pieces() if own is not None and own.n_rows else []
        except StoreCorruptError as error:  # of a file that this agent may not need; whoever copies it finds out
            return _not_mapped(str(error))
        if pieces is None or own_pieces is None:
            return _not_mapped("its blocks are in memory, and this system lets no memory file be made")
        return _laid_out(_layers(pieces, own_pieces, master, sources), pieces, master, own, sources)
    except OSError as error:
        return _not_mapped(str(error))
    finally:
        close_all((pieces or []) + (own_pieces or []))


def _not_mapped(why: str) -> NDArray[np.uint8] | None:
    _tell("an agent is copied, not mapped: %s", why)
    return None


def _tell(message: str, *details: object) -> None:
    import logging

    logging.getLogger("tokendance.store").info(message, *details)


def _laid_out(
    layers: _Layers | None, pieces: list[Piece], master: Rows, own: Rows | None, sources: NDArray[np.int64]
) -> NDArray[np.uint8] | None:
    n_bytes, refused = len(sources) * master.row_bytes, ""
    if layers is not None:
        try:
            return lay_out(*layers, n_bytes=n_bytes, writable=True, share=_SCATTERED_SHARE).reshape(len(sources), -1)
        except OSError as error:
            refused = str(error)
    array = _with_copies(pieces, master, own, sources)
    if array is not None:
        if refused:
            _tell("an agent is mapped, but its own blocks are copied: %s", refused)
        return array
    if layers is not None:
        return lay_out(*layers, n_bytes=n_bytes, writable=True).reshape(len(sources), -1)
    return _not_mapped("most of its blocks are not where the master has them, in too many runs or not on whole pages")


def _layers(pieces: list[Piece], own_pieces: list[Piece], master: Rows, sources: NDArray[np.int64]) -> _Layers | None:
    """Return the master's pieces and the own ones over them, which takes half the calls that piece after piece does."""
    if master.row_bytes % mmap.PAGESIZE:  # one run, or none
        address = np.where(sources >= 0, sources, master.n_rows + ~sources)
        runs = _runs(pieces + own_pieces, master.row_bytes, address, np.arange(len(sources)))
        return None if runs is None else _Layers(_bare(runs), [])
    base, at = _base(pieces, master, _beneath(sources, master)), np.flatnonzero(sources < 0)
    over = _runs(own_pieces, master.row_bytes, ~sources[at], at)
    if base is None or over is None or len(base) + 2 * len(over) > MOST_PIECES:
        return None
    return _Layers(base, over)


def _base(pieces: list[Piece], master: Rows, beneath: NDArray[np.int64]) -> list[Piece] | None:
    end = len(beneath) - int(np.argmax(beneath[::-1] < master.n_rows))  # zeros behind it are there without a map
    nowhere = Piece(NOWHERE, 0, len(beneath) * master.row_bytes)
    runs = _runs([*pieces, nowhere], master.row_bytes, beneath[:end], np.arange(end))
    return None if runs is None else _bare(runs)


def _bare(runs: list[tuple[int, Piece]]) -> list[Piece]:
    return [piece for _, piece in runs]


def _runs(
    pieces: list[Piece], row_bytes: int, rows: NDArray[np.int64], at: NDArray[np.int64]
) -> list[tuple[int, Piece]] | None:
    """Return where in the array which pieces are, if row ``rows[i]`` of all pieces is row ``at[i]`` of the array."""
    if len(rows) == 0:
        return []
    starts = np.concatenate(([0], np.flatnonzero((np.diff(rows) != 1) | (np.diff(at) != 1)) + 1))
    if len(starts) + len(pieces) > MOST_PIECES or (len(starts) > 1 and row_bytes % mmap.PAGESIZE):
        return None
    lengths = np.diff(starts, append=len(rows)) * row_bytes
    begins = np.cumsum([0, *(piece.n_bytes for piece in pieces)])
    sources, targets = rows[starts] * row_bytes, at[starts] * row_bytes
    first = np.searchsorted(begins, sources, side="right") - 1
    runs: list[tuple[int, Piece]] = []
    for target, index, offset, left in np.stack((targets, first, sources - begins[first], lengths), axis=1).tolist():
        while left:
            piece = pieces[index]
            taken = min(left, piece.n_bytes - offset)
            runs.append((target, Piece(piece.fd, piece.offset + offset, taken)))
            target, index, offset, left = target + taken, index + 1, 0, left - taken  # noqa: PLW2901 - a walk
    return runs if pages_only(_bare(runs)) else None


def _with_copies(
    pieces: list[Piece], master: Rows, own: Rows | None, sources: NDArray[np.int64]
) -> NDArray[np.uint8] | None:
    beneath = _beneath(sources, master)
    copied = np.flatnonzero(beneath != sources)
    # A private page that is written costs twice what a copied one does.
    if 2 * len(copied) > len(sources):
        return None
    base = _base(pieces, master, beneath)
    if base is None:
        return None
    array = lay_out(base, n_bytes=len(sources) * master.row_bytes, writable=True).reshape(len(sources), -1)
    ours = sources[copied] < 0
    if own is not None:
        _copy(own, ~sources[copied[ours]], array, copied[ours])
        own.let_go()  # or they would be in memory twice
    _copy(master, sources[copied[~ours]], array, copied[~ours])
    return array


def _beneath(sources: NDArray[np.int64], master: Rows) -> NDArray[np.int64]:
    """Return what to map at each block: a block of the master, or zeros, numbered from the master's end on.

    An own block gets what continues the run before it, so that it makes no run of its own. Where blocks are no whole
    pages, each gets the block at its own position: one run.
    """
    at = np.arange(len(sources))
    shared = np.flatnonzero(sources >= 0)
    beneath = at
    if master.row_bytes % mmap.PAGESIZE == 0 and len(shared):
        before = shared[np.maximum(np.searchsorted(shared, at, side="right") - 1, 0)]
        beneath = at + sources[before] - before
    return np.where((beneath >= 0) & (beneath < master.n_rows), beneath, master.n_rows + at)


def _copy(rows: Rows, which: NDArray[np.int64], array: NDArray[np.uint8], positions: NDArray[np.int64]) -> None:
    if len(which) == 0:
        return
    view, step = rows.view(which), max(_GATHERED_BYTES // rows.row_bytes, 1)
    for first in range(0, len(which), step):
        some = slice(first, first + step)
        array[positions[some]] = view[which[some]]
