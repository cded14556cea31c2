"""How much of the disk a folder takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes of a folder: what the file system has set aside for it, and what its files add up to."""

    allocated: int
    apparent: int


def disk_usage(folder: Path) -> DiskUsage:
    """Add up everything below a folder, and the folder itself; a file with several names counts once.

    Parameters
    ----------
    folder : Path
        Where to look; symbolic links are counted, not followed.

    Returns
    -------
    DiskUsage

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     written = (Path(name) / "file").write_bytes(bytes(100_000))
    ...     disk_usage(Path(name)).apparent >= 100_000
    True
    """
    found = {(info.st_dev, info.st_ino): info for info in map(Path.lstat, _everything_below(folder))}
    # Windows reports no blocks.
    allocated = sum(getattr(info, "st_blocks", -(-info.st_size // 512)) * 512 for info in found.values())
    return DiskUsage(allocated=allocated, apparent=sum(info.st_size for info in found.values()))


def _everything_below(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")
