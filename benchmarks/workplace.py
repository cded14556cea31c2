"""The caches and stores that rows share, made when the first row asks for them."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from benchmarks.sizes import Sizes

__all__ = ["Workplace", "changed", "positions", "workplace"]


def positions(rng: np.random.Generator, n_blocks: int, share: float) -> NDArray[np.int64]:
    """Return sorted positions of a share of the blocks, at least one."""
    return np.sort(rng.choice(n_blocks, max(round(n_blocks * share), 1), replace=False))


def changed(rng: np.random.Generator, master: NDArray[Any], share: float) -> NDArray[Any]:
    """Return a copy of a cache of which a share of the blocks, scattered at random, is new."""
    cache = master.copy()
    at = positions(rng, len(master), share)
    cache[at] = rng.standard_normal((len(at), *master.shape[1:]), np.float32).astype(master.dtype)
    return cache


class Workplace:
    """A folder that is removed at the end, and what the rows need.

    Parameters
    ----------
    folder : Path
    sizes : Sizes
    say : callable
        Told what is being made, for whoever waits.
    """

    def __init__(self, folder: Path, sizes: Sizes, say: Callable[[str], None] = lambda _text: None) -> None:
        self.folder = folder
        self.sizes = sizes
        self.say = say
        self._counter = 0

    def path(self, suffix: str = "") -> Path:
        """Return a path where nothing is."""
        self._counter += 1
        return self.folder / f"{self._counter}{suffix}"

    def remove(self, path: Path) -> None:
        """Remove a file or a folder."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Drop the caches that rows share; what asks for them again makes them again."""
        for name in ("master", "round", "dense"):
            self.__dict__.pop(name, None)

    def rng(self, seed: int) -> np.random.Generator:
        """Return a source of the same numbers in every run."""
        return np.random.default_rng(seed)

    def cache(self, dtype: str = "float32") -> NDArray[Any]:
        """Return a cache of random numbers, ``(n_blocks, tokens, heads, head_dim)``."""
        elements = self.sizes.block_bytes // np.dtype(dtype).itemsize
        shape = (self.sizes.n_blocks, 16, elements // 16 // 64 or 1, min(elements // 16, 64))
        cache = np.empty(shape, dtype)
        rng = self.rng(1)
        for block in range(0, len(cache), 256):  # in slices: float16 numbers are made as float32
            part = cache[block : block + 256]
            part[:] = rng.standard_normal(part.shape, np.float32)
        return cache

    @functools.cached_property
    def master(self) -> NDArray[Any]:
        """The master of the round, float32."""
        return self.cache()

    @functools.cached_property
    def round(self) -> dict[str, NDArray[Any]]:
        """As many caches as a round has, the master not among them."""
        self.say(f"making {self.sizes.round_agents} caches")
        return {
            f"agent-{n}": changed(self.rng(2 + n), self.master, self.sizes.differing)
            for n in range(self.sizes.round_agents)
        }

    @functools.cached_property
    def mapped_store(self) -> Path:
        """A store of `Sizes.mapped_agents` agents, "agent-0" the master, the others scattered mirrors of it."""
        self.say(f"making a store of {self.sizes.mapped_agents} agents")
        path, n_blocks = self.path(".td"), self.sizes.n_blocks
        cache = self.master.copy()
        with td.open(path, "w-") as store, store.transaction():
            store.register_master("agent-0", cache)
            for n in range(1, self.sizes.mapped_agents):
                rng = self.rng(100 + n)
                at = positions(rng, n_blocks, self.sizes.differing)
                cache[at] = rng.standard_normal((len(at), *cache.shape[1:]), np.float32)
                store.register_mirror(f"agent-{n}", cache)
                cache[at] = self.master[at]
        return path

    @functools.cached_property
    def dense(self) -> NDArray[Any]:
        """The cache of "agent-1" of the mapped store."""
        with td.open(self.mapped_store, "r") as store:
            return store.reconstruct("agent-1")

    def store_with(self, n_agents: int, n_bytes: int) -> Path:
        """Make a store of many agents, one block of each its own, on a master of `n_bytes`."""
        self.say(f"making a store of {n_agents} agents on {n_bytes >> 20} MiB")
        path = self.path(".td")
        cache = self.master[: max(n_bytes // self.sizes.block_bytes, 1)].copy()
        with td.open(path, "w-") as store, store.transaction():
            store.register_master("agent-0", cache)
            for n in range(1, n_agents):
                at = n % len(cache)
                before = cache[at].copy()
                cache[at] = n
                store.register_mirror(f"agent-{n}", cache)
                cache[at] = before
        return path

    @functools.cached_property
    def store_of_many(self) -> Path:
        """A store of `Sizes.many_agents` agents."""
        return self.store_with(self.sizes.many_agents, self.sizes.cache_bytes)


@contextmanager
def workplace(
    sizes: Sizes, parent: Path | None = None, say: Callable[[str], None] = lambda _text: None
) -> Iterator[Workplace]:
    """Yield a workplace in a new folder below `parent`, by default the present one; all of it is removed at the end."""
    with tempfile.TemporaryDirectory(
        prefix=".benchmarks-", dir=parent or Path.cwd(), ignore_cleanup_errors=True
    ) as name:
        yield Workplace(Path(name), sizes, say)
