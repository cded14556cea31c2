"""What a place for blocks is: the small protocol that memory and disk both keep.

A place holds rows of bytes, a block a row, and hands out handles to them. A handle never changes:
appending gives a new handle, and the old one still reads its own rows.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tokendance.store.mapping import Piece

__all__ = ["BlockType", "Own", "Place", "Rows"]


class BlockType(NamedTuple):
    """What a block is: its dtype's name, and its shape."""

    dtype_name: str
    block_shape: tuple[int, ...]


class Rows(Protocol):
    """Rows of blocks at rest."""

    @property
    def n_rows(self) -> int:
        """How many rows there are."""

    @property
    def row_bytes(self) -> int:
        """How long a row is."""

    @property
    def stored_bytes(self) -> int:
        """What they take at rest, checksums included."""

    def ensure(self) -> None:
        """Raise if there cannot be as many rows as there are said to be, before anything is made for so many."""

    def view(self, needed: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Return ``(n_rows, row_bytes)`` uint8, read-only and C order, without copying where that can be.

        `needed` (rows, any order) limits what is checked; the other rows must then not be read. None means all.
        """

    def let_go(self) -> None:
        """Give back the memory that looking at rows in files took; they can be looked at again."""

    def pieces(self) -> list[Piece] | None:
        """Return where all rows stand in files, in order, None where they are in no file.

        Sizes are checked, contents are not. The files are open; whoever asked closes them.
        """


class Own(Protocol):
    """A mirror's own blocks."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """Sorted positions of the blocks, ``(n_own,)`` int64."""

    @property
    def base(self) -> NDArray[np.int64] | None:
        """Which master block each block is, -1 for none, or None where every block sits at its own position."""

    @property
    def rows(self) -> Rows:
        """The blocks themselves, in the order of `indices`."""

    @property
    def stored_bytes(self) -> int:
        """What they take at rest: indices, base, blocks and checksums."""


class Place(Protocol):
    """Where blocks live."""

    def put_master(self, blocks: NDArray[np.uint8], block_type: BlockType) -> Rows:
        """Keep a copy of ``(n, row_bytes)`` blocks."""

    def revise_master(self, old: Rows, blocks: NDArray[np.uint8], changed: NDArray[np.bool_]) -> Rows:
        """Keep a copy of `blocks`, of which row `i` equals row `i` of `old` where ``changed[i]`` is False.

        `changed` is as long as the shorter of the two; rows past it are new.
        """

    def append_master(self, old: Rows, blocks: NDArray[np.uint8]) -> Rows:
        """Return the rows of `old` with `blocks` after them; costs the new blocks, not the old ones."""

    def put_own(
        self,
        indices: NDArray[np.int64],
        blocks: NDArray[np.uint8],
        base: NDArray[np.int64] | None,
        block_type: BlockType,
        *,
        like: Own | None = None,
    ) -> Own:
        """Keep a mirror's own blocks, their sorted positions, and its base map if it has one.

        `blocks` are given away: whoever calls never writes to them again. What they share with the beginning of `like`,
        the blocks that the agent had before, need not be kept twice.
        """

    def abandon(self) -> None:
        """Forget what was put since the last commit."""
