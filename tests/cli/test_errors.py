"""What goes wrong, by what people see: one line on stderr, the exit status, and all left as it was."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, contents, run, run_here

import tokendance as td
from tokendance.cli.cache_files import opened
from tokendance.cli.failures import CommandError, line_of


def fails(done, status, *said):
    """Check that a command ended with one line, in which all of `said` stand, and nothing else."""
    assert done.status == status, done
    assert done.out == ""
    assert done.err.startswith("tokendance: ")
    assert done.err.count("\n") == 1
    for part in said:
        assert part in done.err


@pytest.fixture
def refused(room):
    """Run command lines that must fail and leave every file as it was: a test's first as the command, more here."""
    ways = itertools.chain([run], itertools.repeat(run_here))

    def refused(*words, status=1, says):
        before = contents(room)
        fails(next(ways)(*words, cwd=room), status, *([says] if isinstance(says, str) else says))
        assert contents(room) == before

    return refused


# Files --------------------------------------------------------------------------------------------------------------


def test_a_missing_file(refused):
    refused("snapshot", "new.td", "planner.npy", "x=nowhere.npy", says="nowhere.npy: No such file or directory")


def save_damaged(room):
    array = np.load(room / "planner.npy")
    (room / "text.npy").write_text("This is not an array. " * 20)
    (room / "short.npy").write_bytes((room / "planner.npy").read_bytes()[:5000])
    (room / "text.npz").write_text("This is not an archive. " * 20)
    (room / "text.safetensors").write_text("This has no header. " * 20)
    (room / "empty.npy").touch()
    (room / "pickled.npy").write_bytes(b"")
    np.save(room / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(room / "two.npz", array, array)
    np.save(room / "swapped.npy", array.astype(">f2"))
    np.save(room / "integers.npy", np.zeros((4, 4), np.int32))
    os.mkfifo(room / "pipe.npy")


DAMAGED = [
    ("text.npy", 1, "text.npy cannot be read as .npy: it does not begin like one"),
    ("short.npy", 1, "its header promises 12,288 bytes, and 4,872 are there"),
    ("text.npz", 1, "text.npz cannot be read as .npz: File is not a zip file"),
    ("text.safetensors", 1, "text.safetensors is no safetensors file"),
    ("empty.npy", 1, "empty.npy cannot be read as .npy"),
    ("pickled.npy", 1, "pickled.npy cannot be read as .npy: it holds Python objects"),
    ("two.npz", 1, "two.npz holds 2 arrays (arr_0.npy, arr_1.npy)"),
    ("swapped.npy", 1, "swapped.npy holds >f2, which no cache can be; save it in this machine's byte order"),
    ("integers.npy", 1, "integers.npy holds int32, which no cache can be: that is one of float64, float32"),
    ("pipe.npy", 1, "pipe.npy is not a regular file"),
    ("notes.txt", 2, "notes.txt must end in .npy, .npz, .safetensors"),
]


def test_files_that_hold_no_cache(room):
    save_damaged(room)
    before = sorted(room.iterdir())
    for name, status, says in DAMAGED:
        with pytest.raises((CommandError, td.TokenDanceError)) as caught:
            opened("x", room / name, None)
        assert says in line_of(caught.value)
        assert getattr(caught.value, "status", 1) == status
    for name, status, says in DAMAGED[:1]:
        fails(run("snapshot", "new.td", "planner.npy", name, cwd=room), status, says)
    assert sorted(room.iterdir()) == before


def test_a_file_with_another_shape_or_dtype(room, refused):
    cache = np.load(room / "planner.npy")
    np.save(room / "narrow.npy", cache[:, :, :4])
    np.save(room / "wide.npy", cache.astype(np.float32))
    fit = "which does not fit planner.npy, float16 of shape (24, 2, 8, 16)"
    refused("snapshot", "new.td", "planner.npy", "narrow.npy", says=("float16 of shape (24, 2, 4, 16)", fit))
    refused("snapshot", "new.td", "planner.npy", "wide.npy", says=("wide.npy is float32", fit))
    shape = "narrow.npy: kv_blocks shape (24, 2, 4, 16) must match master shape (24, 2, 8, 16)"
    refused("snapshot", "round.td", "narrow.npy", says=shape)
    refused(
        "snapshot", "round.td", "wide.npy", says="wide.npy: kv_blocks dtype float32 must match master dtype float16"
    )


def test_an_array_that_cannot_be_cut(room, refused):
    np.save(room / "number.npy", np.float32(1))
    np.save(room / "line.npy", np.zeros(64, np.float32))
    refused("snapshot", "new.td", "number.npy", says="number.npy: an array of shape () has no --block-axis 0")
    refused("snapshot", "new.td", "line.npy", says="line.npy: the array has shape (64,): say with --block-tokens")
    refused("snapshot", "new.td", "planner.npy", "--block-axis", "4", says="has no --block-axis 4")
    refused("snapshot", "new.td", "planner.npy", "--block-axis", "-5", says="has no --block-axis -5")
    for tokens in (10**11, 10**30):
        words = ("planner.npy", "--block-tokens", tokens)
        refused("snapshot", "new.td", *words, says=("planner.npy: its blocks, 1 x", "take fewer --block-tokens"))


def test_an_agent_that_is_named_twice(refused):
    says = "agent 'planner' is named twice, for planner.npy and for writer.npy"
    refused("snapshot", "new.td", "planner.npy", "planner=writer.npy", status=2, says=says)


# Stores -------------------------------------------------------------------------------------------------------------


def test_what_is_not_a_store(room, refused):
    (room / "photos").mkdir()
    (room / "photos" / "one.jpg").touch()
    for words in (["info", "photos"], ["verify", "photos"], ["gc", "photos"]):
        refused(*words, says="photos is not a tokendance store")
    refused("snapshot", "photos", "planner.npy", says="photos exists and is not a tokendance store; nothing was")
    # Who forgets the store names a cache in its place.
    refused("snapshot", "planner.npy", "writer.npy", says="tokendance: planner.npy exists and is not a tokendance")
    for command in ("log", "verify", "gc"):
        refused(command, "planner.npy", says="planner.npy is not a tokendance store: it is no folder")
    for words in (["info", "nowhere.td"], ["verify", "nowhere.td"], ["restore", "nowhere.td", "a", "-o", "a.npy"]):
        refused(*words, says="nowhere.td does not exist; tokendance snapshot makes a store")


def test_a_store_in_use(room, refused):
    with td.open(room / "round.td", mode="r+"):
        for words in (
            ["tag", "round.td", "x"],
            ["snapshot", "round.td", "planner.npy"],
            ["verify", "--repair", "round.td"],
        ):
            refused(*words, says=("round.td", f"process {os.getpid()}"))
        assert run("info", "round.td", cwd=room).status == 0
    assert run("tag", "round.td", "x", cwd=room).status == 0
    done = run("tag", "round.td", "x", "--remove", cwd=room)
    assert (done.status, done.out) == (0, "round.td: generation 4, has no tag x any more\n")
    refused("tag", "round.td", "x", "--remove", says="tokendance: there is no tag 'x'; tags are: monday")


def test_a_folder_that_was_empty_stays_so(room, refused):
    (room / "new.td").mkdir()
    np.save(room / "flat.npy", np.zeros((4, 0), np.float32))
    refused("snapshot", "new.td", "flat.npy", says="each block must hold at least one element")
    assert not any((room / "new.td").iterdir())


def test_an_identity_that_is_not_the_stores(refused):
    says = "round.td belongs to something else: model: store 'qwen', asked 'llama'"
    said = ("--identity", "model=llama", "--identity", "layers=28")
    refused("snapshot", "round.td", "planner.npy", *said, says=says)
    refused("restore", "round.td", "planner", "-o", "x.npy", *said, says=says)
    refused("restore", "round.td", "planner", "-o", "x.npy", "--identity", "model", status=2, says="KEY=VALUE")


def test_agents_and_tags_that_are_not_there(refused):
    refused("restore", "round.td", "plannr", "-o", "x.npy", says=("plannr", "near to it are planner"))
    refused("fork", "round.td", "criti", "new", says="near to it are critic")
    refused("diff", "round.td", "planner", "writr", says="near to it are writer")
    refused("rm", "round.td", "writer", "nobody", says="nobody; there are planner, writer, critic")
    refused(
        "restore", "round.td", "planner", "-o", "x.npy", "--at", "tuesday", says="no tag 'tuesday'; tags are: monday"
    )
    refused("restore", "round.td", "planner", "-o", "x.npy", "--at", "99", says="generation 99 is not there")
    refused("fork", "round.td", "critic", "writer", says="'writer' is there already")
    refused("tag", "round.td", "12", says="a tag must")


def test_a_store_without_agents(room, refused):
    td.open(room / "empty.td").close()
    for words in (["restore", "empty.td", "a", "-o", "a.npy"], ["rebase", "empty.td"], ["diff", "empty.td", "a", "b"]):
        refused(*words, says="empty.td has no agents yet; tokendance snapshot stores some")
    for name in ("map.png", "map.svg", "map.html"):
        refused("plot", "empty.td", "-o", name, says="empty.td has no agents to draw")


def test_places_where_no_file_can_be(room, refused):
    for name in ("taken.npy", "taken.safetensors", "taken.png", "taken.html"):
        (room / name).mkdir()
    for name, says in (
        ("taken", "Is a directory"),
        ("nowhere/x", "No such file"),
        ("planner.npy/x", "Not a directory"),
    ):
        refused("restore", "round.td", "planner", "-o", f"{name}.npy", says=(f"{name}.npy: ", says))
        refused("restore", "round.td", "planner", "-o", f"{name}.safetensors", says=f"{name}.safetensors: ")
        for suffix in (".png", ".html"):
            refused("plot", "round.td", "-o", name + suffix, says=(f"{name}{suffix}: ", says))
    refused("snapshot", "nowhere/new.td", "planner.npy", says="nowhere/new.td: No such file or directory; nothing was")
    refused("snapshot", "planner.npy/new.td", "writer.npy", says="planner.npy/new.td: Not a directory; nothing was")


def test_names_that_cannot_be(refused):
    for name in ("", "x" * 513):
        refused("fork", "round.td", "critic", name, says="must have 1 to 512 bytes in UTF-8")
        refused("tag", "round.td", name, says="a tag must have 1 to 512 bytes in UTF-8")
    refused("snapshot", "new.td", "x" * 513 + "=planner.npy", says="must have 1 to 512 bytes in UTF-8")


def test_command_lines_that_are_wrong(refused):
    refused("snapshto", status=2, says="No such command 'snapshto'")
    refused("snapshot", "round.td", status=2, says="see tokendance snapshot --help")
    refused("restore", "round.td", "planner", status=2, says="Missing option '--out'")
    refused("restore", "round.td", "planner", "-o", "x.npz", status=2, says="x.npz must end in .npy or .safetensors")
    for argument in ("", "a=", "=planner.npy"):
        refused("snapshot", "new.td", argument, status=2, says=f"expected AGENT=FILE, got {argument!r}")
    refused("plot", "round.td", "-o", "map.jpg", status=2, says="map.jpg must end in .png, .svg, .html")
    refused("snapshot", "new.td", "planner.npy", "--block-tokens", "0", status=2, says="--block-tokens")


# The system ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def unprivileged():
    """What stands before a command so that the modes of files hold for it: nothing, unless we are root."""
    if os.geteuid():
        return ()
    if not (setpriv := shutil.which("setpriv")):
        pytest.skip("root may do anything, and there is no setpriv here to change that")
    return (setpriv, "--bounding-set", "-dac_override,-dac_read_search")


def test_without_permission(room, unprivileged):
    def run_without(*words):
        return run(*words, cwd=room, before=unprivileged)

    (room / "writer.npy").chmod(0)
    fails(run_without("snapshot", "new.td", "planner.npy", "writer.npy"), 1, "writer.npy: Permission denied")
    (room / "writer.npy").chmod(0o600)
    before = contents(room)
    folders = [room, *(path for path in room.glob("round.td/**") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        fails(run_without("snapshot", "round.td", "planner.npy"), 1, "round.td: Permission denied; nothing was stored")
        fails(run_without("fork", "round.td", "critic", "twin"), 1, "round.td: Permission denied; nothing was changed")
        fails(run_without("snapshot", "new.td", "planner.npy"), 1, "new.td", "Permission denied", "nothing was stored")
        fails(run_without("restore", "round.td", "critic", "-o", "x.npy"), 1, "x.npy: Permission denied")
        assert run_without("info", "round.td").status == 0
    finally:
        for path in folders:
            path.chmod(0o755)
    assert contents(room) == before


@pytest.fixture
def full_disk(room):
    """A disk with less room than a cache takes, what to run the command with, and what the system then says."""
    disk = room / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=640k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted and mounted.returncode == 0:
        yield disk, (), "No space left on device"
        subprocess.run(["umount", str(disk)], check=True)
    else:
        # Nobody but root may make a small disk; a limit on files ends writes in the middle as well.
        yield disk, ("sh", "-c", 'ulimit -f 200; exec "$0" "$@"'), "File too large"


def test_a_full_disk(room, full_disk):
    disk, before_command, says = full_disk
    cache = np.random.default_rng(1).standard_normal((128, 2, 8, 256)).astype(np.float16)
    np.save(room / "large.npy", cache)
    shutil.copytree(room / "round.td", disk / "round.td")
    with td.open(room / "large.td", diff_threshold=0) as store:
        store.register_master("large", cache)
    before = contents(disk)
    for words, what in (
        (["snapshot", "disk/new.td", "large.npy"], "disk/new.td"),
        (["snapshot", "disk/round.td", "large.npy", "--block-axis", "1"], "large.npy: kv_blocks shape"),
        (["restore", "large.td", "large", "-o", "disk/x.npy"], "disk/x.npy"),
        (["restore", "large.td", "large", "-o", "disk/x.safetensors"], "disk/x.safetensors"),
    ):
        fails(run(*words, cwd=room, before=before_command), 1, what)
        assert contents(disk) == before
    done = run("snapshot", "disk/new.td", "large.npy", cwd=room, before=before_command)
    fails(done, 1, f"disk/new.td: {says}; nothing was stored")
    assert td.verify(disk / "round.td").ok


def test_nobody_reads(room):
    """A full device, a pipe that is closed early, and no stdout or stderr at all."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([COMMAND, "info", "round.td"], cwd=room, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "tokendance: No space left on device\n")
    shell = f"'{COMMAND}' info round.td | true; '{COMMAND}' info round.td >&-; '{COMMAND}' info nowhere.td 2>&-"
    done = subprocess.run(["sh", "-c", shell], cwd=room, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
