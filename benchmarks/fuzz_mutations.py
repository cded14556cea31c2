"""What a damaged or hostile store may look like: one random change, or a few, to the files of a whole one."""

import hashlib
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import google_crc32c

from benchmarks.fuzz_json import mutated_document, mutated_text
from benchmarks.fuzz_reader import resealed

__all__ = ["mutated"]

_EDGES = [0, 1, -1, -2, 11, 12, 20, 1 << 31, 1 << 32, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, -(1 << 63)]


def mutated(path: Path, dice: random.Random, stale: dict[str, bytes]) -> str:
    """Change the store at `path` and return what kind of change it was."""
    kinds: list[tuple[int, Callable[[], object]]] = [
        (4, lambda: _bits(path, dice)),
        (2, lambda: _lengths(path, dice)),
        (2, lambda: _removals(path, dice)),
        (3, lambda: _swaps(path, dice)),
        (1, lambda: _stale(path, dice, stale)),
        (3, lambda: _other_kinds(path, dice)),
        (9, lambda: _manifest(path, dice)),
        (3, lambda: _metadata(path, dice)),
        (2, lambda: _positions(path, dice)),
        (1, lambda: _rows(path, dice)),
        (1, lambda: _names(path, dice)),
        (1, lambda: _lock(path, dice)),
    ]
    weights, changes = zip(*kinds, strict=True)
    (number,) = dice.choices(range(len(kinds)), weights)
    changes[number]()
    return _KINDS[number]


_KINDS = (
    *("flipped bits", "lengths", "removals", "swaps", "stale files", "other kinds of files", "manifests"),
    *("zarr.json", "positions, sealed", "rows, sealed", "names of generations", "lock files"),
)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _manifests(path: Path) -> list[Path]:
    found = [file for file in path.joinpath("manifests").iterdir() if file.name.isdecimal()]
    return sorted(found, key=lambda file: int(file.name))


def _chosen_manifest(path: Path, dice: random.Random) -> Path:
    found = _manifests(path)
    return found[-1] if dice.random() < 0.8 else dice.choice(found)


def _bits(path: Path, dice: random.Random) -> None:
    for _ in range(dice.choice([1, 1, 1, 2, 8])):
        file = dice.choice(_files(path))
        data = bytearray(file.read_bytes())
        if data:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            file.write_bytes(data)


def _lengths(path: Path, dice: random.Random) -> None:
    file = dice.choice(_files(path))
    size = file.stat().st_size
    ways = [0, 1, size // 2, size - 1, size - 4, size + 1, size + 4, 2 * size, 1 << 16, 1 << 40]
    if dice.random() < 0.2:
        file.write_bytes(dice.choice([bytes(size), b"\xff" * size, dice.randbytes(size)]))
    else:
        os.truncate(file, max(dice.choice(ways), 0))


def _removals(path: Path, dice: random.Random) -> None:
    for _ in range(dice.choice([1, 1, 2])):
        if dice.random() < 0.7:
            dice.choice(_files(path)).unlink()
        else:
            shutil.rmtree(dice.choice(_folders(path)))


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.rglob("*") if folder.is_dir()) or [path]


def _swaps(path: Path, dice: random.Random) -> None:
    kind = dice.choice([_files, _folders, _chunks, _chunks])
    one, other = dice.choice(kind(path)), dice.choice(kind(path))
    if one == other or one in other.parents or other in one.parents:
        return
    if dice.random() < 0.3 and one.is_file():
        shutil.copyfile(other, one)
        return
    aside = path / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _chunks(path: Path) -> list[Path]:
    return [file for file in _files(path) if file.name.startswith("c.")]


def _stale(path: Path, dice: random.Random, stale: dict[str, bytes]) -> None:
    for name in dice.sample(sorted(stale), dice.randint(min(len(stale), 1), len(stale))):
        path.joinpath(name).write_bytes(stale[name])


