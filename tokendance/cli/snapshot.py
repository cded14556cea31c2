"""``tokendance snapshot``: caches from files into a store, all or none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

import tokendance as td
from tokendance.cli.arguments import IdentityOption, JsonOption, StoreArgument, identity_of
from tokendance.cli.cache_files import CacheFile, named_files, opened
from tokendance.cli.cuts import Cut
from tokendance.cli.failures import CommandError, about
from tokendance.cli.screen import count_of, in_bytes, print_json, progress, say
from tokendance.electing import block_prints, elected
from tokendance.validate import check_blocks, check_tag

__all__ = ["snapshot"]

# Blocks are printed in steps of this size, so that the bar moves.
_STEP_BYTES = 32 << 20


class _Bits(StrEnum):
    bfloat16 = "bfloat16"
    float8_e4m3fn = "float8_e4m3fn"
    float8_e5m2 = "float8_e5m2"


@dataclass(frozen=True, slots=True)
class _Source:
    file: CacheFile
    cut: Cut

    @property
    def n_bytes(self) -> int:
        return self.cut.n_elements * self.file.dtype.itemsize

    def blocks(self) -> NDArray[Any]:
        """Return the file's array as blocks; an error says which file it is."""
        with _naming(self.file):
            return self.cut.blocks_of(self.file.read())


FilesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="AGENT=FILE...",
        show_default=False,
        help="A .npy, .npz or .safetensors file with one array. Without AGENT= the agent is named after the file; a "
        "folder is one agent per file.",
    ),
]
AxisOption = Annotated[int, typer.Option("--block-axis", metavar="N", help="The axis that is cut into blocks.")]
TokensOption = Annotated[
    int | None,
    typer.Option(
        "--block-tokens",
        metavar="N",
        min=1,
        show_default=False,
        help="How many indices of that axis, mostly tokens, one block holds; without it, one index is a block.",
    ),
]
DtypeOption = Annotated[
    _Bits | None, typer.Option("--dtype", show_default=False, help="What the bits of integers in the files are.")
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="NORM",
        min=0,
        show_default=False,
        help="Drop a mirror's block whose difference has an L2 norm up to this. A new store takes 0, which keeps every "
        "bit; an existing one has its own.",
    ),
]
TagOption = Annotated[
    str | None, typer.Option("--tag", metavar="NAME", show_default=False, help="A name that keeps this generation.")
]


