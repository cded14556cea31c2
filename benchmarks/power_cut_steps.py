"""What writers do until the power is cut: numbered steps that anyone can do again, to know what each left."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIRST", "WORKLOADS", "Caches", "Operation", "State", "operations", "state_after"]

Cache = NDArray[np.uint8]
Caches = Mapping[str, Cache]

BLOCK = (16, 1024)  # 16 KiB
MIRRORS = ("a", "b", "c", "d", "e", "f")
OWN_BLOCKS = 96


class Operation(NamedTuple):
    """One change.

    Attributes
    ----------
    what : str
        ``"append"`` the cache to all agents, make it a ``"mirror"`` or the ``"master"``, ``"fork"`` the agent under
        another name, ``"remove"`` it, or ``"tag"`` the state that the step makes.
    """

    what: str
    agent: str = ""
    cache: Cache = np.empty((0, *BLOCK), np.uint8)
    name: str = ""


class State(NamedTuple):
    """What a step leaves: every agent's cache, and what each tag keeps."""

    caches: Caches
    tags: Mapping[str, Caches]


def _blocks(seed: int, n: int) -> Cache:
    return np.frombuffer(np.random.default_rng(seed).bytes(n * BLOCK[0] * BLOCK[1]), np.uint8).reshape(n, *BLOCK)


_MASTER = _blocks(0, 512)


def _near(seed: int) -> Cache:
    """Return the first master with other blocks here and there."""
    cache = _MASTER.copy()
    at = np.random.default_rng(seed).choice(len(cache), OWN_BLOCKS, replace=False)
    cache[at] = _blocks(-seed % 2**32, OWN_BLOCKS)
    return cache


def _append(n: int) -> list[Operation]:
    return [Operation("append", cache=_blocks(n, 1 + n * 7 % 48))]


def _mirror(n: int) -> list[Operation]:
    return [Operation("mirror", MIRRORS[n % len(MIRRORS)], _near(n))]


def _fork(n: int) -> list[Operation]:
    """Every step a twin under a new name; it or its like differ a little later, and the oldest goes."""
    made = [Operation("fork", "a" if n % 3 else "m", name=f"fork {n}")]
    if n % 2 == 0:
        made.append(Operation("mirror", f"fork {n}", _near(n)))
    if n > 6:
        made.append(Operation("remove", f"fork {n - 6}"))
    return made


def _collection(n: int) -> list[Operation]:
    """Objects of both kinds are replaced, and a tag moves, so that each collection has something to remove."""
    made = [Operation("mirror", MIRRORS[n % 3], _near(n))]
    if n % 4 == 0:
        made.append(Operation("master", "m", _near(2**20 + n)))
    if n % 5 == 0:
        made.append(Operation("tag", name=f"tag {n // 5 % 2}"))
    return made


# Small caches where every step makes them longer.
FIRST: Mapping[str, Caches] = {
    "appends": dict.fromkeys(("m", "a", "b"), _MASTER[:64]),
    "mirrors": {"m": _MASTER, **dict.fromkeys(MIRRORS, _MASTER)},
    "forks": {"m": _MASTER, "a": _near(2**20)},
    "collection": {"m": _MASTER, **dict.fromkeys(MIRRORS[:3], _MASTER)},
}
WORKLOADS: Mapping[str, Callable[[int], list[Operation]]] = {
    "appends": _append,
    "mirrors": _mirror,
    "forks": _fork,
    "collection": _collection,
}


def operations(workload: str, step: int) -> list[Operation]:
    """Return the changes that a step, from 1 on, makes in one commit."""
    return WORKLOADS[workload](step)


def state_after(workload: str, step: int) -> State:
    """Return what step 0 (the first caches), 1, 2, … leaves."""
    # Caches as lists of parts, put together at the end: a copy for each append would be most of the time of a check.
    parts: dict[str, list[Cache]] = {agent: [cache] for agent, cache in FIRST[workload].items()}
    tags: dict[str, Caches] = {}
    for number in range(1, step + 1):
        for operation in operations(workload, number):
            _play(operation, parts)
            if operation.what == "tag":
                tags[operation.name] = _joined(parts)
    return State(_joined(parts), tags)


def _joined(parts: Mapping[str, list[Cache]]) -> Caches:
    return {agent: some[0] if len(some) == 1 else np.concatenate(some) for agent, some in parts.items()}


def _play(operation: Operation, parts: dict[str, list[Cache]]) -> None:
    if operation.what == "append":
        for some in parts.values():
            some.append(operation.cache)
    elif operation.what in ("mirror", "master"):
        parts[operation.agent] = [operation.cache]
    elif operation.what == "fork":
        parts[operation.name] = list(parts[operation.agent])
    elif operation.what == "remove":
        del parts[operation.agent]
