#!/usr/bin/env python3
"""Reads any agent of any generation of a tokendance store of format 1, with numpy, zarr and what zarr needs alone.

    python independent_reader.py STORE AGENT OUT.npy [GENERATION]

bfloat16 and float8 caches come out as the unsigned integers that hold their bits.
"""

import hashlib
import json
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import zarr

STORED_AS = {name: name for name in ("float64", "float32", "float16", "int8", "uint8")}
STORED_AS |= {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def read_manifest(store, generation=None):
    """Return a generation's manifest, the newest's by default, if it is whole."""
    numbers = [int(file.name) for file in (store / "manifests").iterdir() if file.name.isdecimal()]
    generation = max(numbers) if generation is None else generation
    line, trailer = (store / "manifests" / str(generation)).read_bytes().split(b"\n")[:2]
    manifest = json.loads(line)
    if manifest["format"] != 1:
        raise ValueError(f"this reads format 1, the store is of format {manifest['format']}")
    if json.loads(trailer)["sha256"] != hashlib.sha256(line).hexdigest() or manifest["generation"] != generation:
        raise ValueError(f"the manifest of generation {generation} is damaged")
    return manifest


def n_chunks(n_rows, chunk_rows):
    """Return how many chunks an array has."""
    return -(-n_rows // chunk_rows) if n_rows else 0


def read_array(folder, data_type, n_rows, row_shape, chunk_rows, checksums):
    """Return an array's first rows; zarr trusts zarr.json, reads missing chunks as zeros, and takes any whole chunk."""
    found = json.loads((folder / "zarr.json").read_text())
    endian = {} if np.dtype(data_type).itemsize == 1 else {"configuration": {"endian": "little"}}
    said = found["data_type"], found["chunk_grid"]["configuration"]["chunk_shape"], found["codecs"]
    if said != (data_type, [chunk_rows, *row_shape], [{"name": "bytes", **endian}, {"name": "crc32c"}]):
        raise ValueError(f"{folder}/zarr.json is not what the manifest says")
    for chunk in range(n_chunks(n_rows, chunk_rows)):
        if not (folder / ("c." + str(chunk) + ".0" * len(row_shape))).is_file():
            raise ValueError(f"{folder} lacks chunk {chunk}")
    rows = zarr.open_array(folder, mode="r")[:n_rows]
    if rows.shape != (n_rows, *row_shape):
        raise ValueError(f"{folder} has {len(rows)} rows, expected {n_rows}")
    for chunk in range(n_chunks(n_rows, chunk_rows)):
        own = rows[chunk * chunk_rows : (chunk + 1) * chunk_rows].tobytes()
        if f"{google_crc32c.value(own):08x}" != checksums[8 * chunk : 8 * chunk + 8]:
            raise ValueError(f"{folder} has another chunk {chunk} than the manifest says")
    return rows


def read_agent(store, agent, generation=None):
    """Return an agent's ``(n_blocks, *block_shape)`` array."""
    manifest = read_manifest(store, generation)
    master, block = manifest["master"], (STORED_AS[manifest["dtype"]], manifest["block_shape"])
    whole = store / "masters" / str(master["object"]), block[0], master["n_blocks"], block[1], master["chunk_blocks"]
    if agent == master["agent"]:
        return read_array(*whole, master["checksums"])
    (mirror,) = (one for one in manifest["mirrors"] if one["agent"] == agent)
    n_blocks, own, base = mirror["n_blocks"], mirror["n_own"], mirror["n_base"]
    folder, checksums = store / "mirrors" / str(mirror["object"]), mirror["checksums"]
    values_from = 8 * n_chunks(own, mirror["index_chunk"])
    base_from = values_from + 8 * n_chunks(own, mirror["chunk_blocks"])
    result = np.empty((n_blocks, *block[1]), block[0])
    shared, source = np.ones(n_blocks, bool), np.arange(n_blocks)
    if base:
        source[:base] = read_array(folder / "base", "int64", base, [], mirror["base_chunk"], checksums[base_from:])
    for start, shift in mirror["tail"]:
        source[start:] = np.arange(start, n_blocks) + shift
    if own:
        indices = read_array(folder / "indices", "int64", own, [], mirror["index_chunk"], checksums)
        if indices[0] < 0 or (np.diff(indices) <= 0).any():
            raise ValueError(f"{folder}/indices does not go upwards from 0")
        shared[indices] = False
        values = folder / "values", block[0], own, block[1], mirror["chunk_blocks"]
        result[indices] = read_array(*values, checksums[values_from:])
    if shared.any():
        if source[shared].min() < 0 or source[shared].max() >= master["n_blocks"]:
            raise ValueError(f"{agent} refers to a block outside its master")
        result[shared] = read_array(*whole, master["checksums"])[source[shared]]
    return result


if __name__ == "__main__":
    np.save(sys.argv[3], read_agent(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[4:])))
