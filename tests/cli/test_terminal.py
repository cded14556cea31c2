"""The command in a terminal: bars, tables that fit, Ctrl-C, and what the shell is told; and none of it in a pipe."""

import re
import subprocess
import sys

import numpy as np
import pytest
from command_line import contents, environment, run, run_in_terminal

import tokendance as td

SNAPSHOT = ("snapshot", "large.td", "one.npy", "two.npy", "three.npy")


@pytest.fixture
def large(room):
    """Caches that take a while: their files are holes, so that making them takes none."""
    for name in ("one", "two", "three"):
        np.lib.format.open_memmap(room / f"{name}.npy", "w+", np.float32, (1024, 4, 64, 64)).flush()
    return room


def test_a_bar_with_bytes_and_only_in_a_terminal(large):
    done = run_in_terminal(*SNAPSHOT, cwd=large, columns=100)
    assert done.status == 0
    assert "choosing a master" in done.plain
    assert "storing one.npy" in done.plain
    assert re.search(r"MiB of 192\.0 MiB, [\d.]+ [KMG]iB/s", done.plain)
    assert "three: 64.0 MiB in 1,024 blocks" in done.plain
    # What is left on the screen is the answer alone.
    assert done.out.endswith("cohort ratio 3.00\r\n")
    piped = run(*SNAPSHOT, cwd=large, env=environment(FORCE_COLOR="1", TTY_COMPATIBLE="1"))
    assert (piped.status, piped.err) == (0, "")
    assert "storing" not in piped.out
    assert "\x1b" not in piped.out


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_tables_fit_the_terminal(room, columns):
    done = run_in_terminal("info", "round.td", cwd=room, columns=columns)
    assert done.status == 0
    lines = done.plain[done.plain.index("agent ") :].splitlines()
    numbers = ["writer", "24", "4", "12.0 KiB", " 3.9", " 7.6", "planner (master)"]
    assert [part for part in numbers if part not in "\n".join(lines)] == []
    assert ("█" in done.plain) == (columns >= 80)
    assert max(map(len, lines)) <= max(columns, 72)


def test_the_same_table_is_markdown_in_a_pipe(room):
    lines = run("info", "round.td", cwd=room).out.splitlines()
    assert [line.count("|") for line in lines[-5:]] == [8] * 5
    assert lines[-5].split("|")[1].strip() == "agent"


WRONG = [
    (1, "near to it are planner", ["restore", "round.td", "plannr", "-o", "x.npy"]),
    (1, "nowhere.npy: No such file or directory", ["snapshot", "new.td", "nowhere.npy"]),
    (1, "is not a tokendance store", ["verify", "planner.npy"]),
    (1, "there is no tag 'tuesday'", ["restore", "round.td", "planner", "-o", "x.npy", "--at", "tuesday"]),
    (1, "store 28, asked 12", ["restore", "round.td", "planner", "-o", "x.npy", "--identity", "layers=12"]),
    (2, "Missing option", ["plot", "round.td"]),
]


def test_errors_are_one_line_in_a_terminal_too(room):
    before = contents(room)
    for status, says, words in WRONG:
        done = run_in_terminal(*words, cwd=room, columns=400)
        assert done.status == status, done
        # A bar may have stood there, but nothing of it is left.
        assert [line for line in done.plain.splitlines() if line.startswith("tokendance: ")] == [
            done.plain.splitlines()[-1]
        ]
        assert says in done.plain
        assert "Traceback" not in done.out
    assert contents(room) == before


def test_drawing_is_waited_for_in_a_terminal(room):
    pytest.importorskip("matplotlib")
    done = run_in_terminal("plot", "round.td", "-o", "map.png", cwd=room)
    assert done.status == 0
    assert "drawing" in done.plain
    assert done.out.endswith("map.png: 3 agents of round.td\r\n")
    assert (room / "map.png").read_bytes().startswith(b"\x89PNG")


def interrupted(done):
    assert done.status == 130
    assert "tokendance: interrupted" in done.plain
    assert "Traceback" not in done.out


def test_ctrl_c_in_the_first_snapshot(large):
    store = large / "large.td"
    # With the first chunk there, the master is still being written, and two mirrors are to come.
    done = run_in_terminal(
        "snapshot",
        store,
        "one.npy",
        "two.npy",
        "three.npy",
        cwd=large,
        interrupt_when=lambda: any(store.glob("masters/*/c*")),
    )
    interrupted(done)
    assert not store.exists()
    assert not [path for path in large.iterdir() if path.name.startswith(".")]


def test_ctrl_c_in_a_later_snapshot(large):
    store = large / "large.td"
    with td.open(store, diff_threshold=0) as made:
        made.register_master("one", np.load(large / "one.npy", mmap_mode="r") + 1)
    there = {*store.glob("masters/*/c*")}
    before, state = contents(store), contents(large / "round.td")
    done = run_in_terminal(
        "snapshot",
        store,
        "one.npy",
        "two.npy",
        "three.npy",
        cwd=large,
        interrupt_when=lambda: {*store.glob("masters/*/c*")} != there,
    )
    interrupted(done)
    assert contents(large / "round.td") == state
    assert contents(store) == before
    assert td.verify(store).ok
    with td.open(store, mode="r") as after:
        assert (after.generation, after.agents) == (2, ["one"])
    assert run("fork", store, "one", "two", cwd=large).status == 0


def test_ctrl_c_while_a_file_is_restored(large):
    with td.open(large / "large.td", diff_threshold=0) as made:
        made.register_master("one", np.load(large / "one.npy", mmap_mode="r"))
    (large / "out.npy").write_text("what was there")
    done = run_in_terminal(
        "restore", "large.td", "one", "-o", "out.npy", cwd=large, interrupt_when=lambda: any(large.glob(".out.npy.*"))
    )
    interrupted(done)
    assert (large / "out.npy").read_text() == "what was there"
    assert not [*large.glob(".out.npy.*")]


COMPLETIONS = [
    ("tokendance reba", ["rebase"]),
    ("tokendance restore round.td ", ["planner", "writer", "critic"]),
    ("tokendance diff round.td planner w", ["writer"]),
    ("tokendance restore round.td planner --at ", ["monday", "1", "2"]),
    ("tokendance restore nowhere.td ", []),
]


def test_the_shell_completes_commands_agents_and_tags(room):
    # Typer keeps what it registered for a process, so this runs in one of its own.
    ask = (
        "import sys, os; from tokendance.cli import build_app\n"
        "for line in sys.argv[1:]:\n"
        "    os.environ |= {'COMP_WORDS': line, 'COMP_CWORD': str(line.count(' '))}\n"
        "    try: build_app()([], prog_name='tokendance')\n"
        "    except SystemExit: print('.')\n"
    )
    command = [sys.executable, "-c", ask, *(line for line, _ in COMPLETIONS)]
    env = environment(_TOKENDANCE_COMPLETE="complete_bash")
    done = subprocess.run(command, cwd=room, env=env, capture_output=True, text=True, check=True)
    answers = [sorted(answer.split()) for answer in done.stdout.split(".\n")[:-1]]
    assert answers == [sorted(wanted) for _, wanted in COMPLETIONS]


def test_completion_can_be_installed(room):
    shown = run("--show-completion", "bash", cwd=room)
    assert (shown.status, "_TOKENDANCE_COMPLETE=complete_bash" in shown.out) == (0, True)
