"""Rows about taking caches out of a store by mapping them: time, new processes, memory."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tokendance as td
from benchmarks.bare import has, write_npy
from benchmarks.rows import Floor, Row, from_bytes, from_pairs, skipped
from benchmarks.timing import Trial, in_turn
from benchmarks.workplace import Workplace

__all__ = ["ROWS", "run_child"]

_TAKE_MAPPED = """
import sys
import tokendance as td
td.open(sys.argv[1], "r").reconstruct("agent-1", copy=False)
"""
_LOAD_DENSE = """
import sys
from safetensors.numpy import load_file
load_file(sys.argv[1])
"""
# What reading needs is imported and used before the first look, so that the difference is the agents alone.
_MAP_ALL = """
import sys, json
import numpy as np
import tokendance as td

def proportional():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))

def read_whole(array):
    return int(np.bitwise_or.reduce(array.reshape(-1).view(np.uint8).view(np.uint64)))

read_whole(np.zeros((4, 8), np.float32))
store = td.open(sys.argv[1], "r")
agents = store.agents
before = proportional()
arrays = [store.reconstruct(agent, copy=False) for agent in agents]
for array in arrays:
    read_whole(array)
print(json.dumps({"added": proportional() - before, "agents": len(arrays), "logical": sum(a.nbytes for a in arrays)}))
"""


def run_child(program: str, *arguments: str, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Run a program in a new Python and return what it printed.

    The working folder must not be the checkout, whose bare `tokendance/` would hide an installed package.
    """
    # Python's default, whatever it is here: with this set, each new process compiles an editable install's files anew.
    environment = {k: v for k, v in (environment or os.environ).items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", program, *arguments]
    child = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"a child process failed with status {child.returncode}:\n{child.stderr}")
    return child.stdout


def reconstruct_mapped(place: Workplace) -> Iterator[Row]:
    """Taking an agent mapped against loading it; then the same with every byte read, for information."""
    path = place.path(".npy")
    write_npy(path, place.dense)
    floor = Floor(0.15)
    with td.open(place.mapped_store, "r") as store:

        def take() -> np.ndarray:
            return store.reconstruct("agent-1", copy=False)

        def read(array: np.ndarray) -> int:
            return int(np.bitwise_or.reduce(array.reshape(-1).view(np.uint64)))

        repeats = place.sizes.quick_repeats
        pairs = in_turn(Trial(take), Trial(lambda: np.load(path)), repeats=repeats, warm_up=3)
        yield from_pairs("reconstruct(copy=False)", "np.load of the dense file", pairs, floor)
        pairs = in_turn(Trial(lambda: read(take())), Trial(lambda: read(np.load(path))), repeats=repeats)
        name, against = "reconstruct(copy=False), every byte read", "np.load, every byte read"
        yield from_pairs(name, against, pairs, note="information: a mapped page costs when it is first touched")
    place.remove(path)


def new_process(place: Workplace) -> Iterator[Row]:
    """A new Python that takes one agent mapped, against one that loads the dense file."""
    name, against = "new process: import, open, one agent mapped", "new process: safetensors load_file"
    if not has("safetensors"):
        yield skipped(name, against, "safetensors is not installed")
        return
    from safetensors.numpy import save_file

    path = place.path(".safetensors")
    save_file({"cache": place.dense}, path)
    pairs = in_turn(
        Trial(lambda: run_child(_TAKE_MAPPED, str(place.mapped_store), cwd=place.folder)),
        Trial(lambda: run_child(_LOAD_DENSE, str(path), cwd=place.folder)),
        repeats=place.sizes.quick_repeats,
        warm_up=2,
    )
    yield from_pairs(name, against, pairs, Floor(0.45))
    place.remove(path)


def shared_memory(place: Workplace) -> Iterator[Row]:
    """What all agents of a store, mapped and read whole, add to a process."""
    name = f"proportional set size that {place.sizes.mapped_agents} agents add, mapped and read whole"
    against = "their unique bytes"
    if not Path("/proc/self/smaps_rollup").exists():
        yield skipped(name, against, "this system has no /proc/self/smaps_rollup")
        return
    with td.open(place.mapped_store, "r") as store:
        own = sum(diff.n_diff_blocks for diff in store.mirrors.values())
    unique = place.sizes.cache_bytes + own * place.sizes.block_bytes
    found = json.loads(run_child(_MAP_ALL, str(place.mapped_store), cwd=place.folder))
    yield from_bytes(name, against, found["added"], unique, Floor(1.1))


ROWS = {
    "reconstruct(copy=False)": reconstruct_mapped,
    "new process": new_process,
    "proportional set size": shared_memory,
}
