"""Every bit pattern of the small floats is decoded as numpy and ml_dtypes decode it."""

import naive
import numpy as np
import pytest
from numba import prange

from tokendance.kernels.bits import NUMBER_TYPES, SMALL_FLOATS, as_numbers, as_words, small_float_value
from tokendance.kernels.compile_policy import array_of, twin, type_of


def _decode(bits, form, values):
    for at in prange(bits.shape[0]):
        values[at] = small_float_value(bits[at], form)


@pytest.mark.parametrize("parallel", [False, True], ids=["serial", "parallel"])
@pytest.mark.parametrize("dtype_name", SMALL_FLOATS)
def test_every_bit_pattern_is_decoded_to_the_same_float32(dtype_name, parallel):
    number = np.dtype(NUMBER_TYPES[dtype_name])
    bits = np.arange(2 ** (8 * number.itemsize)).astype(number)
    form, found = SMALL_FLOATS[dtype_name], np.empty(len(bits), np.float32)
    arguments = (array_of(number.name, ndim=1), type_of(form), array_of("float32", written=True, ndim=1))

    twin(_decode, arguments, parallel=parallel)(bits, form, found)

    with np.errstate(invalid="ignore"):  # signalling NaNs
        expected = bits.view(naive.dtype_named(dtype_name)).astype(np.float32)
    missing = np.isnan(expected)
    assert missing.any()
    np.testing.assert_array_equal(np.isnan(found), missing)
    np.testing.assert_array_equal(found.view(np.uint32)[~missing], expected.view(np.uint32)[~missing])


@pytest.mark.parametrize("dtype_name", NUMBER_TYPES)
def test_bytes_become_numbers_of_the_same_size_and_bits(dtype_name):
    dtype = naive.dtype_named(dtype_name)
    rows = np.arange(48, dtype=np.uint8).reshape(2, 24)
    numbers = as_numbers(rows, dtype_name)
    assert numbers.shape == (2, 24 // dtype.itemsize)
    assert numbers.tobytes() == rows.tobytes()


def test_the_dtypes_are_those_that_a_cache_may_have():
    assert tuple(NUMBER_TYPES) == naive.DTYPES


@pytest.mark.parametrize(
    ("row_bytes", "how", "width"), [(8, "plain", 8), (24, "read-only", 8), (12, "plain", 1), (8, "unaligned", 1)]
)
def test_rows_are_words_only_where_length_and_address_allow(row_bytes, how, width):
    rows = np.arange(2 * row_bytes, dtype=np.uint8).reshape(2, row_bytes)
    fits = naive.handed_in(np.zeros((3, row_bytes), np.uint8), "plain")
    words, other = as_words(naive.handed_in(rows, how), fits)
    assert words.dtype.itemsize == other.dtype.itemsize == width
    assert words.tobytes() == rows.tobytes()
