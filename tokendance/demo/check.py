"""The other process: it opens the store, takes every agent mapped and compares each byte with the dense cache.

Run as ``python -m tokendance.demo.check STORE DENSE_FOLDER``, where the folder holds ``<agent>.npy`` for each agent.
Prints JSON, see ``CheckRecord``; the exit status is 0 when all agents are identical, else 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokendance as td

REPEATS = 7


@dataclass(frozen=True, slots=True)
class Difference:
    """Why an agent is not what it was: its first differing block, or None where the trouble is not in one block."""

    agent: str
    block: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """What the other process found: differences, and seconds per agent (medians) to get a cache back.

    ``mapped`` and ``loaded`` are the time until there is an array, ``mapped_read`` and ``loaded_read`` the time
    until all of its bytes were read once as well; every file is in the page cache.
    """

    agents: int
    compared_bytes: int
    differences: tuple[Difference, ...]
    mapped: float
    mapped_read: float
    loaded: float
    loaded_read: float

    @property
    def identical(self) -> bool:
        """Whether every agent came back as it went in."""
        return not self.differences


class CheckFailedError(RuntimeError):
    """The other process ended without a result."""


def check_in_child(store: Path, dense_folder: Path) -> CheckRecord:
    """Run this module in a fresh interpreter and return what it found.

    Raises
    ------
    CheckFailedError
        If it ended without a result; the message is the last line that it wrote.
    """
    # -P: a checkout as the current folder holds a `tokendance` without its store, and it would come first.
    command = [sys.executable, "-P", "-m", "tokendance.demo.check", str(store), str(dense_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        last_line = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise CheckFailedError(f"the checking process ended with status {done.returncode}: {last_line}") from None
    found["differences"] = tuple(Difference(**difference) for difference in found["differences"])
    return CheckRecord(**found)


def check_store(store: Path, dense_folder: Path) -> CheckRecord:
    """Compare every agent of a store with its dense file, then time both ways of getting it back."""
    files = {file.stem: file for file in sorted(dense_folder.glob("*.npy"))}
    with td.open(store, mode="r") as storage:
        differences = [
            Difference(agent, None, "is in the store or in the dense folder, not in both")
            for agent in sorted(set(storage.agents) ^ set(files))
        ]
        compared = 0
        for agent in sorted(set(storage.agents) & set(files)):
            difference, n_bytes = _compare(storage, agent, files[agent])
            compared += n_bytes
            differences += [difference] if difference else []
        seconds = _time_reloads(storage, files) if not differences else dict.fromkeys(_WAYS, 0.0)
    return CheckRecord(agents=len(files), compared_bytes=compared, differences=tuple(differences), **seconds)


def first_difference(found: NDArray[Any], expected: NDArray[Any]) -> tuple[int, int] | None:
    """Compare two arrays of the same shape and dtype byte by byte.

    Returns
    -------
    tuple of int, or None
        The first row that differs and how many differ; None when all bytes are the same.

    Examples
    --------
    >>> first_difference(np.array([[1.0], [0.0]]), np.array([[1.0], [-0.0]]))
    (1, 1)
    >>> first_difference(np.array([[np.nan]]), np.array([[np.nan]])) is None
    True
    """
    rows = found.reshape(len(found), -1).view(np.uint8) != expected.reshape(len(expected), -1).view(np.uint8)
    different = np.flatnonzero(rows.any(axis=1))
    return (int(different[0]), len(different)) if len(different) else None


def _compare(storage: td.TokenDanceStorage, agent: str, file: Path) -> tuple[Difference | None, int]:
    expected = np.load(file, mmap_mode="r")
    try:
        found = storage.reconstruct(agent, copy=False)
    except (td.TokenDanceError, OSError) as error:
        return Difference(agent, None, f"cannot be read: {error}"), 0
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        reason = f"came back as {found.dtype} {found.shape}, was {expected.dtype} {expected.shape}"
        return Difference(agent, None, reason), 0
    differing = first_difference(found, expected)
    if differing is None:
        return None, found.nbytes
    return Difference(agent, differing[0], f"{differing[1]} of {len(found)} blocks differ"), found.nbytes


_WAYS = ("mapped", "mapped_read", "loaded", "loaded_read")


def _time_reloads(storage: td.TokenDanceStorage, files: dict[str, Path]) -> dict[str, float]:
    """Time the ways in turn, so that whatever else the machine does falls on all of them."""
    seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
    for agent, file in files.items():

        def mapped(agent: str = agent) -> NDArray[Any]:
            return storage.reconstruct(agent, copy=False)

        def loaded(file: Path = file) -> NDArray[Any]:
            whole: NDArray[Any] = np.load(file)
            return whole

        for _ in range(REPEATS):
            for way, take in (("mapped", mapped), ("loaded", loaded)):
                until_array, until_read = _time_once(take)
                seconds[way].append(until_array)
                seconds[f"{way}_read"].append(until_read)
    return {way: median(times) for way, times in seconds.items()}


def _time_once(take: Callable[[], NDArray[Any]]) -> tuple[float, float]:
    started = time.perf_counter()
    array = take()
    taken = time.perf_counter()
    array.max()
    return taken - started, time.perf_counter() - started


def main(arguments: list[str]) -> int:
    """Check ``STORE`` against ``DENSE_FOLDER``, print JSON and return the exit status."""
    store, dense_folder = map(Path, arguments)
    record = check_store(store, dense_folder)
    print(json.dumps(asdict(record)))
    return 0 if record.identical else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
