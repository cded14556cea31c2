"""What a manifest made by somebody who means harm may claim: held against the files before anything is allocated."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from damaged_stores import chunk_file, edit_manifest, make_store, manifest_bytes, newest_manifest, reseal, seal_chunk
from hostile_stores import Harm, assert_refused, check, tried

import tokendance as td

VALUES, INDICES, MASTER = "mirrors/1/values", "mirrors/1/indices", "masters/0"
MANY = 1_000_000
REFUSED = [["open", "StoreCorruptError"], ["verify", "wrong"]]


@pytest.fixture
def outside(tmp_path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


POSITIONS = {
    "unsorted": [5, 2],
    "negative": [-1, 2],
    "the last negative": [5, -3],
    "wrapping round": [5, -(1 << 63) + 1],
    "past the end": [2, 12],
    "far past the end": [2, (1 << 63) - 1],
    "twice": [2, 2],
}


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_positions_outside_an_agent_are_refused(positions: list[int], tmp_path, outside) -> None:
    def harm(path: Path, _outside: Path) -> None:
        seal_chunk(chunk_file(path, INDICES), np.array(positions, np.int64).tobytes())
        reseal(path)

    assert_refused(check(tmp_path, outside, {"": harm}))


BASES = {
    "past the master": [12, *range(1, 12)],
    "far past the master": [0, (1 << 63) - 1, *range(2, 12)],
    "no block": [-1, *range(1, 12)],
    "negative": [0, -2, *range(2, 12)],
    "very negative": [0, -(1 << 63), *range(2, 12)],
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_base_maps_that_leave_the_master_are_refused(base: list[int], tmp_path, outside) -> None:
    def harm(path: Path, _outside: Path) -> None:
        folder = path / "mirrors/1/base"
        shutil.copytree(path / INDICES, folder)
        seal_chunk(chunk_file(path, "mirrors/1/base"), np.array(base, np.int64).tobytes())
        edit_manifest(path, lambda content: content["mirrors"][0].update(n_base=12, base_chunk=12))
        reseal(path)

    assert_refused(check(tmp_path, outside, {"": harm}))


def claims(**fields: object) -> Harm:
    """Say something else in the manifest: `master__x` of the master, `mirror__x` of the first mirror."""

    def edit(content: dict) -> None:
        for name, value in fields.items():
            record, _, key = name.rpartition("__")
            {"master": content["master"], "mirror": content["mirrors"][0], "": content}[record][key] = value

    return lambda path, outside: edit_manifest(path, edit)


HUGE = {
    "a long master": claims(master__n_blocks=10**9),
    "a long master in small chunks": claims(master__n_blocks=10**9, master__chunk_blocks=1),
    "an endless master": claims(master__n_blocks=1 << 50, master__chunk_blocks=1 << 50),
    "a long mirror": claims(mirror__n_blocks=10**9),
    "an endless mirror": claims(mirror__n_blocks=1 << 60),
    "a long mirror with a tail": claims(mirror__n_blocks=10**9, mirror__tail=[[12, -12]]),
    "many own blocks": claims(mirror__n_blocks=10**9, mirror__n_own=10**9),
    "many own blocks in small chunks": claims(
        mirror__n_blocks=10**9, mirror__n_own=10**9, mirror__index_chunk=1, mirror__chunk_blocks=1
    ),
    "a long base map": claims(mirror__n_blocks=10**9, mirror__n_base=10**9, mirror__base_chunk=10**9),
    "large blocks": claims(block_shape=[1 << 20, 1 << 18]),
    "another dtype": claims(dtype="float64"),
    "large chunks": claims(master__chunk_blocks=1 << 40),
    "an object that is not there": claims(mirror__object=99, next_object=100),
    "another block shape": claims(block_shape=[4, 65]),
}


# The same with as many checksums as the claims take, so that only the files speak against them.
SEALED = {
    "a long master in small chunks": claims(
        master__n_blocks=MANY, master__chunk_blocks=1, master__checksums="0" * 8 * MANY
    ),
    "many own blocks in small chunks": claims(
        mirror__n_blocks=MANY // 2,
        mirror__n_own=MANY // 2,
        mirror__index_chunk=1,
        mirror__chunk_blocks=1,
        mirror__checksums="0" * 8 * MANY,
    ),
    "a long base map in small chunks": claims(
        mirror__n_blocks=MANY, mirror__n_base=MANY, mirror__base_chunk=1, mirror__checksums="0" * 8 * (MANY + 2)
    ),
    "a long base map in large chunks": claims(
        mirror__n_blocks=15 << 21, mirror__n_base=15 << 21, mirror__base_chunk=1 << 21, mirror__checksums="0" * 8 * 17
    ),
    "sixteen large chunks of the shortest blocks": claims(
        dtype="uint8",
        block_shape=[1],
        master__n_blocks=16 << 24,
        master__chunk_blocks=1 << 24,
        master__checksums="0" * 8 * 16,
        mirror__n_blocks=32 << 24,
        mirror__tail=[[1, 0]],
    ),
    "blocks of a tebibyte": claims(block_shape=[1 << 38], master__chunk_blocks=1, master__checksums="0" * 8 * 12),
    "large blocks": claims(block_shape=[1 << 20, 1 << 18], master__chunk_blocks=1, master__checksums="0" * 8 * 12),
}


@pytest.mark.parametrize("harms", [HUGE, SEALED], ids=["unsealed", "sealed"])
def test_claims_are_held_against_the_files_before_anything_is_allocated(harms: dict, tmp_path, outside) -> None:
    assert_refused(check(tmp_path, outside, harms))


def test_a_sparse_file_of_the_claimed_size_fills_no_memory(tmp_path, outside) -> None:
    def harm(path: Path, _outside: Path) -> None:
        os.truncate(chunk_file(path, MASTER), (1 << 40) + 4)
        edit_manifest(path, lambda content: content["master"].update(n_blocks=1 << 30, chunk_blocks=1 << 30))
        edit_manifest(path, lambda content: content.update(mirrors=[]))

    path = tmp_path / "s.td"
    caches = make_store(path)
    harm(path, outside)
    found = tried({path: {"m": caches["m"]}}, change=False)[path]
    assert {outcome for what, outcome, _ in found if what.startswith("m ")} <= {
        "StoreCorruptError",
        "MemoryError",
        "_ArrayMemoryError",
        "OSError",
    }


def with_mirror(path: Path, cache: np.ndarray, **fields: object) -> None:
    """Make a store of a master, and put a mirror without blocks of its own into its manifest."""
    with td.open(path, ragged=True) as store:
        store.register_master("m", cache)
    entry = {"agent": "a", "object": None, "n_blocks": 0, "n_own": 0, "index_chunk": 0, "chunk_blocks": 0, "n_base": 0}
    entry |= {"base_chunk": 0, "checksums": "", "tail": [], "dropped": 0.0, "meta": {}, **fields}
    edit_manifest(path, lambda content: content.update(mirrors=[entry]))


def test_a_tail_of_many_entries_takes_no_long_time(tmp_path) -> None:
    # Each entry moves one block: what costs the agent's length for every entry would take minutes.
    n = 200_000
    cache = np.arange(2 * n, dtype=np.uint8).reshape(2 * n, 1)
    with_mirror(tmp_path / "s.td", cache, n_blocks=n, tail=[[i, i] for i in range(n)])
    found = tried({tmp_path / "s.td": {"m": cache, "a": cache[::2]}}, change=False)[tmp_path / "s.td"]
    assert {outcome for _, outcome, _ in found} == {"right"}, found


def test_a_tail_does_not_make_an_agent_of_nothing(tmp_path) -> None:
    # Runs that lead to the same blocks again and again would make a terabyte of a kilobyte.
    n = 1000
    cache = np.arange(n, dtype=np.uint8).reshape(n, 1)
    tail = [[n * i, -n * i] for i in range(1, 100_000)]
    with_mirror(tmp_path / "s.td", cache, n_blocks=n * 100_000, tail=tail)
    found = tried({tmp_path / "s.td": {"m": cache}}, change=False)[tmp_path / "s.td"]
    assert [one[:2] for one in found] == REFUSED, found


BRACKETS = {
    "lists": b"[" + b"[]," * (20 << 20) + b"[]]",
    "depth": b'{"format":1,"x":' + b"[" * (60 << 20),
}


@pytest.mark.parametrize("line", BRACKETS.values(), ids=BRACKETS)
def test_a_manifest_that_grows_in_memory_is_refused(line: bytes, tmp_path) -> None:
    path = tmp_path / "s.td"
    caches = make_store(path)
    newest_manifest(path).write_bytes(manifest_bytes(line))
    found = tried({path: caches}, change=False)[path]
    assert [one[:2] for one in found] == REFUSED, found
