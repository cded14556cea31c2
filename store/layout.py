"""Every name, number and document of format 1 on disk; docs/format.md is the text this follows."""

import functools
import json
import math
import re
from typing import Any

__all__ = [
    "CHUNK_BYTES",
    "FORMAT_VERSION",
    "GROUPS",
    "LOCK_NAME",
    "MANIFESTS",
    "MASTERS",
    "MAX_MANIFEST_BYTES",
    "METADATA_NAME",
    "MIRRORS",
    "PAGE_BYTES",
    "SMALL_CHUNK_BYTES",
    "STORED_AS",
    "array_document",
    "chunk_key",
    "chunk_rows_for",
    "generation_of",
    "group_document",
    "manifests_document",
    "n_chunks",
    "page_rows",
    "root_document",
]

FORMAT_VERSION = 1
METADATA_NAME = "zarr.json"
MASTERS, MIRRORS, MANIFESTS = "masters", "mirrors", "manifests"
GROUPS = (MASTERS, MIRRORS)
LOCK_NAME = "lock"
CHECKSUM_BYTES = 4
CHUNK_BYTES = 16 << 20
SMALL_CHUNK_BYTES = 4 << 20
PAGE_BYTES = 4096
MAX_MANIFEST_BYTES = 64 << 20

# zarr has no data type for the last three: their bits are stored as unsigned integers, the dtype itself is named
# in the array's attributes and in the manifest.
STORED_AS = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float16",
    "int8": "int8",
    "uint8": "uint8",
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e5m2": "uint8",
}
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "float16": 2, "uint16": 2, "int8": 1, "uint8": 1}

_GENERATION = re.compile(r"[1-9][0-9]{0,17}")


def generation_of(name: str) -> int | None:
    """Return the generation that a file in the manifests folder is named after, None for any other file."""
    return int(name) if _GENERATION.fullmatch(name) else None


def n_chunks(n_rows: int, chunk_rows: int) -> int:
    """Return how many chunks hold `n_rows` rows."""
    return -(-n_rows // chunk_rows)


def chunk_key(chunk: int, ndim: int) -> str:
    """Return the file name of a chunk of an array that is cut along its first axis only."""
    return "c." + str(chunk) + ".0" * (ndim - 1)


def page_rows(row_bytes: int) -> int:
    """Return the least number of rows that are whole pages, 1 where those would not fit into a chunk."""
    rows = PAGE_BYTES // math.gcd(row_bytes, PAGE_BYTES)
    return rows if rows * row_bytes <= CHUNK_BYTES else 1


def chunk_rows_for(n_rows: int, row_bytes: int, most_bytes: int | None = None) -> int:
    """Return the chunk length for an array of `n_rows`: at most `most_bytes` (16 MiB), whole pages, little padding.

    Up to there it is one chunk; beyond, the fewest chunks that fit, all of one length, so that an array
    of 257 MiB is padded by kilobytes and not by most of a chunk.
    """
    step = page_rows(row_bytes)
    largest = max((most_bytes or CHUNK_BYTES) // row_bytes // step, 1) * step
    if n_rows <= largest:
        return max(n_rows, 1)
    even = -(-n_rows // n_chunks(n_rows, largest))
    return min(-(-even // step) * step, largest)


def _document(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


@functools.cache
def group_document() -> bytes:
    """Return the metadata of the groups `masters`, `mirrors` and each mirror."""
    return _document({"zarr_format": 3, "node_type": "group", "attributes": {}})


def manifests_document() -> bytes:
    """Return the metadata of the manifests folder: an empty array.

    It is no group, since zarr lists what is in a group and warns of files that are no part of a hierarchy.
    """
    return array_document((0,), 1, "uint8", "uint8")


def root_document() -> bytes:
    """Return the root group's metadata, which is how a store is told from any other folder."""
    attributes = {"tokendance": {"format": FORMAT_VERSION, "truth": "the newest file in manifests/"}}
    return _document({"zarr_format": 3, "node_type": "group", "attributes": attributes})


# json takes 60 us for an indented document; the arrays of many small mirrors have few different ones.
@functools.lru_cache(maxsize=256)
def array_document(shape: tuple[int, ...], chunk_rows: int, stored_as: str, dtype_name: str) -> bytes:
    """Return the metadata of an array cut along its first axis, uncompressed, with a crc32c in each chunk."""
    codec = (
        {"name": "bytes"} if ITEM_BYTES[stored_as] == 1 else {"name": "bytes", "configuration": {"endian": "little"}}
    )
    return _document(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": stored_as,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk_rows, *shape[1:]]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": 0.0 if stored_as.startswith("float") else 0,
            "codecs": [codec, {"name": "crc32c"}],
            "attributes": {"dtype": dtype_name},
            "storage_transformers": [],
        }
    )
