"""``tokendance info``, ``log`` and ``diff``: what is in a store."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from tokendance.adapters.cache_layout import CacheLayout
from tokendance.cli.arguments import AgentArgument, JsonOption, OtherAgentArgument, StoreArgument
from tokendance.cli.screen import in_time, print_facts, print_json, print_table, progress, say
from tokendance.cli.stores import opened
from tokendance.plots.wording import count_of, in_bytes
from tokendance.validate import check_blocks

__all__ = ["diff", "info", "log"]

_STEP_BYTES = 32 << 20
_RANGES_SHOWN = 12


def info(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Show a store's agents, sizes, ratios and identity.

    A cohort ratio is what all caches would take whole over what is stored, and can never exceed the number of agents. A
    mirror's ratio is its one cache over what it alone adds.
    """
    with opened(store) as storage:
        facts = _facts(storage)
    if as_json:
        print_json(facts)
    else:
        _print_info(facts)


def _facts(storage: td.TokenDanceStore) -> dict[str, Any]:
    stats = storage.stats()
    sample = None if storage.master_id is None else storage.reconstruct(storage.master_id, blocks=slice(0, 0))
    block_bytes = 0 if sample is None else int(np.prod(sample.shape[1:])) * sample.itemsize
    agents = [_agent_facts(agent, stats, block_bytes) for agent in storage.agents]
    keys = ("logical_bytes", "stored_bytes", "byte_ratio", "compression_ratio")
    return {
        "store": storage.path,
        "generation": storage.generation,
        "tags": storage.tags,
        "identity": storage.identity,
        "diff_threshold": storage.diff_threshold,
        "ragged": storage.ragged,
        "dtype": None if sample is None else sample.dtype.name,
        "block_shape": None if sample is None else list(sample.shape[1:]),
        "block_bytes": block_bytes,
        "cohort": {key: stats[key] for key in keys} | {"n_agents": len(agents)},
        "agents": agents,
    }


def _agent_facts(agent: str, stats: dict[str, Any], block_bytes: int) -> dict[str, Any]:
    if agent == stats["master_id"]:
        n_bytes = stats["master_blocks"] * block_bytes
        own = {"n_blocks": stats["master_blocks"], "n_own_blocks": stats["master_blocks"], "max_dropped_norm": 0.0}
        return (
            {"agent": agent, "master": True}
            | own
            | {
                "logical_bytes": n_bytes,
                "stored_bytes": n_bytes,
                "mirror_ratio": None,
            }
        )
    mirror = stats["mirrors"][agent]
    return {
        "agent": agent,
        "master": False,
        "n_blocks": mirror["n_blocks"],
        "n_own_blocks": mirror["n_diff_blocks"],
        "max_dropped_norm": mirror["max_dropped_norm"],
        "logical_bytes": mirror["logical_bytes"],
        "stored_bytes": mirror["stored_bytes"],
        "mirror_ratio": mirror["byte_ratio"],
    }


def _print_info(facts: dict[str, Any]) -> None:
    agents, cohort = facts["agents"], facts["cohort"]
    tags = ", ".join(f"{name} ({number})" for name, number in sorted(facts["tags"].items()))
    identity = ", ".join(f"{key}={value}" for key, value in (facts["identity"] or {}).items())
    shape = "none yet"
    if facts["dtype"]:
        shape = f"{facts['dtype']} {tuple(facts['block_shape'])}, {in_bytes(facts['block_bytes'])} each"
    threshold = facts["diff_threshold"]
    about_threshold = "every differing bit is kept" if threshold == 0 else "smaller differences (L2 norm) are dropped"
    ratio = f"{cohort['byte_ratio']:.2f}, can never exceed {cohort['n_agents']} for {count_of(len(agents), 'agent')}"
    print_facts(
        {
            "store": facts["store"],
            "generation": str(facts["generation"]),
            "tags": tags or "none",
            "identity": identity or "not recorded",
            "blocks": shape,
            "threshold": f"{threshold:g}, {about_threshold}",
            "lengths": "may differ" if facts["ragged"] else "all agents the same",
            "dense": f"{in_bytes(cohort['logical_bytes'])}, {count_of(len(agents), 'cache')} whole",
            "stored": f"{in_bytes(cohort['stored_bytes'])}, the master and each mirror's own blocks",
            "cohort ratio": ratio if agents else "no agents yet",
            "mirror ratios": _mirror_ratios(agents),
        }
    )
    if agents:
        _print_agents(agents)


def _mirror_ratios(agents: Sequence[dict[str, Any]]) -> str:
    found = [one["mirror_ratio"] for one in agents if not one["master"]]
    if not found:
        return "no mirrors yet"
    return f"{min(found):.1f} to {max(found):.1f}, one cache over what its mirror adds"


