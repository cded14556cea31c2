"""Which blocks differ and by how much: the kernels against their naive twins, and serial against parallel."""

import math
import tempfile
from pathlib import Path

import naive
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokendance.kernels import compile_policy, diff

JIT = not numba.config.DISABLE_JIT
BLOCKS = settings(max_examples=60 if JIT else 15)
MANY = min(2, numba.config.NUMBA_NUM_THREADS)

# What goes wrong first: signs of zero, subnormals, squares that leave the range, what is no number, odd NaN payloads.
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-3, 5e-324, 1e-310, 1e-200, -1e-160, 1e-45, 6e-8, 448.0, 57344.0, 60000.0, -60000.0)
FLOATS += (3.4e38, -3.4e38, 1e154, 1e200, -1e200, 1.7e308, math.inf, -math.inf, math.nan)


def specials(dtype_name):
    """Values of a dtype at its edges, as bytes."""
    dtype = naive.dtype_named(dtype_name)
    if dtype_name in ("int8", "uint8"):
        return [np.array(value, np.int16).astype(dtype).tobytes() for value in (-128, -1, 0, 1, 127, 128, 255)]
    with np.errstate(over="ignore", under="ignore"):
        values = [np.float64(value).astype(dtype).tobytes() for value in FLOATS]
    return [*values, b"\x01" + bytes(dtype.itemsize - 1), b"\xff" * dtype.itemsize]


@st.composite
def pairs(draw, dtype_name, most_blocks=5, most_numbers=75):
    """Two caches as rows of bytes: the same random bits, but for a few numbers at the dtype's edges."""
    dtype = naive.dtype_named(dtype_name)
    n_blocks, width = draw(st.integers(0, most_blocks)), draw(st.integers(1, most_numbers))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    kind = draw(st.sampled_from(["zeros", "numbers", "bits"]))
    if kind == "bits":
        left = rng.integers(0, 256, (n_blocks, width * dtype.itemsize), np.uint8)
    else:
        small = rng.integers(-9, 9, (n_blocks, width)) if kind == "numbers" else np.zeros((n_blocks, width))
        left = small.astype(dtype).view(np.uint8).reshape(n_blocks, width * dtype.itemsize)
    right = left.copy()
    if n_blocks:
        where = st.tuples(st.booleans(), st.integers(0, n_blocks - 1), st.integers(0, width - 1))
        for (on_the_left, block, at), value in draw(
            st.lists(st.tuples(where, st.sampled_from(specials(dtype_name))), max_size=6)
        ):
            start = at * dtype.itemsize
            side = left if on_the_left else right
            side[block, start : start + dtype.itemsize] = np.frombuffer(value, np.uint8)
    return left, right


def expect_same_norms(found, expected):
    """Equal where they say something (same bits, no number, not at all far), else to 14 digits."""
    assert found.dtype == np.float64
    plain = (expected > 0) & (expected < math.inf)
    np.testing.assert_array_equal(found[~plain], expected[~plain])
    # Two roundings of the smallest subnormals are a large share of them.
    np.testing.assert_allclose(found[plain], expected[plain], rtol=1e-14, atol=1e-323)


def norms_of(left, right, dtype_name):
    with np.errstate(all="ignore"):  # without the JIT, numpy's scalars warn
        return diff.block_norms(left, right, dtype_name)


def run_as_every_twin(function, arguments, values, n_bytes):
    """Stand in for `run`: the serial twin, and the parallel one on one thread and on two, leave the same bits."""
    results = []
    for parallel, threads in ((False, 1), (True, 1), (True, MANY)):
        *inputs, out = values
        out.view(np.uint8)[...] = 0xAA
        numba.set_num_threads(threads)
        compile_policy.twin(function, arguments, parallel=parallel)(*inputs, out)
        results.append(out.tobytes())
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype_name", naive.DTYPES)
@BLOCKS
@given(st.data())
def test_norms_are_those_of_the_naive_twin_whatever_the_numbers(dtype_name, data):
    left, right = data.draw(pairs(dtype_name))
    expect_same_norms(norms_of(left, right, dtype_name), naive.block_norms(left, right, dtype_name))


