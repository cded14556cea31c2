"""KV caches of Hugging Face transformers 5: from `DynamicCache` to blocks and back, bit for bit.

Taken are caches of full-attention layers with one sequence each (batch size 1). Everything else is refused with the
reason. torch and transformers are imported by the functions, not by this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokendance.adapters.cache_layout import META_KEY, CacheLayout, layers_to_blocks, pour_blocks
from tokendance.adapters.dynamic_cache import empty_cache, layer_bits, layout_of
from tokendance.adapters.laid_out_agents import stored_layout
from tokendance.adapters.layer_restore import restore_layers
from tokendance.adapters.model_identity import identity_of
from tokendance.errors import ShapeMismatchError
from tokendance.validate import check_caches

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import DynamicCache

    from tokendance import SparseKVDiff, TokenDanceStorage

__all__ = ["blocks_to_cache", "cache_to_blocks", "identity_of", "load_cache", "register_caches"]


def cache_to_blocks(cache: DynamicCache, block_tokens: int = 16) -> tuple[NDArray[Any], CacheLayout]:
    """Lay a cache out as blocks, so that growing it appends blocks and changes none but the last token block.

    Parameters
    ----------
    cache : transformers.DynamicCache
        Full-attention layers of ``(1, kv_heads, n_tokens, head_dim)``, all of one shape, in float64, float32, float16,
        bfloat16, float8_e4m3fn or float8_e5m2, on any device. It is not changed.
    block_tokens : int
        Tokens per block.

    Returns
    -------
    blocks : ndarray
        ``(n_blocks, kv_heads, block_tokens, head_dim)``, C order, a copy. Block
        ``(token_block * n_layers + layer) * 2 + (0 key | 1 value)``; the last token block is padded with zeros.
        bfloat16 and float8 are ml_dtypes' numpy dtypes.
    layout : CacheLayout
        What `blocks_to_cache` needs to undo this; ``layout.to_meta()`` makes it travel with an agent.

    Raises
    ------
    TypeError
        `cache` is not a DynamicCache of full-attention layers.
    ValueError
        `cache` is empty, offloading, holds several sequences, or its layers differ in shape or dtype; or
        `block_tokens` is less than 1.
    ImportError
        torch or transformers is missing.

    Examples
    --------
    >>> blocks, layout = cache_to_blocks(model(**inputs).past_key_values)  # doctest: +SKIP
    >>> storage.register_master("planner", blocks, meta=layout.to_meta())  # doctest: +SKIP
    """
    layout = layout_of(cache, block_tokens)
    return layers_to_blocks(layer_bits(cache), layout), layout


def blocks_to_cache(blocks: NDArray[Any], layout: CacheLayout) -> DynamicCache:
    """Build the cache that `cache_to_blocks` took apart.

    Parameters
    ----------
    blocks : ndarray
        ``(layout.n_blocks, *layout.block_shape)`` of ``layout.numpy_dtype``.
    layout : CacheLayout
        As `cache_to_blocks` returned it, or ``CacheLayout.from_meta(storage.meta(agent))``.

    Returns
    -------
    transformers.DynamicCache
        On the CPU; each layer's keys and values are contiguous ``(1, kv_heads, n_tokens, head_dim)`` tensors that own
        their memory.

    Raises
    ------
    ShapeMismatchError
        `blocks` do not fit `layout`; a ValueError.
    ImportError
        torch or transformers is missing.

    Examples
    --------
    >>> blocks, layout = cache_to_blocks(cache)  # doctest: +SKIP
    >>> blocks_to_cache(blocks, layout).get_seq_length() == cache.get_seq_length()  # doctest: +SKIP
    True
    """
    layout.check_blocks(blocks, layout.n_blocks)
    cache = empty_cache(layout)
    pour_blocks(blocks, layout, layer_bits(cache))
    return cache


def register_caches(
    storage: TokenDanceStorage, caches: Mapping[str, DynamicCache], *, block_tokens: int = 16
) -> dict[str, SparseKVDiff]:
    """Register a round of agents by their caches; `load_cache` brings each one back.

    Caches may differ in length. A storage with ``ragged=False`` takes them padded with zero blocks to the longest;
    the padding costs each shorter agent those blocks, and never comes back.

    Parameters
    ----------
    storage : TokenDanceStorage
        In memory or open for writing.
    caches : mapping of str to transformers.DynamicCache
        Each as `cache_to_blocks` takes it, all of one model: the same layers, heads, head size and dtype. Blocks are
        made of all of them at once, so the call needs as much memory again as the caches themselves.
    block_tokens : int
        Tokens per block; the same for all agents of a storage.

    Returns
    -------
    dict of str to SparseKVDiff
        What ``storage.register_round`` returns.

    Raises
    ------
    TypeError, ValueError
        As `cache_to_blocks`, naming the agent; or there are no caches.
    ShapeMismatchError
        An agent's cache is of another model than the others', or does not fit those in the storage; a ValueError.
    ImportError
        torch or transformers is missing.

    Examples
    --------
    >>> with td.open("round.td", identity=identity_of(model)) as storage:  # doctest: +SKIP
    ...     register_caches(storage, {"planner": planner_cache, "critic": critic_cache})
    """
    check_caches(caches)
    layouts = {agent: _layout_for_agent(agent, cache, block_tokens) for agent, cache in caches.items()}
    staying = _layouts_in(storage, without=caches)
    _check_one_model(staying | layouts)
    if not storage.ragged:
        longest = max(layout.n_blocks for layout in (*staying.values(), *layouts.values()))
        layouts = {agent: replace(layout, n_blocks=longest) for agent, layout in layouts.items()}
    blocks = {agent: layers_to_blocks(layer_bits(cache), layouts[agent]) for agent, cache in caches.items()}
    return storage.register_round(blocks, meta={agent: layout.to_meta() for agent, layout in layouts.items()})


def load_cache(storage: TokenDanceStorage, agent: str) -> DynamicCache:
    """Bring an agent's cache back, bit for bit if the storage's threshold is 0, without any padding.

    Blocks go straight into the tensors of each layer, their checksums verified, so the call needs hardly more memory
    than the cache that it returns.

    Parameters
    ----------
    storage : TokenDanceStorage
        In memory or open; it is not changed.
    agent : str
        An agent that `register_caches` registered.

    Returns
    -------
    transformers.DynamicCache
        As `blocks_to_cache` returns it: on the CPU, its own memory, ready to go on generating.

    Raises
    ------
    UnknownAgentError
        No agent has this id; a KeyError.
    ValueError
        The agent was not registered by `register_caches`, or has other blocks now than it was registered with.
    StoreCorruptError
        The store is damaged; a ValueError.
    ImportError
        torch or transformers is missing.

    Examples
    --------
    >>> with td.open("round.td", mode="r") as storage:  # doctest: +SKIP
    ...     cache = load_cache(storage, "planner")
    >>> model.generate(input_ids, past_key_values=cache)  # doctest: +SKIP
    """
    # One state for everything that follows, whatever other threads register meanwhile.
    cohort = storage._cohort
    layout = stored_layout(cohort, agent)
    cache = empty_cache(layout)
    restore_layers(cohort, agent, layout, layer_bits(cache))
    return cache


@contextmanager
def _naming(agent: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"agent {agent!r}: {error}") from error


def _layout_for_agent(agent: str, cache: DynamicCache, block_tokens: int) -> CacheLayout:
    with _naming(agent):
        return layout_of(cache, block_tokens)


def _registered_layout(agent: str, meta: Mapping[str, Any]) -> CacheLayout:
    with _naming(agent):
        return CacheLayout.from_meta(meta)


def _layouts_in(storage: TokenDanceStorage, *, without: Mapping[str, Any]) -> dict[str, CacheLayout]:
    """Return the layouts of agents that stay as they are; agents that did not come from here have none."""
    metas = {agent: storage.meta(agent) for agent in storage.agents if agent not in without}
    return {agent: _registered_layout(agent, meta) for agent, meta in metas.items() if META_KEY in meta}


def _check_one_model(layouts: Mapping[str, CacheLayout]) -> None:
    first, *others = layouts
    for agent in others:
        for name in ("n_layers", "kv_heads", "head_dim", "dtype", "block_tokens"):
            got, expected = getattr(layouts[agent], name), getattr(layouts[first], name)
            if got != expected:
                raise ShapeMismatchError(
                    f"agent {agent!r} has {name} {got}, agent {first!r} has {expected}: one storage holds the caches "
                    "of one model; open another for the other"
                )