def _print_agents(agents: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            one["agent"] + (" (master)" if one["master"] else ""),
            f"{one['n_blocks']:,}",
            f"{one['n_own_blocks']:,}",
            in_bytes(one["logical_bytes"]),
            in_bytes(one["stored_bytes"]),
            "-" if one["master"] else f"{one['mirror_ratio']:.1f}",
        )
        for one in agents
    ]
    headers = ("agent", "blocks", "own", "dense", "stored", "mirror ratio", "of dense")
    bars = [(one["stored_bytes"], one["logical_bytes"]) for one in agents]
    print_table(headers, rows, left=headers[-1:], bars=bars)


def log(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List the generations of a store, oldest first."""
    with opened(store) as storage:
        history = storage.history()
        facts = {"store": storage.path, "generations": [generation._asdict() for generation in history]}
    if as_json:
        print_json(facts)
        return
    rows = [
        (
            str(one.number),
            in_time(one.time),
            str(one.parent or "-"),
            ", ".join(one.tags) or "-",
            f"{len(one.agents):,}",
            in_bytes(one.written_bytes),
        )
        for one in history
    ]
    print_table(("generation", "time", "made from", "tags", "agents", "written"), rows, left=("time", "tags"))


def diff(store: StoreArgument, agent: AgentArgument, other: OtherAgentArgument, as_json: JsonOption = False) -> None:
    """Show in which blocks two agents differ, and by how much.

    Only blocks that are not stored as one and the same are read.
    """
    with opened(store) as storage:
        compared, differing, norms = _differing(storage, agent, other)
        layout = _layout_of(storage, agent)
        facts: dict[str, Any] = {
            "store": storage.path,
            "generation": storage.generation,
            "agents": [agent, other],
            "n_blocks": [len(storage._cohort.sources(one)[0]) for one in (agent, other)],
            "n_compared": compared,
            "n_differing": len(differing),
            "ranges": _ranges(differing),
            "largest_norm": float(norms.max(initial=0.0)),
            "first_token": None if layout is None else _first_token(differing, layout),
        }
    if as_json:
        print_json(facts)
    else:
        _print_diff(facts)


def _layout_of(storage: td.TokenDanceStore, agent: str) -> CacheLayout | None:
    try:
        return CacheLayout.from_meta(storage.meta(agent))
    except ValueError:
        return None


def _first_token(differing: NDArray[np.int64], layout: CacheLayout) -> int | None:
    if not len(differing):
        return None
    return int(differing[0]) // (2 * layout.n_layers) * layout.block_tokens


def _differing(
    storage: td.TokenDanceStore, agent: str, other: str
) -> tuple[int, NDArray[np.int64], NDArray[np.float64]]:
    """Return how many blocks both have, which of these differ, and the norms of the differences."""
    from tokendance.kernels.diff import SAME_BITS, block_norms

    (left, left_own), (right, right_own) = (storage._cohort.sources(one) for one in (agent, other))
    compared = min(len(left), len(right))
    same = left[:compared] == right[:compared]
    if left_own is not right_own:
        same &= left[:compared] >= 0
    candidates = np.flatnonzero(~same)
    sample = storage.reconstruct(agent, blocks=slice(0, 0))
    row_bytes = int(np.prod(sample.shape[1:])) * sample.itemsize
    step = max(_STEP_BYTES // row_bytes, 1)
    norms = np.full(len(candidates), SAME_BITS)
    with progress("comparing") as show:
        for start in range(0, len(candidates), step):
            chosen = candidates[start : start + step]
            ours, theirs = (check_blocks(storage.reconstruct(one, blocks=chosen)).rows for one in (agent, other))
            norms[start : start + step] = block_norms(ours, theirs, sample.dtype.name)
            show((start + len(chosen)) * row_bytes, len(candidates) * row_bytes)
    different = norms != SAME_BITS
    return compared, candidates[different], norms[different]


def _ranges(positions: NDArray[np.int64]) -> list[list[int]]:
    """Return runs of positions as first and last.

    Examples
    --------
    >>> _ranges(np.array([1, 2, 3, 7]))
    [[1, 3], [7, 7]]
    """
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1).tolist()
    return [[int(positions[a]), int(positions[b - 1])] for a, b in pairwise([*starts, len(positions)])]


def _print_diff(facts: dict[str, Any]) -> None:
    (one, other), lengths = facts["agents"], facts["n_blocks"]
    if facts["n_differing"]:
        said = f"{facts['n_differing']:,} of {count_of(facts['n_compared'], 'block')} differ"
        say(f"{one} and {other}: {said}, by an L2 norm of up to {facts['largest_norm']:g}")
        runs = [f"{first}" if first == last else f"{first}-{last}" for first, last in facts["ranges"]]
        more = f" and {len(runs) - _RANGES_SHOWN:,} more runs" if len(runs) > _RANGES_SHOWN else ""
        say(f"blocks {', '.join(runs[:_RANGES_SHOWN])}{more}")
        if facts["first_token"] is not None:
            say(f"the first is the block of token {facts['first_token']:,}")
    else:
        say(f"{one} and {other}: all {count_of(facts['n_compared'], 'block')} that both have are the same, bit for bit")
    if lengths[0] != lengths[1]:
        longer = one if lengths[0] > lengths[1] else other
        say(f"{longer} has {count_of(abs(lengths[0] - lengths[1]), 'block')} more")
