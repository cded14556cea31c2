"""Six agents of a real model: saved here, taken out by another process, which goes on decoding where they stood."""

import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from adapters.llama import DTYPES, VOCABULARY, greedy, llama, read  # noqa: E402
from transformers import DynamicCache  # noqa: E402

import tokendance as td  # noqa: E402
from tokendance.adapters.transformers import register_caches  # noqa: E402

TESTS = Path(__file__).resolve().parents[1]
PREFIX = 384
TAILS = {"planner": 1, "coder": 16, "critic": 23, "tester": 40, "writer": 64, "judge": 101}
AGENTS = [(kind, agent) for kind in ("ragged", "padded") for agent in TAILS]


def six_agents(model: Any) -> tuple[dict[str, DynamicCache], dict[str, int]]:
    """The prefix is read once and shared, as an engine with a prefix cache does it."""
    words = random.Random(7)
    shared = DynamicCache(config=model.config)
    read(model, [words.randrange(VOCABULARY) for _ in range(PREFIX)], shared)
    caches = {agent: copy.deepcopy(shared) for agent in TAILS}
    following = {
        agent: read(model, [words.randrange(VOCABULARY) for _ in range(tail)], caches[agent])
        for agent, tail in TAILS.items()
    }
    return caches, following


def save(folder: Path, dtype: str) -> dict[str, list[int]]:
    """Save the agents in a ragged store and in a padded one, and what they were beside; return what they say next."""
    model = llama(dtype)
    caches, following = six_agents(model)
    for kind in ("ragged", "padded"):
        with td.open(folder / f"{dtype}-{kind}.td", "w", diff_threshold=0.0, ragged=kind == "ragged") as storage:
            diffs = register_caches(storage, caches)
            own = sum(diff.n_diff_blocks for diff in diffs.values())
            assert own < (sum(TAILS.values()) // 16 + 3 * len(TAILS)) * 6, "the shared prefix is stored once"
    originals = {
        agent: {"next": following[agent], "layers": [(layer.keys, layer.values) for layer in cache.layers]}
        for agent, cache in caches.items()
    }
    torch.save(originals, folder / f"{dtype}.pt")
    return {agent: greedy(model, cache, following[agent]) for agent, cache in caches.items()}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the agents said here, and what the other process reports. One process for all: torch loads for seconds."""
    folder = tmp_path_factory.mktemp("llama")
    here = {dtype: save(folder, dtype) for dtype in DTYPES}
    command = [sys.executable, "-m", "adapters.resume_child", str(folder)]
    child = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    return here, json.loads(child.stdout)


@pytest.mark.parametrize(("kind", "agent"), AGENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_process_goes_on_where_the_agent_stood(said: Any, dtype: str, kind: str, agent: str) -> None:
    here, there = said
    resumed = there[dtype][f"{kind} {agent}"]
    assert resumed["identical"]
    assert resumed["tokens"] == PREFIX + TAILS[agent]
    assert resumed["decoded"] == here[dtype][agent]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_agents_say_different_things(said: Any, dtype: str) -> None:
    """Otherwise equal answers would prove little."""
    here, _ = said
    assert len({tuple(answer) for answer in here[dtype].values()}) == len(TAILS)
    assert all(len(set(answer)) > 4 for answer in here[dtype].values())
