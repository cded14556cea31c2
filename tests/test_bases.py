"""Base maps: mirrors whose blocks stand elsewhere in the master, given or found, in memory and on disk."""

from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveStorage

import tokendance as td
from tokendance import basing
from tokendance.errors import ShapeMismatchError

Make = Callable[..., td.TokenDanceStorage]
Array = np.ndarray[Any, Any]

# Of one page, of several, of none, and of so few bytes that many lie in one page.
KINDS = {
    "page": (np.dtype(np.float32), (4, 256)),
    "two pages": (np.dtype(np.float64), (1024,)),
    "half a page": (np.dtype(ml_dtypes.bfloat16), (4, 256)),
    "no page": (np.dtype(np.float16), (1000,)),
    "one byte": (np.dtype(np.uint8), (1,)),
    "odd": (np.dtype(ml_dtypes.float8_e4m3fn), (3, 7)),
}


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Make]:
    opened: list[td.TokenDanceStorage] = []

    def storage(diff_threshold: float = 0.0, ragged: bool = True) -> td.TokenDanceStorage:
        if request.param == "memory":
            return td.TokenDanceStorage(diff_threshold, ragged)
        store = td.open(tmp_path / f"{len(opened)}.td", diff_threshold=diff_threshold, ragged=ragged)
        opened.append(store)
        return store

    yield storage
    for store in opened:
        store.close()


def same(left: Array, right: Array) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def cache_of(n_blocks: int, kind: str = "page", seed: int = 0) -> Array:
    """Blocks that are all different, where a block is long enough for that."""
    dtype, shape = KINDS[kind]
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    rows = np.random.default_rng(seed).integers(0, 256, (n_blocks, n_bytes), np.uint8)
    return rows.view(dtype).reshape(n_blocks, *shape)


def assert_is(storage: td.TokenDanceStorage, agent: str, expected: Array) -> None:
    """However it is taken, an agent is what is expected, and mapped equals copied."""
    assert same(storage.reconstruct(agent), expected)
    assert same(storage.reconstruct(agent, copy=False), expected)
    assert same(storage.reconstruct(agent, out=np.empty_like(expected)), expected)
    for part in (slice(1, None, 3), np.arange(len(expected))[::-2]):
        for copy in (True, False):
            assert same(storage.reconstruct(agent, blocks=part, copy=copy), expected[part])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one byte"])
def test_a_private_history_that_shifted_everything_costs_only_itself(make: Make, kind: str) -> None:
    master, private = cache_of(40, kind), cache_of(3, kind, seed=1)
    shifted = np.concatenate((private, master, private[:1]))
    storage = make()
    storage.register_master("m", master)
    diff = storage.register_mirror("a", shifted, base="auto")
    assert diff.block_indices.tolist() == [0, 1, 2, 43]
    assert diff.total_blocks == 44
    assert_is(storage, "a", shifted)
    plain = make()
    plain.register_master("m", master)
    assert plain.register_mirror("a", shifted).n_diff_blocks == 44
    assert_is(plain, "a", shifted)


def test_blocks_in_any_order_are_found(make: Make) -> None:
    master = cache_of(30)
    storage = make()
    storage.register_master("m", master)
    for seed, order in enumerate((np.arange(30)[::-1], np.full(45, 7), np.random.default_rng(0).permutation(30)[:11])):
        assert storage.register_mirror(f"a{seed}", master[order], base="auto").n_diff_blocks == 0
        assert_is(storage, f"a{seed}", master[order])


def test_a_given_base_is_compared_and_not_believed(make: Make) -> None:
    master = cache_of(10)
    cache = master[[4, 5, 6, 0, 9]].copy()
    cache[1, 0, 0] = 7
    storage = make()
    storage.register_master("m", master)
    diff = storage.register_mirror("a", cache, base=np.array([4, 5, 6, 1, -1]))
    assert diff.block_indices.tolist() == [1, 3, 4]
    assert_is(storage, "a", cache)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint16, np.uint64])
def test_a_base_may_be_of_any_integer(make: Make, dtype: type) -> None:
    master = cache_of(10)
    storage = make()
    storage.register_master("m", master)
    base = np.array([3, 2, 9, 0], dtype)
    assert storage.register_mirror("a", master[[3, 2, 9, 0]], base=base).n_diff_blocks == 0
    base[:] = 1  # the caller's array stays the caller's
    assert_is(storage, "a", master[[3, 2, 9, 0]])


