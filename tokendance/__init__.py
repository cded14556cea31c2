"""tokendance keeps the KV caches of N agents as one master and N-1 block-sparse mirrors, in memory and on disk.

Start with `open`, or with `TokenDanceStorage` for memory alone. Nothing here imports numba or zarr:
kernels load when a cache is registered.
"""

from tokendance.durable import TokenDanceStore
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
from tokendance.opening import open_store as open  # noqa: A004 - td.open is the name people know from other stores
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
]
