"""Stores as the picture knows them, made up or real, which its tests start from."""

from collections.abc import Sequence

import numpy as np

import tokendance as td
from tokendance.adapters.cache_layout import CacheLayout
from tokendance.plots.gather import DrawnAgent, Moment, StoreFacts


def agent(name: str, n_blocks: int, own: Sequence[int] = (), *, master: bool = False) -> DrawnAgent:
    return DrawnAgent(name, master, n_blocks, np.array(own, np.int64), 100 * n_blocks, 100 * len(own))


def facts_of(
    agents: Sequence[DrawnAgent], *, n_layers: int | None = None, moments: Sequence[Moment] = (), path: str = "round.td"
) -> StoreFacts:
    logical = sum(one.logical_bytes for one in agents)
    stored = sum(one.logical_bytes if one.master else one.stored_bytes for one in agents)
    return StoreFacts(path, 7, tuple(agents), logical, stored, n_layers, tuple(moments) or (Moment(7, (), 9, 5, 4),))


def cohort(n_agents: int, n_blocks: int = 48) -> list[DrawnAgent]:
    """A master, and mirrors with a few blocks of their own at different places."""
    mirrors = (agent(f"agent-{i}", n_blocks, [i % n_blocks]) for i in range(n_agents - 1))
    return [agent("main", n_blocks, master=True), *mirrors]


def layered_store(path, n_layers: int = 3, token_blocks: int = 5) -> td.TokenDanceStore:
    """A store with the layout of a model, in which the critic has key 1 and value 2 of token block 4 of its own."""
    said = {"n_layers": n_layers, "kv_heads": 1, "head_dim": 2, "block_tokens": 4}
    layout = CacheLayout.for_tokens(4 * token_blocks, dtype="float32", **said)
    cache = np.zeros((layout.n_blocks, *layout.block_shape), np.float32)
    other = cache.copy()
    for layer, value in ((1, False), (2, True)):
        other[layout.block_of(token=16, layer=layer, value=value)] += 1
    store = td.open(path)
    store.register_master("main", cache, meta=layout.to_meta())
    store.register_mirror("critic", other, meta=layout.to_meta())
    return store
