"""Caches in a storage: any lengths in, the same lengths out, one model per storage."""

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import DynamicCache  # noqa: E402

import tokendance as td  # noqa: E402
from tokendance.adapters import laid_out_agents, layer_restore  # noqa: E402
from tokendance.adapters.transformers import cache_to_blocks, load_cache, register_caches  # noqa: E402
from tokendance.errors import FormatVersionError, ShapeMismatchError, StoreCorruptError, UnknownAgentError  # noqa: E402

LENGTHS = {"planner": 33, "critic": 16, "judge": 90, "coder": 1}


def some_cache(tokens: int, *, layers: int = 2, heads: int = 2, dim: int = 8, dtype: str = "float32") -> DynamicCache:
    """Equal tokens for equal positions, so that caches share their beginning; never a zero."""
    positions = torch.arange(1, tokens + 1).reshape(1, 1, tokens, 1).expand(1, heads, tokens, dim)
    kind = getattr(torch, dtype)
    return DynamicCache([[(positions + 200 * i + 100 * side).to(kind) for side in (0, 1)] for i in range(layers)])


def assert_same(back: DynamicCache, original: DynamicCache) -> None:
    for new, old in zip(back.layers, original.layers, strict=True):
        for got, expected in ((new.keys, old.keys), (new.values, old.values)):
            assert got.dtype == expected.dtype and torch.equal(got, expected)
            assert got.is_contiguous() and got.untyped_storage().nbytes() == got.nbytes


