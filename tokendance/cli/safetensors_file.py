"""The safetensors file format: a length, a header in JSON, and bytes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendance.dtypes import dtype_named

__all__ = ["header_of", "mapped_tensors"]

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
}
# Integers that no cache is, but whose bits can be one's.
_BITS = {"I16": np.dtype("<i2"), "U16": np.dtype("<u2")}
_MOST_HEADER = 100_000_000


def header_of(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what stands before the bytes of a file with one tensor."""
    length = math.prod(shape) * dtype.itemsize
    record = {name: {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": [0, length]}}
    text = json.dumps(record, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def mapped_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file by name, read-only, mapped.

    Raises
    ------
    ValueError
        It is no such file, or it names bytes that it does not have.
    """
    file = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    length = int.from_bytes(file[:8].tobytes(), "little")
    if not 2 <= length <= min(len(file) - 8, _MOST_HEADER):
        raise ValueError("its header is longer than the file")
    try:
        header = json.loads(file[8 : 8 + length].tobytes())
        data = np.asarray(file)[8 + length :]
        return {name: _tensor(one, data) for name, one in header.items() if name != "__metadata__"}
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"its header is malformed ({type(error).__name__}: {error})") from error


def _tensor(record: dict[str, Any], data: NDArray[np.uint8]) -> NDArray[Any]:
    kinds = {code: name for name, code in _NAMES.items()}
    code, shape, (start, stop) = record["dtype"], record["shape"], record["data_offsets"]
    if code not in kinds and code not in _BITS:
        raise ValueError(f"it holds {code}, which no cache can be")
    dtype = _BITS[code] if code in _BITS else dtype_named(kinds[code])
    if any(type(number) is not int or number < 0 for number in (*shape, start, stop)):
        raise ValueError("a shape or an offset in its header is no whole number")
    if stop > len(data) or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {tuple(shape)} does not fit the bytes it names")
    return data[start:stop].view(dtype).reshape(shape)
