"""The steps that change a cohort: each takes one and returns the next, and puts blocks in a place on the way."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tokendance.basing import based_mirror
from tokendance.block_table import BlockTable
from tokendance.cohort import Cohort, Master, Mirror, Rule
from tokendance.electing import block_prints, cohort_prints, elected
from tokendance.errors import ShapeMismatchError
from tokendance.mirroring import mirrors_of
from tokendance.rebasing import Move, moved_mirrors, placed_master, rebased
from tokendance.store.place import Place
from tokendance.validate import Blocks, check_base, check_fit

__all__ = ["with_fork", "with_master", "with_mirror", "with_round", "with_shared_blocks", "without"]

Metas = Mapping[str, Mapping[str, Any]]


def with_master(
    cohort: Cohort, place: Place, rule: Rule, agent_id: str, blocks: Blocks, meta: Mapping[str, Any]
) -> Cohort:
    """Register a master: the first, another one (mirrors are cleared), or new content for the same one.

    Under the same id mirrors are kept and still are, bit for bit, what they were registered as.
    """
    old = cohort.master
    if old is None or old.agent_id != agent_id or (not cohort.mirrors and blocks.block_type != old.block_type):
        rows = place.put_master(blocks.rows, blocks.block_type)
        return Cohort(Master(agent_id, rows, blocks.block_type, meta))
    if cohort.mirrors:
        check_fit(blocks, old.rows.n_rows, old.block_type, ragged=rule.ragged)
    move = placed_master(old, blocks.rows, place)
    mirrors = moved_mirrors(cohort, cohort.mirrors, move, place)
    return Cohort(Master(agent_id, move.rows, old.block_type, meta), mirrors)


def with_mirror(
    cohort: Cohort,
    place: Place,
    rule: Rule,
    agent_id: str,
    blocks: Blocks,
    meta: Mapping[str, Any],
    base: object = None,
) -> Cohort:
    """Register a mirror, or new content for one, against the same positions of the master or those of `base`."""
    master = cohort.needs_master("register_master() must be called before register_mirror()")
    if agent_id == master.agent_id:
        raise ValueError(
            f"{agent_id!r} is the master; use register_master() for new content, or rebase() to another master first"
        )
    check_fit(blocks, master.rows.n_rows, master.block_type, ragged=rule.ragged)
    before = cohort.mirrors.get(agent_id)
    if base is None:
        (mirror,) = mirrors_of(master, [blocks], place, rule.threshold, [meta], [before])
    else:
        where = check_base(base, len(blocks.rows), master.rows.n_rows)
        mirror = based_mirror(master, blocks.rows, place, rule.threshold, meta, where, before)
    return replace(cohort, mirrors={**cohort.mirrors, agent_id: mirror})


def with_round(
    cohort: Cohort, place: Place, rule: Rule, caches: Mapping[str, Blocks], metas: Metas, master_id: str | None
) -> Cohort:
    """Register many agents at once; agents of the cohort that are not among them keep their content."""
    if master_id is None:
        master_id = _master_of_round(cohort, caches)
    outside = [agent_id for agent_id in cohort.agents() if agent_id not in caches]
    if master_id not in caches and master_id not in outside:
        raise ValueError(f"master {master_id!r} is not among the caches, and no agent has this id")
    _check_round(cohort, rule, caches, outside)
    start = _with_round_master(cohort, place, caches, metas, master_id, outside)
    master = start.needs_master()
    others = [agent_id for agent_id in caches if agent_id != master_id]
    said = [metas.get(agent_id, {}) for agent_id in others]
    blocks = [caches[agent_id] for agent_id in others]
    # Only of the same block type: the round may have begun a new cohort.
    before = [cohort.mirrors.get(agent_id) if _same_type(cohort, master) else None for agent_id in others]
    mirrors = mirrors_of(master, blocks, place, rule.threshold, said, before)
    return replace(start, mirrors={**start.mirrors, **dict(zip(others, mirrors, strict=True))})


def _same_type(cohort: Cohort, master: Master) -> bool:
    return cohort.master is not None and cohort.master.block_type == master.block_type


def _master_of_round(cohort: Cohort, caches: Mapping[str, Blocks]) -> str:
    if cohort.master is not None:
        return cohort.master.agent_id
    if len(caches) == 1:
        return next(iter(caches))
    return elected({agent_id: block_prints(blocks.rows) for agent_id, blocks in caches.items()})


def _check_round(cohort: Cohort, rule: Rule, caches: Mapping[str, Blocks], outside: list[str]) -> None:
    """All caches of a round fit each other, and the agents that stay."""
    first = next(iter(caches.values()))
    if cohort.master is not None and outside:
        expected, n_expected = cohort.master.block_type, cohort.n_blocks(outside[0])
    else:
        expected, n_expected = first.block_type, len(first.rows)
    for agent_id, blocks in caches.items():
        check_fit(blocks, n_expected, expected, ragged=rule.ragged, name=f"cache of {agent_id!r}:")


def _with_round_master(
    cohort: Cohort, place: Place, caches: Mapping[str, Blocks], metas: Metas, master_id: str, outside: list[str]
) -> Cohort:
    """Return the cohort of the round's master and of the agents outside the round."""
    old = cohort.master
    mirrors = {agent_id: cohort.mirrors[agent_id] for agent_id in outside if agent_id in cohort.mirrors}
    if master_id not in caches:
        kept = replace(
            cohort, mirrors={**mirrors, master_id: cohort.mirrors[master_id]} if master_id in mirrors else mirrors
        )
        return rebased(kept, master_id, place)
    blocks, meta = caches[master_id], metas.get(master_id, {})
    if old is None or blocks.block_type != old.block_type:
        return Cohort(Master(master_id, place.put_master(blocks.rows, blocks.block_type), blocks.block_type, meta))
    if old.agent_id in outside:
        mirrors[old.agent_id] = Mirror(BlockTable(old.rows.n_rows), meta=old.meta)
    move: Move = placed_master(old, blocks.rows, place)
    return Cohort(Master(master_id, move.rows, old.block_type, meta), moved_mirrors(cohort, mirrors, move, place))