def test_the_threshold_holds_where_the_base_says(make: Make) -> None:
    master = np.arange(8, dtype=np.float32).reshape(8, 1) * 100
    storage = make(diff_threshold=0.5)
    storage.register_master("m", master)
    cache = master[[5, 6, 7]] + np.array([[0.25], [0.5], [0.75]], np.float32)
    diff = storage.register_mirror("a", cache, base=np.array([5, 6, 7]))
    assert diff.block_indices.tolist() == [2]
    assert diff.max_dropped_norm == 0.5
    assert_is(storage, "a", np.array([[500], [600], [700.75]], np.float32))
    # What is found by its bytes is equal; what is near, but elsewhere, is not looked for.
    assert storage.register_mirror("a", cache, base="auto").n_diff_blocks == 3
    assert_is(storage, "a", cache)


def test_equal_prints_are_not_taken_for_equal_blocks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks whose crc32c is the same, and then a print that is the same for all blocks."""
    master = cache_of(6)
    twin = master[[3, 4]].copy()
    # The polynomial itself: adding it anywhere changes no crc.
    twin.view(np.uint8).reshape(2, -1)[0, 8:13] ^= np.frombuffer(bytes.fromhex("f176ec0501"), np.uint8)
    assert google_crc32c.value(twin[0].tobytes()) == google_crc32c.value(master[3].tobytes())
    assert twin[0].tobytes() != master[3].tobytes()
    storage = make()
    storage.register_master("m", master)
    assert storage.register_mirror("a", twin, base="auto").block_indices.tolist() == [0]
    assert_is(storage, "a", twin)
    monkeypatch.setattr(basing, "block_prints", lambda rows: np.array([7 for _ in rows], np.uint32))
    basing._prints.clear()
    cache = np.concatenate((master[5:], twin, master[:4]))
    assert storage.register_mirror("b", cache, base="auto").block_indices.tolist() == [1, 2, 3, 4, 5, 6]
    assert_is(storage, "b", cache)


def test_many_slabs_of_candidates_are_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basing, "_SLAB_BYTES", 2 * 4096)
    master = cache_of(21)
    storage = make()
    storage.register_master("m", master)
    assert storage.register_mirror("a", master[::-1].copy(), base="auto").n_diff_blocks == 0
    assert_is(storage, "a", master[::-1])


def test_shared_blocks_stand_at_the_own_end_of_each_agent(make: Make) -> None:
    """Longer, shorter, shifted: a collective step gives each the blocks at its own end, and stores them once."""
    master, shared = cache_of(12), cache_of(4, seed=1)
    caches = {
        "longer": np.concatenate((master, cache_of(5, seed=2))),
        "shorter": master[:3],
        "empty": master[:0],
        "shifted": np.concatenate((cache_of(2, seed=3), master)),
    }
    storage = make()
    storage.register_master("m", master)
    for agent, cache in caches.items():
        storage.register_mirror(agent, cache, base="auto")
    own = {agent: diff.n_diff_blocks for agent, diff in storage.mirrors.items()}
    assert own == {"longer": 5, "shorter": 0, "empty": 0, "shifted": 2}
    expected = {"m": master, **caches}
    for step in range(3):
        new = shared[step:]
        counts = storage.collective_reuse_step(list(caches), new)
        assert counts == {"m": 0, **own}
        expected = {agent: np.concatenate((cache, new)) for agent, cache in expected.items()}
        for agent, cache in expected.items():
            assert_is(storage, agent, cache)
    storage.collective_reuse_step(["shorter"], shared)
    assert_is(storage, "shorter", np.concatenate((expected["shorter"], shared)))
    assert_is(storage, "shifted", expected["shifted"])


def test_a_base_survives_forks_saves_and_other_masters(make: Make, tmp_path: Any) -> None:
    master = cache_of(20)
    shifted = np.concatenate((cache_of(2, seed=1), master))
    storage = make()
    storage.register_master("m", master)
    storage.register_mirror("a", shifted, base="auto")
    storage.fork("a", "twin")
    storage.register_mirror("a", master[::-1].copy(), base="auto")
    storage.save(tmp_path / "saved.td")
    with td.open(tmp_path / "saved.td", mode="r") as saved:
        for agent, cache in {"m": master, "a": master[::-1], "twin": shifted}.items():
            assert_is(saved, agent, cache)
    storage.rebase("twin")
    storage.register_master("twin", shifted[::-1].copy())
    for agent, cache in {"m": master, "a": master[::-1], "twin": shifted[::-1]}.items():
        assert_is(storage, agent, cache)


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        ("automatic", TypeError, "'auto' or a 1-D array"),
        ([0, 1, 2, 3], TypeError, "'auto' or a 1-D array"),
        (np.zeros((2, 2), np.int64), TypeError, "1-D"),
        (np.zeros(4), TypeError, "1-D array"),
        (np.zeros(4, np.bool_), TypeError, "1-D array"),
        (np.zeros(3, np.int64), ShapeMismatchError, "each of the 4 blocks, got 3"),
        (np.array([0, 1, 2, 4]), ValueError, "-1 to 3, got 0 to 4"),
        (np.array([0, -2, 2, 3]), ValueError, "-1 to 3, got -2 to 3"),
        (np.array([0, 1, 2, 2**64 - 1], np.uint64), ValueError, "-1 to 3"),
    ],
)
def test_a_base_that_cannot_be_right_is_refused(make: Make, base: Any, error: type[Exception], message: str) -> None:
    storage = make()
    storage.register_master("m", cache_of(4))
    with pytest.raises(error, match=message) as caught:
        storage.register_mirror("a", cache_of(4), base=base)
    assert "\n" not in str(caught.value)
    assert storage.agents == ["m"]


# Any script ----------------------------------------------------------------------------------------------------------

RUNS = st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 6)), max_size=5)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["given", "auto", "plain", "master", "collective", "fork", "remove", "rebase", "reopen"]),
        st.sampled_from("abc"),
        st.sampled_from("abcm"),
        RUNS,
        st.integers(0, 2**16),
    ),
    max_size=10,
)


def runs_of(naive: NaiveStorage, runs: list[tuple[bool, int, int]], seed: int) -> tuple[Array, Array]:
    """A cache made of runs of the master's blocks and of private ones, and where the master has them, not all true."""
    rng = np.random.default_rng(seed)
    master = naive.reconstruct(naive.master_id or "")
    block_bytes = int(np.prod(master.shape[1:])) * master.itemsize
    private = np.random.default_rng(0).integers(0, 256, (4, block_bytes), np.uint8).view(master.dtype)
    blocks, base = [master[:0]], [np.empty(0, np.int64)]
    for from_master, start, length in runs:
        at = np.arange(start, start + length)
        if from_master and len(master):
            at %= len(master)
            blocks.append(master[at])
            base.append(at)
        else:
            blocks.append(private[at % 4].reshape(length, *master.shape[1:]))
            base.append(np.full(length, -1))
    where = np.concatenate(base)
    lies = rng.random(len(where)) < 0.2
    where[lies] = rng.integers(-1, max(len(master), 1), lies.sum()) if len(master) else -1
    return np.concatenate(blocks), where


