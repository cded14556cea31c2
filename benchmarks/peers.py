"""Other ways to keep a round of caches in files, beside ours: written and synced, read back cold, bytes on disk."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from benchmarks.bare import has, synced
from benchmarks.on_disk import allocated, write_zarr
from benchmarks.timing import Trial, quartiles, timed
from benchmarks.workplace import Workplace, changed

__all__ = ["PEERS", "Peer", "PeerRow", "measure"]

Caches = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to write caches to a folder and to read them back.

    Attributes
    ----------
    write, read : callable
        `write` gets a path where nothing is; `read` returns every agent's cache, every byte of it in memory.
    module : str
        What must be installed.
    """

    name: str
    write: Callable[[Path, Caches], object]
    read: Callable[[Path, list[str]], Mapping[str, NDArray[Any]]]
    module: str = "numpy"


@dataclass(frozen=True, slots=True)
class PeerRow:
    """Medians of a peer, and the medians of its ratios to ours in the same turn."""

    name: str
    write: float | None = None
    read: float | None = None
    disk: int | None = None
    write_ratio: float | None = None
    read_ratio: float | None = None
    disk_ratio: float | None = None
    repeats: int = 0
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return asdict(self)


def _write_tokendance(path: Path, caches: Caches) -> None:
    with td.open(path, "w-") as store:
        store.register_round(caches, master=next(iter(caches)))


def _read_tokendance(path: Path, agents: list[str]) -> dict[str, NDArray[Any]]:
    with td.open(path, "r") as store:
        return {agent: store.reconstruct(agent) for agent in agents}


def _map_tokendance(path: Path, agents: list[str]) -> dict[str, NDArray[Any]]:
    with td.open(path, "r") as store:
        arrays = {agent: store.reconstruct(agent, copy=False) for agent in agents}
    for array in arrays.values():
        np.bitwise_or.reduce(array.reshape(-1).view(np.uint64))
    return arrays


def _write_npy(path: Path, caches: Caches) -> None:
    path.mkdir()
    for agent, cache in caches.items():
        np.save(path / f"{agent}.npy", cache.view(np.uint16))


def _read_npy(path: Path, agents: list[str]) -> dict[str, NDArray[Any]]:
    return {agent: np.load(path / f"{agent}.npy") for agent in agents}


def _write_safetensors(path: Path, caches: Caches) -> None:
    from safetensors.numpy import save_file

    path.mkdir()
    for agent, cache in caches.items():
        save_file({"cache": cache.view(np.uint16)}, path / f"{agent}.safetensors")


def _read_safetensors(path: Path, agents: list[str]) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load_file

    return {agent: load_file(path / f"{agent}.safetensors")["cache"] for agent in agents}


def _write_h5py(path: Path, caches: Caches) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for agent, cache in caches.items():
            file.create_dataset(agent, data=cache.view(np.uint16))


def _read_h5py(path: Path, agents: list[str]) -> dict[str, NDArray[Any]]:
    import h5py

    with h5py.File(path, "r") as file:
        return {agent: file[agent][:] for agent in agents}


def _write_plain_zarr(path: Path, caches: Caches) -> None:
    write_zarr(path, {agent: cache.view(np.uint16) for agent, cache in caches.items()})


def _read_zarr(path: Path, agents: list[str]) -> dict[str, NDArray[Any]]:
    import zarr

    root = zarr.open_group(path, mode="r", zarr_format=3)
    return {agent: root[agent][:] for agent in agents}


def _write_torch(path: Path, caches: Caches) -> None:
    import torch

    path.mkdir()
    for agent, cache in caches.items():
        torch.save(torch.from_numpy(cache.view(np.int16)).view(torch.bfloat16), path / f"{agent}.pt")


def _read_torch(path: Path, agents: list[str]) -> dict[str, NDArray[Any]]:
    import torch

    def loaded(agent: str) -> NDArray[Any]:
        return torch.load(path / f"{agent}.pt", weights_only=True).view(torch.int16).numpy()

    return {agent: loaded(agent) for agent in agents}


