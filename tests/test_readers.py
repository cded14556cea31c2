"""Readers in other processes, while somebody writes, collects, replaces or removes the store that they read."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from other_process import OtherProcess, ToldError
from told_process import SHAPE, bits

import tokendance as td

NOBODY = 65534


def round_of(number: int, n: int = 24) -> dict[str, np.ndarray]:
    """The caches of a generation, which no other has."""
    master = np.random.default_rng(number).standard_normal((n, *SHAPE)).astype(np.float32)
    a, b = master.copy(), master.copy()
    a[[2, 3, 9]] = number
    b[::5] = -number
    return {"m": master, "a": a, "b": b}


def prints(caches: dict[str, np.ndarray]) -> dict[str, str]:
    return {agent: bits(cache) for agent, cache in caches.items()}


def make_store(path: Path) -> None:
    """A store of generation 2, tagged in none."""
    with td.open(path, diff_threshold=0, ragged=True) as store:
        store.register_round(round_of(2), master="m")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Chunks so small that these caches have several.
    monkeypatch.setattr("tokendance.store.layout.CHUNK_BYTES", 32 << 10)
    monkeypatch.setattr("tokendance.store.layout.SMALL_CHUNK_BYTES", 16 << 10)
    make_store(tmp_path / "s.td")
    return tmp_path / "s.td"


# What becomes of the store that somebody reads ----------------------------------------------------------------------


def commit_many(path: Path) -> None:
    with td.open(path, mode="r+") as store:
        for turn in range(20):  # more than a commit leaves
            store.register_round(round_of(100 + turn, 20 + turn))


def collect(path: Path) -> None:
    with td.open(path, mode="r+") as store:
        store.register_round(round_of(100))
        store.rebase("a")
        store.remove("b")
        assert 2 not in store.gc(), "a generation that somebody reads was collected"


def append(path: Path) -> None:
    with td.open(path, mode="r+") as store:
        for turn in range(12):
            store.collective_reuse_step(["m", "a"], round_of(turn)["m"][: 1 + turn % 3])
            store.gc()


def start_over(path: Path) -> None:
    with td.open(path, mode="w", ragged=True) as store:
        store.register_round(round_of(100))
        store.gc()


def save_over(path: Path) -> None:
    other = td.TokenDanceStorage(0, ragged=True)
    other.register_round(round_of(100))
    other.save(path)


@pytest.mark.parametrize("change", [commit_many, collect, append, start_over, save_over])
def test_a_reader_keeps_its_generation_and_its_maps(path: Path, change) -> None:
    private = round_of(2)["a"]
    private[3, 0, 0] = 7
    with OtherProcess(path) as reader:
        reader("store = td.open(path, mode='r')")
        reader("maps = {agent: store.reconstruct(agent, copy=False) for agent in store.agents}")
        reader("maps['a'][3, 0, 0] = 7")
        change(path)
        assert reader("{agent: bits(array) for agent, array in maps.items()}") == prints({**round_of(2), "a": private})
        for copy in (True, False):
            assert reader(f"looked_at(store, copy={copy})") == prints(round_of(2))
        assert reader("store.generation") == 2
        reader("store.close()")
        assert reader("{agent: bits(array) for agent, array in maps.items()}") == prints({**round_of(2), "a": private})
        with td.open(path, mode="r+") as store:
            assert store.verify().findings == ()
            store.gc()
            assert [one.number for one in store.history()] == [store.generation], "nobody reads generation 2 any more"
        assert reader("bits(maps['b'])") == bits(round_of(2)["b"])


def test_a_reader_keeps_its_maps_when_the_store_is_removed(path: Path) -> None:
    with OtherProcess(path) as reader:
        reader("store = td.open(path, mode='r')")
        reader("maps = {agent: store.reconstruct(agent, copy=False) for agent in store.agents}")
        shutil.rmtree(path)
        assert reader("{agent: bits(array) for agent, array in maps.items()}") == prints(round_of(2))
        for copy in (True, False):
            with pytest.raises(ToldError, match=r"^StoreCorruptError: .* is missing"):
                reader(f"looked_at(store, copy={copy})")
        make_store(path)  # another store of the same name is not the one that was opened
        with pytest.raises(ToldError, match="StoreCorruptError"):
            reader("looked_at(store, copy=True)")


@pytest.mark.parametrize("end", ["store.close()", "del store", "SIGKILL"])
def test_a_generation_is_collected_when_its_last_reader_is_gone(path: Path, end: str) -> None:
    with OtherProcess(path) as reader, OtherProcess(path) as another, td.open(path, mode="r+") as store:
        for one in (reader, another):
            one("store = td.open(path, mode='r')")
        store.register_round(round_of(3))
        assert store.gc() == [1]
        another.kill()
        assert store.gc() == []
        if end == "SIGKILL":
            reader.kill()
        else:
            reader(end)
        assert store.gc() == [2]


def test_a_reader_of_an_older_generation_keeps_it_from_being_pruned(path: Path) -> None:
    with td.open(path, mode="r+") as store:
        for turn in range(4):
            store.register_round(round_of(10 + turn))
        with OtherProcess(path) as reader:
            reader("store = td.open(path, mode='r', at=4)")
            for turn in range(20):
                store.register_mirror("a", round_of(100 + turn)["a"])
            numbers = [one.number for one in store.history()]
            assert numbers[0] == 4, "the prunings of 20 commits spared something else"
            assert numbers[1] > 4 + 1, "the prunings of 20 commits removed nothing"
            assert reader("looked_at(store, copy=True)") == prints(round_of(11))


def test_readers_find_only_whole_generations_while_a_writer_commits_and_collects(path: Path) -> None:
    with ExitStack() as stack:
        writer, reader, mapper, verifier = (stack.enter_context(OtherProcess(path)) for _ in range(4))
        writer("store = td.open(path, mode='w', diff_threshold=0, ragged=True)")
        start = writer("write_rounds(store, 3)")
        for one in (reader, mapper, verifier):
            one(f"watcher = Watcher(path, copy={one is reader})")
        writer.begin("write_rounds(store, 60)")
        newest, end = start, start + 60
        for one in (verifier, mapper, reader) * 8:
            one.begin("watcher.look()" if one is not verifier else "watcher.verify()")
            if one is reader:
                assert verifier.answer() > 0
                found = [mapper.answer(), reader.answer()]
                assert min(found) >= newest, "a reader went back"
                newest = max(found)
        assert writer.answer() == end
        assert newest > start, "all was over before anybody looked"
        assert [one("watcher.look()") for one in (reader, mapper)] == [end, end]


# Who writes ---------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_the_first_is(path: Path) -> None:
    with OtherProcess(path) as writer, OtherProcess(path) as second:
        writer("store = td.open(path, mode='r+')")
        for mode in ("r+", "a", "w"):
            said = second(f"raised(td.open, path, mode={mode!r})")
            assert "StoreLockedError" in said
            assert " OSError " in said
            assert f"process {writer.pid};" in said
            assert "mode='r'" in said
        said = second("raised(td.verify, path, repair=True)")
        assert f"process {writer.pid};" in said
        assert second("td.verify(path).ok")
        assert second("looked_at(td.open(path, mode='r'), copy=True)") == prints(round_of(2))
        writer("store.close()")
        second("store = td.open(path, mode='r+')")
        assert f"process {second.pid};" in writer("raised(td.open, path, mode='r+')")
    with td.open(path, mode="r+") as store:
        assert store.generation == 2


def test_two_handles_of_one_process_do_not_both_write(path: Path) -> None:
    with td.open(path, mode="r+"):
        with pytest.raises(td.StoreLockedError, match=f"process {os.getpid()};"):
            td.open(path, mode="r+")
        with td.open(path, mode="r") as reader:
            assert reader.agents == ["m", "a", "b"]


@pytest.mark.parametrize("inside", [False, True], ids=["idle", "in a transaction"])
def test_the_lock_of_a_dead_writer_is_free_and_that_of_a_stopped_one_is_not(path: Path, inside: bool) -> None:
    with OtherProcess(path) as writer:
        writer("store = td.open(path, mode='r+')")
        if inside:
            writer("change = store.transaction()")
            writer("change.__enter__()")
            writer("store.fork('a', 'f') or store.register_mirror('a', np.ones((24, *SHAPE), np.float32)) and None")
        pid = writer.pid
        writer.stop()
        with pytest.raises(td.StoreLockedError, match=f"process {pid};"):
            td.open(path, mode="r+")
        writer.kill()
        with td.open(path, mode="r+") as store:
            assert {agent: bits(store.reconstruct(agent)) for agent in store.agents} == prints(round_of(2))
            store.register_round(round_of(3))
            assert store.gc() == [1, 2]
            assert store.verify().leavings == (), "what the dead writer left is still there"


def test_a_writer_that_was_locked_out_changes_nothing(path: Path) -> None:
    def files() -> dict[str, tuple[int, int]]:
        there = [file for file in path.rglob("*") if file.name != "lock"]
        return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in there}

    with td.open(path, mode="r+"):
        before = files()
        for mode in ("r+", "a", "w"):
            with pytest.raises(td.StoreLockedError):
                td.open(path, mode=mode)
        assert files() == before
        assert path.joinpath("manifests", "lock").read_text() == str(os.getpid())


# Where nobody may write ---------------------------------------------------------------------------------------------


def reads_all(reader: OtherProcess) -> None:
    reader("store = td.open(path, mode='r')")
    for copy in (True, False):
        assert reader(f"looked_at(store, copy={copy})") == prints(round_of(2))
    assert reader("[one.number for one in store.history()]") == [1, 2]
    assert reader("store.verify().ok and td.verify(path).ok")
    assert reader("td.open(path, mode='r', at=1).agents") == []
    assert "ReadOnlyError" in reader("raised(store.remove, 'a')")
    reader("store.close()")


def cannot_write(reader: OtherProcess, error: str, reason: str) -> None:
    for call in (
        "td.open, path, mode='r+'",
        "td.open, path",
        "td.open, path, mode='w'",
        "td.verify, path, repair=True",
    ):
        said = reader(f"raised({call})")
        assert said is None or re.search(f"{error}.*{reason}", said), said
        assert said is not None or "repair" in call, f"{call} was let write"
    assert re.search(f"{error}.*{reason}", reader("raised(td.open, path + '.new', mode='w-')"))


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that everybody may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_folder_that_one_may_not_write_is_read(shared_folder: Path) -> None:
    path = shared_folder / "s.td"
    make_store(path)
    for place in (*path.rglob("*"), path, shared_folder):
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        with OtherProcess(path) as reader:
            if os.getuid() == 0:
                reader(f"become({NOBODY})")
            reads_all(reader)
            cannot_write(reader, "PermissionError", "Permission denied")
    finally:
        for place in (shared_folder, path, *path.rglob("*")):
            place.chmod(0o755)


def test_a_medium_that_cannot_be_written_is_read(path: Path) -> None:
    # In a mount namespace of its own: nobody else sees this mount, and it ends with the process.
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", script, str(path.parent)]
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("no read-only mount can be made here: it takes root and unshare")
    with OtherProcess(path, before) as reader:
        reader("os.chdir(os.path.dirname(path))")  # the process began under the mount
        reads_all(reader)
        cannot_write(reader, "OSError", "Read-only file system")
