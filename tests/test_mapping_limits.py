"""Where maps, memory or files run out: mapped arrays come back right or not at all, and nothing is left behind."""

import errno
import gc
import logging
import mmap
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_counts import n_files, n_maps

import tokendance as td
from tokendance.store import mapping, page_table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process has mapped is read in /proc")

PAGE_BLOCK, ODD_BLOCK = (4, 256), (1000,)
N_BLOCKS = 96
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(params=["memory", "disk"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[td.TokenDanceStorage]:
    options: dict[str, Any] = {"diff_threshold": 0, "ragged": True}
    made = td.TokenDanceStorage(**options) if request.param == "memory" else td.open(tmp_path / "s.td", **options)
    with made:
        yield made


def filled(storage: td.TokenDanceStorage, shape: tuple[int, ...] = PAGE_BLOCK) -> Arrays:
    """A master, a mirror with scattered blocks of its own, one shifted by whole blocks, one all its own."""
    rng = np.random.default_rng(0)

    def some(n: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal((n, *shape), np.float32)

    caches = {"m": some(N_BLOCKS)}
    caches["scattered"] = caches["m"].copy()
    caches["scattered"][5::8] = some(len(range(5, N_BLOCKS, 8)))
    caches["shifted"] = np.concatenate((some(3), caches["scattered"][:-10], some(2)))
    caches["other"] = some(N_BLOCKS)
    for agent, cache in caches.items():
        if agent == "m":
            storage.register_master(agent, cache)
        else:
            storage.register_mirror(agent, cache, base="auto")
    return caches


def same(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def in_new_process(script: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tokendance.store"]


# Few maps ------------------------------------------------------------------------------------------------------------


def allow(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Let this process have so many maps more."""
    most = mapping._Region.live_maps + n
    monkeypatch.setattr(mapping, "_most_maps", lambda: most)


@pytest.mark.parametrize("agent", ["scattered", "shifted"])
def test_where_maps_are_scarce_only_own_blocks_are_copied(
    storage: td.TokenDanceStorage, agent: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caches = filled(storage)
    storage.reconstruct(agent)  # what a store maps for itself is mapped now
    gc.collect()
    allow(monkeypatch, 5)
    gathered: list[int] = []
    copy = page_table._copy

    def counted(rows: Any, which: Any, *more: Any) -> None:
        gathered.append(len(which))
        copy(rows, which, *more)

    monkeypatch.setattr(page_table, "_copy", counted)
    with caplog.at_level(logging.INFO, "tokendance"):
        taken = storage.reconstruct(agent, copy=False)
    assert same(taken, caches[agent])
    assert sum(gathered) == storage.mirrors[agent].n_diff_blocks
    assert [text for text in told(caplog) if "its own blocks are copied" in text]
    assert taken.flags.writeable


def test_the_last_maps_are_kept_for_whole_masters(
    storage: td.TokenDanceStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What run-by-run maps leave is enough for ten more agents to share the master's pages."""
    caches = filled(storage)
    storage.reconstruct("scattered")
    gc.collect()
    allow(monkeypatch, 120)
    whole: list[object] = []
    monkeypatch.setattr("tokendance.restoring.copy_blocks", lambda *a: whole.append(a))
    kept = [storage.reconstruct("scattered", copy=False) for _ in range(14)]
    assert whole == []
    assert all(same(one, caches["scattered"]) for one in kept)


def test_own_blocks_that_are_copied_are_not_in_memory_twice(tmp_path: Path) -> None:
    script = """
        import re, sys
        import numpy as np, tokendance as td
        from tokendance.store import mapping
        def proportional():
            return int(re.search(r"^Pss: *(\\d+)", open("/proc/self/smaps_rollup").read(), re.M)[1]) * 1024
        master = np.random.default_rng(0).standard_normal((8192, 1024), np.float32)
        mirror = master.copy()
        mirror[::4] += 1
        with td.open(sys.argv[1], diff_threshold=0) as store:
            store.register_round({"m": master, "a": mirror}, master="m")
        with td.open(sys.argv[1], "r") as store:
            store.reconstruct("a", copy=False, blocks=[0, 1])
            mapping._most_maps = lambda: mapping._Region.live_maps + 20
            before = proportional()
            taken = store.reconstruct("a", copy=False)
            print((proportional() - before) / mirror[::4].nbytes)
            assert (taken == mirror).all() and (store.reconstruct("a") == mirror).all()
    """
    assert 0.9 < float(in_new_process(script, str(tmp_path / "s.td"))) < 1.5


@pytest.mark.parametrize("shape", [PAGE_BLOCK, ODD_BLOCK], ids=["pages", "no pages"])
@pytest.mark.parametrize("left", [0, 1, 2, 3, 5, 10, 30, 60, 200])
def test_however_few_maps_are_left_the_bytes_are_right(
    storage: td.TokenDanceStorage, left: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = filled(storage, shape)
    allow(monkeypatch, left)
    kept = [(agent, storage.reconstruct(agent, copy=False)) for _ in range(3) for agent in caches]
    for agent, taken in kept:
        assert same(taken, caches[agent])
    assert mapping._Region.live_maps <= mapping._most_maps()
    parts = {agent: storage.reconstruct(agent, copy=False, blocks=slice(4, 70)) for agent in caches}
    for agent, taken in parts.items():
        assert same(taken, caches[agent][4:70])


def test_a_process_stays_below_the_systems_limit(tmp_path: Path) -> None:
    """80 agents of 1,536 runs each would take 122,880 maps; the system allows 65,530."""
    script = """
        import sys
        import numpy as np, tokendance as td
        from pathlib import Path
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
        master = np.arange(3072 * 1024, dtype=np.float32).reshape(3072, 1024)
        mirror = master.copy()
        mirror[1::4] += 1
        with td.open(sys.argv[1], diff_threshold=0) as store:
            store.register_round({"m": master, "a": mirror}, master="m")
            kept = [store.reconstruct("a", copy=False) for _ in range(80)]
            maps = len(Path("/proc/self/maps").read_text().splitlines())
            assert all((one == mirror).all() for one in kept)
        print(maps < limit or limit < 1000)
    """
    assert in_new_process(script, str(tmp_path / "s.td")) == "True\n"


def test_the_systems_own_refusal_is_met(tmp_path: Path) -> None:
    """Somebody else in the process has nearly all maps: the bytes are right, or a MemoryError says why."""
    script = """
        import mmap, sys
        import numpy as np, tokendance as td
        from pathlib import Path
        def left():
            return len(list(Path("/proc/self/fd").iterdir()))
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
        if limit > 100_000:
            print("right 1 raised 1"); sys.exit()
        master = np.arange(2048 * 1024, dtype=np.float32).reshape(2048, 1024)
        mirror = master.copy()
        mirror[1::64] += 1
        store = td.open(sys.argv[1], diff_threshold=0)
        memory = td.TokenDanceStorage(diff_threshold=0)
        for one in (store, memory):
            one.register_round({"m": master, "a": mirror}, master="m")
            one.reconstruct("a", copy=False)
        files, right, raised = left(), 0, 0
        others = []
        # A page of every other protection each, so that the system cannot join them.
        for want in (limit - 3000, limit - 60, limit - 20, limit - 5, limit):
            have = len(Path("/proc/self/maps").read_bytes().splitlines())
            for n in range(want - have):
                try:
                    others.append(mmap.mmap(-1, 4096, prot=(mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)[n % 2]))
                except OSError:
                    break
            for one in (store, memory):
                try:
                    assert (one.reconstruct("a", copy=False) == mirror).all()
                    right += 1
                except MemoryError as error:
                    assert len(str(error).splitlines()) == 1
                    raised += 1
        del others
        assert left() == files
        for one in (store, memory):
            assert (one.reconstruct("a", copy=False) == mirror).all()
        print("right", min(right, 1), "raised", raised)
    """
    assert in_new_process(script, str(tmp_path / "s.td")).startswith("right 1 raised")


# No memory, no maps at all -------------------------------------------------------------------------------------------


def test_a_limit_on_address_space_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    script = """
        import gc, resource, sys
        import numpy as np, tokendance as td
        from pathlib import Path
        from tokendance.store import fresh
        def left():
            fresh._spare.clear()  # memory that is kept for the next who asks
            gc.collect()
            return len(list(Path("/proc/self/fd").iterdir())), len(Path("/proc/self/maps").read_text().splitlines())
        master = np.arange(16384 * 1024, dtype=np.float32).reshape(16384, 1024)
        storages = [td.open(sys.argv[1], diff_threshold=0), td.TokenDanceStorage(diff_threshold=0)]
        for storage in storages:
            storage.register_master("m", master)
            for copy in (True, False):
                storage.reconstruct("m", copy=copy)
        before, unlimited = left(), resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), unlimited[1]))
        told = []
        for storage in storages:
            for call in (
                lambda: storage.reconstruct("m", copy=False, blocks=slice(0, 15000)),
                lambda: storage.reconstruct("m", blocks=np.arange(16384)),
                lambda: storage.reconstruct_many(copy=False),
            ):
                for _ in range(20):
                    try:
                        call()
                        told.append("nothing")
                    except MemoryError as error:
                        told.append(str(error))
        few = [storage.reconstruct("m", copy=False, blocks=slice(0, 1000)) for storage in storages]
        assert all((one == master[:1000]).all() for one in few)
        del few
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        assert "nothing" not in told, told
        assert all(len(text.splitlines()) == 1 for text in told), told
        files, maps = left()
        assert files == before[0] and abs(maps - before[1]) <= 4, (files, maps, before)
        assert all((storage.reconstruct("m", copy=False) == master).all() for storage in storages)
        print("fine")
    """
    assert in_new_process(script, str(tmp_path / "s.td")) == "fine\n"


@pytest.mark.parametrize("after", [0, 1, 2, 7, 20])
def test_a_map_that_is_refused_half_way_leaves_nothing(
    storage: td.TokenDanceStorage, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = filled(storage)
    for agent in caches:
        storage.reconstruct(agent, copy=False)
        storage.reconstruct(agent)
    gc.collect()
    before = n_files(), n_maps(), mapping._Region.live_maps
    real, calls = mapping._system_mmap(), [0]

    def refusing(*arguments: Any) -> Any:
        import ctypes

        calls[0] += 1
        if calls[0] > after:
            ctypes.set_errno(errno.ENOMEM)
            return ctypes.c_void_p(-1).value
        return real(*arguments)

    monkeypatch.setattr(mapping, "_system_mmap", lambda: refusing)
    for agent in caches:
        calls[0] = 0
        assert same(storage.reconstruct(agent, copy=False), caches[agent])
    assert calls[0]
    monkeypatch.undo()
    gc.collect()
    assert (n_files(), mapping._Region.live_maps) == (before[0], before[2])
    assert abs(n_maps() - before[1]) <= 2


def _without_private_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MAP_PRIVATE")


def _without_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")


@pytest.mark.parametrize("missing", [_without_private_maps, _without_memory_files])
@pytest.mark.parametrize("shape", [PAGE_BLOCK, ODD_BLOCK], ids=["pages", "no pages"])
def test_a_system_without_such_maps_copies_and_says_so_once(
    storage: td.TokenDanceStorage,
    shape: tuple[int, ...],
    missing: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caches = filled(storage, shape)
    if missing is _without_memory_files and isinstance(storage, td.TokenDanceStore):
        pytest.skip("a store on disk needs none")
    missing(monkeypatch)
    for agent, cache in caches.items():
        caplog.clear()
        with caplog.at_level(logging.INFO, "tokendance"):
            taken = storage.reconstruct(agent, copy=False)
        assert [text for text in told(caplog) if "copied, not mapped" in text] == told(caplog)
        assert len(told(caplog)) == 1
        assert len(told(caplog)[0].splitlines()) == 1
        assert same(taken, cache)
        taken[:] = 0
        assert same(storage.reconstruct(agent), cache)


# Nothing leaks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_ten_thousand_reconstructions_of_all_kinds_leak_nothing(where: str, tmp_path: Path) -> None:
    script = """
        import gc, sys
        import numpy as np, tokendance as td
        from pathlib import Path
        from tokendance.store.mapping import _Region
        def left():
            gc.collect()
            return (
                len(list(Path("/proc/self/fd").iterdir())),
                len(Path("/proc/self/maps").read_text().splitlines()),
                _Region.live_maps,
            )
        path, where = sys.argv[1:]
        shapes = {"page": (1024,), "odd": (1000,)}
        rng, opened, caches = np.random.default_rng(0), [], {}
        for name, shape in shapes.items():
            if where == "disk":
                storage = td.open(f"{path}/{name}.td", diff_threshold=0, ragged=True)
            else:
                storage = td.TokenDanceStorage(diff_threshold=0, ragged=True)
            master = rng.standard_normal((24, *shape), np.float32)
            mirror = master.copy()
            mirror[[3, 4, 9]] += 1
            caches = {"m": master, "a": mirror, "b": np.concatenate((mirror[:2] + 5, master))}
            storage.register_master("m", master)
            for agent in "ab":
                storage.register_mirror(agent, caches[agent], base="auto")
            opened.append((storage, caches))

        def once(turn):
            storage, caches = opened[turn % 2]
            agent = "mab"[turn % 3]
            kind = turn % 7
            if kind < 3:
                kept = storage.reconstruct(agent, copy=False)
                if kind:  # a view outlives its array, and is right
                    view = kept[1:3].view(np.uint8)[:, 5:]
                    del kept
                    assert (view == caches[agent][1:3].view(np.uint8)[:, 5:]).all()
                if kind == 2:  # and an array in a cycle is met by the collector alone
                    cycle = [view]
                    cycle.append(cycle)
            elif kind == 3:
                storage.reconstruct(agent, copy=True)
            elif kind == 4:
                storage.reconstruct(agent, copy=bool(turn & 1), blocks=[0, 5, 4])
            elif kind == 5:
                for one in storage.reconstruct_many(copy=False).values():
                    one[0] = 1
            else:
                storage.reconstruct(agent, out=np.empty_like(caches[agent]))

        for turn in range(84):
            once(turn)
        before = left()
        for turn in range(10_000):
            once(turn)
        after = left()
        assert after[0] == before[0] and after[2] == before[2], (before, after)
        assert abs(after[1] - before[1]) <= 4, (before, after)
        for storage, _ in opened:
            storage.close()
        print("nothing")
    """
    assert in_new_process(script, str(tmp_path), where) == "nothing\n"


def test_a_view_keeps_its_maps_and_the_last_one_lets_go(storage: td.TokenDanceStorage) -> None:
    caches = filled(storage)
    storage.reconstruct("scattered", copy=False)
    gc.collect()
    before, live = n_maps(), mapping._Region.live_maps
    taken = storage.reconstruct("scattered", copy=False)
    views = [taken[7:9], taken.reshape(-1)[::3], taken.view(np.uint8)[..., 1:], memoryview(taken)]
    expected = caches["scattered"]
    del taken
    gc.collect()
    assert n_maps() > before
    assert same(views[0], expected[7:9])
    assert same(np.ascontiguousarray(views[1]), np.ascontiguousarray(expected.reshape(-1)[::3]))
    assert bytes(views[3]) == expected.tobytes()
    del views[1:]
    assert same(views[0], expected[7:9])
    del views
    gc.collect()
    assert (n_maps(), mapping._Region.live_maps) == (before, live)
