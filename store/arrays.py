"""zarr arrays cut along their first axis, written and read by plain file calls.

A chunk file is the rows' bytes, padded to the chunk's length, and a crc32c: what zarr's `bytes` and
`crc32c` codecs say. zarr itself never syncs, takes milliseconds for a small array, and reads a missing
chunk as zeros.
"""

import contextlib
import math
import mmap
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tokendance.errors import StoreCorruptError
from tokendance.store import files, layout
from tokendance.store.layout import CHECKSUM_BYTES
from tokendance.store.mapping import NOWHERE, Piece, aligned_empty, lay_out, pages_only
from tokendance.store.place import BlockType

if TYPE_CHECKING:
    from tokendance.store.batch import Batch

__all__ = ["ArrayShape", "DiskRows", "close_all", "metadata_of", "row_bytes_of", "write_array", "write_chunks"]

_ZEROS = np.zeros(1 << 20, np.uint8)


class ArrayShape(NamedTuple):
    """The sizes of an array at rest."""

    n_rows: int
    row_bytes: int
    chunk_rows: int
    ndim: int

    @property
    def n_chunks(self) -> int:
        """How many chunk files hold the rows."""
        return layout.n_chunks(self.n_rows, self.chunk_rows) if self.n_rows else 0

    @property
    def file_bytes(self) -> int:
        """How long every chunk file is."""
        return self.chunk_rows * self.row_bytes + CHECKSUM_BYTES

    def chunk_slice(self, chunk: int) -> slice:
        """Return which rows a chunk holds."""
        return slice(chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.n_rows))


def _checksum(rows: NDArray[np.uint8], padding: int) -> bytes:
    value = google_crc32c.extend(0, rows)
    while padding > 0:
        value = google_crc32c.extend(value, _ZEROS[:padding])
        padding -= _ZEROS.nbytes
    return int(value).to_bytes(CHECKSUM_BYTES, "little")


def write_chunks(
    batch: "Batch",
    folder: int,
    rows: NDArray[np.uint8],
    shape: ArrayShape,
    chunks: range,
    name_of: Callable[[str], str] = str,
) -> None:
    """Write some chunks of an array.

    Parameters
    ----------
    folder : int
        The array's open folder.
    rows : numpy.ndarray
        ``(n, row_bytes)`` uint8, C order: the array's rows from the first row of the first chunk on.
    chunks : range
        Which chunks; their files must not exist.
    name_of : callable
        Gives a chunk's file another name than its key.
    """
    first = chunks.start * shape.chunk_rows
    for chunk in chunks:
        span = shape.chunk_slice(chunk)
        data = rows[span.start - first : span.stop - first].reshape(-1)
        checksum = _checksum(data, shape.file_bytes - CHECKSUM_BYTES - data.nbytes)
        name = name_of(layout.chunk_key(chunk, shape.ndim))
        batch.write(name, folder, (data.data, checksum), pad_at=1, size=shape.file_bytes)


def write_array(
    batch: "Batch", folder: int, rows: NDArray[np.uint8], block_type: BlockType, chunk_rows: int
) -> ArrayShape:
    """Write a new array, its metadata and its chunks, into its own open folder."""
    shape = ArrayShape(rows.shape[0], rows.shape[1], chunk_rows, 1 + len(block_type.block_shape))
    batch.write(layout.METADATA_NAME, folder, (metadata_of(shape, block_type),))
    write_chunks(batch, folder, rows, shape, range(shape.n_chunks))
    return shape


def metadata_of(shape: ArrayShape, block_type: BlockType) -> bytes:
    """Return an array's `zarr.json`."""
    dtype_name, block_shape = block_type
    stored_as = layout.STORED_AS.get(dtype_name, dtype_name)
    return layout.array_document((shape.n_rows, *block_shape), shape.chunk_rows, stored_as, dtype_name)


