"""One damaged store, used: everything that comes of it must be one line of an error, or right."""

import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import tokendance as td
from benchmarks.fuzz_mutations import mutated
from benchmarks.fuzz_reader import UnreadableError, cache_in, manifest_in
from benchmarks.fuzz_stores import Base

__all__ = ["SECONDS", "Outcome", "tried"]

SECONDS = 30
_LONGEST_MESSAGE = 1000
Result = TypeVar("Result")


class Outcome(NamedTuple):
    """What came of a store: "refused", "right", "wrong", "crash" or "hang"; what was done to it, and what was wrong."""

    name: str
    kind: str
    note: str = ""


class _HangError(BaseException):
    pass


class _WrongError(Exception):
    pass


def _hang(_signal: int, _frame: object) -> None:
    raise _HangError


def tried(folder: Path, bases: list[Base], seed: str) -> Outcome:
    """Damage a copy of one of the stores in an empty folder, use it, and judge what came of it."""
    dice = random.Random(seed)
    base = dice.choice(bases)
    path = folder / "s.td"
    shutil.copytree(base.path, path)
    kind = mutated(path, dice, base.stale)
    signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS)
    try:
        return Outcome("refused" if _used(path, base, dice) else "right", kind)
    except _WrongError as error:
        return Outcome("wrong", kind, str(error))
    except _HangError:
        return Outcome("hang", kind)
    except Exception as error:  # noqa: BLE001 - any that gets here is a find
        return Outcome("crash", kind, f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)


def _used(path: Path, base: Base, dice: random.Random) -> bool:
    """Read a store in every way, verify it, and sometimes change it; say whether anything of it was refused."""
    # Names like 007 are no generations, and nobody is asked for one.
    names = [file.name for file in path.glob("manifests/*") if re.fullmatch("[1-9][0-9]{0,17}", file.name)]
    there = [int(name) for name in names]
    refused = _read(path, base, None)
    if there:
        refused |= _read(path, base, dice.choice(there))
    found = _refusable(lambda: td.verify(path))
    if refused and found is not None and found.ok:
        raise _WrongError("verify finds nothing in a store that was refused")
    refused |= found is None or not found.ok
    if dice.random() < 0.25:
        changed = _refusable(lambda: _change(path, dice)) is not None
        after = _read(path, base, None)
        if after and changed and not refused:
            raise _WrongError("a whole store is refused after a change")
        refused |= not changed
    return refused


def _refusable(step: Callable[[], Result]) -> Result | None:
    """Do something that may be refused, in one line; None if it was."""
    try:
        return step()
    except td.TokenDanceError as error:
        text = str(error)
        if not text.isprintable() or len(text) > _LONGEST_MESSAGE:
            raise _WrongError(f"the error is not one short line: {text[:200]!r}") from None
        return None


def _read(path: Path, base: Base, at: int | None) -> bool:
    """Read everything of one generation; say whether anything was refused."""
    store = _refusable(lambda: td.open(path, mode="r", at=at))
    if store is None:
        return True
    with store:
        refused = _refusable(lambda: (store.stats(), store.history(), store.tags, store.identity)) is None
        for agent in store.agents:
            for copy in (True, False):
                refused |= _read_agent(store, path, agent, copy) is None
            whole = _refusable(lambda agent=agent: store.reconstruct(agent))  # type: ignore[misc]
            known = base.held.get((store.generation, agent))
            if whole is not None and whole.tobytes() != known and not _is_edited(path, base, store.generation):
                raise _WrongError(f"{agent!r} of generation {store.generation} is not what was registered")
    return refused


def _read_agent(store: td.TokenDanceStore, path: Path, agent: str, copy: bool) -> bool | None:
    got = _refusable(lambda: store.reconstruct(agent, copy=copy))
    if got is None:
        return None
    manifest = manifest_in(path, store.generation)
    # Contents of chunks that are mapped are not compared with checksums, as the contract says: any that lie there do.
    try:
        expected = cache_in(path, manifest, agent, checked=copy)
    except UnreadableError as error:
        raise _WrongError(f"{agent!r} was read with copy={copy}, though {error}") from None
    if (
        got.tobytes() != expected
        or list(got.shape[1:]) != manifest["block_shape"]
        or got.dtype.name != manifest["dtype"]
    ):
        raise _WrongError(f"{agent!r} was read wrong with copy={copy}")
    return True


def _is_edited(path: Path, base: Base, generation: int) -> bool:
    file = base.path / "manifests" / str(generation)
    return not file.is_file() or file.read_bytes() != path.joinpath("manifests", str(generation)).read_bytes()


def _change(path: Path, dice: random.Random) -> bool:
    with td.open(path, mode="r+") as store:
        agents = store.agents
        if not agents:
            return True
        agent = dice.choice(agents)
        how = dice.randrange(5)
        if how == 0:
            shared = store.reconstruct(agent)[:1]
            if len(shared):
                store.collective_reuse_step([agent], shared)
        elif how == 1:
            store.rebase(agent)
        elif how == 2:
            store.fork(agent, "a new twin")
        elif how == 3:
            store.gc()
        else:
            store.register_mirror("a new mirror", store.reconstruct(agent))
    return True
