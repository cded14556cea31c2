"""Stores made by somebody who means harm: a clear error or a right answer, in bounded time and memory."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import hostile_child
import numpy as np
import pytest
from damaged_stores import chunk_file, edit_manifest, make_store, newest_manifest, seal_chunk

CHILD = hostile_child.__file__
VALUES, INDICES, MASTER = "mirrors/1/values", "mirrors/1/indices", "masters/0"
Harm = Callable[[Path, Path], object]


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder beside the store that nobody may read or change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    folder.joinpath("secret").write_bytes(b"secret" * 1000)
    return folder


Outcomes = list[list[str]]


def tried(stores: dict[Path, dict[str, np.ndarray]], *, change: bool) -> dict[Path, Outcomes]:
    """Let a child process with little memory and time read stores, and change them; return what it says of each."""
    asked = [
        {
            "path": str(path),
            "expected": {agent: sha256(cache.tobytes()).hexdigest() for agent, cache in caches.items()},
            "change": change,
        }
        for path, caches in stores.items()
    ]
    command = [sys.executable, CHILD]
    child = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=120)
    found = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f"the child ended with {child.returncode} after {found[-1:]}: {child.stderr[-800:]}"
    return {path: [one[1:] for one in found if one[0] == str(path)] for path in stores}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def check(tmp_path: Path, outside: Path, harms: dict[str, Harm], *, change: bool = False) -> dict[str, Outcomes]:
    """Harm a store in several ways and check what comes of using each; return the outcomes."""
    made = tmp_path / "made.td"
    caches = make_store(made)
    paths = {name: tmp_path / f"{number}.td" for number, name in enumerate(harms)}
    for name, harm in harms.items():
        shutil.copytree(made, paths[name])
        outside.joinpath(paths[name].stem).mkdir()
        harm(paths[name], outside / paths[name].stem)
    before = contents(outside)
    found = tried(dict.fromkeys(paths.values(), caches), change=change)
    assert contents(outside) == before, "something outside the store was changed"
    for name, path in paths.items():
        for what, outcome, text in found[path]:
            fine = ("right", "StoreCorruptError", *(["wrong"] if what == "verify" else []))
            assert outcome in fine, (name, what, outcome, text)
            assert text.isprintable() and len(text) < 500, (name, what, text)
    return {name: found[path] for name, path in paths.items()}


def assert_refused(found: dict[str, Outcomes]) -> None:
    """Each store is refused somewhere, and `verify` has something to say of it."""
    for name, outcomes in found.items():
        assert any(outcome == "StoreCorruptError" for _, outcome, _ in outcomes), name
        assert all(outcome != "right" for what, outcome, _ in outcomes if what == "verify"), name


def assert_right(found: dict[str, Outcomes]) -> None:
    for name, outcomes in found.items():
        assert all(outcome == "right" for _, outcome, _ in outcomes), (name, outcomes)


def replaced(which: str, make: Callable[[Path, Path], object]) -> Harm:
    """Put something else in the place of a file or folder."""

    def harm(path: Path, outside: Path) -> None:
        target = path / which
        if target.name == "chunk":
            target = chunk_file(path, str(Path(which).parent))
        original = outside / "original"
        target.rename(original)
        make(target, original)

    return harm


def make_socket(target: Path, original: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(target.parent)  # a socket's path may have 108 bytes
        try:
            one.bind(target.name)
        finally:
            os.chdir(here)


def make_device(target: Path, original: Path) -> None:
    try:
        os.mknod(target, 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")


KINDS = {
    "link": lambda target, original: target.symlink_to(original),
    "fifo": lambda target, original: os.mkfifo(target),
    "socket": make_socket,
    "device": make_device,
    "folder": lambda target, original: target.mkdir(),
    "nothing": lambda target, original: None,
    "link to nowhere": lambda target, original: target.symlink_to("nowhere"),
    "link to itself": lambda target, original: target.symlink_to(target.name),
}
FILES = ["masters/0/chunk", f"{VALUES}/chunk", f"{INDICES}/chunk", "manifests/2", "zarr.json"]


@pytest.mark.parametrize("which", FILES)
def test_only_regular_files_are_opened(which: str, tmp_path, outside) -> None:
    # Without the newest manifest, the one before is the newest: nothing tells that there was one.
    kinds = {name: kind for name, kind in KINDS.items() if (which, name) != ("manifests/2", "nothing")}
    assert_refused(check(tmp_path, outside, {name: replaced(which, kind) for name, kind in kinds.items()}, change=True))


@pytest.mark.parametrize("which", ["masters", "mirrors", "manifests", "masters/0", "mirrors/1", "mirrors/1/values"])
def test_only_folders_are_entered(which: str, tmp_path, outside) -> None:
    kinds = {name: kind for name, kind in KINDS.items() if name != "folder"}
    assert_refused(check(tmp_path, outside, {name: replaced(which, kind) for name, kind in kinds.items()}, change=True))


@pytest.mark.parametrize("kind", ["link", "fifo", "socket", "folder", "link to nowhere", "hard link"])
def test_the_lock_is_a_file_of_the_store(kind: str, tmp_path, outside) -> None:
    kinds = {**KINDS, "hard link": lambda target, original: target.hardlink_to(outside / "secret")}
    found = check(tmp_path, outside, {kind: replaced("manifests/lock", kinds[kind])}, change=True)
    assert all(outcome == "right" for what, outcome, _ in found[kind] if what.endswith(("copied", "mapped")))


def resized(which: str, size: Callable[[int], int]) -> Harm:
    def harm(path: Path, outside: Path) -> None:
        file = path / which if which.startswith("manifests") else chunk_file(path, which)
        os.truncate(file, size(file.stat().st_size))

    return harm


@pytest.mark.parametrize("which", [MASTER, VALUES, INDICES, "manifests/2"])
def test_files_of_another_size_are_refused(which: str, tmp_path, outside) -> None:
    sizes = {
        "empty": lambda n: 0,
        "shorter": lambda n: n - 4,
        "longer": lambda n: n + 1,
        "twice": lambda n: 2 * n,
        "sparse": lambda n: 1 << 40,
    }
    assert_refused(check(tmp_path, outside, {name: resized(which, size) for name, size in sizes.items()}))


def test_metadata_of_another_zarr_version_misleads_nobody(tmp_path, outside) -> None:
    def harm(path: Path, which: str) -> None:
        path.joinpath(which, "zarr.json").unlink()
        old = {"zarr_format": 2, "shape": [1 << 60], "chunks": [1], "dtype": "|O", "order": "C", "fill_value": None}
        path.joinpath(which, ".zarray").write_text(json.dumps({**old, "compressor": {"id": "pickle"}, "filters": None}))

    places = ("masters/0", "mirrors/1", ".")
    found = check(tmp_path, outside, {which: lambda path, _, which=which: harm(path, which) for which in places})
    assert all(outcome != "right" for one in found.values() for what, outcome, _ in one if what == "verify")


def swapped(one: str, other: str) -> Harm:
    def harm(path: Path, outside: Path) -> None:
        left, right = path / one, path / other
        if left.is_dir() and not any(left.glob("*/")):
            left, right = chunk_file(path, one), chunk_file(path, other)
        left.rename(path / "moved")
        right.rename(left)
        path.joinpath("moved").rename(right)

    return harm


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


def make_store_of(path: Path, cache: np.ndarray) -> None:
    import tokendance as td

    with td.open(path, ragged=True) as store:
        store.register_master("m", cache)


def test_a_manifest_larger_than_allowed_is_not_read(tmp_path, outside) -> None:
    def harm(path: Path, _outside: Path) -> None:
        file = newest_manifest(path)
        line, trailer = file.read_bytes().split(b"\n", 1)
        with file.open("wb") as grown:
            grown.write(line)
            grown.seek(64 << 20)
            grown.write(b"\n" + trailer)

    found = check(tmp_path, outside, {"": harm})
    assert_refused(found)
    assert any("larger" in text for _, _, text in found[""])


def test_only_plain_numbers_are_generations(tmp_path, outside) -> None:
    def harm(path: Path, name: str) -> None:
        path.joinpath("manifests", name).write_bytes(newest_manifest(path).read_bytes())

    names = ["3.td", "+5", "٣", "0", "007", "5 ", "-5", "1" * 30, "1e3", "lock2", ".9.new", "9\n"]
    harms = {name: lambda path, _, name=name: harm(path, name) for name in names}
    assert_right(check(tmp_path, outside, harms, change=True))


def test_collection_removes_links_and_not_what_they_lead_to(tmp_path, outside) -> None:
    def harm(path: Path, outside: Path) -> None:
        path.joinpath("masters/98").symlink_to(outside.parent)
        path.joinpath("mirrors/99").mkdir()
        path.joinpath("mirrors/99/deep").mkdir()
        path.joinpath("mirrors/99/deep/link").symlink_to(outside.parent)
        path.joinpath("mirrors/99/file").symlink_to(outside.parent / "secret")
        path.joinpath("manifests/.x.new").symlink_to(outside.parent)

    assert_right(check(tmp_path, outside, {"": harm}, change=True))
    path = tmp_path / "0.td"
    assert not any(os.path.lexists(path / name) for name in ("masters/98", "mirrors/99", "manifests/.x.new"))


def test_names_that_a_writer_will_use_may_be_links_already(tmp_path, outside) -> None:
    def harm(path: Path, outside: Path) -> None:
        for name in (
            "masters/0/.zarr.json.new",
            "masters/0/.c.0.0.0.new",
            "masters/3",
            "mirrors/4",
            "manifests/.3.new",
        ):
            path.joinpath(name).symlink_to(outside.parent / "secret")

    assert_right(check(tmp_path, outside, {"": harm}, change=True))
