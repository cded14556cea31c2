"""Stores made by somebody who means harm: a clear error or a right answer, in bounded time and memory."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damaged_stores import chunk_file, make_store, newest_manifest
from hostile_stores import Harm, assert_refused, assert_right, check, tried

import tokendance as td

VALUES, INDICES, MASTER = "mirrors/1/values", "mirrors/1/indices", "masters/0"


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder beside the store that nobody may read or change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    folder.joinpath("secret").write_bytes(b"secret" * 1000)
    return folder


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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mirrors/1/values", "mirrors/2/values"),
        ("mirrors/1/indices", "mirrors/2/indices"),
        ("mirrors/1", "mirrors/2"),
        ("manifests/1", "manifests/2"),
    ],
)
def test_files_that_changed_places_are_noticed(one: str, other: str, tmp_path, outside) -> None:
    path = tmp_path / "s.td"
    caches = make_store(path)
    swapped(one, other)(path, outside)
    found = {what: outcome for what, outcome, _ in tried({path: caches}, change=False)[path]}
    assert "wrong" not in [outcome for what, outcome in found.items() if what.endswith("copied")], found
    assert "StoreCorruptError" in found.values() and found.get("verify") != "right", found


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


DOCUMENTS = {
    "a codec that expands": {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]},
    "a codec that runs code": {"codecs": [{"name": "numcodecs.pickle"}]},
    "shards": {"codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 4, 64], "codecs": []}}]},
    "another byte order": {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]},
    "no checksums": {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
    "another dtype": {"data_type": "int32"},
    "an object dtype": {"data_type": "variable_length_bytes"},
    "another shape": {"shape": [12, 4, 65]},
    "an endless shape": {"shape": [12, 1 << 60, 1 << 60]},
    "no chunks": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 4, 64]}}},
    "an attribute": {"attributes": {"dtype": "float64"}},
    "an extension": {"must_understand": {"name": "x"}},
    "a storage transformer": {"storage_transformers": [{"name": "x"}]},
}


def test_arrays_are_read_as_the_manifest_says_and_not_as_their_metadata(tmp_path, outside) -> None:
    def harm(path: Path, change: dict) -> None:
        for which in (MASTER, VALUES):
            file = path / which / "zarr.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

    found = check(tmp_path, outside, {name: lambda p, _, c=c: harm(p, c) for name, c in DOCUMENTS.items()})
    for name, outcomes in found.items():
        assert all((outcome == "right") == (what != "verify") for what, outcome, _ in outcomes), (name, outcomes)


def test_no_two_manifests_claim_one_generation(tmp_path, outside) -> None:
    def harm(path: Path, name: str) -> None:
        path.joinpath("manifests", name).write_bytes(newest_manifest(path).read_bytes())

    assert_refused(check(tmp_path, outside, {n: lambda p, _, n=n: harm(p, n) for n in ("3", "7", "9" * 18)}))


IDS = [
    "../../outside/x",
    "/etc/passwd",
    "..",
    ".",
    "a\\b",
    "nul\0",
    "CON",
    "con",
    "é",
    "e\u0301",
    " ",
    "\n",
    "x" * 512,
    "0",
]


def test_agents_of_any_name_are_kept_apart_and_name_no_file(tmp_path, outside) -> None:
    caches = {agent: np.full((3, 4), number, np.float32) for number, agent in enumerate(IDS)}
    with td.open(tmp_path / "s.td", diff_threshold=0) as store:
        store.register_round(caches)
    with td.open(tmp_path / "s.td", mode="r") as store:
        for agent, cache in caches.items():
            assert store.reconstruct(agent).tobytes() == cache.tobytes()
    names = {part for file in tmp_path.joinpath("s.td").rglob("*") for part in file.relative_to(tmp_path).parts[1:]}
    assert {name for name in names if not name.isdecimal() and not name.startswith("c.")} == {
        *("manifests", "masters", "mirrors", "indices", "values", "zarr.json", "lock")
    }
    assert {file.name for file in outside.iterdir()} == {"secret"}
