"""Rows about a store on disk: appending, snapshots, opening, disk use."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from benchmarks.bare import write_npy
from benchmarks.rows import Floor, Row, from_bytes, from_pairs, from_seconds
from benchmarks.timing import Trial, in_turn, timed
from benchmarks.workplace import Workplace, changed

__all__ = ["ROWS", "allocated", "write_zarr"]

_MASTER = "master"
_ROOM_PER_MIRROR = 16 << 10
_ZARR_CHUNK_BYTES = 16 << 20
Arrays = Mapping[str, NDArray[Any]]


def allocated(folder: Path) -> int:
    """Return the bytes that the file system has set aside for a folder and everything in it."""
    found: dict[tuple[int, int], int] = {}
    for path in (folder, *folder.rglob("*")):
        info = path.lstat()
        found[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(found.values())


def write_zarr(path: Path, arrays: Arrays) -> None:
    """Write arrays with zarr alone: no compression, chunks of up to 16 MiB, nothing synced."""
    import zarr

    root = zarr.open_group(path, mode="w", zarr_format=3)
    for name, array in arrays.items():
        rows = max(min(_ZARR_CHUNK_BYTES // (array[0].nbytes or 1), len(array)), 1)
        made = root.create_array(
            name, shape=array.shape, dtype=array.dtype, chunks=(rows, *array.shape[1:]), compressors=None
        )
        made[:] = array


def _unique(master: NDArray[Any], caches: Arrays) -> dict[str, NDArray[Any]]:
    """Return what a round holds once: the master, and each other cache's own blocks and their positions."""
    found: dict[str, NDArray[Any]] = {"master": master}
    for agent, cache in caches.items():
        differs = (cache.view(np.uint8) != master.view(np.uint8)).reshape(len(master), -1).any(axis=1)
        found[f"{agent}/indices"] = np.flatnonzero(differs)
        found[f"{agent}/values"] = cache[differs]
    return found


class _Folder:
    """A new path for each run, removed after it; only the last one may be kept to be looked at."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self.path = place.path()

    def trial(self, write: Callable[[Path], object]) -> Trial:
        """Return a trial that writes to a path where nothing is."""
        return Trial(lambda: write(self.path), self._fresh, lambda: self._place.remove(self.path))

    def _fresh(self) -> None:
        self.path = self._place.path()


def _snapshot(caches: Arrays, master: str | None, path: Path) -> None:
    with td.open(path, "w-") as store:
        store.register_round(caches, master=master)


def _save_all(arrays: Arrays, path: Path) -> None:
    path.mkdir()
    for name, array in arrays.items():
        write_npy(path / f"{name.replace('/', '-')}.npy", array)


def snapshot(place: Workplace) -> Iterator[Row]:
    """A round in a new store, durably, against the same bytes by np.save and fsync."""
    agents = dict(list(place.round.items())[: place.sizes.round_agents - 1])
    caches = {_MASTER: place.master, **agents}
    unique = _unique(place.master, agents)
    repeats = place.sizes.repeats
    saved = _Folder(place).trial(functools.partial(_save_all, unique))
    name, against = f"durable snapshot of a round of {len(caches)}", "np.save and fsync of the unique bytes"

    ours = _Folder(place).trial(functools.partial(_snapshot, caches, _MASTER))
    yield from_pairs(name, against, in_turn(ours, saved, repeats=repeats), Floor(1.6))
    ours = _Folder(place).trial(functools.partial(_snapshot, caches, None))
    note = "information: the round's master is elected first, which reads every cache once more"
    yield from_pairs(f"{name}, electing", against, in_turn(ours, saved, repeats=repeats), note=note)
    plain = _Folder(place).trial(lambda path: write_zarr(path, unique))
    note = "information: plain zarr, nothing synced"
    yield from_pairs("the unique bytes by plain zarr", against, in_turn(plain, saved, repeats=repeats), note=note)


def _small_round(place: Workplace) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    sizes = place.sizes
    master = place.rng(7).standard_normal((sizes.small_cache_blocks, sizes.small_block_bytes // 4), np.float32)
    share = sizes.small_own_blocks / sizes.small_cache_blocks
    return master, {f"agent-{n}": changed(place.rng(1000 + n), master, share) for n in range(sizes.small_mirrors)}


def small_mirrors(place: Workplace) -> Iterator[Row]:
    """A round of many small mirrors, durably, against the same arrays through plain zarr, not durably."""
    master, mirrors = _small_round(place)
    unique = _unique(master, mirrors)
    name = f"a round of {len(mirrors)} small mirrors, durable"
    ours = _Folder(place).trial(functools.partial(_snapshot, {_MASTER: master, **mirrors}, _MASTER))
    plain = _Folder(place).trial(lambda path: write_zarr(path, unique))
    pairs = in_turn(ours, plain, repeats=place.sizes.repeats)
    yield from_pairs(name, "the same arrays through plain zarr, not durable", pairs, Floor(0.3))


def append(place: Workplace) -> Iterator[Row]:
    """A collective step on a large store of many agents against one on a small store of few."""
    sizes = place.sizes
    small = place.store_with(sizes.few_agents, sizes.few_bytes)
    shared = place.rng(9).standard_normal((sizes.append_blocks, *place.master.shape[1:]), np.float32)
    with td.open(place.store_of_many, "r+") as many, td.open(small, "r+") as few:
        pairs = in_turn(
            Trial(lambda: many.collective_reuse_step(many.agents, shared)),
            Trial(lambda: few.collective_reuse_step(few.agents, shared)),
            repeats=sizes.quick_repeats,
            warm_up=sizes.append_warm_up,
        )
    name = f"append for {sizes.many_agents:,} agents on {sizes.cache_bytes >> 20} MiB, durable"
    yield from_pairs(name, f"append for {sizes.few_agents} agents on {sizes.few_bytes >> 20} MiB", pairs, Floor(3.0))
    place.remove(small)


def open_store(place: Workplace) -> Iterator[Row]:
    """Opening a store of many agents; the one floor that is no ratio."""
    path, agents = place.store_of_many, place.sizes.many_agents

    def look() -> None:
        with td.open(path, "r") as store:
            assert len(store.agents) == agents

    seconds = tuple(timed(Trial(look)) for _ in range(place.sizes.quick_repeats + 1))[1:]
    yield from_seconds(f"open a store of {agents:,} agents", seconds, Floor(50.0, text="≤ 50 ms"))


def disk_use(place: Workplace) -> Iterator[Row]:
    """What a round takes on disk against the bytes that it holds once."""
    agents = dict(list(place.round.items())[: place.sizes.round_agents - 1])
    small_master, small = _small_round(place)
    against = "master and changed blocks"
    for name, master, mirrors in (
        (f"disk used by a round of {len(agents) + 1}", place.master, agents),
        (f"disk used by a round of {len(small)} small mirrors", small_master, small),
    ):
        path = place.path(".td")
        _snapshot({_MASTER: master, **mirrors}, _MASTER, path)
        with td.open(path, "r") as store:
            own = sum(diff.n_diff_blocks for diff in store.mirrors.values())
        unique = master.nbytes + own * master[0].nbytes
        floor = Floor(1.02 + _ROOM_PER_MIRROR * len(mirrors) / unique, text="≤ 1.02 × + 16 KiB per mirror")
        yield from_bytes(name, against, allocated(path), unique, floor)
        place.remove(path)


ROWS = {
    "open a store": open_store,
    "append": append,
    "durable snapshot": snapshot,
    "small mirrors": small_mirrors,
    "disk used": disk_use,
}
