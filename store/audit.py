"""Checks of files at rest: metadata and chunks against what a manifest says, and what nobody refers to."""

import json
import os

from tokendance.errors import StoreCorruptError
from tokendance.store import files, layout
from tokendance.store.arrays import DiskRows, metadata_of
from tokendance.store.batch import Batch
from tokendance.store.folders import Folders
from tokendance.store.layout import GROUPS, MANIFESTS, METADATA_NAME

__all__ = ["damaged_chunks", "damaged_metadata", "largest_object", "leavings", "rewrite_document"]


def damaged_chunks(rows: DiskRows) -> dict[int, str]:
    """Compare every chunk with its size and its checksum; return what is wrong with those that do not match."""
    found: dict[int, str] = {}
    for chunk in range(rows.shape.n_chunks):
        try:
            rows.check(chunk)
        except (StoreCorruptError, OSError) as error:
            found[chunk] = str(error)
    return found


def damaged_metadata(rows: DiskRows) -> str | None:
    """Say what is wrong with an array's `zarr.json`; an array that grew later may have more rows than are asked for."""
    expected = json.loads(metadata_of(rows.shape, rows.block_type))
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


def rewrite_document(folder: str, parent: int, content: bytes) -> None:
    """Put a metadata file anew in the folder `folder`, durably."""
    opened = files.open_folder(folder, parent) if folder else os.dup(parent)
    temporary = f".{METADATA_NAME}.new"
    batch = Batch()
    try:
        files.remove_if_there(temporary, opened)
        batch.write(temporary, opened, (content,))
        batch.sync()
        files.rename(temporary, METADATA_NAME, opened)
        files.sync(opened)
    finally:
        batch.drop()
        os.close(opened)


def largest_object(folders: Folders) -> int:
    """Return the largest number that an object has, referred to or not; -1 where there is none."""
    names = (name for group in GROUPS for name in os.listdir(folders.fd(group)))
    return max((int(name) for name in names if name.isdecimal()), default=-1)


def leavings(folders: Folders, referenced: set[tuple[str, int]]) -> list[str]:
    """Return the paths of objects and files that no generation refers to: writers that died left them."""
    objects = [
        f"{group}/{name}"
        for group in GROUPS
        for name in sorted(os.listdir(folders.fd(group)))
        if name != METADATA_NAME and not (name.isdecimal() and (group, int(name)) in referenced)
    ]
    manifests = [
        f"{MANIFESTS}/{name}"
        for name in sorted(os.listdir(folders.fd(MANIFESTS)))
        if layout.generation_of(name) is None and name not in (METADATA_NAME, layout.LOCK_NAME)
    ]
    return objects + manifests
