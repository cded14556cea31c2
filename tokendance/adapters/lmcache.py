"""KV caches in LMCache's layout ``[2, layers, tokens, hidden]``: to blocks and back, bit for bit.

`tokendance.adapters.paged` offers these functions beside those for vLLM's pages.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokendance.adapters.array_bits import Bits, bits_of
from tokendance.adapters.cache_layout import CacheLayout, layers_to_blocks, pour_blocks
from tokendance.adapters.laid_out_agents import register_laid_out, stored_layout, token_slabs
from tokendance.errors import ShapeMismatchError

if TYPE_CHECKING:
    from tokendance import SparseKVDiff, TokenDanceStorage

__all__ = ["lmcache_to_blocks", "load_lmcache", "register_lmcache"]


def lmcache_to_blocks(kv: Any, *, kv_heads: int, block_tokens: int = 16) -> tuple[NDArray[Any], CacheLayout]:
    """Lay a cache of LMCache's layout out as blocks.

    Parameters
    ----------
    kv : numpy.ndarray or torch.Tensor
        ``(2, n_layers, n_tokens, kv_heads * head_dim)``, keys first, in float64, float32, float16, bfloat16,
        float8_e4m3fn or float8_e5m2; any strides; a tensor on the CPU. It is not changed.
    kv_heads : int
        How many heads the last axis holds: LMCache's layout does not say.
    block_tokens : int
        Tokens per block of the storage.

    Returns
    -------
    blocks : numpy.ndarray
        ``(n_blocks, kv_heads, block_tokens, head_dim)``, C order, a copy, as
        `tokendance.adapters.paged.pages_to_blocks` lays them out.
    layout : CacheLayout
        ``layout.to_meta()`` makes it travel with an agent.

    Raises
    ------
    TypeError
        `kv` is no array, or a count no int.
    ValueError
        `kv` has another shape, or `kv_heads` does not divide its last axis.

    Examples
    --------
    >>> import numpy as np
    >>> blocks, layout = lmcache_to_blocks(np.ones((2, 3, 20, 8), np.float16), kv_heads=2)
    >>> blocks.shape, layout.n_tokens
    ((12, 2, 16, 4), 20)
    """
    pairs, layout = _described(kv, kv_heads, block_tokens)
    return layers_to_blocks(pairs, layout), layout


def register_lmcache(
    storage: "TokenDanceStorage", agent: str, kv: Any, *, kv_heads: int, block_tokens: int = 16
) -> "SparseKVDiff | None":
    """Register an agent by its cache in LMCache's layout; `load_lmcache` and the other adapters bring it back.

    Parameters
    ----------
    storage : TokenDanceStorage
        In memory or open for writing. An agent becomes its master if it has none.
    agent : str
    kv, kv_heads, block_tokens
        As `lmcache_to_blocks` takes them; `block_tokens` is the same for all agents of a storage.

    Returns
    -------
    SparseKVDiff or None
        What the agent has of its own; None for the master, which is kept whole.

    Raises
    ------
    TypeError, ValueError
        As `lmcache_to_blocks`.
    ShapeMismatchError
        The cache does not fit the agents that are there; a ValueError.

    Examples
    --------
    >>> import numpy as np, tokendance as td
    >>> storage = td.TokenDanceStorage()
    >>> register_lmcache(storage, "planner", np.ones((2, 3, 20, 8), np.float16), kv_heads=2)
    >>> register_lmcache(storage, "critic", np.ones((2, 3, 20, 8), np.float16), kv_heads=2).n_diff_blocks
    0
    """
    pairs, layout = _described(kv, kv_heads, block_tokens)
    return register_laid_out(storage, agent, layout, lambda padded: layers_to_blocks(pairs, padded))


def load_lmcache(storage: "TokenDanceStorage", agent: str, out: Any = None) -> Any:
    """Restore an agent in LMCache's layout, bit for bit if the storage's threshold is 0.

    One pass, a few MiB at a time. Everything is checked first, checksums included, so that a call that raises has
    written nothing.

    Parameters
    ----------
    storage : TokenDanceStorage
        In memory or open; it is not changed.
    agent : str
        Registered by `register_lmcache` or another adapter.
    out : numpy.ndarray or torch.Tensor, optional
        ``(2, n_layers, n_tokens, kv_heads * head_dim)`` of the agent's dtype, any strides; filled. A fresh numpy array
        if not given (bfloat16 and float8 are ml_dtypes').

    Returns
    -------
    numpy.ndarray or torch.Tensor
        `out`, or the fresh array.

    Raises
    ------
    UnknownAgentError
        No agent has this id; a KeyError.
    TypeError, ValueError
        `out` cannot be filled, or the agent was registered without a layout.
    ShapeMismatchError
        `out` has not the shape and dtype of the agent's cache; a ValueError.
    StoreCorruptError
        The store is damaged; a ValueError.

    Examples
    --------
    >>> import numpy as np, tokendance as td
    >>> storage = td.TokenDanceStorage()
    >>> register_lmcache(storage, "planner", np.ones((2, 3, 20, 8), np.float16), kv_heads=2)
    >>> load_lmcache(storage, "planner").shape
    (2, 3, 20, 8)
    """
    # One state for everything that follows, whatever other threads register meanwhile.
    cohort = storage._cohort
    layout = stored_layout(cohort, agent)
    shape = (2, layout.n_layers, layout.n_tokens, layout.kv_heads * layout.head_dim)
    kv = np.empty(shape, layout.numpy_dtype) if out is None else out
    dtype, bits = bits_of(kv, "out", written=True)
    if (dtype, bits.shape) != (layout.dtype, shape):
        raise ShapeMismatchError(f"out is {dtype} {bits.shape}; agent {agent!r} needs {layout.dtype} {shape}")
    pairs = _pairs(bits, layout.kv_heads)
    for first, blocks in token_slabs(cohort, agent, layout):
        pour_blocks(blocks, layout, pairs, first_token_block=first)
    return kv


def _described(kv: Any, kv_heads: int, block_tokens: int) -> tuple[list[tuple[Bits, Bits]], CacheLayout]:
    dtype, bits = bits_of(kv, "kv")
    if bits.ndim != 4 or bits.shape[0] != 2 or 0 in bits.shape:
        raise ShapeMismatchError(
            f"kv has shape {bits.shape}; expected (2, n_layers, n_tokens, hidden), keys first: an MLA cache, which has "
            "one of them only, is not supported"
        )
    _, n_layers, n_tokens, hidden = bits.shape
    if type(kv_heads) is not int or kv_heads < 1 or hidden % kv_heads:
        raise ValueError(f"kv_heads is {kv_heads!r}; expected a divisor of the last axis of kv, {hidden}")
    layout = CacheLayout.for_tokens(
        n_tokens,
        dtype=dtype,
        n_layers=n_layers,
        kv_heads=kv_heads,
        head_dim=hidden // kv_heads,
        block_tokens=block_tokens,
    )
    return _pairs(bits, kv_heads), layout


def _pairs(bits: Bits, kv_heads: int) -> list[tuple[Bits, Bits]]:
    """View each layer as ``(kv_heads, n_tokens, head_dim)`` keys and values; splitting an axis never copies."""
    _, n_layers, n_tokens, hidden = bits.shape
    heads = bits.reshape(2, n_layers, n_tokens, kv_heads, hidden // kv_heads).swapaxes(2, 3)
    return [(heads[0, layer], heads[1, layer]) for layer in range(n_layers)]
