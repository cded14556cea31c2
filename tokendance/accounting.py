"""What is stored, what it would take without mirrors, and the ratios of the two."""

from typing import Any

from tokendance.cohort import Cohort

__all__ = ["compression_ratio", "statistics"]


def _unique_own(cohort: Cohort) -> list[Any]:
    # Forked agents share their own blocks, which are there once.
    found = {id(mirror.table.own): mirror.table.own for mirror in cohort.mirrors.values() if mirror.table.own}
    return list(found.values())


def compression_ratio(cohort: Cohort) -> float:
    """Return all agents' blocks over the blocks that are stored; 1.0 without a master."""
    if cohort.master is None:
        return 1.0
    logical = sum(cohort.n_blocks(agent_id) for agent_id in cohort.agents())
    stored = cohort.master.rows.n_rows + sum(own.rows.n_rows for own in _unique_own(cohort))
    return logical / stored if stored else float(1 + len(cohort.mirrors))


def statistics(cohort: Cohort, threshold: float, extra_bytes: int = 0) -> dict[str, Any]:
    """Return the numbers of `TokenDanceStorage.stats`.

    Parameters
    ----------
    extra_bytes : int
        What is stored beside blocks, positions and their metadata: the manifest.
    """
    master = cohort.master
    block_bytes = master.rows.row_bytes if master else 0
    mirrors: dict[str, dict[str, Any]] = {}
    for agent_id, mirror in cohort.mirrors.items():
        logical = mirror.table.n_blocks * block_bytes
        stored = mirror.table.own.stored_bytes if mirror.table.own else 0
        mirrors[agent_id] = {
            "n_blocks": mirror.table.n_blocks,
            "n_diff_blocks": mirror.table.n_own,
            "max_dropped_norm": mirror.dropped,
            "logical_bytes": logical,
            "stored_bytes": stored,
            "byte_ratio": logical / stored if stored else float("inf"),
        }
    master_blocks = master.rows.n_rows if master else 0
    logical = master_blocks * block_bytes + sum(int(one["logical_bytes"]) for one in mirrors.values())
    stored = extra_bytes + (master.rows.stored_bytes if master else 0)
    stored += sum(own.stored_bytes for own in _unique_own(cohort))
    return {
        "master_id": master.agent_id if master else "",
        "master_blocks": master_blocks,
        "n_mirrors": len(cohort.mirrors),
        "diff_blocks_total": sum(mirror.table.n_own for mirror in cohort.mirrors.values()),
        "compression_ratio": compression_ratio(cohort),
        "diff_threshold": threshold,
        "logical_bytes": logical,
        "stored_bytes": stored,
        "byte_ratio": logical / stored if logical and stored else 1.0,
        "mirrors": mirrors,
    }
