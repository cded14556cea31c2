"""``tokendance restore``: an agent's cache from a store into a file."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

import tokendance as td
from tokendance.adapters.laid_out_agents import stored_layout
from tokendance.adapters.safetensors import export_agent
from tokendance.adapters.safetensors_file import write_tensors
from tokendance.adapters.safetensors_header import FORMAT_NAMES, TensorEntry
from tokendance.cli.arguments import (
    AgentArgument,
    IdentityOption,
    JsonOption,
    StoreArgument,
    generations_of,
    identity_of,
)
from tokendance.cli.cache_files import BITS_OF
from tokendance.cli.cuts import META_KEY, Cut
from tokendance.cli.failures import UsageError, about
from tokendance.cli.replacing import replaced
from tokendance.cli.screen import print_json, progress, say, waiting
from tokendance.cli.stores import opened
from tokendance.plots.wording import in_bytes

__all__ = ["restore"]

_STEP_BYTES = 32 << 20

OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", show_default=False, help="A .npy or .safetensors file.")
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TAG",
        show_default=False,
        help="An older generation, by tag or number.",
        autocompletion=generations_of,
    ),
]


def restore(
    store: StoreArgument,
    agent: AgentArgument,
    out: OutOption,
    at: AtOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an agent's cache to a file.

    It is the array that it was taken from. What numpy.save wrote in C order comes back the same to the byte; of other
    files the array does, in C order. Every byte read is compared with its checksum. The file appears when it is whole,
    and replaces what was there.
    """
    said = identity_of(identity)
    if out.suffix not in (".npy", ".safetensors"):
        raise UsageError(f"{out} must end in .npy or .safetensors, which says how to write it")
    with opened(store, at, said) as storage:
        plan = _plan_of(storage, agent)
        with about(out):
            shape = _WRITE[out.suffix](storage, plan, out)
        facts = {
            "store": storage.path,
            "generation": storage.generation,
            "agent": agent,
            "file": str(out),
            "shape": shape,
            "dtype": plan.sample.dtype.name,
            "stored_as": _named(plan.sample.dtype).name if out.suffix == ".npy" else plan.sample.dtype.name,
        }
    if as_json:
        print_json(facts)
    else:
        _print(facts, plan)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """An agent, and the array that its blocks become."""

    agent: str
    n_blocks: int
    sample: NDArray[Any]
    cut: Cut
    outgrown: bool

    @property
    def as_blocks(self) -> bool:
        return self.cut.shape == (self.n_blocks, *self.sample.shape[1:])

    @property
    def n_bytes(self) -> int:
        return self.cut.n_elements * self.sample.itemsize


def _plan_of(storage: td.TokenDanceStore, agent: str) -> _Plan:
    sample = storage.reconstruct(agent, blocks=slice(0, 0))
    stats, meta = storage.stats(), storage.meta(agent)
    n_blocks = stats["master_blocks"] if agent == stats["master_id"] else stats["mirrors"][agent]["n_blocks"]
    cut = Cut.from_meta(meta, n_blocks, sample.shape[1:])
    whole = cut or Cut((n_blocks, *sample.shape[1:]), 0, None)
    return _Plan(agent, n_blocks, sample, whole, cut is None and META_KEY in meta)


def _print(facts: dict[str, Any], plan: _Plan) -> None:
    shape = "keys and values of each layer" if facts["shape"] is None else f"{tuple(facts['shape'])}"
    say(f"{facts['file']}: {facts['dtype']} {shape}, {in_bytes(plan.n_bytes)}, of generation {facts['generation']}")
    if facts["stored_as"] != facts["dtype"]:
        say(f"numpy files cannot name {facts['dtype']}: its bits are there as {facts['stored_as']}")
    if plan.outgrown:
        say("it grew since it was taken from a file, so these are its blocks, not that file's array")


def _write_npy(storage: td.TokenDanceStore, plan: _Plan, out: Path) -> list[int]:
    # numpy's own header, so that what np.save wrote comes back the same to the byte.
    header = BytesIO()
    said = {
        "descr": np.lib.format.dtype_to_descr(_named(plan.sample.dtype)),
        "fortran_order": False,
        "shape": plan.cut.shape,
    }
    np.lib.format.write_array_header_1_0(header, said)
    with replaced(out) as file:
        file.write(header.getvalue())
        for part in _parts(storage, plan):
            file.write(part.reshape(-1).view(np.uint8).data)
    return list(plan.cut.shape)


def _write_safetensors(storage: td.TokenDanceStore, plan: _Plan, out: Path) -> list[int] | None:
    """Write one tensor, or those that the layout of a model asks for; then there is no one shape."""
    layered = _has_layers(storage, plan.agent)
    if layered or plan.as_blocks:
        with waiting("writing"):
            export_agent(storage, plan.agent, out)
        return None if layered else list(plan.cut.shape)
    entry = TensorEntry(FORMAT_NAMES[plan.sample.dtype.name], plan.cut.shape)
    write_tensors(out, {"cache": entry}, {}, lambda _name: _parts(storage, plan))
    return list(plan.cut.shape)


def _has_layers(storage: td.TokenDanceStore, agent: str) -> bool:
    try:
        stored_layout(storage._cohort, agent)
    except ValueError:
        return False
    return True


def _named(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that a numpy file says it holds."""
    return np.dtype(f"uint{8 * BITS_OF[dtype.name]}") if dtype.name in BITS_OF else dtype


def _parts(storage: td.TokenDanceStore, plan: _Plan) -> Iterator[NDArray[Any]]:
    """Yield the array's elements in order, in parts; all at once where the blocks do not stand in the file's order."""
    sample, n_blocks, cut = plan.sample, plan.n_blocks, plan.cut
    block_bytes = math.prod(sample.shape[1:]) * sample.itemsize
    step = max(_STEP_BYTES // block_bytes, 1)
    room = np.empty((min(step, n_blocks), *sample.shape[1:]), sample.dtype)
    array = None if cut.in_file_order else np.empty(cut.shape, sample.dtype)
    left = cut.n_elements
    with progress("writing") as show:
        for start in range(0, n_blocks, step):
            show(start * block_bytes, n_blocks * block_bytes)
            blocks = room[: min(step, n_blocks - start)]
            storage.reconstruct(plan.agent, blocks=slice(start, start + len(blocks)), out=blocks)
            if array is None:
                part = blocks.reshape(-1)[:left]
                left -= len(part)
                yield part
            else:
                cut.pour(blocks, start, array)
        if array is not None:
            yield array


_WRITE: Mapping[str, Callable[[td.TokenDanceStore, _Plan, Path], list[int] | None]] = {
    ".npy": _write_npy,
    ".safetensors": _write_safetensors,
}
