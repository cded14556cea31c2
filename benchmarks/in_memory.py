"""Rows about a storage in memory: registering and reconstructing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from benchmarks.bare import aligned, numpy_mirror, read_both
from benchmarks.rows import Floor, Row, from_pairs
from benchmarks.timing import Trial, in_turn
from benchmarks.workplace import Workplace, changed

__all__ = ["ROWS"]

_MASTER = "master"
_FASTER = {"float32": 6.0, "float16": 50.0}


def _pair_of_caches(place: Workplace, dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    master = place.master if dtype == "float32" else place.cache(dtype)
    return master, changed(place.rng(50), master, place.sizes.differing)


def register_mirror(place: Workplace, dtype: str) -> Iterator[Row]:
    """Registering a mirror against a kernel that only reads both caches, and against plain numpy."""
    master, cache = _pair_of_caches(place, dtype)
    storage = td.TokenDanceStorage()
    storage.register_master(_MASTER, master)
    ours = Trial(lambda: storage.register_mirror("mirror", cache))
    pairs = in_turn(ours, Trial(lambda: read_both(master, cache)), repeats=place.sizes.quick_repeats, warm_up=3)
    yield from_pairs(f"register_mirror {dtype}", "a kernel that only reads both caches", pairs, Floor(1.25))
    pairs = in_turn(ours, Trial(lambda: numpy_mirror(master, cache)), repeats=place.sizes.repeats).inverted()
    floor = Floor(_FASTER[dtype], at_least=True, text=f"≥ {_FASTER[dtype]:g} × faster")
    yield from_pairs(f"register_mirror {dtype}, plain numpy", "register_mirror", pairs, floor)


def register_round(place: Workplace) -> Iterator[Row]:
    """A round at once against agent by agent, the master being there already; then with the election."""
    caches, master = place.round, place.master
    at_once, one_by_one = td.TokenDanceStorage(), td.TokenDanceStorage()
    for storage in (at_once, one_by_one):
        storage.register_master(_MASTER, master)

    def mirror_by_mirror() -> None:
        for agent, cache in caches.items():
            one_by_one.register_mirror(agent, cache)

    pairs = in_turn(
        Trial(lambda: at_once.register_round(caches)), Trial(mirror_by_mirror), repeats=place.sizes.quick_repeats
    )
    name, against = f"register_round of {len(caches)}", f"{len(caches)} × register_mirror"
    yield from_pairs(name, against, pairs, Floor(0.75))

    def all_by_hand() -> None:
        storage = td.TokenDanceStorage()
        first, *others = caches
        storage.register_master(first, caches[first])
        for agent in others:
            storage.register_mirror(agent, caches[agent])

    elected = Trial(lambda: td.TokenDanceStorage().register_round(caches))
    pairs = in_turn(elected, Trial(all_by_hand), repeats=place.sizes.repeats)
    note = "information: the master is elected on one side, named on the other"
    yield from_pairs(f"{name}, electing", "register_master and register_mirror", pairs, note=note)


def reconstruct_out(place: Workplace) -> Iterator[Row]:
    """Filling the caller's array, from memory and from a store that was read before."""
    storage = td.TokenDanceStorage()
    storage.register_master(_MASTER, place.master)
    storage.register_mirror("agent-1", place.dense)
    dense, out = aligned(place.dense), aligned(place.dense)
    np.copyto(dense, place.dense)
    copy = Trial(lambda: np.copyto(out, dense))
    with td.open(place.mapped_store, "r") as store:
        for where, source in (("in memory", storage), ("open store", store)):
            ours = Trial(lambda source=source: source.reconstruct("agent-1", out=out))
            pairs = in_turn(ours, copy, repeats=place.sizes.quick_repeats, warm_up=3)
            yield from_pairs(f"reconstruct(out=), {where}", "np.copyto of the same bytes", pairs, Floor(1.10))
            assert np.array_equal(out.view(np.uint8), dense.view(np.uint8))


ROWS = {
    "register_mirror float32": lambda place: register_mirror(place, "float32"),
    "register_mirror float16": lambda place: register_mirror(place, "float16"),
    "register_round": register_round,
    "reconstruct(out=)": reconstruct_out,
}
