"""What a picture of a store needs to know."""

from dataclasses import dataclass
from typing import NamedTuple

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
    """

    name: str
    master: bool
    n_blocks: int
    own: NDArray[np.int64]
    logical_bytes: int
    stored_bytes: int


class Moment(NamedTuple):
    """The sizes of a store at a generation."""

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
    mirrors = storage.mirrors
    agents = []
    for name in storage.agents:
        if name == stats["master_id"]:
            # What the mirrors share is 0 for the master's row: all of it is kept.
            n_bytes = stats["logical_bytes"] - sum(one["logical_bytes"] for one in stats["mirrors"].values())
            agents.append(
                DrawnAgent(name, True, stats["master_blocks"], np.empty(0, np.int64), int(n_bytes), int(n_bytes))
            )
        else:
            told, own = stats["mirrors"][name], mirrors[name].block_indices
            agents.append(DrawnAgent(name, False, told["n_blocks"], own, told["logical_bytes"], told["stored_bytes"]))
    return StoreFacts(
        path=storage.path,
        generation=storage.generation,
        agents=tuple(agents),
        logical_bytes=stats["logical_bytes"],
        stored_bytes=stats["stored_bytes"],
        n_layers=_layers_of(storage),
        moments=_moments_of(storage),
    )


def _layers_of(storage: td.TokenDanceStore) -> int | None:
    found = set()
    for name in storage.agents:
        try:
            found.add(CacheLayout.from_meta(storage.meta(name)).n_layers)
        except ValueError:
            return None
    return found.pop() if len(found) == 1 else None


def _moments_of(storage: td.TokenDanceStore) -> tuple[Moment, ...]:
    history = [one for one in storage.history() if one.number <= storage.generation and one.agents]
    chosen = np.unique(np.linspace(0, len(history) - 1, min(len(history), _MOST_MOMENTS)).round().astype(int))
    moments = []
    for generation in (history[index] for index in chosen.tolist()):
        try:
            with td.open(storage.path, mode="r", at=generation.number) as earlier:
                stats = earlier.stats()
        except td.UnknownGenerationError:  # collected meanwhile
            continue
        sizes = stats["logical_bytes"], stats["stored_bytes"]
        moments.append(Moment(generation.number, generation.tags, *sizes, generation.written_bytes))
    return tuple(moments)
