"""The open folders of a store: every file is reached from one of these, never by an absolute path."""

import os

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

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        """Close what was left open."""
        self.close()
