"""``tokendance snapshot``: caches from files into a store, all or none."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import tokendance as td
from tokendance.cli.arguments import IdentityOption, JsonOption, StoreArgument, identity_of
from tokendance.cli.cache_files import named_files
from tokendance.cli.failures import about
from tokendance.cli.screen import print_json, say
from tokendance.cli.sources import Source, Wanted, check_alike, source_of, store_all
from tokendance.plots.wording import count_of, in_bytes
from tokendance.validate import check_tag

__all__ = ["snapshot"]


class _Bits(StrEnum):
    bfloat16 = "bfloat16"
    float8_e4m3fn = "float8_e4m3fn"
    float8_e5m2 = "float8_e5m2"


FilesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="AGENT=FILE",
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
    """Store caches from files: all of them, or none.

    Makes the store if there is none, and one generation. Agents that it has already get new content. Files must not
    be written to meanwhile.
    """
    said = identity_of(identity)
    if tag is not None:
        check_tag(tag)
    wanted = Wanted(dtype.value if dtype else None, block_axis, block_tokens)
    sources = [source_of(agent, path, wanted) for agent, path in named_files(files)]
    check_alike(sources)
    with _opened(store, threshold, said) as storage:
        store_all(storage, sources, tag)
        facts = _facts(storage, sources, tag)
    if as_json:
        print_json(facts)
    else:
        _print(facts)


@contextmanager
def _opened(path: Path, threshold: float | None, identity: dict[str, Any] | None) -> Iterator[td.TokenDanceStore]:
    """Open a store or make one; one that was made for nothing is taken away again."""
    there = os.path.lexists(path)
    with about(path):
        # An empty folder becomes a store as well, and must have the same rule.
        new = not there or (path.is_dir() and not any(path.iterdir()))
    # Lossless and of any length: what people expect of a snapshot.
    rule = {"diff_threshold": threshold or 0.0, "ragged": True} if new else {"diff_threshold": threshold}
    with about(path, "nothing was stored"), td.open(path, mode="a", identity=identity, **rule) as storage:
        try:
            yield storage
        except BaseException:
            if new and storage.generation == 1 and not storage.agents:
                with suppress(OSError):
                    shutil.rmtree(path)
                    if there:
                        path.mkdir()
            raise


def _facts(storage: td.TokenDanceStore, sources: Sequence[Source], tag: str | None) -> dict[str, Any]:
    stats = storage.stats()
    agents = []
    for source in sources:
        told = stats["mirrors"].get(source.agent)
        n_blocks = stats["master_blocks"] if told is None else told["n_blocks"]
        agents.append(
            {
                "agent": source.agent,
                "file": str(source.path),
                "bytes": source.n_bytes,
                "master": told is None,
                "n_blocks": n_blocks,
                "n_own_blocks": n_blocks if told is None else told["n_diff_blocks"],
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
