"""Take sequences out of a paged engine's memory, park them, and put them back into other pages.

    python examples/engine_pages.py [FOLDER]

The arrays have the shape of vLLM's: per layer ``(2, num_blocks, block_size, kv_heads, head_dim)``, and for each
sequence a table of the pages that hold it. Only numpy is needed; torch tensors on the CPU are taken in the same places.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import tokendance as td
from tokendance.adapters.paged import load_pages, pages_to_blocks

LAYERS, PAGES, PAGE_TOKENS, KV_HEADS, HEAD_SIZE = 4, 96, 16, 2, 64
TOKENS = 500  # of each sequence: 32 pages, the last one partly full


def an_engine(seed: int) -> list[np.ndarray]:
    """Memory of an engine: every page of every layer, with whatever was left there."""
    numbers = np.random.default_rng(seed)
    shape = (2, PAGES, PAGE_TOKENS, KV_HEADS, HEAD_SIZE)
    return [numbers.standard_normal(shape).astype(np.float16) for _ in range(LAYERS)]


def running_sequences(layers: list[np.ndarray]) -> dict[str, list[int]]:
    """Two sequences of one engine that have read the same text but for its last pages; return their block tables."""
    free = np.random.default_rng(1).permutation(PAGES).tolist()
    tables = {"planner": free[:32], "critic": free[32:64]}
    for layer in layers:
        layer[:, tables["critic"][:28]] = layer[:, tables["planner"][:28]]
    return tables


def main() -> None:
    """Park both sequences in one step, and resume one of them in another engine."""
    layers = an_engine(seed=0)
    tables = running_sequences(layers)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / "pages.td"
        with td.open(path, diff_threshold=0, ragged=True) as store:
            taken = {name: pages_to_blocks(layers, table, TOKENS, order="2,n") for name, table in tables.items()}
            store.register_round(
                {name: blocks for name, (blocks, _) in taken.items()},
                meta={name: layout.to_meta() for name, (_, layout) in taken.items()},
            )
            print(f"parked {len(tables)} sequences of {TOKENS} tokens, {store.compression_ratio():.2f} times smaller")

        other = an_engine(seed=5)
        untouched = [layer.copy() for layer in other]
        table = list(range(40, 72))
        with td.open(path, "r") as store:
            n_tokens = load_pages(store, "critic", other, table, order="2,n")
        print(f"restored {n_tokens} tokens of critic into pages {table[0]} to {table[-1]}")

    last = TOKENS - 31 * PAGE_TOKENS
    outside = [page for page in range(PAGES) if page not in table]
    for before, came, was in zip(layers, other, untouched, strict=True):
        assert np.array_equal(came[:, table[:31]], before[:, tables["critic"][:31]])
        assert np.array_equal(came[:, table[31], :last], before[:, tables["critic"][31], :last])
        assert np.array_equal(came[:, outside], was[:, outside])
    print("every bit of the sequence is there, and no other page was touched")


if __name__ == "__main__":
    main()
