"""Caches from files of all kinds into a store and back, under names of all kinds; and JSON of every command."""

import io
import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from command_line import run_here

import tokendance as td

CACHE = np.random.default_rng(3).standard_normal((24, 2, 8, 16)).astype(np.float16)


def answer(*words, cwd):
    """Run a command with --json, and return what it says."""
    done = run_here(*words, "--json", cwd=cwd)
    assert (done.status, done.err) == (0, "")
    return json.loads(done.out)


def through(folder, name, *options):
    """Take a file into a new store, and return its array as it comes back, and its bytes as ``.npy``."""
    answer("snapshot", "new.td", f"x={name}", *options, cwd=folder)
    answer("restore", "new.td", "x", "-o", "back.npy", cwd=folder)
    return np.load(folder / "back.npy"), (folder / "back.npy").read_bytes()


def saved(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        CACHE,
        np.asfortranarray(CACHE),
        CACHE[::-2, :, ::-1],
        CACHE[:0],
        CACHE.astype(np.float64),
        CACHE.view(np.uint8),
        CACHE.view(np.int8)[:1],
    ],
    ids=["C order", "Fortran order", "from a view", "no blocks", "float64", "uint8", "int8, one block"],
)
def test_an_array_comes_back_to_the_byte(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    back, data = through(tmp_path, "x.npy")
    np.testing.assert_array_equal(back, array)
    # In C order, whatever the order of the file.
    assert data == saved(np.ascontiguousarray(array))


@pytest.mark.parametrize("axis", [0, 1, 3, -1, -4])
@pytest.mark.parametrize("tokens", [None, 1, 5, 24, 100])
def test_an_array_comes_back_however_it_was_cut(tmp_path, axis, tokens):
    np.save(tmp_path / "x.npy", CACHE)
    options = ["--block-axis", axis, *(() if tokens is None else ("--block-tokens", tokens))]
    assert through(tmp_path, "x.npy", *options)[1] == saved(CACHE)
    for name in ("whole.safetensors", "again.npy"):
        answer("restore", "new.td", "x", "-o", name, cwd=tmp_path)
    assert through(tmp_path, "whole.safetensors")[1] == saved(CACHE)


def test_packed_and_older_numpy_files(tmp_path):
    np.savez(tmp_path / "one.npz", cache=CACHE)
    np.savez_compressed(tmp_path / "packed.npz", CACHE)
    for version in ((1, 0), (2, 0), (3, 0)):
        with (tmp_path / f"v{version[0]}.npy").open("wb") as file:
            np.lib.format.write_array(file, CACHE, version=version)
    for name in ("one.npz", "packed.npz", "v1.npy", "v2.npy", "v3.npy"):
        assert through(tmp_path, name)[1] == saved(CACHE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_bits_of_types_that_numpy_cannot_name(tmp_path, dtype):
    exact = CACHE.astype(getattr(ml_dtypes, dtype))
    bits = exact.view(f"u{exact.itemsize}")
    np.save(tmp_path / "bits.npy", bits)
    np.save(tmp_path / "nameless.npy", exact)
    # What numpy saves of the last one, it cannot load.
    for name in ("bits.npy", "nameless.npy")[: 1 if dtype == "float8_e5m2" else 2]:
        assert through(tmp_path, name, "--dtype", dtype)[1] == saved(bits)
        assert answer("info", "new.td", cwd=tmp_path)["dtype"] == dtype


def test_bfloat16_in_safetensors(tmp_path):
    bits = np.arange(24 * 64, dtype=np.uint16).reshape(24, 64)
    header = json.dumps({"x": {"dtype": "BF16", "shape": [24, 64], "data_offsets": [0, bits.nbytes]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bits.tobytes())
    assert through(tmp_path, "x.safetensors")[1] == saved(bits)
    assert answer("info", "new.td", cwd=tmp_path)["dtype"] == "bfloat16"


def test_a_new_store_drops_nothing_and_takes_any_length(tmp_path):
    nearly = CACHE.astype(np.float32)
    nearly[3] += 1e-6
    for name, array in (("one", CACHE.astype(np.float32)), ("nearly", nearly), ("short", CACHE[:9].astype(np.float32))):
        np.save(tmp_path / f"{name}.npy", array)
    # Also where there is an empty folder already.
    (tmp_path / "there.td").mkdir()
    for store in ("new.td", "there.td"):
        told = answer("snapshot", store, "one.npy", "nearly.npy", "short.npy", cwd=tmp_path)
        assert sum(one["n_own_blocks"] for one in told["agents"] if not one["master"]) == 1
        said = answer("info", store, cwd=tmp_path)
        assert (said["diff_threshold"], said["ragged"]) == (0, True)


NAMES = ["a/b/../c", "new\nline", "x" * 512, " ", "--all", "esc \x1b[2J", "評論家 🤖", "x=y", "null"]


def test_agents_of_any_name(tmp_path):
    np.save(tmp_path / "x.npy", CACHE)
    # What stands before the first = is the name, so one with a = in it comes from a fork.
    pairs = [f"{name}=x.npy" for name in NAMES if "=" not in name]
    done = run_here("snapshot", "--json", "new.td", "--", *pairs, cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    answer("fork", "new.td", "null", "x=y", cwd=tmp_path)
    listed = [one["agent"] for one in answer("info", "new.td", cwd=tmp_path)["agents"]]
    assert sorted(listed) == sorted(NAMES)
    for name in NAMES:
        done = run_here("restore", "-o", "back.npy", "new.td", "--", name, cwd=tmp_path)
        assert (done.status, done.err) == (0, "")
        # Nothing in a name reaches the terminal.
        assert "\x1b" not in done.out
        assert (tmp_path / "back.npy").read_bytes() == saved(CACHE)
    for command in ("info", "log"):
        assert "\x1b" not in run_here(command, "new.td", cwd=tmp_path).out
    done = run_here("rm", "new.td", "--", *NAMES[1:], cwd=tmp_path)
    assert (done.status, done.err, done.out.count("\n")) == (0, "", 1)
    with td.open(tmp_path / "new.td", mode="r") as store:
        assert store.agents == NAMES[:1]


def test_files_and_folders_of_any_name(tmp_path):
    folder = tmp_path / "ünï côdé 日本"
    folder.mkdir()
    for name in ("ag ent=1", "-dash", "new\nline", "π", ".hidden"):
        np.save(folder / f"{name}.npy", CACHE)
    (folder / "notes.txt").touch()
    told = answer("snapshot", "ünï.td", folder.name, cwd=tmp_path)
    assert sorted(one["agent"] for one in told["agents"]) == sorted(["ag ent=1", "-dash", "new\nline", "π", ".hidden"])
    # Bytes that are no text, as a store's name and a file's, and as a file's that names its agent.
    raw = [os.fsdecode(b"\xff.td"), os.fsdecode(b"\xfe.npy")]
    answer("snapshot", raw[0], "ünï côdé 日本/π.npy", cwd=tmp_path)
    answer("restore", raw[0], "π", "-o", raw[1], cwd=tmp_path)
    assert (tmp_path / raw[1]).read_bytes() == saved(CACHE)
    answer("snapshot", "new.td", f"x={raw[1]}", cwd=tmp_path)
    done = run_here("snapshot", "new.td", raw[1], cwd=tmp_path)
    assert (done.status, done.out) == (1, "")
    assert "must have 1 to 512 bytes in UTF-8" in done.err


def test_every_command_speaks_json(room):
    words = {
        "info": [],
        "log": [],
        "tag": ["tuesday"],
        "fork": ["critic", "twin"],
        "rm": ["twin"],
        "rebase": ["writer"],
        "diff": ["planner", "critic"],
        "plot": ["-o", "map.svg"],
        "restore": ["critic", "-o", "out.npy"],
        "snapshot": ["planner.npy"],
        "verify": [],
        "gc": [],
    }
    told = {command: answer(command, "round.td", *rest, cwd=room) for command, rest in words.items()}
    assert {one["store"] for one in told.values()} == {"round.td"}
    assert told["diff"]["n_differing"] == 1
    assert told["verify"]["ok"] is True
    assert told["fork"]["agents"][-1] == "twin"
    assert told["rebase"]["master"] == "writer"
    assert (told["tag"]["tags"]["tuesday"], told["log"]["generations"][-1]["number"]) == (3, 2)
    assert (room / told["plot"]["file"]).read_bytes().startswith(b"<?xml")
    assert told["restore"]["dtype"] == "float16"
    assert answer("warmup", cwd=room)["n_kernels"] > 0


def test_commands_say_so_when_nothing_is_wrong_too(room):
    """Their exit status is 0, and stderr stays empty: for people who watch it."""
    for words in (
        ["info", "round.td"],
        ["log", "round.td"],
        ["verify", "round.td"],
        ["plot", "round.td", "-o", "x.png"],
    ):
        done = run_here(*words, cwd=room)
        assert (done.status, done.err) == (0, "")
        assert done.out
