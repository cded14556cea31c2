"""Blocks in this process's memory, and in a memory file once somebody wants to map them."""

import contextlib
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokendance.store.fresh import aligned_empty
from tokendance.store.mapping import NO_RESERVE, Piece, read_only
from tokendance.store.place import BlockType, Own, Rows

__all__ = ["MemoryOwn", "MemoryPlace", "MemoryRows"]

# Room after a master for what will be appended: address space only, since pages that nobody touched take no memory.
# Past it the master is copied once into a range four times as long, so that appending stays O(new blocks).
_ROOM = 4
_LEAST_ROOM_BYTES = 64 << 20
# Mirrors' blocks share memory files of this size: a file each would run into the limit on open files.
_SHARED_FILE_BYTES = 64 << 20

_moving = threading.RLock()


def _after_fork() -> None:
    with contextlib.suppress(RuntimeError):  # this module was imported while the fork waited for that
        _moving.release()


if hasattr(os, "register_at_fork"):
    # No child inherits memory that is half moved into a file, or a lock that nobody in it would release.
    os.register_at_fork(before=_moving.acquire, after_in_parent=_after_fork, after_in_child=_after_fork)


class _MemoryFile:
    """An anonymous file, mapped shared; it lives as long as somebody refers to it, in any process."""

    def __init__(self, n_bytes: int) -> None:
        self.fd = os.memfd_create("tokendance", os.MFD_CLOEXEC)
        self.pid = os.getpid()
        self.taken_bytes = 0
        os.ftruncate(self.fd, n_bytes)
        self.bytes = np.frombuffer(mmap.mmap(self.fd, n_bytes), np.uint8)

    def take(self, n_bytes: int) -> int | None:
        """Return the offset of `n_bytes` that nobody has, None if there are no more."""
        offset = -(-self.taken_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if self.pid != os.getpid() or offset + n_bytes > self.bytes.nbytes:
            return None
        self.taken_bytes = offset + n_bytes
        return offset

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # `os` itself may be gone when Python ends.
        if hasattr(self, "fd"):
            close(self.fd)


_shared_file: _MemoryFile | None = None


class _Home:
    """A range of memory: private to this process until it is mapped for the first time, then in a file.

    Filling a file takes four times as long as filling private memory (227 ms and 55 ms for 256 MiB), so that
    caches that nobody maps stay where they are.
    """

    __slots__ = ("bytes", "file", "grows", "offset", "used_bytes")

    def __init__(self, memory: NDArray[np.uint8], *, grows: bool) -> None:
        self.bytes = memory
        self.used_bytes = 0 if grows else memory.nbytes
        self.grows = grows
        self.file: _MemoryFile | None = None
        self.offset = 0

    def piece(self, n_bytes: int) -> Piece | None:
        """Return where the first `n_bytes` stand in a file, opened; None where there are no memory files."""
        if not hasattr(os, "memfd_create") or n_bytes == 0:
            return None
        with _moving:
            if self.file is None:
                try:
                    self._move()
                except OSError:  # no more files may be opened
                    return None
            assert self.file is not None
            return Piece(os.dup(self.file.fd), self.offset, n_bytes)

    def _move(self) -> None:
        global _shared_file
        if self.grows or self.bytes.nbytes > _SHARED_FILE_BYTES:
            file, offset = _MemoryFile(self.bytes.nbytes), 0
        else:
            found = None if _shared_file is None else _shared_file.take(self.bytes.nbytes)
            if _shared_file is None or found is None:
                _shared_file = _MemoryFile(_SHARED_FILE_BYTES)
                found = _shared_file.take(self.bytes.nbytes)
            assert found is not None
            file, offset = _shared_file, found
        moved = file.bytes[offset : offset + self.bytes.nbytes]
        moved[: self.used_bytes] = self.bytes[: self.used_bytes]
        self.bytes, self.file, self.offset = moved, file, offset

    def has_room(self, used_bytes: int, more_bytes: int) -> bool:
        """Say whether bytes can be written after the first `used_bytes` without anybody seeing it."""
        if used_bytes != self.used_bytes or used_bytes + more_bytes > self.bytes.nbytes:
            return False  # a change that was given up wrote here, and somebody may have mapped it
        return self.file is None or self.file.pid == os.getpid()


def _growing(n_bytes: int) -> _Home:
    wanted = max(n_bytes * _ROOM, _LEAST_ROOM_BYTES)
    if NO_RESERVE:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        with contextlib.suppress(OSError, ValueError):  # a limit on address space
            region = mmap.mmap(-1, wanted, flags=flags)
            with contextlib.suppress(OSError):  # a kernel built without huge pages
                region.madvise(mmap.MADV_HUGEPAGE)
            return _Home(np.frombuffer(region, np.uint8), grows=True)
    return _Home(aligned_empty(n_bytes), grows=True)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class MemoryRows:
    """The first `n_rows` rows of a range of memory."""

    home: _Home
    n_rows: int
    row_bytes: int

    @property
    def stored_bytes(self) -> int:
        """What the rows take."""
        return self.n_rows * self.row_bytes

    def ensure(self) -> None:
        """Do nothing: these rows are there."""

    def view(self, needed: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Return ``(n_rows, row_bytes)`` uint8, read-only; nothing is copied."""
        return read_only(self.home.bytes[: self.stored_bytes].reshape(self.n_rows, self.row_bytes))

    def let_go(self) -> None:
        """Do nothing: these rows are nowhere else."""

    def pieces(self) -> list[Piece] | None:
        """Return where the rows stand in a memory file, into which they move when this is first asked."""
        piece = self.home.piece(self.stored_bytes)
        return None if piece is None else [piece]


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
        return _appended(_growing(blocks.nbytes), 0, blocks)

    def revise_master(self, old: Rows, blocks: NDArray[np.uint8], changed: NDArray[np.bool_]) -> MemoryRows:
        """Copy the blocks: in memory a copy is as cheap as sharing pages with the old ones."""
        return _appended(_growing(blocks.nbytes), 0, blocks)

    def append_master(self, old: Rows, blocks: NDArray[np.uint8]) -> MemoryRows:
        """Write the blocks after the old ones, where handles that are older do not look."""
        assert isinstance(old, MemoryRows)
        with _moving:
            home = old.home
            if not home.has_room(old.stored_bytes, blocks.nbytes):
                home = _growing(old.stored_bytes + blocks.nbytes)
                _appended(home, 0, old.view())
            return _appended(home, old.n_rows, blocks)

    def put_own(
        self,
        indices: NDArray[np.int64],
        blocks: NDArray[np.uint8],
        base: NDArray[np.int64] | None,
        block_type: BlockType,
        *,
        like: Own | None = None,
    ) -> Own:
        """Keep a mirror's own blocks, all of them: in memory a copy is as cheap as sharing."""
        rows = MemoryRows(_Home(blocks.reshape(-1), grows=False), *blocks.shape)
        return MemoryOwn(_frozen(indices), None if base is None else _frozen(base), rows)

    def abandon(self) -> None:
        """Do nothing: what no handle refers to is freed."""


def _appended(home: _Home, first: int, blocks: NDArray[np.uint8]) -> MemoryRows:
    n, row_bytes = blocks.shape
    end = (first + n) * row_bytes
    home.bytes[first * row_bytes : end].reshape(blocks.shape)[:] = blocks
    home.used_bytes = end
    return MemoryRows(home, first + n, row_bytes)


def _frozen(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    copy = positions.copy()
    copy.flags.writeable = False
    return copy