@pytest.mark.parametrize("where", ["memory", "disk"])
@settings(max_examples=60)
@given(
    kind=st.sampled_from(list(KINDS)), threshold=st.sampled_from([0.0, 1e-4, 30.0]), n=st.integers(0, 12), steps=STEPS
)
def test_any_script_with_bases_gives_what_the_naive_model_gives(
    tmp_path_factory: pytest.TempPathFactory, where: str, kind: str, threshold: float, n: int, steps: list[Any]
) -> None:
    naive = NaiveStorage(threshold)
    path = tmp_path_factory.mktemp("s") / "s.td"
    options = {"diff_threshold": threshold, "ragged": True}
    storage = td.TokenDanceStorage(**options) if where == "memory" else td.open(path, **options)
    for one in (storage, naive):
        one.register_master("m", cache_of(n, kind))
    for step in steps:
        if step[0] == "reopen" and where == "disk":
            storage.close()
            storage = td.open(path)
        else:
            _apply(storage, naive, *step)
        _compare(storage, naive)
    storage.close()


def _apply(
    storage: td.TokenDanceStorage, naive: NaiveStorage, kind: str, left: str, right: str, runs: Any, seed: int
) -> None:
    cache, where = runs_of(naive, runs, seed)
    base = {"given": where, "auto": "auto"}.get(kind)
    both: tuple[Any, Any] = (storage, naive)
    known = set(naive.agents)
    if kind in ("given", "auto", "plain") and left != naive.master_id:
        diff = storage.register_mirror(left, cache, base=base)
        mirror = naive.register_mirror(left, cache, base)
        assert diff.block_indices.tolist() == mirror.own
        assert diff.max_dropped_norm == pytest.approx(mirror.dropped, rel=1e-6)
    for one in both:
        if kind == "master":
            one.register_master(naive.master_id, cache)
        elif kind == "collective":
            one.collective_reuse_step([left, right], cache)
        elif kind == "fork" and right in known and left not in known:
            one.fork(right, left)
        elif kind == "remove" and left in known and left != naive.master_id:
            one.remove(left)
        elif kind == "rebase" and right in known:
            one.rebase(right)


def _compare(storage: td.TokenDanceStorage, naive: NaiveStorage) -> None:
    naive.check()
    assert set(storage.agents) == set(naive.agents)
    assert storage.master_id == naive.master_id
    for agent in naive.agents:
        assert_is(storage, agent, naive.reconstruct(agent))
    many = storage.reconstruct_many(copy=False)
    for agent, cache in storage.reconstruct_many().items():
        assert same(cache, naive.reconstruct(agent))
        assert same(many[agent], cache)
