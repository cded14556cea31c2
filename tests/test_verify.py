"""verify() names every damage; repair drops what cannot be right and keeps the rest."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tokendance as td
from tokendance.store import arrays, layout

AGENTS = ("m", "a", "b", "c")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(layout, "SMALL_CHUNK_BYTES", 1 << 12)


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A store of a master of four chunks, three mirrors, and a tagged generation of one agent less."""
    rng = np.random.default_rng(3)
    master = rng.standard_normal((16, 1024)).astype(np.float32)
    caches = {"m": master}
    for place, agent in enumerate(AGENTS[1:]):
        caches[agent] = master.copy()
        caches[agent][[place, place + 4, 15]] += 1
    path = tmp_path / "s.td"
    with td.open(path) as opened:
        opened.register_round({key: caches[key] for key in AGENTS[:3]}, master="m")
        opened.tag("three")
        opened.register_mirror("c", caches["c"])
    return path, caches


def overwrite(path: Path, change: Callable[[bytearray], bytes | bytearray]) -> None:
    content = change(bytearray(path.read_bytes()))
    path.unlink()
    path.write_bytes(content)


def resealed(content: bytes) -> bytes:
    line = content.partition(b"\n")[0]
    return line + b'\n{"sha256":"' + hashlib.sha256(line).hexdigest().encode() + b'"}\n'


def flip(content: bytearray) -> bytearray:
    content[len(content) // 2] ^= 1
    return content


def data_files(path: Path) -> list[Path]:
    return sorted(one for one in path.rglob("*") if one.is_file() and one.name != "lock")


def readable(path: Path, caches: dict[str, np.ndarray]) -> set[str]:
    with td.open(path, mode="r") as opened:
        for agent in opened.agents:
            assert opened.reconstruct(agent).tobytes() == caches[agent].tobytes(), agent
        return set(opened.agents)


def test_a_whole_store_has_no_findings(store) -> None:
    path, _ = store
    seen: list[tuple[int, int]] = []
    found = td.verify(path, progress=lambda done, total: seen.append((done, total)))
    assert found.ok and found.findings == () and found.leavings == () and found.repairs == ()
    assert seen and seen[-1] == (found.checked_bytes, found.checked_bytes) and seen == sorted(seen)
    with td.open(path) as opened:
        assert opened.verify().ok
        assert opened.verify(repair=True).repairs == ()


def test_a_flipped_bit_in_any_file_is_found_and_names_the_file(store) -> None:
    path, _ = store
    for file in data_files(path):
        whole = file.read_bytes()
        overwrite(file, flip)
        try:
            found = td.verify(path)
            assert not found.ok, file
            where = str(file.relative_to(path))
            assert any(one.where == where for one in found.findings), (where, found.findings)
        finally:
            overwrite(file, lambda _, whole=whole: whole)
    assert td.verify(path).ok


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"x"])
def test_wrong_lengths_are_found(store, damage) -> None:
    path, _ = store
    for file in data_files(path):
        if file.name == "zarr.json" or file.parent.name == "manifests":
            continue
        whole = file.read_bytes()
        overwrite(file, damage)
        assert not td.verify(path).ok, file
        overwrite(file, lambda _, whole=whole: whole)


def test_a_missing_file_is_found(store) -> None:
    path, _ = store
    for file in data_files(path):
        whole = file.read_bytes()
        file.unlink()
        if file.parent.name != "manifests" or file.name == "zarr.json":
            assert not td.verify(path).ok, file
        file.write_bytes(whole)


def test_what_nobody_refers_to_is_told_and_is_no_finding(store) -> None:
    path, caches = store
    (path / "mirrors" / "99").mkdir()
    (path / "manifests" / ".9.new").write_bytes(b"half")
    found = td.verify(path)
    assert found.ok and found.leavings == ("mirrors/99", "manifests/.9.new")
    with td.open(path) as opened:
        opened.gc(keep_last=16)
    assert td.verify(path).leavings == ()
    assert readable(path, caches) == set(AGENTS)


def test_chunks_of_an_append_that_was_given_up_are_leavings(tmp_path: Path) -> None:
    path, n_blocks = tmp_path / "s.td", 1 << 4
    cache = np.random.default_rng(0).standard_normal((n_blocks, 1024)).astype(np.float32)
    with td.open(path, diff_threshold=0, ragged=True) as opened:
        opened.register_master("m", cache)
        held = opened.reconstruct("m", copy=False)
        with pytest.raises(ZeroDivisionError), opened.transaction():
            opened.collective_reuse_step(["m"], cache)
            raise ZeroDivisionError
        spare = sorted(str(file.relative_to(path)) for file in path.glob("masters/0/c.*"))[4:]
        assert len(spare) == 4
        path.joinpath("masters", "0", ".c.4.0.new").touch()
        found = opened.verify()
        assert (found.ok, found.leavings) == (True, ("masters/0/.c.4.0.new", *spare))
        opened.gc()
        assert opened.verify().leavings == ()
        opened.collective_reuse_step(["m"], cache[:3])
        assert opened.reconstruct("m").tobytes() == np.concatenate((cache, cache[:3])).tobytes()
        assert held.tobytes() == cache.tobytes()
    assert td.verify(path).ok


