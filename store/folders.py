"""The open folders of a store: every file is reached from one of these, never by an absolute path."""

import os
import weakref

from tokendance.errors import StoreCorruptError
from tokendance.store import files
from tokendance.store.layout import MANIFESTS, MASTERS, MIRRORS

__all__ = ["Folders"]


class Folders:
    """A store's root and the three folders in it, open.

    Parameters
    ----------
    path : str
        The store; links on the way to it are followed, links inside it are refused.

    Raises
    ------
    StoreCorruptError
        One of the three is missing, or not a folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._open: dict[str, int] = {}
        self._handles: weakref.WeakKeyDictionary[object, tuple[str, int]] = weakref.WeakKeyDictionary()
        try:
            self._open[""] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for name in (MANIFESTS, MASTERS, MIRRORS):
                self._open[name] = files.open_folder(name, self._open[""])
        except StoreCorruptError as error:
            self.close()
            raise StoreCorruptError(f"{path}: {error}") from None
        except OSError:
            self.close()
            raise

    def fd(self, name: str = "") -> int:
        """Return the open folder `name`, the root for ''; a number that was closed could be any file's by now."""
        try:
            return self._open[name]
        except KeyError:
            raise ValueError(f"{self.path} was closed; open it again") from None

    def hold(self, group: str, number: int, handle: object) -> None:
        """Remember that somebody in this process may still read an object, for as long as `handle` lives."""
        self._handles[handle] = group, number

    def handles(self) -> list[object]:
        """Return what still holds an object in this process."""
        return list(self._handles)

    def held(self) -> set[tuple[str, int]]:
        """Return the objects that somebody in this process may still read through these folders."""
        return set(self._handles.values())

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        """Close what was left open."""
        self.close()
