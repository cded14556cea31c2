"""Stores to damage: how they are made, and how their manifests and chunks are written anew with right checksums."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

import tokendance as td

__all__ = [
    "chunk_file",
    "edit_manifest",
    "first_caches",
    "make_store",
    "manifest_bytes",
    "newest_manifest",
    "reseal",
    "seal_chunk",
]


def first_caches(shape: tuple[int, ...] = (4, 64), n: int = 12) -> dict[str, np.ndarray]:
    """A master `m` and two mirrors, `a` and `b`, that each have two blocks of their own."""
    m = np.random.default_rng(1).standard_normal((n, *shape)).astype(np.float32)
    a, b = m.copy(), m.copy()
    a[[2, 5]] += 1
    b[[3, 7]] -= 1
    return {"m": m, "a": a, "b": b}


def make_store(path: Path, shape: tuple[int, ...] = (4, 64), n: int = 12) -> dict[str, np.ndarray]:
    """Make a store of the first caches in two generations, closed; the master is object 0, the mirrors 1 and 2."""
    caches = first_caches(shape, n)
    with td.open(path, diff_threshold=0, ragged=True) as store:
        store.register_round(caches, master="m")
    return caches


def newest_manifest(path: Path) -> Path:
    return max(
        (file for file in path.joinpath("manifests").iterdir() if file.name.isdecimal() and file.name.isascii()),
        key=lambda file: int(file.name),
    )


def manifest_bytes(line: bytes) -> bytes:
    """A manifest file around its first line, with the sha256 that belongs to it."""
    return line + b'\n{"sha256":"' + hashlib.sha256(line).hexdigest().encode() + b'"}\n'


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the newest manifest's content in place, with a right sha256; NaN and Infinity are written as they are."""
    file = newest_manifest(path)
    content = json.loads(file.read_bytes().split(b"\n")[0])
    edit(content)
    file.write_bytes(manifest_bytes(json.dumps(content, separators=(",", ":")).encode()))


def chunk_file(path: Path, which: str) -> Path:
    """The first chunk of `masters/0`, `mirrors/1/indices` and so on."""
    return next(file for file in sorted(path.joinpath(which).iterdir()) if file.name.startswith("c."))


def seal_chunk(file: Path, data: bytes) -> None:
    """Write a chunk with a right checksum."""
    file.write_bytes(data + int(google_crc32c.value(data)).to_bytes(4, "little"))


def checksums_of(folder: Path, n_rows: int, chunk_rows: int) -> str:
    """The checksums of an array's chunks as a manifest has them, from what its files hold."""
    found = ""
    for chunk in range(-(-n_rows // chunk_rows) if n_rows else 0):
        (file,) = (one for one in folder.glob(f"c.{chunk}*") if one.name.split(".")[1] == str(chunk))
        data = file.read_bytes()[:-4]
        row_bytes = len(data) // chunk_rows
        rows = data[: (n_rows - chunk * chunk_rows) * row_bytes]
        found += f"{google_crc32c.value(rows):08x}"
    return found


def reseal(path: Path) -> None:
    """Make the newest manifest's checksums those of the chunks that are there."""

    def edit(content: dict[str, Any]) -> None:
        master = content["master"]
        folder = path / "masters" / str(master["object"])
        master["checksums"] = checksums_of(folder, master["n_blocks"], master["chunk_blocks"])
        for mirror in (mirror for mirror in content["mirrors"] if mirror["object"] is not None):
            folder = path / "mirrors" / str(mirror["object"])
            mirror["checksums"] = (
                checksums_of(folder / "indices", mirror["n_own"], mirror["index_chunk"])
                + checksums_of(folder / "values", mirror["n_own"], mirror["chunk_blocks"])
                + checksums_of(folder / "base", mirror["n_base"], mirror["base_chunk"])
            )

    edit_manifest(path, edit)
