"""A disk that can be looked at as it is at any moment: an image on a file system that copies files by reference."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CuttingRoom", "cutting_room", "missing"]

_PROGRAMS = ("losetup", "mount", "umount", "mkfs.xfs", "mkfs.ext4", "cp")
_ROOM_BYTES, _DISK_BYTES = 10 << 30, 3 << 30  # sparse: what is really used is a fraction


def missing() -> list[str]:
    """Return the programs that are needed and not here."""
    return [program for program in _PROGRAMS if shutil.which(program) is None]


def _run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def _mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image; mounting replays the file system's journal, as after a real cut."""
    folder.mkdir(exist_ok=True)
    device = _run("losetup", "--find", "--show", image)
    try:
        _run("mount", device, folder)
        try:
            yield folder
        finally:
            _run("umount", folder)
    finally:
        _run("losetup", "--detach", device)


class CuttingRoom:
    """An XFS file system, and in it the image of an ext4 disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._empty = folder / "empty.img"
        with self._empty.open("wb") as file:
            file.truncate(_DISK_BYTES)
        _run("mkfs.ext4", "-q", "-F", self._empty)

    @contextmanager
    def fresh_disk(self) -> Iterator[Path]:
        """Mount an empty disk; its image is `disk.img` meanwhile."""
        image = self._folder / "disk.img"
        _run("cp", "--reflink=always", self._empty, image)
        try:
            with _mounted(image, self._folder / "disk"):
                yield self._folder / "disk"
        finally:
            image.unlink()

    def cut(self) -> None:
        """Keep the disk as it is now: what a power cut at this moment leaves."""
        _run("cp", "--reflink=always", self._folder / "disk.img", self._folder / "cut.img")

    @contextmanager
    def disk_after_the_cut(self) -> Iterator[Path]:
        """Mount what was kept by the last `cut`."""
        image = self._folder / "cut.img"
        try:
            with _mounted(image, self._folder / "cut"):
                yield self._folder / "cut"
        finally:
            image.unlink()


@contextmanager
def cutting_room(parent: Path | None) -> Iterator[CuttingRoom]:
    """Make a room in a temporary folder, and take it away afterwards."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="power-cut-") as name:
        image = Path(name) / "room.img"
        with image.open("wb") as file:
            file.truncate(_ROOM_BYTES)
        _run("mkfs.xfs", "-q", "-m", "reflink=1", image)
        with _mounted(image, Path(name) / "room") as folder:
            yield CuttingRoom(folder)
