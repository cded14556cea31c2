"""A disk that stops, fails or loses power at any step of a writer.

`Disk` stands in for the `os` module inside `tokendance.store`, so that every call that changes the disk is a numbered
step: making a file, each write, truncate, fsync, mkdir, rename, link, unlink, rmdir. At a chosen step it can

- crash: half of a write is done, anything else is not, and every later step of the same process fails too, so that no
  clean-up runs;
- kill: the same by a real SIGKILL;
- fail: this step alone raises an OSError (after half of a write), and the process lives on.

The model of a power cut
------------------------
What was there before is on the disk. From then on the disk holds for certain only what was synced: the content that a
file had when it was last fsynced, and the names that a folder had when it was last fsynced. Everything since then is
pending: each change of a folder (a rename is one change) may or may not have arrived, whatever happened to changes
before or after it, in this folder or another; the content of a file that was written since its last fsync may be there,
be cut anywhere, be zeros, or be gone. fsync of a file says nothing of its name, fsync of a folder nothing of what is in
its files and folders. This is weaker than what ext4, XFS and btrfs really do. `power_cut` builds such a disk in another
folder: ``"least"`` keeps nothing that is pending, ``"names"`` keeps all names and no content that is pending (the
classic zero-length file), and a number keeps a random part.
"""

import os
import pkgutil
import random
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import tokendance.store

__all__ = ["Crash", "Disk", "store_modules"]


class Crash(BaseException):
    """The writer is dead; a BaseException, so that nothing handles it."""


class _File:
    def __init__(self, synced: bytes) -> None:
        self.synced = synced
        self.dirty = False


class _Folder:
    def __init__(self) -> None:
        self.now: dict[str, _File | _Folder] = {}
        self.synced: dict[str, _File | _Folder] = {}
        self.pending: list[list[tuple[str, _File | _Folder | None]]] = []

    def change(self, *names: tuple[str, "_File | _Folder | None"]) -> None:
        self.pending.append(list(names))
        _apply(self.now, names)


def _apply(names: dict[str, "_File | _Folder"], change: Any) -> None:
    for name, node in change:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def store_modules() -> list[Any]:
    """All modules of `tokendance.store` that hold the `os` module."""
    found = [import_module(f"tokendance.store.{one.name}") for one in pkgutil.iter_modules(tokendance.store.__path__)]
    return [module for module in found if hasattr(module, "os")]


