"""What one commit wrote and has not yet made durable."""

import os
from collections.abc import Callable, Sequence

from tokendance.store import files
from tokendance.store.files import Buffer

__all__ = ["Batch"]

# Syncs that wait together share a journal commit of the file system; eight at once made 2,500 small files
# durable in a third of the time that one after another takes.
_SYNCS_AT_ONCE = 8
# Files with the same few bytes get names of one file: of 500 small mirrors most metadata are equal, and each file of
# its own takes a sync and a 4 KiB block. A file system may refuse more names than this (ext4: 65,000).
_MOST_NAMES = 1000
_MOST_ALIKE = 64
# Open files wait here for their sync, and a process may have 1,024.
_MOST_OPEN = 256


class Batch:
    """Files and folders that must be on the disk before a manifest names them."""

    def __init__(self) -> None:
        self._files: list[int] = []
        self._folders: list[int] = []
        self._alike: dict[bytes, tuple[int, str, int]] = {}
        self.written_bytes = 0

    def write(
        self, name: str, parent: int, parts: Sequence[Buffer], *, pad_at: int = -1, size: int | None = None
    ) -> None:
        """Write a new file; `tokendance.store.files.write_new` says how it is padded."""
        self._files.append(files.write_new(name, parent, parts, pad_at=pad_at, size=size))
        self.written_bytes += sum(memoryview(part).nbytes for part in parts)
        if len(self._files) >= _MOST_OPEN:
            _sync_and_close(self._files)

    def write_alike(self, name: str, parent: int, content: bytes) -> None:
        """Write a new file that is never changed in place; the same content again is one more name of the first."""
        folder, first, names = self._alike.get(content, (-1, name, 0))
        if 0 < names < _MOST_NAMES:
            files.link(first, folder, name, parent)
            self._alike[content] = (folder, first, names + 1)
            return
        self.write(name, parent, (content,))
        if names:
            os.close(folder)
        elif len(self._alike) >= _MOST_ALIKE:
            return
        self._alike[content] = (os.dup(parent), name, 1)

    def make_folder(self, name: str, parent: int) -> int:
        """Make a folder and return it open; whoever asked closes it."""
        files.make_folder(name, parent)
        folder = files.open_folder(name, parent)
        self.sync_later(folder)
        return folder

    def sync_later(self, folder: int) -> None:
        """Make the names in an open folder durable with the rest."""
        self._folders.append(os.dup(folder))

    def finished_object(self) -> None:
        """Make folders durable if many wait; not before all is in them, since a sync covers what is there."""
        if len(self._folders) >= _MOST_OPEN:
            _sync_and_close(self._folders)

    def sync(self) -> None:
        """Return when all of it is on the disk.

        Raises
        ------
        OSError
            The first sync that failed; what was written must then be given up, never tried again.
        """
        waiting = self._files + self._folders
        self._files, self._folders = [], []
        self._forget_alike()
        _sync_and_close(waiting)

    def drop(self) -> None:
        """Forget what waits."""
        for fd in self._files + self._folders:
            os.close(fd)
        self._files, self._folders = [], []
        self._forget_alike()

    def _forget_alike(self) -> None:
        for folder, _, _ in self._alike.values():
            os.close(folder)
        self._alike = {}


def _sync_and_close(fds: list[int]) -> None:
    waiting = fds.copy()
    fds.clear()
    try:
        _all_at_once(files.sync, waiting)
    finally:
        for fd in waiting:
            os.close(fd)


def _all_at_once(step: Callable[[int], None], fds: list[int]) -> None:
    if len(fds) < _SYNCS_AT_ONCE:
        for fd in fds:
            step(fd)
        return
    from concurrent.futures import ThreadPoolExecutor  # 8 ms, which readers need not pay

    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        for _ in pool.map(step, fds):
            pass
