"""What a picture of a store needs to know."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from tokendance.adapters.cache_layout import CacheLayout

__all__ = ["DrawnAgent", "Moment", "StoreFacts", "gathered"]

# Each older state is opened for its sizes; more than this many points are not told apart anyway.
_MOST_MOMENTS = 64


@dataclass(frozen=True, slots=True, eq=False)
class DrawnAgent:
    """An agent: how long it is, which blocks are its own, and what it takes.

    Attributes
    ----------
    name : str
    master : bool
        It is kept whole; `own` is empty then.
    n_blocks : int
    own : numpy.ndarray
        Sorted positions, int64.
    logical_bytes, stored_bytes : int
    forked_bytes : int
        What of `stored_bytes` is stored once, with an agent above.
    """

    name: str
    master: bool
    n_blocks: int
    own: NDArray[np.int64]
    logical_bytes: int
    stored_bytes: int
    forked_bytes: int = 0


class Moment(NamedTuple):
    """The sizes of a store at a generation; what was written is by all commits since the moment before."""

    generation: int
    tags: tuple[str, ...]
    logical_bytes: int
    stored_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class StoreFacts:
    """A store at one moment, and its history.

    Attributes
    ----------
    path : str
    generation : int
    agents : tuple of DrawnAgent
        The master first.
    logical_bytes, stored_bytes : int
    n_layers : int or None
        How many layers of keys and values each token block has, where all agents say the same.
    moments : tuple of Moment
        Oldest first; of a long history, some.
    """

    path: str
    generation: int
    agents: tuple[DrawnAgent, ...]
    logical_bytes: int
    stored_bytes: int
    n_layers: int | None
    moments: tuple[Moment, ...]


def gathered(storage: td.TokenDanceStore) -> StoreFacts:
    """Look at a store; reads positions, no blocks."""
    stats = storage.stats()
    return StoreFacts(
        path=storage.path,
        generation=storage.generation,
        agents=tuple(_agents_of(storage, stats)),
        logical_bytes=stats["logical_bytes"],
        stored_bytes=stats["stored_bytes"],
        n_layers=_layers_of(storage),
        moments=_moments_of(storage),
    )


def _agents_of(storage: td.TokenDanceStore, stats: dict[str, Any]) -> Iterator[DrawnAgent]:
    mirrors, seen = storage.mirrors, set()
    for name in storage.agents:
        if name == stats["master_id"]:
            n_bytes = stats["logical_bytes"] - sum(one["logical_bytes"] for one in stats["mirrors"].values())
            yield DrawnAgent(name, True, stats["master_blocks"], np.empty(0, np.int64), int(n_bytes), int(n_bytes))
            continue
        told, own = stats["mirrors"][name], mirrors[name].block_indices
        # A fork has its parent's own blocks, the very ones, until either changes.
        stored = storage._cohort.mirrors[name].table.own
        forked = told["stored_bytes"] if id(stored) in seen else 0
        seen.add(id(stored))
        yield DrawnAgent(name, False, told["n_blocks"], own, told["logical_bytes"], told["stored_bytes"], forked)


def _layers_of(storage: td.TokenDanceStore) -> int | None:
    found = set()
    for name in storage.agents:
        try:
            found.add(CacheLayout.from_meta(storage.meta(name)).n_layers)
        except ValueError:
            return None
    return found.pop() if len(found) == 1 else None


def _moments_of(storage: td.TokenDanceStore) -> tuple[Moment, ...]:
    history = [one for one in storage.history() if one.number <= storage.generation]
    with_agents = [index for index, one in enumerate(history) if one.agents]
    chosen = np.linspace(0, len(with_agents) - 1, min(len(with_agents), _MOST_MOMENTS)).round().astype(int)
    moments: list[Moment] = []
    begin = 0
    for index in (with_agents[at] for at in chosen.tolist()):
        generation = history[index]
        try:
            with td.open(storage.path, mode="r", at=generation.number) as earlier:
                stats = earlier.stats()
        except td.UnknownGenerationError:  # collected meanwhile
            continue
        written = sum(one.written_bytes for one in history[begin : index + 1])
        moments.append(
            Moment(generation.number, generation.tags, stats["logical_bytes"], stats["stored_bytes"], written)
        )
        begin = index + 1
    return tuple(moments)
