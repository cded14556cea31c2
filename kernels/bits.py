"""Rows of bytes seen as numbers: the dtypes numba cannot hold, decoded by integer arithmetic.

Numba's CPU target has no float16, and none of the bfloat16 and float8 types. Their bits are read as
unsigned integers, moved to where a float32 keeps its exponent and mantissa, and scaled by the
difference of the exponent biases, which is exact for every value, subnormals included.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokendance.kernels.compile_policy import inlined

__all__ = ["NUMBER_TYPES", "SMALL_FLOATS", "SmallFloat", "as_numbers", "as_words", "small_float_value"]


class SmallFloat(NamedTuple):
    """Where a 8- or 16-bit float keeps its parts.

    Attributes
    ----------
    shift : numpy.uint32
        How far left its exponent and mantissa stand in a float32.
    magnitude : numpy.uint32
        Mask of exponent and mantissa; the one bit above it is the sign.
    special : numpy.uint32
        A value with all these bits set is infinite or not a number.
    scale : numpy.float32
        Two to the power of the difference of the exponent biases.
    """

    shift: np.uint32
    magnitude: np.uint32
    special: np.uint32
    scale: np.float32


def _small_float(shift: int, magnitude: int, special: int, scale: float) -> SmallFloat:
    return SmallFloat(np.uint32(shift), np.uint32(magnitude), np.uint32(special), np.float32(scale))


SMALL_FLOATS = {
    "float16": _small_float(13, 0x7FFF, 0x7C00, 2.0**112),
    "bfloat16": _small_float(16, 0x7FFF, 0x7F80, 1.0),
    "float8_e5m2": _small_float(21, 0x7F, 0x7C, 2.0**112),
    "float8_e4m3fn": _small_float(20, 0x7F, 0x7F, 2.0**120),
}

# What an element of each cache dtype is to a kernel.
NUMBER_TYPES = {
    "float64": "float64",
    "float32": "float32",
    "float16": "uint16",
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e5m2": "uint8",
    "int8": "int8",
    "uint8": "uint8",
}


@inlined
def small_float_value(bits: int, form: SmallFloat) -> np.float32:
    """Return the float32 value of a small float's `bits`; NaN payloads keep their leading bits."""
    word = np.uint32(bits)
    magnitude = np.uint32(np.uint32(word & form.magnitude) << form.shift)
    if np.uint32(word & form.special) == form.special:
        value = np.uint32(magnitude | np.uint32(0x7F800000)).view(np.float32)
    else:
        value = magnitude.view(np.float32) * form.scale
    return -value if word > form.magnitude else value


def as_words(*rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint64] | NDArray[np.uint8], ...]:
    """View rows of bytes as 64-bit words where their length and their addresses allow it, else as bytes.

    Parameters
    ----------
    *rows : numpy.ndarray
        ``(n, row_bytes)`` uint8, C order. All become words, or none does.
    """
    if all(array.shape[1] % 8 == 0 and array.ctypes.data % 8 == 0 for array in rows):
        return tuple(array.view(np.uint64) for array in rows)
    return rows


def as_numbers(rows: NDArray[np.uint8], dtype_name: str) -> NDArray[np.generic]:
    """View rows of bytes ``(n, row_bytes)`` as what a kernel reads for `dtype_name`."""
    return rows.view(NUMBER_TYPES[dtype_name])
