"""Safetensors files from strangers: an error that names the file, at once, and nothing registered."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokendance as td
from tokendance.adapters.cache_layout import CacheLayout
from tokendance.adapters.safetensors import export_agent, import_agent, import_mlx_cache
from tokendance.adapters.safetensors_header import MAX_HEADER_BYTES
from tokendance.errors import FormatVersionError, StoreCorruptError

BLOCKS = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def file_of(header: Any, data: bytes = bytes(24)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def blocks(**changes: Any) -> bytes:
    return file_of({"blocks": BLOCKS | changes})


DAMAGED = {
    "empty": (b"", "promise a header of 0 bytes, but the file has 0"),
    "short": (b"\0\0\0", "but the file has 3"),
    "no header": (bytes(8), "does not start with '{'"),
    "header past the end": (b"\xff" + bytes(7) + b"{}", "promise a header of 255 bytes, but the file has 10"),
    "huge header": (b"\xff" * 8 + b"{}", "promise a header of 18446744073709551615 bytes"),
    "cut": (blocks()[:-1], "its tensors have 24 bytes, the file has 23"),
    "more": (blocks() + b"\0", "its tensors have 24 bytes, the file has 25"),
    "a list": (file_of([BLOCKS]), "does not start with '{'"),
    "a space": (file_of(b' {"blocks": {}}'), "does not start with '{'"),
    "no JSON": (file_of(b'{"blocks":'), "is not JSON"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "is not JSON"),
    "deep": (file_of(b'{"a":' * 100_000), "nested too deeply"),
    "many digits": (file_of(b'{"blocks":' + b"9" * 10_000 + b"}"), "is not JSON"),
    "twice": (file_of(b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":{}}'), "a name occurs twice"),
    "metadata twice": (file_of(b'{"__metadata__":{},"__metadata__":{"a":"b"}}', b""), "a name occurs twice"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}, b""), "metadata are not text by text"),
    "metadata, a list": (file_of({"__metadata__": ["a"]}, b""), "metadata are not text by text"),
    "a tensor, a number": (file_of({"blocks": 3}), "other fields than dtype, shape and data_offsets"),
    "another field": (blocks(codec="zstd"), "other fields than dtype, shape and data_offsets"),
    "no shape": (file_of({"blocks": {"dtype": "F32", "data_offsets": [0, 24]}}), "other fields"),
    "unknown dtype": (blocks(dtype="F4"), "the unknown dtype 'F4'"),
    "a dtype of ours": (blocks(dtype="float32"), "the unknown dtype 'float32'"),
    "a dtype, a list": (blocks(dtype=["F32"]), "the unknown dtype"),
    "negative shape": (blocks(shape=[-2, -3]), "a shape that is no list"),
    "a shape of truths": (blocks(shape=[True, 6]), "a shape that is no list"),
    "a shape of floats": (blocks(shape=[2.0, 3]), "a shape that is no list"),
    "a shape, a number": (blocks(shape=6), "a shape that is no list"),
    "many dimensions": (blocks(shape=[1] * 33), "a shape that is no list of up to 32"),
    "a product past 64 bits": (blocks(shape=[1 << 62, 1 << 62]), "24 bytes, expected"),
    "a product that wraps round to it": (blocks(shape=[(1 << 62) + 6]), "24 bytes, expected"),
    "one offset": (blocks(data_offsets=[0]), "data_offsets that are no two sizes"),
    "negative offsets": (blocks(data_offsets=[-24, 0]), "data_offsets that are no two sizes"),
    "offsets past the end": (blocks(data_offsets=[24, 48]), "starts at byte 24, expected 0"),
    "offsets backwards": (blocks(data_offsets=[24, 0]), "-24 bytes, expected 24"),
    "fewer bytes than the shape": (blocks(data_offsets=[0, 20]), "20 bytes, expected 24"),
    "overlapping": (
        file_of({"a": BLOCKS, "b": BLOCKS | {"data_offsets": [12, 36]}}, bytes(36)),
        "'b' starts at byte 12, expected 24",
    ),
    "the same bytes twice": (file_of({"a": BLOCKS, "b": BLOCKS}), "'b' starts at byte 0, expected 24"),
    "a gap": (
        file_of({"a": BLOCKS, "b": BLOCKS | {"data_offsets": [32, 56]}}, bytes(56)),
        "'b' starts at byte 32, expected 24",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=list(DAMAGED))
def test_files_that_cannot_be_right_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path, storage = tmp_path / "x.safetensors", td.TokenDanceStorage()
    path.write_bytes(content)
    for read in (import_agent, import_mlx_cache):
        with pytest.raises(StoreCorruptError) as caught:
            read(storage, path, "planner")
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 800
    assert storage.agents == []


WRONG = {
    "half a letter": (
        file_of(b'{"\\ud800": {"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'),
        ValueError,
        r"holds 1 tensors \('\\ud800'\)",
    ),
    "dtype": (blocks(dtype="I32"), ValueError, "tensor 'blocks' has dtype I32; expected one of F64"),
    "no blocks": (blocks(shape=[0, 3], data_offsets=[0, 0])[:-24], None, ""),
    "empty blocks": (blocks(shape=[3, 0], data_offsets=[0, 0])[:-24], ValueError, "at least one element"),
    "version": (file_of({"__metadata__": {"tokendance.format": "2"}, "blocks": BLOCKS}), FormatVersionError, "'2'"),
    "meta": (
        file_of({"__metadata__": {"tokendance.format": "1", "tokendance.meta": "[1]"}, "blocks": BLOCKS}),
        StoreCorruptError,
        "no JSON object under tokendance.meta",
    ),
    "deep meta": (
        file_of({"__metadata__": {"tokendance.format": "1", "tokendance.meta": "[" * 99_999}, "blocks": BLOCKS}),
        StoreCorruptError,
        "no JSON object under tokendance.meta",
    ),
    "sums": (
        file_of({"__metadata__": {"tokendance.crc32c": "3"}, "blocks": BLOCKS}),
        StoreCorruptError,
        "the list of checksums does not match",
    ),
    "no sum of the header": (
        file_of({"__metadata__": {"tokendance.crc32c": "{}"}, "blocks": BLOCKS}),
        StoreCorruptError,
        "the header does not match its checksum",
    ),
}


@pytest.mark.parametrize(("content", "error", "message"), WRONG.values(), ids=list(WRONG))
def test_files_that_hold_something_else_are_refused(
    tmp_path: Path, content: bytes, error: type[Exception] | None, message: str
) -> None:
    path, storage = tmp_path / "x.safetensors", td.TokenDanceStorage()
    path.write_bytes(content)
    if error is None:
        import_agent(storage, path, "planner")
        assert storage.reconstruct("planner").shape == (0, 3)
        return
    with pytest.raises(error, match=message) as caught:
        import_agent(storage, path, "planner")
    assert "\n" not in str(caught.value)
    assert storage.agents == []


def layout_file(**claims: Any) -> bytes:
    """A file of one small layer that claims to be something else."""
    layout = CacheLayout.for_tokens(3, dtype="float32", n_layers=1, kv_heads=1, head_dim=2, block_tokens=16)
    record = {**layout.to_meta()["transformers"], **claims}
    metadata = {"tokendance.format": "1", "tokendance.meta": json.dumps({"transformers": record})}
    entry = {"dtype": "F32", "shape": [1, 1, 3, 2]}
    tensors = {
        f"layers.0.{side}": entry | {"data_offsets": [at, at + 24]} for at, side in ((0, "keys"), (24, "values"))
    }
    return file_of({"__metadata__": metadata, **tensors}, bytes(48))


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"n_layers": 10**9, "n_blocks": 2 * 10**9}, "does not hold the keys and values of 1000000000 layers"),
        ({"n_tokens": 4}, "does not hold the keys and values"),
        ({"dtype": "float16"}, "does not hold the keys and values"),
        ({"block_tokens": 10**12}, "nearly all padding"),
        ({"n_blocks": 1 << 60}, None),  # padding blocks are not believed, and not made
        ({"head_dim": 0}, "head_dim of a cache layout is 0"),
        ({"version": 7}, "version 7"),
    ],
)
def test_a_layout_that_claims_more_than_there_is_makes_nothing(
    tmp_path: Path, claims: dict[str, Any], message: str | None
) -> None:
    path, storage = tmp_path / "x.safetensors", td.TokenDanceStorage()
    path.write_bytes(layout_file(**claims))
    if message is None:
        import_agent(storage, path, "planner")
        assert storage.reconstruct("planner").shape == (2, 1, 16, 2)
        return
    with pytest.raises(ValueError, match=message):
        import_agent(storage, path, "planner")
    assert storage.agents == []


def test_every_flipped_bit_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    path, storage = tmp_path / "x.safetensors", td.TokenDanceStorage()
    cache = np.arange(12, dtype=np.float16).reshape(3, 4)
    storage.register_master("planner", cache, meta={"turn": 1})
    export_agent(storage, "planner", path)
    content, silent = path.read_bytes(), 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        other = td.TokenDanceStorage()
        with contextlib.suppress(ValueError):
            import_agent(other, path, "twin")
        if other.agents:
            silent += 1
            assert other.reconstruct("twin").tobytes() == cache.tobytes()
            assert other.meta("twin") == {"turn": 1}
    # Only where the list of checksums is called something else is the file one that has none.
    assert silent <= len("tokendance.crc32c") * 2


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    storage = td.TokenDanceStorage()
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises((StoreCorruptError, IsADirectoryError), match=r"not a regular file|directory"):
            import_agent(storage, path, "planner")
    with pytest.raises(FileNotFoundError):
        import_agent(storage, tmp_path / "missing", "planner")


def test_a_large_header_costs_no_more_than_it_may(tmp_path: Path) -> None:
    """The largest header that is read at all, full of tensors; and a sparse file that promises more."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(1 << 40)
    with pytest.raises(StoreCorruptError, match=f"a header at most {MAX_HEADER_BYTES}"):
        import_agent(td.TokenDanceStorage(), path, "planner")
    one = b'"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    n = (MAX_HEADER_BYTES - 100) // len(one % 0)
    path.write_bytes(file_of(b"{" + b"".join(one % i for i in range(n))[:-1] + b"}", b""))
    program = """
        import resource, sys
        import tokendance as td
        from tokendance.adapters.safetensors import import_agent
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        try:
            import_agent(td.TokenDanceStorage(), sys.argv[1], "planner")
        except ValueError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"holds {n} tensors" in done.stdout, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 << 20
