"""The block table: where each of an agent's blocks is, in the master or among its own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokendance.errors import StoreCorruptError
from tokendance.store.place import Own

__all__ = ["BlockTable"]


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """Where each block of a mirror is.

    A block is one of the mirror's own; or, where there is a base map, the master block that it names; or
    the master block at the same position, moved by what the last entry of `tail` at or before it says.

    Attributes
    ----------
    n_blocks : int
        The agent's length.
    own : Own or None
        Its own blocks, their positions and its base map; None if it has neither. Forked agents share it.
    tail : tuple of (int, int)
        ``(start, shift)``: from block `start` on, block `i` is the master's ``i + shift``. Appending shared
        blocks to an agent whose length is not the master's adds one entry, or none.
    """

    n_blocks: int
    own: Own | None = None
    tail: tuple[tuple[int, int], ...] = ()

    @property
    def n_own(self) -> int:
        """How many blocks are its own."""
        return 0 if self.own is None else self.own.rows.n_rows

    def sources(self, n_master: int) -> NDArray[np.int64]:
        """Return where each block is: `i` for block `i` of the master, ``~i`` for block `i` of its own.

        Raises
        ------
        StoreCorruptError
            A position or a base map reaches outside: a kernel would follow it out of the array.
        """
        indices = np.empty(0, np.int64) if self.own is None else self.own.indices
        base = None if self.own is None else self.own.base
        sources = np.arange(self.n_blocks)
        shared = np.ones(self.n_blocks, np.bool_)
        if len(indices) and indices[-1] >= self.n_blocks:
            raise StoreCorruptError(f"a mirror of {self.n_blocks} blocks has one at position {indices[-1]}")
        if base is not None:
            sources[: len(base)] = base
        if self.tail:
            starts, shifts = np.array(self.tail).T
            lengths = np.diff(starts, append=self.n_blocks)
            sources[starts[0] :] = np.arange(starts[0], self.n_blocks) + np.repeat(shifts, lengths)
        shared[indices] = False
        sources[indices] = ~np.arange(len(indices))
        borrowed = sources[shared]
        if len(borrowed) and not 0 <= borrowed.min() <= borrowed.max() < n_master:
            raise StoreCorruptError(f"a mirror refers to a block outside its master's {n_master}")
        return sources

    def extended(self, n_new: int, n_master: int) -> "BlockTable":
        """Return the table of an agent that gets the `n_new` blocks appended to a master of `n_master`."""
        if n_new == 0:
            return self
        shift = self.tail[-1][1] if self.tail else 0
        wanted = n_master - self.n_blocks
        tail = self.tail if shift == wanted else (*self.tail, (self.n_blocks, wanted))
        return BlockTable(self.n_blocks + n_new, self.own, tail)
