"""Any operations in any order, with crashes, power cuts, full disks and damage between them, against a simple model.

That this can fail was seen by leaving out the last sync of a commit, and by letting a transaction keep the tags that it
gave up.
"""

import errno
import os
import shutil
import tempfile
from itertools import count
from pathlib import Path

import pytest
from crash_disk import Crash, Disk
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from machine_model import ELECTED, TAGS, Model, cache_of, operations, planned

import tokendance as td

MEMORY = "/dev/shm"
DAMAGE = (td.StoreCorruptError, td.FormatVersionError)
several = st.lists(operations, min_size=1, max_size=4)


class Machine(RuleBasedStateMachine):
    """A store on a disk that may fail, and what it must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("tokendance.store.layout.CHUNK_BYTES", 8192)
        self.patch.setattr("tokendance.store.layout.SMALL_CHUNK_BYTES", 4096)
        self.top = Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.boxes = count()
        self.box = self.new_box()
        self.box.mkdir()
        # A disk that does all it is told, but for real syncs, which nothing here needs.
        self.disk = Disk(self.box).mounted()
        self.disk.__enter__()
        self.store = td.open(self.path, diff_threshold=0, ragged=True)
        self.model = Model()
        self.newest = 1
        self.generations = {1: self.model}

    def teardown(self) -> None:
        self.store.close()
        self.disk.__exit__(None, None, None)
        self.patch.undo()
        shutil.rmtree(self.top)

    @property
    def path(self) -> Path:
        return self.box / "s.td"

    def new_box(self) -> Path:
        return self.top / str(next(self.boxes))

    # Operations that succeed ----------------------------------------------------------------------------------------

    def plan(self, some):
        """Return what operations make of the model, and the calls; the rest is left out after an election."""
        model, calls = self.model, []
        for operation in some:
            plan = planned(operation, model, self.newest + 1) if model.master != ELECTED else None
            if plan is not None:
                model = plan[0]
                calls.append(plan[1])
        return model, calls

    def settle(self, model: Model) -> None:
        """Take a model as what the store must hold from now on."""
        if model.master == ELECTED:
            assert self.store.master_id in model.caches
            model = model.having(master=self.store.master_id)
        if self.store.generation == self.newest + 1:
            self.newest += 1
            self.generations[self.newest] = model
        else:
            assert model.caches == self.model.caches, "something changed, and made no generation"
            assert model.tags == self.model.tags
        self.model = model

    @rule(operation=operations)
    def change(self, operation) -> None:
        model, calls = self.plan([operation])
        if not calls:
            return
        calls[0](self.store)
        self.settle(model)

    @rule(some=several)
    def change_together(self, some) -> None:
        model, calls = self.plan(some)
        if not calls:
            return
        with self.store.transaction():
            for call in calls:
                call(self.store)
        self.settle(model)

    @rule(some=several)
    def give_up(self, some) -> None:
        _, calls = self.plan(some)
        before = self.store.generation
        with pytest.raises(ZeroDivisionError), self.store.transaction():
            for call in calls:
                call(self.store)
            raise ZeroDivisionError
        assert self.store.generation == before

    @rule(name=st.sampled_from(TAGS))
    def untag(self, name: str) -> None:
        if name not in self.model.tags:
            return
        self.store.untag(name)
        self.settle(
            Model(self.model.caches, self.model.master, {k: v for k, v in self.model.tags.items() if k != name})
        )

    @rule(keep_last=st.integers(1, 4))
    def collect(self, keep_last: int) -> None:
        before = {one.number for one in self.store.history()}
        removed = self.store.gc(keep_last)
        after = {one.number for one in self.store.history()}
        assert before - set(removed) == after
        spared = {self.newest, self.store.generation, *self.model.tags.values()}
        assert spared <= after
        assert len(after - spared) <= keep_last
        found = td.verify(self.path)
        assert (found.findings, found.leavings) == ((), ())

    # Opening anew ---------------------------------------------------------------------------------------------------

    def open_again(self, **how) -> None:
        self.store.close()
        self.store = td.open(self.path, **{"mode": "r+", **how})

    @rule(mode=st.sampled_from(["r+", "a"]))
    def reopen(self, mode: str) -> None:
        self.open_again(mode=mode)
        assert self.store.generation == self.newest
        self.model = self.generations[self.newest]

    @rule(choice=st.integers(0, 20))
    def roll_back(self, choice: int) -> None:
        """Show an older generation; what is committed from it becomes the newest, with the tags there are."""
        there = self.store.history()
        number = there[choice % len(there)].number
        tags = self.generations[self.newest].tags
        self.open_again(at=number)
        assert self.store.generation == number
        self.model = Model(self.generations[number].caches, self.generations[number].master, tags)

    @rule()
    def start_over(self) -> None:
        self.open_again(mode="w", diff_threshold=0, ragged=True)
        self.model = Model()
        self.newest += 1
        assert [one.number for one in self.store.history()] == [self.newest]
        self.generations[self.newest] = self.model

    # Operations that fail -------------------------------------------------------------------------------------------

    @rule(some=several, step=st.integers(0, 80), code=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def fail(self, some, step: int, code: int) -> None:
        model, calls = self.plan(some)
        if not calls:
            return
        disk = Disk(self.box)
        with disk.mounted():
            disk.arm(step, code)
            try:
                with self.store.transaction():
                    for call in calls:
                        call(self.store)
            except OSError as error:
                note(f"failed at {disk.steps[-1] if disk.steps else 'once'}: {error}")
                return  # and the invariants look at the old state
        self.settle(model)

    @rule(some=several, step=st.integers(0, 80), keep=st.sampled_from(["all", "least", "names"]) | st.integers(0, 9))
    def crash(self, some, step: int, keep: str | int) -> None:
        """Stop at a step; go on from what a dead process leaves, or from what a power cut leaves."""
        model, calls = self.plan(some)
        if not calls:
            return
        disk = Disk(self.box, track=keep != "all")
        acknowledged = False
        with disk.mounted():
            disk.arm(step, "crash")
            try:
                with self.store.transaction():
                    for call in calls:
                        call(self.store)
                acknowledged = True
            except Crash:
                note(f"crashed at {disk.steps[-1]}")
            finally:
                disk.dead = True
        self.store.close()
        if keep != "all":
            cut = self.new_box()
            disk.power_cut(cut, keep)
            self.box = cut
        self.store = td.open(self.path, mode="r+")
        found = self.store.generation
        assert found >= self.newest, "an acknowledged generation is lost"
        if found > self.newest:
            self.settle(model)
        else:
            assert not acknowledged or model.caches == self.model.caches, "an acknowledged generation is lost"
            self.model = self.generations[self.newest]

    # Damage ---------------------------------------------------------------------------------------------------------

    @rule(choice=st.integers(0, 10**6), bit=st.integers(0, 10**9), how=st.sampled_from(["flip", "cut", "remove"]))
    def damage(self, choice: int, bit: int, how: str) -> None:
        """Damage a file of a copy: everything reads right or raises, verify finds it, repair keeps what is right."""
        leavings = td.verify(self.path).leavings
        copy = self.new_box()
        shutil.copytree(self.path, copy)
        files = sorted(file for file in copy.rglob("*") if file.is_file() and file.name != "lock")
        files = [file for file in files if not any(str(file.relative_to(copy)).startswith(one) for one in leavings)]
        victim = files[choice % len(files)]
        note(f"{how} {victim.relative_to(copy)}")
        content = bytearray(victim.read_bytes())
        if how == "remove":
            victim.unlink()
        elif how == "cut":
            os.truncate(victim, bit % len(content))
        else:
            content[bit // 8 % len(content)] ^= 1 << bit % 8
            victim.write_bytes(content)
        self.reads_right_or_raises(copy)
        if how == "remove" and victim.parent.name == "manifests" and victim.name != "zarr.json":
            return  # a generation that is not there is no damage that anybody could see
        assert td.verify(copy).findings, "verify finds nothing"
        try:
            td.verify(copy, repair=True)
        except td.StoreCorruptError:
            assert victim.parent == copy / "manifests" or victim == copy / "zarr.json"
            return
        # Of a tagged generation the agents that are intact stay, and so does what is found in it.
        left = {finding.generation for finding in td.verify(copy).findings}
        assert left <= set(self.model.tags.values()), "repair left something"
        self.reads_right_or_raises(copy, may_raise=False)

    def reads_right_or_raises(self, path: Path, *, may_raise: bool = True) -> None:
        """Compare all that can be read of a damaged store with what some generation held."""
        try:
            with td.open(path, mode="r") as store:
                numbers = [one.number for one in self.store.history()]
                known = [self.generations[number].caches for number in numbers]
                for agent in store.agents:
                    try:
                        found = store.reconstruct(agent).tobytes()
                    except DAMAGE:
                        assert may_raise, f"{agent} does not read after a repair"
                        continue
                    allowed = [known[-1]] if may_raise and store.generation == self.newest else known
                    assert any(agent in one and found == cache_of(one[agent]).tobytes() for one in allowed)
        except DAMAGE:
            assert may_raise, "a repaired store does not open"

    # What holds always ----------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        assert self.store.agents[:1] == ([] if self.model.master is None else [self.model.master])
        compare(self.store, self.model)
        assert self.store.tags == self.model.tags
        self.store.stats()

    @rule()
    def readers_find_every_generation(self) -> None:
        numbers = [one.number for one in self.store.history()]
        assert {self.newest, *self.model.tags.values()} <= set(numbers)
        for number in numbers:
            with td.open(self.path, mode="r", at=number) as store:
                compare(store, self.generations[number])
        with td.open(self.path, mode="r") as store:
            assert store.generation == self.newest
        assert td.verify(self.path).findings == ()


def compare(store: td.TokenDanceStore, model: Model) -> None:
    assert sorted(store.agents) == sorted(model.caches)
    for agent, kinds in model.caches.items():
        expected = cache_of(kinds)
        for copy in (True, False):
            found = store.reconstruct(agent, copy=copy)
            assert found.shape == expected.shape, agent
            assert found.tobytes() == expected.tobytes(), f"{agent} with copy={copy}"


QUICK = settings(max_examples=40, stateful_step_count=25, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=150, stateful_step_count=50)


class TestQuickly(Machine.TestCase):
    settings = QUICK


@pytest.mark.slow
class TestAtLength(Machine.TestCase):
    settings = LONG
