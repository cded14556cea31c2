"""A small decoder-only transformer in numpy that computes KV caches, and their cutting into blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

VOCABULARY = 256
# 128 queries in 8 heads against 2,800 keys are 11 MB of scores; 1,900 tokens took 1.37 s so, and 1.60 s at 512.
QUERY_CHUNK = 128


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of the decoder.

    Examples
    --------
    >>> DecoderConfig().bytes_per_token
    8192
    """

    n_layers: int = 8
    n_heads: int = 8
    n_kv_heads: int = 2
    head_dim: int = 64
    width: int = 512
    hidden_width: int = 1408
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    seed: int = 7

    def __post_init__(self) -> None:
        """Refuse head counts that cannot be grouped and head sizes that cannot be rotated."""
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in a float32 cache."""
        return self.n_layers * 2 * self.n_kv_heads * self.head_dim * 4


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one layer, float32; a matrix has shape ``(inputs, outputs)``."""

    attention_norm: FloatArray
    query: FloatArray
    key: FloatArray
    value: FloatArray
    attention_out: FloatArray
    feed_norm: FloatArray
    gate: FloatArray
    up: FloatArray
    down: FloatArray


class Decoder:
    """Decoder with grouped-query attention, rotary positions, RMSNorm and SwiGLU; its weights come from a seed.

    It has no output head: the demo's agents have their lines written for them, and reading them is what fills
    a cache.

    Examples
    --------
    >>> decoder = Decoder(DecoderConfig(n_layers=2, width=32, hidden_width=48, head_dim=8))
    >>> cache = decoder.extend(decoder.empty_cache(), byte_tokens("Good evening."))
    >>> cache.shape
    (2, 2, 2, 13, 8)
    """

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        rng = np.random.default_rng(config.seed)
        self.embedding = rng.standard_normal((VOCABULARY, config.width), dtype=np.float32)
        self.layers = tuple(_random_layer(rng, config) for _ in range(config.n_layers))

    def empty_cache(self) -> FloatArray:
        """Return a cache of no tokens, float32 of shape ``(n_layers, 2, n_kv_heads, 0, head_dim)``."""
        c = self.config
        return np.empty((c.n_layers, 2, c.n_kv_heads, 0, c.head_dim), dtype=np.float32)

    def extend(self, cache: FloatArray, tokens: NDArray[np.integer]) -> FloatArray:
        """Read ``tokens`` after those that are in ``cache``.

        Parameters
        ----------
        cache : ndarray of float32, shape (n_layers, 2, n_kv_heads, n_past, head_dim)
            Keys (0) and values (1) of the tokens read so far; it is left as it is.
        tokens : ndarray of int, shape (n_new,)
            What to read next, each in ``range(256)``.

        Returns
        -------
        ndarray of float32, shape (n_layers, 2, n_kv_heads, n_past + n_new, head_dim)
            A new cache; its first ``n_past`` tokens are copied from ``cache``, bit for bit.
        """
        c = self.config
        past = cache.shape[3]
        grown = np.empty((c.n_layers, 2, c.n_kv_heads, past + len(tokens), c.head_dim), dtype=np.float32)
        grown[:, :, :, :past] = cache
        hidden = self.embedding[tokens]
        cos, sin = rotary_tables(np.arange(past, past + len(tokens)), c.head_dim, c.rope_base)
        for index, layer in enumerate(self.layers):
            normed = rms_norm(hidden, layer.attention_norm, c.norm_epsilon)
            grown[index, 0, :, past:] = rotate(_split_heads(normed @ layer.key, c.n_kv_heads), cos, sin)
            grown[index, 1, :, past:] = _split_heads(normed @ layer.value, c.n_kv_heads)
            # Nothing reads what the last layer would add, and it is an eighth of the work.
            if index + 1 == c.n_layers:
                break
            queries = rotate(_split_heads(normed @ layer.query, c.n_heads), cos, sin)
            hidden = hidden + attend(queries, grown[index, 0], grown[index, 1]) @ layer.attention_out
            hidden = hidden + _feed_forward(rms_norm(hidden, layer.feed_norm, c.norm_epsilon), layer)
        return grown


def byte_tokens(text: str) -> NDArray[np.uint8]:
    """Return the UTF-8 bytes of ``text`` as tokens, uint8 of shape ``(n_tokens,)``.

    Examples
    --------
    >>> byte_tokens("Ahoy").tolist()
    [65, 104, 111, 121]
    """
    return np.frombuffer(text.encode(), dtype=np.uint8)


def rms_norm(hidden: FloatArray, gain: FloatArray, epsilon: float) -> FloatArray:
    """Scale each row of ``hidden``, shape ``(n_tokens, width)``, to a root mean square of 1, then by ``gain``."""
    mean_square = np.mean(np.square(hidden), axis=-1, keepdims=True)
    normed: FloatArray = hidden / np.sqrt(mean_square + np.float32(epsilon)) * gain
    return normed