@pytest.mark.parametrize("dtype_name", naive.DTYPES)
@settings(max_examples=25 if JIT else 5)
@given(st.data())
def test_norms_have_the_same_bits_serial_and_parallel_on_one_thread_and_two(dtype_name, data):
    left, right = data.draw(pairs(dtype_name, most_blocks=9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff, "run", run_as_every_twin)
        found = norms_of(left, right, dtype_name)
    expect_same_norms(found, naive.block_norms(left, right, dtype_name))


@settings(max_examples=40 if JIT else 10)
@given(pairs("uint8"))
def test_differing_bits_are_those_of_the_naive_twin_serial_and_parallel(pair):
    left, right = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff, "run", run_as_every_twin)
        found = diff.blocks_differ(left, right)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, naive.blocks_differ(left, right))


@pytest.mark.parametrize("dtype_name", naive.DTYPES)
@settings(max_examples=20 if JIT else 6)
@given(st.data(), st.sampled_from(naive.HANDED_IN), st.sampled_from(naive.HANDED_IN))
def test_it_does_not_matter_how_the_bytes_are_handed_in(dtype_name, data, left_as, right_as):
    left, right = data.draw(pairs(dtype_name))
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (naive.handed_in(rows, how, Path(folder)) for rows, how in ((left, left_as), (right, right_as)))
        found, differ = norms_of(ours, theirs, dtype_name), diff.blocks_differ(ours, theirs)
        assert ours.tobytes() == left.tobytes()
        assert theirs.tobytes() == right.tobytes()
        del ours, theirs
    expect_same_norms(found, naive.block_norms(left, right, dtype_name))
    np.testing.assert_array_equal(differ, naive.blocks_differ(left, right))


