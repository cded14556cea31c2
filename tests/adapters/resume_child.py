"""Child of test_resume_llama: open each store in a new process, load every agent, compare, and go on decoding."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from adapters.llama import DTYPES, greedy, llama

import tokendance as td
from tokendance.adapters.transformers import load_cache


def same_bits(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return (
        got.dtype == expected.dtype
        and got.shape == expected.shape
        and got.is_contiguous()
        and torch.equal(got.view(torch.uint8), expected.view(torch.uint8))
    )


def resume(folder: Path, dtype: str) -> dict[str, Any]:
    expected = torch.load(folder / f"{dtype}.pt", weights_only=True)
    model = llama(dtype)
    found: dict[str, Any] = {}
    for kind in ("ragged", "padded"):
        with td.open(folder / f"{dtype}-{kind}.td", mode="r") as storage:
            for agent, original in expected.items():
                cache = load_cache(storage, agent)
                pairs = [(layer.keys, layer.values) for layer in cache.layers]
                identical = len(pairs) == len(original["layers"]) and all(
                    same_bits(got, kept)
                    for pair, kept_pair in zip(pairs, original["layers"], strict=True)
                    for got, kept in zip(pair, kept_pair, strict=True)
                )
                tokens = cache.get_seq_length()
                found[f"{kind} {agent}"] = {
                    "identical": identical,
                    "tokens": tokens,
                    "decoded": greedy(model, cache, original["next"]),
                }
    return found


if __name__ == "__main__":
    where = Path(sys.argv[1])
    json.dump({dtype: resume(where, dtype) for dtype in DTYPES}, sys.stdout)
