"""Blocks put together again: the kernel against its naive twin, and serial against parallel."""

import tempfile
from pathlib import Path

import naive
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokendance.kernels import compile_policy, restore

JIT = not numba.config.DISABLE_JIT
MANY = min(2, numba.config.NUMBA_NUM_THREADS)


@st.composite
def tables(draw, most_blocks=9):
    """A master, blocks of its own, and where each block of the result is."""
    n_master, n_own = draw(st.integers(0, 5)), draw(st.integers(0, 4))
    width = draw(st.one_of(st.integers(1, 40), st.sampled_from([8, 64, 72])))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    places = [*range(n_master), *(~np.arange(n_own)).tolist()]
    sources = draw(st.lists(st.sampled_from(places), max_size=most_blocks)) if places else []
    blocks = rng.integers(0, 256, (n_master + n_own, width), np.uint8)
    return blocks[:n_master], blocks[n_master:], np.array(sources, np.int64)


def restored(kernel, master, own, sources, out=None):
    out = np.full((len(sources), master.shape[1]), 77, np.uint8) if out is None else out
    kernel(master, own, sources, out)
    return out


def run_as_every_twin(function, arguments, values, n_bytes):
    """Stand in for `run`: the serial twin, and the parallel one on one thread and on two, leave the same bytes."""
    results = []
    for parallel, threads in ((False, 1), (True, 1), (True, MANY)):
        *inputs, out = values
        out.view(np.uint8)[...] = 0xAA
        numba.set_num_threads(threads)
        compile_policy.twin(function, arguments, parallel=parallel)(*inputs, out)
        results.append(out.tobytes())
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert results[0] == results[1] == results[2]


@settings(max_examples=100 if JIT else 40)
@given(tables())
def test_blocks_are_those_of_the_naive_twin_serial_and_parallel(table):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "run", run_as_every_twin)
        found = restored(restore.restore_blocks, *table)
    np.testing.assert_array_equal(found, restored(naive.restore_blocks, *table))


@settings(max_examples=100 if JIT else 40)
@given(tables(), *[st.sampled_from(naive.HANDED_IN)] * 2, st.booleans(), st.booleans())
def test_it_does_not_matter_how_the_bytes_are_handed_in(table, master_as, own_as, unaligned_out, read_only_sources):
    master, own, sources = table
    out = np.full((len(sources), master.shape[1]), 77, np.uint8)
    if unaligned_out:
        out = naive.handed_in(out, "unaligned")
    where = sources.copy()
    where.flags.writeable = not read_only_sources
    with tempfile.TemporaryDirectory() as folder:
        handed = naive.handed_in(master, master_as, Path(folder)), naive.handed_in(own, own_as, Path(folder))
        restored(restore.restore_blocks, *handed, where, out)
        assert handed[0].tobytes() == master.tobytes()
        assert handed[1].tobytes() == own.tobytes()
        del handed
    np.testing.assert_array_equal(out, restored(naive.restore_blocks, master, own, sources))


@settings(max_examples=60 if JIT else 20)
@given(tables(most_blocks=20), st.lists(st.integers(0, 20), max_size=4), st.integers(1, 300), st.integers(1, MANY))
def test_a_round_is_restored_as_each_agent_alone_whatever_the_tiles_and_threads(table, lengths, tile_bytes, threads):
    master, own, sources = table
    orders = [np.roll(sources, at)[:length] for at, length in enumerate(lengths)]
    owns = [own + np.uint8(at) for at in range(len(orders))]
    outs, expected = ([np.full((len(order), master.shape[1]), 77, np.uint8) for order in orders] for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "_TILE_BYTES", tile_bytes)
        numba.set_num_threads(threads)
        restore.restore_round(master, owns, orders, outs)
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    naive.restore_round(master, owns, orders, expected)
    assert [out.tobytes() for out in outs] == [out.tobytes() for out in expected]


@settings(max_examples=100 if JIT else 30)
@given(tables(), st.integers(1, 5), st.integers(0, 40), st.booleans())
def test_a_layer_is_its_blocks_cut_into_heads(table, heads, missing, unaligned):
    master, own, sources = table
    master, own = (np.ascontiguousarray(np.repeat(rows, heads, axis=1)) for rows in (master, own))
    strip = master.shape[1] // heads
    width = max(len(sources) * strip - min(missing, strip - 1), 0)
    found, expected = (np.full((heads, width), 77, np.uint8) for _ in range(2))
    if unaligned:
        found = naive.handed_in(found, "unaligned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "run", run_as_every_twin)
        restore.restore_layer(master, own, sources, found)
    naive.restore_layer(master, own, sources, expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("row_bytes", [7, 16])
def test_no_byte_beside_the_result_is_touched(row_bytes):
    room = np.full((6, row_bytes), 77, np.uint8)
    master, own = np.zeros((2, row_bytes), np.uint8), np.ones((1, row_bytes), np.uint8)
    restore.restore_blocks(master, own, np.array([1, -1, 0, -1]), room[1:5])
    assert room[:, 0].tolist() == [77, 0, 1, 0, 1, 77]
    assert (room == room[:, :1]).all()


def test_bits_that_are_no_number_are_copied_as_they_are():
    every = np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(8, -1)
    if not JIT:
        every = every[:, -512:].copy()
    sources = np.array([7, -1, 0, -8, 3], np.int64)
    found = restored(restore.restore_blocks, every, every[::-1].copy(), sources)
    np.testing.assert_array_equal(found, every[[7, 7, 0, 0, 3]])


@pytest.mark.skipif(not JIT, reason="a mebibyte takes minutes without the JIT")
def test_large_caches_take_the_parallel_way_to_the_same_bytes(monkeypatch):
    taken = []
    twin = compile_policy.twin
    monkeypatch.setattr(
        compile_policy, "twin", lambda *a, parallel: taken.append(parallel) or twin(*a, parallel=parallel)
    )
    rng = np.random.default_rng(1)
    master, own = (rng.integers(0, 256, (n, 4096), np.uint8) for n in (300, 20))
    sources = rng.integers(-20, 300, 400)
    np.testing.assert_array_equal(
        restored(restore.restore_blocks, master, own, sources), restored(naive.restore_blocks, master, own, sources)
    )
    assert taken == [not compile_policy._serial_only]