OURS = Peer("tokendance, copied and checked", _write_tokendance, _read_tokendance, "tokendance")
PEERS = (
    Peer("tokendance, mapped, every byte read", _write_tokendance, _map_tokendance, "tokendance"),
    Peer("np.save / np.load", _write_npy, _read_npy),
    Peer("safetensors", _write_safetensors, _read_safetensors, "safetensors"),
    Peer("h5py", _write_h5py, _read_h5py, "h5py"),
    Peer("plain zarr", _write_plain_zarr, _read_zarr, "zarr"),
    Peer("torch.save / torch.load", _write_torch, _read_torch, "torch"),
)


def _files(path: Path) -> Iterator[Path]:
    return (file for file in (path, *path.rglob("*")) if file.is_file())


def _sync_all(path: Path) -> None:
    for file in _files(path):
        synced(file)


def _forget(path: Path) -> None:
    """Drop a written, synced folder from the page cache, so that reading it reads the disk."""
    for file in _files(path):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _turn(place: Workplace, peer: Peer, caches: Caches, *, check: bool) -> tuple[float, float, int]:
    """Write, forget, read and remove once; return both times and the bytes on disk."""
    path, agents = place.path(), list(caches)

    def write() -> None:
        peer.write(path, caches)
        _sync_all(path)

    wrote, disk = timed(Trial(write)), allocated(path)
    _forget(path)
    read = timed(Trial(lambda: peer.read(path, agents)))
    if check:
        for agent, array in peer.read(path, agents).items():
            if not np.array_equal(array.reshape(-1).view(np.uint8), caches[agent].reshape(-1).view(np.uint8)):
                raise AssertionError(f"{peer.name} gave {agent} back changed")
    place.remove(path)
    return wrote, read, disk


def _caches(place: Workplace) -> dict[str, NDArray[Any]]:
    import ml_dtypes

    place.say(f"making {place.sizes.round_agents} caches of a model's shape")
    shape = place.sizes.peer_shape
    bits = place.rng(20).integers(0, 1 << 16, (shape.n_blocks, *shape.block_shape), np.uint16)
    bits &= np.uint16(0xBFFF)  # the top bit of the exponent: neither infinities nor NaN
    master = bits.view(ml_dtypes.bfloat16)
    others = {
        f"agent-{n}": changed(place.rng(20 + n), master, place.sizes.differing)
        for n in range(1, place.sizes.round_agents)
    }
    return {"agent-0": master, **others}


def measure(place: Workplace, peers: tuple[Peer, ...] = PEERS) -> list[PeerRow]:
    """Let ours and all peers that are installed write and read the same round, one after the other, again and again.

    The first turn of each is not counted; in it, what was read is compared with what was written.
    """
    caches = _caches(place)
    here = [OURS, *(peer for peer in peers if has(peer.module))]
    turns: dict[str, list[tuple[float, float, int]]] = {peer.name: [] for peer in here}
    for turn in range(place.sizes.repeats + 1):
        place.say(f"peers, turn {turn} of {place.sizes.repeats}")
        for peer in here:
            measured = _turn(place, peer, caches, check=turn == 0)
            if turn:
                turns[peer.name].append(measured)
    rows = [_row(peer.name, turns[peer.name], turns[OURS.name]) for peer in here]
    missing = [peer for peer in peers if not has(peer.module)]
    return rows + [PeerRow(peer.name, note=f"{peer.module} is not installed") for peer in missing]


def _row(name: str, theirs: list[tuple[float, float, int]], ours: list[tuple[float, float, int]]) -> PeerRow:
    def middle(column: int) -> float:
        return quartiles([turn[column] for turn in theirs])[1]

    def ratio(column: int) -> float:
        return quartiles([a[column] / b[column] for a, b in zip(theirs, ours, strict=True)])[1]

    return PeerRow(name, middle(0), middle(1), int(middle(2)), ratio(0), ratio(1), ratio(2), len(theirs))
