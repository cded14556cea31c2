"""What one commit writes: files with equal bytes are one file, and none is left open."""

import os
from pathlib import Path

import pytest

from tokendance.store import batch as batches
from tokendance.store.batch import Batch


@pytest.fixture
def batch():
    made = Batch()
    yield made
    made.drop()


def _folders(root, n):
    found = []
    for number in range(n):
        path = root / str(number)
        path.mkdir()
        found.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
    return found


def _close(folders):
    for folder in folders:
        os.close(folder)


def _inodes(root):
    return [path.stat().st_ino for path in sorted(root.glob("*/zarr.json"))]


def test_equal_bytes_are_one_file(tmp_path, batch):
    folders = _folders(tmp_path, 4)
    for folder, content in zip(folders, (b"a", b"b", b"a", b"a"), strict=True):
        batch.write_alike("zarr.json", folder, content)
    batch.sync()
    first, second, third, fourth = _inodes(tmp_path)
    assert first == third == fourth != second
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*/zarr.json"))] == [b"a", b"b", b"a", b"a"]
    assert batch.written_bytes == 2
    _close(folders)


def test_a_commit_never_shares_with_an_earlier_one(tmp_path, batch):
    folders = _folders(tmp_path, 2)
    for folder in folders:
        batch.write_alike("zarr.json", folder, b"a")
        batch.sync()
    assert len(set(_inodes(tmp_path))) == 2
    _close(folders)


def test_one_file_has_a_bounded_number_of_names(tmp_path, batch, monkeypatch):
    monkeypatch.setattr(batches, "_MOST_NAMES", 2)
    folders = _folders(tmp_path, 5)
    for folder in folders:
        batch.write_alike("zarr.json", folder, b"a")
    batch.sync()
    assert sorted(path.stat().st_nlink for path in tmp_path.glob("*/zarr.json")) == [1, 2, 2, 2, 2]
    _close(folders)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
@pytest.mark.parametrize("end", ["sync", "drop"])
def test_no_file_stays_open(tmp_path, batch, end, monkeypatch):
    monkeypatch.setattr(batches, "_MOST_ALIKE", 3)
    folders = _folders(tmp_path, 8)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number, folder in enumerate(folders):
        batch.write_alike("zarr.json", folder, b"%d" % (number // 2))
    getattr(batch, end)()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    _close(folders)
