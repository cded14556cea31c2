"""Park agents, let the process end, and go on with them in another one.

    python examples/resume_agents.py [FOLDER]

This process makes the caches of three agents, parks them in a store and forgets them. It then starts a second process,
which takes one agent out by mapping files, lets it read 32 tokens more, and parks it again. That writes the new blocks
only. The first process opens the store once more and sees what became of the agent.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import tokendance as td

IDENTITY = {"model": "my-model", "revision": "1", "dtype": "float16"}
BLOCK = (2, 16, 64)  # key-value heads, tokens, head size; 4 KiB, a page


def read_tokens(n_blocks: int, seed: int) -> np.ndarray:
    """Stand in for a model that reads text: return the blocks that it would add to a cache."""
    return np.random.default_rng(seed).standard_normal((n_blocks, *BLOCK)).astype(np.float16)


def park(path: Path) -> None:
    """Make three agents that share most of what they read, and store them."""
    shared = read_tokens(n_blocks=256, seed=0)
    agents = {"planner": shared}
    for number, name in enumerate(["writer", "critic"], start=1):
        agents[name] = np.concatenate([shared, read_tokens(n_blocks=8, seed=number)])
    with td.open(path, diff_threshold=0, ragged=True, identity=IDENTITY) as store:
        store.register_round(agents, meta={name: {"turn": 1} for name in agents})
        print(f"parked {', '.join(store.agents)}: {store.stats()['byte_ratio']:.1f} times smaller than three caches")


def resume(path: Path, agent: str) -> None:
    """Take an agent out, go on with it, and put it back. Runs in a process that has seen none of it."""
    with td.open(path, "r+", identity=IDENTITY) as store:  # a store of another model is refused here
        cache = store.reconstruct(agent, copy=False)  # mapped: nothing is read until it is used
        turn = store.meta(agent)["turn"] + 1
        longer = np.concatenate([cache, read_tokens(n_blocks=2, seed=9)])
        store.register_mirror(agent, longer, meta={"turn": turn})
        written = store.history()[-1].written_bytes
        print(f"resumed {agent} at {len(cache)} blocks, parked it at {len(longer)}: {written:,} bytes written")


def main() -> None:
    """Park here, resume in another process, and look at the result here."""
    if sys.argv[1:2] == ["resume"]:
        resume(Path(sys.argv[2]), sys.argv[3])
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / "agents.td"
        park(path)
        sys.stdout.flush()
        subprocess.run([sys.executable, __file__, "resume", str(path), "critic"], check=True)
        with td.open(path, "r", identity=IDENTITY) as store:
            critic = store.reconstruct("critic")
            assert np.array_equal(critic[-2:], read_tokens(n_blocks=2, seed=9))
            print(f"critic has {len(critic)} blocks now, at turn {store.meta('critic')['turn']}")


if __name__ == "__main__":
    main()
