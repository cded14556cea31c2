"""A hundred agents of 1 GiB each, all mapped at once in one process, and read at random places.

One process makes the agents one at a time, in one array, and registers each in a store: a master, and mirrors of which
a few blocks in a hundred, scattered at random, are their own. Another process opens the store, maps all agents, keeps
them, and reads words at random places of each. Every word follows from where it stands, so that nothing has to be kept
to compare it with.

Scattered blocks are the hard case: each of them splits a map in three, and a process may have 65,530.

    python -m benchmarks hundred --markdown docs/performance.md
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from benchmarks.children import run_step, status
from benchmarks.machine import describe
from benchmarks.markers import between
from benchmarks.on_disk import allocated
from benchmarks.report import table
from benchmarks.rows import in_words
from benchmarks.workplace import positions

__all__ = ["Hundred", "Plan", "hundred", "main", "read", "words_at", "write"]

_SPARE_BYTES = 1 << 30
_SLAB_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """How many agents of what size, which share of a mirror's blocks is its own, and how many places are read."""

    agents: int = 100
    agent_bytes: int = 1 << 30
    block_bytes: int = 32 << 10
    own: float = 0.02
    places: int = 1000

    @property
    def n_blocks(self) -> int:
        """How many blocks an agent has."""
        return self.agent_bytes // self.block_bytes

    @property
    def block_words(self) -> int:
        """How many words of 8 bytes a block has."""
        return self.block_bytes // 8

    @property
    def disk_bytes(self) -> int:
        """How much free disk it takes."""
        return int(self.agent_bytes * (1 + self.own * (self.agents - 1))) + _SPARE_BYTES

    def own_blocks(self, agent: int) -> NDArray[np.int64]:
        """Return the positions of an agent's own blocks; all are the master's."""
        rng = np.random.default_rng(agent)
        return positions(rng, self.n_blocks, self.own) if agent else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Hundred:
    """What was found: seconds, bytes and counts.

    Attributes
    ----------
    own_places : int
        How many of the places that were read lie in a mirror's own blocks.
    wrong_bytes : int
        Bytes that are not what they should be.
    maps : int
        Lines of /proc/self/maps in the end.
    own_copied, all_copied : int
        Agents whose own blocks were copied into private pages, and agents that were copied whole.
    rss, pss, anonymous, file_backed : int
        As /proc/self/smaps_rollup has them in the end. `rss` and `file_backed` count a page as often as it is
        mapped, `pss` once.
    """

    agents: int
    agent_bytes: int
    own_blocks: int
    places: int
    own_places: int
    wrong_bytes: int
    write: float
    open: float
    map_all: float
    read_all: float
    disk: int
    maps: int
    own_copied: int
    all_copied: int
    rss: int
    pss: int
    anonymous: int
    file_backed: int
    memory: int


