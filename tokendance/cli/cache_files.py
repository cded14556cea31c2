"""Caches in files: which files an argument names, and the array in each, mapped where that can be."""

import math
import os
import stat
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tokendance.adapters.safetensors_file import open_tensors
from tokendance.adapters.safetensors_header import FORMAT_NAMES
from tokendance.cli.failures import CommandError, UsageError, about
from tokendance.dtypes import dtype_named, name_of
from tokendance.errors import StoreCorruptError

__all__ = ["BITS_OF", "SUFFIXES", "CacheFile", "LayeredFile", "named_files", "opened"]

SUFFIXES = (".npy", ".npz", ".safetensors")
# What numpy files cannot name, and how many bytes its bits take.
BITS_OF = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}

_Read = Callable[[], NDArray[Any]]
_Look = tuple[tuple[int, ...], np.dtype[Any], _Read]
_OUR_NAMES = {theirs: ours for ours, theirs in FORMAT_NAMES.items()}
# Integers that no cache is made of, but whose bits can be a cache's.
_INTEGERS = {"I16": np.dtype(np.int16), "U16": np.dtype(np.uint16)}


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


@dataclass(frozen=True, slots=True)
class LayeredFile:
    """A safetensors file that holds one agent's cache as keys and values of each layer.

    Attributes
    ----------
    agent : str
    path : Path
    n_bytes : int
    from_mlx : bool
        mlx-lm wrote it; else it was exported from a store.
    """

    agent: str
    path: Path
    n_bytes: int
    from_mlx: bool


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
    if not argument:  # which a path would take for this folder
        raise UsageError(f"expected AGENT=FILE, got {argument!r}")
    # A Path raises for what is too long to be a file's name, which AGENT=FILE may be.
    if equals and not os.path.exists(whole):  # noqa: PTH110
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


def opened(agent: str, path: Path, bits_are: str | None) -> CacheFile | LayeredFile:
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
        # Opening a pipe would wait for its other end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CommandError(f"{path} is not a regular file")
    try:
        with about(path):
            if path.suffix == ".safetensors":
                layered = _layered(agent, path)
                if layered is not None:
                    return layered
            shape, dtype, read = _LOOKS[path.suffix](path)
    except StoreCorruptError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path} cannot be read as {path.suffix}: {error}") from error
    return CacheFile(agent, path, shape, *_told(path, dtype, bits_are, read))


def _layered(agent: str, path: Path) -> LayeredFile | None:
    with open_tensors(path) as file:
        from_mlx = any(key.startswith("2.") for key in file.metadata)
        if len(file.tensors) > 1 and (from_mlx or "tokendance.format" in file.metadata):
            return LayeredFile(agent, path, sum(entry.n_bytes for entry in file.tensors.values()), from_mlx)
    return None


def _look_at_npy(path: Path) -> _Look:
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("it does not begin like one")
        file.seek(0)
        shape, dtype = _numpy_header(file)
        n_bytes, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
    if there < n_bytes:
        raise ValueError(f"its header promises {n_bytes:,} bytes, and {there:,} are there; copy it again")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.shape, array.dtype, lambda: array


def _numpy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, dtype


def _look_at_npz(path: Path) -> _Look:
    with zipfile.ZipFile(path) as archive:
        name = _only(path, archive.namelist())
        with archive.open(name) as member:
            shape, dtype = _numpy_header(member)

    def read() -> NDArray[Any]:
        with about(path), np.load(path, allow_pickle=False) as arrays:
            array: NDArray[Any] = arrays[name.removesuffix(".npy")]
            return array

    return shape, dtype, read


def _look_at_safetensors(path: Path) -> _Look:
    with open_tensors(path) as file:
        name = _only(path, list(file.tensors))
        entry = file.tensors[name]
        dtype = dtype_named(_OUR_NAMES[entry.dtype]) if entry.dtype in _OUR_NAMES else _INTEGERS.get(entry.dtype)
        if dtype is None:
            raise CommandError(f"{path} holds {entry.dtype}, which no cache can be")
        start = file.data_start + entry.start

    def read() -> NDArray[Any]:
        if entry.dtype in _INTEGERS:
            return np.memmap(path, dtype, mode="r", offset=start, shape=entry.shape)
        with about(path), open_tensors(path) as again:
            return again.read(name)

    return entry.shape, dtype, read


def _only(path: Path, names: list[str]) -> str:
    if len(names) != 1:
        some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        found = f"{len(names)} arrays ({some})" if names else "no array"
        raise CommandError(f"{path} holds {found}; a cache is one array: save each in its own file")
    return names[0]


def _told(path: Path, dtype: np.dtype[Any], bits_are: str | None, read: _Read) -> tuple[np.dtype[Any], _Read]:
    """Return the dtype that a file's elements are, and how to read them as that."""
    if bits_are is None:
        if name_of(dtype) is None:
            raise CommandError(f"{path} holds {dtype}, which no cache can be{_advice(dtype)}")
        return dtype, read
    meant = dtype_named(bits_are)
    if dtype == meant:
        return dtype, read
    if dtype.kind not in "uiV" or dtype.itemsize != meant.itemsize or not dtype.isnative:
        raise CommandError(
            f"{path} holds {dtype}; --dtype {bits_are} takes integers of {meant.itemsize * 8} bits, whose bits it is"
        )
    return meant, lambda: read().view(meant)


def _advice(dtype: np.dtype[Any]) -> str:
    if not dtype.isnative and name_of(dtype.newbyteorder("=")) is not None:
        return f"; save it in this machine's byte order, as array.astype({dtype.newbyteorder('=').name!r})"
    if dtype.kind in "uV" and dtype.itemsize == 2:
        return "; if it holds the bits of bfloat16, say --dtype bfloat16"
    return f": that is one of {', '.join(FORMAT_NAMES)}"


_LOOKS = {".npy": _look_at_npy, ".npz": _look_at_npz, ".safetensors": _look_at_safetensors}
