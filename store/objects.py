"""Handles to what a manifest names: a master's array, and a mirror's group of arrays."""

import json
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokendance.errors import StoreCorruptError
from tokendance.store import files, layout
from tokendance.store.arrays import DiskRows
from tokendance.store.chunks import ArrayRecord, row_bytes_of
from tokendance.store.folders import Folders
from tokendance.store.layout import MASTERS, METADATA_NAME, MIRRORS
from tokendance.store.manifest import MasterEntry, MirrorEntry
from tokendance.store.place import BlockType

__all__ = ["POSITIONS", "DiskMaster", "DiskOwn", "OwnRecords", "master_at", "own_at", "own_of"]

POSITIONS = BlockType("int64", ())


class OwnRecords(NamedTuple):
    """What a manifest says of the arrays in a mirror's folder."""

    indices: ArrayRecord
    values: ArrayRecord
    base: ArrayRecord | None


class DiskMaster(DiskRows):
    """A master's rows, and the number of their folder."""

    def __init__(
        self, folders: Folders, number: int, record: ArrayRecord, block_type: BlockType, *, checksums: bool
    ) -> None:
        super().__init__(f"{MASTERS}/{number}", folders.fd, record, block_type, checksums=checksums)
        self.number = number
        folders.hold(MASTERS, number, self)

    def rows_on_disk(self) -> int:
        """Return how many rows the array's metadata tells of: more than `n_rows` if somebody appended meanwhile."""
        content = files.read_file(f"{self.path}/{METADATA_NAME}", self.parent(), most=1 << 20)
        try:
            return int(json.loads(content)["shape"][0])
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return -1  # damaged, so that nothing is known: never the rows that anybody has

    def grows_in_place(self) -> bool:
        """Say whether further chunks of this length make sense: not tiny files, and whole pages."""
        if self.record.chunk_rows % layout.page_rows(self.row_bytes):
            return False
        return self.record.chunk_rows * self.row_bytes >= layout.SMALL_CHUNK_BYTES


class DiskOwn:
    """A mirror's own blocks on disk; positions are read, and always checked, when they are first asked for."""

    def __init__(self, number: int, index_rows: DiskRows, rows: DiskRows, base_rows: DiskRows | None) -> None:
        self.number = number
        self.index_rows = index_rows
        self.rows = rows
        self.base_rows = base_rows
        self._indices: NDArray[np.int64] | None = None
        self._base: NDArray[np.int64] | None = None

    def arrays(self) -> list[DiskRows]:
        """Return the arrays that it is made of."""
        return [self.index_rows, self.rows, *([] if self.base_rows is None else [self.base_rows])]

    @property
    def stored_bytes(self) -> int:
        """What they take on disk."""
        base_bytes = 0 if self.base_rows is None else self.base_rows.stored_bytes
        return len(layout.group_document()) + self.index_rows.stored_bytes + self.rows.stored_bytes + base_bytes

    @property
    def indices(self) -> NDArray[np.int64]:
        """Sorted positions, ``(n_own,)`` int64.

        Raises
        ------
        StoreCorruptError
            They are damaged, negative, or not in order: a kernel would follow them out of the array.
        """
        if self._indices is None:
            found = _positions(self.index_rows)
            if len(found) and (found[0] < 0 or np.any(found[1:] <= found[:-1])):
                raise StoreCorruptError(f"{self.index_rows.path}: positions must go upwards from 0")
            self._indices = found
        return self._indices

    @property
    def base(self) -> NDArray[np.int64] | None:
        """The base map, ``(n_base,)`` int64, or None."""
        if self.base_rows is not None and self._base is None:
            found = _positions(self.base_rows)
            if np.any(found < -1):
                raise StoreCorruptError(f"{self.base_rows.path}: a base map holds -1 and upwards")
            self._base = found
        return self._base


def _positions(rows: DiskRows) -> NDArray[np.int64]:
    # Read whole and checked even where checksums are off: these few bytes steer every copy.
    always = DiskRows(rows.path, rows.parent, rows.record, rows.block_type, checksums=True)
    found = np.array(always.view()).reshape(-1).view(np.int64)
    found.flags.writeable = False
    return found


def master_at(folders: Folders, entry: MasterEntry, block_type: BlockType, *, checksums: bool) -> DiskMaster:
    """Return the handle of a manifest's master; nothing is read."""
    ndim = 1 + len(block_type.block_shape)
    record = ArrayRecord(entry.n_blocks, row_bytes_of(block_type), entry.chunk_blocks, ndim, entry.checksums)
    return DiskMaster(folders, entry.object, record, block_type, checksums=checksums)


def own_of(folders: Folders, entry: MirrorEntry, block_type: BlockType, *, checksums: bool) -> DiskOwn | None:
    """Return the handle of a manifest's mirror, None where it has nothing of its own; nothing is read."""
    if entry.object is None:
        return None
    ndim = 1 + len(block_type.block_shape)
    indices = ArrayRecord(entry.n_own, 8, entry.index_chunk, 1, "")
    values = ArrayRecord(entry.n_own, row_bytes_of(block_type), entry.chunk_blocks, ndim, "")
    base = ArrayRecord(entry.n_base, 8, entry.base_chunk, 1, "")
    first, second = 8 * indices.n_chunks, 8 * (indices.n_chunks + values.n_chunks)
    records = OwnRecords(
        indices._replace(checksums=entry.checksums[:first]),
        values._replace(checksums=entry.checksums[first:second]),
        base._replace(checksums=entry.checksums[second:]) if entry.n_base else None,
    )
    return own_at(folders, entry.object, block_type, records, checksums=checksums)


def own_at(folders: Folders, number: int, block_type: BlockType, records: OwnRecords, *, checksums: bool) -> DiskOwn:
    """Return the handle of the blocks in `mirrors/<number>`."""

    def rows(name: str, record: ArrayRecord, kind: BlockType) -> DiskRows:
        return DiskRows(f"{MIRRORS}/{number}/{name}", folders.fd, record, kind, checksums=checksums)

    base_rows = None if records.base is None else rows("base", records.base, POSITIONS)
    values = rows("values", records.values, block_type)
    own = DiskOwn(number, rows("indices", records.indices, POSITIONS), values, base_rows)
    folders.hold(MIRRORS, number, own)
    return own