def test_repair_drops_a_damaged_mirror_and_keeps_the_others(store) -> None:
    path, caches = store
    with td.open(path, mode="r") as opened:
        number = next(one.object for one in opened._manifest.mirrors if one.agent == "a")
    overwrite(path / f"mirrors/{number}/values/c.0.0", flip)
    with pytest.raises(td.StoreCorruptError, match=rf"mirrors/{number}/values/c\.0\.0"), td.open(path) as opened:
        opened.reconstruct("a")
    found = td.verify(path, repair=True)
    assert any("dropped agent 'a'" in one for one in found.repairs)
    assert any("is tagged" in one for one in found.repairs)
    assert readable(path, caches) == {"m", "b", "c"}
    with td.open(path, mode="r", at="three") as opened:
        assert opened.reconstruct("b").tobytes() == caches["b"].tobytes()
    with td.open(path) as opened:
        opened.untag("three")
        opened.gc()
    assert td.verify(path).ok


def test_repair_of_a_damaged_master_keeps_the_mirrors_that_do_not_need_the_chunk(store) -> None:
    path, caches = store
    # Chunk 0 is blocks 0 to 3; give one mirror all of those itself.
    whole = caches["b"].copy()
    whole[:4] += 5
    caches["b"] = whole
    with td.open(path) as opened:
        opened.untag("three")
        opened.register_mirror("b", whole)
        master = opened._manifest.master.object
    overwrite(path / f"masters/{master}/c.0.0", flip)
    found = td.verify(path, repair=True)
    assert {"m", "a", "c"} == {one.split("'")[1] for one in found.repairs if one.startswith("dropped agent")}
    assert readable(path, caches) == {"b"}
    assert td.verify(path).ok
    with td.open(path) as opened:
        opened.register_mirror("a", caches["a"])
    assert readable(path, caches) == {"a", "b"}


def test_repair_steps_back_from_a_damaged_newest_manifest_and_says_so(store) -> None:
    path, caches = store
    newest = max(int(one.name) for one in (path / "manifests").iterdir() if one.name.isdecimal())
    overwrite(path / f"manifests/{newest}", flip)
    with pytest.raises(td.StoreCorruptError, match="manifest"):
        td.open(path, mode="r")
    found = td.verify(path, repair=True)
    assert any(f"generation {newest} aside" in one for one in found.repairs)
    assert readable(path, caches) == {"m", "a", "b"}
    with td.open(path) as opened:
        assert opened.generation == newest + 1
        opened.register_mirror("c", caches["c"])
    assert readable(path, caches) == set(AGENTS)


def test_repair_writes_metadata_anew(store) -> None:
    import zarr

    path, caches = store
    files = sorted(path.rglob("zarr.json"))
    for file in files[1:]:
        overwrite(file, flip)
    assert len(td.verify(path, repair=True).repairs) == len(files) - 1
    assert td.verify(path).ok
    assert zarr.open_group(path, mode="r")["masters"]
    assert readable(path, caches) == set(AGENTS)


def test_repair_through_an_open_store_shows_the_repaired_state(store) -> None:
    path, caches = store
    with td.open(path) as opened:
        number = next(one.object for one in opened._manifest.mirrors if one.agent == "c")
        overwrite(path / f"mirrors/{number}/indices/c.0", flip)
        opened.verify(repair=True)
        assert opened.agents == ["m", "a", "b"]
        opened.register_mirror("c", caches["c"])
    assert readable(path, caches) == set(AGENTS)


@pytest.mark.parametrize("gone", ["masters/0", "mirrors/1", "mirrors/1/values", "mirrors/1/indices"])
def test_a_folder_that_is_gone_takes_down_who_needs_it_alone(store, gone: str) -> None:
    path, caches = store
    shutil.rmtree(path / gone)
    assert not td.verify(path).ok
    td.verify(path, repair=True)
    left = readable(path, caches)
    assert left == (set() if gone == "masters/0" else {"m", "b", "c"})
    with td.open(path) as opened:
        # A tagged generation in which somebody is intact stays, and so does what is found in it.
        for name in opened.tags:
            opened.untag(name)
        opened.gc()
    assert td.verify(path).ok


