"""Checks of files at rest: metadata and chunks against what a manifest says, and what nobody refers to."""

import json
import os
from typing import NamedTuple

from tokendance.errors import StoreCorruptError
from tokendance.store import files, layout
from tokendance.store.arrays import DiskRows
from tokendance.store.batch import Batch
from tokendance.store.chunks import metadata_of
from tokendance.store.folders import Folders
from tokendance.store.generations import is_store
from tokendance.store.layout import GROUPS, MANIFESTS, METADATA_NAME
from tokendance.store.manifest_reader import is_sealed

__all__ = [
    "Claim",
    "damaged_chunks",
    "damaged_metadata",
    "is_of_this_format",
    "largest_object",
    "missing_groups",
    "rewrite_document",
]

_FEW_CHUNKS = 16


class Claim(NamedTuple):
    """What a generation says of a chunk: how many bytes of it are rows, and their checksum."""

    chunk: int
    n_bytes: int
    checksum: str


def damaged_chunks(rows: DiskRows, known: dict[Claim, str]) -> dict[int, str]:
    """Compare every chunk with its size and its checksums; return what is wrong with those that do not match.

    Parameters
    ----------
    rows : DiskRows
    known : dict
        What came of the claims about this array's chunks that were looked at before, '' for nothing wrong; filled.
    """
    if rows.record.n_chunks > _FEW_CHUNKS:
        try:
            rows.ensure()
        except (StoreCorruptError, OSError) as error:  # most of them are missing: no use naming each
            return {0: str(error)}
    found: dict[int, str] = {}
    for chunk in range(rows.record.n_chunks):
        claim = Claim(chunk, rows.record.chunk_bytes(chunk), rows.record.checksum(chunk))
        if claim not in known:
            known[claim] = _problem_of(rows, chunk)
        if known[claim]:
            found[chunk] = known[claim]
    return found


def missing_groups(path: str) -> list[str]:
    """Return which of `masters` and `mirrors` are not there, in a folder that is a store by its root and manifests."""
    if not (is_store(path) and os.path.isdir(f"{path}/{MANIFESTS}")):
        return []
    return [group for group in GROUPS if not os.path.lexists(f"{path}/{group}")]


def is_of_this_format(folders: Folders, number: int) -> bool:
    """Say whether a manifest that names another format can only be one of this format that was damaged.

    It is, where it does not match its own checksum and the root says that the store is of this format: a store's
    generations all have one.
    """
    try:
        root = files.read_file(METADATA_NAME, folders.fd(), most=1 << 20)
        manifest = files.read_file(str(number), folders.fd(MANIFESTS), most=layout.MAX_MANIFEST_BYTES)
        return root == layout.root_document() and not is_sealed(manifest, str(number))
    except StoreCorruptError:
        return False


def _problem_of(rows: DiskRows, chunk: int) -> str:
    try:
        rows.check(chunk)
    except (StoreCorruptError, OSError) as error:
        return str(error)
    return ""


def damaged_metadata(rows: DiskRows) -> str | None:
    """Say what is wrong with an array's `zarr.json`; an array that grew later may have more rows than are asked for."""
    expected = json.loads(metadata_of(rows.record, rows.block_type))
    return damaged_document(f"{rows.path}/{METADATA_NAME}", rows.parent(), expected)


def damaged_document(path: str, parent: int, expected: dict[str, object]) -> str | None:
    """Say how a metadata file differs from what it must hold."""
    try:
        found = json.loads(files.read_file(path, parent, most=1 << 20))
        if found.get("node_type") == "array":
            n_rows, wanted = found["shape"][0], expected["shape"][0]  # type: ignore[index]
            if type(n_rows) is int and n_rows >= wanted:
                found["shape"][0] = wanted
    except (StoreCorruptError, OSError) as error:
        return str(error)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return f"{path} is not the metadata of a zarr node"
    return None if found == expected else f"{path} does not say what the manifest says"


def rewrite_document(folder: str, parent: int, content: bytes) -> bool:
    """Put a metadata file anew in the folder `folder`, durably; return False if there is no such folder."""
    try:
        opened = files.open_folder_at(folder, parent) if folder else os.dup(parent)
    except StoreCorruptError:
        return False
    temporary = f".{METADATA_NAME}.new"
    batch = Batch()
    try:
        files.remove_if_there(temporary, opened)
        batch.write(temporary, opened, (content,))
        batch.sync()
        files.rename(temporary, METADATA_NAME, opened)
        files.sync(opened)
        return True
    finally:
        batch.drop()
        os.close(opened)


def largest_object(folders: Folders) -> int:
    """Return the largest number that an object has, referred to or not; -1 where there is none."""
    names = (name for group in GROUPS for name in os.listdir(folders.fd(group)))
    return max((int(name) for name in names if name.isdecimal()), default=-1)
