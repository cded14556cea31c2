"""What an `OtherProcess` runs: it does what it is told, line by line, and answers each with what that is worth."""

import hashlib
import os
import sys
import tempfile

import numpy as np

import tokendance as td

SHAPE = (8, 128)


def bits(array: np.ndarray) -> str:
    return f"{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def looked_at(storage: td.TokenDanceStorage, *, copy: bool) -> dict[str, str]:
    return {agent: bits(storage.reconstruct(agent, copy=copy)) for agent in storage.agents}


def raised(function, *arguments, **named) -> str | None:
    """What a call raises: its class, those above it, and the message."""
    try:
        function(*arguments, **named)
    except Exception as error:  # noqa: BLE001 - the other side judges it
        return f"{' '.join(one.__name__ for one in type(error).__mro__)}: {error}"
    return None


def become(user: int) -> None:
    """Be somebody who owns nothing, for whom files that nobody may write are read-only."""
    # Its Python may lie where only its owner reads, as CI's does: what is imported on first use must be in already.
    with tempfile.TemporaryDirectory() as folder:
        with td.open(folder + "/s.td", ragged=True) as storage:
            storage.register_round({agent: np.zeros((3, *SHAPE), np.float32) for agent in "ab"})
        with td.open(folder + "/s.td", mode="r") as storage:
            looked_at(storage, copy=True)
            looked_at(storage, copy=False)
            storage.history()
            raised(storage.remove, "a")
        td.verify(folder + "/s.td", repair=True)

    os.setgid(user)
    os.setuid(user)


# A writer and readers of a store in which every agent of generation n is full of n. ----------------------------------


def write_rounds(storage: td.TokenDanceStore, rounds: int) -> int:
    """Commit and collect, with other agents and other lengths each time; return the last generation."""
    for turn in range(rounds):
        number = storage.generation + 1
        with storage.transaction():
            for agent in set(storage.agents) - {"m"}:
                storage.remove(agent)
            length = 9 + turn % 4
            storage.register_round({a: np.full((length, *SHAPE), number, np.float32) for a in "mab"[: 1 + turn % 3]})
        storage.gc(keep_last=1 + turn % 2)
    return storage.generation


class Watcher:
    """Opens the newest generation again and again, and keeps some of what it has read."""

    def __init__(self, path: str, *, copy: bool) -> None:
        self.path, self.copy = path, copy
        self.kept: list[tuple[int, np.ndarray]] = []

    def look(self) -> int:
        """Return the generation that was there, after looking at all of it, and at what was kept."""
        with td.open(self.path, mode="r") as store:
            number = store.generation
            for agent in store.agents:
                self.kept.append((number, store.reconstruct(agent, copy=self.copy)))
        del self.kept[:-30]
        for filled, array in self.kept:
            assert (array == filled).all(), f"an agent of generation {filled} holds something else"
        return number

    def verify(self) -> int:
        """Return how many bytes `verify` looked at, and found nothing wrong with."""
        found = td.verify(self.path)
        assert not found.findings, found.findings
        return found.checked_bytes


def main() -> None:
    names = dict(globals())
    for line in sys.stdin:
        answer = None
        try:
            try:
                told = compile(line, "told", "eval")
            except SyntaxError:
                exec(line, names)
            else:
                answer = eval(told, names)
        except BaseException as error:  # noqa: BLE001 - the other side judges it
            answer = f"!{type(error).__name__}: {error}"
        print(repr(answer), flush=True)


if __name__ == "__main__":
    main()
