"""The identity that a store gets from a model of transformers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tokendance as td
from tokendance.adapters.model_identity import identity_of
from tokendance.errors import IdentityMismatchError


def test_no_framework_is_imported() -> None:
    code = (
        "import sys, tokendance.adapters.model_identity; print({'torch', 'transformers', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("what", [None, "llama", {"layers": 2}, 3, type("Config", (), {"num_hidden_layers": 2})()])
def test_what_is_no_model_is_refused(what: Any) -> None:
    with pytest.raises(TypeError, match="expected a model of transformers or its config") as caught:
        identity_of(what)
    assert "\n" not in str(caught.value)


@pytest.fixture
def transformers() -> Any:
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def test_a_config_says_what_makes_a_cache(transformers: Any) -> None:
    config = transformers.LlamaConfig(
        num_hidden_layers=3,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
    )
    expected = {
        "architecture": "llama",
        "layers": 3,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "rope_type": "linear",
        "rope_theta": 5000.0,
        "rope_factor": 2.0,
    }
    assert identity_of(config) == expected
    said = {"model": "mine", "revision": "1", "layers": 4}
    assert identity_of(config, **said) == expected | said


def test_heads_that_are_not_said_follow_from_what_is(transformers: Any) -> None:
    found = identity_of(transformers.GPT2Config())
    assert (found["architecture"], found["layers"], found["kv_heads"], found["head_dim"]) == ("gpt2", 12, 12, 64)
    assert not [key for key in found if key.startswith("rope")]
    gemma = identity_of(transformers.Gemma3Config())
    assert gemma["architecture"] == "gemma3_text"
    assert gemma["head_dim"] == 256
    assert gemma["rope_sliding_attention_rope_theta"] == 10_000.0
    assert gemma["rope_full_attention_rope_theta"] == 1_000_000.0


def test_a_store_opens_for_its_model_and_for_no_other(transformers: Any, tmp_path: Path) -> None:
    from adapters.llama import llama, read
    from transformers import DynamicCache

    from tokendance.adapters.transformers import load_cache, register_caches

    model = llama("bfloat16")
    found = identity_of(model)
    assert found["dtype"] == "bfloat16"
    assert "model" not in found
    cache = DynamicCache(config=model.config)
    read(model, list(range(40)), cache)
    with td.open(tmp_path / "round.td", identity=identity_of(model, model="tiny")) as storage:
        register_caches(storage, {"planner": cache})
    folder = tmp_path / "tiny"
    model.save_pretrained(folder)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    assert identity_of(again) == found | {"model": "tiny"}
    with td.open(tmp_path / "round.td", "r", identity=identity_of(again)) as storage:
        assert storage.identity == found | {"model": "tiny"}
        assert load_cache(storage, "planner").get_seq_length() == 40
    again.config.rope_parameters["rope_theta"] = 500_000.0
    other = identity_of(again.float())
    said = "dtype: store 'bfloat16', asked 'float32'; rope_theta: store 10000.0, asked 500000.0"
    with pytest.raises(IdentityMismatchError, match=said):
        td.open(tmp_path / "round.td", "r", identity=other)
