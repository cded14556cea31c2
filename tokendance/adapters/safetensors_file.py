"""The safetensors format itself: 8 bytes of length, a JSON header, the tensors' bytes one after another.

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
from math import prod
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tokendance.dtypes import dtype_named
from tokendance.errors import StoreCorruptError
from tokendance.store import files
from tokendance.store.mapping import aligned_empty

__all__ = ["FORMAT_NAMES", "TensorEntry", "TensorFile", "open_tensors", "parse_header", "write_tensors"]

# The format allows 100 MB of header. A cache has some hundred tensors; what is longer is an attack on a JSON parser.
MAX_HEADER_BYTES: Final = 16 << 20
_MAX_DIMENSIONS: Final = 32

# The format has no checksums, so ours travel among the metadata: name to crc32c, as JSON.
_SUMS: Final = "tokendance.crc32c"
_HEADER: Final = "__metadata__"
_NO_SUM: Final = "0" * 8
_MISMATCH: Final = (
    "{path}: {what} does not match its checksum, so the file is damaged: copy it again (or, if it was changed on "
    f"purpose, take {_SUMS} out of its metadata)"
)

FORMAT_NAMES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
}
_OUR_NAMES: Final = {theirs: ours for ours, theirs in FORMAT_NAMES.items()}
# Those that no cache has may stand in a file, so that what is wrong with it can be said better.
_ITEM_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1} | {
    "I64": 8, "U64": 8, "C64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "BOOL": 1
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a header says of a tensor: its dtype (in the format's name), its shape, and where its bytes start."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def n_bytes(self) -> int:
        """How many bytes it has."""
        return prod(self.shape) * _ITEM_BYTES[self.dtype]


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
    """

    path: str
    fd: int
    data_start: int
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor in memory of its own, on a 64-byte boundary.

        Raises
        ------
        ValueError
            It has a dtype that no cache has.
        StoreCorruptError
            The file became shorter; a ValueError.
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
        sums = _sums_of(self)
        if sums is not None and sums.get(name) != _hexadecimal(google_crc32c.value(content)):
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
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StoreCorruptError(f"{name} is not a regular file; expected a .safetensors file")
        try:
            file = _opened(name, fd, status.st_size)
        except _BadHeader as error:
            raise StoreCorruptError(f"{name} is no safetensors file, or a damaged one: {error}; copy it again") from None
        sums = _sums_of(file)
        if sums is not None and sums.get(_HEADER) != _header_sum(file.tensors, file.metadata):
            raise StoreCorruptError(_MISMATCH.format(path=name, what="the header"))
        yield file
    finally:
        os.close(fd)


class _BadHeader(ValueError):
    """A header that cannot be right; whoever knows the file's name says so."""


def _opened(name: str, fd: int, n_bytes: int) -> TensorFile:
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if n_bytes < 8 or length > min(n_bytes - 8, MAX_HEADER_BYTES):
        raise _BadHeader(
            f"its first 8 bytes promise a header of {length} bytes, the file has {n_bytes} and a header at most "
            f"{MAX_HEADER_BYTES}"
        )
    tensors, metadata = parse_header(os.pread(fd, length, 8), n_bytes - 8 - length)
    return TensorFile(name, fd, 8 + length, tensors, metadata)


def parse_header(header: bytes, data_bytes: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Return the tensors and the metadata of a header, all of it checked.

    Parameters
    ----------
    header : bytes
        The JSON text.
    data_bytes : int
        How many bytes follow it, which the tensors must fill exactly, without overlap.

    Raises
    ------
    ValueError
        The header is not what the format allows.

    Examples
    --------
    >>> parse_header(b'{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}', 12)
    ({'a': TensorEntry(dtype='F16', shape=(2, 3), start=0)}, {})
    """
    if not header.startswith(b"{"):
        raise _BadHeader("the header does not start with '{'")
    try:
        document = json.loads(header.decode("utf-8"), object_pairs_hook=_without_twins)
    except RecursionError:
        raise _BadHeader("the header is nested too deeply") from None
    except ValueError as error:
        raise _BadHeader(f"the header is not JSON ({str(error)[:200]})") from None
    metadata = document.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _BadHeader("its metadata are not text by text")
    tensors = {name: _entry(name, said) for name, said in document.items()}
    end = 0
    for start, n_bytes, name in sorted((entry.start, entry.n_bytes, name) for name, entry in tensors.items()):
        if start != end:
            raise _BadHeader(f"tensor {name[:80]!r} starts at byte {start}, expected {end}")
        end += n_bytes
    if end != data_bytes:
        raise _BadHeader(f"its tensors have {end} bytes, the file has {data_bytes}")
    return tensors, metadata


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(name: str, said: Any) -> TensorEntry:
    bad = f"tensor {name[:80]!r} has "
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise _BadHeader(bad + "other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _BadHeader(bad + f"the unknown dtype {str(dtype)[:80]!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _BadHeader(bad + f"a shape that is no list of up to {_MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _BadHeader(bad + "data_offsets that are no two sizes")
    entry = TensorEntry(dtype, tuple(shape), offsets[0])
    if offsets[1] - offsets[0] != entry.n_bytes:
        raise _BadHeader(bad + f"{offsets[1] - offsets[0]} bytes, expected {entry.n_bytes} for {dtype} {entry.shape}")
    return entry


def _are_sizes(numbers: Any) -> bool:
    # The bound keeps products short: a shape of huge numbers would take minutes to multiply.
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)


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
    sums = {_HEADER: _header_sum(tensors, metadata)} | dict.fromkeys(tensors, _NO_SUM)
    header = _header(tensors, metadata, sums)
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
        os.pwrite(fd, _header(tensors, metadata, sums), 0)
        files.sync(fd)
    finally:
        os.close(fd)


def _header(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str], sums: Mapping[str, str]) -> bytes:
    document: dict[str, Any] = {_HEADER: {**metadata, _SUMS: json.dumps(sums)}}
    for name, entry in tensors.items():
        offsets = [entry.start, entry.start + entry.n_bytes]
        document[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"names and meta take {len(text)} bytes; a safetensors header has at most {MAX_HEADER_BYTES}")
    return len(text).to_bytes(8, "little") + text


def _header_sum(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> str:
    # Without offsets: whoever saves the file anew may put the tensors in another order.
    said = {name: [entry.dtype, list(entry.shape)] for name, entry in tensors.items()}
    others = {key: value for key, value in metadata.items() if key != _SUMS}
    return _hexadecimal(google_crc32c.value(json.dumps([said, others], sort_keys=True).encode()))


def _hexadecimal(value: int) -> str:
    return f"{value:08x}"


def _sums_of(file: TensorFile) -> dict[str, Any] | None:
    """Return the checksums that a file carries, None if it carries none."""
    if _SUMS not in file.metadata:
        return None
    try:
        sums = json.loads(file.metadata[_SUMS])
    except (ValueError, RecursionError):
        sums = None
    if not isinstance(sums, dict):
        raise StoreCorruptError(_MISMATCH.format(path=file.path, what="the list of checksums"))
    return sums
