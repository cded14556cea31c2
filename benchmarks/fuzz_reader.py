"""A slow, obvious reader of a store's files, which says what a manifest means: nothing of tokendance is in it."""

import json
import stat
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

__all__ = ["UnreadableError", "cache_in", "manifest_in", "resealed"]

_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class UnreadableError(Exception):
    """What was asked for is not there, or not as the manifest says."""


def manifest_in(path: Path, generation: int) -> dict[str, Any]:
    """Return the content of a manifest."""
    content: dict[str, Any] = json.loads(path.joinpath("manifests", str(generation)).read_bytes().split(b"\n")[0])
    return content


def cache_in(path: Path, manifest: dict[str, Any], agent: str, *, checked: bool) -> bytes:
    """Return an agent's bytes, block by block; positions are always compared with their checksums.

    Raises
    ------
    UnreadableError
        A file that is needed is missing, or does not match the manifest; or a block is nowhere.
    """
    master, block_bytes = manifest["master"], _block_bytes(manifest)
    master_rows = _Rows(
        path / "masters" / str(master["object"]),
        (master["n_blocks"], block_bytes, master["chunk_blocks"], len(manifest["block_shape"])),
        master["checksums"] if checked else None,
    )
    if agent == master["agent"]:
        return b"".join(master_rows.row(block) for block in range(master["n_blocks"]))
    (mirror,) = (one for one in manifest["mirrors"] if one["agent"] == agent)
    indices, values, base = _own(path, manifest, mirror, checked=checked)
    found: list[bytes] = []
    for block in range(mirror["n_blocks"]):
        if block in indices:
            found.append(values.row(indices[block]))
            continue
        place = base[block] if block < len(base) else block
        for start, shift in mirror["tail"]:
            place = block + shift if start <= block else place
        found.append(master_rows.row(place))
    return b"".join(found)


def resealed(path: Path, manifest: dict[str, Any]) -> None:
    """Make a manifest's checksums those of the files that are there."""
    master, block_bytes = manifest["master"], _block_bytes(manifest)
    n_axes = len(manifest["block_shape"])
    sizes = master["n_blocks"], block_bytes, master["chunk_blocks"], n_axes
    master["checksums"] = _Rows(path / "masters" / str(master["object"]), sizes, None).checksums()
    for mirror in manifest["mirrors"]:
        arrays = _arrays(path, manifest, mirror, [None, None, None])
        mirror["checksums"] = "".join(rows.checksums() for rows in arrays)


def _block_bytes(manifest: dict[str, Any]) -> int:
    return int(np.prod(manifest["block_shape"])) * _ITEM_BYTES.get(manifest["dtype"], 1)


def _n_chunks(n_rows: int, chunk_rows: int) -> int:
    return -(-n_rows // chunk_rows) if n_rows else 0


def _arrays(
    path: Path, manifest: dict[str, Any], mirror: dict[str, Any], checksums: list[str | None]
) -> "tuple[_Rows, _Rows, _Rows]":
    folder = path / "mirrors" / str(mirror["object"])
    own, based = mirror["n_own"], mirror["n_base"]
    axes = len(manifest["block_shape"])
    return (
        _Rows(folder / "indices", (own, 8, mirror["index_chunk"], 0), checksums[0]),
        _Rows(folder / "values", (own, _block_bytes(manifest), mirror["chunk_blocks"], axes), checksums[1]),
        _Rows(folder / "base", (based, 8, mirror["base_chunk"], 0), checksums[2]),
    )


def _own(
    path: Path, manifest: dict[str, Any], mirror: dict[str, Any], *, checked: bool
) -> "tuple[dict[int, int], _Rows, list[int]]":
    own = mirror["n_own"]
    first = 8 * _n_chunks(own, mirror["index_chunk"])
    second = first + 8 * _n_chunks(own, mirror["chunk_blocks"])
    text = mirror["checksums"]
    sums = [text[:first], text[first:second] if checked else None, text[second:]]
    indices, values, base = _arrays(path, manifest, mirror, sums)
    positions = indices.positions()
    if positions != sorted(set(positions)) or any(not 0 <= one < mirror["n_blocks"] for one in positions):
        raise UnreadableError("positions")
    return {position: row for row, position in enumerate(positions)}, values, base.positions()


class _Rows:
    def __init__(self, folder: Path, sizes: tuple[int, int, int, int], checksums: str | None) -> None:
        self._folder, self._checksums = folder, checksums
        self._n_rows, self._row_bytes, self._chunk_rows, self._n_axes = sizes
        self._chunks: dict[int, bytes] = {}

    def row(self, row: int) -> bytes:
        if not 0 <= row < self._n_rows:
            raise UnreadableError(f"{self._folder} has no row {row}")
        chunk, place = divmod(row, self._chunk_rows)
        if chunk not in self._chunks:
            self._chunks[chunk] = self._rows_of(chunk)
            wanted = None if self._checksums is None else self._checksums[8 * chunk : 8 * chunk + 8]
            if wanted is not None and f"{google_crc32c.value(self._chunks[chunk]):08x}" != wanted:
                raise UnreadableError(f"{self._folder}: checksum of chunk {chunk}")
        return self._chunks[chunk][place * self._row_bytes : (place + 1) * self._row_bytes]

    def positions(self) -> list[int]:
        data = b"".join(self.row(row) for row in range(self._n_rows))
        found: NDArray[np.int64] = np.frombuffer(data, "<i8")
        return found.tolist()

    def checksums(self) -> str:
        chunks = range(_n_chunks(self._n_rows, self._chunk_rows))
        return "".join(f"{google_crc32c.value(self._rows_of(chunk)):08x}" for chunk in chunks)

    def _rows_of(self, chunk: int) -> bytes:
        file = self._folder / (f"c.{chunk}" + ".0" * self._n_axes)
        for one in (file, *file.parents[:3]):
            if one.is_symlink():
                raise UnreadableError(f"{one} is a link")
        if not file.exists() or not stat.S_ISREG(file.stat().st_mode):
            raise UnreadableError(f"{file} is no file")
        data = file.read_bytes()
        if len(data) != self._chunk_rows * self._row_bytes + 4:
            raise UnreadableError(f"{file} has {len(data)} bytes")
        return data[: min(self._chunk_rows, self._n_rows - chunk * self._chunk_rows) * self._row_bytes]
