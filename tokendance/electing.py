"""Which agent the master should be: the one that leaves the least to store."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from tokendance.cohort import Cohort
from tokendance.kernels.loading import loading

__all__ = ["block_prints", "cohort_prints", "elected"]


def block_prints(rows: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint32]:
    """Return a crc32c of each row of bytes, ``(n_blocks,)`` uint32; one pass over ``(n_blocks, block_bytes)`` uint8."""
    with loading:
        import google_crc32c

    return np.fromiter((google_crc32c.value(row) for row in rows), np.uint32)


def cohort_prints(cohort: Cohort) -> dict[str, NDArray[np.uint32]]:
    """Return the prints of every agent's blocks; reads the master and the own blocks once."""
    master_prints = block_prints(cohort.needs_master().rows.view())
    prints: dict[str, NDArray[np.uint32]] = {}
    for agent_id in cohort.agents():
        sources, own = cohort.sources(agent_id)
        own_prints = block_prints(own.rows.view()) if own is not None else np.empty(0, np.uint32)
        both = np.concatenate((master_prints, own_prints))
        prints[agent_id] = both[np.where(sources >= 0, sources, len(master_prints) + ~sources)]
    return prints


def elected(prints: Mapping[str, NDArray[np.uint32]]) -> str:
    """Return the agent that, as master, leaves the fewest blocks to store; the first of those that tie.

    Blocks are compared by a 32-bit print, position by position: a collision could make the choice worse by
    a block, never wrong. Costs one read of every cache and one sort of N prints at each block position,
    for any number of agents; comparing all pairs would read N (N - 1) / 2 pairs of caches.

    Examples
    --------
    >>> elected({"a": np.array([1, 9]), "b": np.array([1, 2]), "c": np.array([1, 2])})
    'b'
    """
    names = list(prints)
    lengths = np.array([len(prints[name]) for name in names])
    alike = np.zeros(len(names), np.int64)
    for position in range(int(lengths.max(initial=0))):
        here = np.flatnonzero(lengths > position)
        column = np.array([prints[names[agent]][position] for agent in here])
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        alike[here] += counts[inverse] - 1
    # A master stores its own length, and of each other agent what it has not at the same position.
    stored = lengths + (lengths.sum() - lengths) - alike
    return names[int(np.argmin(stored))]
