"""KV caches of paged engines: from vLLM's pages and LMCache's chunks to blocks and back, bit for bit.

Arrays are numpy's or torch's, on the CPU; torch is not needed for numpy's. Blocks are laid out as those of
`tokendance.adapters.transformers`, so that what one adapter registered another can load.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tokendance.adapters.cache_layout import CacheLayout
from tokendance.adapters.engine_pages import Order, check_sizes, paged_sequence, whole_number
from tokendance.adapters.laid_out_agents import layout_mismatch, register_laid_out, stored_layout, token_slabs
from tokendance.adapters.lmcache import lmcache_to_blocks, load_lmcache, register_lmcache
from tokendance.adapters.page_copies import PagedSequence, gather_pages, pour_into_pages
from tokendance.errors import ShapeMismatchError

if TYPE_CHECKING:
    from tokendance import SparseKVDiff, TokenDanceStorage

__all__ = [
    "lmcache_to_blocks",
    "load_lmcache",
    "load_pages",
    "pages_to_blocks",
    "register_lmcache",
    "register_pages",
]


def pages_to_blocks(
    layers: Sequence[Any] | Any,
    block_table: Iterable[int] | Any,
    n_tokens: int,
    *,
    order: Order,
    block_tokens: int | None = None,
) -> tuple[NDArray[Any], CacheLayout]:
    """Lay one sequence's pages out as blocks.

    Parameters
    ----------
    layers : sequence of arrays, or one array with the layers in front
        Each layer's numpy array or CPU torch tensor, of the shape that `order` says, all of one shape and dtype
        (float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2), any strides. They are not changed.
    block_table : sequence of int
        Which pages hold the sequence, in the order of its tokens. Entries behind those that `n_tokens` need are not
        looked at: engines pad their tables.
    n_tokens : int
        Tokens in the sequence, at least 1.
    order : {"2,n", "n,2"}
        ``"2,n"``: layers are ``(2, num_blocks, block_size, kv_heads, head_dim)``; ``"n,2"``: ``(num_blocks, 2,
        block_size, kv_heads, head_dim)``.
    block_tokens : int, optional
        Tokens per block of the storage, the engine's `block_size` if not given; one must divide the other.

    Returns
    -------
    blocks : numpy.ndarray
        ``(n_blocks, kv_heads, block_tokens, head_dim)``, C order, a copy. Block
        ``(token_block * n_layers + layer) * 2 + (0 key | 1 value)``; the last token block is padded with zeros.
    layout : CacheLayout
        ``layout.to_meta()`` makes it travel with an agent.

    Raises
    ------
    TypeError
        A layer is no array, or `n_tokens` or the block table do not hold whole numbers.
    ValueError
        Layers differ or have another shape than `order` says, a page is out of range or listed twice, there are too
        few pages, or neither of `block_tokens` and the engine's `block_size` divides the other.

    Examples
    --------
    >>> import numpy as np
    >>> layers = [np.arange(2 * 5 * 4 * 1 * 2, dtype=np.float32).reshape(2, 5, 4, 1, 2) for _ in range(3)]
    >>> blocks, layout = pages_to_blocks(layers, [3, 0], 6, order="2,n")
    >>> blocks.shape, layout.n_tokens
    ((12, 1, 4, 2), 6)
    >>> blocks[0, 0, :, 0].tolist(), blocks[6, 0, :, 0].tolist()
    ([24.0, 26.0, 28.0, 30.0], [0.0, 2.0, 0.0, 0.0])
    """
    sequence, layout = _described(layers, block_table, n_tokens, order, block_tokens)
    return gather_pages(sequence, layout), layout


def register_pages(
    storage: "TokenDanceStorage",
    agent: str,
    layers: Sequence[Any] | Any,
    block_table: Iterable[int] | Any,
    n_tokens: int,
    *,
    order: Order,
    block_tokens: int | None = None,
) -> "SparseKVDiff | None":
    """Register an agent by its sequence's pages; `load_pages` and the other adapters bring it back.

    In a storage with ``ragged=False`` a shorter agent is padded with zero blocks, which never come back. To register
    a round at once, pass what `pages_to_blocks` returns to ``storage.register_round``.

    Parameters
    ----------
    storage : TokenDanceStorage
        In memory or open for writing. An agent becomes its master if it has none.
    agent : str
    layers, block_table, n_tokens, order, block_tokens
        As `pages_to_blocks` takes them; `block_tokens` is the same for all agents of a storage.

    Returns
    -------
    SparseKVDiff or None
        What the agent has of its own; None for the master, which is kept whole.

    Raises
    ------
    TypeError, ValueError
        As `pages_to_blocks`.
    ShapeMismatchError
        The sequence does not fit the agents that are there: it is of another model, or longer and the storage is not
        ragged; a ValueError.

    Examples
    --------
    >>> import numpy as np, tokendance as td
    >>> storage = td.TokenDanceStorage(ragged=True)
    >>> layers = np.ones((3, 2, 5, 4, 1, 2), np.float32)
    >>> register_pages(storage, "planner", layers, [3, 0], 6, order="2,n")
    >>> register_pages(storage, "critic", layers, [3, 0, 1], 9, order="2,n").n_diff_blocks
    12
    """
    sequence, layout = _described(layers, block_table, n_tokens, order, block_tokens)
    return register_laid_out(storage, agent, layout, lambda padded: gather_pages(sequence, padded))


def load_pages(
    storage: "TokenDanceStorage",
    agent: str,
    layers: Sequence[Any] | Any,
    block_table: Iterable[int] | Any,
    *,
    order: Order,
) -> int:
    """Restore an agent straight into an engine's pages, bit for bit if the storage's threshold is 0.

    One pass, a few MiB at a time: no dense copy of the agent is made. Pages that are not in the block table, and the
    slots behind the last token, are left as they are. Everything is checked first, checksums included, so that a call
    that raises has written nothing.

    Parameters
    ----------
    storage : TokenDanceStorage
        In memory or open; it is not changed.
    agent : str
        Registered by `register_pages` or another adapter; ``CacheLayout.from_meta(storage.meta(agent)).n_tokens`` says
        how many tokens the pages must hold.
    layers : sequence of arrays, or one array with the layers in front
        As for `pages_to_blocks`, of the agent's layers, heads, head size and dtype, and writable.
    block_table : sequence of int
        Which pages to fill, in the order of the tokens; entries behind those that are needed are not looked at.
    order : {"2,n", "n,2"}
        As for `pages_to_blocks`.

    Returns
    -------
    int
        How many tokens the pages hold now.

    Raises
    ------
    UnknownAgentError
        No agent has this id; a KeyError.
    TypeError, ValueError
        As `pages_to_blocks`; or the agent was registered without a layout, or a layer is read-only.
    ShapeMismatchError
        The pages are of another model than the agent; a ValueError.
    StoreCorruptError
        The store is damaged; a ValueError.

    Examples
    --------
    >>> import numpy as np, tokendance as td
    >>> storage = td.TokenDanceStorage()
    >>> register_pages(storage, "planner", np.ones((3, 2, 5, 4, 1, 2), np.float32), [3, 0], 6, order="2,n")
    >>> layers = [np.zeros((7, 2, 2, 1, 2), np.float32) for _ in range(3)]
    >>> load_pages(storage, "planner", layers, [6, 1, 4], order="n,2")
    6
    >>> layers[0][:, 0, :, 0, 0].sum(axis=1).tolist()
    [0.0, 2.0, 0.0, 0.0, 2.0, 0.0, 2.0]
    """
    # One state for everything that follows, whatever other threads register meanwhile.
    cohort = storage._cohort
    stored = stored_layout(cohort, agent)
    sequence = paged_sequence(layers, block_table, stored.n_tokens, order, written=True)
    if mismatch := layout_mismatch(sequence.layout(stored.n_tokens, stored.block_tokens), stored):
        raise ShapeMismatchError(f"the pages have {mismatch} as agent {agent!r} has: pass the pages of its model")
    check_sizes(stored.block_tokens, sequence.page_tokens)
    for first, blocks in token_slabs(cohort, agent, stored):
        pour_into_pages(blocks, stored, sequence, first_token_block=first)
    return stored.n_tokens


def _described(
    layers: Any, block_table: Any, n_tokens: int, order: Order, block_tokens: int | None
) -> tuple[PagedSequence, CacheLayout]:
    count = whole_number(n_tokens, "n_tokens")
    sequence = paged_sequence(layers, block_table, count, order)
    per_block = sequence.page_tokens if block_tokens is None else whole_number(block_tokens, "block_tokens")
    layout = sequence.layout(count, per_block)
    check_sizes(per_block, sequence.page_tokens)
    return sequence, layout
