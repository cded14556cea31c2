"""Child of test_hostile: read stores, and change them, with little memory and processor time; say what came of it.

Prints a line of JSON for each thing tried, [store, what, outcome, text]: outcomes are "right", "wrong", or the name of
an error's class.
"""

import json
import resource
import sys
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np

import tokendance as td

# Seconds of the processor: 60 MiB of brackets take 3 on a busy machine, each time they are read.
MEMORY, SECONDS = 1 << 30, 15


_store = ""


def told(what: str, try_it: Callable[[], bool]) -> bool:
    try:
        outcome, text = "right" if try_it() else "wrong", ""
    except (td.TokenDanceError, OSError, MemoryError) as error:
        outcome, text = type(error).__name__, str(error)
    print(json.dumps([_store, what, outcome, text]), flush=True)
    return outcome == "right"


def is_right(array: np.ndarray, expected: str) -> bool:
    return sha256(np.ascontiguousarray(array).view(np.uint8)).hexdigest() == expected


def reads(path: str, expected: dict[str, str]) -> None:
    opened: list[Any] = []
    if not told("open", lambda: opened.append(td.open(path, mode="r")) is None):
        return
    with opened[0] as store:
        for agent, digest in expected.items():
            for copy in (True, False):
                how = f"{agent} {'copied' if copy else 'mapped'}"
                told(how, lambda a=agent, c=copy, d=digest: is_right(store.reconstruct(a, copy=c), d))
        told("stats", lambda: store.stats()["n_mirrors"] == len(expected) - 1)


def changes(path: str) -> None:
    def change(step: Callable[[td.TokenDanceStorage], Any]) -> bool:
        with td.open(path, mode="r+") as store:
            step(store)
        return True

    shared = np.ones((3, 4, 64), np.float32)
    told("append", lambda: change(lambda store: store.collective_reuse_step(["m", "a"], shared)))
    told("fork", lambda: change(lambda store: store.fork("b", "twin")))
    told("rebase", lambda: change(lambda store: store.rebase("b")))
    told("gc", lambda: change(lambda store: store.gc()))


def main() -> None:
    global _store
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seconds = SECONDS + len(asked)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    for one in asked:
        _store = one["path"]
        reads(one["path"], one["expected"])
        told("verify", lambda path=one["path"]: td.verify(path).ok)
        if one["change"]:
            changes(one["path"])


if __name__ == "__main__":
    main()