def rotary_tables(positions: NDArray[np.integer], head_dim: int, base: float) -> tuple[FloatArray, FloatArray]:
    """Return cosines and sines of the rotary angles, each float32 of shape ``(n_tokens, head_dim // 2)``.

    Examples
    --------
    >>> cos, sin = rotary_tables(np.array([0, 5]), head_dim=4, base=10_000.0)
    >>> cos[0].tolist(), sin[0].tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    frequencies = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angles = np.outer(positions.astype(np.float64), frequencies)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(heads: FloatArray, cos: FloatArray, sin: FloatArray) -> FloatArray:
    """Turn element pairs ``(i, i + head_dim / 2)`` of ``heads``, shape ``(n_heads, n_tokens, head_dim)``."""
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def attend(queries: FloatArray, keys: FloatArray, values: FloatArray) -> FloatArray:
    """Causal grouped-query attention; the queries belong to the last tokens among the keys.

    Parameters
    ----------
    queries : ndarray of float32, shape (n_heads, n_new, head_dim)
    keys, values : ndarray of float32, shape (n_kv_heads, n_tokens, head_dim)
        Head ``h`` of the queries reads key head ``h // (n_heads // n_kv_heads)``.

    Returns
    -------
    ndarray of float32, shape (n_new, n_heads * head_dim)
    """
    n_heads, n_new, head_dim = queries.shape
    n_kv_heads, n_tokens, _ = keys.shape
    grouped = queries.reshape(n_kv_heads, n_heads // n_kv_heads, n_new, head_dim) / np.float32(np.sqrt(head_dim))
    mixed = np.empty((n_new, n_kv_heads, n_heads // n_kv_heads, head_dim), dtype=queries.dtype)
    for low in range(0, n_new, QUERY_CHUNK):
        high = min(low + QUERY_CHUNK, n_new)
        seen = n_tokens - n_new + high
        rows = grouped[:, :, low:high].reshape(n_kv_heads, -1, head_dim)
        scores = rows @ keys[:, :seen].swapaxes(1, 2)
        by_head = scores.reshape(n_kv_heads, -1, high - low, seen)
        by_head[..., seen - (high - low) :] += _future_mask(high - low)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        chunk = (scores @ values[:, :seen]) / scores.sum(axis=-1, keepdims=True)
        mixed[low:high] = chunk.reshape(n_kv_heads, -1, high - low, head_dim).transpose(2, 0, 1, 3)
    return mixed.reshape(n_new, n_heads * head_dim)


def cache_to_blocks(cache: FloatArray, block_tokens: int) -> FloatArray:
    """Cut a cache into token-major blocks; the last tokens' blocks are padded with zeros.

    Parameters
    ----------
    cache : ndarray of float32, shape (n_layers, 2, n_kv_heads, n_tokens, head_dim)
    block_tokens : int
        Tokens in a block.

    Returns
    -------
    ndarray of float32, shape (n_blocks, n_kv_heads, block_tokens, head_dim)
        Block ``(token_block * n_layers + layer) * 2 + (0 key | 1 value)``, C order.

    Examples
    --------
    >>> cache_to_blocks(np.ones((3, 2, 1, 20, 8), dtype=np.float32), block_tokens=16).shape
    (12, 1, 16, 8)
    """
    n_layers, _, n_kv_heads, n_tokens, head_dim = cache.shape
    token_blocks = -(-n_tokens // block_tokens)
    padded = np.zeros((n_layers, 2, n_kv_heads, token_blocks * block_tokens, head_dim), dtype=cache.dtype)
    padded[:, :, :, :n_tokens] = cache
    cut = padded.reshape(n_layers, 2, n_kv_heads, token_blocks, block_tokens, head_dim)
    return cut.transpose(3, 0, 1, 2, 4, 5).reshape(-1, n_kv_heads, block_tokens, head_dim)


def _random_layer(rng: np.random.Generator, c: DecoderConfig) -> LayerWeights:
    def matrix(inputs: int, outputs: int) -> FloatArray:
        drawn = rng.standard_normal((inputs, outputs), dtype=np.float32)
        drawn /= np.float32(np.sqrt(inputs))
        return drawn

    def gain() -> FloatArray:
        return 1 + np.float32(0.1) * rng.standard_normal(c.width, dtype=np.float32)

    return LayerWeights(
        attention_norm=gain(),
        query=matrix(c.width, c.n_heads * c.head_dim),
        key=matrix(c.width, c.n_kv_heads * c.head_dim),
        value=matrix(c.width, c.n_kv_heads * c.head_dim),
        attention_out=matrix(c.n_heads * c.head_dim, c.width),
        feed_norm=gain(),
        gate=matrix(c.width, c.hidden_width),
        up=matrix(c.width, c.hidden_width),
        down=matrix(c.hidden_width, c.width),
    )


def _split_heads(projected: FloatArray, n_heads: int) -> FloatArray:
    return projected.reshape(len(projected), n_heads, -1).swapaxes(0, 1)


def _feed_forward(normed: FloatArray, layer: LayerWeights) -> FloatArray:
    gate = normed @ layer.gate
    swish = gate / (1 + np.exp(-gate))
    fed: FloatArray = (swish * (normed @ layer.up)) @ layer.down
    return fed


def _future_mask(n_new: int) -> FloatArray:
    return np.triu(np.full((n_new, n_new), -np.inf, dtype=np.float32), k=1)
