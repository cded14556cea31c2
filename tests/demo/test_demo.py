"""The demo as people run it: real processes, a small decoder so that a run takes a second or two."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tokendance as td
from tokendance.demo.check import CheckFailedError, check_in_child, check_store, first_difference
from tokendance.demo.decoder import DecoderConfig
from tokendance.demo.dialogue import N_ROUNDS, SPEAKERS, private_text, shared_text
from tokendance.demo.disk import disk_usage

pytest.importorskip("typer", reason="the command needs the [cli] extra")

from tokendance.demo.run import run_demo

SMALL = DecoderConfig(n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, width=48, hidden_width=64)
RUN_SMALL = f"""
import sys
from pathlib import Path
from tokendance.demo.decoder import DecoderConfig
from tokendance.demo.run import run_demo
sys.exit(run_demo(Path(sys.argv[1]), {SMALL!r}))
"""


def python(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


def command(*arguments, cwd=None):
    return python("-m", "tokendance", *arguments, cwd=cwd)


def assert_one_line(done, status, *words):
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"tokendance: [^\n]+\n", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    store = tmp_path_factory.mktemp("demo") / "small.td"
    return store, python("-c", RUN_SMALL, store)


@pytest.fixture
def own_run(tmp_path):
    """A small demo's store beside its dense caches, for the test to damage."""
    store, dense = tmp_path / "own.td", tmp_path / "dense"
    dense.mkdir()
    rng = np.random.default_rng(3)
    master = rng.standard_normal((40, 2, 16, 16), dtype=np.float32)
    caches = {}
    for number, name in enumerate(("Ines", "Bram", "Odile")):
        caches[name] = master.copy()
        caches[name][30 + number :] += 1
        np.save(dense / f"{name}.npy", caches[name])
    with td.open(store, mode="w", diff_threshold=0.0, ragged=True) as storage:
        storage.register_round(caches)
    return store, dense


def test_ends_with_all_agents_identical(small_run):
    store, done = small_run
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == "all agents identical"
    assert lines[-2] == f"the store stays in {store}"
    assert "can never exceed 8 for 8 agents" in done.stdout
    assert "per-mirror ratio" in done.stdout


def test_piped_output_is_plain_and_80_columns_wide(small_run):
    _, done = small_run
    assert "\x1b" not in done.stdout
    assert done.stdout.isascii()
    path_line = "the store stays in "
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith(path_line)) <= 80
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]


