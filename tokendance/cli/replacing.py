"""Files that appear when they are whole."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

from tokendance.cli.failures import about

__all__ = ["replaced"]


@contextmanager
def replaced(path: Path) -> Iterator[BufferedWriter]:
    """Write a file under another name beside `path`, and give it the name once it is whole and durable."""
    beside = path.with_name(f".{path.name[:60]}.{secrets.token_hex(6)}.new")
    with about(path):
        try:
            with beside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
