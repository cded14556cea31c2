"""The three rounds: every agent's cache is computed, and each round becomes one generation of the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokendance import TokenDanceStorage
from tokendance.demo.decoder import Decoder, DecoderConfig, FloatArray, byte_tokens, cache_to_blocks
from tokendance.demo.dialogue import N_ROUNDS, SPEAKERS, private_text, shared_text
from tokendance.demo.disk import disk_usage
from tokendance.durable import TokenDanceStore

BLOCK_TOKENS = 16
MADE_BY = "tokendance demo"
# Starting up, then in each round the caches, the shared one included, and the commit.
N_STEPS = 1 + N_ROUNDS * (len(SPEAKERS) + 2)


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What one round was: its sizes, what its commit added to the folder on disk, and how long that took."""

    number: int
    generation: int
    shared_tokens: int
    tokens: dict[str, int]
    n_blocks: dict[str, int]
    dense_bytes: dict[str, int]
    disk_bytes: int
    commit_seconds: float


def play_rounds(
    storage: TokenDanceStore, config: DecoderConfig, dense_folder: Path, step_done: Callable[[str], None]
) -> list[RoundRecord]:
    """Compute and commit all rounds, and save the last one's caches whole.

    What everybody has heard is read once, and each agent's private text is read after it with attention over all
    of it, as an engine with prefix caching does. So the agents' shared tokens are the same bits, and what follows
    them differs.

    Parameters
    ----------
    storage : TokenDanceStore
        A ragged store without agents, open for writing.
    config : DecoderConfig
        Sizes of the decoder.
    dense_folder : Path
        Where each agent's blocks of the last round are saved as ``<agent>.npy``.
    step_done : callable
        Called with a few words after each of the ``N_STEPS`` steps.

    Returns
    -------
    list of RoundRecord
    """
    _start_kernels()
    decoder = Decoder(config)
    step_done("the decoder")
    shared = decoder.empty_cache()
    blocks: dict[str, FloatArray] = {}
    records: list[RoundRecord] = []
    for number in range(1, N_ROUNDS + 1):
        shared, tokens, blocks = _compute_round(decoder, shared, number, step_done)
        meta = {agent: _describe(config, number, tokens[agent]) for agent in blocks}
        before = disk_usage(Path(storage.path))
        started = time.perf_counter()
        storage.register_round(blocks, meta=meta)
        seconds = time.perf_counter() - started
        step_done(f"round {number}: committed")
        records.append(
            RoundRecord(
                number=number,
                generation=storage.generation,
                shared_tokens=shared.shape[3],
                tokens=tokens,
                n_blocks={agent: len(cache) for agent, cache in blocks.items()},
                dense_bytes={agent: cache.nbytes for agent, cache in blocks.items()},
                disk_bytes=disk_usage(Path(storage.path)).allocated - before.allocated,
                commit_seconds=seconds,
            )
        )
    save_dense(blocks, dense_folder)
    return records


def save_dense(blocks: dict[str, FloatArray], folder: Path) -> None:
    """Save every agent's blocks whole, as ``<agent>.npy``."""
    for agent, cache in blocks.items():
        np.save(folder / f"{agent}.npy", cache)


def _start_kernels() -> None:
    """Have the kernels compiled or loaded, 0.3 to 2 s each the first time, so that it is in no commit's time."""
    zeros = np.zeros((2, 1, 1, 2), dtype=np.float32)
    TokenDanceStorage(diff_threshold=0.0, ragged=True).register_round({"zeros": zeros, "ones": zeros + 1})


def _compute_round(
    decoder: Decoder, shared: FloatArray, number: int, step_done: Callable[[str], None]
) -> tuple[FloatArray, dict[str, int], dict[str, FloatArray]]:
    heard = byte_tokens(shared_text(number))
    shared = decoder.extend(shared, heard[shared.shape[3] :])
    step_done(f"round {number}: what everybody heard")
    tokens, blocks = {}, {}
    for speaker in SPEAKERS:
        cache = decoder.extend(shared, byte_tokens(private_text(speaker, number)))
        tokens[speaker.name] = cache.shape[3]
        blocks[speaker.name] = cache_to_blocks(cache, BLOCK_TOKENS)
        step_done(f"round {number}: {speaker.name}")
    return shared, tokens, blocks


def _describe(config: DecoderConfig, number: int, tokens: int) -> dict[str, str | int]:
    return {
        "made_by": MADE_BY,
        "round": number,
        "tokens": tokens,
        "block_tokens": BLOCK_TOKENS,
        "layers": config.n_layers,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
    }
