"""Writers stopped at every step on the file system: the store holds the last acknowledged state, or the new one.

`crash_disk` says what a step is, and what a power cut leaves. `crash_scenarios` says what is stopped, and what must
hold afterwards.
"""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from crash_disk import Crash, Disk
from crash_scenarios import SCENARIOS, Scenario, State, die_at_step, go_on, holds, shows, small_chunks, which

import tokendance as td

pytestmark = pytest.mark.slow


POINTS: Counter[str] = Counter()
RAN: set[str] = set()

every_scenario = pytest.mark.parametrize("name", SCENARIOS)


@pytest.fixture(autouse=True)
def _many_chunks(monkeypatch) -> None:
    small_chunks(monkeypatch)


@pytest.fixture(scope="module")
def sandbox():
    """A folder in memory where there is one: thousands of stores are made and dropped here."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def prepared(sandbox):
    """Return a function that copies a scenario's store, made once, into a fresh folder."""
    numbers, made = count(), {}

    def fresh(name: str) -> tuple[Path, State]:
        prepare = SCENARIOS[name].prepare
        if prepare not in made:
            box = sandbox / prepare.__name__
            box.mkdir()
            with Disk(box).mounted():
                made[prepare] = box, prepare(box / "s.td")
        box, state = made[prepare]
        target = sandbox / str(next(numbers))
        shutil.copytree(box, target)
        return target / "s.td", state

    return fresh


def start(scenario: Scenario, path: Path) -> td.TokenDanceStorage | Path:
    return path if scenario.opens else td.open(path, mode="r+")


def states(name: str, before: State, *, whole: bool) -> list[State]:
    after = SCENARIOS[name].after(before)
    return [after] if whole else [before, after]


def crash_at(disk: Disk, scenario: Scenario, path: Path, step: int) -> bool:
    """Crash in a scenario's operation; False if it was over before that step."""
    subject = start(scenario, path)
    disk.arm(step, "crash")
    try:
        scenario.change(subject)
    except Crash:
        return True
    finally:
        disk.dead = True
        del subject
    return False


def remains(path: Path, name: str, before: State, *, whole: bool, writer: bool = True) -> None:
    """Check a store that a writer was stopped in, and that the next writer can go on."""
    with Disk(path.parent).mounted():
        if name == "create" and not path.exists():
            assert not whole
            td.open(path, diff_threshold=0, ragged=True).close()
        state = which(path, states(name, before, whole=whole))
        if writer:
            assert td.verify(path).findings == ()
            go_on(path, state)


@every_scenario
def test_a_crash_or_a_power_cut_at_any_step_leaves_the_old_state_or_the_new(name: str, prepared) -> None:
    for step in count():
        path, before = prepared(name)
        disk = Disk(path.parent, track=True)
        with disk.mounted():
            crashed = crash_at(disk, SCENARIOS[name], path, step)
        for turn, keep in enumerate(("least", f"{name} {step}" if step % 2 else "names")):
            cut = path.parent.with_name(f"{path.parent.name} {keep}")
            disk.power_cut(cut, keep)
            try:
                remains(cut / "s.td", name, before, whole=not crashed, writer=turn == step // 2 % 2)
            except Exception as error:
                error.add_note(f"power cut before step {step}, kept {keep!r}; steps: {disk.steps}")
                raise
            POINTS["power cut"] += 1
        remains(path, name, before, whole=not crashed)
        POINTS["crash"] += crashed
        if not crashed:
            break
    RAN.add(f"crash {name}")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=lambda code: errno.errorcode[code])
@every_scenario
def test_a_failed_step_changes_nothing_and_can_be_tried_again(name: str, code: int, prepared) -> None:
    scenario = SCENARIOS[name]
    for step in count():
        path, before = prepared(name)
        after = scenario.after(before)
        with Disk(path.parent).mounted() as disk:
            subject = start(scenario, path)
            disk.arm(step, code)
            failed = False
            try:
                scenario.change(subject)
            except OSError:
                failed = True
            if failed:
                disk.disarm()
                _old_state_stands(subject, path, name, before, f"failed at step {step} of {disk.steps}")
                scenario.change(subject)
            over = step >= len(disk.steps)
            disk.disarm()
            if isinstance(subject, td.TokenDanceStorage):
                assert holds(subject, after.caches) and set(subject.tags) == set(after.tags)
                subject.close()
            assert shows(path, after), f"failed at step {step} of {disk.steps}"
        if over:
            break
        POINTS[errno.errorcode[code]] += 1
    RAN.add(f"{errno.errorcode[code]} {name}")