def _is_own(plan: Plan, agent: int, at: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return np.isin(at.astype(np.int64) // plan.block_words, plan.own_blocks(agent))


def words_at(plan: Plan, agent: int, at: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the words of an agent at some positions: splitmix64 of those, and of the agent in its own blocks."""
    own = _is_own(plan, agent, at)
    with np.errstate(over="ignore"):
        mixed = (at + own.astype(np.uint64) * np.uint64(agent << 40)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def write(path: str, *plan: Any) -> dict[str, int]:
    """Register all agents, made one at a time in the same memory."""
    told = Plan(*plan)
    words = np.empty((told.n_blocks, told.block_words), np.uint64)

    def fill(agent: int, blocks: NDArray[np.int64]) -> None:
        for first in range(0, len(blocks), _SLAB_BLOCKS):
            some = blocks[first : first + _SLAB_BLOCKS]
            at = some[:, None] * told.block_words + np.arange(told.block_words)
            words[some] = words_at(told, agent, at.astype(np.uint64))

    cache = words.view(np.float16).reshape(told.n_blocks, 16, -1)
    fill(0, np.arange(told.n_blocks))
    with td.open(path, "w-", diff_threshold=0) as store:
        store.register_master("agent-0", cache)
        own = 0
        for agent in range(1, told.agents):
            blocks = told.own_blocks(agent)
            fill(agent, blocks)
            own += store.register_mirror(f"agent-{agent}", cache).n_diff_blocks
            fill(0, blocks)
    return {"own_blocks": own, "peak": status("VmHWM")}


def _memory() -> dict[str, int]:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    found = {key: int(value.split()[0]) << 10 for key, value in (line.split(":") for line in lines)}
    named = {"rss": found["Rss"], "pss": found["Pss"], "anonymous": found["Anonymous"]}
    return named | {"file_backed": found["Rss"] - found["Anonymous"]}


class _Told(logging.Handler):
    """Counts what the log says of copies in place of maps."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.own_copied = self.all_copied = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.own_copied += "its own blocks are copied" in record.getMessage()
        self.all_copied += "copied, not mapped" in record.getMessage()


def read(path: str, *plan: Any) -> dict[str, float | int]:
    """Map all agents at once, keep them, and read each at random places."""
    told, log = Plan(*plan), _Told()
    logging.getLogger("tokendance.store").addHandler(log)
    logging.getLogger("tokendance.store").setLevel(logging.INFO)
    start = time.perf_counter()
    store = td.open(path, "r")
    opened = time.perf_counter()
    caches = [store.reconstruct(f"agent-{agent}", copy=False) for agent in range(told.agents)]
    mapped = time.perf_counter()
    wrong = own = 0
    reading = 0.0
    for agent, cache in enumerate(caches):
        rng = np.random.default_rng((1, agent))
        at = rng.integers(0, told.n_blocks * told.block_words, told.places).astype(np.uint64)
        begin = time.perf_counter()
        found = cache.reshape(-1).view(np.uint64)[at]
        reading += time.perf_counter() - begin
        wrong += int(np.count_nonzero((found ^ words_at(told, agent, at)).view(np.uint8)))
        own += int(_is_own(told, agent, at).sum())
    maps = len(Path("/proc/self/maps").read_bytes().splitlines())
    counted = {"wrong_bytes": wrong, "own_places": own, "maps": maps}
    copied = {"own_copied": log.own_copied, "all_copied": log.all_copied}
    times = {"open": opened - start, "map_all": mapped - opened, "read_all": reading}
    return counted | copied | times | _memory()


def hundred(plan: Plan, folder: Path) -> Hundred:
    """Write a store into a folder in one process, and read it in another."""
    path = folder / "hundred.td"
    arguments = (plan.agents, plan.agent_bytes, plan.block_bytes, plan.own, plan.places)
    start = time.perf_counter()
    wrote = run_step("benchmarks.hundred", "write", str(path), *arguments, cwd=folder)
    seconds = time.perf_counter() - start
    found = run_step("benchmarks.hundred", "read", str(path), *arguments, cwd=folder)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    known = {"agents": plan.agents, "agent_bytes": plan.agent_bytes, "places": plan.places, "memory": memory}
    return Hundred(**known, own_blocks=wrote["own_blocks"], write=seconds, disk=allocated(path), **found)


def _as_text(found: Hundred) -> str:
    lines = [
        (f"{found.agents} dense caches", in_words(found.agents * found.agent_bytes, "bytes")),
        ("memory of the machine", in_words(found.memory, "bytes")),
        ("disk used", in_words(found.disk, "bytes")),
        ("make and register all, durable", in_words(found.write, "s")),
        ("open the store in a new process", in_words(found.open, "s")),
        (f"map all {found.agents}, and keep them", in_words(found.map_all, "s")),
        (f"read {found.places:,} random places of each", in_words(found.read_all, "s")),
        ("places that were read", f"{found.places * found.agents:,}"),
        ("of them in a mirror's own blocks", f"{found.own_places:,}"),
        ("wrong bytes", f"{found.wrong_bytes:,}"),
        ("maps of the process", f"{found.maps:,}"),
        ("agents whose own blocks were copied, to spare maps", f"{found.own_copied:,}"),
        ("agents that were copied whole", f"{found.all_copied:,}"),
        ("resident memory (RSS: a page counts as often as it is mapped)", in_words(found.rss, "bytes")),
        ("proportional memory (PSS: a page counts once)", in_words(found.pss, "bytes")),
        ("anonymous memory: no page of the store", in_words(found.anonymous, "bytes")),
        ("file-backed memory, within RSS", in_words(found.file_backed, "bytes")),
    ]
    return "\n".join(table(("what", "result"), lines))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks hundred", description="Map a hundred agents at once.")
    plan = Plan()
    parser.add_argument("--agents", type=int, default=plan.agents, help="how many (default: %(default)s)")
    parser.add_argument("--mib", type=int, default=plan.agent_bytes >> 20, help="size of each (default: %(default)s)")
    parser.add_argument("--own", type=float, default=plan.own, help="share of own blocks (default: %(default)s)")
    parser.add_argument("--places", type=int, default=plan.places, help="places to read (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--dir", metavar="FOLDER", type=Path, help="where temporary files go (default: here)")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table between a file's markers")
    options = parser.parse_args(arguments)
    if min(options.agents, options.mib, options.places) < 1 or not 0 <= options.own <= 1:
        parser.error("there must be at least one agent, one MiB and one place, and --own from 0 to 1")
    return options


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(143)  # an exception, so that the temporary folder is removed


def main(arguments: Sequence[str]) -> int:
    """Write, map, read, print; return 1 if a byte was wrong, 2 if it cannot be tried here."""
    load_before = os.getloadavg()[0]
    options = _options(arguments)
    plan = Plan(options.agents, options.mib << 20, own=options.own, places=options.places)
    parent = options.dir or Path.cwd()
    if not Path("/proc/self/smaps_rollup").exists():
        print("hundred: this system has no /proc/self/smaps_rollup; expected Linux", file=sys.stderr)
        return 2
    if shutil.disk_usage(parent).free < plan.disk_bytes:
        print(f"hundred: {parent} needs {in_words(plan.disk_bytes, 'bytes')} of free disk; see --dir", file=sys.stderr)
        return 2
    document = options.markdown.read_text(encoding="utf-8") if options.markdown else ""
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".hundred-") as folder:
        found = hundred(plan, Path(folder))
        machine = describe(Path(folder), load_before)
    text = "\n".join(f"- {line}" for line in machine.lines()) + "\n\n" + _as_text(found)
    print(json.dumps({"machine": machine.as_json(), "hundred": asdict(found)}, indent=1) if options.json else text)
    if options.markdown is not None:
        options.markdown.write_text(between(document, "hundred", text), encoding="utf-8")
    return int(found.wrong_bytes > 0)
