"""Files of the safetensors format: 8 bytes of length, a JSON header, the tensors' bytes one after another.

Read as what it may be: a file from a stranger. Written so that it is there whole or not at all. A reader of our own,
because bfloat16 and float8 must come as ml_dtypes' numpy dtypes, and the safetensors package is not always there.
"""

import errno
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tokendance.adapters.safetensors_header import (
    FORMAT_NAMES,
    MAX_HEADER_BYTES,
    METADATA,
    BadHeaderError,
    TensorEntry,
    header_of,
    parse_header,
)
from tokendance.dtypes import dtype_named
from tokendance.errors import StoreCorruptError
from tokendance.store import files
from tokendance.store.fresh import aligned_empty

__all__ = ["TensorFile", "open_tensors", "write_tensors"]

_OUR_NAMES: Final = {theirs: ours for ours, theirs in FORMAT_NAMES.items()}

# The format has no checksums, so ours travel among the metadata: name to crc32c, as JSON.
_SUMS: Final = "tokendance.crc32c"
_NO_SUM: Final = "0" * 8
_MISMATCH: Final = (
    "{path}: {what} does not match its checksum, so the file is damaged: copy it again (or, if it was changed on "
    f"purpose, take {_SUMS} out of its metadata)"
)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file that is open, its header checked.

    Attributes
    ----------
    path : str
        For errors.
    fd : int
    data_start : int
        Where the tensors' bytes start.
    tensors : dict of str to TensorEntry
    metadata : dict of str to str
    sums : dict or None
        The crc32c of each tensor, where `write_tensors` wrote the file.
    """

    path: str
    fd: int
    data_start: int
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    sums: Mapping[str, Any] | None

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor in memory of its own, on a 64-byte boundary, its checksum verified if there is one.

        Raises
        ------
        ValueError
            It has a dtype that no cache has.
        StoreCorruptError
            The file is damaged, or became shorter; a ValueError.
        """
        entry = self.tensors[name]
        if entry.dtype not in _OUR_NAMES:
            raise ValueError(
                f"{self.path}: tensor {name[:80]!r} has dtype {entry.dtype}; expected one of {', '.join(_OUR_NAMES)}"
            )
        content = aligned_empty(entry.n_bytes)
        done = 0
        while done < entry.n_bytes:
            got = os.preadv(self.fd, [content[done:].data], self.data_start + entry.start + done)
            if got == 0:
                raise StoreCorruptError(f"{self.path} became shorter while it was read; copy it again")
            done += got
        if self.sums is not None and self.sums.get(name) != _hexadecimal(google_crc32c.value(content)):
            raise StoreCorruptError(_MISMATCH.format(path=self.path, what=f"tensor {name[:80]!r}"))
        return content.view(dtype_named(_OUR_NAMES[entry.dtype])).reshape(entry.shape)


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Open a safetensors file and check its header; nothing in it is trusted.

    Raises
    ------
    OSError
        It is not there, or not readable.
    StoreCorruptError
        It is no safetensors file, or a damaged one; a ValueError.
    """
    name = os.fspath(path)
    # O_NONBLOCK: opening a FIFO must not wait for its other end.
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield _opened(name, fd)
    finally:
        os.close(fd)


def _opened(name: str, fd: int) -> TensorFile:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise StoreCorruptError(f"{name} is not a regular file; expected a .safetensors file")
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    try:
        if status.st_size < 8 or length > min(status.st_size - 8, MAX_HEADER_BYTES):
            raise BadHeaderError(
                f"its first 8 bytes promise a header of {length} bytes, but the file has {status.st_size}, and a "
                f"header at most {MAX_HEADER_BYTES}"
            )
        tensors, metadata = parse_header(os.pread(fd, length, 8), status.st_size - 8 - length)
    except BadHeaderError as error:
        raise StoreCorruptError(f"{name} is no safetensors file, or a damaged one: {error}; copy it again") from None
    sums = _sums_in(metadata, name)
    if sums is not None and sums.get(METADATA) != _header_sum(tensors, metadata):
        raise StoreCorruptError(_MISMATCH.format(path=name, what="the header"))
    return TensorFile(name, fd, 8 + length, tensors, metadata, sums)


def _sums_in(metadata: Mapping[str, str], path: str) -> dict[str, Any] | None:
    """Return the checksums that a file carries, None if it carries none."""
    if _SUMS not in metadata:
        return None
    try:
        sums = json.loads(metadata[_SUMS])
    except (ValueError, RecursionError):
        sums = None
    if not isinstance(sums, dict):
        raise StoreCorruptError(_MISMATCH.format(path=path, what="the list of checksums"))
    return sums


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, TensorEntry],
    metadata: Mapping[str, str],
    contents: Callable[[str], Iterable[NDArray[Any]]],
) -> None:
    """Write a safetensors file durably, in place of the file of that name: whole, or not at all.

    Parameters
    ----------
    path : path
    tensors : dict of str to TensorEntry
        What the file holds; where each starts is worked out here.
    metadata : dict of str to str
        A crc32c of each tensor, and of what the header says, is added.
    contents : callable
        Given a name, yields the tensor's elements in C order, in as many C-contiguous arrays as it likes.

    Raises
    ------
    OSError
        The folder is not there, the disk is full, and so on; what was at `path` is still there.
    ValueError
        The metadata are too large for a header.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected the name of a file, got a folder", str(target))
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = f".{secrets.token_hex(8)}.tmp"
    try:
        try:
            _write(temporary, folder, _placed(tensors), dict(metadata), contents)
            files.rename(temporary, target.name, folder)
        except BaseException:
            files.remove_if_there(temporary, folder)
            raise
        files.sync(folder)
    finally:
        os.close(folder)


def _placed(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    placed, start = {}, 0
    for name, entry in tensors.items():
        placed[name] = replace(entry, start=start)
        start += entry.n_bytes
    return placed


def _write(
    name: str,
    folder: int,
    tensors: Mapping[str, TensorEntry],
    metadata: dict[str, str],
    contents: Callable[[str], Iterable[NDArray[Any]]],
) -> None:
    sums = {METADATA: _header_sum(tensors, metadata)} | dict.fromkeys(tensors, _NO_SUM)
    header = header_of(tensors, {**metadata, _SUMS: json.dumps(sums)})
    fd = files.write_new(name, folder, [header])
    try:
        for tensor, entry in tensors.items():
            value = written = 0
            for piece in contents(tensor):
                plain = piece.reshape(-1).view(np.uint8)
                value = google_crc32c.extend(value, plain)
                written += plain.nbytes
                view = plain.data
                while view:
                    view = view[os.write(fd, view) :]
            assert written == entry.n_bytes
            sums[tensor] = _hexadecimal(value)
        # Known only now; as long as what stood there.
        os.pwrite(fd, header_of(tensors, {**metadata, _SUMS: json.dumps(sums)}), 0)
        files.sync(fd)
    finally:
        os.close(fd)


def _header_sum(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> str:
    # Without offsets: whoever saves the file anew may put the tensors in another order.
    said = {name: [entry.dtype, list(entry.shape)] for name, entry in tensors.items()}
    others = {key: value for key, value in metadata.items() if key != _SUMS}
    return _hexadecimal(google_crc32c.value(json.dumps([said, others], sort_keys=True).encode()))


def _hexadecimal(value: int) -> str:
    return f"{value:08x}"
