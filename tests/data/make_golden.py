"""Makes `golden-1/`: two stores of format 1, and what each of their generations holds.

It was run once, with the first version that wrote format 1, and what it made was committed. Every later version must
read those stores bit for bit, so do not run it again for them: a new format gets a folder of its own.

    python tests/data/make_golden.py FOLDER

makes FOLDER, which must not exist. The same version makes the same bytes each time: contents are arithmetic, the clock
is ours, and the writer's lock file, which holds a process id, is taken away. The `.expected.npz` of a store has one
array per generation and agent, under `<generation>|<agent>` (percent-encoded), with bfloat16 as its bits in uint16.

- `float16.td` has agents of several lengths, equal blocks, appended blocks with tail runs, base maps, a fork, an agent
  removed, an agent with a name that is no file name, one without blocks, tags, meta, an identity, a block that the
  threshold dropped, and a generation that was made from an older one.
  Its chunks are cut at 4 KiB instead of 16 MiB, so that a small store has masters of several chunks, a master that
  grew in place, and one that shares chunk files with another (git and copies turn those into files of their own).
- `bfloat16.td` is a store as small as they come; docs/format.md shows its files.
"""

import itertools
import sys
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import ml_dtypes
import numpy as np

import tokendance as td
from tokendance.store import layout

FOREIGN_NAME = "../Ødile №1/\n"  # agent ids never become paths


def blocks(n: int, block_shape: tuple[int, ...], seed: int, dtype: Any) -> np.ndarray:
    """Blocks whose elements repeat after 251, so that what git stores is small."""
    size = n * int(np.prod(block_shape))
    return ((np.arange(size) * (2 * seed + 1) % 251 - 125) / 16).astype(dtype).reshape(n, *block_shape)


def changed(cache: np.ndarray, positions: list[int], seed: int) -> np.ndarray:
    """A copy with other blocks at some positions."""
    copy = cache.copy()
    copy[positions] = blocks(len(positions), cache.shape[1:], seed, cache.dtype)
    return copy


def make_float16(path: Path) -> None:
    shape, dtype = (2, 4, 16), np.float16
    planner = blocks(20, shape, 1, dtype)
    longer = np.concatenate((changed(planner, [5], 4), blocks(6, shape, 5, dtype)))
    nearly = changed(planner, [19], 6)
    nearly[2] += np.float16(1 / 64)  # a norm of 0.18, below the threshold: dropped, and said so
    identity = {"model": "golden", "layers": 1, "kv_heads": 2, "head_dim": 16, "rope": 10000.0}
    with td.open(path, mode="w-", diff_threshold=0.5, ragged=True, identity=identity) as store:
        with store.transaction():  # generation 2
            store.register_master("planner", planner, meta={"tokens": 160})
            store.register_mirror("critic", changed(planner, [3, 11, 12], 2), meta={"tokens": 159, "stop": ["\n"]})
            store.register_mirror("writer", changed(planner[:14], [0], 3))
            store.register_mirror("reader", longer)
            store.register_mirror("nearly", nearly)
            store.register_mirror("twin", planner)
            store.register_mirror("listener", planner[:0])
            store.fork("critic", FOREIGN_NAME)
            store.tag("round 1")
        with store.transaction():  # generation 3: appended in place, tail runs
            everyone = [agent for agent in store.agents if agent != "twin"]
            store.collective_reuse_step(everyone, blocks(5, shape, 7, dtype))
            store.collective_reuse_step(["writer", "late"], blocks(2, shape, 8, dtype))
        with store.transaction():  # generation 4: another master, base maps, one of an agent without own blocks
            store.rebase("reader")
            store.remove("nearly")
            store.tag("rebased")
        with store.transaction():  # generation 5: tail runs after base maps
            everyone = [agent for agent in store.agents if agent != FOREIGN_NAME]
            store.collective_reuse_step(everyone, blocks(3, shape, 9, dtype))
            store.fork("writer", "writer's twin")
            store.tag("round 2")
    with td.open(path, mode="r+", at="round 1") as store, store.transaction():  # generation 6, made from generation 2
        store.collective_reuse_step(["critic", "twin"], blocks(1, shape, 10, dtype))
        store.remove("nearly")
        store.tag("branch")


def make_bfloat16(path: Path) -> None:
    shape, dtype = (2, 4), ml_dtypes.bfloat16
    planner = blocks(6, shape, 1, np.float32).astype(dtype)
    critic = planner.copy()
    critic[[1, 4]] += np.array(1, dtype)
    with td.open(path, mode="w-", diff_threshold=0, identity={"model": "golden"}) as store, store.transaction():
        store.register_master("planner", planner, meta={"tokens": 6})
        store.register_mirror("critic", critic)
        store.fork("planner", "sub-agent")
        store.tag("round 1")


def expected(path: Path) -> dict[str, np.ndarray]:
    """Every agent of every generation, as this version reads it."""
    found = {}
    with td.open(path, mode="r") as newest:
        numbers = [generation.number for generation in newest.history()]
    for number in numbers:
        with td.open(path, mode="r", at=number) as store:
            for agent in store.agents:
                cache = store.reconstruct(agent)
                bits = cache.view(np.uint16) if cache.dtype == ml_dtypes.bfloat16 else cache
                found[f"{number}|{quote(agent, safe='')}"] = bits
    return found


def main(folder: Path) -> None:
    folder.mkdir()
    ticks = map(float, itertools.count(1_775_174_400))
    small = {"CHUNK_BYTES": 4096, "SMALL_CHUNK_BYTES": 4096}
    with mock.patch("time.time", side_effect=ticks):
        with mock.patch.multiple(layout, **small):
            make_float16(folder / "float16.td")
        make_bfloat16(folder / "bfloat16.td")
    for path in (folder / "float16.td", folder / "bfloat16.td"):
        (path / "manifests" / "lock").unlink()
        np.savez_compressed(folder / f"{path.stem}.expected.npz", **expected(path))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
