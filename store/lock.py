"""OS locks that die with their process: one writer, and readers that pin a generation.

`flock` locks belong to an open file. A forked child shares it, so the writer's lock is closed in children
at once; a reader's pin is kept, because the child reads too.
"""

import errno
import fcntl
import os
import stat
import weakref

from tokendance.errors import StoreCorruptError, StoreLockedError
from tokendance.store.layout import LOCK_NAME

__all__ = ["WriterLock", "pin", "pinned"]

_held: "weakref.WeakSet[WriterLock]" = weakref.WeakSet()


class WriterLock:
    """The right to change a store, held until `release` or the death of this process.

    Parameters
    ----------
    manifests : int
        The open manifests folder.
    path : str
        The store, for messages.

    Raises
    ------
    StoreLockedError
        Another process, or another handle in this one, holds it.
    """

    def __init__(self, manifests: int, path: str) -> None:
        self.pid = os.getpid()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = _opened(manifests, flags, path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            self._fd = -1
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise OSError(
                    error.errno, f"{path} cannot be locked ({error.strerror}); keep it on a local disk"
                ) from None
            raise StoreLockedError(
                f"{path} is being written by process {holder}; close it there, or open with mode='r' to read",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(self.pid).encode(), 0)
        _held.add(self)

    def release(self) -> None:
        """Let others write."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        """Release a lock whose store was dropped without closing it."""
        if getattr(self, "_fd", -1) >= 0:
            self.release()


def _opened(manifests: int, flags: int, path: str) -> int:
    """Open the lock file; anything but a file that the store alone has is refused before it is written to."""
    refusal = f"{path}/manifests/{LOCK_NAME} is not a regular file of this store alone, which a store never has"
    try:
        fd = os.open(LOCK_NAME, flags, 0o666, dir_fd=manifests)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise StoreCorruptError(refusal) from None
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(fd)
        raise StoreCorruptError(refusal)
    return fd


def _drop_in_child() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_drop_in_child)


def pin(fd: int) -> bool:
    """Take a shared lock on an open manifest, so that collection spares its generation.

    Returns False if a collector holds or has removed it: then another generation must be opened.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise OSError(
            error.errno, f"a generation cannot be pinned ({error.strerror}); keep it on a local disk"
        ) from None
    return os.fstat(fd).st_nlink > 0


def pinned(fd: int) -> bool:
    """Say whether somebody pins this open manifest; if not, it is locked against new pins until `fd` is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
