"""Files at rest that no generation tells of: writers that died, and changes that were given up, left them."""

import os
from collections.abc import Iterable

from tokendance.errors import StoreCorruptError
from tokendance.store import files, layout
from tokendance.store.folders import Folders
from tokendance.store.layout import GROUPS, MANIFESTS, MASTERS, METADATA_NAME
from tokendance.store.manifest import Manifest
from tokendance.store.objects import DiskMaster

__all__ = ["leavings", "spare_files", "stray_names"]


def leavings(folders: Folders, referenced: set[tuple[str, int]], manifests: Iterable[Manifest]) -> list[str]:
    """Return the paths of objects and files that no generation tells of.

    Parameters
    ----------
    folders : Folders
    referenced : set of (str, int)
        The objects of all generations.
    manifests : iterable of Manifest
        All there are.
    """
    objects = [f"{group}/{name}" for group, name in stray_names(folders, referenced)]
    spare = [
        f"{MASTERS}/{number}/{name}" for number, names in spare_files(folders, manifests).items() for name in names
    ]
    waiting = [
        f"{MANIFESTS}/{name}"
        for name in sorted(os.listdir(folders.fd(MANIFESTS)))
        if layout.generation_of(name) is None and name not in (METADATA_NAME, layout.LOCK_NAME)
    ]
    return objects + spare + waiting


def stray_names(folders: Folders, referenced: set[tuple[str, int]]) -> list[tuple[str, str]]:
    """Return the group and the name of all that is in the groups and is neither metadata nor a referenced object."""
    return [
        (group, name)
        for group in GROUPS
        for name in sorted(os.listdir(folders.fd(group)))
        if name != METADATA_NAME and not (name.isdecimal() and (group, int(name)) in referenced)
    ]


def spare_files(folders: Folders, manifests: Iterable[Manifest]) -> dict[int, list[str]]:
    """Return, for each master, the files in its folder that no generation tells of, nor a handle in this process.

    A master grows in place, so an append that was given up leaves chunks behind its end.
    """
    n_chunks: dict[int, int] = {}
    ndim = 1
    for manifest in manifests:
        if manifest.master is not None:
            entry, ndim = manifest.master, 1 + len(manifest.block_shape or ())
            told = layout.n_chunks(entry.n_blocks, entry.chunk_blocks)
            n_chunks[entry.object] = max(n_chunks.get(entry.object, 0), told)
    for handle in folders.handles():
        if isinstance(handle, DiskMaster) and handle.number in n_chunks:
            n_chunks[handle.number] = max(n_chunks[handle.number], handle.record.n_chunks)
    found: dict[int, list[str]] = {}
    for number, n_told in sorted(n_chunks.items()):
        told_names = {METADATA_NAME, *(layout.chunk_key(chunk, ndim) for chunk in range(n_told))}
        try:
            names = files.names_in(str(number), folders.fd(MASTERS))
        except StoreCorruptError:  # the folder is missing, which is told of elsewhere
            continue
        found[number] = sorted(set(names) - told_names)
    return found
