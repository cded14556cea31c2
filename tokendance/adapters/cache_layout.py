"""How a model's KV cache is laid out as blocks: one record, and the two copies between layers and blocks.

Plain numpy, so that a layout can be read, checked and used where no framework is installed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokendance.dtypes import dtype_named
from tokendance.errors import FormatVersionError, ShapeMismatchError

__all__ = ["META_KEY", "CacheLayout", "layers_to_blocks", "pour_blocks"]

META_KEY: Final = "transformers"
_VERSION: Final = 1

# Of the dtypes that a storage takes, those that a model's cache can have.
_DTYPES: Final = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_BITS: Final[Mapping[int, type[np.signedinteger[Any]]]] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Where each layer's keys and values sit among an agent's blocks.

    Blocks are token-major: block ``(token_block * n_layers + layer) * 2 + (0 key | 1 value)`` holds ``block_tokens``
    tokens of one layer, as ``(kv_heads, block_tokens, head_dim)``. A cache that grows only appends blocks.

    Parameters
    ----------
    dtype : str
        Name of the element type: ``float64``, ``float32``, ``float16``, ``bfloat16``, ``float8_e4m3fn`` or
        ``float8_e5m2``.
    n_layers, kv_heads, head_dim : int
        Shape of the model's cache, each at least 1.
    block_tokens : int
        Tokens per block, at least 1.
    n_tokens : int
        Tokens in the cache, at least 1. What lies behind them in the last token block is padding.
    n_blocks : int
        Blocks in all: those that the tokens need, and whole token blocks of padding behind them, if any.

    Raises
    ------
    TypeError
        A count is not an int, or `dtype` is not a str.
    ValueError
        A count is too small, `dtype` is not in the list, or `n_blocks` does not fit the other fields.

    Examples
    --------
    >>> layout = CacheLayout.for_tokens(40, dtype="bfloat16", n_layers=2, kv_heads=4, head_dim=64, block_tokens=16)
    >>> layout.n_blocks, layout.block_shape
    (12, (4, 16, 64))
    >>> layout.block_of(token=17, layer=1, value=True)
    7
    """

    dtype: str
    n_layers: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    n_tokens: int
    n_blocks: int

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str):
            raise TypeError(f"dtype of a cache layout is {self.dtype!r}; expected a name such as 'bfloat16'")
        if self.dtype not in _DTYPES:
            raise ValueError(f"a cache of dtype {self.dtype!r} is not supported; expected one of {', '.join(_DTYPES)}")
        for name in ("n_layers", "kv_heads", "head_dim", "block_tokens", "n_tokens", "n_blocks"):
            count = getattr(self, name)
            if type(count) is not int:
                raise TypeError(f"{name} of a cache layout is {count!r}; expected an int")
            if count < 1:
                raise ValueError(f"{name} of a cache layout is {count}; expected at least 1")
        if self.n_blocks < self.used_blocks or self.n_blocks % (2 * self.n_layers):
            raise ValueError(
                f"n_blocks of a cache layout is {self.n_blocks}; {self.n_tokens} tokens in {self.n_layers} layers "
                f"need {self.used_blocks} blocks, or more by whole token blocks of {2 * self.n_layers}"
            )

    @classmethod
    def for_tokens(
        cls, n_tokens: int, *, dtype: str, n_layers: int, kv_heads: int, head_dim: int, block_tokens: int
    ) -> "CacheLayout":
        """Return the layout that holds `n_tokens` tokens in as few blocks as possible.

        Raises
        ------
        TypeError, ValueError
            As the class itself does.
        """
        # A bad block_tokens must not divide: the record's own check has the better message.
        sound = type(block_tokens) is int and block_tokens > 0
        token_blocks = -(-n_tokens // block_tokens) if sound else 1
        return cls(dtype, n_layers, kv_heads, head_dim, block_tokens, n_tokens, token_blocks * n_layers * 2)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "CacheLayout":
        """Return the layout that an agent's `meta` carries.

        Parameters
        ----------
        meta : mapping
            What ``storage.meta(agent)`` returns; it may hold other keys.

        Raises
        ------
        ValueError
            `meta` carries no layout, or one that cannot be right.
        FormatVersionError
            The layout was written by a newer version of tokendance.
        """
        found = meta.get(META_KEY)
        if not isinstance(found, Mapping):
            raise ValueError(f"no cache layout under {META_KEY!r}: was this agent registered with register_caches?")
        record = dict(found)
        version = record.pop("version", None)
        if version != _VERSION:
            raise FormatVersionError(
                f"cache layout has version {version!r}; this tokendance reads version {_VERSION}: use a newer one"
            )
        expected = {field.name for field in fields(cls)}
        if record.keys() != expected:
            raise ValueError(f"cache layout has the fields {sorted(record)}; expected {sorted(expected)}")
        try:
            return cls(**record)
        except TypeError as error:
            raise ValueError(f"cache layout cannot be right: {error}") from error

    def to_meta(self) -> dict[str, Any]:
        """Return ``{"transformers": {...}}``, flat and JSON-able, for an agent's `meta`."""
        return {META_KEY: {"version": _VERSION} | {field.name: getattr(self, field.name) for field in fields(self)}}

    @property
    def used_blocks(self) -> int:
        """Blocks that hold at least one token."""
        return -(-self.n_tokens // self.block_tokens) * self.n_layers * 2

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """Shape of one block: ``(kv_heads, block_tokens, head_dim)``."""
        return (self.kv_heads, self.block_tokens, self.head_dim)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Element type as numpy has it; bfloat16 and float8 come from ml_dtypes."""
        return dtype_named(self.dtype)

    def block_of(self, token: int, layer: int, *, value: bool) -> int:
        """Return the index of the block that holds a token's key (or value) in a layer.

        Raises
        ------
        IndexError
            `token` or `layer` is outside the cache.
        """
        if not (0 <= token < self.n_tokens and 0 <= layer < self.n_layers):
            raise IndexError(
                f"token {token} of layer {layer} is outside a cache of {self.n_tokens} tokens and {self.n_layers} "
                "layers"
            )
        return (token // self.block_tokens * self.n_layers + layer) * 2 + int(value)

    def check_blocks(self, blocks: NDArray[Any], n_blocks: int) -> None:
        """Raise ShapeMismatchError unless `blocks` are `n_blocks` of this layout."""
        expected = (n_blocks, *self.block_shape)
        if blocks.shape != expected or blocks.dtype != self.numpy_dtype:
            raise ShapeMismatchError(
                f"got {blocks.dtype} blocks of shape {blocks.shape}; this cache layout needs {self.dtype} {expected}: "
                "pass blocks together with the layout they were made with"
            )


def layers_to_blocks(layers: Sequence[tuple[NDArray[Any], NDArray[Any]]], layout: CacheLayout) -> NDArray[Any]:
    """Lay a cache out as blocks: one pass over memory, padding zeroed.

    Parameters
    ----------
    layers : sequence of (keys, values)
        One pair per layer, each ``(kv_heads, n_tokens, head_dim)``, any strides, elements as wide as `layout.dtype`.
        Bits are copied, never numbers.
    layout : CacheLayout
        Where they go.

    Returns
    -------
    ndarray
        ``(n_blocks, kv_heads, block_tokens, head_dim)`` of `layout.numpy_dtype`, C order.
    """
    blocks = np.empty((layout.n_blocks, *layout.block_shape), layout.numpy_dtype)
    bits = _by_token_block(blocks, layout)
    whole, tail = divmod(layout.n_tokens, layout.block_tokens)
    for layer, pair in enumerate(layers):
        for side, array in enumerate(pair):
            source, target = array.view(bits.dtype), bits[:, layer, side]
            target[:whole] = _split_tokens(source[:, : whole * layout.block_tokens], layout)
            if tail:
                target[whole, :, :tail] = source[:, whole * layout.block_tokens :]
                target[whole, :, tail:] = 0
    bits[whole + bool(tail) :] = 0
    return blocks


def pour_blocks(
    blocks: NDArray[Any],
    layout: CacheLayout,
    layers: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    *,
    first_token_block: int = 0,
) -> None:
    """Write blocks into the layers they came from: one pass over memory, padding left behind.

    Parameters
    ----------
    blocks : ndarray
        Whole token blocks, ``(k * n_layers * 2, kv_heads, block_tokens, head_dim)``, any strides.
    layout : CacheLayout
        Layout of the cache that they are part of.
    layers : sequence of (keys, values)
        One pair per layer, each ``(kv_heads, n_tokens, head_dim)``, writable, elements as wide as `layout.dtype`.
    first_token_block : int
        Which token block of the cache ``blocks[0]`` begins.
    """
    bits = _by_token_block(blocks, layout)
    start = first_token_block * layout.block_tokens
    count = max(0, min(layout.n_tokens - start, len(bits) * layout.block_tokens))
    whole, tail = divmod(count, layout.block_tokens)
    middle = start + whole * layout.block_tokens
    for layer, pair in enumerate(layers):
        for side, array in enumerate(pair):
            source, target = bits[:, layer, side], array.view(bits.dtype)
            _split_tokens(target[:, start:middle], layout)[...] = source[:whole]
            if tail:
                target[:, middle : middle + tail] = source[whole, :, :tail]


def _by_token_block(blocks: NDArray[Any], layout: CacheLayout) -> NDArray[Any]:
    """View blocks as integers ``(token_blocks, n_layers, 2, kv_heads, block_tokens, head_dim)``, so NaNs stay."""
    bits = blocks.view(_BITS[blocks.dtype.itemsize])
    return bits.reshape(-1, layout.n_layers, 2, *layout.block_shape)


def _split_tokens(array: NDArray[Any], layout: CacheLayout) -> NDArray[Any]:
    """View ``(kv_heads, k * block_tokens, head_dim)`` as ``(k, kv_heads, block_tokens, head_dim)``."""
    # Splitting an axis never copies, whatever the strides, so writing to the result writes to `array`.
    return array.reshape(layout.kv_heads, -1, layout.block_tokens, layout.head_dim).swapaxes(0, 1)
