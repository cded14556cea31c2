"""Generations of a store: what history says of them, what tags keep, what is collected, and going back to one."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tokendance as td


def cache(value: float, n_blocks: int = 6) -> np.ndarray:
    made = np.zeros((n_blocks, 4, 64), np.float32)
    made[1] = value
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of generations 1 (empty), 2 (m), 3 (m, a) and 4 (m, a, b), the third tagged `two`."""
    where = tmp_path / "s.td"
    with td.open(where, diff_threshold=0) as store:
        store.register_master("m", cache(0))
        with store.transaction():
            store.register_mirror("a", cache(1))
            assert store.tag("two") == 3
        store.register_mirror("b", cache(2))
    return where


def numbers(store: td.TokenDanceStore) -> list[int]:
    return [one.number for one in store.history()]


def test_history_says_what_each_generation_is(path: Path) -> None:
    with td.open(path, mode="r") as store:
        history = store.history()
    assert [(one.number, one.parent, one.tags, one.agents) for one in history] == [
        (1, 0, (), ()),
        (2, 1, (), ("m",)),
        (3, 2, ("two",), ("m", "a")),
        (4, 3, (), ("m", "a", "b")),
    ]
    assert history[0].written_bytes == 0
    block = cache(0)[0].nbytes
    assert history[1].written_bytes >= 6 * block
    assert all(block <= one.written_bytes < 3 * block for one in history[2:])
    times = [one.time for one in history]
    assert path.stat().st_ctime - 3600 < times[0] <= times[1] <= times[2] <= times[3] <= time.time()


def test_a_transaction_is_one_generation_and_one_that_changes_nothing_is_none(path: Path) -> None:
    with td.open(path) as store:
        with store.transaction():
            store.remove("a")
            store.fork("b", "c")
            assert store.generation == 4
        assert (store.generation, store.agents) == (5, ["m", "b", "c"])
        with store.transaction():
            pass
        assert (store.generation, numbers(store)) == (5, [1, 2, 3, 4, 5])


def test_an_exception_in_a_transaction_leaves_no_trace(path: Path) -> None:
    with td.open(path) as store:
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.register_mirror("c", cache(3))
            store.tag("three")
            store.collective_reuse_step(["a"], cache(9, 2))
            raise ZeroDivisionError
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
        assert (store.generation, store.agents, store.tags) == (4, ["m", "a", "b"], {"two": 3})
        store.register_mirror("c", cache(3))
        assert store.generation == 5


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.transaction().__enter__(),
        lambda store: store.untag("two"),
        lambda store: store.gc(),
        lambda store: store.verify(repair=True),
    ],
    ids=["transaction", "untag", "gc", "repair"],
)
def test_what_cannot_be_inside_a_transaction_is_refused_and_the_transaction_goes_on(
    path: Path, call: Callable[[td.TokenDanceStore], object]
) -> None:
    with td.open(path) as store:
        with store.transaction():
            store.remove("a")
            with pytest.raises(RuntimeError, match=r"(transactions do not nest|cannot run inside a transaction); end"):
                call(store)
        assert (store.generation, store.agents, store.tags) == (5, ["m", "b"], {"two": 3})


def test_a_tag_can_be_given_anew_and_taken_away(path: Path) -> None:
    with td.open(path) as store:
        assert store.tag("two") == store.generation == store.tags["two"] == 5
        store.untag("two")
        assert store.tags == {}
        with pytest.raises(td.UnknownGenerationError, match="there is no tag 'two'; tags are: none"):
            store.untag("two")
    with pytest.raises(td.UnknownGenerationError, match="two"):
        td.open(path, mode="r", at="two")


@pytest.mark.parametrize("at", ["two", 3])
def test_an_older_generation_is_read_as_it_was(path: Path, at: int | str) -> None:
    with td.open(path, mode="r", at=at) as store:
        assert (store.generation, store.agents) == (3, ["m", "a"])
        assert np.array_equal(store.reconstruct("a"), cache(1))
    with pytest.raises(td.UnknownGenerationError, match="9"):
        td.open(path, mode="r", at=9)


def test_committing_from_an_older_generation_rolls_back(path: Path) -> None:
    with td.open(path, mode="r+", at=2) as store:
        store.register_mirror("c", cache(3))
        assert (store.generation, store.agents) == (5, ["m", "c"])
        assert (store.history()[-1].parent, store.tags) == (2, {"two": 3})
    with td.open(path, mode="r") as store:
        assert store.agents == ["m", "c"]
        assert np.array_equal(store.reconstruct("c"), cache(3))
        assert store.verify().ok
    with td.open(path, mode="r", at=4) as store:
        assert np.array_equal(store.reconstruct("b"), cache(2))


def test_collection_keeps_the_newest_the_tagged_and_what_is_read(path: Path) -> None:
    with td.open(path, mode="r", at=2) as reader, td.open(path) as store:
        assert store.gc() == [1]
        assert numbers(store) == [2, 3, 4]
        assert np.array_equal(reader.reconstruct("m"), cache(0))
        with pytest.raises(ValueError, match="keep_last must be a whole number of 1 or more, got 0"):
            store.gc(keep_last=0)
    with td.open(path) as store:
        assert store.gc(keep_last=2) == []
        assert store.gc() == [2]
        assert numbers(store) == [3, 4]
        store.untag("two")
        assert store.gc() == [3, 4]
        assert all(np.array_equal(store.reconstruct(agent), cache(n)) for n, agent in enumerate("mab"))


def test_each_commit_leaves_sixteen_untagged_generations(path: Path) -> None:
    with td.open(path) as store:
        for _ in range(20):
            store.register_mirror("b", cache(2))
        assert numbers(store) == [3, *range(9, 25)]


def test_forks_removals_and_rebases_write_no_block_that_is_there(path: Path) -> None:
    block = cache(0)[0].nbytes
    with td.open(path) as store:
        store.fork("a", "twin")
        store.remove("a")
        written = [one.written_bytes for one in store.history()[-2:]]
        assert written == [0, 0]
        store.rebase("b")
        # b whole, a block each of m and of the twin, and metadata
        assert 8 * block < store.history()[-1].written_bytes < 8 * block + 4096
        assert np.array_equal(store.reconstruct("twin"), cache(1))
        assert np.array_equal(store.reconstruct("m"), cache(0))
