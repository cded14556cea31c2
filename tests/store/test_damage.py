"""Damage on the disk is never silent: what is read with copy=True is an error or the right bytes, never wrong ones."""

import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from damaged_stores import chunk_file, make_store
from hypothesis import given, settings
from hypothesis import strategies as st

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


def is_whole(path: Path) -> bool:
    try:
        return td.verify(path).ok
    except td.FormatVersionError:
        return False


def last_chunk(path: Path) -> Path:
    return max(path.joinpath("masters/0").glob("c.*"), key=lambda file: int(file.name.split(".")[1]))


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
                # Readers go by the manifest's checksum of the rows: padding and the chunk's own checksum are no rows.
                rows = len(data) - 4 if file != last_chunk(path) else 7 * 1024
                assert "error" in found or position >= rows or file.parent.name == "values", f"bit {position} of {file}"
                assert not is_whole(path), f"bit {position} of {file}"
        file.write_bytes(data)


@settings(max_examples=150)
@given(data=st.data())
def test_any_flipped_bit_is_noticed_by_verify_or_harmless(made, data) -> None:
    path, caches = made
    file = data.draw(st.sampled_from(data_files(path)))
    content = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        file.write_bytes(damaged)
        read, ok = outcome(path, caches), is_whole(path)
        assert not ok or read == {"right"}
        assert not ok or not file.name.startswith("c."), "a bit of a chunk, its padding and its end included"
    finally:
        file.write_bytes(content)


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


def test_chunks_that_changed_places_are_noticed(copied) -> None:
    path, caches = copied
    chunks = [file for file in data_files(path) if file.name.startswith("c.")]
    tried = 0
    for left, right in combinations(chunks, 2):
        one, other = left.read_bytes(), right.read_bytes()
        if len(one) != len(other) or one == other:
            continue
        left.write_bytes(other)
        right.write_bytes(one)
        assert "error" in outcome(path, caches), f"{left} and {right} changed places, and nobody noticed"
        assert {one.where for one in td.verify(path).findings} >= {str(left.relative_to(path))}
        left.write_bytes(one)
        right.write_bytes(other)
        tried += 1
    assert tried > 10 and outcome(path, caches) == {"right"}


@pytest.fixture
def small(tmp_path, monkeypatch) -> tuple[Path, Caches]:
    """A store of one chunk in each array, with room for more."""
    monkeypatch.setattr("tokendance.store.layout.CHUNK_BYTES", 8192)
    monkeypatch.setattr("tokendance.store.layout.SMALL_CHUNK_BYTES", 4096)
    return tmp_path / "s.td", make_store(tmp_path / "s.td")


def test_an_older_copy_of_a_chunk_is_noticed(small) -> None:
    path, caches = small
    file = last_chunk(path)
    old = file.read_bytes()
    shared = np.ones((2, 4, 64), np.float32)
    with td.open(path, mode="r+") as store:
        before = store.generation
        store.collective_reuse_step(["m"], shared)
    new = file.read_bytes()
    assert new != old and last_chunk(path) == file
    for content, newest in ((new, "right"), (old, "error")):  # the second as a backup tool that missed the change would
        file.write_bytes(content)
        assert newest in outcome(path, {"m": np.concatenate((caches["m"], shared))})
        with td.open(path, mode="r", at=before) as store:
            assert store.reconstruct("m").tobytes() == caches["m"].tobytes()
        assert td.verify(path).ok == (newest == "right")


def test_a_reader_keeps_its_rows_while_appends_replace_the_last_chunk(small) -> None:
    path, caches = small
    with td.open(path, mode="r") as early, td.open(path, mode="r+") as writer:
        for step in range(6):
            with td.open(path, mode="r") as late:
                writer.collective_reuse_step(["m"], np.full((1, 4, 64), step, np.float32))
                n = 12 + step
                assert late.reconstruct("m")[:12].tobytes() == caches["m"].tobytes() and len(late.reconstruct("m")) == n
        assert early.reconstruct("m").tobytes() == caches["m"].tobytes()
        assert early.reconstruct("a").tobytes() == caches["a"].tobytes()
    assert td.verify(path).ok
    damaged = bytearray(last_chunk(path).read_bytes())
    damaged[-6] ^= 1
    last_chunk(path).write_bytes(damaged)
    assert [one.kind for one in td.verify(path).findings if one.kind != "agent"] == ["chunk"]


def test_a_shortened_master_has_checksums_of_its_own(small) -> None:
    # Its last chunk is the old one's file, of which it sees fewer rows.
    path, caches = small
    with td.open(path, mode="r+") as store:
        store.collective_reuse_step(["m"], np.ones((8, 4, 64), np.float32))
        store.collective_reuse_step(["m"], np.ones((3, 4, 64), np.float32))
        longer = store.reconstruct("m")
        store.register_master("m", longer[:21])
    assert any(file.stat().st_nlink > 1 for file in path.rglob("c.*"))
    assert outcome(path, {**caches, "m": longer[:21]}) == {"right"}
    assert td.verify(path).ok


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


def test_who_has_every_block_of_its_own_outlives_the_master(tmp_path: Path) -> None:
    path = tmp_path / "s.td"
    master = np.random.default_rng(0).standard_normal((8, 4, 64)).astype(np.float32)
    with td.open(path, diff_threshold=0) as store:
        store.register_round(
            {"m": master, "own": master + 1, "half": master + (np.arange(8) > 3)[:, None, None]}, master="m"
        )
    shutil.rmtree(path / "masters" / "0")
    with td.open(path, mode="r") as store:
        assert store.reconstruct_many(["own"])["own"].tobytes() == (master + 1).tobytes()
        for copy in (True, False):
            assert store.reconstruct("own", copy=copy, blocks=[5, 2]).tobytes() == (master[[5, 2]] + 1).tobytes()
            for damaged in ("m", "half"):
                with pytest.raises(td.StoreCorruptError, match="folder 0 is missing"):
                    store.reconstruct(damaged, copy=copy)
    assert not td.verify(path, repair=True).ok
    with td.open(path, mode="r") as store:
        assert store.agents == ["own"]
        assert store.reconstruct("own").tobytes() == (master + 1).tobytes()


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


@pytest.mark.parametrize("n_new", [1, 3, 40])
@pytest.mark.parametrize("checksums", ["on", "off"])
@pytest.mark.parametrize("first_read", [False, True])
def test_an_appended_chunk_is_not_sealed_over_damage(n_new: int, checksums: str, first_read: bool, small) -> None:
    path, _ = small
    with td.open(path, mode="r+", checksums=checksums) as store:
        if first_read:  # what was checked once may be damaged by now
            store.reconstruct("m")
        last = last_chunk(path)
        damaged = bytearray(last.read_bytes())
        damaged[0] ^= 1
        last.unlink()
        last.write_bytes(damaged)
        generation = store.generation
        with pytest.raises(td.StoreCorruptError, match=r"masters/0/c\."):
            store.collective_reuse_step(["m"], np.ones((n_new, 4, 64), np.float32))
        assert store.generation == generation
    assert last.read_bytes() == damaged
    assert {one.where for one in td.verify(path).findings if one.kind == "chunk"} == {str(last.relative_to(path))}
