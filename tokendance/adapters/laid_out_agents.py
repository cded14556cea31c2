"""Agents whose blocks have a known layout: how one is registered, and how its blocks come back for another layout.

What adapters have in common, whatever framework the cache is from.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tokendance.adapters.cache_layout import META_KEY, CacheLayout
from tokendance.cohort import Cohort
from tokendance.errors import ShapeMismatchError
from tokendance.restoring import copy_blocks
from tokendance.store.fresh import aligned_empty
from tokendance.store.place import Own

if TYPE_CHECKING:
    from tokendance import SparseKVDiff, TokenDanceStorage

__all__ = ["layout_mismatch", "register_laid_out", "stored_layout", "token_slabs"]

# A slab this large is still in the processor's cache when it is poured into the layers.
_SLAB_BYTES: Final = 4 << 20


def register_laid_out(
    storage: "TokenDanceStorage",
    agent: str,
    layout: CacheLayout,
    make_blocks: Callable[[CacheLayout], NDArray[Any]],
    meta: Mapping[str, Any] | None = None,
) -> "SparseKVDiff | None":
    """Register an agent whose layout travels in its meta.

    Parameters
    ----------
    storage : TokenDanceStorage
    agent : str
    layout : CacheLayout
        In as few blocks as the tokens need; padded here where all agents must have one length.
    make_blocks : callable
        Returns the blocks of the layout that it is given.
    meta : dict, optional
        What else to say of the agent.

    Returns
    -------
    SparseKVDiff or None
        None for the master.

    Raises
    ------
    ShapeMismatchError
        The layout, or the number of blocks, does not fit the agents that are there.
    """
    cohort = storage._cohort
    others = [other for other in cohort.agents() if other != agent]
    laid_out = next((other for other in others if META_KEY in cohort.meta(other)), None)
    if laid_out is not None:
        _check_one_model(agent, layout, laid_out, _registered_layout(laid_out, cohort.meta(laid_out)))
    if others and not storage.ragged:
        layout = replace(layout, n_blocks=max(layout.n_blocks, cohort.n_blocks(others[0])))
    said = {**(meta or {}), **layout.to_meta()}
    return storage.register_round({agent: make_blocks(layout)}, meta={agent: said}).get(agent)


def stored_layout(cohort: Cohort, agent: str) -> CacheLayout:
    """Return an agent's layout, once it is sure that the agent's blocks are what it says.

    Raises
    ------
    UnknownAgentError
        No agent has this id.
    ValueError
        The agent has no layout, or one that cannot be right.
    ShapeMismatchError
        The agent has other blocks than its layout says.
    """
    meta = cohort.meta(agent)
    if META_KEY not in meta:
        raise ValueError(
            f"agent {agent!r} was registered without a layout, so its layers are not known: take its blocks with "
            "storage.reconstruct(agent), or register it with one of the adapters"
        )
    layout = _registered_layout(agent, meta)
    dtype_name, block_shape = cohort.needs_master().block_type
    got = f"{cohort.n_blocks(agent)} blocks of {dtype_name} {tuple(block_shape)}"
    said = f"{layout.n_blocks} blocks of {layout.dtype} {layout.block_shape}"
    if got != said:
        raise ShapeMismatchError(
            f"agent {agent!r} has {got}, but was registered with {said}: register its cache again, or take its blocks "
            "with storage.reconstruct(agent)"
        )
    return layout


def token_slabs(cohort: Cohort, agent: str, layout: CacheLayout) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield an agent's blocks a few MiB at a time; what cannot be read raises before the first.

    Parameters
    ----------
    cohort : Cohort
    agent : str
    layout : CacheLayout
        As `stored_layout` returns it.

    Yields
    ------
    first_token_block : int
    blocks : numpy.ndarray
        ``(k * n_layers * 2, kv_heads, block_tokens, head_dim)``, valid until the next step. Padding behind the last
        token block that is used is left out.

    Raises
    ------
    StoreCorruptError
        A block is damaged or missing.
    """
    sources, own = cohort.sources(agent)
    sources = sources[: layout.used_blocks]
    _check_contents(cohort, sources, own)
    row_bytes = cohort.needs_master().rows.row_bytes
    per_token_block = 2 * layout.n_layers
    n_token_blocks = layout.used_blocks // per_token_block
    step = min(n_token_blocks, max(1, _SLAB_BYTES // (per_token_block * row_bytes)))
    room = aligned_empty(step * per_token_block * row_bytes).reshape(-1, row_bytes)
    for first in range(0, n_token_blocks, step):
        wanted = sources[first * per_token_block : (first + step) * per_token_block]
        slab = copy_blocks(cohort, wanted, own, room[: len(wanted)])
        yield first, slab.reshape(-1).view(layout.numpy_dtype).reshape(-1, *layout.block_shape)


def layout_mismatch(came: CacheLayout, stored: CacheLayout) -> str | None:
    """Say in which respect a cache cannot hold what was stored, None if it can."""
    for name in ("dtype", "n_layers", "kv_heads", "head_dim"):
        got, expected = getattr(came, name), getattr(stored, name)
        if got != expected:
            return f"{name} {got}, expected {expected}"
    return None


def _check_contents(cohort: Cohort, sources: NDArray[np.int64], own: Own | None) -> None:
    # Rows are checked when they are first looked at; an engine's pages must not be half written by then.
    ours = sources < 0
    if not ours.all():
        cohort.needs_master().rows.view(sources[~ours])
    if own is not None and ours.any():
        own.rows.view(~sources[ours])


def _registered_layout(agent: str, meta: Mapping[str, Any]) -> CacheLayout:
    try:
        return CacheLayout.from_meta(meta)
    except ValueError as error:
        raise type(error)(f"agent {agent!r}: {error}") from error


def _check_one_model(agent: str, layout: CacheLayout, other: str, expected: CacheLayout) -> None:
    if layout.block_tokens != expected.block_tokens:
        raise ShapeMismatchError(
            f"agent {agent!r} has block_tokens {layout.block_tokens}, agent {other!r} has {expected.block_tokens}: "
            f"pass block_tokens={expected.block_tokens}"
        )
    if mismatch := layout_mismatch(layout, expected):
        raise ShapeMismatchError(
            f"agent {agent!r} has {mismatch}, as agent {other!r} has: one storage holds the caches of one model; open "
            "another for the other"
        )