def _other_kinds(path: Path, dice: random.Random) -> None:
    target = dice.choice(_files(path) if dice.random() < 0.7 else _folders(path))
    aside = path.parent / "aside"
    target.rename(aside)
    kind = dice.choice(["link", "link to nowhere", "link to itself", "fifo", "socket", "folder", "file", "hard link"])
    if kind == "link":
        target.symlink_to(aside)
    elif kind == "link to nowhere":
        target.symlink_to("nowhere")
    elif kind == "link to itself":
        target.symlink_to(target.name)
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "socket":
        _bind(target)
    elif kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_bytes(b"")
    elif aside.is_file():
        target.hardlink_to(aside)


def _bind(target: Path) -> None:
    here = Path.cwd()
    os.chdir(target.parent)  # a socket's path may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(target.name)
    finally:
        os.chdir(here)


def _manifest(path: Path, dice: random.Random) -> None:
    file = _chosen_manifest(path, dice)
    line, _, trailer = file.read_bytes().partition(b"\n")
    if dice.random() < 0.7:
        seal = (lambda content: resealed(path, content)) if dice.random() < 0.3 else None
        line = mutated_document(line, dice, seal)
    else:
        line = mutated_text(line, dice)
    file.write_bytes(_sealed(line) if dice.random() < 0.9 else line + b"\n" + trailer)


def _sealed(line: bytes) -> bytes:
    return line + b'\n{"sha256":"' + hashlib.sha256(line).hexdigest().encode() + b'"}\n'


def _metadata(path: Path, dice: random.Random) -> None:
    file = dice.choice([file for file in _files(path) if file.name == "zarr.json"])
    change = mutated_text if dice.random() < 0.3 else mutated_document
    file.write_bytes(change(file.read_bytes(), dice))


def _reseal_chunk(path: Path, file: Path, data: bytearray) -> None:
    file.write_bytes(bytes(data) + int(google_crc32c.value(bytes(data))).to_bytes(4, "little"))
    newest = _manifests(path)[-1]
    line = newest.read_bytes().split(b"\n")[0]
    newest.write_bytes(_sealed(mutated_document(line, None, lambda content: resealed(path, content))))


def _positions(path: Path, dice: random.Random) -> None:
    file = dice.choice([file for file in _chunks(path) if file.parent.name in ("indices", "base")])
    data = bytearray(file.read_bytes()[:-4])
    for _ in range(dice.choice([1, 1, 2])):
        at = 8 * dice.randrange(len(data) // 8)
        old = int.from_bytes(data[at : at + 8], "little", signed=True)
        new = dice.choice([*_EDGES, old + 1, old - 1, dice.randrange(32)])
        data[at : at + 8] = min(max(new, -(1 << 63)), (1 << 63) - 1).to_bytes(8, "little", signed=True)
    _reseal_chunk(path, file, data)


def _rows(path: Path, dice: random.Random) -> None:
    file = dice.choice([file for file in _chunks(path) if file.parent.name not in ("indices", "base")])
    data = bytearray(file.read_bytes()[:-4])
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    _reseal_chunk(path, file, data)


def _names(path: Path, dice: random.Random) -> None:
    file = dice.choice(_manifests(path))
    names = ["0", "007", "9" * 18, "9" * 19, "1" * 30, "٣", "+7", "7 ", ".9.new", "-1", "1e3", str(dice.randrange(40))]
    new = file.with_name(dice.choice(names))
    if dice.random() < 0.5:
        file.replace(new)
    else:
        new.write_bytes(file.read_bytes())


def _lock(path: Path, dice: random.Random) -> None:
    lock = path / "manifests" / "lock"
    lock.unlink(missing_ok=True)
    kind = dice.choice(["gone", "folder", "fifo", "link", "bytes", "hard link", "large"])
    if kind == "folder":
        lock.mkdir()
    elif kind == "fifo":
        os.mkfifo(lock)
    elif kind == "link":
        lock.symlink_to(dice.choice([path / "zarr.json", path / "manifests" / "1", path.parent, Path("nowhere")]))
    elif kind == "bytes":
        lock.write_bytes(dice.randbytes(dice.randrange(64)))
    elif kind == "hard link":
        lock.hardlink_to(dice.choice(_files(path)))
    elif kind == "large":
        lock.touch()
        os.truncate(lock, 1 << 40)
