"""The rules of master and mirrors, the same in memory and on disk."""

import gc
import pickle
from collections.abc import Callable, Iterator
from copy import copy as shallow
from copy import deepcopy
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveStorage

import tokendance as td

DTYPES = [
    np.dtype(one)
    for one in (
        "float64",
        "float32",
        "float16",
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        "int8",
        "uint8",
    )
]
Make = Callable[..., td.TokenDanceStorage]


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path) -> Iterator[Make]:
    opened: list[td.TokenDanceStorage] = []

    def storage(diff_threshold: float = 1e-4, ragged: bool = False) -> td.TokenDanceStorage:
        if request.param == "memory":
            return td.TokenDanceStorage(diff_threshold, ragged)
        store = td.open(tmp_path / f"{len(opened)}.td", diff_threshold=diff_threshold, ragged=ragged)
        opened.append(store)
        return store

    yield storage
    for store in opened:
        store.close()


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def caches(n_blocks: int = 12, shape: tuple[int, ...] = (2, 3)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    master = rng.standard_normal((n_blocks, *shape)).astype(np.float32)
    mirror = master.copy()
    mirror[[2, 5, 6]] += 1
    return master, mirror


def test_mirror_keeps_only_its_own_blocks(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    storage.register_master("m", master)
    diff = storage.register_mirror("a", mirror)
    assert diff.block_indices.tolist() == [2, 5, 6]
    assert diff.block_indices.dtype == np.int64
    assert same(diff.diff_values, (mirror - master)[[2, 5, 6]])
    assert (diff.total_blocks, diff.threshold, diff.n_diff_blocks, diff.sparsity) == (12, 1e-4, 3, 0.75)
    assert same(storage.reconstruct("a"), mirror)
    assert same(storage.reconstruct("m"), master)
    assert storage.compression_ratio() == 24 / 15
    assert same(storage.master_cache["m"], master)
    assert storage.master_id == "m" and list(storage.mirrors) == ["a"] and storage.agents == ["m", "a"]


def test_master_cache_cannot_be_written(make: Make) -> None:
    storage = make()
    storage.register_master("m", caches()[0])
    view = storage.master_cache["m"]
    with pytest.raises(ValueError):
        view[0] = 1
    with pytest.raises(ValueError):
        view.flags.writeable = True


def test_arrays_stay_apart(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    given_master, given_mirror = master.copy(), mirror.copy()
    storage.register_master("m", given_master)
    storage.register_mirror("a", given_mirror)
    given_master[:] = 0
    given_mirror[:] = 0
    for copy in (True, False):
        taken = storage.reconstruct("a", copy=copy)
        assert taken.flags.writeable
        taken[:] = 9
    assert same(storage.reconstruct("a"), mirror)
    assert same(storage.reconstruct("m"), master)


def test_another_master_clears_mirrors_and_the_same_one_keeps_them(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    storage.register_master("m", master)
    storage.register_mirror("a", mirror)
    storage.register_master("m", mirror * 2)
    assert same(storage.reconstruct("a"), mirror)
    assert same(storage.reconstruct("m"), mirror * 2)
    storage.register_master("other", master)
    assert storage.agents == ["other"]
    with pytest.raises(KeyError):
        storage.reconstruct("a")


def test_threshold_drops_blocks_and_reports_the_bound(make: Make) -> None:
    storage = make(diff_threshold=0.5)
    master = np.zeros((3, 4), np.float32)
    mirror = master.copy()
    mirror[0, 0], mirror[1, :2] = 0.25, 3.0
    storage.register_master("m", master)
    diff = storage.register_mirror("a", mirror)
    assert diff.block_indices.tolist() == [1]
    assert diff.max_dropped_norm == 0.25
    restored = storage.reconstruct("a")
    assert restored[0, 0] == 0.0 and same(restored[1], mirror[1])


def test_a_norm_equal_to_the_threshold_is_dropped(make: Make) -> None:
    storage = make(diff_threshold=5.0)
    storage.register_master("m", np.zeros((1, 2), np.float32))
    assert storage.register_mirror("a", np.array([[3, 4]], np.float32)).n_diff_blocks == 0
    assert storage.register_mirror("b", np.array([[3, 4.001]], np.float32)).n_diff_blocks == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_kept(make: Make, value: float) -> None:
    storage = make(diff_threshold=1e3)
    storage.register_master("m", np.zeros((4, 2), np.float16))
    mirror = np.zeros((4, 2), np.float16)
    mirror[2, 1] = value
    assert storage.register_mirror("a", mirror).block_indices.tolist() == [2]
    assert same(storage.reconstruct("a"), mirror)


def test_float16_norms_neither_underflow_nor_overflow(make: Make) -> None:
    storage = make()
    master = np.zeros((3, 400), np.float16)
    mirror = master.copy()
    mirror[0] = 1e-3
    master[2], mirror[2] = 60000, -60000
    storage.register_master("m", master)
    assert storage.register_mirror("a", mirror).block_indices.tolist() == [0, 2]


def test_zero_threshold_keeps_negative_zero(make: Make) -> None:
    storage = make(diff_threshold=0.0)
    storage.register_master("m", np.zeros((2, 2), np.float32))
    mirror = np.zeros((2, 2), np.float32)
    mirror[1, 0] = -0.0
    assert storage.register_mirror("a", mirror).block_indices.tolist() == [1]
    assert same(storage.reconstruct("a"), mirror)


def test_collective_step_extends_the_master_and_the_listed(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    storage.register_master("m", master)
    storage.register_mirror("a", mirror)
    storage.register_mirror("left out", mirror)
    shared = np.full((2, 2, 3), 7, np.float32)
    assert storage.collective_reuse_step(["a", "new"], shared) == {"m": 0, "a": 3, "new": 0}
    assert same(storage.reconstruct("m"), np.concatenate((master, shared)))
    assert same(storage.reconstruct("new"), np.concatenate((master, shared)))
    assert same(storage.reconstruct("a"), np.concatenate((mirror, shared)))
    assert same(storage.reconstruct("left out"), mirror)
    storage.collective_reuse_step(["left out"], shared + 1)
    assert same(storage.reconstruct("left out"), np.concatenate((mirror, shared + 1)))
    assert same(storage.reconstruct("left out", copy=False), np.concatenate((mirror, shared + 1)))


def test_a_round_elects_the_agent_that_leaves_the_least(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    odd = master + 5
    diffs = storage.register_round({"odd": odd, "m": master, "a": mirror, "b": mirror.copy()})
    assert storage.master_id == "a"
    assert {key: diff.n_diff_blocks for key, diff in diffs.items()} == {"odd": 12, "m": 3, "b": 0}
    for key, cache in {"odd": odd, "m": master, "a": mirror, "b": mirror}.items():
        assert same(storage.reconstruct(key), cache)


def test_a_round_with_a_named_master_keeps_agents_outside_it(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    storage.register_round({"m": master, "a": mirror, "outside": mirror + 1}, master="m")
    storage.register_round({"a": master * 2, "m": mirror}, master="a", meta={"a": {"turn": 2}})
    assert storage.master_id == "a" and storage.meta("a") == {"turn": 2}
    assert same(storage.reconstruct("outside"), mirror + 1)
    assert same(storage.reconstruct("m"), mirror) and same(storage.reconstruct("a"), master * 2)


def test_fork_remove_and_rebase_keep_every_byte(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    storage.register_master("m", master, meta={"turn": 1})
    storage.register_mirror("a", mirror)
    storage.fork("m", "m2")
    storage.fork("a", "a2")
    storage.register_mirror("a", master * 3)
    assert storage.meta("m2") == {"turn": 1}
    expected = {"m": master, "m2": master, "a": master * 3, "a2": mirror}
    for step in (
        lambda: storage.rebase("a2"),
        storage.rebase,
        lambda: storage.remove("m2"),
        lambda: storage.remove("m"),
    ):
        step()
        for key in storage.agents:
            assert same(storage.reconstruct(key), expected[key]), key
    assert storage.agents and set(storage.agents) == {"a", "a2"}
    for key in list(storage.agents):
        storage.remove(key)
    assert storage.agents == [] and storage.master_id is None and storage.compression_ratio() == 1.0


def test_parts_come_back_in_the_order_asked(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    storage.register_master("m", master)
    storage.register_mirror("a", mirror)
    for selection in (slice(2, 9, 3), [6, 0, -1], np.array([5, 5]), np.arange(12) % 2 == 0, [], range(3)):
        for copy in (True, False):
            wanted = (
                mirror[list(selection)]
                if isinstance(selection, range)
                else mirror[np.asarray(selection, int) if isinstance(selection, list) else selection]
            )
            assert same(storage.reconstruct("a", blocks=selection, copy=copy), wanted)


def test_out_is_filled_and_returned(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    storage.register_master("m", master)
    storage.register_mirror("a", mirror)
    out = np.empty_like(mirror)
    assert storage.reconstruct("a", out=out) is out
    assert same(out, mirror)
    part = np.empty_like(mirror[:2])
    assert same(storage.reconstruct("a", out=part, blocks=slice(4, 6)), mirror[4:6])


def test_fresh_results_start_on_a_64_byte_boundary(make: Make) -> None:
    storage = make()
    storage.register_master("m", np.ones((64, 1 << 14), np.float32))
    assert storage.reconstruct("m").ctypes.data % 64 == 0
    assert storage.reconstruct("m", copy=False).ctypes.data % 64 == 0


def test_ragged_agents_differ_in_length(make: Make) -> None:
    storage = make(ragged=True)
    master, mirror = caches()
    storage.register_master("m", master)
    longer = np.concatenate((mirror, mirror))
    assert storage.register_mirror("long", longer).block_indices.tolist() == [2, 5, 6, *range(12, 24)]
    assert storage.register_mirror("short", mirror[:4]).total_blocks == 4
    assert storage.register_mirror("empty", mirror[:0]).sparsity == 0.0
    expected = {"m": master, "long": longer, "short": mirror[:4], "empty": mirror[:0]}
    for _ in range(2):
        for key, cache in expected.items():
            assert same(storage.reconstruct(key), cache)
            assert same(storage.reconstruct(key, copy=False), cache)
        storage.collective_reuse_step(list(expected), master[:3] + 9)
        expected = {key: np.concatenate((cache, master[:3] + 9)) for key, cache in expected.items()}
    assert storage.stats()["diff_blocks_total"] == 15 + 1
    storage.rebase("long")
    for key, cache in expected.items():
        assert same(storage.reconstruct(key), cache)
    storage.register_master("long", master)
    for key in ("m", "short", "empty"):
        assert same(storage.reconstruct(key), expected[key])


def test_transactions_are_all_or_nothing(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    storage.register_master("m", master)
    with pytest.raises(ZeroDivisionError), storage.transaction():
        storage.register_mirror("a", mirror)
        storage.collective_reuse_step(["a"], master[:2])
        assert same(storage.reconstruct("a"), np.concatenate((mirror, master[:2])))
        raise ZeroDivisionError
    assert storage.agents == ["m"] and same(storage.reconstruct("m"), master)
    with storage.transaction():
        storage.register_mirror("a", mirror)
        with pytest.raises(ValueError):
            storage.register_mirror("b", mirror[:3])
        storage.collective_reuse_step(["a"], mirror[:2])
        with pytest.raises(RuntimeError, match="nest"), storage.transaction():
            pass
    assert storage.agents == ["m", "a"]
    assert same(storage.reconstruct("a"), np.concatenate((mirror, mirror[:2])))


def test_meta_is_copied_both_ways(make: Make) -> None:
    storage = make()
    said = {"turn": 1, "nested": {"list": [1, 2]}}
    storage.register_master("m", caches()[0], meta=said)
    said["nested"]["list"].append(3)
    storage.meta("m")["turn"] = 5
    assert storage.meta("m") == {"turn": 1, "nested": {"list": [1, 2]}}


def test_numbers_add_up(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    storage.register_master("m", master)
    storage.register_mirror("a", mirror)
    stats = storage.stats()
    assert stats["logical_bytes"] == 2 * master.nbytes
    assert stats["stored_bytes"] >= master.nbytes + 3 * master[0].nbytes + 3 * 8
    assert stats["byte_ratio"] == stats["logical_bytes"] / stats["stored_bytes"]
    assert stats["mirrors"]["a"]["n_diff_blocks"] == 3
    assert {"master_id": "m", "master_blocks": 12, "n_mirrors": 1, "diff_blocks_total": 3}.items() <= stats.items()
    assert "master='m'" in repr(storage) and "mirrors=1" in repr(storage) and "1.60x" in repr(storage)


def test_bad_input_is_refused_and_changes_nothing(make: Make) -> None:
    storage = make()
    master, mirror = caches()
    with pytest.raises(td.NoMasterError, match="register_master"):
        storage.register_mirror("a", mirror)
    with pytest.raises(RuntimeError, match="No master registered"):
        storage.reconstruct("a")
    with pytest.raises(RuntimeError):
        storage.collective_reuse_step(["a"], master)
    storage.register_master("m", master)
    storage.register_mirror("a", mirror)
    before = {key: storage.reconstruct(key) for key in storage.agents}
    for error, text, call in [
        (ValueError, "at least 2D", lambda: storage.register_mirror("b", master.ravel())),
        (ValueError, "at least 2D", lambda: storage.register_master("m", master.ravel())),
        (ValueError, "at least 2D", lambda: storage.collective_reuse_step(["a"], master.ravel())),
        (TypeError, "object", lambda: storage.register_mirror("b", master.astype(object))),
        (TypeError, "list", lambda: storage.register_mirror("b", master.tolist())),
        (td.ShapeMismatchError, "must match master shape", lambda: storage.register_mirror("b", mirror[:, :1])),
        (td.ShapeMismatchError, "must match master shape", lambda: storage.register_mirror("b", mirror[:3])),
        (td.ShapeMismatchError, "dtype", lambda: storage.register_mirror("b", mirror.astype(np.float64))),
        (td.ShapeMismatchError, "must match", lambda: storage.register_master("m", mirror[:3])),
        (td.ShapeMismatchError, "must match", lambda: storage.collective_reuse_step(["a"], mirror[:, :1])),
        (td.ShapeMismatchError, "must match", lambda: storage.register_round({"b": mirror, "c": mirror[:2]})),
        (ValueError, "is the master", lambda: storage.register_mirror("m", mirror)),
        (td.UnknownAgentError, "Unknown agent_id: zebra", lambda: storage.reconstruct("zebra")),
        (KeyError, "near to it are a", lambda: storage.meta("a ")),
        (KeyError, "Unknown", lambda: storage.fork("zebra", "z")),
        (ValueError, "there already", lambda: storage.fork("m", "a")),
        (KeyError, "Unknown", lambda: storage.remove("zebra")),
        (KeyError, "Unknown", lambda: storage.rebase("zebra")),
        (ValueError, "1 to 512", lambda: storage.register_mirror("", mirror)),
        (ValueError, "1 to 512", lambda: storage.register_mirror("é" * 257, mirror)),
        (ValueError, "UTF-8", lambda: storage.register_mirror("\ud800", mirror)),
        (TypeError, "string", lambda: storage.register_mirror(3, mirror)),  # type: ignore[arg-type]
        (ValueError, "JSON", lambda: storage.register_mirror("b", mirror, meta={"x": float("nan")})),
        (ValueError, "JSON", lambda: storage.register_mirror("b", mirror, meta={1: 2})),  # type: ignore[dict-item]
        (ValueError, "at least one", lambda: storage.register_round({})),
        (ValueError, "not among", lambda: storage.register_round({"b": mirror}, master="zebra")),
        (ValueError, "shape", lambda: storage.reconstruct("a", out=np.empty((3, 2, 3), np.float32))),
        (ValueError, "dtype", lambda: storage.reconstruct("a", out=np.empty(mirror.shape, np.float64))),
        (ValueError, "C-contig", lambda: storage.reconstruct("a", out=np.empty(mirror.shape, np.float32, order="F"))),
        (ValueError, "copy=False", lambda: storage.reconstruct("a", out=mirror.copy(), copy=False)),
        (IndexError, "12 blocks", lambda: storage.reconstruct("a", blocks=[12])),
        (TypeError, "slice", lambda: storage.reconstruct("a", blocks=3)),
        (TypeError, "list of ids", lambda: storage.collective_reuse_step("a", mirror)),
    ]:
        with pytest.raises(error, match=text) as caught:
            call()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert storage.agents == ["m", "a"]
    for key, cache in before.items():
        assert same(storage.reconstruct(key), cache)


@pytest.mark.parametrize("threshold", [-1, float("nan"), float("inf"), "x", True])
def test_bad_thresholds_are_refused(threshold: object) -> None:
    with pytest.raises((ValueError, TypeError), match="diff_threshold"):
        td.TokenDanceStorage(threshold)  # type: ignore[arg-type]


def test_a_diff_can_be_built_as_in_the_sketch() -> None:
    diff = td.SparseKVDiff(block_indices=np.array([1]), diff_values=np.ones((1, 2)), total_blocks=4)
    assert (diff.threshold, diff.n_diff_blocks, diff.sparsity) == (1e-4, 1, 0.75)


@st.composite
def scripts(draw: st.DrawFn) -> tuple[np.dtype, tuple[int, ...], float, list[tuple]]:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(1,), (3,), (8,), (2, 5), (16, 4, 16)]))
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["mirror", "mirror", "master", "round", "collective", "fork", "remove", "rebase"]),
                st.sampled_from("abcd"),
                st.sampled_from("abcd"),
                st.integers(0, 6),
                st.integers(0, 2**16),
            ),
            max_size=8,
        )
    )
    return dtype, shape, draw(st.sampled_from([0.0, 1e-4, 2.0])), steps


def random_cache(seed: int, n: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    # Few distinct blocks, so that caches share some.
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(0).integers(0, 256, (4, int(np.prod(shape)) * dtype.itemsize), np.uint8)
    return kinds[rng.integers(0, 4, n)].view(dtype).reshape(n, *shape)


@pytest.mark.parametrize("where", ["memory", "disk"])
@settings(max_examples=60)
@given(script=scripts())
def test_any_script_gives_what_the_naive_model_gives(where: str, script: tuple, tmp_path_factory) -> None:
    dtype, shape, threshold, steps = script
    naive = NaiveStorage(threshold)
    if where == "memory":
        storage = td.TokenDanceStorage(threshold, ragged=True)
    else:
        path = tmp_path_factory.mktemp("s") / "s.td"
        storage = td.open(path, diff_threshold=threshold, ragged=True)
    first = random_cache(1, 5, shape, dtype)
    for one in (storage, naive):
        one.register_master("m", first)
    for kind, left, right, n, seed in steps:
        cache = random_cache(seed, n, shape, dtype)
        for one in (storage, naive):
            _apply(one, kind, left, right, cache)
    _compare(storage, naive)
    if where == "disk":
        storage.close()
        with td.open(path, mode="r") as reopened:
            _compare(reopened, naive)


def _apply(one, kind: str, left: str, right: str, cache: np.ndarray) -> None:
    known = set(one.agents)
    if kind == "mirror" and left != one.master_id:
        one.register_mirror(left, cache)
    elif kind == "master":
        one.register_master(one.master_id, cache)
    elif kind == "round" and left != right:
        one.register_round({left: cache, right: cache[:2]}, master=left)
    elif kind == "collective":
        one.collective_reuse_step([left, right], cache)
    elif kind == "fork" and left in known and right not in known:
        one.fork(left, right)
    elif kind == "remove" and left in known and left != one.master_id:
        one.remove(left)
    elif kind == "rebase" and left in known:
        one.rebase(left)


def _compare(storage: td.TokenDanceStorage, naive: NaiveStorage) -> None:
    assert set(storage.agents) == set(naive.agents) and storage.master_id == naive.master_id
    for agent in naive.agents:
        expected = naive.reconstruct(agent)
        assert same(storage.reconstruct(agent), expected)
        assert same(storage.reconstruct(agent, copy=False), expected)
        part = np.arange(len(expected))[::-2]
        assert same(storage.reconstruct(agent, blocks=part), expected[part])


def test_a_storage_is_not_copied_and_stays_whole(make: Make) -> None:
    storage = make()
    cache = np.random.default_rng(0).standard_normal((6, 4, 64)).astype(np.float32)
    storage.register_round({"m": cache, "a": cache + 1}, master="m")
    storage.reconstruct("a", copy=False)  # from here on there are files to close
    for copied in (shallow, deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled; fork\(\) an agent, or save\(\) it"):
            copied(storage)
    gc.collect()
    assert np.array_equal(storage.reconstruct("a", copy=False), cache + 1)


def test_a_difference_is_copied_and_pickled_by_what_it_is_worth(make: Make) -> None:
    storage = make()
    cache = np.zeros((6, 4, 64), np.float32)
    changed = cache.copy()
    changed[2] = 3
    diff = storage.register_round({"m": cache, "a": changed}, master="m")["a"]
    for twin in (shallow(diff), deepcopy(diff), pickle.loads(pickle.dumps(diff))):
        assert (twin.block_indices.tolist(), twin.total_blocks, twin.threshold) == ([2], 6, diff.threshold)
        assert np.array_equal(twin.diff_values, diff.diff_values)


@pytest.mark.parametrize("caches", [None, [np.zeros((2, 2))], np.zeros((2, 2))], ids=["none", "list", "array"])
def test_a_round_is_a_dict(make: Make, caches: object) -> None:
    with pytest.raises(TypeError, match="caches must be a dict of agent and cache, got"):
        make().register_round(caches)


def test_a_masked_array_is_refused(make: Make) -> None:
    with pytest.raises(TypeError, match=r"masked array, whose mask would be lost; pass its filled\(\)"):
        make().register_master("m", np.ma.masked_array(np.zeros((2, 2)), mask=True))


def test_what_an_identity_is_not_is_said_of_the_identity(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="identity must be a dict, got str"):
        td.open(tmp_path / "s.td", identity="x")
    with pytest.raises(ValueError, match="path must name a folder, got an empty one"):
        td.open("")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "came"), [("x" * 1024, r"1024: 'x{60}\.\.\.'"), ("", "0: ''"), ("\ud800", "1: ")])
def test_a_name_that_is_none_is_shown_with_its_length(make: Make, name: str, came: str) -> None:
    with pytest.raises(ValueError, match=f"agent_id must have 1 to 512 bytes in UTF-8, got {came}"):
        make().register_master(name, np.zeros((2, 2), np.float32))
