"""Making a store: complete with its first generation, or not at all."""

import contextlib
import errno
import os
import secrets

from tokendance.store import files, layout
from tokendance.store.batch import Batch
from tokendance.store.layout import GROUPS, MANIFESTS, METADATA_NAME
from tokendance.store.manifest import Manifest, encode

__all__ = ["create"]


def create(path: str, first: Manifest) -> None:
    """Make a store at `path` with its first generation, complete or not at all.

    It is built under another name beside `path` and renamed, so that a crash leaves no half of a store.

    Raises
    ------
    FileExistsError
        Something is at `path` that is not an empty folder.
    """
    parent_path, name = os.path.split(os.path.abspath(path))
    parent = os.open(parent_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = f".{name[:60]}.{secrets.token_hex(6)}.new"
    batch = Batch()
    try:
        root = _temporary_root(batch, temporary, parent, path)
        try:
            _fill(batch, root, first)
            batch.sync()
        finally:
            os.close(root)
        files.rename(temporary, name, parent)
        files.sync(parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            files.remove_folder(temporary, parent)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(
                errno.EEXIST, f"{path} exists and is not a tokendance store; nothing was changed"
            ) from None
        raise
    finally:
        batch.drop()
        os.close(parent)


def _temporary_root(batch: Batch, temporary: str, parent: int, path: str) -> int:
    try:
        return batch.make_folder(temporary, parent)
    except OSError as error:
        raise OSError(error.errno, f"a store cannot be made here ({error.strerror})", path) from None


def _fill(batch: Batch, root: int, first: Manifest) -> None:
    batch.write(METADATA_NAME, root, (layout.root_document(),))
    for group in GROUPS:
        folder = batch.make_folder(group, root)
        batch.write(METADATA_NAME, folder, (layout.group_document(),))
        os.close(folder)
    folder = batch.make_folder(MANIFESTS, root)
    batch.write(METADATA_NAME, folder, (layout.manifests_document(),))
    batch.write(str(first.generation), folder, (encode(first),))
    os.close(folder)
