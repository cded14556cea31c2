"""Mapped arrays, held while their storage goes on: any operations, collection, closing, removal change nothing in them.

That this can fail was seen by mapping shared instead of privately, and by copying own blocks to the wrong rows.
"""

import shutil
from pathlib import Path
from typing import Any

import machine_model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_model import AGENTS, ELECTED, Model, cache_of, operations, planned

import tokendance as td

Array = np.ndarray[Any, Any]

BLOCKS = {"page": (4, 256), "two pages": (2048,), "quarter of a page": (4, 64), "no part of a page": (75,)}
# What is done with the arrays that are held, and with the storage, after an operation.
MEANWHILE = ("nothing", "write into one", "write into all", "collect", "reopen", "drop some")
SCRIPTS = st.lists(st.tuples(operations, st.sampled_from(MEANWHILE), st.integers(0, 2**16)), min_size=1, max_size=8)


def same(left: Array, right: Array) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


class Held:
    """A storage, what it must hold, and the arrays that were mapped out of it with what they must be."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.storage: Any = self.opened()
        self.model = Model()
        self.arrays: list[tuple[Array, Array]] = []
        self.change(("master", "a", ("new", [0, 1, 2, 3, 4, 5, 0, 2, 4, 1, 3, 5])))
        self.change(("mirror", "b", ("edited", [3, 1]), None))

    def opened(self) -> td.TokenDanceStorage:
        if self.path is None:
            return td.TokenDanceStorage(diff_threshold=0, ragged=True)
        return td.open(self.path, diff_threshold=0, ragged=True)

    def change(self, operation: Any) -> None:
        if self.path is None and operation[0] == "tag":
            return
        plan = planned(operation, self.model, 1)
        if plan is None:
            return
        plan[1](self.storage)
        self.model = plan[0]
        if self.model.master == ELECTED:
            self.model = self.model.having(master=self.storage.master_id)

    def take(self, dice: np.random.Generator) -> None:
        """Map every agent, whole and in part; it must be what a copy is, and what was registered."""
        if self.model.master is None:
            return
        many = self.storage.reconstruct_many(copy=False)
        assert set(many) == set(self.model.caches) <= set(AGENTS)
        for agent, kinds in self.model.caches.items():
            expected = cache_of(kinds)
            part = np.sort(dice.integers(0, max(len(kinds), 1), 5)) if len(kinds) else slice(None)
            for taken, wanted in (
                (many[agent], expected),
                (self.storage.reconstruct(agent, copy=False), expected),
                (self.storage.reconstruct(agent, copy=False, blocks=part), expected[part]),
            ):
                assert same(taken, wanted)
                assert taken.flags.writeable
                self.arrays.append((taken, wanted.copy()))
            assert same(self.storage.reconstruct(agent), expected)
            assert same(self.storage.reconstruct(agent, blocks=part), expected[part])

    def meanwhile(self, what: str, dice: np.random.Generator) -> None:
        if what == "drop some":
            self.arrays = [pair for pair in self.arrays if dice.random() < 0.5]
        if what == "write into all" or (what == "write into one" and self.arrays):
            chosen = self.arrays if what == "write into all" else [self.arrays[int(dice.integers(len(self.arrays)))]]
            for taken, wanted in chosen:
                at = int(dice.integers(max(len(taken), 1)))
                taken[at : at + 2] = wanted[at : at + 2] = dice.integers(100)
        if self.path is not None and what == "collect":
            self.storage.gc()
        if self.path is not None and what == "reopen":
            self.storage.close()
            self.storage = self.opened()

    def check(self) -> None:
        for taken, wanted in self.arrays:
            assert same(taken, wanted)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("where", ["memory", "disk"])
@settings(max_examples=40)
@given(script=SCRIPTS)
def test_what_is_held_stays_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, where: str, block: str, script: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("held")
    shape = BLOCKS[block]
    rows = np.random.default_rng(0).integers(0, 256, (len(machine_model.KINDS), int(np.prod(shape)) * 4), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_model, "KINDS", rows.view(np.float32).reshape(-1, *shape))
        # Small chunks, so that agents of few blocks have several, and appends replace the last.
        patch.setattr("tokendance.store.layout.CHUNK_BYTES", 32768)
        patch.setattr("tokendance.store.layout.SMALL_CHUNK_BYTES", 16384)
        held = Held(folder / "s.td" if where == "disk" else None)
        for operation, what, seed in script:
            dice = np.random.default_rng(seed)
            held.change(operation)
            held.take(dice)
            held.meanwhile(what, dice)
            held.check()
        held.storage.close()
        held.check()
        shutil.rmtree(folder)
        held.check()
        for taken, wanted in held.arrays:
            taken[:] = 3  # and is still writable
            assert (taken == 3).all() and taken.shape == wanted.shape


def test_a_store_that_is_replaced_cut_short_in_name_or_removed_takes_nothing_away(tmp_path: Path) -> None:
    path, other = tmp_path / "s.td", tmp_path / "other.td"
    cache = np.random.default_rng(0).standard_normal((40, 4, 256), np.float32)
    mirror = cache.copy()
    mirror[[3, 9, 39]] += 1
    with td.open(path, diff_threshold=0) as store:
        store.register_round({"m": cache, "a": mirror}, master="m")
        held = [store.reconstruct(agent, copy=False) for agent in ("m", "a")]
    with td.open(path, "r") as reader:
        held += [reader.reconstruct(agent, copy=False) for agent in ("m", "a")]
        with td.open(path, "w", diff_threshold=0) as replaced:
            replaced.register_master("m", cache * 0)
            replaced.gc()
    path.rename(other)
    storage = td.TokenDanceStorage(diff_threshold=0)
    storage.register_master("z", cache + 7)
    storage.save(other)
    shutil.rmtree(other)
    for taken, wanted in zip(held, (cache, mirror) * 2, strict=True):
        assert same(taken, wanted)
