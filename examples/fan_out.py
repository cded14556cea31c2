"""Send out sub-agents that start with all their parent knows, without copying it, and keep the best of them.

    python examples/fan_out.py [FOLDER] [N_SUBAGENTS]

A fork is a copy of a block table: its cost does not depend on how long the parent's context is. Each sub-agent then
stores the blocks in which it goes its own way. The fan-out is one transaction, so that nobody ever sees half of it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import tokendance as td

BLOCK = (2, 16, 64)


def thoughts(n_blocks: int, seed: int) -> np.ndarray:
    """Stand in for what an agent's model adds to its cache."""
    return np.random.default_rng(seed).standard_normal((n_blocks, *BLOCK)).astype(np.float16)


def fan_out(store: td.TokenDanceStore, parent: str, n_subagents: int) -> list[str]:
    """Fork `n_subagents` off `parent`."""
    names = [f"{parent}/{number}" for number in range(n_subagents)]
    with store.transaction():
        for name in names:
            store.fork(parent, name)
    return names


def explore(store: td.TokenDanceStore, name: str, seed: int) -> float:
    """Let one sub-agent go its own way; return how well it did."""
    context = store.reconstruct(name, copy=False)
    own = thoughts(n_blocks=4, seed=seed)
    store.register_mirror(name, np.concatenate([context, own]))
    return float(np.random.default_rng(seed).random())


def main() -> None:
    """Fork, explore, choose, and clean up."""
    n_subagents = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / "fan-out.td"
        with td.open(path, diff_threshold=0, ragged=True) as store:
            store.register_master("planner", thoughts(n_blocks=512, seed=0))
            names = fan_out(store, "planner", n_subagents)
            print(f"{n_subagents} forks of 512 blocks: {store.history()[-1].written_bytes} bytes of blocks written")

            scores = {name: explore(store, name, seed) for seed, name in enumerate(names, start=1)}
            stats = store.stats()
            print(
                f"explored: {stats['diff_blocks_total']} blocks of their own, {stats['byte_ratio']:.1f} times smaller"
            )

            best = max(scores, key=lambda name: scores[name])
            with store.transaction():
                for name in scores.keys() - {best}:
                    store.remove(name)
                store.tag("explored")
            print(f"kept {best}; agents are now {', '.join(store.agents)}")
            assert len(store.reconstruct(best)) == 516


if __name__ == "__main__":
    main()
