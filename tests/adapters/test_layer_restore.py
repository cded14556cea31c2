"""Blocks straight into layers: by kernels and by numpy the same bytes, whatever the cache looks like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokendance as td
from tokendance import restoring
from tokendance.adapters import layer_restore
from tokendance.adapters.cache_layout import CacheLayout, layers_to_blocks
from tokendance.adapters.laid_out_agents import register_laid_out, stored_layout


def _layout(dtype, n_layers, heads, head_dim, block_tokens, n_tokens):
    return CacheLayout.for_tokens(
        n_tokens, dtype=dtype, n_layers=n_layers, kv_heads=heads, head_dim=head_dim, block_tokens=block_tokens
    )


def _layers(layout, rng):
    bits = {"float32": np.int32, "bfloat16": np.int16, "float8_e5m2": np.int8}[layout.dtype]
    shape = (layout.kv_heads, layout.n_tokens, layout.head_dim)
    info = np.iinfo(bits)
    return [
        tuple(rng.integers(info.min, info.max, shape, bits, endpoint=True) for _ in range(2))
        for _ in range(layout.n_layers)
    ]


def _restored(storage, agent, kernels, monkeypatch):
    monkeypatch.setattr(layer_restore, "kernels_pay", lambda n_bytes: kernels)
    layout = stored_layout(storage._cohort, agent)
    shape = (layout.kv_heads, layout.n_tokens, layout.head_dim)
    bits = f"i{layout.numpy_dtype.itemsize}"
    layers = [tuple(np.full(shape, 7, bits) for _ in range(2)) for _ in range(layout.n_layers)]
    layer_restore.restore_layers(storage._cohort, agent, layout, layers)
    return layers


@settings(max_examples=60)
@given(
    st.sampled_from(["float32", "bfloat16", "float8_e5m2"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([1, 4, 5]),
    st.integers(1, 23),
    st.integers(0, 99),
)
def test_kernels_and_numpy_bring_back_the_layers_that_went_in(
    dtype, n_layers, heads, head_dim, block_tokens, n_tokens, seed
):
    rng = np.random.default_rng(seed)
    layout = _layout(dtype, n_layers, heads, head_dim, block_tokens, n_tokens)
    first = _layers(layout, rng)
    other = [tuple(side.copy() for side in pair) for pair in first]
    other[-1][1][0, n_tokens // 2] ^= 1
    storage = td.TokenDanceStorage(diff_threshold=0, ragged=True)
    for agent, layers in (("a", first), ("b", other)):
        register_laid_out(storage, agent, layout, lambda layout, layers=layers: layers_to_blocks(layers, layout))
    with pytest.MonkeyPatch.context() as patch:
        for kernels in (True, False):
            for agent, layers in (("a", first), ("b", other)):
                found = _restored(storage, agent, kernels, patch)
                for pair, expected in zip(found, layers, strict=True):
                    np.testing.assert_array_equal(pair[0], expected[0])
                    np.testing.assert_array_equal(pair[1], expected[1])


def test_a_damaged_block_raises_by_either_way(tmp_path, monkeypatch):
    layout = _layout("float32", 2, 1, 8, 4, 16)
    with td.open(tmp_path / "s.td", diff_threshold=0) as store:
        register_laid_out(
            store, "a", layout, lambda layout: layers_to_blocks(_layers(layout, np.random.default_rng(0)), layout)
        )
    chunk = next(path for path in (tmp_path / "s.td" / "masters").glob("*/c.*"))
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    for kernels in (True, False):
        with td.open(tmp_path / "s.td", "r") as store, pytest.raises(td.StoreCorruptError):
            _restored(store, "a", kernels, monkeypatch)


def test_kernels_are_used_where_numba_is_loaded_or_the_cache_is_large(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "numba", object())
    assert restoring.kernels_pay(1)
    monkeypatch.delitem(__import__("sys").modules, "numba")
    assert not restoring.kernels_pay(1 << 30)
    assert restoring.kernels_pay(4 << 30)
