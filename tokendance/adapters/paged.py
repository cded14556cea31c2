"""KV caches of paged engines: from vLLM's pages and LMCache's chunks to blocks and back, bit for bit.

Arrays are numpy's or torch's, on the CPU; torch is not needed for numpy's. Blocks are laid out as those of
`tokendance.adapters.transformers`, so that what one adapter registered another can load.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokendance.adapters.array_bits import Bits, bits_of, is_array, is_tensor
from tokendance.adapters.cache_layout import CacheLayout
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

Order = Literal["2,n", "n,2"]


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
    >>> import tokendance as td
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
    >>> import tokendance as td
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
    pairs, dtype = _sides(layers, order, written=True)
    sequence = PagedSequence(pairs, _pages(block_table, stored.n_tokens, pairs[0][0].shape), dtype)
    if mismatch := layout_mismatch(sequence.layout(stored.n_tokens, stored.block_tokens), stored):
        raise ShapeMismatchError(f"the pages have {mismatch} as agent {agent!r} has: pass the pages of its model")
    _check_sizes(stored.block_tokens, sequence.page_tokens)
    for first, blocks in token_slabs(cohort, agent, stored):
        pour_into_pages(blocks, stored, sequence, first_token_block=first)
    return stored.n_tokens


def _described(
    layers: Any, block_table: Any, n_tokens: int, order: Order, block_tokens: int | None
) -> tuple[PagedSequence, CacheLayout]:
    pairs, dtype = _sides(layers, order, written=False)
    count = _whole_number(n_tokens, "n_tokens")
    page_tokens = pairs[0][0].shape[1]
    per_block = page_tokens if block_tokens is None else _whole_number(block_tokens, "block_tokens")
    if count < 1 or per_block < 1:
        raise ValueError(f"n_tokens is {count} and block_tokens {per_block}; expected at least 1 of each")
    _check_sizes(per_block, page_tokens)
    sequence = PagedSequence(pairs, _pages(block_table, count, pairs[0][0].shape), dtype)
    return sequence, sequence.layout(count, per_block)


def _sides(layers: Any, order: Order, *, written: bool) -> tuple[tuple[tuple[Bits, Bits], ...], str]:
    """Return each layer's keys and values as integers, and their dtype."""
    if order not in ("2,n", "n,2"):
        raise ValueError(f"order is {order!r}; expected '2,n' for (2, num_blocks, ...) or 'n,2' for (num_blocks, 2, ...)")
    axis = 0 if order == "2,n" else 1
    found = [bits_of(layer, f"layer {index}", written=written) for index, layer in enumerate(layers)]
    if not found:
        raise ValueError("there are no layers; expected one array per layer")
    dtype, first = found[0]
    if first.ndim != 5 or first.shape[axis] != 2 or 0 in first.shape:
        expected = "(2, num_blocks, ...)" if axis == 0 else "(num_blocks, 2, ...)"
        one = " (one layer goes in a list)" if is_array(layers) else ""
        raise ShapeMismatchError(
            f"layer 0 has shape {first.shape}; expected five axes, {expected[:-4]}block_size, kv_heads, head_dim), for "
            f"order {order!r}{one}: pass the other order, or pages of a model whose keys and values are alike"
        )
    for index, (name, bits) in enumerate(found):
        if (name, bits.shape) != (dtype, first.shape):
            raise ShapeMismatchError(
                f"layer {index} is {name} {bits.shape}, layer 0 is {dtype} {first.shape}: all layers must be alike"
            )
    if written and len({bits.ctypes.data for _, bits in found}) < len(found):
        raise ValueError("two layers are the same memory, and each would overwrite the other: pass an array per layer")
    return tuple((bits.take_side(0), bits) for bits in ()) or _split(found, axis), dtype


def _split(found: list[tuple[str, Bits]], axis: int) -> tuple[tuple[Bits, Bits], ...]:
    return tuple((bits[0], bits[1]) if axis == 0 else (bits[:, 0], bits[:, 1]) for _, bits in found)


def _pages(block_table: Any, n_tokens: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the pages that `n_tokens` need, checked."""
    num_blocks, page_tokens = shape[:2]
    if is_tensor(block_table):
        block_table = block_table.detach().cpu().numpy()
    table = np.asarray(block_table if isinstance(block_table, np.ndarray) else list(block_table))
    if table.ndim != 1 or (table.dtype.kind not in "iu" and len(table)):
        raise TypeError(f"block_table is {table.ndim}-D {table.dtype}; expected a list of page numbers")
    needed = -(-n_tokens // page_tokens)
    if len(table) < needed:
        raise ValueError(
            f"block_table has {len(table)} pages of {page_tokens} tokens; {n_tokens} tokens need {needed}: add pages"
        )
    used = table[:needed]
    wrong = (used < 0) | (used >= num_blocks)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"block_table[{at}] is {used[at]}; expected a page from 0 to {num_blocks - 1}")
    pages = used.astype(np.int64)
    order = np.argsort(pages, kind="stable")
    twice = np.flatnonzero(np.diff(pages[order]) == 0)
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise ValueError(
            f"block_table names page {pages[first]} twice, at {first} and {second}; expected each page once (tables of "
            "sliding-window layers, which repeat a null page, are not supported)"
        )
    return pages


def _check_sizes(block_tokens: int, page_tokens: int) -> None:
    if block_tokens % page_tokens and page_tokens % block_tokens:
        raise ValueError(
            f"blocks of {block_tokens} tokens and pages of {page_tokens} do not fit each other; expected one to be a "
            "multiple of the other: register with a block_tokens that is"
        )


def _whole_number(value: Any, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected a whole number") from None
