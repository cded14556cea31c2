"""Chunks of an array as they are written: its rows, padding, and a crc32c, which the manifest repeats for the rows.

A chunk file is the rows' bytes, padded to the chunk's length, and a crc32c: what zarr's `bytes` and
`crc32c` codecs say. zarr itself never syncs, takes milliseconds for a small array, and reads a missing
chunk as zeros.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tokendance.store import layout
from tokendance.store.layout import CHECKSUM_BYTES
from tokendance.store.place import BlockType

if TYPE_CHECKING:
    from tokendance.store.batch import Batch

__all__ = ["ArrayRecord", "metadata_of", "row_bytes_of", "rows_checksum", "write_array", "write_chunks"]

_ZEROS = np.zeros(1 << 20, np.uint8)
_DIGITS = 2 * CHECKSUM_BYTES


class ArrayRecord(NamedTuple):
    """What a manifest says of an array at rest: its sizes, and its chunks' checksums.

    Attributes
    ----------
    n_rows, row_bytes, chunk_rows, ndim : int
    checksums : str
        The crc32c of the rows in each chunk, padding left out, 8 hexadecimal digits each. An append replaces a chunk by
        one with more rows, so a checksum of the rows alone stays right for those who see the fewer ones.
    """

    n_rows: int
    row_bytes: int
    chunk_rows: int
    ndim: int
    checksums: str

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

    def chunk_bytes(self, chunk: int) -> int:
        """Return how many bytes of a chunk are rows, padding left out."""
        span = self.chunk_slice(chunk)
        n_rows: int = span.stop - span.start
        return n_rows * self.row_bytes

    def checksum(self, chunk: int) -> str:
        """Return the checksum of a chunk's rows."""
        return self.checksums[chunk * _DIGITS : (chunk + 1) * _DIGITS]


def rows_checksum(rows: NDArray[np.uint8]) -> str:
    """Return the crc32c of contiguous rows as a manifest has it.

    Examples
    --------
    >>> rows_checksum(np.frombuffer(b"123456789", np.uint8))
    'e3069283'
    """
    return f"{google_crc32c.value(rows.reshape(-1)):08x}"


def _padded(value: int, padding: int) -> bytes:
    """Return a chunk's last bytes: the checksum of its rows, carried on over the padding."""
    while padding > 0:
        value = google_crc32c.extend(value, _ZEROS[:padding])
        padding -= _ZEROS.nbytes
    return int(value).to_bytes(CHECKSUM_BYTES, "little")


def write_chunks(
    batch: "Batch",
    folder: int,
    rows: NDArray[np.uint8],
    record: ArrayRecord,
    chunks: range,
    name_of: Callable[[str], str] = str,
) -> str:
    """Write some chunks of an array, and return their checksums.

    Parameters
    ----------
    folder : int
        The array's open folder.
    rows : numpy.ndarray
        ``(n, row_bytes)`` uint8, C order: the array's rows from the first row of the first chunk on.
    record : ArrayRecord
        Its checksums are not looked at.
    chunks : range
        Which chunks; their files must not exist.
    name_of : callable
        Gives a chunk's file another name than its key.
    """
    first = chunks.start * record.chunk_rows
    checksums: list[str] = []
    for chunk in chunks:
        span = record.chunk_slice(chunk)
        data = rows[span.start - first : span.stop - first].reshape(-1)
        checksums.append(rows_checksum(data))
        trailer = _padded(int(checksums[-1], 16), record.file_bytes - CHECKSUM_BYTES - data.nbytes)
        name = name_of(layout.chunk_key(chunk, record.ndim))
        batch.write(name, folder, (data.data, trailer), pad_at=1, size=record.file_bytes)
    return "".join(checksums)


def write_array(
    batch: "Batch", folder: int, rows: NDArray[np.uint8], block_type: BlockType, chunk_rows: int
) -> ArrayRecord:
    """Write a new array, its metadata and its chunks, into its own open folder."""
    record = ArrayRecord(rows.shape[0], rows.shape[1], chunk_rows, 1 + len(block_type.block_shape), "")
    batch.write_alike(layout.METADATA_NAME, folder, metadata_of(record, block_type))
    return record._replace(checksums=write_chunks(batch, folder, rows, record, range(record.n_chunks)))


def metadata_of(record: ArrayRecord, block_type: BlockType) -> bytes:
    """Return an array's `zarr.json`."""
    dtype_name, block_shape = block_type
    stored_as = layout.STORED_AS.get(dtype_name, dtype_name)
    return layout.array_document((record.n_rows, *block_shape), record.chunk_rows, stored_as, dtype_name)


def row_bytes_of(block_type: BlockType) -> int:
    """Return how many bytes a block takes."""
    stored_as = layout.STORED_AS.get(block_type.dtype_name, block_type.dtype_name)
    return math.prod(block_type.block_shape) * layout.ITEM_BYTES[stored_as]