class Disk:
    """The `os` module as `tokendance.store` sees it, over the real folder `root`.

    Parameters
    ----------
    root : path
        The folder that the power cut is modelled for.
    track : bool
        Keep the model; costs a little.
    """

    def __init__(self, root: Path, *, track: bool = False) -> None:
        self.root = root
        self.steps: list[str] = []
        self.stop_at = -1
        self.how: str | int = "crash"
        self.dead = False
        self._mutex = threading.RLock()
        self._nodes: dict[tuple[int, int], _File | _Folder] = {}
        self._top = self._scan(root) if track else None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @contextmanager
    def mounted(self) -> Iterator["Disk"]:
        """Stand in for `os` in the whole of `tokendance.store`."""
        modules = store_modules()
        before = [module.os for module in modules]
        for module in modules:
            module.os = self
        try:
            yield self
        finally:
            for module, real in zip(modules, before, strict=True):
                module.os = real

    def arm(self, step: int, how: str | int) -> None:
        """Stop at a step from here on: ``"crash"``, ``"kill"``, or an error number."""
        self.steps.clear()
        self.stop_at, self.how = step, how

    def disarm(self) -> None:
        """Do every step from here on."""
        self.stop_at = -1

    def _step(self, name: str, do: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        with self._mutex:
            if self.dead:
                raise Crash(name)
            number = len(self.steps)
            self.steps.append(name)
            if number != self.stop_at:
                return do()
            if half is not None:
                half()
            if isinstance(self.how, int):
                raise OSError(self.how, os.strerror(self.how), name)
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self.dead = True
            raise Crash(name)

    # What changes the disk ------------------------------------------------------------------------------------------

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if not flags & os.O_CREAT:
            return os.open(path, flags, mode, dir_fd=dir_fd)

        def do() -> int:
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
            folder = self._folder(dir_fd)
            if folder is not None and path not in folder.now:
                folder.change((path, self._new(fd, _File(b""))))
            return fd

        return self._step(f"open {path}", do)

    def write(self, fd: int, data: Any) -> int:
        def do(part: Any) -> int:
            node = self._node(fd)
            if isinstance(node, _File):
                node.dirty = True
            return os.write(fd, part)

        return self._step("write", lambda: do(data), lambda: do(memoryview(data)[: len(data) // 2]))

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._step("pwrite", lambda: os.pwrite(fd, data, offset))

    def ftruncate(self, fd: int, length: int) -> None:
        self._step("ftruncate", lambda: os.ftruncate(fd, length))

    def fsync(self, fd: int) -> None:
        # The real fsync is left out: nothing here needs it, and it is most of the time.
        self._step("fsync", lambda: self._synced(fd))

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        def do() -> None:
            os.mkdir(path, mode, dir_fd=dir_fd)
            folder = self._folder(dir_fd)
            if folder is not None:
                status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
                made = self._nodes[status.st_dev, status.st_ino] = _Folder()
                folder.change((path, made))

        self._step(f"mkdir {path}", do)

    def rename(self, old: str, new: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        def do() -> None:
            os.rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            folder = self._folder(src_dir_fd)
            if folder is not None:
                assert folder is self._folder(dst_dir_fd), "a rename from one folder to another is not one change"
                folder.change((old, None), (new, folder.now[old]))

        self._step(f"rename {new}", do)

    def link(self, old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool = True) -> None:
        def do() -> None:
            os.link(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
            source, folder = self._folder(src_dir_fd), self._folder(dst_dir_fd)
            if source is not None and folder is not None:
                folder.change((new, source.now[old]))

        self._step(f"link {new}", do)

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        self._step(f"unlink {path}", lambda: self._gone(path, dir_fd, os.unlink))

    def rmdir(self, path: str, *, dir_fd: int | None = None) -> None:
        self._step(f"rmdir {path}", lambda: self._gone(path, dir_fd, os.rmdir))

    # The model ------------------------------------------------------------------------------------------------------

    def _gone(self, path: str, dir_fd: int | None, remove: Callable[..., None]) -> None:
        remove(path, dir_fd=dir_fd)
        folder = self._folder(dir_fd)
        if folder is not None:
            folder.change((path, None))

    def _scan(self, path: Path) -> _Folder:
        folder = self._nodes.setdefault(_inode(os.lstat(path)), _Folder())
        assert isinstance(folder, _Folder)
        for entry in os.scandir(path):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                folder.now[entry.name] = self._scan(Path(entry.path))
            else:
                folder.now[entry.name] = self._nodes.setdefault(_inode(status), _File(Path(entry.path).read_bytes()))
        folder.synced = dict(folder.now)
        return folder

    def _new(self, fd: int, node: _File) -> _File:
        self._nodes[_inode(os.fstat(fd))] = node
        return node

    def _node(self, fd: int) -> "_File | _Folder | None":
        return self._nodes.get(_inode(os.fstat(fd)))

    def _folder(self, fd: int | None) -> _Folder | None:
        if self._top is None or fd is None:
            return None
        node = self._node(fd)
        assert isinstance(node, _Folder), "a step in a folder that the model does not know"
        return node

    def _synced(self, fd: int) -> None:
        node = self._node(fd)
        if isinstance(node, _Folder):
            node.synced, node.pending = dict(node.now), []
        elif isinstance(node, _File):
            node.synced, node.dirty = Path(f"/proc/self/fd/{fd}").read_bytes(), False

    def power_cut(self, target: Path, keep: str | int) -> None:
        """Build in `target` a disk that `root` may be after a power cut now."""
        assert self._top is not None
        dice = random.Random(keep)

        def build(folder: _Folder, real: Path, made: Path) -> None:
            made.mkdir()
            names = dict(folder.synced)
            for change in folder.pending:
                if keep == "names" or (keep != "least" and dice.random() < 0.5):
                    _apply(names, change)
            for name, node in names.items():
                if isinstance(node, _Folder):
                    build(node, real / name, made / name)
                else:
                    made.joinpath(name).write_bytes(content(node, real / name))

        def content(file: _File, real: Path) -> bytes:
            if not file.dirty:
                return file.synced
            if keep in ("least", "names") or not real.is_file():
                return file.synced
            whole = real.read_bytes()
            return dice.choice([file.synced, whole, whole[: dice.randrange(len(whole) + 1)], bytes(len(whole))])

        build(self._top, self.root, target)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