@pytest.mark.parametrize("dtype_name", naive.DTYPES)
@settings(max_examples=25 if JIT else 5)
@given(st.data(), st.integers(1, 2000), st.integers(1, MANY if JIT else 1))
def test_a_round_is_measured_as_each_cache_alone_whatever_the_tiles_and_threads(dtype_name, data, tile_bytes, threads):
    master, first = data.draw(pairs(dtype_name, most_blocks=9))
    lengths = data.draw(st.lists(st.integers(0, len(master)), max_size=4))
    caches = [(first if at % 2 else first[::-1].copy())[:length] for at, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(diff, "_TILE_BYTES", tile_bytes)
        numba.set_num_threads(threads)
        found = diff.round_norms(master, caches, dtype_name)
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
        alone = [diff.block_norms(master[: len(cache)], cache, dtype_name) for cache in caches]
    assert [norms.tobytes() for norms in found] == [norms.tobytes() for norms in alone]
    for norms, expected in zip(found, naive.round_norms(master, caches, dtype_name), strict=True):
        expect_same_norms(norms, expected)


@pytest.mark.parametrize("n_numbers", [1, 31, 32, 33, 63, 64, 65])
@pytest.mark.parametrize("dtype_name", naive.DTYPES)
def test_one_number_counts_wherever_it_stands_in_the_lanes(dtype_name, n_numbers):
    dtype = naive.dtype_named(dtype_name)
    left = np.zeros((n_numbers, n_numbers), dtype)
    right = np.eye(n_numbers).astype(dtype) * dtype.type(2)
    norms = norms_of(left.view(np.uint8), right.view(np.uint8), dtype_name)
    assert norms.tolist() == [2.0] * n_numbers


@pytest.mark.parametrize(
    ("dtype_name", "left", "right", "norm"),
    [
        # In float16 arithmetic a delta of 1e-3 squares to nothing much, and 60000 to infinity.
        ("float16", [0.0] * 64, [1e-3] * 64, 8 * float(np.float16(1e-3))),
        ("float16", [60000.0], [-60000.0], 120000.0),
        ("bfloat16", [3.0e38], [-3.0e38], 2 * float(naive.dtype_named("bfloat16").type(3.0e38))),
        ("float32", [3e38, 3e38], [-3e38, -3e38], 2 * float(np.float32(3e38)) * math.sqrt(2)),
        ("float32", [1e-45], [0.0], float(np.float32(1e-45))),
        ("float64", [3e200, 4e200], [0.0, 0.0], 5e200),
        ("float64", [3e-200, 4e-200], [0.0, 0.0], 5e-200),
        ("float64", [5e-324], [0.0], 5e-324),
        ("float8_e4m3fn", [448.0], [-448.0], 896.0),
        ("float8_e5m2", [57344.0], [-57344.0], 114688.0),
        ("int8", [-128], [127], 255.0),
        ("uint8", [0], [255], 255.0),
    ],
)
def test_nothing_overflows_or_vanishes(dtype_name, left, right, norm):
    dtype = naive.dtype_named(dtype_name)
    rows = [np.array([side]).astype(dtype).view(np.uint8) for side in (left, right)]
    assert norms_of(*rows, dtype_name)[0] == pytest.approx(norm, rel=1e-14)


@pytest.mark.parametrize("dtype_name", naive.DTYPES[:6])
def test_zeros_of_both_signs_differ_in_bits_by_nothing(dtype_name):
    dtype = naive.dtype_named(dtype_name)
    rows = [np.array([[zero]]).astype(dtype).view(np.uint8) for zero in (0.0, -0.0)]
    assert norms_of(*rows, dtype_name).tolist() == [0.0]
    assert norms_of(rows[1], rows[1], dtype_name).tolist() == [diff.SAME_BITS]


@pytest.mark.parametrize(("left", "right"), [(math.nan, 0.0), (0.0, math.inf), (math.inf, -math.inf), (-math.inf, 1.0)])
@pytest.mark.parametrize("dtype_name", ["float64", "float32", "float16", "bfloat16", "float8_e5m2"])
def test_a_difference_that_is_no_number_is_infinitely_far(dtype_name, left, right):
    dtype = naive.dtype_named(dtype_name)
    rows = [np.array([[0.0] * 40 + [side]]).astype(dtype).view(np.uint8) for side in (left, right)]
    assert norms_of(*rows, dtype_name).tolist() == [math.inf]


@pytest.mark.parametrize("dtype_name", naive.DTYPES[:6])
def test_equal_bits_are_equal_even_where_they_are_no_number(dtype_name):
    rows = np.full((2, 16), 0xFF, np.uint8)
    assert norms_of(rows, rows.copy(), dtype_name).tolist() == [diff.SAME_BITS] * 2


@pytest.mark.skipif(not JIT, reason="without the JIT numpy's scalars warn")
@pytest.mark.parametrize("values", [(1e308, 0.0), (1.7e308, -1.7e308), (1.7e308, 0.0), (math.nan, math.inf)])
def test_float64_at_the_end_of_its_range_is_measured_without_a_warning(values):
    left, right = (np.full((1, 3), value).view(np.uint8) for value in values)
    expect_same_norms(diff.block_norms(left, right, "float64"), naive.block_norms(left, right, "float64"))


@pytest.mark.parametrize("dtype_name", naive.DTYPES)
def test_no_blocks_give_no_norms(dtype_name):
    nothing = np.empty((0, 24), np.uint8)
    assert diff.block_norms(nothing, nothing, dtype_name).shape == (0,)
    assert diff.blocks_differ(nothing, nothing).shape == (0,)
    assert [norms.shape for norms in diff.round_norms(nothing, [nothing, nothing], dtype_name)] == [(0,), (0,)]
    assert diff.round_norms(nothing, [], dtype_name) == []


@pytest.mark.skipif(not JIT, reason="a mebibyte takes minutes without the JIT")
@pytest.mark.parametrize("dtype_name", ["float32", "float16"])
def test_large_caches_take_the_parallel_way_to_the_same_norms(dtype_name, monkeypatch):
    taken = []
    twin = compile_policy.twin
    monkeypatch.setattr(
        compile_policy, "twin", lambda *a, parallel: taken.append(parallel) or twin(*a, parallel=parallel)
    )
    rng = np.random.default_rng(1)
    left = rng.integers(0, 60, (300, 4096), np.uint8)
    right = left.copy()
    right[rng.permutation(300)[:20], rng.integers(0, 4096, 20)] ^= 1
    found = diff.block_norms(left, right, dtype_name)
    assert taken == [not compile_policy._serial_only]
    expect_same_norms(found, naive.block_norms(left, right, dtype_name))
