"""Blocks in a store on disk: every object is written once, under a number that is never used again."""

import contextlib
import os
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from tokendance.store import files, layout
from tokendance.store.arrays import DiskRows
from tokendance.store.batch import Batch
from tokendance.store.chunks import ArrayRecord, metadata_of, rows_checksum, write_array, write_chunks
from tokendance.store.folders import Folders
from tokendance.store.layout import MASTERS, MIRRORS
from tokendance.store.objects import POSITIONS, DiskMaster, DiskOwn, OwnRecords, own_at
from tokendance.store.place import BlockType, Own, Rows

__all__ = ["DiskPlace"]


class DiskPlace:
    """Blocks in a store on disk; `tokendance.store.place.Place` says what each method does.

    Parameters
    ----------
    folders : Folders
    next_object : int
        The first number that no object of any generation has had.
    checksums : bool
        Compare each chunk with its checksum when this process first touches it.
    """

    def __init__(self, folders: Folders, next_object: int, *, checksums: bool) -> None:
        self.folders = folders
        self.next_object = next_object
        self.checksums = checksums
        self._pid = os.getpid()
        self._batch = Batch()
        self._new: list[tuple[str, int]] = []

    def _new_object(self, group: str) -> tuple[int, int]:
        """Make the next object's folder; numbers that a crashed writer left behind are passed over."""
        self._batch.finished_object()
        while True:
            number = self.next_object
            self.next_object += 1
            try:
                folder = self._batch.make_folder(str(number), self.folders.fd(group))
            except FileExistsError:
                continue
            self._new.append((group, number))
            return number, folder

    def put_master(self, blocks: NDArray[np.uint8], block_type: BlockType) -> DiskMaster:
        """Write the blocks as a new array."""
        return self._new_master(blocks, block_type, layout.chunk_rows_for(*blocks.shape))

    def _new_master(self, blocks: NDArray[np.uint8], block_type: BlockType, chunk_rows: int) -> DiskMaster:
        number, folder = self._new_object(MASTERS)
        try:
            record = write_array(self._batch, folder, blocks, block_type, chunk_rows)
        finally:
            os.close(folder)
        return DiskMaster(self.folders, number, record, block_type, checksums=self.checksums)

    def revise_master(self, old: Rows, blocks: NDArray[np.uint8], changed: NDArray[np.bool_]) -> DiskMaster:
        """Write the chunks that changed; the others are the old files under a second name."""
        assert isinstance(old, DiskMaster)
        if not old.grows_in_place():
            return self.put_master(blocks, old.block_type)
        number, folder = self._new_object(MASTERS)
        try:
            record = self._revised(folder, old, blocks, lambda span: not changed[span].any(), len(changed))
        finally:
            os.close(folder)
        return DiskMaster(self.folders, number, record, old.block_type, checksums=self.checksums)

    def _revised(
        self, folder: int, old: DiskRows, blocks: NDArray[np.uint8], same: Callable[[slice], bool], compared: int
    ) -> ArrayRecord:
        """Write an array whose whole chunks that are the `same` as the old one's are the old one's files."""
        record = old.record._replace(n_rows=blocks.shape[0])
        source = files.open_folder_at(old.path, self.folders.fd())
        checksums: list[str] = []
        try:
            self._batch.write(layout.METADATA_NAME, folder, (metadata_of(record, old.block_type),))
            for chunk in range(record.n_chunks):
                span, key = record.chunk_slice(chunk), layout.chunk_key(chunk, record.ndim)
                if span.stop <= min(old.n_rows, compared) and same(span):
                    files.link(key, source, key, folder)
                    checksums.append(_linked_checksum(old, chunk, blocks[span]))
                else:
                    checksums.append(write_chunks(self._batch, folder, blocks[span], record, range(chunk, chunk + 1)))
        finally:
            os.close(source)
        return record._replace(checksums="".join(checksums))

    def append_master(self, old: Rows, blocks: NDArray[np.uint8]) -> DiskMaster:
        """Write the new blocks, and the one chunk that they begin in, beside the old chunks."""
        assert isinstance(old, DiskMaster)
        total = old.n_rows + blocks.shape[0]
        in_chunks = total <= old.record.chunk_rows or old.grows_in_place()
        # A newer generation has more rows, or a change that was given up has.
        in_place = in_chunks and old.rows_on_disk() == old.n_rows
        first = old.n_rows // old.record.chunk_rows if in_place else 0
        rows = old.copied(first, len(blocks))
        rows[len(rows) - len(blocks) :] = blocks
        if in_place:
            return self._grown(old, rows, first)
        if in_chunks:
            return self.revise_master(old, rows, np.zeros(old.n_rows, np.bool_))
        step = layout.page_rows(old.row_bytes)
        room = layout.chunk_rows_for(-(-2 * total // step) * step, old.row_bytes)
        return self._new_master(rows, old.block_type, room)

    def _grown(self, old: DiskMaster, rows: NDArray[np.uint8], first: int) -> DiskMaster:
        record = old.record._replace(n_rows=first * old.record.chunk_rows + len(rows))
        chunks = range(first, record.n_chunks)
        kept = old.record.checksums[: 8 * first]
        record = record._replace(checksums=kept + self._replace_chunks(old, record, rows, chunks))
        grown = DiskMaster(self.folders, old.number, record, old.block_type, checksums=self.checksums)
        if grown.checked is not None and old.checked is not None:
            grown.checked |= old.checked - {first}
        return grown

    def _replace_chunks(self, old: DiskMaster, record: ArrayRecord, rows: NDArray[np.uint8], chunks: range) -> str:
        # Made durable before they are renamed: until the commit the old generation reads them in place of its own.
        batch = Batch()
        folder = files.open_folder(str(old.number), self.folders.fd(MASTERS))
        names = [layout.METADATA_NAME, *(layout.chunk_key(chunk, record.ndim) for chunk in chunks)]
        try:
            for name in names:
                files.remove_if_there(_beside(name), folder)
            batch.write(_beside(layout.METADATA_NAME), folder, (metadata_of(record, old.block_type),))
            checksums = write_chunks(batch, folder, rows, record, chunks, name_of=_beside)
            batch.sync()
            for name in names:
                files.rename(_beside(name), name, folder)
            self._batch.sync_later(folder)
            self._batch.written_bytes += batch.written_bytes
        finally:
            batch.drop()
            os.close(folder)
        return checksums

    def put_own(
        self,
        indices: NDArray[np.int64],
        blocks: NDArray[np.uint8],
        base: NDArray[np.int64] | None,
        block_type: BlockType,
        *,
        like: Own | None = None,
    ) -> DiskOwn:
        """Write a mirror's blocks and positions as a group of arrays; whole chunks that `like` has are its files."""
        number, folder = self._new_object(MIRRORS)
        try:
            self._batch.write_alike(layout.METADATA_NAME, folder, layout.group_document())
            records = OwnRecords(
                self._member(folder, "indices", _as_bytes(indices), POSITIONS),
                self._values(folder, blocks, block_type, like),
                None if base is None else self._member(folder, "base", _as_bytes(base), POSITIONS),
            )
        finally:
            os.close(folder)
        return own_at(self.folders, number, block_type, records, checksums=self.checksums)

    def _values(self, group: int, blocks: NDArray[np.uint8], block_type: BlockType, like: Own | None) -> ArrayRecord:
        chunk_rows = layout.chunk_rows_for(blocks.shape[0], blocks.shape[1], layout.SMALL_CHUNK_BYTES)
        if not isinstance(like, DiskOwn) or len(blocks) <= like.rows.record.chunk_rows or like.rows.record.n_chunks < 2:
            return self._member(group, "values", blocks, block_type, chunk_rows)
        old, view = like.rows, like.rows.view()
        folder = self._batch.make_folder("values", group)
        try:
            return self._revised(folder, old, blocks, lambda span: np.array_equal(view[span], blocks[span]), old.n_rows)
        finally:
            os.close(folder)

    def _member(
        self, group: int, name: str, rows: NDArray[np.uint8], block_type: BlockType, chunk_rows: int | None = None
    ) -> ArrayRecord:
        folder = self._batch.make_folder(name, group)
        try:
            return write_array(self._batch, folder, rows, block_type, chunk_rows or layout.chunk_rows_for(*rows.shape))
        finally:
            os.close(folder)

    def make_durable(self, referenced: set[tuple[str, int]]) -> int:
        """Put what was written since the last commit on the disk, and return how many bytes of files that was.

        What no generation will refer to, because a later step of the same transaction replaced it, is removed.
        From here on `abandon` leaves these objects alone: a manifest may name them.
        """
        new, self._new = self._new, []
        for group in {group for group, _ in new}:
            self._batch.sync_later(self.folders.fd(group))
        try:
            self._batch.sync()
        except BaseException:
            self.discard(new)
            raise
        self.discard([one for one in new if one not in referenced])
        written, self._batch = self._batch.written_bytes, Batch()
        return written

    def discard(self, objects: Iterable[tuple[str, int]]) -> None:
        """Remove objects that no manifest names, as far as the disk lets us; `gc` finds what stays."""
        if os.getpid() != self._pid:  # a forked child leaves what its parent wrote alone
            return
        for group, number in objects:
            with contextlib.suppress(OSError):
                files.remove_folder(str(number), self.folders.fd(group))

    def abandon(self) -> None:
        """Remove what was put since the last commit, as far as the disk lets us; `gc` finds what stays."""
        self._batch.drop()
        new, self._batch, self._new = self._new, Batch(), []
        self.discard(new)


def _linked_checksum(old: DiskRows, chunk: int, rows: NDArray[np.uint8]) -> str:
    if old.record.chunk_bytes(chunk) == rows.nbytes:
        return old.record.checksum(chunk)
    old.check(chunk)  # the array ends earlier in this chunk than the old one: a new checksum of the same rows
    return rows_checksum(rows)


def _beside(name: str) -> str:
    return f".{name}.new"


def _as_bytes(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(positions).reshape(-1, 1).view(np.uint8)
