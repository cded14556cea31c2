"""Cohorts to manifests and back: the one place that knows both."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokendance.block_table import BlockTable
from tokendance.cohort import EMPTY, Cohort, Master, Mirror, Rule
from tokendance.store.folders import Folders
from tokendance.store.manifest import Manifest, MasterEntry, MirrorEntry
from tokendance.store.objects import DiskMaster, DiskOwn, master_at, own_of
from tokendance.store.place import BlockType

__all__ = ["Commit", "Generation", "cohort_in", "manifest_of"]


class Generation(NamedTuple):
    """A committed state of a store.

    Attributes
    ----------
    number, parent : int
        The state it was made from; 0 for the first.
    time : float
        When, in seconds since 1970 by the writer's clock.
    tags : tuple of str
    agents : tuple of str
        The master first.
    written_bytes : int
        What its commit wrote, without its manifest.
    """

    number: int
    parent: int
    time: float
    tags: tuple[str, ...]
    agents: tuple[str, ...]
    written_bytes: int


class Commit(NamedTuple):
    """What a manifest says beside the cohort."""

    generation: int
    parent: int
    identity: Mapping[str, Any] | None
    tags: Mapping[str, int]
    next_object: int
    written_bytes: int


def manifest_of(cohort: Cohort, rule: Rule, commit: Commit) -> Manifest:
    """Return the manifest of a cohort whose blocks are all on disk."""
    master = cohort.master
    return Manifest(
        generation=commit.generation,
        parent=commit.parent,
        time=time.time(),
        threshold=rule.threshold,
        ragged=rule.ragged,
        dtype=master.block_type.dtype_name if master else None,
        block_shape=master.block_type.block_shape if master else None,
        identity=commit.identity,
        next_object=commit.next_object,
        written_bytes=commit.written_bytes,
        master=_master_entry(master) if master else None,
        mirrors=tuple(_mirror_entry(agent_id, mirror) for agent_id, mirror in cohort.mirrors.items()),
        tags=commit.tags,
    )


def _master_entry(master: Master) -> MasterEntry:
    rows = master.rows
    assert isinstance(rows, DiskMaster)
    return MasterEntry(
        master.agent_id, rows.number, rows.n_rows, rows.record.chunk_rows, rows.record.checksums, dict(master.meta)
    )


def _mirror_entry(agent_id: str, mirror: Mirror) -> MirrorEntry:
    table, own = mirror.table, mirror.table.own
    assert own is None or isinstance(own, DiskOwn)
    return MirrorEntry(
        agent=agent_id,
        object=own.number if own else None,
        n_blocks=table.n_blocks,
        n_own=own.rows.n_rows if own else 0,
        index_chunk=own.index_rows.record.chunk_rows if own else 0,
        chunk_blocks=own.rows.record.chunk_rows if own else 0,
        n_base=own.base_rows.n_rows if own and own.base_rows else 0,
        base_chunk=own.base_rows.record.chunk_rows if own and own.base_rows else 0,
        checksums="".join(rows.record.checksums for rows in own.arrays()) if own else "",
        tail=table.tail,
        dropped=mirror.dropped,
        meta=dict(mirror.meta),
    )


def cohort_in(manifest: Manifest, folders: Folders, *, checksums: bool) -> Cohort:
    """Return the cohort that a manifest describes; no array is read."""
    if manifest.master is None or manifest.dtype is None or manifest.block_shape is None:
        return EMPTY
    block_type = BlockType(manifest.dtype, manifest.block_shape)
    rows = master_at(folders, manifest.master, block_type, checksums=checksums)
    owns: dict[int | None, DiskOwn | None] = {}
    mirrors: dict[str, Mirror] = {}
    for entry in manifest.mirrors:
        if entry.object not in owns:
            owns[entry.object] = own_of(folders, entry, block_type, checksums=checksums)
        mirrors[entry.agent] = Mirror(
            BlockTable(entry.n_blocks, owns[entry.object], entry.tail), entry.dropped, entry.meta
        )
    return Cohort(Master(manifest.master.agent, rows, block_type, manifest.master.meta), mirrors)
