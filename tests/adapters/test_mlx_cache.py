"""Prompt caches as mlx-lm writes them, made here by the safetensors library: mlx itself runs on Apple's machines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paged_twins import DTYPES, blocks_of, lmcache_of, random_bits

import tokendance as td
from tokendance.adapters.cache_layout import META_KEY, CacheLayout
from tokendance.adapters.paged import load_lmcache
from tokendance.adapters.safetensors import import_agent, import_mlx_cache
from tokendance.errors import ShapeMismatchError

pytest.importorskip("safetensors")

from safetensors.numpy import save_file


def same(got: Any, expected: Any) -> bool:
    return got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()


@pytest.fixture
def storage() -> td.TokenDanceStorage:
    return td.TokenDanceStorage(diff_threshold=0.0, ragged=True)


def save_prompt_cache(path: Path, kv: Any, added: dict[str, str], **changes: str) -> None:
    """What `mlx_lm.models.cache.save_prompt_cache` writes of a list of KVCache: state, meta state, classes."""
    state = {f"{layer}.{side}": np.ascontiguousarray(kv[layer, side].swapaxes(0, 1)[None])
             for layer in range(len(kv)) for side in (0, 1)}  # fmt: skip
    metadata = {f"0.{layer}": "" for layer in range(len(kv))}
    metadata |= {f"1.{key}": value for key, value in added.items()}
    metadata |= {f"2.{layer}": "KVCache" for layer in range(len(kv))}
    changed = {key: value for key, value in (metadata | changes).items() if value is not None}
    save_file(state, path, changed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prompt_cache_of_mlx_lm_comes_in(storage: td.TokenDanceStorage, tmp_path: Path, dtype: str) -> None:
    kv, path = random_bits((12, 2, 21, 2, 4), dtype), tmp_path / "prompt.safetensors"
    added = {"model": "mlx-community/some-model", "chat_template": "{{ x }}"}
    save_prompt_cache(path, kv, added)
    assert import_mlx_cache(storage, path, "planner") is None
    assert same(load_lmcache(storage, "planner"), lmcache_of(kv))
    assert same(storage.reconstruct("planner"), blocks_of(kv, 16))
    assert storage.meta("planner")["mlx_lm"] == added
    assert CacheLayout.from_meta(storage.meta("planner")).n_tokens == 21
    save_prompt_cache(path, kv[:, :, :18], {})
    diff = import_mlx_cache(storage, path, "critic")
    assert diff is not None
    assert storage.meta("critic").keys() == {META_KEY}
    assert diff.n_diff_blocks == 24  # the second token block, cut short


@pytest.fixture
def prompt(tmp_path: Path) -> Callable[..., Path]:
    def make(kv: Any = None, **changes: Any) -> Path:
        save_prompt_cache(tmp_path / "p.safetensors", random_bits((2, 2, 9, 1, 4)) if kv is None else kv, {}, **changes)
        return tmp_path / "p.safetensors"

    return make


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"2.1": "QuantizedKVCache"}, "layer 1 is a 'QuantizedKVCache'; expected KVCache: quantized"),
        ({"2.0": "RotatingKVCache"}, "layer 0 is a 'RotatingKVCache'; expected KVCache: a rotating cache has dropped"),
        ({"2.0": "__import__('os').system('x')"}, "expected KVCache: unknown kinds are refused"),
        ({"2.1": None}, "holds 4 tensors for 1 layers"),
        ({"2.2": "KVCache"}, "holds 4 tensors for 3 layers"),
        ({"2.0": None, "2.1": None}, "names no cache classes"),
        ({"2.1": None, "2.7": "KVCache"}, "holds 4 tensors for 2 layers"),
        ({"0.0": "3"}, "expected none, or one number of tokens up to 9"),
        ({"0.0": "10", "0.1": "10"}, "one number of tokens up to 9"),
        ({"0.0": "-1", "0.1": "-1"}, "one number of tokens up to 9"),
        ({"0.2": "9"}, "expected none"),
    ],
)
def test_other_prompt_caches_are_refused(prompt: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    storage = td.TokenDanceStorage()
    with pytest.raises(ValueError, match=message) as caught:
        import_mlx_cache(storage, prompt(**changes), "planner")
    assert "\n" not in str(caught.value)
    assert storage.agents == []


def test_a_prompt_cache_that_says_its_length_is_cut_to_it(prompt: Callable[..., Path]) -> None:
    storage, kv = td.TokenDanceStorage(diff_threshold=0.0), random_bits((2, 2, 9, 1, 4))
    import_mlx_cache(storage, prompt(kv, **{"0.0": "7", "0.1": "7"}), "planner")
    assert same(load_lmcache(storage, "planner"), lmcache_of(kv[:, :, :7]))


def test_a_prompt_cache_is_no_exported_agent(prompt: Callable[..., Path], tmp_path: Path) -> None:
    storage = td.TokenDanceStorage()
    with pytest.raises(ValueError, match="use import_mlx_cache for a prompt cache"):
        import_agent(storage, prompt(), "planner")
    save_file({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)}, tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 tensors \('a', 'b'\); expected one, 'blocks'"):
        import_agent(storage, tmp_path / "p.safetensors", "planner")
    with pytest.raises(ShapeMismatchError, match="at least 2D"):
        save_file({"blocks": np.zeros(3, np.float32)}, tmp_path / "p.safetensors")
        import_agent(storage, tmp_path / "p.safetensors", "planner")
    assert storage.agents == []
