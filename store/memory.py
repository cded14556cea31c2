"""Blocks in this process's memory."""

import contextlib
import mmap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokendance.store.mapping import Piece, aligned_empty, read_only
from tokendance.store.place import BlockType, Own, Rows

__all__ = ["MemoryOwn", "MemoryPlace", "MemoryRows"]

# Room after a master for what will be appended: address space only, since pages that nobody touched take no memory.
# Past it the master is copied once into a range four times as long, so that appending stays O(new blocks).
_ROOM = 4
_LEAST_ROOM_BYTES = 64 << 20


def _reserved(n_bytes: int) -> NDArray[np.uint8]:
    wanted = max(n_bytes * _ROOM, _LEAST_ROOM_BYTES)
    if hasattr(mmap, "MAP_NORESERVE"):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_NORESERVE
        with contextlib.suppress(OSError, ValueError):  # a limit on address space
            region = mmap.mmap(-1, wanted, flags=flags)
            with contextlib.suppress(OSError):  # a kernel built without huge pages
                region.madvise(mmap.MADV_HUGEPAGE)
            return np.frombuffer(region, np.uint8)
    return aligned_empty(n_bytes)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class MemoryRows:
    """The first `n_rows` rows of a range of memory."""

    buffer: NDArray[np.uint8]
    n_rows: int
    row_bytes: int

    @property
    def stored_bytes(self) -> int:
        """What the rows take."""
        return self.n_rows * self.row_bytes

    def view(self, needed: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Return ``(n_rows, row_bytes)`` uint8, read-only; nothing is copied."""
        return read_only(self.buffer[: self.stored_bytes].reshape(self.n_rows, self.row_bytes))

    def pieces(self) -> list[Piece] | None:
        """Return None: these rows are in no file."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class MemoryOwn:
    """A mirror's own blocks in memory."""

    indices: NDArray[np.int64]
    base: NDArray[np.int64] | None
    rows: MemoryRows

    @property
    def stored_bytes(self) -> int:
        """What indices, base and blocks take."""
        base_bytes = 0 if self.base is None else self.base.nbytes
        return self.indices.nbytes + base_bytes + self.rows.stored_bytes


class MemoryPlace:
    """Blocks in this process's memory; `tokendance.store.place.Place` says what each method does."""

    def put_master(self, blocks: NDArray[np.uint8], block_type: BlockType) -> MemoryRows:
        """Copy the blocks into a range with room to append."""
        return _filled(_reserved(blocks.nbytes), 0, blocks)

    def revise_master(self, old: Rows, blocks: NDArray[np.uint8], changed: NDArray[np.bool_]) -> MemoryRows:
        """Copy the blocks: in memory a copy is as cheap as sharing pages with the old ones."""
        return _filled(_reserved(blocks.nbytes), 0, blocks)

    def append_master(self, old: Rows, blocks: NDArray[np.uint8]) -> MemoryRows:
        """Write the blocks after the old ones, where handles that are older do not look."""
        assert isinstance(old, MemoryRows)
        buffer = old.buffer
        if old.stored_bytes + blocks.nbytes > buffer.nbytes:
            buffer = _reserved(old.stored_bytes + blocks.nbytes)
            buffer[: old.stored_bytes] = old.buffer[: old.stored_bytes]
        return _filled(buffer, old.n_rows, blocks)

    def put_own(
        self,
        indices: NDArray[np.int64],
        blocks: NDArray[np.uint8],
        base: NDArray[np.int64] | None,
        block_type: BlockType,
    ) -> Own:
        """Keep a mirror's own blocks."""
        rows = MemoryRows(blocks.reshape(-1), *blocks.shape)
        return MemoryOwn(_frozen(indices), None if base is None else _frozen(base), rows)

    def abandon(self) -> None:
        """Do nothing: what no handle refers to is freed."""


def _filled(buffer: NDArray[np.uint8], first: int, blocks: NDArray[np.uint8]) -> MemoryRows:
    n, row_bytes = blocks.shape
    buffer[first * row_bytes : (first + n) * row_bytes].reshape(blocks.shape)[:] = blocks
    return MemoryRows(buffer, first + n, row_bytes)


def _frozen(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    copy = positions.copy()
    copy.flags.writeable = False
    return copy
