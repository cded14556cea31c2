"""The layout of a KV cache, without torch or transformers."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokendance.adapters.cache_layout import CacheLayout, layers_to_blocks, pour_blocks
from tokendance.errors import FormatVersionError, ShapeMismatchError

layouts = st.builds(
    CacheLayout.for_tokens,
    st.integers(1, 40),
    dtype=st.sampled_from(["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]),
    n_layers=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    block_tokens=st.integers(1, 9),
)


def random_layers(layout: CacheLayout, seed: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Any bits at all, NaN payloads included."""
    rng = np.random.default_rng(seed)
    shape = (layout.n_layers, 2, layout.kv_heads, layout.n_tokens, layout.head_dim * layout.numpy_dtype.itemsize)
    bits = rng.integers(0, 256, shape, np.uint8).view(f"i{layout.numpy_dtype.itemsize}")
    return [(pair[0], pair[1]) for pair in bits]


def poured(blocks: NDArray[Any], layout: CacheLayout, slab: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    shape = (layout.kv_heads, layout.n_tokens, layout.head_dim)
    width = f"i{layout.numpy_dtype.itemsize}"
    layers = [(np.full(shape, 77, width), np.full(shape, 77, width)) for _ in range(layout.n_layers)]
    rows = 2 * layout.n_layers
    for first in range(0, len(blocks) // rows, slab):
        pour_blocks(blocks[first * rows : (first + slab) * rows], layout, layers, first_token_block=first)
    return layers


@given(layouts, st.integers(0, 99), st.integers(1, 5), st.integers(0, 2))
def test_every_bit_comes_back_whatever_the_slab_and_the_padding(
    layout: CacheLayout, seed: int, slab: int, padding: int
) -> None:
    layout = replace(layout, n_blocks=layout.n_blocks + padding * 2 * layout.n_layers)
    layers = random_layers(layout, seed)
    blocks = layers_to_blocks(layers, layout)
    layout.check_blocks(blocks, layout.n_blocks)
    assert blocks.flags.c_contiguous
    for pair, back in zip(layers, poured(blocks, layout, slab), strict=True):
        np.testing.assert_array_equal(pair, back)


@given(layouts, st.data())
def test_each_token_lies_in_the_block_that_the_formula_says(layout: CacheLayout, data: st.DataObject) -> None:
    layers = random_layers(layout, 0)
    blocks = layers_to_blocks(layers, layout)
    token = data.draw(st.integers(0, layout.n_tokens - 1))
    layer = data.draw(st.integers(0, layout.n_layers - 1))
    for side in (0, 1):
        index = (token // layout.block_tokens * layout.n_layers + layer) * 2 + side
        assert layout.block_of(token, layer, value=bool(side)) == index
        row = blocks[index, :, token % layout.block_tokens].view(layers[layer][side].dtype)
        np.testing.assert_array_equal(row, layers[layer][side][:, token])


@given(layouts, st.integers(1, 30))
def test_growing_appends_and_keeps_every_full_block(layout: CacheLayout, more: int) -> None:
    grown = CacheLayout.for_tokens(
        layout.n_tokens + more,
        **{name: getattr(layout, name) for name in ("dtype", "n_layers", "kv_heads", "head_dim", "block_tokens")},
    )
    layers = random_layers(grown, 1)
    before = layers_to_blocks([(k[:, : layout.n_tokens], v[:, : layout.n_tokens]) for k, v in layers], layout)
    after = layers_to_blocks(layers, grown)
    full = layout.n_tokens // layout.block_tokens * layout.n_layers * 2
    assert before[:full].tobytes() == after[:full].tobytes()


@given(layouts)
def test_padding_is_zero_bits(layout: CacheLayout) -> None:
    layout = replace(layout, n_blocks=layout.n_blocks + 2 * layout.n_layers)
    blocks = layers_to_blocks(random_layers(layout, 2), layout)
    heads, token_bytes = layout.kv_heads, layout.head_dim * blocks.dtype.itemsize
    by_block = blocks.view(np.uint8).reshape(-1, 2 * layout.n_layers, heads, layout.block_tokens, token_bytes)
    tokens = by_block.transpose(0, 3, 1, 2, 4).reshape(-1, 2 * layout.n_layers * heads * token_bytes)
    assert not tokens[layout.n_tokens :].any()


@given(layouts)
def test_a_layout_survives_json_in_meta(layout: CacheLayout) -> None:
    meta = json.loads(json.dumps({"note": "mine"} | layout.to_meta()))
    assert CacheLayout.from_meta(meta) == layout


GOOD = CacheLayout.for_tokens(40, dtype="float16", n_layers=2, kv_heads=3, head_dim=5, block_tokens=16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_tokens": 0}, ValueError, "n_tokens of a cache layout is 0"),
        ({"n_tokens": -3}, ValueError, "n_tokens"),
        ({"head_dim": 2.0}, ValueError, r"head_dim of a cache layout is 2\.0; expected an int"),
        ({"n_layers": True}, ValueError, "n_layers"),
        ({"dtype": "object"}, ValueError, "'object' is not supported"),
        ({"dtype": ["float32"]}, ValueError, "dtype"),
        ({"n_blocks": 11}, ValueError, "n_blocks of a cache layout is 11; 40 tokens in 2 layers need 12"),
        ({"n_tokens": 49}, ValueError, "need 16 blocks"),
        ({"n_blocks": 14}, ValueError, "whole token blocks of 4"),
        ({"version": 2}, FormatVersionError, "version 2"),
        ({"version": None}, FormatVersionError, "version None"),
        ({"rope": 3}, ValueError, "fields"),
    ],
)
def test_a_layout_that_cannot_be_right_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CacheLayout.from_meta({"transformers": GOOD.to_meta()["transformers"] | change})


@pytest.mark.parametrize("meta", [{}, {"transformers": None}, {"transformers": "full"}])
def test_meta_without_a_layout_is_refused(meta: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no cache layout under 'transformers'"):
        CacheLayout.from_meta(meta)


@pytest.mark.parametrize("block_tokens", [0, -1, 2.5, "16", True])
def test_bad_block_tokens(block_tokens: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="block_tokens"):
        CacheLayout.for_tokens(5, dtype="float32", n_layers=1, kv_heads=1, head_dim=1, block_tokens=block_tokens)


def test_blocks_of_another_shape_or_dtype_are_refused() -> None:
    for blocks in (np.zeros((12, 3, 16, 4), np.float16), np.zeros((8, 3, 16, 5), np.float16), np.zeros((12, 3, 16, 5))):
        with pytest.raises(ShapeMismatchError, match=r"needs float16 \(12, 3, 16, 5\)"):
            GOOD.check_blocks(blocks, 12)


@pytest.mark.parametrize(("token", "layer"), [(40, 0), (-1, 0), (0, 2), (0, -1)])
def test_a_token_outside_the_cache_has_no_block(token: int, layer: int) -> None:
    with pytest.raises(IndexError, match="outside a cache of 40 tokens and 2 layers"):
        GOOD.block_of(token, layer, value=False)


def test_importing_the_adapter_loads_no_framework() -> None:
    code = "import sys, tokendance.adapters.transformers; print({'torch', 'transformers', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr


def test_without_the_framework_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, tokendance.adapters.transformers as adapter\n"
        "from tokendance.adapters.cache_layout import CacheLayout\n"
        "layout = CacheLayout('float32', 1, 1, 1, 1, 1, 2)\n"
        "for call in (lambda: adapter.cache_to_blocks(None),\n"
        "             lambda: adapter.blocks_to_cache(numpy.zeros((2, 1, 1, 1), 'f4'), layout)):\n"
        "    try: call()\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    said = "the transformers adapter needs torch and transformers 5: pip install 'tokendance[hf]'\n"
    assert done.stdout == said * 2, done.stderr
