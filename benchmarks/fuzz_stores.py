"""The small stores that the fuzz program damages: every kind of array, table and generation, a few KiB each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import tokendance as td
from tokendance.store import layout

__all__ = ["Base", "make_bases"]


class Base(NamedTuple):
    """A whole store to make damaged ones of.

    Attributes
    ----------
    path : Path
    held : dict
        What each agent of each generation holds, by number and id.
    stale : dict
        Files as they were before a later generation replaced them, by their path in the store.
    """

    path: Path
    held: dict[tuple[int, str], bytes]
    stale: dict[str, bytes]


def make_bases(folder: Path) -> list[Base]:
    """Make all of them in an empty folder."""
    # Chunks of KiB instead of MiB, so that small arrays have several.
    with mock.patch.multiple(layout, CHUNK_BYTES=4096, SMALL_CHUNK_BYTES=4096):
        return [_made(folder / name, steps) for name, steps in _STEPS.items()]


def _made(path: Path, steps: Any) -> Base:
    stale: dict[str, bytes] = {}
    before: dict[str, bytes] = {}
    for _ in steps(path):
        now = _files(path)
        stale |= {name: content for name, content in before.items() if now.get(name, content) != content}
        before = now
    held: dict[tuple[int, str], bytes] = {}
    with td.open(path, mode="r") as newest:
        numbers = [generation.number for generation in newest.history()]
    for number in numbers:
        with td.open(path, mode="r", at=number) as store:
            held |= {(number, agent): store.reconstruct(agent).tobytes() for agent in store.agents}
    return Base(path, held, stale)


def _files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _blocks(n: int, shape: tuple[int, ...], dtype: Any, seed: int) -> NDArray[Any]:
    bits = np.random.default_rng(seed).integers(
        0, 256, (n, *shape[:-1], shape[-1] * np.dtype(dtype).itemsize), np.uint8
    )
    return bits.view(dtype)


def _several_chunks(path: Path) -> Iterator[None]:
    shape, dtype = (2, 64), np.float32
    master = _blocks(20, shape, dtype, 1)
    a, b = master.copy(), master.copy()
    a[[2, 5, 19]] = _blocks(3, shape, dtype, 2)
    b[::2] = _blocks(10, shape, dtype, 3)
    with td.open(path, diff_threshold=0, ragged=True, identity={"model": "fuzz", "layers": 2}) as store:
        store.register_round({"m": master, "a": a, "b": b}, master="m")
        store.tag("before")
        yield
        store.collective_reuse_step(["m", "a"], _blocks(3, shape, dtype, 4))
        yield
        store.collective_reuse_step(["m", "b", "new"], _blocks(2, shape, dtype, 5))
        store.register_mirror("moved", np.concatenate((master[4:], master[:7])), base=np.r_[4:20, 0:7])
        store.fork("a", "twin of a")
    yield


def _pages(path: Path) -> Iterator[None]:
    shape, dtype = (2048,), np.uint8  # two blocks are a page
    master = _blocks(12, shape, dtype, 6)
    with td.open(path, diff_threshold=0, ragged=True) as store:
        store.register_master("m", master)
        for number in range(3):
            mirror = master.copy()
            mirror[[number, number + 6, number + 7]] = _blocks(3, shape, dtype, 7 + number)
            store.register_mirror(f"mirror {number}", mirror, meta={"turn": number})
        yield
        store.collective_reuse_step(store.agents, _blocks(1, shape, dtype, 11))
        yield
        store.rebase("mirror 1")
    yield


def _tables(path: Path) -> Iterator[None]:
    shape, dtype = (3,), ml_dtypes.bfloat16
    master = _blocks(9, shape, dtype, 12)
    with td.open(path, diff_threshold=0, ragged=True) as store:
        store.register_master("m", master)
        for length in (2, 5, 11):
            longer = np.concatenate((master, _blocks(4, shape, dtype, 13)))[:length]
            store.register_mirror(f"of {length}", longer)
        store.register_mirror("all its own", _blocks(9, shape, dtype, 14))
        yield
        for step in range(4):
            store.collective_reuse_step(["m", f"of {(2, 5, 11)[step % 3]}"], _blocks(1, shape, dtype, 15 + step))
        yield
        store.rebase("of 5")
        store.collective_reuse_step(["of 2", "of 11", "late"], _blocks(2, shape, dtype, 20))
        store.tag("rebased")
    yield


_STEPS = {"chunks.td": _several_chunks, "pages.td": _pages, "tables.td": _tables}
