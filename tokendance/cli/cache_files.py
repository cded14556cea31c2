"""Caches in files: which files an argument names, and the array in each, mapped where that can be."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendance.cli.failures import CommandError, UsageError, about
from tokendance.cli.safetensors_file import mapped_tensors
from tokendance.dtypes import dtype_named, name_of

__all__ = ["BITS_OF", "SUFFIXES", "CacheFile", "named_files", "opened"]

SUFFIXES = (".npy", ".npz", ".safetensors")
# What numpy files cannot name, and how many bytes its bits take.
BITS_OF = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}

_Read = Callable[[], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class CacheFile:
    """A file that holds one agent's cache.

    Attributes
    ----------
    agent : str
    path : Path
    shape : tuple of int
    dtype : numpy.dtype
    read : callable
        Returns the array, mapped from the file if it is not packed in a zip.
    """

    agent: str
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: _Read


def named_files(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """Return the agents and files that arguments name: ``agent=FILE``, ``FILE``, or a folder of them.

    Raises
    ------
    UsageError
        A name is missing, or two files are the same agent's.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        for agent, path in _files_of(argument):
            if agent in found:
                raise UsageError(f"agent {agent!r} is named twice, for {found[agent]} and for {path}")
            found[agent] = path
    return list(found.items())


def _files_of(argument: str) -> list[tuple[str, Path]]:
    whole = Path(argument)
    agent, equals, name = argument.partition("=")
    if equals and not whole.exists():
        path = Path(name)
        if not agent or not name:
            raise UsageError(f"expected AGENT=FILE, got {argument!r}")
        if path.is_dir():
            raise UsageError(f"{path} is a folder, in which each file is an agent: leave out {agent + '='!r}")
        return [(agent, path)]
    if whole.is_dir():
        with about(whole):
            inside = sorted(path for path in whole.iterdir() if path.suffix in SUFFIXES and path.is_file())
        if not inside:
            raise CommandError(f"{whole} holds no {', '.join(SUFFIXES)} file")
        return [(path.stem, path) for path in inside]
    return [(whole.stem, whole)]


def opened(agent: str, path: Path, bits_are: str | None) -> CacheFile:
    """Look at a file, without reading its array.

    Parameters
    ----------
    bits_are : str or None
        The dtype whose bits the file's integers are.

    Raises
    ------
    CommandError
        It is missing, cannot be read, or does not hold exactly one array of a dtype that a cache can have.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} must end in {', '.join(SUFFIXES)}, which says how to read it")
    with about(path):
        if not path.stat() or not path.is_file():
            raise CommandError(f"{path} is not a regular file")
    try:
        with about(path):
            shape, dtype, read = _LOOKS[path.suffix](path)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path} cannot be read as {path.suffix}: {error}") from error
    return CacheFile(agent, path, shape, *_told(path, dtype, bits_are, read))


def _look_at_npy(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], _Read]:
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("it does not begin like one")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.shape, array.dtype, lambda: array


def _look_at_npz(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], _Read]:
    with zipfile.ZipFile(path) as archive:
        name = _only(path, archive.namelist())
        with archive.open(name) as member:
            version = np.lib.format.read_magic(member)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else _header_2
            shape, _, dtype = read_header(member)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")

    def read() -> NDArray[Any]:
        with about(path), np.load(path, allow_pickle=False) as arrays:
            array: NDArray[Any] = arrays[name.removesuffix(".npy")]
            return array

    return shape, dtype, read


_header_2 = np.lib.format.read_array_header_2_0


def _look_at_safetensors(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], _Read]:
    tensors = mapped_tensors(path)
    array = tensors[_only(path, list(tensors))]
    return array.shape, array.dtype, lambda: array


def _only(path: Path, names: list[str]) -> str:
    if len(names) != 1:
        some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise CommandError(
            f"{path} holds {len(names)} arrays ({some}); a cache is one array: save each in its own file"
        )
    return names[0]


def _told(path: Path, dtype: np.dtype[Any], bits_are: str | None, read: _Read) -> tuple[np.dtype[Any], _Read]:
    """Return the dtype that a file's elements are, and how to read them as that."""
    if bits_are is None:
        if name_of(dtype) is None:
            hint = "; if it holds the bits of bfloat16, say --dtype bfloat16" if dtype.itemsize == 2 else ""
            raise CommandError(f"{path} holds {dtype}, which no cache can be{hint}")
        return dtype, read
    meant = dtype_named(bits_are)
    if dtype == meant:
        return dtype, read
    if dtype.kind not in "uiV" or dtype.itemsize != meant.itemsize or not dtype.isnative:
        raise CommandError(
            f"{path} holds {dtype}; --dtype {bits_are} takes integers of {meant.itemsize * 8} bits, whose bits it is"
        )
    return meant, lambda: read().view(meant)


_LOOKS = {".npy": _look_at_npy, ".npz": _look_at_npz, ".safetensors": _look_at_safetensors}
