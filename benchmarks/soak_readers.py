"""The readers of the soak, and what is looked at after each kill."""

import random
from collections.abc import MutableSequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import tokendance as td
from benchmarks.soak_log import Log, print_of

__all__ = ["inspect", "run_reader"]

HELD = 12


class Reader:
    """Opens and reads, and keeps mapped arrays over all that happens to the store."""

    def __init__(self, path: Path, log: Log, dice: random.Random, counts: MutableSequence[int]) -> None:
        self._path, self._log, self._dice, self._counts = path, log, dice, counts
        self._held: list[tuple[NDArray[Any], str]] = []

    def visit(self) -> None:
        """Open the newest generation or an older one, read from it for a while, and let go of it."""
        acknowledged = self._log.acknowledged()
        try:
            store = td.open(self._path, mode="r", at=self._which())
        except td.UnknownGenerationError:  # it was collected after it was chosen
            return
        with store:
            newest = self._last_chosen is None
            assert not newest or store.generation >= acknowledged, "a reader missed an acknowledged generation"
            prints, _ = self._log.announced(store.generation)
            assert set(store.agents) == set(prints), f"generation {store.generation} has other agents"
            for _ in range(self._dice.randint(1, 12)):
                if prints:
                    self._read(store, *self._dice.choice(sorted(prints.items())))
                self._look_at_held()
                self._counts[0] += 1

    def _which(self) -> int | str | None:
        self._last_chosen: int | str | None = None
        if self._dice.random() < 0.3:
            with td.open(self._path, mode="r") as store:
                self._last_chosen = self._dice.choice([*store.tags, *(one.number for one in store.history())])
        return self._last_chosen

    def _read(self, store: td.TokenDanceStore, agent: str, expected: str) -> None:
        if self._dice.random() < 0.5:
            found = store.reconstruct(agent)
        else:
            found = store.reconstruct(agent, copy=False)
            self._held.append((found, expected))
        assert print_of(found) == expected, f"agent {agent} of generation {store.generation} reads wrong"

    def _look_at_held(self) -> None:
        while len(self._held) > HELD:
            self._held.pop(self._dice.randrange(len(self._held)))
        if not self._held:
            return
        at = self._dice.randrange(len(self._held))
        array, expected = self._held[at]
        assert print_of(array) == expected, "a mapped array changed under its reader"
        if self._dice.random() < 0.2:  # it is private: nobody else may see this
            array[self._dice.randrange(len(array))] = self._dice.random()
            self._held[at] = array, print_of(array)


def run_reader(path: Path, log_folder: Path, seed: int, counts: MutableSequence[int]) -> None:
    """Read for ever; `counts[0]` is the number of reads."""
    reader = Reader(path, Log(log_folder), random.Random(seed), counts)
    while True:
        reader.visit()


def inspect(path: Path, log: Log, *, alone: bool) -> None:
    """Open a store after a kill: raise AssertionError if it lost, mixed up or damaged anything.

    Parameters
    ----------
    alone : bool
        Nobody is writing, so that at most one generation more than the acknowledged ones may be there.
    """
    acknowledged = log.acknowledged()
    with td.open(path, mode="r") as store:
        found = store.generation
        assert found >= acknowledged, f"generation {acknowledged} was acknowledged, and {found} is there"
        assert not alone or found <= acknowledged + 1, f"generation {found} is there, after {acknowledged}"
        prints, tags = log.announced(found)
        assert dict(store.tags) == tags, f"the tags are {store.tags}, not {tags}"
        _compare(store, prints)
    for tag in tags if alone else ():
        with td.open(path, mode="r", at=tag) as store:
            _compare(store, log.announced(store.generation)[0])
    findings = td.verify(path).findings
    assert not findings, f"verify found {len(findings)}: {findings[0]}"


def _compare(store: td.TokenDanceStore, prints: dict[str, str]) -> None:
    assert set(store.agents) == set(prints), f"generation {store.generation} has other agents"
    for agent, expected in prints.items():
        for copy in (True, False):
            cache = store.reconstruct(agent, copy=copy)
            assert print_of(cache) == expected, f"agent {agent} of generation {store.generation} reads wrong"
