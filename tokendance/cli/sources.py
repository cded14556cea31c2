"""What a snapshot takes: caches in files, and how each is registered."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from tokendance.adapters.safetensors import import_agent, import_mlx_cache
from tokendance.cli.cache_files import CacheFile, LayeredFile, opened
from tokendance.cli.cuts import Cut
from tokendance.cli.failures import CommandError
from tokendance.cli.screen import progress
from tokendance.electing import block_prints, elected
from tokendance.validate import check_blocks

__all__ = ["Source", "Wanted", "check_alike", "source_of", "store_all"]

# Blocks are looked at in steps of this size, so that the bar moves.
_STEP_BYTES = 32 << 20
_BLOCK_TOKENS = 16


class Wanted(NamedTuple):
    """How the command line says that files are to be read; None where it says nothing."""

    bits_are: str | None
    block_axis: int
    block_tokens: int | None


class Source(Protocol):
    """A file with an agent's cache."""

    @property
    def agent(self) -> str:
        """Whose cache it is."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def n_bytes(self) -> int:
        """How long the cache is."""

    def register(self, storage: td.TokenDanceStorage, *, as_master: bool) -> None:
        """Register the agent; an error says which file it is."""


@dataclass(frozen=True, slots=True)
class ArraySource:
    """One array, cut into blocks."""

    file: CacheFile
    cut: Cut

    @property
    def agent(self) -> str:
        """Whose cache it is."""
        return self.file.agent

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.file.path

    @property
    def n_bytes(self) -> int:
        """How long the cache is."""
        return self.cut.n_elements * self.file.dtype.itemsize

    def blocks(self) -> NDArray[Any]:
        """Return the array as blocks."""
        with _naming(self.path):
            array = self.file.read()
            try:
                return self.cut.blocks_of(array)
            except (MemoryError, ValueError) as error:  # filled up with zeros, the last block may be of any size
                size = f"{self.cut.n_blocks:,} x {self.cut.block_shape}"
                raise CommandError(
                    f"{self.path}: its blocks, {size}, are too large for memory; take fewer --block-tokens"
                ) from error

    def register(self, storage: td.TokenDanceStorage, *, as_master: bool) -> None:
        """Register the agent; an error says which file it is."""
        blocks, meta = self.blocks(), self.cut.to_meta()
        with _naming(self.path):
            if as_master:
                storage.register_master(self.agent, blocks, meta=meta)
            else:
                storage.register_mirror(self.agent, blocks, meta=meta)


@dataclass(frozen=True, slots=True)
class LayeredSource:
    """Keys and values of each layer, which become blocks of tokens."""

    file: LayeredFile
    block_tokens: int

    @property
    def agent(self) -> str:
        """Whose cache it is."""
        return self.file.agent

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.file.path

    @property
    def n_bytes(self) -> int:
        """How long the cache is."""
        return self.file.n_bytes

    def register(self, storage: td.TokenDanceStorage, *, as_master: bool) -> None:  # noqa: ARG002 - the first one is
        """Register the agent; an error says which file it is."""
        with _naming(self.path):
            if self.file.from_mlx:
                import_mlx_cache(storage, self.path, self.agent, block_tokens=self.block_tokens)
            else:
                import_agent(storage, self.path, self.agent)


def source_of(agent: str, path: Path, wanted: Wanted) -> Source:
    """Look at a file, and at how its cache becomes blocks."""
    file = opened(agent, path, wanted.bits_are)
    if isinstance(file, LayeredFile):
        return LayeredSource(file, wanted.block_tokens or _BLOCK_TOKENS)
    axis = wanted.block_axis + len(file.shape) if wanted.block_axis < 0 else wanted.block_axis
    if not 0 <= axis < len(file.shape):
        raise CommandError(f"{path}: an array of shape {file.shape} has no --block-axis {wanted.block_axis}")
    with _naming(path):
        cut = Cut(file.shape, axis, wanted.block_tokens)
        if not cut.block_shape:
            raise td.ShapeMismatchError(f"the array has shape {file.shape}: say with --block-tokens how to cut it")
    return ArraySource(file, cut)


def check_alike(sources: Sequence[Source]) -> None:
    """Find files that do not fit each other before anything is read or made."""
    arrays = [source for source in sources if isinstance(source, ArraySource)]
    for source in arrays[1:]:
        file, first = source.file, arrays[0].file
        if (file.dtype, source.cut.block_shape) != (first.dtype, arrays[0].cut.block_shape):
            raise CommandError(
                f"{file.path} is {file.dtype} of shape {file.shape}, which does not fit {first.path}, {first.dtype} of "
                f"shape {first.shape}: all axes but that of the blocks, and the dtype, must be the same"
            )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (td.ShapeMismatchError, TypeError) as error:
        raise CommandError(f"{path}: {error}") from error


def store_all(storage: td.TokenDanceStore, sources: Sequence[Source], tag: str | None) -> None:
    """Register all files as one generation, one after the other, so that memory holds one of them at most."""
    master = storage.master_id
    first = master is None
    by_agent = {source.agent: source for source in sources}
    arrays = [source for source in sources if isinstance(source, ArraySource)]
    if master is None:
        master = _elected(arrays) if len(arrays) == len(sources) > 1 else sources[0].agent
    done, total = 0, sum(source.n_bytes for source in sources)
    with progress("storing") as show, storage.transaction():
        if not first and master in by_agent:
            # Their old content need not be told anew against the new master.
            for agent in set(by_agent) & set(storage.mirrors):
                storage.remove(agent)
        for agent in sorted(by_agent, key=lambda agent: agent != master):
            show(done, total, f"storing {by_agent[agent].path.name}")
            by_agent[agent].register(storage, as_master=agent == master)
            done += by_agent[agent].n_bytes
        if first and len(arrays) < len(sources):
            show(done, total, "choosing a master")
            storage.rebase()
        if tag is not None:
            storage.tag(tag)
        show(done, total, "syncing")


def _elected(sources: Sequence[ArraySource]) -> str:
    """Return the agent that, as master, leaves the least to store."""
    prints = {}
    done, total = 0, sum(source.n_bytes for source in sources)
    with progress("choosing a master") as show:
        for source in sources:
            blocks = source.blocks()
            with _naming(source.path):
                rows = check_blocks(blocks).rows
            step = max(_STEP_BYTES // rows.shape[1], 1)
            found = [np.empty(0, np.uint32)]
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                found.append(block_prints(part))
                done += part.nbytes
                show(done, total)
            prints[source.agent] = np.concatenate(found)
    return elected(prints)
