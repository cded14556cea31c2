"""Removing generations that nobody needs, and what only they referred to."""

import logging
import os
from collections.abc import Iterable

from tokendance.errors import StoreCorruptError
from tokendance.store import files, generations
from tokendance.store.folders import Folders
from tokendance.store.layout import MASTERS, MIRRORS
from tokendance.store.leavings import spare_files, stray_names
from tokendance.store.manifest import Manifest

__all__ = ["KEPT_GENERATIONS", "Collector", "objects_of"]

# A commit prunes what is older than this many untagged generations, so that a writer nobody cleans up after
# uses a bounded part of the disk.
KEPT_GENERATIONS = 16

_log = logging.getLogger("tokendance.store")

Objects = frozenset[tuple[str, int]]


def objects_of(manifest: Manifest) -> Objects:
    """Return the objects that a generation refers to."""
    mirrors = {(MIRRORS, mirror.object) for mirror in manifest.mirrors if mirror.object is not None}
    return frozenset(mirrors | ({(MASTERS, manifest.master.object)} if manifest.master else set()))


class Collector:
    """Removes generations, remembering which objects each of the others refers to.

    Only the one writer of a store may use it.
    """

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._objects: dict[int, Objects] = {}
        # In no generation any more, but a difference that somebody holds may still be looked at.
        self._spared: set[tuple[str, int]] = set()

    def remember(self, manifest: Manifest) -> None:
        """Spare reading a manifest that was just written."""
        self._objects[manifest.generation] = objects_of(manifest)

    def prune(self, tagged: Iterable[int], keep_last: int = KEPT_GENERATIONS) -> list[int]:
        """Remove all but the newest `keep_last` untagged generations, the tagged and the pinned ones.

        Returns
        -------
        list of int
            The generations that were removed.
        """
        there = generations.numbers(self._folders)
        spared = set(tagged)
        untagged = [number for number in there if number not in spared]
        unwanted = untagged[: max(len(untagged) - keep_last, 0)]
        unwanted = [number for number in unwanted if number != there[-1]]
        return self.remove(unwanted)

    def remove(self, unwanted: list[int]) -> list[int]:
        """Remove these generations but for the pinned ones, and what only they referred to; return which.

        What this process still has a handle of stays until a later collection.
        """
        if not unwanted and not self._spared:
            return []
        there = generations.numbers(self._folders)
        try:
            found = {number: self._objects_of(number) for number in there}
        except StoreCorruptError as error:
            # Without this manifest nobody knows what it refers to: remove nothing rather than too much.
            _log.warning("nothing was collected: %s", error)
            return []
        removed = generations.remove_generations(self._folders, unwanted)
        needed = self._needed([number for number in there if number not in removed], found)
        gone = {one for number in removed for one in found[number]} | self._spared
        held = self._folders.held()
        self._spared = (gone & held) - needed
        gone -= needed | held
        for group, number in gone:
            files.remove_folder(str(number), self._folders.fd(group))
        for number in removed:
            self._objects.pop(number, None)
        if removed:
            _log.info("%s: collected generations %s and %d objects", self._folders.path, removed, len(gone))
        return removed

    def sweep(self) -> int:
        """Remove what no generation tells of: leavings of writers that died. Returns how many objects that was."""
        manifests = [generations.look_at(self._folders, number) for number in generations.numbers(self._folders)]
        needed = {one for manifest in manifests for one in objects_of(manifest)} | self._folders.held()
        generations.sweep_manifests(self._folders)
        for number, names in spare_files(self._folders, manifests).items():
            folder = files.open_folder(str(number), self._folders.fd(MASTERS))
            try:
                for name in names:
                    files.remove_if_there(name, folder)
            finally:
                os.close(folder)
        stray = stray_names(self._folders, needed)
        for group, name in stray:
            files.remove_folder(name, self._folders.fd(group))
        return len(stray)

    def _objects_of(self, number: int) -> Objects:
        if number not in self._objects:
            self._objects[number] = objects_of(generations.look_at(self._folders, number))
        return self._objects[number]

    @staticmethod
    def _needed(numbers: list[int], found: dict[int, Objects]) -> set[tuple[str, int]]:
        return {one for number in numbers for one in found[number]}
