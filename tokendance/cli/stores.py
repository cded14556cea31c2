"""Opening the store that a command line names."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokendance as td
from tokendance.cli.failures import CommandError, about

__all__ = ["changed", "check_store", "opened"]


def check_store(path: Path) -> None:
    """Check that something which may be a store is there; what it is made of, opening it finds out.

    Raises
    ------
    CommandError
        There is nothing, or something that was never a store.
    """
    if not os.path.lexists(path):
        raise CommandError(f"{path} does not exist; tokendance snapshot makes a store")
    with about(path):
        if not path.is_dir():
            raise CommandError(f"{path} is not a tokendance store: it is no folder")
        # A store that lost one of them is damaged, which is for verify to say.
        if not any((path / name).exists() for name in ("zarr.json", "manifests")):
            raise CommandError(f"{path} is not a tokendance store: it has neither zarr.json nor manifests")


@contextmanager
def opened(path: Path, at: str | None = None, identity: dict[str, Any] | None = None) -> Iterator[td.TokenDanceStore]:
    """Open a store to read it; an error of the disk says which store it is."""
    check_store(path)
    with _no_agents(path), about(path), td.open(path, mode="r", at=at, identity=identity) as storage:
        yield storage


@contextmanager
def changed(path: Path) -> Iterator[td.TokenDanceStore]:
    """Open a store to change it; an error of the disk says which store it is, and that nothing changed."""
    check_store(path)
    with _no_agents(path), about(path, "nothing was changed"), td.open(path, mode="r+") as storage:
        yield storage


@contextmanager
def _no_agents(path: Path) -> Iterator[None]:
    try:
        yield
    except td.NoMasterError as error:
        raise CommandError(f"{path} has no agents yet; tokendance snapshot stores some") from error
