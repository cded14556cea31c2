"""``tokendance restore``: an agent's cache from a store into a file."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

import tokendance as td
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
from tokendance.cli.safetensors_file import header_of
from tokendance.cli.screen import in_bytes, print_json, progress, say

__all__ = ["restore"]

_STEP_BYTES = 32 << 20
_TENSOR_NAME = "kv_blocks"

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
    """Write an agent's cache to a file, as the array that it was taken from.

    Every byte read is compared with its checksum. The file appears when it is whole, and replaces what was there.
    """
    said = identity_of(identity)
    if out.suffix not in (".npy", ".safetensors"):
        raise UsageError(f"{out} must end in .npy or .safetensors, which says how to write it")
    with td.open(store, mode="r", at=at, identity=said) as storage:
        sample = storage.reconstruct(agent, blocks=slice(0, 0))
        n_blocks = _length_of(storage, agent)
        meta = storage.meta(agent)
        cut = Cut.from_meta(meta, n_blocks, sample.shape[1:])
        whole = cut or Cut((n_blocks, *sample.shape[1:]), 0, None)
        with _replaced(out) as file, progress("writing") as show:
            as_bits = _write_header(file, out.suffix, whole, sample.dtype)
            for part in _parts(storage, agent, whole, n_blocks, sample):
                file.write(memoryview(part.reshape(-1).view(np.uint8)))
                show(file.tell(), whole.n_elements * sample.itemsize)
        facts = {
            "store": storage.path,
            "generation": storage.generation,
            "agent": agent,
            "file": str(out),
            "shape": list(whole.shape),
            "dtype": sample.dtype.name,
            "written_as": as_bits,
            "bytes": whole.n_elements * sample.itemsize,
            "as_blocks": cut is None,
        }
    if as_json:
        print_json(facts)
        return
    say(f"{out}: {sample.dtype.name} {whole.shape}, {in_bytes(facts['bytes'])}, of generation {facts['generation']}")
    if as_bits != sample.dtype.name:
        say(f"numpy files cannot name {sample.dtype.name}: its bits are there as {as_bits}")
    if cut is None and META_KEY in meta:
        say("it grew since it was taken from a file, so these are its blocks, not that file's array")


def _length_of(storage: td.TokenDanceStore, agent: str) -> int:
    stats = storage.stats()
    blocks: int = stats["master_blocks"] if agent == stats["master_id"] else stats["mirrors"][agent]["n_blocks"]
    return blocks


def _write_header(file: BufferedWriter, suffix: str, cut: Cut, dtype: np.dtype[Any]) -> str:
    """Write what stands before the bytes; return the name of the dtype that the file says it holds."""
    if suffix == ".safetensors":
        file.write(header_of(_TENSOR_NAME, dtype, cut.shape))
        return dtype.name
    named = np.dtype(f"uint{8 * BITS_OF[dtype.name]}") if dtype.name in BITS_OF else dtype
    # numpy's own bytes, so that what np.save wrote comes back the same, header included.
    header = BytesIO()
    said = {"descr": np.lib.format.dtype_to_descr(named), "fortran_order": False, "shape": cut.shape}
    try:
        np.lib.format.write_array_header_1_0(header, said)
    except ValueError:
        np.lib.format.write_array_header_2_0(header, said)
    file.write(header.getvalue())
    return str(named.name)


def _parts(
    storage: td.TokenDanceStore, agent: str, cut: Cut, n_blocks: int, sample: NDArray[Any]
) -> Iterator[NDArray[Any]]:
    """Yield the array's bytes in order, in parts; all at once where the blocks do not stand in the file's order."""
    block_bytes = int(np.prod(sample.shape[1:])) * sample.itemsize
    step = max(_STEP_BYTES // block_bytes, 1)
    room = np.empty((min(step, n_blocks), *sample.shape[1:]), sample.dtype)
    array = None if cut.in_file_order else np.empty(cut.shape, sample.dtype)
    left = cut.n_elements
    for start in range(0, n_blocks, step):
        blocks = room[: min(step, n_blocks - start)]
        storage.reconstruct(agent, blocks=slice(start, start + len(blocks)), out=blocks)
        if array is None:
            part = blocks.reshape(-1)[:left]
            left -= len(part)
            yield part
        else:
            cut.pour(blocks, start, array)
    if array is not None:
        yield array


@contextmanager
def _replaced(path: Path) -> Iterator[BufferedWriter]:
    """Write a file under another name beside `path`, and give it the name once it is whole and durable."""
    beside = path.with_name(f".{path.name[:60]}.{secrets.token_hex(6)}.new")
    with about(path):
        try:
            with beside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