@pytest.mark.parametrize("gone", [["mirrors"], ["masters"], ["masters", "mirrors"]], ids=" ".join)
def test_a_store_without_its_folders_is_repaired_as_far_as_that_goes(store, gone: list[str]) -> None:
    path, caches = store
    for group in gone:
        shutil.rmtree(path / group)
    found = td.verify(path)
    assert [(one.kind, one.where) for one in found.findings] == [("folder", group) for group in gone]
    assert not any(path.joinpath(group).exists() for group in gone)
    with td.open(path.parent / "other.td") as other, pytest.raises(td.StoreLockedError):
        other.register_master("m", caches["m"])
        shutil.rmtree(path.parent / "other.td" / "mirrors")
        td.verify(path.parent / "other.td", repair=True)
    found = td.verify(path, repair=True)
    assert [one.kind for one in found.findings][: len(gone)] == ["folder"] * len(gone)
    assert readable(path, caches) == (set() if "masters" in gone else {"m"})
    with td.open(path) as opened:
        for name in opened.tags:
            opened.untag(name)
        opened.gc()
        opened.register_mirror("b", caches["b"]) if opened.master_id else opened.register_master("b", caches["b"])
    assert td.verify(path).ok
    assert "b" in readable(path, caches)


def test_a_folder_that_has_manifests_of_its_own_is_not_repaired(tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "1").write_text("kind: Deployment")
    for repair in (False, True):
        with pytest.raises(td.StoreCorruptError):
            td.verify(tmp_path, repair=repair)
    assert sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*")) == ["manifests", "manifests/1"]


def test_repair_needs_the_lock_and_leaves_newer_formats_alone(store) -> None:
    path, _ = store
    with td.open(path), pytest.raises(td.StoreLockedError):
        td.verify(path, repair=True)
    newest = path / "manifests" / "4"
    overwrite(newest, lambda content: resealed(content.replace(b'"format":1', b'"format":2', 1)))
    before = sorted((one, one.stat().st_mtime_ns) for one in data_files(path))
    with pytest.raises(td.FormatVersionError, match="format 2"):
        td.verify(path, repair=True)
    assert sorted((one, one.stat().st_mtime_ns) for one in data_files(path)) == before


def test_a_newer_store_is_left_alone_however_its_manifests_are_sealed(store) -> None:
    path, _ = store
    for file in (path / "zarr.json", *path.glob("manifests/[0-9]*")):
        overwrite(file, lambda content: content.replace(b'"format":1', b'"format":2').replace(b'": 1', b'": 2'))
    before = sorted((one, one.stat().st_mtime_ns) for one in data_files(path))
    for repair in (False, True):
        with pytest.raises(td.FormatVersionError, match="format 2"):
            td.verify(path, repair=repair)
    assert sorted((one, one.stat().st_mtime_ns) for one in data_files(path)) == before


@pytest.mark.parametrize("damaged", [b'"format":3', b'"fnrmat":1'])
def test_a_bit_that_makes_a_manifest_seem_newer_is_damage(store, damaged: bytes) -> None:
    path, caches = store
    overwrite(path / "manifests" / "4", lambda content: content.replace(b'"format":1', damaged, 1))
    assert [(one.kind, one.where) for one in td.verify(path).findings] == [("manifest", "manifests/4")]
    td.verify(path, repair=True)
    assert td.verify(path).ok
    assert readable(path, caches)


def test_a_store_without_any_readable_manifest_cannot_be_repaired(store) -> None:
    path, _ = store
    for file in (path / "manifests").iterdir():
        if file.name.isdecimal():
            overwrite(file, flip)
    with pytest.raises(td.StoreCorruptError, match="no manifest can be read"):
        td.verify(path, repair=True)


def test_shared_blocks_are_read_once(store, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = store
    with td.open(path) as opened:
        for twin in range(20):
            opened.fork("a", f"twin {twin}")
    checked: list[str] = []
    check = arrays.DiskRows.check
    monkeypatch.setattr(
        arrays.DiskRows, "check", lambda rows, chunk: (checked.append(f"{rows.path}/{chunk}"), check(rows, chunk))[1]
    )
    assert td.verify(path).ok
    blocks = [one for one in checked if "indices" not in one]
    there = [one for one in path.rglob("c.*") if one.parent.name != "indices"]
    assert len(blocks) == len(set(blocks)) == len(there)


def test_verify_of_something_else_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        td.verify(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(td.StoreCorruptError, match="folder"):
        td.verify(tmp_path / "folder")
