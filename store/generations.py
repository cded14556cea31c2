"""Generations: numbered manifests, published so that one can never replace another."""

import contextlib
import os
from collections.abc import Iterable

from tokendance.errors import StoreCorruptError, UnknownGenerationError
from tokendance.store import files, layout
from tokendance.store.folders import Folders
from tokendance.store.layout import LOCK_NAME, MANIFESTS, MAX_MANIFEST_BYTES, METADATA_NAME
from tokendance.store.lock import pin, pinned
from tokendance.store.manifest import Manifest, encode
from tokendance.store.manifest_reader import decode

__all__ = ["is_store", "look_at", "newest", "numbers", "open_generation", "publish", "remove_generations"]


def is_store(path: str) -> bool:
    """Say whether a folder is a tokendance store, by its root group's attributes."""
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        content = files.read_file(METADATA_NAME, root, most=1 << 20)
    except StoreCorruptError:
        return False
    finally:
        os.close(root)
    return b'"tokendance"' in content


@contextlib.contextmanager
def _closing(fd: int):  # type: ignore[no-untyped-def]
    try:
        yield
    finally:
        os.close(fd)


def numbers(folders: Folders) -> list[int]:
    """Return the numbers of all generations that are there, upwards."""
    found = (layout.generation_of(name) for name in os.listdir(folders.fd(MANIFESTS)))
    return sorted(number for number in found if number is not None)


def newest(folders: Folders) -> int:
    """Return the number of the newest generation."""
    found = numbers(folders)
    if not found:
        raise StoreCorruptError(f"{folders.path}: there is no manifest; the store is damaged")
    return found[-1]


def open_generation(folders: Folders, generation: int | None = None) -> tuple[Manifest, int]:
    """Read a generation, the newest if none is named, and pin it.

    Returns
    -------
    Manifest
    int
        The open manifest file; until it is closed, `remove_generations` spares this generation.

    Raises
    ------
    UnknownGenerationError
        There is no such generation.
    """
    while True:
        number = newest(folders) if generation is None else generation
        try:
            fd = files.open_file(str(number), folders.fd(MANIFESTS))
        except StoreCorruptError:
            if generation is not None and number not in numbers(folders):
                raise UnknownGenerationError(
                    f"generation {number} is not there; it was collected or never made"
                ) from None
            if generation is None and number != newest(folders):
                continue
            raise
        try:
            if pin(fd):
                return read_manifest(fd, folders, number), fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if generation is not None:
            raise UnknownGenerationError(f"generation {number} is being collected")


def look_at(folders: Folders, number: int) -> Manifest:
    """Read a generation without pinning it."""
    fd = files.open_file(str(number), folders.fd(MANIFESTS))
    with _closing(fd):
        return read_manifest(fd, folders, number)


def read_manifest(fd: int, folders: Folders, number: int) -> Manifest:
    """Read the manifest in an open file, which must be generation `number`'s."""
    name = f"{folders.path}/{MANIFESTS}/{number}"
    if os.fstat(fd).st_size > MAX_MANIFEST_BYTES:
        raise StoreCorruptError(f"{name} is larger than {MAX_MANIFEST_BYTES} bytes")
    with open(fd, "rb", closefd=False) as file:
        manifest = decode(file.read(MAX_MANIFEST_BYTES + 1), name)
    if manifest.generation != number:
        raise StoreCorruptError(f"{name} says it is generation {manifest.generation}; files were swapped")
    return manifest


def publish(folders: Folders, manifest: Manifest) -> None:
    """Make a generation the newest: the commit point is the sync of the folder.

    Everything it names must be durable. A failure at any step leaves the generation before.
    """
    parent = folders.fd(MANIFESTS)
    name = str(manifest.generation)
    temporary = f".{name}.new"
    files.remove_if_there(temporary, parent)
    fd = files.write_new(temporary, parent, (encode(manifest),))
    with _closing(fd):
        files.sync(fd)
    files.link(temporary, parent, name, parent)
    try:
        files.sync(parent)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(name, parent)
        raise
    with contextlib.suppress(OSError):
        files.remove(temporary, parent)
    import logging  # 4 ms, which readers need not pay

    # Numbers only: what agents are called may be nobody's business.
    agents, written = len(manifest.mirrors) + (manifest.master is not None), manifest.written_bytes
    text = "%s: committed generation %d: %d agents, %d bytes written"
    logging.getLogger("tokendance.store").info(text, folders.path, manifest.generation, agents, written)


def remove_generations(folders: Folders, unwanted: Iterable[int]) -> list[int]:
    """Remove manifests that nobody pins, durably, and return which; their objects may be removed then."""
    parent = folders.fd(MANIFESTS)
    removed: list[int] = []
    for number in unwanted:
        fd = files.open_file(str(number), parent)
        try:
            if not pinned(fd):
                files.remove(str(number), parent)
                removed.append(number)
        finally:
            os.close(fd)
    if removed:
        files.sync(parent)
    return removed


def sweep_manifests(folders: Folders) -> None:
    """Remove what a crashed writer left in the manifests folder."""
    parent = folders.fd(MANIFESTS)
    for name in os.listdir(parent):
        if layout.generation_of(name) is None and name not in (METADATA_NAME, LOCK_NAME):
            files.remove_folder(name, parent)