def _old_state_stands(subject: td.TokenDanceStorage | Path, path: Path, name: str, before: State, where: str) -> None:
    if isinstance(subject, td.TokenDanceStorage):
        assert holds(subject, before.caches) and set(subject.tags) == set(before.tags), where
    if name != "create" or path.exists():
        assert shows(path, before), f"the call raised, and the store is not what it was: {where}"


@every_scenario
def test_a_killed_writer_leaves_the_old_state_or_the_new(name: str, prepared, tmp_path) -> None:
    scenario = SCENARIOS[name]
    path, before = prepared(name)
    with Disk(path.parent).mounted() as disk:
        subject = start(scenario, path)
        disk.arm(-1, "crash")
        scenario.change(subject)
        del subject
    for step in range(1, len(disk.steps), max(len(disk.steps) // 3, 1)):
        path, before = prepared(name)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["crash_scenarios", "tokendance.opening", "tokendance.kernels.diff"])
        child = context.Process(target=die_at_step, args=(str(path), name, step))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        remains(path, name, before, whole=False)
        POINTS["SIGKILL"] += 1
    RAN.add(f"SIGKILL {name}")


def test_a_batch_of_many_files_survives_a_power_cut(tmp_path) -> None:
    # More files than may wait for their sync at once: folders that were synced early have got more names since.
    caches = {f"agent {i}": blocks_of(i) for i in range(60)}
    (tmp_path / "box").mkdir()
    path = tmp_path / "box" / "s.td"
    with Disk(tmp_path / "box").mounted():
        td.open(path, diff_threshold=0).close()
    disk = Disk(tmp_path / "box", track=True)
    with disk.mounted(), td.open(path) as store:
        store.register_round(caches, master="agent 0")
    disk.power_cut(tmp_path / "cut", "least")
    with Disk(tmp_path / "cut").mounted():
        assert shows(tmp_path / "cut" / "s.td", State(caches, {}))
    POINTS["power cut"] += 1


def test_a_master_of_many_chunks_survives_a_power_cut(tmp_path) -> None:
    (tmp_path / "box").mkdir()
    path = tmp_path / "box" / "s.td"
    cache = np.arange(8 * 300 * 1024 // 4, dtype=np.float32).reshape(8 * 300, 256)
    disk = Disk(tmp_path / "box", track=True)
    with disk.mounted(), td.open(path, diff_threshold=0) as store:
        store.register_master("m", cache)
    disk.power_cut(tmp_path / "cut", "least")
    with Disk(tmp_path / "cut").mounted():
        assert shows(tmp_path / "cut" / "s.td", State({"m": cache}, {}))
    POINTS["power cut"] += 1


def blocks_of(seed: int) -> np.ndarray:
    return np.full((2, 3), seed, np.float32)


AUDITED = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate", "os.symlink", "os.chmod"}
_seen: list[str] | None = None


def _listen(event: str, args: tuple) -> None:
    if _seen is None or event not in AUDITED:
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & 0o103):  # O_WRONLY, O_RDWR, O_CREAT
        return
    _seen.append(event)


def test_no_change_of_the_disk_escapes_the_harness(prepared) -> None:
    global _seen
    sys.addaudithook(_listen)
    names = {"open": "open", "os.mkdir": "mkdir", "os.rename": "rename", "os.link": "link"}
    names |= {"os.remove": "unlink", "os.rmdir": "rmdir", "os.truncate": "ftruncate"}
    for name, scenario in SCENARIOS.items():
        path, _ = prepared(name)
        with Disk(path.parent).mounted() as disk:
            subject = start(scenario, path)
            disk.arm(-1, "crash")
            _seen = []
            scenario.change(subject)
            seen, _seen = _seen, None
            del subject
        stepped = Counter(step.split()[0] for step in disk.steps if step.split()[0] in names.values())
        assert Counter(names.get(event, event) for event in seen) == stepped, name


def test_crash_points_were_many() -> None:
    if len(RAN) < 4 * len(SCENARIOS):
        pytest.skip("counts what the other tests ran; run the whole file")
    print("crash points run:", sum(POINTS.values()), dict(POINTS))
    assert sum(POINTS.values()) > 2000
