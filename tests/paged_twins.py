"""What pages, blocks and LMCache's arrays hold, said token by token: slow, and hard to get wrong.

`kv` is always ``(n_layers, 2, n_tokens, kv_heads, head_dim)``.
"""

from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


def random_bits(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Any:
    """Any bits at all: NaN payloads, infinities and -0.0 among them."""
    kind = DTYPES[dtype]
    raw = np.random.default_rng(seed).integers(0, 256, (*shape[:-1], shape[-1] * kind.itemsize), np.uint8)
    return raw.view(kind)


def page_shape(order: str, num_blocks: int, page: int, heads: int, dim: int) -> tuple[int, ...]:
    return (2, num_blocks, page, heads, dim) if order == "2,n" else (num_blocks, 2, page, heads, dim)


def slot(layer: Any, order: str, side: int, page: int, within: int) -> Any:
    """One token's slot, ``(kv_heads, head_dim)``, as a view."""
    return layer[side, page, within] if order == "2,n" else layer[page, side, within]


def put_in_pages(kv: Any, layers: Any, table: Any, order: str) -> None:
    page_tokens = layers[0].shape[2]
    for layer, side, token in np.ndindex(kv.shape[:3]):
        slot(layers[layer], order, side, table[token // page_tokens], token % page_tokens)[...] = kv[layer, side, token]


def blocks_of(kv: Any, block_tokens: int) -> Any:
    n_layers, _, n_tokens, heads, dim = kv.shape
    token_blocks = -(-n_tokens // block_tokens)
    blocks = np.zeros((token_blocks * n_layers * 2, heads, block_tokens, dim), kv.dtype)
    for layer, side, token in np.ndindex(kv.shape[:3]):
        index = (token // block_tokens * n_layers + layer) * 2 + side
        blocks[index, :, token % block_tokens] = kv[layer, side, token]
    return blocks


def lmcache_of(kv: Any) -> Any:
    n_layers, _, n_tokens, heads, dim = kv.shape
    array = np.empty((2, n_layers, n_tokens, heads * dim), kv.dtype)
    for layer, side, token in np.ndindex(kv.shape[:3]):
        array[side, layer, token] = kv[layer, side, token].reshape(-1)
    return array


def same_bits(got: Any, expected: Any) -> bool:
    return got.shape == expected.shape and got.dtype == expected.dtype and got.tobytes() == expected.tobytes()