class DiskRows:
    """Rows of an array at rest on disk, mapped when they are first looked at.

    Parameters
    ----------
    path : str
        The array's folder, from the folder that `parent` returns.
    parent : callable
        Returns an open folder, or raises if the store was closed.
    shape : ArrayShape
    block_type : BlockType
    checksums : bool
        Compare each chunk with its checksum when this process first touches it.
    """

    def __init__(
        self,
        path: str,
        parent: Callable[[], int],
        shape: ArrayShape,
        block_type: BlockType,
        *,
        checksums: bool,
    ) -> None:
        self.path = path
        self.shape = shape
        self.block_type = block_type
        self.checked: set[int] | None = set() if checksums else None
        self.parent = parent
        self._mapped: NDArray[np.uint8] | None = None
        self._missing: dict[int, StoreCorruptError] = {}

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return self.shape.n_rows

    @property
    def row_bytes(self) -> int:
        """How long a row is."""
        return self.shape.row_bytes

    @property
    def stored_bytes(self) -> int:
        """What they take on disk with metadata and checksums, without the padding, which is a hole."""
        metadata = len(metadata_of(self.shape, self.block_type))
        return self.n_rows * self.shape.row_bytes + self.shape.n_chunks * CHECKSUM_BYTES + metadata

    def ensure(self) -> None:
        """Raise if the folder holds far fewer chunks than there are said to be."""
        if self._mapped is None and self.shape.n_chunks > 16:
            folder = files.open_folder_at(self.path, self.parent())
            try:
                n_there = len(os.listdir(folder))
            finally:
                os.close(folder)
            if self.shape.n_chunks > 2 * n_there:
                raise StoreCorruptError(f"{self.path} holds {n_there} files, expected {self.shape.n_chunks} chunks")

    def view(self, needed: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Return ``(n_rows, row_bytes)`` uint8, read-only, mapped; `needed` rows' chunks are checked once a process.

        Chunks that are missing are zeros in it, but no row of theirs can be asked for.
        """
        # No lock: two threads may map or check a chunk at once, and a child forked meanwhile does not wait for ever.
        if self._mapped is None:
            self._mapped, self._missing = self._laid_out()
        mapped = self._mapped
        checked = set(range(self.shape.n_chunks)) if self.checked is None else self.checked
        if self._missing or len(checked) < self.shape.n_chunks:
            everything = range(self.shape.n_chunks)
            for chunk in everything if needed is None else np.unique(needed // self.shape.chunk_rows).tolist():
                if chunk in self._missing:
                    raise self._missing[chunk]
                if chunk not in checked:
                    self.check(chunk)
                    checked.add(chunk)
        return mapped

    def pieces(self) -> list[Piece]:
        """Return all chunk files, opened and of the right size."""
        found: list[Piece] = []
        try:
            for chunk in range(self.shape.n_chunks):
                fd = self.open_chunk(chunk)
                found.append(Piece(fd, 0, self._data_bytes(chunk)))
        except BaseException:
            close_all(found)
            raise
        return found

    def _data_bytes(self, chunk: int) -> int:
        span = self.shape.chunk_slice(chunk)
        n_rows: int = span.stop - span.start
        return n_rows * self.shape.row_bytes

    def open_chunk(self, chunk: int) -> int:
        """Open a chunk file of the right size."""
        path = f"{self.path}/{layout.chunk_key(chunk, self.shape.ndim)}"
        return files.open_file(path, self.parent(), self.shape.file_bytes)

    def check(self, chunk: int) -> None:
        """Compare a chunk with its checksum.

        Raises
        ------
        StoreCorruptError
            They do not match, or the file is missing or not of the right size.
        """
        fd = self.open_chunk(chunk)
        try:
            with mmap.mmap(fd, self.shape.file_bytes, prot=mmap.PROT_READ) as file:
                content = np.frombuffer(file, np.uint8)
                expected = content[-CHECKSUM_BYTES:].tobytes()
                found = int(google_crc32c.value(content[:-CHECKSUM_BYTES])).to_bytes(CHECKSUM_BYTES, "little")
                del content
        finally:
            os.close(fd)
        if found != expected:
            key = layout.chunk_key(chunk, self.shape.ndim)
            raise StoreCorruptError(
                f"{self.path}/{key} does not match its checksum; the store is damaged (restore it from a copy)"
            )

    def _laid_out(self) -> tuple[NDArray[np.uint8], dict[int, StoreCorruptError]]:
        n_bytes = self.n_rows * self.shape.row_bytes
        if n_bytes == 0:
            return np.empty((self.n_rows, self.shape.row_bytes), np.uint8), {}
        self.ensure()
        missing: dict[int, StoreCorruptError] = {}
        pieces: list[Piece] = []
        try:
            for chunk in range(self.shape.n_chunks):
                try:
                    fd = self.open_chunk(chunk)
                except StoreCorruptError as error:
                    fd, missing[chunk] = NOWHERE, error
                pieces.append(Piece(fd, 0, self._data_bytes(chunk)))
            if len(missing) == len(pieces):
                raise missing[0]
            array = _mapped_or_read(pieces, n_bytes)
        finally:
            close_all(pieces)
        return array.reshape(self.n_rows, self.shape.row_bytes), missing


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
        done = 0
        while done < piece.n_bytes and piece.fd != NOWHERE:
            got = os.preadv(piece.fd, [array[at + done : at + piece.n_bytes].data], piece.offset + done)
            if got == 0:
                raise StoreCorruptError(f"a chunk file ended after {done} of {piece.n_bytes} bytes")
            done += got
        at += piece.n_bytes
    array.flags.writeable = False
    return array


def close_all(pieces: list[Piece]) -> None:
    """Close the files of `pieces`."""
    for fd in {piece.fd for piece in pieces} - {NOWHERE}:
        os.close(fd)


def row_bytes_of(block_type: BlockType) -> int:
    """Return how many bytes a block takes."""
    stored_as = layout.STORED_AS.get(block_type.dtype_name, block_type.dtype_name)
    return math.prod(block_type.block_shape) * layout.ITEM_BYTES[stored_as]
