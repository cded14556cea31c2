"""Opening a store: what each mode does with what is there."""

import os
import time
from collections.abc import Mapping
from typing import Any

from tokendance import validate
from tokendance.cohort import Cohort, Rule
from tokendance.durable import TokenDanceStore
from tokendance.errors import IdentityMismatchError, StoreCorruptError
from tokendance.kernels.loading import loading
from tokendance.store import generations
from tokendance.store.folders import Folders
from tokendance.store.lock import WriterLock
from tokendance.store.manifest import Manifest

__all__ = ["open_store", "save"]

_MODES = ("r", "r+", "a", "w", "w-")
_DEFAULT = Rule(1e-4, False)


def open_store(
    path: str | os.PathLike[str],
    mode: str = "a",
    *,
    diff_threshold: float | None = None,
    ragged: bool | None = None,
    identity: Mapping[str, Any] | None = None,
    at: int | str | None = None,
    checksums: str = "on",
) -> TokenDanceStore:
    """Open a store on disk; `tokendance.open` is this function.

    Parameters
    ----------
    path : str or path
        A folder.
    mode : str
        ``"r"`` read what is there; ``"r+"`` read and change what is there; ``"a"`` the same, making a store where there
        is none; ``"w"`` an empty store in place of the store that is there, if one is; ``"w-"`` a new store only.
    diff_threshold : float, optional
        See `TokenDanceStorage`. A new store has 1e-4 if not told; an existing one must have been made with it.
    ragged : bool, optional
        The same for ragged; a new store is not.
    identity : dict, optional
        What the caches belong to (model, revision, layers, ...), flat. Recorded in a new store; in an existing one
        it must be what was recorded.
    at : int or str, optional
        A generation, by number or tag, instead of the newest. Changes made from it become the newest.
    checksums : str
        ``"off"`` to read without comparing chunks with their checksums.

    Returns
    -------
    TokenDanceStore

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`, and the mode makes nothing.
    FileExistsError
        There is something at `path` that the mode would replace.
    StoreCorruptError
        What is there is no store, or damaged.
    StoreLockedError
        Another process is writing to it.
    IdentityMismatchError
        It belongs to something else.
    ValueError
        It was made with another threshold or ragged.

    Examples
    --------
    >>> import tempfile, numpy as np, tokendance as td
    >>> path = tempfile.mkdtemp() + "/round.td"
    >>> with td.open(path) as s:
    ...     _ = s.register_round({"a": np.zeros((4, 2), np.float32), "b": np.ones((4, 2), np.float32)})
    >>> with td.open(path, mode="r") as s:
    ...     s.agents, s.reconstruct("b", copy=False).sum()
    (['a', 'b'], np.float32(8.0))
    """
    where = os.fsdecode(path)
    if not where:
        raise ValueError("path must name a folder, got an empty one")
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
    if checksums not in ("on", "off"):
        raise ValueError(f"checksums must be 'on' or 'off', got {checksums!r}")
    if at is not None and mode not in ("r", "r+"):
        raise ValueError(f"at= opens what is there; use it with mode 'r' or 'r+', not {mode!r}")
    if isinstance(at, bool) or not isinstance(at, int | str | None):
        raise TypeError(f"at must be a generation's number or a tag, got {type(at).__name__}")
    said = validate.check_identity(identity)
    asked = (None if diff_threshold is None else validate.check_threshold(diff_threshold), ragged)
    made = _make_if_needed(where, mode, asked, said)
    folders = Folders(where)
    lock = None
    try:
        lock = None if mode == "r" else WriterLock(folders.fd("manifests"), where)
        store = TokenDanceStore(folders, lock, at, checksums=checksums == "on")
        if mode == "w" and not made:
            store.start_over(Rule(*_filled(asked)), said)
        else:
            _check_rule(store, asked)
            _check_identity(store, said)
    except BaseException:
        if lock is not None:
            lock.release()
        folders.close()
        raise
    return store


def save(cohort: Cohort, rule: Rule, path: str, identity: Mapping[str, Any] | None = None) -> None:
    """Write a cohort to a store, in place of what that held, which stays until the new is durable."""
    with loading:
        from tokendance import registering

    said = None if identity is None else dict(identity)
    _make_if_needed(path, "w", rule, said)
    folders = Folders(path)
    lock = None
    try:
        lock = WriterLock(folders.fd("manifests"), path)
        store = TokenDanceStore(folders, lock, None, checksums=True)
        store.start_over(rule, said, lambda _nothing, place: registering.copied(cohort, place))
        store.close()
    finally:
        if lock is not None:
            lock.release()
        folders.close()


def _filled(asked: tuple[float | None, bool | None]) -> tuple[float, bool]:
    threshold, ragged = asked
    return (_DEFAULT.threshold if threshold is None else threshold, _DEFAULT.ragged if ragged is None else bool(ragged))


def _make_if_needed(
    path: str, mode: str, asked: tuple[float | None, bool | None], identity: dict[str, Any] | None
) -> bool:
    """Make a store where the mode wants one and none is; say whether it was made."""
    if generations.is_store(path):
        if mode == "w-":
            raise FileExistsError(f"{path} is a store already; mode='w-' makes new ones only")
        return False
    if mode in ("r", "r+"):
        if os.path.lexists(path):
            raise StoreCorruptError(f"{path} is not a tokendance store: it has no zarr.json that says so")
        raise FileNotFoundError(f"{path} does not exist; open it with mode='a' to make a store")
    threshold, ragged = _filled(asked)
    first = Manifest(1, 0, time.time(), threshold, ragged, None, None, identity, 0, 0, None, ())
    with loading:
        from tokendance.store.creating import create

    try:
        create(path, first)
    except FileExistsError:
        if mode == "a" and generations.is_store(path):  # another process was faster
            return False
        raise
    return True


def _check_rule(store: TokenDanceStore, asked: tuple[float | None, bool | None]) -> None:
    threshold, ragged = asked
    if threshold is not None and threshold != store.diff_threshold:
        raise ValueError(
            f"{store.path} was made with diff_threshold={store.diff_threshold:g}, got {threshold:g}; leave it out, or "
            "make another store"
        )
    if ragged is not None and bool(ragged) != store.ragged:
        raise ValueError(
            f"{store.path} was made with ragged={store.ragged}, got {ragged}; leave it out, or make another store"
        )


def _check_identity(store: TokenDanceStore, said: dict[str, Any] | None) -> None:
    if said is None or said == store.identity:
        return
    recorded = store.identity or {}
    keys = [key for key in {**recorded, **said} if recorded.get(key) != said.get(key)]
    differing = "; ".join(f"{key}: store {recorded.get(key)!r}, asked {said.get(key)!r}" for key in sorted(keys))
    raise IdentityMismatchError(f"{store.path} belongs to something else: {differing}")
