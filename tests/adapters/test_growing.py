"""A growing agent of a real model, registered again: the bytes that its store writes, file by file."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from adapters.llama import read  # noqa: E402
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

import tokendance as td  # noqa: E402
from tokendance.adapters.transformers import load_cache, register_caches  # noqa: E402

# 128 KiB a token block of 16, 8 KiB a block, so that a mirror of 1,600 tokens has several chunks of 4 MiB.
LAYERS, KV_HEADS, HEAD_DIM, TOKENS, MORE = 8, 2, 64, 1600, 50
TOKEN_BYTES = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
CHUNK_BYTES = 4 << 20  # of a mirror; the master's are of up to 16 MiB
METADATA_BYTES = 64 << 10


@pytest.fixture(scope="module")
def model() -> Any:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    torch.manual_seed(5)
    return LlamaForCausalLM(config).eval()


def grown(model: Any, cache: DynamicCache, n_tokens: int, seed: int) -> DynamicCache:
    words = torch.randint(64, (n_tokens,), generator=torch.Generator().manual_seed(seed))
    read(model, words.tolist(), cache)
    return cache


def written(path: Path, seen: dict[int, int]) -> int:
    """The bytes of files that were not there before: an old file under a second name is no new one."""
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    new = {one.st_ino: one.st_blocks * 512 for one in files if one.st_ino not in seen}
    seen |= dict.fromkeys(new, 0)
    return sum(new.values())


def assert_same(back: DynamicCache, cache: DynamicCache) -> None:
    for got, expected in zip(back.layers, cache.layers, strict=True):
        assert torch.equal(got.keys, expected.keys)
        assert torch.equal(got.values, expected.values)


# Who is the master, who grows, and how much of what was there may be written again in the first step, and in the next.
CASES = {
    "the mirror": ("critic", ["planner"], CHUNK_BYTES, CHUNK_BYTES),
    "the master": ("critic", ["critic"], 0, 2 * MORE * TOKEN_BYTES),
    "a master that is shorter than its mirror": ("planner", ["planner"], 1000 * TOKEN_BYTES, 2 * MORE * TOKEN_BYTES),
    "both": ("critic", ["critic", "planner"], CHUNK_BYTES, CHUNK_BYTES),
}


@pytest.mark.parametrize(("master", "growing", "again_first", "again_later"), CASES.values(), ids=CASES)
def test_a_growing_agent_writes_its_new_blocks_and_the_chunk_they_begin_in(
    model: Any, tmp_path: Path, master: str, growing: list[str], again_first: int, again_later: int
) -> None:
    lengths = {"critic": TOKENS, "planner": 1000}
    caches = {agent: grown(model, DynamicCache(config=model.config), n, seed=n) for agent, n in lengths.items()}
    path, seen = tmp_path / "round.td", dict[int, int]()
    with td.open(path, ragged=True, diff_threshold=0.0) as storage:
        register_caches(storage, {master: caches[master]})
        register_caches(storage, caches)
        # Nothing pads the shorter agent but the rest of its last block of 16 tokens.
        assert written(path, seen) < (1008 + TOKENS) * TOKEN_BYTES * 1.02
        for step in range(3):
            for agent in growing:
                grown(model, caches[agent], MORE, seed=2 + step)
            register_caches(storage, {agent: caches[agent] for agent in growing})
            new = len(growing) * (MORE + 16) * TOKEN_BYTES
            assert written(path, seen) <= new + (again_later if step else again_first) + METADATA_BYTES
        for agent, cache in caches.items():
            assert_same(load_cache(storage, agent), cache)
