"""tokendance keeps the KV caches of N agents as one master and N-1 block-sparse mirrors, in memory and on disk.

Start with `open`, or with `TokenDanceStorage` for memory alone. Names load when they are first used, so that
importing costs next to nothing; numba loads when a cache is registered, and zarr never: it is for other readers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokendance.errors import (
    FormatVersionError,
    IdentityMismatchError,
    NoMasterError,
    ReadOnlyError,
    ShapeMismatchError,
    StoreCorruptError,
    StoreLockedError,
    TokenDanceError,
    UnknownAgentError,
    UnknownGenerationError,
)
from tokendance.kernels.loading import loading

if TYPE_CHECKING:
    from tokendance.durable import TokenDanceStore
    from tokendance.opening import open_store as open  # noqa: A004 - td.open is what people know from other stores
    from tokendance.repairing import verify_store as verify
    from tokendance.sparse_diff import SparseKVDiff
    from tokendance.storage import TokenDanceStorage

__version__ = "0.1.0"

__all__ = [
    "FormatVersionError",
    "IdentityMismatchError",
    "NoMasterError",
    "ReadOnlyError",
    "ShapeMismatchError",
    "SparseKVDiff",
    "StoreCorruptError",
    "StoreLockedError",
    "TokenDanceError",
    "TokenDanceStorage",
    "TokenDanceStore",
    "UnknownAgentError",
    "UnknownGenerationError",
    "open",
    "verify",
]

_HOMES = {
    "SparseKVDiff": ("tokendance.sparse_diff", "SparseKVDiff"),
    "TokenDanceStorage": ("tokendance.storage", "TokenDanceStorage"),
    "TokenDanceStore": ("tokendance.durable", "TokenDanceStore"),
    "open": ("tokendance.opening", "open_store"),
    "verify": ("tokendance.repairing", "verify_store"),
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'tokendance' has no attribute {name!r}") from None
    with loading:
        value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