def with_shared_blocks(cohort: Cohort, place: Place, agent_ids: list[str], blocks: Blocks) -> Cohort:
    """Append blocks to the master once, and give them to each listed agent at its own end."""
    master = cohort.needs_master()
    if blocks.block_type != master.block_type:
        came, expected = blocks.block_type, master.block_type
        raise ShapeMismatchError(
            f"shared_blocks of {came.dtype_name} blocks {came.block_shape} must match master blocks "
            f"{expected.block_shape} of {expected.dtype_name}"
        )
    n_new, n_master = len(blocks.rows), master.rows.n_rows
    rows = place.append_master(master.rows, blocks.rows) if n_new else master.rows
    mirrors = dict(cohort.mirrors)
    for agent_id in dict.fromkeys(agent_ids):
        if agent_id == master.agent_id:
            continue
        mirror = mirrors.get(agent_id)
        if mirror is None:
            mirrors[agent_id] = Mirror(BlockTable(n_master + n_new))
        else:
            mirrors[agent_id] = replace(mirror, table=mirror.table.extended(n_new, n_master))
    return Cohort(replace(master, rows=rows), mirrors)


def with_fork(cohort: Cohort, src_id: str, new_id: str) -> Cohort:
    """Give an agent a twin that shares all its blocks."""
    master = cohort.needs_master()
    if new_id in cohort.agents():
        raise ValueError(f"{new_id!r} is there already; remove() it first, or choose another id")
    if src_id == master.agent_id:
        twin = Mirror(BlockTable(master.rows.n_rows), meta=master.meta)
    else:
        twin = cohort.mirror(src_id)
    return replace(cohort, mirrors={**cohort.mirrors, new_id: twin})


def without(cohort: Cohort, place: Place, agent_id: str) -> Cohort:
    """Take an agent away; if it is the master, the others first elect another."""
    master = cohort.needs_master()
    if agent_id != master.agent_id:
        cohort.mirror(agent_id)
        return replace(cohort, mirrors={key: value for key, value in cohort.mirrors.items() if key != agent_id})
    if not cohort.mirrors:
        return Cohort()
    prints = cohort_prints(cohort)
    del prints[agent_id]
    after = rebased(cohort, elected(prints), place)
    return without(after, place, agent_id)


def with_rebase(cohort: Cohort, place: Place, master_id: str | None) -> Cohort:
    """Make another agent the master: the named one, or the one that leaves the least to store."""
    cohort.needs_master()
    if master_id is None:
        master_id = elected(cohort_prints(cohort))
    return rebased(cohort, master_id, place)


def copied(cohort: Cohort, place: Place) -> Cohort:
    """Return the same cohort with every block put in another place; what is shared stays shared."""
    if cohort.master is None:
        return cohort
    master = cohort.master
    rows = place.put_master(master.rows.view(), master.block_type)
    copies: dict[int, Any] = {}
    mirrors: dict[str, Mirror] = {}
    for agent_id, mirror in cohort.mirrors.items():
        own = mirror.table.own
        if own is not None and id(own) not in copies:
            view = np.ascontiguousarray(own.rows.view())
            copies[id(own)] = place.put_own(own.indices, view, own.base, master.block_type)
        table = replace(mirror.table, own=None if own is None else copies[id(own)])
        mirrors[agent_id] = replace(mirror, table=table)
    return Cohort(replace(master, rows=rows), mirrors)
