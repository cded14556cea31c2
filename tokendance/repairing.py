"""Putting a damaged store right: what cannot be right is dropped, and said; the rest stays readable."""

import os

from tokendance.cohort import Cohort, Rule
from tokendance.durable import TokenDanceStore
from tokendance.errors import StoreCorruptError
from tokendance.registering import with_round
from tokendance.restoring import reconstructed
from tokendance.store import audit, files
from tokendance.store.folders import Folders
from tokendance.store.layout import MANIFESTS
from tokendance.store.lock import WriterLock
from tokendance.store.place import Place
from tokendance.validate import check_blocks
from tokendance.verifying import Audit, Finding, Progress, Verification

__all__ = ["repair_store", "verify_store"]

# Mirrors of repaired agents are compared bit by bit: what a threshold dropped once is not dropped further.
_EXACT = Rule(0.0, True)


def verify_store(
    path: str | os.PathLike[str], *, repair: bool = False, progress: Progress | None = None
) -> Verification:
    """Check every byte of a store on disk; `tokendance.verify` is this function.

    Works on stores that are too damaged to open.

    Parameters
    ----------
    path : str or path
    repair : bool
        Drop what cannot be right and keep the rest: metadata is written anew, a damaged newest manifest is put aside
        for the one before, damaged agents are removed, and older generations that hold damage are collected, but for
        tagged ones in which some agent is intact. What was done is said in `Verification.repairs`, and committed as a
        new generation.
    progress : callable, optional
        Called with the bytes read so far and the bytes there are.

    Returns
    -------
    Verification
        What was wrong, before any repair.

    Raises
    ------
    StoreCorruptError
        It is no store; or nothing in it can be repaired, since no manifest can be read.
    StoreLockedError
        Repair was asked for, and another process is writing.
    """
    where = os.fsdecode(path)
    gone = audit.missing_groups(where)
    lost = tuple(
        Finding("folder", group, f"the folder {group} is missing, and all that was in it", 0) for group in gone
    )
    if gone and not repair:  # what is left is looked at when there is a folder to look into
        return Verification(lost, (), 0)
    if gone:
        _make_groups(where, gone)
    folders = Folders(where)
    try:
        if not repair:
            return Audit(folders, progress).run()
        lock = WriterLock(folders.fd(MANIFESTS), where)
        try:
            found = repair_store(folders, lock, progress)
        finally:
            lock.release()
    finally:
        folders.close()
    return found._replace(findings=lost + found.findings)


def _make_groups(where: str, gone: list[str]) -> None:
    root = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        manifests = files.open_folder(MANIFESTS, root)
        try:
            lock = WriterLock(manifests, where)
        finally:
            os.close(manifests)
        try:
            for group in gone:
                files.make_folder(group, root)
            files.sync(root)
        finally:
            lock.release()
    finally:
        os.close(root)


def repair_store(folders: Folders, lock: WriterLock, progress: Progress | None = None) -> Verification:
    """Repair the store that `lock` is held for."""
    look = Audit(folders, progress)
    found = look.run()
    if found.ok:
        return found
    if not look.manifests:
        raise StoreCorruptError(
            f"{folders.path}: no manifest can be read, nothing says what the files are; restore a copy"
        )
    repairs: list[str] = []
    for folder, content in look.documents.items():
        group, _, inside = folder.partition("/")
        if audit.rewrite_document(inside, folders.fd(group), content):
            repairs.append(f"wrote {folder or 'the root group'}'s metadata anew")
    repairs += _put_manifests_aside(folders, look)
    repairs += _keep_what_is_whole(folders, lock, look)
    return found._replace(repairs=tuple(repairs))


def _put_manifests_aside(folders: Folders, look: Audit) -> list[str]:
    parent = folders.fd(MANIFESTS)
    for number in look.unreadable:
        files.rename(str(number), f".{number}.damaged", parent)
    if look.unreadable:
        files.sync(parent)
    return [f"put the damaged manifest of generation {number} aside" for number in look.unreadable]


def _keep_what_is_whole(folders: Folders, lock: WriterLock, look: Audit) -> list[str]:
    repairs: list[str] = []
    damaged = {number: look.damaged_agents(look.cohort(number)) for number in look.manifests}
    newest = max(look.manifests)
    store = TokenDanceStore(folders, lock, None, checksums=False)
    if look.unreadable:
        store.number_after(max(look.unreadable), audit.largest_object(folders) + 1)
    lost = damaged[newest]
    if lost or max(look.unreadable, default=0) > newest:
        store.take_over(lambda cohort, place: _without_lost(cohort, set(lost), place))
        repairs.append(f"made generation {store.generation} of what generation {newest} holds intact")
    repairs += [f"dropped agent {agent_id!r}: {problem}" for agent_id, problem in lost.items()]
    tagged = set(store.tags.values())
    for number, agents in damaged.items():
        whole = len(list(look.cohort(number).agents())) - len(agents)
        if agents and number in tagged and whole:
            repairs.append(
                f"kept generation {number}, which is tagged: {whole} agents in it are intact, {len(agents)} not"
            )
        elif agents and store.drop_generations([number]):
            repairs.append(f"dropped generation {number}, in which {len(agents)} agents are damaged")
    return repairs


def _without_lost(cohort: Cohort, lost: set[str], place: Place) -> Cohort:
    """Return a cohort of the agents that are whole, told against a whole master."""
    whole = [agent_id for agent_id in cohort.agents() if agent_id not in lost]
    if cohort.master is None or not whole:
        return Cohort()
    if cohort.master.agent_id not in lost:
        return Cohort(cohort.master, {agent_id: cohort.mirrors[agent_id] for agent_id in whole[1:]})
    caches = {key: check_blocks(reconstructed(cohort, key, None, True, None)) for key in whole}
    return with_round(Cohort(), place, _EXACT, caches, {key: cohort.meta(key) for key in whole}, None)