def test_the_store_that_it_leaves(small_run):
    store, _ = small_run
    with td.open(store, mode="r") as storage:
        for number in range(N_ROUNDS):
            with td.open(store, mode="r", at=storage.generation - number) as earlier:
                assert {earlier.meta(agent)["round"] for agent in earlier.agents} == {N_ROUNDS - number}
        assert set(storage.agents) == {speaker.name for speaker in SPEAKERS}
        for speaker in SPEAKERS:
            n_tokens = len((shared_text(N_ROUNDS) + private_text(speaker, N_ROUNDS)).encode())
            meta = storage.meta(speaker.name)
            assert meta["tokens"] == n_tokens
            blocks = storage.reconstruct(speaker.name)
            assert blocks.shape == (-(-n_tokens // 16) * meta["layers"] * 2, 2, 16, 16)
        first_tail_block = len(shared_text(N_ROUNDS).encode()) // 16 * SMALL.n_layers * 2
        for mirror in storage.mirrors.values():
            # A first layer sees no context: the same bytes at the same place are the same block there.
            private = range(first_tail_block, mirror.total_blocks)
            with_context = {block for block in private if block // 2 % SMALL.n_layers > 0}
            assert with_context <= set(mirror.block_indices.tolist()) <= set(private)


def test_an_earlier_demo_is_replaced(small_run, tmp_path, capsys):
    store = tmp_path / "again.td"
    assert run_demo(store, SMALL) == 0
    size = disk_usage(store)
    assert run_demo(store, SMALL) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all agents identical"
    assert abs(disk_usage(store).allocated - size.allocated) < 100_000


def test_a_differing_agent_is_named_and_the_status_is_1(tmp_path, capsys, monkeypatch):
    from tokendance.demo import rounds

    save_dense = rounds.save_dense

    def save_another(blocks, folder):
        blocks["Wren"].view(np.uint8)[17, 1, 3, 5] ^= 1
        save_dense(blocks, folder)

    monkeypatch.setattr(rounds, "save_dense", save_another)
    assert run_demo(tmp_path / "damaged.td", SMALL) == 1
    out = capsys.readouterr().out
    assert "all agents identical" not in out
    assert out.splitlines()[-1].startswith("Wren is not identical at block 17: 1 of ")


def test_a_flipped_byte_on_disk_is_found(own_run):
    store, dense = own_run
    assert check_in_child(store, dense).identical
    chunk = max((store / "mirrors").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    chunk.chmod(0o644)
    damaged = bytearray(chunk.read_bytes())
    damaged[100] ^= 0x10
    chunk.write_bytes(damaged)
    record = check_in_child(store, dense)
    assert not record.identical
    assert len(record.differences) == 1


def test_an_agent_too_few_or_of_another_shape(own_run):
    store, dense = own_run
    np.save(dense / "Tomas.npy", np.zeros((2, 2, 16, 16), dtype=np.float32))
    np.save(dense / "Odile.npy", np.zeros((2, 2, 16, 16), dtype=np.float32))
    (dense / "Bram.npy").unlink()
    reasons = {difference.agent: difference.reason for difference in check_store(store, dense).differences}
    assert reasons.keys() == {"Bram", "Odile", "Tomas"}
    assert "(40, 2, 16, 16)" in reasons["Odile"]
    assert "not in both" in reasons["Bram"]


def test_a_check_that_cannot_be_done_says_why(tmp_path):
    with pytest.raises(CheckFailedError, match=r"ended with status 1: .*none\.td"):
        check_in_child(tmp_path / "none.td", tmp_path)


def test_first_difference_compares_bits():
    zeros = np.zeros((5, 2), dtype=np.float32)
    other = zeros.copy()
    other[[2, 4], 1] = -0.0
    assert first_difference(zeros, zeros.copy()) is None
    assert first_difference(zeros, other) == (2, 2)


def test_refuses_what_is_not_a_store(tmp_path):
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "photo.txt").write_text("the sea")
    file = tmp_path / "letter"
    file.write_text("Dear Ines")
    for path in (folder, file):
        assert_one_line(command("demo", "--store", path), 1, str(path), "--store")
    assert [entry.name for entry in folder.iterdir()] == ["photo.txt"]
    assert (folder / "photo.txt").read_text() == "the sea"
    assert file.read_text() == "Dear Ines"


def test_refuses_a_store_that_no_demo_made(own_run):
    store, dense = own_run
    assert_one_line(command("demo", "--store", store), 1, "no demo made")
    assert check_in_child(store, dense).identical


def test_bad_usage_is_one_line():
    assert_one_line(command("dmeo"), 2, "dmeo")
    assert_one_line(command("demo", "--rounds", "4"), 2, "--rounds")


def test_version_and_help():
    assert re.fullmatch(r"tokendance \d+\.\d+\.\d+\S*\n", command("--version").stdout)
    done = command()
    assert done.returncode == 0
    assert "demo" in done.stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_cli_extra_one_line_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from tokendance.cli import main; main()"
    assert_one_line(python("-c", code), 1, missing, "pip install 'tokendance[cli]'")


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path):
    code = RUN_SMALL.replace("sys.exit(run_demo", "import tokendance.cli, tokendance.demo.run as run\n#")
    code += f"\nstandard = run.run_demo\nrun.run_demo = lambda store: standard(store, {SMALL!r})\n"
    code += "sys.argv = ['tokendance', 'demo', '--store', sys.argv[1]]\ntokendance.cli.main()\n"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "early.td")], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_checking_process_loads_neither_decoder_nor_rich():
    code = "import sys, tokendance.demo.check; print({'rich', 'tokendance.demo.decoder'} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"


def test_disk_usage_counts_a_file_with_two_names_once(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one").write_bytes(bytes(100_000))
    before = disk_usage(tmp_path)
    os.link(tmp_path / "folder" / "one", tmp_path / "two")
    assert disk_usage(tmp_path) == before
    assert before.apparent >= 100_000
    counted = subprocess.run(["du", "-s", "-B1", tmp_path], capture_output=True, text=True).stdout
    assert before.allocated == int(counted.split()[0])


def test_every_speaker_has_something_to_say_in_every_round():
    assert len({speaker.name for speaker in SPEAKERS}) == len(SPEAKERS) == 8
    for number in range(1, N_ROUNDS + 1):
        private = [private_text(speaker, number) for speaker in SPEAKERS]
        assert len(set(private)) == 8
        assert not any(speaker.notebook in shared_text(number) for speaker in SPEAKERS)
    assert all(speaker.lines[1] in shared_text(3) for speaker in SPEAKERS)


@pytest.mark.slow
def test_the_command_itself_at_full_size(tmp_path):
    done = command("demo", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nall agents identical\n")
    assert Path(tmp_path / "tokendance-demo.td").is_dir()