@pytest.fixture(params=["memory", "disk"])
def make_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with ExitStack() as at_the_end:

        def make(ragged: bool) -> Any:
            if request.param == "memory":
                return td.TokenDanceStorage(diff_threshold=0.0, ragged=ragged)
            store = td.open(tmp_path / "round.td", "w", diff_threshold=0.0, ragged=ragged)
            return at_the_end.enter_context(store)

        yield make


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "float8_e5m2"])
def test_agents_of_different_lengths_come_back_without_padding(make_storage: Any, ragged: bool, dtype: str) -> None:
    caches = {agent: some_cache(tokens, dtype=dtype) for agent, tokens in LENGTHS.items()}
    storage = make_storage(ragged)
    diffs = register_caches(storage, caches)
    assert set(diffs) <= set(caches)
    for agent, cache in caches.items():
        back = load_cache(storage, agent)
        assert back.get_seq_length() == LENGTHS[agent]
        assert_same(back, cache)
        longest = 6 if not ragged else -(-LENGTHS[agent] // 16)
        assert len(storage.reconstruct(agent)) == longest * 2 * 2


@pytest.mark.parametrize("ragged", [True, False])
def test_a_loaded_cache_and_the_storage_never_see_each_other(make_storage: Any, ragged: bool) -> None:
    cache = some_cache(40)
    storage = make_storage(ragged)
    register_caches(storage, {"planner": cache, "critic": some_cache(20)})
    load_cache(storage, "planner").layers[0].keys.zero_()
    cache.layers[0].values.zero_()
    assert_same(load_cache(storage, "planner"), some_cache(40))


@pytest.mark.parametrize("ragged", [True, False])
def test_a_later_round_of_longer_caches_replaces_the_earlier(make_storage: Any, ragged: bool) -> None:
    storage = make_storage(ragged)
    for more in (0, 5, 50):
        caches = {agent: some_cache(tokens + more) for agent, tokens in LENGTHS.items()}
        register_caches(storage, caches)
        for agent, cache in caches.items():
            assert_same(load_cache(storage, agent), cache)


def test_an_agent_that_joins_later_is_padded_to_those_that_are_there(make_storage: Any) -> None:
    storage = make_storage(False)
    register_caches(storage, {"planner": some_cache(90)})
    register_caches(storage, {"critic": some_cache(20)})
    assert_same(load_cache(storage, "critic"), some_cache(20))
    with pytest.raises(ShapeMismatchError):
        register_caches(storage, {"judge": some_cache(200)})
    assert_same(load_cache(storage, "planner"), some_cache(90))


def by_slabs_of(n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore as where numba is not loaded, and little at a time."""
    monkeypatch.setattr(layer_restore, "kernels_pay", lambda _n_bytes: False)
    monkeypatch.setattr(laid_out_agents, "_SLAB_BYTES", n_bytes)


def test_a_slab_smaller_than_the_cache_gives_the_same(make_storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    by_slabs_of(5000, monkeypatch)
    storage = make_storage(True)
    register_caches(storage, {"planner": some_cache(333), "critic": some_cache(170)})
    assert_same(load_cache(storage, "planner"), some_cache(333))
    assert_same(load_cache(storage, "critic"), some_cache(170))


@pytest.mark.parametrize("block_tokens", [1, 7, 64])
def test_block_tokens_travel_with_the_agent(block_tokens: int) -> None:
    storage = td.TokenDanceStorage(diff_threshold=0.0)
    register_caches(storage, {"planner": some_cache(50)}, block_tokens=block_tokens)
    assert storage.meta("planner")["transformers"]["block_tokens"] == block_tokens
    assert_same(load_cache(storage, "planner"), some_cache(50))


MISFITS = {
    "layers": (some_cache(20, layers=3), "'critic' has n_layers 3, agent 'planner' has 2"),
    "heads": (some_cache(20, heads=1), "'critic' has kv_heads 1, agent 'planner' has 2"),
    "head size": (some_cache(20, dim=4), "'critic' has head_dim 4, agent 'planner' has 8"),
    "dtype": (some_cache(20, dtype="bfloat16"), "'critic' has dtype bfloat16, agent 'planner' has float32"),
}


@pytest.mark.parametrize(("misfit", "message"), MISFITS.values(), ids=MISFITS)
def test_a_cache_of_another_model_is_refused_by_name(misfit: DynamicCache, message: str) -> None:
    together = td.TokenDanceStorage(diff_threshold=0.0)
    with pytest.raises(ShapeMismatchError, match=message):
        register_caches(together, {"planner": some_cache(20), "critic": misfit})
    assert list(together.agents) == []
    joining = td.TokenDanceStorage(diff_threshold=0.0)
    register_caches(joining, {"planner": some_cache(20)})
    with pytest.raises(ShapeMismatchError, match=message):
        register_caches(joining, {"critic": misfit})
    assert list(joining.agents) == ["planner"]


def test_a_cache_that_is_refused_is_named() -> None:
    storage = td.TokenDanceStorage()
    with pytest.raises(TypeError, match="agent 'critic': got NoneType"):
        register_caches(storage, {"planner": some_cache(20), "critic": None})
    with pytest.raises(ValueError, match="agent 'critic': the cache has no layers"):
        register_caches(storage, {"planner": some_cache(20), "critic": DynamicCache()})
    with pytest.raises(ValueError, match="no caches"):
        register_caches(storage, {})
    assert list(storage.agents) == []


def test_agents_without_a_layout_are_not_caches(make_storage: Any) -> None:
    storage = make_storage(False)
    storage.register_master("plain", np.zeros((4, 2, 16, 8), np.float32))
    with pytest.raises(ValueError, match="agent 'plain' was registered without a layout"):
        load_cache(storage, "plain")
    with pytest.raises(UnknownAgentError, match="nobody"):
        load_cache(storage, "nobody")


def test_an_agent_that_was_given_more_blocks_is_not_cut_short() -> None:
    storage = td.TokenDanceStorage(diff_threshold=0.0, ragged=True)
    register_caches(storage, {"planner": some_cache(32), "critic": some_cache(32)})
    storage.collective_reuse_step(["critic"], np.ones((4, 2, 16, 8), np.float32))
    with pytest.raises(ShapeMismatchError, match="agent 'critic' has 12 blocks"):
        load_cache(storage, "critic")


def test_meta_that_claims_more_than_there_is_allocates_nothing() -> None:
    blocks, layout = cache_to_blocks(some_cache(32))
    storage = td.TokenDanceStorage(diff_threshold=0.0)
    claim = {"n_tokens": 1 << 50, "n_blocks": 4 << 46}
    storage.register_master("bomb", blocks, meta={"transformers": layout.to_meta()["transformers"] | claim})
    with pytest.raises(ShapeMismatchError, match="agent 'bomb' has 8 blocks"):
        load_cache(storage, "bomb")


def test_damage_on_disk_is_an_error_not_a_wrong_cache(tmp_path: Path) -> None:
    path = tmp_path / "round.td"
    with td.open(path, "w", diff_threshold=0.0) as storage:
        register_caches(storage, {"planner": some_cache(500, layers=4, dim=64)})
    largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 3] ^= 1
    largest.unlink()  # published files may be read-only
    largest.write_bytes(content)
    with td.open(path, "r") as storage, pytest.raises(StoreCorruptError):
        load_cache(storage, "planner")


def test_a_layout_that_cannot_be_right_is_refused_by_agent() -> None:
    storage = td.TokenDanceStorage()
    storage.register_master("odd", np.zeros((4, 2, 16, 8), np.float32), meta={"transformers": {"version": 99}})
    with pytest.raises(FormatVersionError, match=r"agent 'odd': .* version 99"):
        load_cache(storage, "odd")


@pytest.mark.parametrize("way", ["by slabs", "in one pass"])
def test_a_cache_loaded_while_others_register_is_all_of_one_round(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "by slabs":
        by_slabs_of(1, monkeypatch)
    storage = td.TokenDanceStorage(diff_threshold=0.0)
    rounds = [DynamicCache([[torch.full((1, 2, 640, 8), float(n))] * 2] * 2) for n in range(2)]
    register_caches(storage, {"planner": rounds[0], "critic": rounds[0]})
    done = threading.Event()

    def talk() -> None:
        try:
            for n in range(200):
                register_caches(storage, {"planner": rounds[n % 2], "critic": rounds[n % 2]})
        finally:
            done.set()

    talking = threading.Thread(target=talk)
    talking.start()
    while not done.is_set():
        layers = load_cache(storage, "critic").layers
        assert len({float(side) for one in layers for pair in (one.keys, one.values) for side in pair.unique()}) == 1
    talking.join()
