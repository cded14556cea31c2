"""Damage on the disk is never silent: what is read with copy=True is an error or the right bytes, never wrong ones."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from damaged_stores import chunk_file, make_store

import tokendance as td

Caches = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[tuple[Path, Caches]]:
    """A store whose arrays have several chunks: a master of 5, mirrors, a base map, a grown master, an older tag."""
    patch = pytest.MonkeyPatch()
    patch.setattr("tokendance.store.layout.CHUNK_BYTES", 8192)
    patch.setattr("tokendance.store.layout.SMALL_CHUNK_BYTES", 4096)
    path = tmp_path_factory.mktemp("damage") / "s.td"
    caches = make_store(path, n=36)
    with td.open(path, mode="r+") as store:
        store.tag("before")
        shared = np.ones((3, 4, 64), np.float32)
        store.collective_reuse_step(["m", "a"], shared)
        longer = np.concatenate((caches["m"][5:], caches["m"][:9]))
        store.register_mirror("moved", longer, base=np.r_[5:36, 0:9])
        store.gc()
    caches = {key: np.concatenate((cache, shared)) if key in "ma" else cache for key, cache in caches.items()}
    yield path, {**caches, "moved": longer}
    patch.undo()


def data_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "lock")


def outcome(path: Path, caches: Caches) -> set[str]:
    """Read everything in a fresh handle; never wrong bytes."""
    found = set()
    try:
        store = td.open(path, mode="r")
    except (td.StoreCorruptError, td.FormatVersionError):
        return {"error"}
    with store:
        for agent, cache in caches.items():
            try:
                got = store.reconstruct(agent)
            except (td.StoreCorruptError, td.UnknownAgentError, td.NoMasterError):
                found.add("error")
            else:
                assert got.tobytes() == cache.tobytes(), f"{agent} reads wrong"
                found.add("right")
    return found


@pytest.fixture
def copied(made, tmp_path) -> tuple[Path, Caches]:
    path, caches = made
    shutil.copytree(path, tmp_path / "s.td")
    return tmp_path / "s.td", caches


def test_the_undamaged_store_reads_right(copied) -> None:
    path, caches = copied
    assert outcome(path, caches) == {"right"}
    assert td.verify(path).ok
    assert {file.parent.name for file in data_files(path)} >= {"indices", "values", "base", "0"}
    assert len(list(path.joinpath("masters/0").glob("c.*"))) == 5


def test_flipped_bits_in_every_file_are_noticed_or_harmless(copied) -> None:
    path, caches = copied
    for file in data_files(path):
        data = file.read_bytes()
        step = max(len(data) // 7, 1)
        for position in [*range(0, len(data), step), len(data) - 1]:
            damaged = bytearray(data)
            damaged[position] ^= 1 << position % 8
            file.write_bytes(damaged)
            found = outcome(path, caches)
            if file.name.startswith("c."):
                assert "error" in found or file.parent.name == "values", f"bit {position} of {file} was not noticed"
        file.write_bytes(data)


@pytest.mark.parametrize("how", ["emptied", "halved", "without its last byte", "longer", "zeros", "deleted"])
def test_cut_and_missing_files_are_noticed(how: str, copied) -> None:
    path, caches = copied
    for file in data_files(path):
        if not file.name.startswith("c."):
            continue
        content = file.read_bytes()
        made = {
            "emptied": b"",
            "halved": content[: len(content) // 2],
            "without its last byte": content[:-1],
            "longer": content + b"\0",
            "zeros": bytes(len(content)),
        }
        file.unlink()
        if how != "deleted":
            file.write_bytes(made[how])
        assert "error" in outcome(path, caches), f"{file} was {how}, and nobody noticed"
        assert not td.verify(path).ok
        file.write_bytes(content)


def test_parts_touch_only_the_chunks_they_need(copied) -> None:
    path, caches = copied
    chunks = sorted(path.joinpath("masters/0").glob("c.*"), key=lambda file: int(file.name.split(".")[1]))
    damaged = bytearray(chunks[2].read_bytes())
    damaged[100] ^= 1
    chunks[2].write_bytes(damaged)
    rows = damaged.__len__() // 1024
    assert rows == 8
    good, bad = [0, 1, 2, 5, 15, 24, 38], [*range(16, 24)]
    with td.open(path, mode="r") as store:
        assert store.reconstruct("m", blocks=good).tobytes() == caches["m"][good].tobytes()
        assert store.reconstruct("a", blocks=slice(0, 16)).tobytes() == caches["a"][:16].tobytes()
        for one in bad:
            with pytest.raises(td.StoreCorruptError, match=r"masters/0/c\.2\."):
                store.reconstruct("m", blocks=[0, one])
        assert store.reconstruct("m", blocks=[31, 0]).tobytes() == caches["m"][[31, 0]].tobytes()
        with pytest.raises(td.StoreCorruptError):
            store.reconstruct("m")


def test_a_missing_chunk_takes_nothing_else_down(copied) -> None:
    path, caches = copied
    chunk_file(path, "mirrors/1/values").unlink()
    with td.open(path, mode="r") as store:
        for copy in (True, False):
            with pytest.raises(td.StoreCorruptError, match="mirrors/1/values"):
                store.reconstruct("a", copy=copy)
            for agent in ("m", "b", "moved"):
                assert store.reconstruct(agent, copy=copy).tobytes() == caches[agent].tobytes()


def test_checksums_off_reads_what_is_there_but_not_where_it_steers(copied) -> None:
    path, caches = copied
    values, indices = chunk_file(path, "mirrors/1/values"), chunk_file(path, "mirrors/2/indices")
    for file in (values, indices):
        damaged = bytearray(file.read_bytes())
        damaged[8] ^= 1
        file.write_bytes(damaged)
    with pytest.raises(td.StoreCorruptError), td.open(path, mode="r") as store:
        store.reconstruct("a")
    with td.open(path, mode="r", checksums="off") as store:
        got = store.reconstruct("a")
        assert got.shape == caches["a"].shape and (got != caches["a"]).sum() == 1
        with pytest.raises(td.StoreCorruptError, match="mirrors/2/indices"):
            store.reconstruct("b")
    with pytest.raises(ValueError, match="checksums"):
        td.open(path, mode="r", checksums="maybe")


def test_damage_is_met_by_the_writer_too_and_changes_nothing(copied) -> None:
    path, caches = copied
    chunks = sorted(path.joinpath("masters/0").glob("c.*"), key=lambda file: int(file.name.split(".")[1]))
    damaged = bytearray(chunks[-1].read_bytes())
    damaged[0] ^= 1
    chunks[-1].write_bytes(damaged)
    shared = np.ones((1, 4, 64), np.float32)
    for step in (
        lambda store: store.collective_reuse_step(["m"], shared),
        lambda store: store.register_master("m", caches["m"] + 1),
        lambda store: store.register_mirror("a", caches["m"]),
        lambda store: store.rebase("b"),
    ):
        with td.open(path, mode="r+") as store:
            before = store.generation
            with pytest.raises(td.StoreCorruptError, match=r"masters/0/c\.4\."):
                step(store)
            assert store.generation == before
    # A checksum that was made anew over damaged rows would hide the damage.
    assert chunks[-1].read_bytes() == bytes(damaged)
