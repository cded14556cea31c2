"""The header of the safetensors format: what the tensors are called, what they are, and where their bytes stand.

Read as what it may be: text from a stranger.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

__all__ = ["FORMAT_NAMES", "MAX_HEADER_BYTES", "METADATA", "BadHeaderError", "TensorEntry", "header_of", "parse_header"]

METADATA: Final = "__metadata__"

# The format allows 100 MB of header. A cache has some hundred tensors; what is longer is an attack on a JSON parser.
MAX_HEADER_BYTES: Final = 16 << 20
_MAX_DIMENSIONS: Final = 32

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


class BadHeaderError(ValueError):
    """A header that cannot be right; whoever knows the file's name says so."""


def header_of(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Return a file's first bytes: the length of its header, and the header, padded to whole 8 bytes.

    Raises
    ------
    ValueError
        It is longer than `parse_header` takes.
    """
    document: dict[str, Any] = {METADATA: dict(metadata)}
    for name, entry in tensors.items():
        offsets = [entry.start, entry.start + entry.n_bytes]
        document[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"names and meta take {len(text)} bytes; a safetensors header has at most {MAX_HEADER_BYTES}")
    return len(text).to_bytes(8, "little") + text


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
    BadHeaderError
        The header is not what the format allows; a ValueError.

    Examples
    --------
    >>> parse_header(b'{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}', 12)
    ({'a': TensorEntry(dtype='F16', shape=(2, 3), start=0)}, {})
    """
    if not header.startswith(b"{"):
        raise BadHeaderError("the header does not start with '{'")
    try:
        document = json.loads(header.decode("utf-8"), object_pairs_hook=_without_twins)
    except RecursionError:
        raise BadHeaderError("the header is nested too deeply") from None
    except ValueError as error:
        raise BadHeaderError(f"the header is not JSON ({str(error)[:200]})") from None
    metadata = document.pop(METADATA, None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadHeaderError("its metadata are not text by text")
    tensors = {name: _entry(name, said) for name, said in document.items()}
    end = 0
    for start, n_bytes, name in sorted((entry.start, entry.n_bytes, name) for name, entry in tensors.items()):
        if start != end:
            raise BadHeaderError(f"tensor {name[:80]!r} starts at byte {start}, expected {end}")
        end += n_bytes
    if end != data_bytes:
        raise BadHeaderError(f"its tensors have {end} bytes, the file has {data_bytes}")
    return tensors, metadata


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(name: str, said: Any) -> TensorEntry:
    bad = f"tensor {name[:80]!r} has "
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadHeaderError(bad + "other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise BadHeaderError(bad + f"the unknown dtype {str(dtype)[:80]!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise BadHeaderError(bad + f"a shape that is no list of up to {_MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise BadHeaderError(bad + "data_offsets that are no two sizes")
    entry = TensorEntry(dtype, tuple(shape), offsets[0])
    if offsets[1] - offsets[0] != entry.n_bytes:
        raise BadHeaderError(
            bad + f"{offsets[1] - offsets[0]} bytes, expected {entry.n_bytes} for {dtype} {entry.shape}"
        )
    return entry


def _are_sizes(numbers: Any) -> bool:
    # The bound keeps products short: a shape of huge numbers would take minutes to multiply.
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
