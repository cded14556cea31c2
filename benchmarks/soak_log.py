"""What a writer says it is about to commit and has committed, for those who check it."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["Log", "print_of"]

KEPT = 500


def print_of(cache: NDArray[Any]) -> str:
    """Return what only a cache of the same shape and bytes has."""
    return f"{cache.shape} {hashlib.blake2b(cache.tobytes(), digest_size=16).hexdigest()}"


class Log:
    """A folder beside the store: a file for each generation, and the number of the last acknowledged one.

    What a process wrote is there when it is killed, synced or not; so nothing here is synced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._acknowledged = os.open(folder / "acknowledged", os.O_RDWR | os.O_CREAT, 0o600)

    def announce(self, generation: int, prints: Mapping[str, str], tags: Mapping[str, int]) -> None:
        """Say what a generation will hold, before it is committed."""
        temporary = self._folder / f".{generation}"
        temporary.write_text(json.dumps({"prints": dict(prints), "tags": dict(tags)}), encoding="utf-8")
        temporary.rename(self._folder / f"{generation}")
        old = generation - KEPT
        if old not in tags.values():
            with suppress(FileNotFoundError):
                (self._folder / f"{old}").unlink()

    def acknowledge(self, generation: int) -> None:
        """Say that a generation is committed."""
        os.pwrite(self._acknowledged, b"%20d" % generation, 0)

    def acknowledged(self) -> int:
        """Return the last generation that was said to be committed."""
        return int(os.pread(self._acknowledged, 20, 0) or b"0")

    def announced(self, generation: int) -> tuple[dict[str, str], dict[str, int]]:
        """Return the print of each agent of a generation, and its tags; an empty store has none."""
        if generation == 1:
            return {}, {}
        said = json.loads((self._folder / f"{generation}").read_text(encoding="utf-8"))
        return said["prints"], said["tags"]
