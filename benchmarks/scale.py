"""More agents than fit into memory: registered as a stream, stored, all mapped at once, one layer of each read."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from benchmarks.children import run_step, status
from benchmarks.on_disk import allocated
from benchmarks.sizes import ModelShape
from benchmarks.timing import quartiles
from benchmarks.workplace import Workplace, positions

__all__ = ["Scale", "measure", "read", "write"]

_SPARE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Scale:
    """What the trial found, in seconds and bytes.

    Attributes
    ----------
    own_blocks : int
        How many of its blocks each mirror has for its own.
    register_master, register_mirror : float
        Commits included; the second is the median of all mirrors. Making the caches is not timed.
    open_store, map_one, read_layer : float
        Opening; and per agent, medians, taking it mapped and copying the blocks of one layer out of it.
    map_all, read_all : float
        Of all agents together.
    writer_peak, reader_peak : int
        Peak resident memory; the writer's includes the cache that it hands over.
    reader_private : int
        How much of the reader's memory, in the end, is no page of the store.
    identical : bool
        Every layer that was read is what was registered.
    note : str
        Why there is nothing else.
    """

    agents: int
    agent_bytes: int
    own_blocks: int = 0
    register_master: float = 0.0
    register_mirror: float = 0.0
    register_all: float = 0.0
    open_store: float = 0.0
    map_one: float = 0.0
    map_all: float = 0.0
    read_layer: float = 0.0
    read_all: float = 0.0
    disk_bytes: int = 0
    writer_peak: int = 0
    reader_peak: int = 0
    reader_private: int = 0
    identical: bool = False
    note: str = ""

    @property
    def logical_bytes(self) -> int:
        """What all agents take as dense caches."""
        return self.agents * self.agent_bytes

    def as_json(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return asdict(self) | {"logical_bytes": self.logical_bytes}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _layer(shape: ModelShape, agent: int) -> NDArray[np.int64]:
    """Return the blocks of the layer that is read of an agent, keys and values: another layer for each agent."""
    first = agent % shape.layers * 2
    return np.arange(shape.n_blocks).reshape(-1, shape.blocks_per_token_block)[:, first : first + 2].reshape(-1)


def _print_of(blocks: NDArray[Any]) -> int:
    import google_crc32c

    return int(google_crc32c.value(blocks.reshape(-1).view(np.uint8)))


def _random_bits(rng: np.random.Generator, out: NDArray[np.uint64]) -> None:
    """Fill with bfloat16 bits that are finite."""
    for row in out:
        row[:] = rng.integers(0, 1 << 63, row.shape, np.uint64)
    out &= np.uint64(0xBFFFBFFFBFFFBFFF)


def write(path: str, agents: int, differing: float, *shape: int) -> dict[str, Any]:
    """Register all agents, made one at a time in the same memory; return what was measured."""
    import ml_dtypes

    model = ModelShape(*shape)
    bits = np.empty((model.tokens // model.block_tokens, model.cache_bytes * model.block_tokens // model.tokens // 8))
    words = bits.view(np.uint64)
    cache = words.reshape(-1).view(ml_dtypes.bfloat16).reshape(model.n_blocks, *model.block_shape)
    _random_bits(np.random.default_rng(0), words)
    prints, seconds = [_print_of(cache[_layer(model, 0)])], []
    with td.open(path, "w-") as store:
        master_seconds = _seconds(lambda: store.register_master("agent-0", cache))
        for agent in range(1, agents):
            # Whole token blocks change, in all layers: that is what diverging text does to a cache.
            rng = np.random.default_rng(agent)
            at = positions(rng, len(words), differing)
            before = words[at]
            new = np.empty_like(before)
            _random_bits(rng, new)
            words[at] = new
            prints.append(_print_of(cache[_layer(model, agent)]))
            seconds.append(_seconds(lambda agent=agent: store.register_mirror(f"agent-{agent}", cache)))
            words[at] = before
        own = len(at) * model.blocks_per_token_block
    found = {"register_master": master_seconds, "register_mirrors": seconds, "own_blocks": own, "prints": prints}
    return found | {"peak": status("VmHWM")}


def read(path: str, *shape: int) -> dict[str, Any]:
    """Map all agents at once, copy one layer out of each, and return what was measured."""
    model = ModelShape(*shape)
    start = time.perf_counter()
    store = td.open(path, "r")
    opened = time.perf_counter() - start
    caches, reading, prints = [], [], []

    def take(agent: str) -> None:
        caches.append(store.reconstruct(agent, copy=False))

    mapping = [_seconds(lambda agent=agent: take(agent)) for agent in store.agents]
    for number, cache in enumerate(caches):
        layer: list[NDArray[Any]] = []
        blocks = _layer(model, number)
        reading.append(_seconds(lambda: layer.append(cache[blocks])))  # noqa: B023 - called before the loop goes on
        prints.append(_print_of(layer[0]))
    found = {"open": opened, "map": mapping, "read": reading, "prints": prints}
    return found | {"peak": status("VmHWM"), "private": status("RssAnon")}


def measure(place: Workplace) -> Scale:
    """Run the trial: one process writes, another maps everything and reads."""
    sizes, shape = place.sizes, place.sizes.scale_shape
    wanted = int(shape.cache_bytes * (1 + sizes.differing * sizes.scale_agents)) + _SPARE_BYTES
    if shutil.disk_usage(place.folder).free < wanted:
        return Scale(sizes.scale_agents, shape.cache_bytes, note=f"needs {wanted >> 30} GiB of free disk; see --dir")
    model = (shape.tokens, shape.layers, shape.kv_heads, shape.head_dim, shape.block_tokens)
    path = str(place.path(".td"))
    place.say(f"scale: writing {sizes.scale_agents} agents of {shape.cache_bytes >> 20} MiB")
    arguments = (path, sizes.scale_agents, sizes.differing, *model)
    wrote = run_step("benchmarks.scale", "write", *arguments, cwd=place.folder)
    place.say("scale: mapping and reading them")
    found = run_step("benchmarks.scale", "read", path, *model, cwd=place.folder)
    disk = allocated(Path(path))
    place.remove(Path(path))
    return Scale(
        agents=sizes.scale_agents,
        agent_bytes=shape.cache_bytes,
        own_blocks=wrote["own_blocks"],
        register_master=wrote["register_master"],
        register_mirror=quartiles(wrote["register_mirrors"])[1],
        register_all=wrote["register_master"] + sum(wrote["register_mirrors"]),
        open_store=found["open"],
        map_one=quartiles(found["map"])[1],
        map_all=sum(found["map"]),
        read_layer=quartiles(found["read"])[1],
        read_all=sum(found["read"]),
        disk_bytes=disk,
        writer_peak=wrote["peak"],
        reader_peak=found["peak"],
        reader_private=found["private"],
        identical=found["prints"] == wrote["prints"],
    )
