"""Plain zarr reads a store: the reader is a process that never imports tokendance."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from damaged_stores import chunk_file, first_caches, make_store

import tokendance as td

pytest.importorskip("zarr")

READER = """
import json, sys, warnings
warnings.simplefilter("error")
import numpy as np, zarr

path, target = sys.argv[1:]
group = zarr.open_group(path, mode="r")
found = {"arrays": {}, "error": None}
try:
    for name, member in sorted(group.members(max_depth=None)):
        if isinstance(member, zarr.Array):
            data = member[:]
            np.save(f"{target}/{name.replace('/', ' ')}.npy", data)
            found["arrays"][name] = [str(member.dtype), member.attrs.get("dtype")]
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
assert "tokendance" not in sys.modules
print(json.dumps(found))
"""


def read_by_zarr(path: Path, target: Path) -> tuple[dict[str, np.ndarray], dict[str, list[str]], str | None]:
    """Every array of a store, and its dtype and that of the cache, as plain zarr sees them; or zarr's error."""
    target.mkdir()
    command = [sys.executable, "-c", READER, str(path), str(target)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=target)
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    found = json.loads(child.stdout)
    arrays = {name: np.load(target / f"{name.replace('/', ' ')}.npy") for name in found["arrays"]}
    return arrays, found["arrays"], found["error"]


def put_together(arrays: dict[str, np.ndarray], master: int, mirror: int, n: int) -> bytes:
    """A mirror of `n` blocks as somebody who has read docs/format.md would put it together."""
    blocks = arrays[f"masters/{master}"][:n].copy()
    blocks[arrays[f"mirrors/{mirror}/indices"]] = arrays[f"mirrors/{mirror}/values"]
    return blocks.tobytes()


DTYPES = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e5m2": "uint8",
    "int8": "int8",
    "uint8": "uint8",
}


@pytest.mark.parametrize(("dtype", "stored"), DTYPES.items())
def test_every_dtype_is_read(dtype: str, stored: str, tmp_path) -> None:
    real = np.dtype(getattr(ml_dtypes, dtype, dtype))
    master = np.random.default_rng(0).integers(0, 256, (6, 2, 5 * real.itemsize), np.uint8).view(real)
    mirror = master.copy()
    mirror.view(np.uint8)[3] ^= 255
    with td.open(tmp_path / "s.td", diff_threshold=0) as store:
        store.register_master("m", master)
        store.register_mirror("a", mirror)
    arrays, dtypes, error = read_by_zarr(tmp_path / "s.td", tmp_path / "read")
    assert error is None
    assert dtypes["masters/0"] == dtypes["mirrors/1/values"] == [stored, dtype]
    assert arrays["masters/0"].shape == (6, 2, 5) and arrays["masters/0"].tobytes() == master.tobytes()
    assert arrays["mirrors/1/indices"].dtype == np.int64 and arrays["mirrors/1/indices"].tolist() == [3]
    assert arrays["mirrors/1/values"].tobytes() == mirror[3:4].tobytes()
    assert arrays["masters/0"].view(real).tobytes() == master.tobytes()


@pytest.mark.parametrize("shape", [(4, 64), (2, 3), (1000,), (1,)], ids=str)
def test_a_store_is_read_after_appends_and_replacements(shape: tuple[int, ...], tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tokendance.store.layout.CHUNK_BYTES", 8192)
    monkeypatch.setattr("tokendance.store.layout.SMALL_CHUNK_BYTES", 4096)
    path = tmp_path / "s.td"
    caches = make_store(path, shape, 20)
    master = caches["m"]
    for step in range(4):
        shared = np.random.default_rng(step).standard_normal((7, *shape)).astype(np.float32)
        with td.open(path, mode="r+") as store:
            store.collective_reuse_step(["m"], shared)
            store.gc()
        master = np.concatenate((master, shared))
        arrays, _, error = read_by_zarr(path, tmp_path / f"read {step}")
        assert error is None
        newest = max(int(name.split("/")[1]) for name in arrays if name.startswith("masters/"))
        assert arrays[f"masters/{newest}"].tobytes() == master.tobytes()
        assert put_together(arrays, newest, 1, 20) == caches["a"].tobytes()
        assert put_together(arrays, newest, 2, 20) == caches["b"].tobytes()
    replaced = master.copy()
    replaced[9] += 1
    with td.open(path, mode="r+") as store:
        store.register_master("m", replaced)
        store.gc()
    arrays, _, error = read_by_zarr(path, tmp_path / "read last")
    assert error is None
    numbers = sorted(int(name.split("/")[1]) for name in arrays if name.startswith("masters/"))
    assert arrays[f"masters/{numbers[-1]}"].tobytes() == replaced.tobytes()


def test_an_empty_store_is_a_group_without_arrays_of_blocks(tmp_path) -> None:
    td.open(tmp_path / "s.td").close()
    arrays, _, error = read_by_zarr(tmp_path / "s.td", tmp_path / "read")
    assert error is None
    assert not [name for name in arrays if "/" in name]


def test_base_maps_are_read(tmp_path) -> None:
    caches = first_caches()
    moved = np.r_[4:12, 0:4]
    with td.open(tmp_path / "s.td", diff_threshold=0) as store:
        store.register_master("m", caches["m"])
        store.register_mirror("a", caches["m"][moved], base=moved)
    arrays, _, error = read_by_zarr(tmp_path / "s.td", tmp_path / "read")
    assert error is None
    (base,) = [array for name, array in arrays.items() if name.endswith("/base")]
    assert base.tolist() == moved.tolist() and base.dtype == np.int64


@pytest.mark.parametrize("which", ["masters/0", "mirrors/1/indices", "mirrors/1/values"])
def test_damage_is_noticed_by_zarr_too(which: str, tmp_path) -> None:
    path = tmp_path / "s.td"
    make_store(path)
    file = chunk_file(path, which)
    damaged = bytearray(file.read_bytes())
    damaged[5] ^= 4
    file.write_bytes(damaged)
    _, _, error = read_by_zarr(path, tmp_path / "read")
    assert error is not None and "checksum" in error


def test_zarr_never_sees_what_was_not_committed(tmp_path, monkeypatch) -> None:
    # Plain readers take an array's length from its zarr.json, so that must not run ahead of the rows either.
    monkeypatch.setattr("tokendance.store.layout.CHUNK_BYTES", 8192)
    monkeypatch.setattr("tokendance.store.layout.SMALL_CHUNK_BYTES", 4096)
    path = tmp_path / "s.td"
    caches = make_store(path, n=16)
    store = td.open(path, mode="r+")
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.collective_reuse_step(["m"], np.ones((30, 4, 64), np.float32))
        raise ZeroDivisionError
    store.close()
    arrays, _, error = read_by_zarr(path, tmp_path / "read")
    assert error is None
    assert arrays["masters/0"][:16].tobytes() == caches["m"].tobytes()
    assert not (arrays["masters/0"][16:] == 0).any(), "rows that were never committed read as zeros"
