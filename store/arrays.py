"""zarr arrays cut along their first axis, read by plain file calls; `tokendance.store.chunks` writes them."""

import contextlib
import functools
import mmap
import os
from collections.abc import Callable

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tokendance.errors import StoreCorruptError
from tokendance.store import files, layout
from tokendance.store.chunks import ArrayRecord, metadata_of, rows_checksum
from tokendance.store.fresh import aligned_empty
from tokendance.store.layout import CHECKSUM_BYTES
from tokendance.store.mapping import NOWHERE, Piece, lay_out, let_go, pages_only
from tokendance.store.place import BlockType

__all__ = ["DiskRows", "close_all"]


class DiskRows:
    """Rows of an array at rest on disk, mapped when they are first looked at.

    Parameters
    ----------
    path : str
        The array's folder, from the folder that `parent` returns.
    parent : callable
        Returns an open folder, or raises if the store was closed.
    record : ArrayRecord
    block_type : BlockType
    checksums : bool
        Compare each chunk's rows with the manifest's checksum when this process first touches it.
    """

    def __init__(
        self,
        path: str,
        parent: Callable[[], int],
        record: ArrayRecord,
        block_type: BlockType,
        *,
        checksums: bool,
    ) -> None:
        self.path = path
        self.record = record
        self.block_type = block_type
        self.checked: set[int] | None = set() if checksums else None
        self.parent = parent
        self._mapped: NDArray[np.uint8] | None = None
        self._missing: dict[int, StoreCorruptError] = {}
        self._ensured = False

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return self.record.n_rows

    @property
    def row_bytes(self) -> int:
        """How long a row is."""
        return self.record.row_bytes

    @property
    def stored_bytes(self) -> int:
        """What they take on disk with metadata and checksums, without the padding, which is a hole."""
        metadata = len(metadata_of(self.record, self.block_type))
        return self.n_rows * self.record.row_bytes + self.record.n_chunks * CHECKSUM_BYTES + metadata

    def ensure(self) -> None:
        """Raise unless half of the chunks are there and of the right size, so that no claim makes anyone allocate."""
        if self._ensured or self.record.n_chunks == 0:
            return
        key = functools.partial(layout.chunk_key, ndim=self.record.ndim)
        folder = files.open_folder_at(self.path, self.parent())
        try:
            n_there = len(os.listdir(folder))
            if self.record.n_chunks > 2 * n_there:
                raise StoreCorruptError(f"{self.path} holds {n_there} files, expected {self.record.n_chunks} chunks")
            sizes = (files.size_of(key(chunk), folder) for chunk in range(self.record.n_chunks))
            wrong = [chunk for chunk, size in enumerate(sizes) if size != self.record.file_bytes]
        finally:
            os.close(folder)
        if 2 * len(wrong) > self.record.n_chunks:
            os.close(self.open_chunk(wrong[0]))  # raises, and says what is wrong
        self._ensured = True

    def view(self, needed: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Return ``(n_rows, row_bytes)`` uint8, read-only, mapped; `needed` rows' chunks are checked once a process.

        Chunks that are missing are zeros in it, but no row of theirs can be asked for.
        """
        # No lock: two threads may map or check a chunk at once, and a child forked meanwhile does not wait for ever.
        if self._mapped is None:
            self._mapped, self._missing = self._laid_out()
        mapped = self._mapped
        checked = set(range(self.record.n_chunks)) if self.checked is None else self.checked
        if self._missing or len(checked) < self.record.n_chunks:
            everything = range(self.record.n_chunks)
            for chunk in everything if needed is None else np.unique(needed // self.record.chunk_rows).tolist():
                if chunk in self._missing:
                    raise self._missing[chunk]
                if chunk not in checked:
                    # What is compared is what is handed out, even if somebody puts another file there meanwhile.
                    if rows_checksum(mapped[self.record.chunk_slice(chunk)]) != self.record.checksum(chunk):
                        raise self._mismatch(chunk)
                    checked.add(chunk)
        return mapped

    def let_go(self) -> None:
        """Give the pages that were looked at back to the page cache."""
        if self._mapped is not None:
            let_go(self._mapped)

    def pieces(self) -> list[Piece]:
        """Return all chunk files, opened and of the right size."""
        found: list[Piece] = []
        try:
            for chunk in range(self.record.n_chunks):
                fd = self.open_chunk(chunk)
                found.append(Piece(fd, 0, self.record.chunk_bytes(chunk)))
        except BaseException:
            close_all(found)
            raise
        return found

    def open_chunk(self, chunk: int) -> int:
        """Open a chunk file of the right size."""
        path = f"{self.path}/{layout.chunk_key(chunk, self.record.ndim)}"
        return files.open_file(path, self.parent(), self.record.file_bytes)

    def check(self, chunk: int) -> None:
        """Compare a chunk's rows with the manifest's checksum, and the whole chunk with its own.

        Raises
        ------
        StoreCorruptError
            They do not match, or the file is missing or not of the right size.
        """
        fd = self.open_chunk(chunk)
        try:
            with mmap.mmap(fd, self.record.file_bytes, prot=mmap.PROT_READ) as file:
                content = np.frombuffer(file, np.uint8)
                rows, padding = np.split(content[:-CHECKSUM_BYTES], [self.record.chunk_bytes(chunk)])
                found = rows_checksum(rows)
                whole = int(google_crc32c.extend(int(found, 16), padding)).to_bytes(CHECKSUM_BYTES, "little")
                right = found == self.record.checksum(chunk) and whole == content[-CHECKSUM_BYTES:].tobytes()
                del content, rows, padding
        finally:
            os.close(fd)
        if not right:
            raise self._mismatch(chunk)

    def copied(self, first: int, room: int) -> NDArray[np.uint8]:
        """Return a copy of the rows from chunk `first` on, with room for more; always compared with the manifest.

        Whoever seals rows anew reads them so: a checksum made of damaged rows would hide the damage for ever.

        Parameters
        ----------
        first : int
        room : int
            How many rows follow, which are not filled.

        Returns
        -------
        numpy.ndarray
            ``(n + room, row_bytes)`` uint8.
        """
        start = first * self.record.chunk_rows
        n_rows = self.n_rows - start + room
        rows = aligned_empty(n_rows * self.row_bytes).reshape(n_rows, self.row_bytes)
        for chunk in range(first, self.record.n_chunks):
            span = self.record.chunk_slice(chunk)
            target = rows[span.start - start : span.stop - start].reshape(-1)
            fd = self.open_chunk(chunk)
            try:
                _fill(target, Piece(fd, 0, target.nbytes))
            finally:
                os.close(fd)
            if rows_checksum(target) != self.record.checksum(chunk):
                raise self._mismatch(chunk)
        return rows

    def _mismatch(self, chunk: int) -> StoreCorruptError:
        key = layout.chunk_key(chunk, self.record.ndim)
        return StoreCorruptError(
            f"{self.path}/{key} does not match its checksum; the store is damaged (restore it from a copy)"
        )

    def _laid_out(self) -> tuple[NDArray[np.uint8], dict[int, StoreCorruptError]]:
        n_bytes = self.n_rows * self.record.row_bytes
        if n_bytes == 0:
            return np.empty((self.n_rows, self.record.row_bytes), np.uint8), {}
        self.ensure()
        missing: dict[int, StoreCorruptError] = {}
        pieces: list[Piece] = []
        try:
            for chunk in range(self.record.n_chunks):
                try:
                    fd = self.open_chunk(chunk)
                except StoreCorruptError as error:
                    fd, missing[chunk] = NOWHERE, error
                pieces.append(Piece(fd, 0, self.record.chunk_bytes(chunk)))
            if len(missing) == len(pieces):
                raise missing[0]
            array = _mapped_or_read(pieces, n_bytes)
        finally:
            close_all(pieces)
        return array.reshape(self.n_rows, self.record.row_bytes), missing


def _mapped_or_read(pieces: list[Piece], n_bytes: int) -> NDArray[np.uint8]:
    if pages_only(pieces):
        with contextlib.suppress(OSError):  # too many maps
            return lay_out(pieces, n_bytes=n_bytes, writable=False)
    return _read(pieces, n_bytes)


def _read(pieces: list[Piece], n_bytes: int) -> NDArray[np.uint8]:
    array = aligned_empty(n_bytes)
    if any(piece.fd == NOWHERE for piece in pieces):
        array[:] = 0
    at = 0
    for piece in pieces:
        if piece.fd != NOWHERE:
            _fill(array[at : at + piece.n_bytes], piece)
        at += piece.n_bytes
    array.flags.writeable = False
    return array


def _fill(array: NDArray[np.uint8], piece: Piece) -> None:
    done = 0
    while done < piece.n_bytes:
        got = os.preadv(piece.fd, [array[done:].data], piece.offset + done)
        if got == 0:
            raise StoreCorruptError(f"a chunk file ended after {done} of {piece.n_bytes} bytes")
        done += got


def close_all(pieces: list[Piece]) -> None:
    """Close the files of `pieces`."""
    for fd in {piece.fd for piece in pieces} - {NOWHERE}:
        os.close(fd)
