"""What a writer is stopped in: each scenario is a store, one operation on it, and what it holds before and after."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from crash_disk import Crash, Disk

import tokendance as td
from tokendance.store import layout

__all__ = ["SCENARIOS", "Scenario", "State", "die_at_step", "go_on", "holds", "shows", "small_chunks", "which"]

CHUNK_BYTES, SMALL_CHUNK_BYTES = 8192, 4096
Caches = Mapping[str, np.ndarray]
WIDE, NARROW = (4, 64), (2, 3)  # blocks of 1 KiB, cut into chunks of 8; blocks of 24 bytes, in one small chunk


class State(NamedTuple):
    """What a store holds: every agent's cache, and every tag's caches. None: there is no store."""

    caches: Caches
    tags: Mapping[str, Caches]


class Scenario(NamedTuple):
    """An operation, and the store that it works on.

    `change` is given the open store, or the path where `opens` is True; `after` is what it makes of the caches.
    """

    prepare: Callable[[Path], State]
    change: Callable
    after: Callable[[State], State]
    opens: bool = False


def small_chunks(monkeypatch) -> None:
    """Cut arrays into chunks of 4 to 8 KiB, so that small caches have many."""
    monkeypatch.setattr("tokendance.store.layout.CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr("tokendance.store.layout.SMALL_CHUNK_BYTES", SMALL_CHUNK_BYTES)


def blocks(seed: int, n: int, shape: tuple[int, ...] = WIDE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def changed(cache: np.ndarray, *positions: int, by: float = 1) -> np.ndarray:
    copy = cache.copy()
    copy[list(positions)] += by
    return copy


def joined(caches: Caches, agents: str, shared: np.ndarray) -> dict[str, np.ndarray]:
    return {key: np.concatenate((cache, shared)) if key in agents else cache for key, cache in caches.items()}


# Stores that operations start from ----------------------------------------------------------------------------------


def cohort(path: Path, shape: tuple[int, ...] = WIDE) -> State:
    """Three agents, two tagged generations before the newest, one of them shorter in the same master."""
    m = blocks(1, 20, shape)
    first = {"m": m, "a": changed(m, 2, 9), "b": changed(m, 9, 19)}
    shared = blocks(2, 3, shape)
    second = joined(first, "ma", shared)
    third = {**second, "b": changed(m, 0)}
    with td.open(path, diff_threshold=0, ragged=True) as store:
        store.register_round(first, master="m")
        store.tag("first")
        store.collective_reuse_step(["m", "a"], shared)
        store.tag("second")
        store.register_mirror("b", third["b"])
    return State(third, {"first": first, "second": second})


def small_cohort(path: Path) -> State:
    return cohort(path, NARROW)


def many_generations(path: Path, turns: int = 16) -> State:
    """As many generations as a commit leaves, whose mirrors each have an object that nobody else needs."""
    state = cohort(path)
    with td.open(path, mode="r+") as store:
        for turn in range(turns):
            store.register_mirror("a", changed(state.caches["a"], turn))
    return State({**state.caches, "a": changed(state.caches["a"], turns - 1)}, state.tags)


def few_generations(path: Path) -> State:
    return many_generations(path, 4)


def nothing(path: Path) -> State:
    return State({}, {})


# Operations ---------------------------------------------------------------------------------------------------------

NEW_ROUND = {"m": blocks(1, 20), "a": changed(blocks(1, 20), 1), "c": changed(blocks(1, 20), 3, 4, 18)}
NEW_M = changed(np.concatenate((blocks(1, 20), blocks(2, 3))), 21)
WITHIN, BEYOND = blocks(3, 1), blocks(4, 9)
WITHIN_SMALL, BEYOND_SMALL = blocks(3, 1, NARROW), blocks(4, 30, NARROW)
SAVED = {"x": blocks(7, 10), "y": changed(blocks(7, 10), 5)}


def several(store: td.TokenDanceStorage) -> None:
    with store.transaction():
        store.register_mirror("c", NEW_ROUND["c"])
        store.collective_reuse_step(["m", "c"], BEYOND)
        store.remove("b")
        store.register_mirror("c", changed(NEW_ROUND["c"], 0))
        store.fork("c", "d")


def after_several(state: State) -> State:
    caches = joined(state.caches, "m", BEYOND)
    del caches["b"]
    c = changed(NEW_ROUND["c"], 0)
    return State({**caches, "c": c, "d": c}, state.tags)


def save(path: Path) -> None:
    storage = td.TokenDanceStorage(0, ragged=True)
    storage.register_round(SAVED, master="x")
    storage.save(path)


def kept(change: Callable[[Caches], Caches]) -> Callable[[State], State]:
    return lambda state: State(change(state.caches), state.tags)


def without(caches: Caches, agent: str) -> Caches:
    return {key: cache for key, cache in caches.items() if key != agent}


SCENARIOS: dict[str, Scenario] = {
    "create": Scenario(
        nothing,
        lambda path: td.open(path, diff_threshold=0, ragged=True).close(),
        lambda state: state,
        opens=True,
    ),
    "register a round": Scenario(
        cohort,
        lambda store: store.register_round(NEW_ROUND),
        kept(lambda caches: {**caches, **NEW_ROUND}),
    ),
    "register a mirror again": Scenario(
        cohort,
        lambda store: store.register_mirror("a", NEW_M),
        kept(lambda caches: {**caches, "a": NEW_M}),
    ),
    "append within a chunk": Scenario(
        cohort,
        lambda store: store.collective_reuse_step(["m", "a", "b"], WITHIN),
        kept(lambda caches: joined(caches, "mab", WITHIN)),
    ),
    "append beyond a chunk": Scenario(
        cohort,
        lambda store: store.collective_reuse_step(["m", "b"], BEYOND),
        kept(lambda caches: joined(caches, "mb", BEYOND)),
    ),
    "append to a small master with room": Scenario(
        small_cohort,
        lambda store: store.collective_reuse_step(["m", "a"], WITHIN_SMALL),
        kept(lambda caches: joined(caches, "ma", WITHIN_SMALL)),
    ),
    "append to a small master without room": Scenario(
        small_cohort,
        lambda store: store.collective_reuse_step(["m", "a"], BEYOND_SMALL),
        kept(lambda caches: joined(caches, "ma", BEYOND_SMALL)),
    ),
    "replace the master": Scenario(
        cohort,
        lambda store: store.register_master("m", NEW_M),
        kept(lambda caches: {**caches, "m": NEW_M}),
    ),
    "fork": Scenario(cohort, lambda store: store.fork("a", "f"), kept(lambda caches: {**caches, "f": caches["a"]})),
    "remove a mirror": Scenario(cohort, lambda store: store.remove("a"), kept(lambda caches: without(caches, "a"))),
    "remove the master": Scenario(cohort, lambda store: store.remove("m"), kept(lambda caches: without(caches, "m"))),
    "rebase": Scenario(cohort, lambda store: store.rebase("b"), lambda state: state),
    "tag": Scenario(
        cohort,
        lambda store: store.tag("third"),
        lambda state: State(state.caches, {**state.tags, "third": state.caches}),
    ),
    "a transaction of several": Scenario(cohort, several, after_several),
    "collect": Scenario(few_generations, lambda store: store.gc(), lambda state: state),
    "a commit that prunes": Scenario(
        many_generations,
        lambda store: store.register_mirror("b", NEW_M),
        kept(lambda caches: {**caches, "b": NEW_M}),
    ),
    "start over": Scenario(
        cohort,
        lambda path: td.open(path, mode="w", diff_threshold=0, ragged=True).close(),
        lambda state: State({}, {}),
        opens=True,
    ),
    "save over a store": Scenario(cohort, save, lambda state: State(SAVED, {}), opens=True),
}


# What is checked afterwards -----------------------------------------------------------------------------------------


def holds(store: td.TokenDanceStorage, caches: Caches, *, mapped: bool = False) -> bool:
    """Say whether a storage has these agents, each the same bit for bit."""
    return set(store.agents) == set(caches) and all(
        got.shape == cache.shape and got.tobytes() == cache.tobytes()
        for key, cache in caches.items()
        for got in [store.reconstruct(key, copy=not mapped)]
    )


def shows(path: Path, state: State) -> bool:
    """Say whether a new reader finds a state and its tags; what the tags keep must be right then."""
    with td.open(path, mode="r") as store:
        if set(store.tags) != set(state.tags) or not holds(store, state.caches):
            return False
        assert holds(store, state.caches, mapped=True), "what is mapped differs from what is copied"
    for tag, caches in state.tags.items():
        with td.open(path, mode="r", at=tag) as store:
            assert holds(store, caches), f"tag {tag} reads wrong"
    return True


def which(path: Path, allowed: list[State]) -> State:
    """Return which of some states a store holds."""
    found = next((state for state in allowed if shows(path, state)), None)
    assert found is not None, f"the store holds none of the {len(allowed)} states that it may"
    return found


def go_on(path: Path, state: State) -> None:
    """Check that the next writer can go on from a state that a store holds."""
    caches = dict(state.caches)
    with td.open(path, mode="r+") as store:
        if not caches:
            caches["m"] = blocks(1, 20)
            store.register_master("m", caches["m"])
        shared = blocks(8, 2, caches[store.master_id].shape[1:])
        store.collective_reuse_step(list(caches), shared)
        caches = {key: np.concatenate((cache, shared)) for key, cache in caches.items()}
        caches["next"] = changed(caches[store.master_id], 0, 1)
        store.register_mirror("next", caches["next"])
        store.gc()
    assert shows(path, State(caches, state.tags)), "the next writer's work reads wrong"


def die_at_step(path: str, name: str, step: int) -> None:
    """Run a scenario's operation in this process and kill it by SIGKILL at a step."""
    scenario = SCENARIOS[name]
    layout.CHUNK_BYTES, layout.SMALL_CHUNK_BYTES = CHUNK_BYTES, SMALL_CHUNK_BYTES
    with Disk(Path(path).parent).mounted() as disk:
        subject = path if scenario.opens else td.open(path, mode="r+")
        disk.arm(step, "kill")
        scenario.change(subject)
    raise Crash("it was not killed")