def snapshot(
    store: StoreArgument,
    files: FilesArgument,
    block_axis: AxisOption = 0,
    block_tokens: TokensOption = None,
    dtype: DtypeOption = None,
    threshold: ThresholdOption = None,
    tag: TagOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store caches from files, as one generation: all of them, or none.

    Makes the store if there is none. Agents that it has already get new content.
    """
    said = identity_of(identity)
    if tag is not None:
        check_tag(tag)
    sources = [
        _source(opened(agent, path, dtype.value if dtype else None), block_axis, block_tokens)
        for agent, path in named_files(files)
    ]
    _check_alike(sources)
    with _opened(store, threshold, said) as storage:
        with storage.transaction():
            _register(storage, sources)
            if tag is not None:
                storage.tag(tag)
        facts = _facts(storage, sources, tag)
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _source(file: CacheFile, block_axis: int, block_tokens: int | None) -> _Source:
    axis = block_axis + len(file.shape) if block_axis < 0 else block_axis
    with _naming(file):
        cut = Cut(file.shape, axis, block_tokens)
        if not cut.block_shape:
            raise td.ShapeMismatchError(f"the array has shape {file.shape}: tell --block-tokens how to cut it")
        return _Source(file, cut)


def _check_alike(sources: list[_Source]) -> None:
    """Find files that do not fit each other before anything is read or made."""
    first = sources[0]
    for source in sources[1:]:
        came, expected = (
            (source.file.dtype, source.cut.block_shape),
            (first.file.dtype, first.cut.block_shape),
        )
        if came != expected:
            raise CommandError(
                f"{source.file.path} is {source.file.dtype} of shape {source.file.shape}, which does not fit "
                f"{first.file.path}, {first.file.dtype} of shape {first.file.shape}: all axes but the one of the blocks, "
                "and the dtype, must be the same"
            )


@contextmanager
def _naming(file: CacheFile) -> Iterator[None]:
    try:
        yield
    except (td.ShapeMismatchError, TypeError) as error:
        raise CommandError(f"{file.path}: {error}") from error


@contextmanager
def _opened(path: Path, threshold: float | None, identity: dict[str, Any] | None) -> Iterator[td.TokenDanceStore]:
    """Open a store or make one; one that was made for nothing is taken away again."""
    new = not os.path.lexists(path)
    # Lossless and of any length: what people expect of a snapshot.
    rule = {"diff_threshold": threshold or 0.0, "ragged": True} if new else {"diff_threshold": threshold}
    with about(path, "nothing was stored"), td.open(path, mode="a", identity=identity, **rule) as storage:
        try:
            yield storage
        except BaseException:
            if new and storage.generation == 1 and not storage.agents:
                with suppress(OSError):
                    shutil.rmtree(path)
            raise


def _register(storage: td.TokenDanceStore, sources: list[_Source]) -> None:
    """Register one file after the other, so that memory holds one of them at most."""
    by_agent = {source.file.agent: source for source in sources}
    master = storage.master_id
    if master is None:
        master = sources[0].file.agent if len(sources) == 1 else _elect(sources)
    elif master in by_agent:
        # Their old content need not be told anew against the new master.
        for agent in set(by_agent) & set(storage.mirrors):
            storage.remove(agent)
    order = sorted(by_agent, key=lambda agent: agent != master)
    done, total = 0, sum(source.n_bytes for source in sources)
    with progress("storing") as show:
        show(done, total)
        for agent in order:
            source = by_agent[agent]
            register = storage.register_master if agent == master else storage.register_mirror
            blocks = source.blocks()
            with _naming(source.file):
                register(agent, blocks, meta=source.cut.to_meta())
            done += source.n_bytes
            show(done, total)


def _elect(sources: list[_Source]) -> str:
    """Return the agent that, as master, leaves the least to store."""
    prints = {}
    done, total = 0, sum(source.n_bytes for source in sources)
    with progress("choosing a master") as show:
        for source in sources:
            blocks = source.blocks()
            with _naming(source.file):
                rows = check_blocks(blocks).rows
            step = max(_STEP_BYTES // rows.shape[1], 1)
            found = [np.empty(0, np.uint32)]
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                found.append(block_prints(part))
                done += part.nbytes
                show(done, total)
            prints[source.file.agent] = np.concatenate(found)
    return elected(prints)


def _facts(storage: td.TokenDanceStore, sources: list[_Source], tag: str | None) -> dict[str, Any]:
    stats = storage.stats()
    mirrors = stats["mirrors"]
    agents = []
    for source in sources:
        agent, file = source.file.agent, source.file
        told = mirrors.get(agent)
        agents.append(
            {
                "agent": agent,
                "file": str(file.path),
                "bytes": source.n_bytes,
                "master": told is None,
                "n_blocks": source.cut.n_blocks,
                "n_own_blocks": source.cut.n_blocks if told is None else told["n_diff_blocks"],
                "max_dropped_norm": 0.0 if told is None else told["max_dropped_norm"],
            }
        )
    newest = next(one for one in reversed(storage.history()) if one.number == storage.generation)
    cohort = {key: stats[key] for key in ("logical_bytes", "stored_bytes", "byte_ratio")}
    return {
        "store": storage.path,
        "generation": storage.generation,
        "tag": tag,
        "written_bytes": newest.written_bytes,
        "agents": agents,
        "cohort": cohort | {"n_agents": len(storage.agents)},
    }


def _print(facts: dict[str, Any]) -> None:
    agents, cohort = facts["agents"], facts["cohort"]
    for one in agents:
        role = "the master" if one["master"] else f"{one['n_own_blocks']:,} of its own"
        say(f"{one['agent']}: {in_bytes(one['bytes'])} in {count_of(one['n_blocks'], 'block')}, {role}")
    tagged = f", tagged {facts['tag']}" if facts["tag"] else ""
    say(f"{facts['store']}: generation {facts['generation']}{tagged}, {in_bytes(facts['written_bytes'])} written")
    say(
        f"{count_of(cohort['n_agents'], 'agent')}: {in_bytes(cohort['logical_bytes'])} dense, "
        f"{in_bytes(cohort['stored_bytes'])} stored, cohort ratio {cohort['byte_ratio']:.2f}"
    )
    dropped = max(one["max_dropped_norm"] for one in agents)
    if dropped:
        say(f"blocks were dropped whose difference had an L2 norm of up to {dropped:g}: they come back as the master's")
