"""Those who write until the power is cut, and how what is left of their work is read."""

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tokendance as td
from benchmarks.power_cut_steps import FIRST, Caches, Operation, operations, state_after

__all__ = ["WRITERS", "Writer"]

KEPT_VERSIONS = 10  # of plain zarr's arrays; tokendance keeps 16 generations
Acknowledge = Callable[[int], None]


class Writer(NamedTuple):
    """A library that keeps caches in a folder.

    Attributes
    ----------
    write : callable
        Takes a folder, a workload and whom to tell that step 0, 1, 2, … is written; goes on for ever.
    read : callable
        Takes both and returns the step that it found; raises if nothing can be read, AssertionError if what was read is
        not what that step wrote.
    workloads : tuple of str
    module : str
        What must be installed.
    """

    write: Callable[[Path, str, Acknowledge], None]
    read: Callable[[Path, str], int]
    workloads: tuple[str, ...]
    module: str


def _same(left: Any, right: Any) -> bool:
    return left.shape == right.shape and bool((left == right).all())


# tokendance: step n is generation n + 2, for an empty store is generation 1. -----------------------------------------


def _change(store: td.TokenDanceStore, step: list[Operation]) -> None:
    with store.transaction():
        for what, agent, cache, name in step:
            if what == "append":
                store.collective_reuse_step(store.agents, cache)
            elif what == "mirror":
                store.register_mirror(agent, cache)
            elif what == "master":
                store.register_master(agent, cache)
            elif what == "fork":
                store.fork(agent, name)
            elif what == "remove":
                store.remove(agent)
            else:
                store.tag(name)


def _write_store(folder: Path, workload: str, acknowledge: Acknowledge) -> None:
    with td.open(folder / "s.td", mode="w-", diff_threshold=0) as store:
        store.register_round(FIRST[workload], master="m")
        for step in count(1):
            acknowledge(step - 1)
            _change(store, operations(workload, step))
            if workload == "collection":
                store.gc()


def _holds(store: td.TokenDanceStore, caches: Caches) -> None:
    assert set(store.agents) == set(caches), f"the agents are {store.agents}"
    for agent, cache in caches.items():
        assert _same(store.reconstruct(agent), cache), f"{agent} is wrong"
        assert _same(store.reconstruct(agent, copy=False), cache), f"{agent}, mapped, is wrong"


def _read_store(folder: Path, workload: str) -> int:
    path = folder / "s.td"
    with td.open(path, mode="r") as store:
        step = store.generation - 2
        state = state_after(workload, step)
        _holds(store, state.caches)
        assert set(store.tags) == set(state.tags), f"the tags are {store.tags}"
    for tag, caches in state.tags.items():
        with td.open(path, mode="r", at=tag) as store:
            _holds(store, caches)
    findings = td.verify(path).findings
    assert not findings, f"verify: {findings[0]}"
    with td.open(path, mode="r+") as store:  # the next writer goes on
        _change(store, operations(workload, step + 1))
        store.gc()
        _holds(store, state_after(workload, step + 1).caches)
        leavings = store.verify().leavings
        assert not leavings, f"gc left {leavings}"
    return step


# zarr and icechunk: every agent whole, the step among the root's attributes. -----------------------------------------


def _new_array(root: Any, name: str, cache: Any) -> None:
    # Uncompressed, in chunks of 4 MiB, as tokendance would: random numbers do not compress.
    made = root.create_array(name, shape=cache.shape, chunks=(256, *cache.shape[1:]), dtype="uint8", compressors=None)
    made[:] = cache


def _check_arrays(workload: str, step: int, read: Callable[[str, int], Any]) -> None:
    """Compare all agents of a step; `read` takes an agent and its length, for rows beyond it may be there."""
    for agent, cache in state_after(workload, step).caches.items():
        assert _same(read(agent, len(cache)), cache), f"{agent} is wrong"


def _write_zarr(folder: Path, workload: str, acknowledge: Acknowledge) -> None:
    """Append in place, write anything else beside; then point to it from the attributes; old arrays go later."""
    import zarr

    root = zarr.open_group(folder / "s.zarr", mode="w", zarr_format=3)
    names = {agent: f"{agent}.0" for agent in FIRST[workload]}
    for agent, cache in FIRST[workload].items():
        _new_array(root, names[agent], cache)
    root.attrs.update({"step": 0, "names": names})
    old: list[str] = []
    for step in count(1):
        acknowledge(step - 1)
        for operation in operations(workload, step):
            if operation.what == "append":
                for name in names.values():
                    root[name].append(operation.cache)
            else:
                old.append(names[operation.agent])
                names[operation.agent] = f"{operation.agent}.{step}"
                _new_array(root, names[operation.agent], operation.cache)
        root.attrs.update({"step": step, "names": names})
        if len(old) > KEPT_VERSIONS:
            del root[old.pop(0)]


def _read_zarr(folder: Path, workload: str) -> int:
    import zarr

    root = zarr.open_group(folder / "s.zarr", mode="r", zarr_format=3)
    step, names = root.attrs["step"], root.attrs["names"]
    _check_arrays(workload, step, lambda agent, n: root[names[agent]][:n])
    return int(step)


def _write_icechunk(folder: Path, workload: str, acknowledge: Acknowledge) -> None:
    import icechunk
    import zarr

    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder / "s.icechunk")))
    session = repository.writable_session("main")
    root = zarr.open_group(session.store, mode="w")
    for agent, cache in FIRST[workload].items():
        _new_array(root, agent, cache)
    root.attrs["step"] = 0
    session.commit("step 0")
    for step in count(1):
        acknowledge(step - 1)
        session = repository.writable_session("main")
        root = zarr.open_group(session.store, mode="r+")
        for operation in operations(workload, step):
            if operation.what == "append":
                for agent in FIRST[workload]:
                    root[agent].append(operation.cache)
            else:
                root[operation.agent][:] = operation.cache
        root.attrs["step"] = step
        session.commit(f"step {step}")


def _read_icechunk(folder: Path, workload: str) -> int:
    import icechunk
    import zarr

    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(folder / "s.icechunk")))
    root = zarr.open_group(repository.readonly_session("main").store, mode="r")
    step = root.attrs["step"]
    _check_arrays(workload, step, lambda agent, n: np.asarray(root[agent][:n]))
    return int(step)


WRITERS: Mapping[str, Writer] = {
    "tokendance": Writer(_write_store, _read_store, ("appends", "mirrors", "forks", "collection"), "tokendance"),
    "plain zarr": Writer(_write_zarr, _read_zarr, ("appends", "mirrors"), "zarr"),
    "icechunk": Writer(_write_icechunk, _read_icechunk, ("appends", "mirrors"), "icechunk"),
}
