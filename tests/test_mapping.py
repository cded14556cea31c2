"""copy=False: private arrays made of address space, from a store and from memory."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from process_counts import n_files, n_maps

import tokendance as td
from tokendance.store import mapping, page_table

PAGE_BLOCK = (4, 256)  # 4 KiB of float32


@pytest.fixture(params=["memory", "disk"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[td.TokenDanceStorage]:
    made = td.TokenDanceStorage() if request.param == "memory" else td.open(tmp_path / "s.td")
    with made:
        yield made


def filled(storage: td.TokenDanceStorage, n: int = 64, shape: tuple[int, ...] = PAGE_BLOCK) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    caches = {"m": rng.standard_normal((n, *shape)).astype(np.float32)}
    for seed, agent in enumerate("ab"):
        caches[agent] = caches["m"].copy()
        caches[agent][[seed, 7 + seed, 8 + seed, n - 1]] += 1
    storage.register_round(caches, master="m")
    return caches


def equal(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def test_whole_pages_are_mapped_and_not_copied(storage: td.TokenDanceStorage) -> None:
    caches = filled(storage)
    before = n_maps()
    mapped = storage.reconstruct("a", copy=False)
    assert n_maps() >= before + 4
    named = [line for line in Path("/proc/self/maps").read_text().splitlines() if "c.0.0" in line or "memfd" in line]
    assert any(line.split()[1].endswith("p") and "w" in line.split()[1] for line in named)
    assert equal(mapped, caches["a"])


@pytest.mark.parametrize("shape", [(3,), (5, 7), (1000,), (1025,), (2048,)])
def test_blocks_that_are_no_whole_pages_come_back_the_same(storage: td.TokenDanceStorage, shape) -> None:
    caches = filled(storage, 300, shape)
    for agent, cache in caches.items():
        assert equal(storage.reconstruct(agent, copy=False), cache)
        assert equal(storage.reconstruct(agent, copy=False, blocks=slice(3, 200, 2)), cache[3:200:2])


def test_writing_is_private(storage: td.TokenDanceStorage) -> None:
    caches = filled(storage)
    first, second = (storage.reconstruct("a", copy=False) for _ in range(2))
    first[:] = 5
    assert equal(second, caches["a"])
    for agent, cache in caches.items():
        assert equal(storage.reconstruct(agent), cache)


def test_a_mapped_array_outlives_all_that_happens_to_the_storage(storage: td.TokenDanceStorage) -> None:
    caches = filled(storage)
    mapped = {agent: storage.reconstruct(agent, copy=False) for agent in caches}
    storage.register_master("m", caches["m"] * 2)
    storage.collective_reuse_step(["a"], caches["m"][:5])
    storage.rebase("b")
    storage.remove("a")
    if isinstance(storage, td.TokenDanceStore):
        storage.gc()
    storage.close()
    for agent, cache in caches.items():
        assert equal(mapped[agent], cache)


def test_what_a_given_up_append_wrote_is_seen_by_nobody_else(storage: td.TokenDanceStorage) -> None:
    caches = filled(storage)
    seen: list[np.ndarray] = []
    with pytest.raises(ZeroDivisionError), storage.transaction():
        storage.collective_reuse_step(["a"], caches["m"][:2])
        seen.append(storage.reconstruct("a", copy=False))
        raise ZeroDivisionError
    storage.collective_reuse_step(["a"], caches["m"][10:12])
    assert equal(seen[0], np.concatenate((caches["a"], caches["m"][:2])))
    assert equal(storage.reconstruct("a"), np.concatenate((caches["a"], caches["m"][10:12])))
    assert equal(storage.reconstruct("m"), np.concatenate((caches["m"], caches["m"][10:12])))


def test_ten_thousand_reconstructions_leak_nothing(storage: td.TokenDanceStorage) -> None:
    filled(storage, 16)
    storage.reconstruct("a", copy=False)
    before = n_files(), n_maps()
    for _ in range(10_000):
        storage.reconstruct("a", copy=False)
    assert n_files() == before[0]
    assert abs(n_maps() - before[1]) <= 2


def test_too_many_maps_are_avoided_by_copying(storage: td.TokenDanceStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = filled(storage)
    monkeypatch.setattr(mapping, "_most_maps", lambda: mapping._Region.live_maps + 25)
    kept = [storage.reconstruct("a", copy=False) for _ in range(20)]
    assert all(equal(one, caches["a"]) for one in kept)
    monkeypatch.setattr(page_table, "MOST_PIECES", 1)
    assert equal(storage.reconstruct("b", copy=False), caches["b"])


def test_a_system_that_refuses_maps_gets_copies(storage: td.TokenDanceStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = filled(storage)
    monkeypatch.setattr(mapping, "_system_mmap", lambda: lambda *_: -1)
    for agent, cache in caches.items():
        taken = storage.reconstruct(agent, copy=False)
        assert taken.flags.writeable and equal(taken, cache)


def test_a_forked_child_and_its_parent_append_apart() -> None:
    script = """
        import os, sys
        import numpy as np, tokendance as td
        master = np.arange(64 * 1024, dtype=np.float32).reshape(64, 1024)
        storage = td.TokenDanceStorage()
        storage.register_master("m", master)
        storage.register_mirror("a", master + 1)
        mapped = storage.reconstruct("a", copy=False)
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            storage.collective_reuse_step(["a"], master[:3])
            mapped[:] = 0
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            assert (storage.reconstruct("m")[64:] == master[:3]).all()
            os._exit(0)
        os.read(ready[0], 1)
        storage.collective_reuse_step(["a"], master[5:8])
        os.write(go[1], b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (mapped == master + 1).all()
        assert (storage.reconstruct("m")[64:] == master[5:8]).all()
        assert (storage.reconstruct("a", copy=False)[64:] == master[5:8]).all()
        print("apart")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "apart\n", done.stderr


def test_many_agents_share_the_pages_that_none_has_changed(tmp_path: Path) -> None:
    """32 agents of 8 MiB, mapped and read whole, add to memory what is theirs alone."""
    script = """
        import re, sys
        import numpy as np, tokendance as td
        def proportional():
            return int(re.search(r"^Pss: *(\\d+)", open("/proc/self/smaps_rollup").read(), re.M)[1]) * 1024
        with td.open(sys.argv[1], mode="r") as s:
            before = proportional()
            kept = [s.reconstruct(agent, copy=False) for agent in s.agents]
            total = sum(int(one.view(np.uint8).sum(dtype=np.uint64)) for one in kept)
            print(proportional() - before)
    """
    rng = np.random.default_rng(0)
    master = rng.integers(0, 255, (256, 1 << 15), np.uint8)
    caches = {"m": master}
    for agent in range(31):
        caches[f"a{agent}"] = master.copy()
        caches[f"a{agent}"][rng.choice(256, 15, replace=False)] += 1
    with td.open(tmp_path / "s.td") as s:
        s.register_round(caches, master="m")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "s.td")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    unique = master.nbytes + 31 * 15 * (1 << 15)
    assert int(done.stdout) <= 1.25 * unique, done.stderr


def test_a_system_without_memory_files_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = td.TokenDanceStorage()
    caches = filled(storage)
    monkeypatch.delattr(os, "memfd_create")
    assert equal(storage.reconstruct("a", copy=False), caches["a"])
