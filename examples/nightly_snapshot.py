"""Snapshot agents every night, keep a week of nights, and give back the disk space of older ones.

    python examples/nightly_snapshot.py [FOLDER] [N_NIGHTS]

The master is what all agents were given to read. It stays as it is, so that a snapshot writes only the blocks in which
agents differ from it; a master that changes every day is written anew every day. A tag keeps a night, and names it for
`tokendance.open(..., at=...)`. Taking a tag away and collecting removes what only that night needed; readers that
still have it open keep it.
"""

import datetime as dt
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import tokendance as td

NIGHTS_KEPT = 7
BLOCK = (2, 16, 64)


def a_day_passes(caches: Mapping[str, np.ndarray], day: int) -> dict[str, np.ndarray]:
    """Stand in for a day of work: the cache of each agent changes in three blocks."""
    numbers = np.random.default_rng(day)
    changed = {name: cache.copy() for name, cache in caches.items()}
    for name in sorted(changed.keys() - {"context"}):
        changed[name][numbers.choice(len(changed[name]), 3, replace=False)] += 1
    return changed


def snapshot(path: Path, caches: Mapping[str, np.ndarray], night: str) -> None:
    """Store the agents under tonight's name, and let go of nights that are too old."""
    with td.open(path, diff_threshold=0) as store:
        with store.transaction():  # agents and tag: one state, or none
            store.register_round(caches, master="context")
            store.tag(night)
        written = store.history()[-1].written_bytes
        for old in sorted(store.tags)[:-NIGHTS_KEPT]:
            store.untag(old)
        store.gc()
    found = td.verify(path)  # every byte of every night, before anybody needs one
    if not found.ok:
        raise SystemExit(f"{path} is damaged: {found.findings[0].problem}")
    print(f"{night}: {written:>9,} bytes written, {size_of(path):>11,} bytes in all")


def size_of(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    """Play some nights, and look back at the oldest that is kept."""
    n_nights = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    first = dt.date(2026, 1, 1)
    start = np.random.default_rng(0).standard_normal((512, *BLOCK)).astype(np.float16)
    caches = {name: start.copy() for name in ("context", "planner", "writer", "critic")}
    kept = {}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / "nights.td"
        for day in range(n_nights):
            caches = a_day_passes(caches, day)
            night = (first + dt.timedelta(days=day)).isoformat()
            kept[night] = caches
            snapshot(path, caches, night)

        with td.open(path, "r") as store:
            oldest, *others = sorted(store.tags)
        print(f"{1 + len(others)} nights are kept, from {oldest}")
        with td.open(path, "r", at=oldest) as store:
            for name, cache in kept[oldest].items():
                assert np.array_equal(store.reconstruct(name), cache)
        print(f"all agents of {oldest} are what they were")


if __name__ == "__main__":
    main()
