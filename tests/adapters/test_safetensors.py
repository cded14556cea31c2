"""Agents as .safetensors files, read and written beside the library of that name."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from naive import DTYPES, dtype_named
from paged_twins import blocks_of, lmcache_of, random_bits

import tokendance as td
from tokendance.adapters import safetensors as adapter
from tokendance.adapters.paged import load_lmcache, register_lmcache
from tokendance.adapters.safetensors import export_agent, import_agent
from tokendance.adapters.safetensors_header import FORMAT_NAMES
from tokendance.errors import IdentityMismatchError, StoreCorruptError, UnknownAgentError

pytest.importorskip("safetensors")

from safetensors import deserialize
from safetensors.numpy import save_file

FLOATS = [name for name in DTYPES if "int" not in name]


def some_blocks(dtype: str, n: int = 5, seed: int = 0) -> Any:
    """Any bits at all: NaN payloads among them."""
    kind = dtype_named(dtype)
    raw = np.random.default_rng(seed).integers(0, 256, (n, 3, 4 * kind.itemsize), np.uint8)
    return raw.view(kind)


def same(got: Any, expected: Any) -> bool:
    return got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()


def as_the_library_reads_it(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    read = deserialize(path.read_bytes())
    return {name: (one["dtype"], tuple(one["shape"]), bytes(one["data"])) for name, one in read}


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    found: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return found


@pytest.fixture
def storage() -> td.TokenDanceStorage:
    return td.TokenDanceStorage(diff_threshold=0.0, ragged=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_go_out_and_come_back(storage: td.TokenDanceStorage, tmp_path: Path, dtype: str) -> None:
    master, mirror = some_blocks(dtype), some_blocks(dtype, seed=1)
    mirror[2:] = master[2:]
    storage.register_master("planner", master, meta={"turn": 3})
    storage.register_mirror("critic", mirror, meta={"who": "é\n", "nested": {"list": [1, None]}})
    other = td.TokenDanceStorage(diff_threshold=0.0, ragged=True)
    for agent, cache in {"planner": master, "critic": mirror}.items():
        path = tmp_path / f"{agent}.safetensors"
        export_agent(storage, agent, path)
        assert as_the_library_reads_it(path) == {"blocks": (FORMAT_NAMES[dtype], cache.shape, cache.tobytes())}
        diff = import_agent(other, path, f"new {agent}")
        assert same(other.reconstruct(f"new {agent}"), cache)
        assert other.meta(f"new {agent}") == storage.meta(agent)
    assert diff is not None
    assert diff.block_indices.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_of_the_library_come_in(storage: td.TokenDanceStorage, tmp_path: Path, dtype: str) -> None:
    blocks = some_blocks(dtype)
    for metadata in (None, {"format": "np", "note": "not ours"}):
        save_file({"blocks": blocks}, tmp_path / "theirs.safetensors", metadata)
        import_agent(storage, tmp_path / "theirs.safetensors", "planner")
        assert same(storage.reconstruct("planner"), blocks)
        assert storage.meta("planner") == {}


@pytest.mark.parametrize("tokens", [1, 16, 37])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_cache_goes_out_as_keys_and_values(
    storage: td.TokenDanceStorage, tmp_path: Path, dtype: str, tokens: int
) -> None:
    kv, path = random_bits((3, 2, tokens, 2, 4), dtype), tmp_path / "planner.safetensors"
    register_lmcache(storage, "planner", lmcache_of(kv), kv_heads=2)
    export_agent(storage, "planner", path)
    heads_first = kv.swapaxes(2, 3)
    expected = {
        f"layers.{layer}.{name}": (FORMAT_NAMES[dtype], (1, 2, tokens, 4), heads_first[layer, side].tobytes())
        for layer in range(3)
        for side, name in enumerate(("keys", "values"))
    }
    assert as_the_library_reads_it(path) == expected
    for ragged in (True, False):
        other = td.TokenDanceStorage(diff_threshold=0.0, ragged=ragged)
        import_agent(other, path, "twin")
        assert same(load_lmcache(other, "twin"), lmcache_of(kv))
        assert same(other.reconstruct("twin"), blocks_of(kv, 16))
        assert other.meta("twin") == storage.meta("planner")


def test_padding_of_a_storage_that_is_not_ragged_stays_at_home(tmp_path: Path) -> None:
    padded = td.TokenDanceStorage(diff_threshold=0.0)
    long, short = random_bits((2, 2, 60, 1, 4)), random_bits((2, 2, 5, 1, 4), seed=1)
    register_lmcache(padded, "long", lmcache_of(long), kv_heads=1)
    register_lmcache(padded, "short", lmcache_of(short), kv_heads=1)
    assert len(padded.reconstruct("short")) == len(padded.reconstruct("long"))
    export_agent(padded, "short", tmp_path / "short.safetensors")
    ragged = td.TokenDanceStorage(diff_threshold=0.0, ragged=True)
    import_agent(ragged, tmp_path / "short.safetensors", "short")
    assert len(ragged.reconstruct("short")) == 4
    import_agent(padded, tmp_path / "short.safetensors", "again")
    assert same(padded.reconstruct("again"), padded.reconstruct("short"))


def test_a_file_that_was_saved_again_by_the_library_is_still_ours(
    storage: td.TokenDanceStorage, tmp_path: Path
) -> None:
    """In its own order, with its own offsets; our checksums are of names, shapes and contents."""
    kv, path = random_bits((3, 2, 20, 2, 4), "float16"), tmp_path / "planner.safetensors"
    register_lmcache(storage, "planner", lmcache_of(kv), kv_heads=2)
    export_agent(storage, "planner", path)
    tensors = {name: np.frombuffer(data, np.float16).reshape(shape) for name, (_, shape, data) in
               reversed(as_the_library_reads_it(path).items())}  # fmt: skip
    save_file(tensors, path, header(path)["__metadata__"])
    import_agent(storage, path, "twin")
    assert same(load_lmcache(storage, "twin"), lmcache_of(kv))


def test_an_agent_of_a_store_takes_its_identity_along(tmp_path: Path) -> None:
    path, blocks = tmp_path / "planner.safetensors", some_blocks("float32")
    with td.open(tmp_path / "round.td", identity={"model": "one", "layers": 2}) as store:
        store.register_master("planner", blocks)
        export_agent(store, "planner", path)
    with td.open(tmp_path / "other.td", identity={"model": "two", "layers": 2}) as store:
        with pytest.raises(IdentityMismatchError, match="model: 'one' there, 'two' here"):
            import_agent(store, path, "planner")
        assert store.agents == []
    with td.open(tmp_path / "nobody.td") as store:
        import_agent(store, path, "planner")
        assert same(store.reconstruct("planner"), blocks)


def test_an_agent_whose_blocks_no_longer_follow_its_layout_goes_out_as_blocks(
    storage: td.TokenDanceStorage, tmp_path: Path
) -> None:
    kv, path = random_bits((2, 2, 16, 1, 4)), tmp_path / "planner.safetensors"
    register_lmcache(storage, "planner", lmcache_of(kv), kv_heads=1)
    storage.collective_reuse_step([], np.ones((3, 1, 16, 4), np.float32))
    export_agent(storage, "planner", path)
    assert list(as_the_library_reads_it(path)) == ["blocks"]
    other = td.TokenDanceStorage(ragged=True)
    import_agent(other, path, "twin")
    assert same(other.reconstruct("twin"), storage.reconstruct("planner"))


# Whole or not at all --------------------------------------------------------------------------------------------------


def failing_write(n_calls: int, error: BaseException) -> Callable[[int, Any], int]:
    real, left = os.write, [n_calls]

    def write(fd: int, data: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(fd, data)

    return write


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]


@pytest.mark.parametrize("failure", FAILURES, ids=["full disk", "interrupt"])
@pytest.mark.parametrize("step", ["write 0", "write 1", "write 2", "pwrite", "fsync", "rename"])
def test_a_file_is_there_whole_or_not_at_all(
    storage: td.TokenDanceStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    monkeypatch.setattr(adapter, "_PIECE_BYTES", 100)
    path = tmp_path / "planner.safetensors"
    storage.register_master("planner", some_blocks("float32", 50))
    path.write_bytes(b"what was there")

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    name, _, count = step.partition(" ")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing_write(int(count), failure) if name == "write" else fail)
        with pytest.raises(type(failure)):
            export_agent(storage, "planner", path)
    assert path.read_bytes() == b"what was there"
    assert names_in(tmp_path) == ["planner.safetensors"]
    export_agent(storage, "planner", path)
    import_agent(storage, path, "twin")
    assert names_in(tmp_path) == ["planner.safetensors"]


def test_a_damaged_store_makes_no_file(tmp_path: Path) -> None:
    with td.open(tmp_path / "round.td") as store:
        store.register_master("planner", some_blocks("float32"))
    (chunk,) = (tmp_path / "round.td" / "masters").glob("*/c.*")
    content = bytearray(chunk.read_bytes())
    content[9] ^= 1
    chunk.write_bytes(content)
    with td.open(tmp_path / "round.td", "r") as store, pytest.raises(StoreCorruptError, match="checksum"):
        export_agent(store, "planner", tmp_path / "planner.safetensors")
    assert names_in(tmp_path) == ["round.td"]


def test_files_that_cannot_be_written_say_why(storage: td.TokenDanceStorage, tmp_path: Path) -> None:
    storage.register_master("planner", some_blocks("float32"))
    with pytest.raises(UnknownAgentError, match="nobody"):
        export_agent(storage, "nobody", tmp_path / "x.safetensors")
    with pytest.raises(IsADirectoryError, match="got a folder"):
        export_agent(storage, "planner", tmp_path)
    with pytest.raises(FileNotFoundError):
        export_agent(storage, "planner", tmp_path / "missing" / "x.safetensors")
    assert names_in(tmp_path) == []
