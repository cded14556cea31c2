"""Engines' pages and LMCache's arrays: bit for bit in and out, whatever the pages, and nothing else is touched."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_twins import DTYPES, blocks_of, lmcache_of, page_shape, put_in_pages, random_bits, same_bits

import tokendance as td
from tokendance.adapters import laid_out_agents, page_copies
from tokendance.adapters.cache_layout import META_KEY, CacheLayout
from tokendance.adapters.paged import (
    lmcache_to_blocks,
    load_lmcache,
    load_pages,
    pages_to_blocks,
    register_lmcache,
    register_pages,
)
from tokendance.errors import ShapeMismatchError, StoreCorruptError, UnknownAgentError

ORDERS = ["2,n", "n,2"]


def some_kv(
    tokens: int, *, layers: int = 3, heads: int = 2, dim: int = 4, dtype: str = "float32", seed: int = 0
) -> Any:
    return random_bits((layers, 2, tokens, heads, dim), dtype, seed)


def some_pages(kv: Any, order: str, num_blocks: int, page: int, *, seed: int = 99) -> list[Any]:
    """Pages for a cache like `kv`, full of what other sequences left there."""
    shape = page_shape(order, num_blocks, page, *kv.shape[3:])
    name = kv.dtype.name
    return [random_bits(shape, name, seed + layer) for layer in range(len(kv))]


def filled_pages(kv: Any, table: Any, order: str, num_blocks: int, page: int) -> list[Any]:
    layers = some_pages(kv, order, num_blocks, page)
    put_in_pages(kv, layers, table, order)
    return layers


def zero_threshold(ragged: bool = False) -> Any:
    return td.TokenDanceStorage(diff_threshold=0.0, ragged=ragged)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_goes_from_one_engines_pages_to_anothers(dtype: str, order: str) -> None:
    kv = some_kv(21, dtype=dtype)
    layers = filled_pages(kv, [5, 0, 3], order, 7, 8)
    before = [layer.copy() for layer in layers]
    storage = zero_threshold()
    assert register_pages(storage, "planner", layers, [5, 0, 3], 21, order=order) is None
    assert all(same_bits(layer, old) for layer, old in zip(layers, before, strict=True))
    for other in ORDERS:
        target = some_pages(kv, other, 9, 8, seed=7)
        expected = [layer.copy() for layer in target]
        put_in_pages(kv, expected, [8, 2, 4], other)
        assert load_pages(storage, "planner", target, [8, 2, 4], order=other) == 21
        assert all(same_bits(got, layer) for got, layer in zip(target, expected, strict=True))


@st.composite
def sequences(draw: st.DrawFn) -> dict[str, Any]:
    unit, times = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    blocks_larger = draw(st.booleans())
    page, block = (unit, unit * times) if blocks_larger else (unit * times, unit)
    tokens = draw(st.integers(1, 40))
    needed = -(-tokens // page)
    num_blocks = needed + draw(st.integers(0, 5))
    return {
        "kv": some_kv(
            tokens,
            layers=draw(st.integers(1, 3)),
            heads=draw(st.integers(1, 3)),
            dim=draw(st.integers(1, 5)),
            dtype=draw(st.sampled_from(list(DTYPES))),
            seed=draw(st.integers(0, 99)),
        ),
        "page": page,
        "block": block,
        "num_blocks": num_blocks,
        # Longer than needed, as engines' tables are; what is behind may be anything.
        "tables": [
            [*draw(st.permutations(range(num_blocks)))[:needed], *draw(st.sampled_from([[], [-1, 0, 0]]))],
            draw(st.permutations(range(num_blocks))),
        ],
        "orders": [draw(st.sampled_from(ORDERS)), draw(st.sampled_from(ORDERS))],
        "slab": draw(st.sampled_from([1, 500, 4 << 20])),
    }


@settings(max_examples=200)
@given(sequences())
def test_any_table_order_and_size_is_as_token_by_token(case: dict[str, Any]) -> None:
    kv, page, block = case["kv"], case["page"], case["block"]
    (first, second), (order, other) = case["tables"], case["orders"]
    layers = filled_pages(kv, first, order, case["num_blocks"], page)
    with (
        mock.patch.object(laid_out_agents, "_SLAB_BYTES", case["slab"]),
        mock.patch.object(page_copies, "_GATHERED_BYTES", case["slab"]),
    ):
        blocks, layout = pages_to_blocks(layers, first, kv.shape[2], order=order, block_tokens=block)
        assert same_bits(blocks, blocks_of(kv, block))
        assert (layout.n_tokens, layout.block_tokens, layout.n_blocks) == (kv.shape[2], block, len(blocks))
        storage = zero_threshold()
        register_pages(storage, "a", layers, first, kv.shape[2], order=order, block_tokens=block)
        target = some_pages(kv, other, case["num_blocks"], page, seed=7)
        expected = [layer.copy() for layer in target]
        put_in_pages(kv, expected, second, other)
        assert load_pages(storage, "a", target, second, order=other) == kv.shape[2]
        assert all(same_bits(got, layer) for got, layer in zip(target, expected, strict=True))
        assert same_bits(load_lmcache(storage, "a"), lmcache_of(kv))


def test_pages_may_have_any_strides() -> None:
    kv = some_kv(13, heads=3, dim=4)
    table, expected = [4, 1, 2, 0], blocks_of(kv, 4)
    stacked = np.stack(filled_pages(kv, table, "n,2", 6, 4))
    heads_first = [np.ascontiguousarray(layer.swapaxes(2, 3)).swapaxes(2, 3) for layer in stacked]
    layers_inside = np.ascontiguousarray(stacked.transpose(1, 2, 0, 3, 4, 5)).transpose(2, 0, 1, 3, 4, 5)
    every_second = np.repeat(stacked, 2, axis=5)[..., ::2]
    backwards = np.ascontiguousarray(stacked[:, ::-1])[:, ::-1]
    for layers in (stacked, heads_first, layers_inside, every_second, backwards):
        blocks, _ = pages_to_blocks(layers, table, 13, order="n,2")
        assert same_bits(blocks, expected)
        storage = zero_threshold()
        register_pages(storage, "planner", layers, table, 13, order="n,2")
        for layer in layers:
            layer[...] = 0
        load_pages(storage, "planner", layers, table, order="n,2")
        assert same_bits(pages_to_blocks(layers, table, 13, order="n,2")[0], expected)


def test_pages_of_a_memory_map_are_filled_in_their_file(tmp_path: Path) -> None:
    kv = some_kv(10)
    storage = zero_threshold()
    register_pages(storage, "planner", filled_pages(kv, [1, 0, 2], "2,n", 3, 4), [1, 0, 2], 10, order="2,n")
    pages = np.memmap(tmp_path / "pages", np.float32, "w+", shape=(3, *page_shape("2,n", 4, 4, 2, 4)))
    load_pages(storage, "planner", pages, [3, 0, 1], order="2,n")
    again = np.fromfile(tmp_path / "pages", np.float32).reshape(pages.shape)
    assert same_bits(pages_to_blocks(again, [3, 0, 1], 10, order="2,n")[0], blocks_of(kv, 4))


@pytest.mark.parametrize("ragged", [True, False])
def test_agents_of_different_lengths_share_a_storage_and_a_pool(ragged: bool, tmp_path: Path) -> None:
    common = some_kv(16)
    caches = {name: some_kv(n, seed=n) for name, n in (("longest", 40), ("short", 17), ("middle", 30))}
    for kv in caches.values():
        kv[:, :, :16] = common
    tables = {"longest": np.arange(5) * 2, "short": np.array([1, 3, 5]), "middle": np.array([17, 7, 9, 11])}
    layers = some_pages(common, "2,n", 20, 8)
    for name, kv in caches.items():
        put_in_pages(kv, layers, tables[name], "2,n")
    with td.open(tmp_path / "round.td", "w", diff_threshold=0.0, ragged=ragged) as storage:
        for name, kv in caches.items():
            diff = register_pages(storage, name, layers, tables[name], kv.shape[2], order="2,n")
            assert diff is None or diff.n_diff_blocks > 0
    with td.open(tmp_path / "round.td", "r") as storage:
        for name, kv in caches.items():
            target = some_pages(kv, "n,2", 5, 8)
            expected = [layer.copy() for layer in target]
            put_in_pages(kv, expected, [4, 3, 2, 1, 0], "n,2")
            load_pages(storage, name, target, [4, 3, 2, 1, 0], order="n,2")
            assert all(same_bits(got, layer) for got, layer in zip(target, expected, strict=True))
            own_length = -(-kv.shape[2] // 8)
            assert len(storage.reconstruct(name)) == (own_length if ragged else 5) * 6


def test_a_growing_agent_keeps_its_whole_blocks_and_drops_the_rest() -> None:
    kv = some_kv(50)
    layers = filled_pages(kv, range(7), "2,n", 8, 8)
    storage = zero_threshold(ragged=True)
    register_pages(storage, "planner", layers, range(7), 50, order="2,n")
    storage.fork("planner", "critic")
    diff = register_pages(storage, "critic", layers, range(7), 41, order="2,n")
    assert diff is not None and diff.n_diff_blocks == 6  # the sixth token block holds one token and padding
    diff = register_pages(storage, "critic", layers, range(7), 50, order="2,n")
    assert diff is not None and diff.n_diff_blocks == 0


def test_the_meta_key_is_the_one_of_all_adapters() -> None:
    storage = zero_threshold()
    kv = some_kv(10)
    register_pages(storage, "planner", filled_pages(kv, [0, 1, 2], "2,n", 3, 4), [0, 1, 2], 10, order="2,n")
    assert storage.meta("planner").keys() == {META_KEY}
    assert CacheLayout.from_meta(storage.meta("planner")).n_tokens == 10


# LMCache -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 15, 16, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lmcache_arrays_come_back(dtype: str, tokens: int) -> None:
    kv = some_kv(tokens, dtype=dtype)
    array = lmcache_of(kv)
    blocks, layout = lmcache_to_blocks(array, kv_heads=2)
    assert same_bits(blocks, blocks_of(kv, 16))
    assert (layout.n_tokens, layout.kv_heads, layout.head_dim) == (tokens, 2, 4)
    storage = zero_threshold()
    assert register_lmcache(storage, "planner", array, kv_heads=2) is None
    assert same_bits(load_lmcache(storage, "planner"), array)
    room = np.zeros((2, 3, tokens + 5, 8), array.dtype)
    out = room[:, :, 2 : tokens + 2]
    assert load_lmcache(storage, "planner", out) is out
    assert same_bits(out, array)
    assert not room[:, :, :2].view(np.uint8).any() and not room[:, :, tokens + 2 :].view(np.uint8).any()


def test_lmcache_and_pages_meet_in_one_storage() -> None:
    kv, other = some_kv(20), some_kv(20, seed=1)
    storage = zero_threshold()
    register_lmcache(storage, "planner", lmcache_of(kv), kv_heads=2, block_tokens=8)
    register_pages(
        storage, "critic", filled_pages(other, range(5), "n,2", 5, 4), range(5), 20, order="n,2", block_tokens=8
    )
    target = some_pages(kv, "2,n", 2, 16)
    load_pages(storage, "planner", target, [1, 0], order="2,n")
    assert same_bits(pages_to_blocks(target, [1, 0], 20, order="2,n", block_tokens=8)[0], blocks_of(kv, 8))
    assert same_bits(load_lmcache(storage, "critic"), lmcache_of(other))


# What is refused ------------------------------------------------------------------------------------------------------

GOOD = {"layers": [np.zeros((2, 6, 4, 2, 4), np.float32)] * 3, "block_table": [0, 1, 2], "n_tokens": 10, "order": "2,n"}
MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "order": ({"order": "n2"}, ValueError, "order is 'n2'; expected '2,n'"),
    "other order": ({"order": "n,2"}, ShapeMismatchError, r"6, 4, 2, 4\); expected \(num_blocks, 2, .*other order"),
    "one layer bare": ({"layers": GOOD["layers"][0]}, ShapeMismatchError, "put a single layer in a list"),
    "no layers": ({"layers": []}, ValueError, "there are no layers"),
    "no array": ({"layers": [[1, 2]]}, TypeError, "layer 0 is of type list; expected a numpy array or a torch tensor"),
    "no heads": ({"layers": [np.zeros((2, 6, 4, 0, 4), np.float32)]}, ShapeMismatchError, "layer 0 has shape"),
    "mla": ({"layers": [np.zeros((6, 4, 8), np.float32)]}, ShapeMismatchError, r"shape \(6, 4, 8\)"),
    "shapes": ({"layers": [*GOOD["layers"], np.zeros((2, 7, 4, 2, 4), np.float32)]}, ShapeMismatchError, "layer 3 is"),
    "dtypes": (
        {"layers": [*GOOD["layers"], np.zeros((2, 6, 4, 2, 4), np.float16)]},
        ShapeMismatchError,
        "layer 3 is float16 .* layer 0 is float32 .* all layers must be alike",
    ),
    "raw fp8": ({"layers": [np.zeros((2, 6, 4, 2, 4), np.uint8)]}, ValueError, "layer 0 is uint8.*float8_e4m3fn"),
    "integers": ({"layers": [np.zeros((2, 6, 4, 2, 4), np.int64)]}, ValueError, "layer 0 has dtype int64"),
    "big endian": ({"layers": [np.zeros((2, 6, 4, 2, 4), ">f4")]}, ValueError, "layer 0 has dtype >f4"),
    "few pages": ({"block_table": [0, 1]}, ValueError, "2 pages of 4 tokens; 10 tokens need 3: add pages"),
    "too high": ({"block_table": [0, 6, 1]}, ValueError, r"block_table\[1\] is 6; expected a page from 0 to 5"),
    "negative": ({"block_table": np.array([0, 1, -1])}, ValueError, r"block_table\[2\] is -1"),
    "huge": ({"block_table": np.array([0, 1, 2**63], np.uint64)}, ValueError, r"block_table\[2\] is 92233720"),
    "twice": ({"block_table": [3, 1, 3]}, ValueError, "names page 3 twice, at 0 and at 2"),
    "floats": ({"block_table": [0.0, 1.0, 2.0]}, TypeError, "block_table is 1-D float64"),
    "mask": ({"block_table": np.array([True, False, True])}, TypeError, "block_table is 1-D bool"),
    "two tables": ({"block_table": np.zeros((2, 3), int)}, TypeError, "block_table is 2-D int64"),
}  # fmt: skip
REGISTERING: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no tokens": ({"n_tokens": 0}, ValueError, "n_tokens is 0; expected at least 1"),
    "half a token": ({"n_tokens": 2.5}, TypeError, "n_tokens is 2.5; expected a whole number"),
    "empty blocks": ({"block_tokens": 0}, ValueError, "block_tokens of a cache layout is 0"),
    "odd blocks": ({"block_tokens": 6}, ValueError, "blocks of 6 tokens do not fit pages of 4"),
}


@pytest.mark.parametrize(
    ("change", "error", "message"), (MISTAKES | REGISTERING).values(), ids=list(MISTAKES | REGISTERING)
)
def test_pages_that_are_not_right_are_not_registered(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    storage = zero_threshold()
    for call in (pages_to_blocks, lambda *a, **k: register_pages(storage, "planner", *a, **k)):
        arguments = GOOD | change
        positional = [arguments.pop(name) for name in ("layers", "block_table", "n_tokens")]
        with pytest.raises(error, match=message) as caught:
            call(*positional, **arguments)
        assert "\n" not in str(caught.value)
    assert storage.agents == []


LOADING: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "fewer layers": ({"layers": GOOD["layers"][:2]}, ShapeMismatchError, "n_layers 2, expected 3 as agent 'planner'"),
    "heads": ({"layers": [np.zeros((2, 6, 4, 4, 2), np.float32)] * 3}, ShapeMismatchError, "kv_heads 4, expected 2"),
    "head size": ({"layers": [np.zeros((2, 6, 4, 2, 8), np.float32)] * 3}, ShapeMismatchError, "head_dim 8, exp"),
    "dtype": ({"layers": [np.zeros((2, 6, 4, 2, 4), np.float16)] * 3}, ShapeMismatchError, "float16, expected"),
    "page size": ({"layers": [np.zeros((2, 6, 6, 2, 4), np.float32)] * 3}, ValueError, "do not fit pages of 6"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), (MISTAKES | LOADING).values(), ids=list(MISTAKES | LOADING))
def test_pages_that_are_not_right_are_not_written(change: dict[str, Any], error: type[Exception], message: str) -> None:
    storage = zero_threshold()
    kv = some_kv(10)
    register_pages(storage, "planner", filled_pages(kv, [0, 1, 2], "2,n", 3, 4), [0, 1, 2], 10, order="2,n")
    arguments = GOOD | change
    layers = arguments["layers"]
    layers = [layer.copy() if isinstance(layer, np.ndarray) else layer for layer in layers]
    if change.get("layers") is GOOD["layers"][0]:
        layers = layers[0]
    with pytest.raises(error, match=message):
        load_pages(storage, "planner", layers, arguments["block_table"], order=arguments["order"])
    assert not any(np.any(layer) for layer in layers if isinstance(layer, np.ndarray))


def test_pages_that_cannot_be_written_are_refused() -> None:
    storage = zero_threshold()
    register_pages(storage, "planner", GOOD["layers"], [0, 1, 2], 10, order="2,n")
    layers = [np.ones((2, 6, 4, 2, 4), np.float32) for _ in range(3)]
    layers[2].flags.writeable = False
    with pytest.raises(ValueError, match="layer 2 is read-only"):
        load_pages(storage, "planner", layers, [0, 1, 2], order="2,n")
    with pytest.raises(ValueError, match="two layers are the same memory"):
        load_pages(storage, "planner", [layers[0], layers[1], layers[0]], [0, 1, 2], order="2,n")
    assert all(layer.all() for layer in layers)


def test_agents_that_cannot_be_loaded_are_refused() -> None:
    storage = zero_threshold()
    register_pages(storage, "planner", GOOD["layers"], [0, 1, 2], 10, order="2,n")
    storage.register_mirror("plain", storage.reconstruct("planner"))
    storage.collective_reuse_step(["planner"], np.zeros((6, 2, 4, 4), np.float32))
    layers = [np.ones((2, 6, 4, 2, 4), np.float32) for _ in range(3)]
    for agent, error, message in (
        ("nobody", UnknownAgentError, "nobody"),
        ("plain", ValueError, "agent 'plain' was registered without a layout"),
        ("planner", ShapeMismatchError, "'planner' has 24 blocks .* but was registered with 18 blocks"),
    ):
        with pytest.raises(error, match=message):
            load_pages(storage, agent, layers, [0, 1, 2], order="2,n")
        with pytest.raises(error, match=message):
            load_lmcache(storage, agent)
    assert all(layer.all() for layer in layers)


def test_a_damaged_store_leaves_the_pages_as_they_were(tmp_path: Path) -> None:
    kv = some_kv(64)
    mirror = kv.copy()
    mirror[:, :, -1] = 0
    with td.open(tmp_path / "round.td", "w", diff_threshold=0.0) as storage:
        for name, cache in (("planner", kv), ("critic", mirror)):
            register_lmcache(storage, name, lmcache_of(cache), kv_heads=2)
    (values,) = (tmp_path / "round.td" / "mirrors").glob("*/values/c.*")
    content = bytearray(values.read_bytes())
    content[9] ^= 1
    values.write_bytes(content)
    layers = some_pages(kv, "2,n", 4, 16)
    before = [layer.copy() for layer in layers]
    # What is damaged is in the last slab of many.
    with td.open(tmp_path / "round.td", "r") as storage, mock.patch.object(laid_out_agents, "_SLAB_BYTES", 1):
        with pytest.raises(StoreCorruptError, match="checksum"):
            load_pages(storage, "critic", layers, range(4), order="2,n")
        assert all(same_bits(layer, old) for layer, old in zip(layers, before, strict=True))
        load_pages(storage, "planner", layers, range(4), order="2,n")
    assert same_bits(pages_to_blocks(layers, range(4), 64, order="2,n")[0], blocks_of(kv, 16))


def test_caches_of_another_model_do_not_join_a_storage() -> None:
    storage = zero_threshold(ragged=True)
    register_lmcache(storage, "planner", lmcache_of(some_kv(20)), kv_heads=2)
    with pytest.raises(ShapeMismatchError, match="'critic' has n_layers 2, expected 3, as agent 'planner' has"):
        register_lmcache(storage, "critic", lmcache_of(some_kv(20, layers=2)), kv_heads=2)
    with pytest.raises(ShapeMismatchError, match="'critic' has block_tokens 4, agent 'planner' has 16: pass block_tok"):
        register_pages(storage, "critic", GOOD["layers"], [0, 1, 2], 10, order="2,n")
    assert storage.agents == ["planner"]


@pytest.mark.parametrize(
    ("kv", "heads", "message"),
    [
        (np.zeros((1, 3, 20, 8), np.float32), 2, r"shape \(1, 3, 20, 8\); expected \(2, n_layers"),
        (np.zeros((2, 3, 20, 2, 4), np.float32), 2, r"shape \(2, 3, 20, 2, 4\)"),
        (np.zeros((2, 3, 0, 8), np.float32), 2, r"shape \(2, 3, 0, 8\)"),
        (np.zeros((2, 3, 20, 8), np.float32), 3, "kv_heads is 3; expected a divisor of the last axis of kv, 8"),
        (np.zeros((2, 3, 20, 8), np.float32), 0, "kv_heads is 0"),
        (np.zeros((2, 3, 20, 8), np.int8), 2, "kv is int8"),
    ],
)
def test_arrays_that_are_not_lmcaches_are_refused(kv: Any, heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lmcache_to_blocks(kv, kv_heads=heads)


def test_an_out_that_does_not_fit_is_refused() -> None:
    storage = zero_threshold()
    register_lmcache(storage, "planner", np.ones((2, 3, 20, 8), np.float16), kv_heads=2)
    for out in (np.zeros((2, 3, 32, 8), np.float16), np.zeros((2, 3, 20, 8), ml_dtypes.bfloat16)):
        with pytest.raises(ShapeMismatchError, match=r"'planner' needs float16 \(2, 3, 20, 8\)"):
            load_lmcache(storage, "planner", out)
        assert not out.any()
    out = np.zeros((2, 3, 20, 8), np.float16)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        load_lmcache(storage, "planner", out)


def test_numpy_arrays_need_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np, tokendance as td\n"
        "from tokendance.adapters.paged import load_pages, register_pages\n"
        "s, pages = td.TokenDanceStorage(), np.ones((3, 2, 4, 4, 1, 2), np.float32)\n"
        "register_pages(s, 'a', pages, [1, 0], 6, order='2,n')\n"
        "print(load_pages(s, 'a', pages, [2, 3], order='2,n'), 'torch' in sys.modules)\n"
    )
    child = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (child.stdout.strip(), child.stderr) == ("6 False", "")


# torch ----------------------------------------------------------------------------------------------------------------


def as_tensor(array: Any) -> Any:
    torch = pytest.importorskip("torch")
    name = array.dtype.name
    return torch.from_numpy(array.view(f"i{array.itemsize}")).view(getattr(torch, name))


def as_array(tensor: Any) -> Any:
    torch = pytest.importorskip("torch")
    name = str(tensor.dtype).removeprefix("torch.")
    return tensor.contiguous().view(torch.uint8).numpy().view(DTYPES[name]).reshape(tuple(tensor.shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_taken_and_filled_where_they_are(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    kv = some_kv(21, dtype=dtype)
    layers = [as_tensor(layer) for layer in filled_pages(kv, [5, 0, 3], "2,n", 7, 8)]
    storage = zero_threshold()
    register_pages(storage, "planner", layers, torch.tensor([5, 0, 3], dtype=torch.int32), 21, order="2,n")
    assert same_bits(storage.reconstruct("planner"), blocks_of(kv, 8))
    stacked = as_tensor(np.zeros((3, 8, 2, 8, 2, 4), kv.dtype))
    load_pages(storage, "planner", stacked, torch.tensor([7, 1, 2]), order="n,2")
    assert same_bits(pages_to_blocks(stacked, [7, 1, 2], 21, order="n,2")[0], blocks_of(kv, 8))
    out = as_tensor(np.zeros((2, 3, 21, 8), kv.dtype))
    assert load_lmcache(storage, "planner", out) is out
    assert same_bits(as_array(out), lmcache_of(kv))
    register_lmcache(storage, "planner", out, kv_heads=2, block_tokens=8)
    assert same_bits(storage.reconstruct("planner"), blocks_of(kv, 8))


def test_tensors_with_gradients_are_read() -> None:
    torch = pytest.importorskip("torch")
    kv = some_kv(6)
    layers = [torch.nn.Parameter(as_tensor(layer)) for layer in filled_pages(kv, [1, 0], "2,n", 2, 4)]
    assert same_bits(pages_to_blocks(layers, [1, 0], 6, order="2,n")[0], blocks_of(kv, 4))


def test_tensors_that_numpy_cannot_reach_are_refused() -> None:
    torch = pytest.importorskip("torch")
    storage = zero_threshold()
    elsewhere = torch.empty((3, 2, 6, 4, 2, 4), device="meta")
    with pytest.raises(ValueError, match=r"layer 0 is on meta; expected it on the CPU: pass a copy made by .cpu\(\)"):
        register_pages(storage, "planner", elsewhere, [0, 1, 2], 10, order="2,n")
    with pytest.raises(ValueError, match=r"kv is torch.sparse_coo; expected a dense tensor"):
        register_lmcache(storage, "planner", torch.zeros((2, 3, 20, 8)).to_sparse(), kv_heads=2)
    with pytest.raises(ValueError, match="kv has dtype complex64"):
        register_lmcache(storage, "planner", torch.zeros((2, 3, 20, 8), dtype=torch.complex64), kv_heads=2)
    with pytest.raises(ValueError, match="kv is uint8, which does not say what its bits mean"):
        register_lmcache(storage, "planner", torch.zeros((2, 3, 20, 8), dtype=torch.uint8), kv_heads=2)


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_agents_move_between_transformers_vllm_and_lmcache(dtype: str, ragged: bool) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import DynamicCache

    from tokendance.adapters.transformers import load_cache, register_caches

    caches = {name: some_kv(n, dtype=dtype, seed=n) for name, n in (("hf", 37), ("vllm", 20), ("lmcache", 48))}
    pairs = [[as_tensor(np.ascontiguousarray(side.swapaxes(0, 1))[None]) for side in layer] for layer in caches["hf"]]
    storage = zero_threshold(ragged)
    register_lmcache(storage, "lmcache", lmcache_of(caches["lmcache"]), kv_heads=2)
    register_caches(storage, {"hf": DynamicCache(pairs)})
    pages = filled_pages(caches["vllm"], [3, 1, 0], "n,2", 4, 8)
    register_pages(storage, "vllm", pages, [3, 1, 0], 20, order="n,2", block_tokens=16)
    for name, kv in caches.items():
        for layer, expected in zip(load_cache(storage, name).layers, kv, strict=True):
            for got, side in zip((layer.keys, layer.values), expected, strict=True):
                assert same_bits(as_array(got), np.ascontiguousarray(side.swapaxes(0, 1))[None])
        target = [as_tensor(layer) for layer in some_pages(kv, "2,n", 8, 8)]
        load_pages(storage, name, target, range(7, -1, -1), order="2,n")
        assert same_bits(
            pages_to_blocks(target, range(7, -1, -1), kv.shape[2], order="2,n", block_tokens=16)[0], blocks_of(kv, 16)
        )
        assert same_bits(load_lmcache(storage, name), lmcache_of(kv))
