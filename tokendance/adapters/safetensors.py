"""Agents as plain `.safetensors` files: export, import, and import of mlx-lm's prompt caches.

A file of an agent whose layout is known holds what its users expect, keys and values of each layer without padding:
``layers.<i>.keys`` and ``layers.<i>.values``, each ``(1, kv_heads, n_tokens, head_dim)``, the shape that
``DynamicCache([(keys, values), ...])`` of transformers takes. A file of any other agent holds one tensor, ``blocks``.
The metadata, text by text, are ``tokendance.format`` (``1``), ``tokendance.agent``, ``tokendance.meta`` (JSON),
``tokendance.identity`` (JSON, where the store has one) and ``tokendance.crc32c`` (JSON: the checksum of each tensor,
and of what the header says). Any safetensors reader opens it; the safetensors package is not needed here.
"""

import json
import os
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tokendance.adapters.cache_layout import CacheLayout, layers_to_blocks
from tokendance.adapters.laid_out_agents import register_laid_out, stored_layout
from tokendance.adapters.mlx_cache import import_mlx_cache
from tokendance.adapters.safetensors_file import TensorFile, open_tensors, write_tensors
from tokendance.adapters.safetensors_header import FORMAT_NAMES, TensorEntry
from tokendance.cohort import Cohort
from tokendance.errors import FormatVersionError, IdentityMismatchError, StoreCorruptError
from tokendance.restoring import copy_blocks

if TYPE_CHECKING:
    from tokendance import SparseKVDiff, TokenDanceStorage

__all__ = ["export_agent", "import_agent", "import_mlx_cache"]

_VERSION: Final = "1"
_FORMAT, _AGENT, _META = "tokendance.format", "tokendance.agent", "tokendance.meta"
_IDENTITY: Final = "tokendance.identity"
_BLOCKS: Final = "blocks"
_PIECE_BYTES: Final = 4 << 20
# A file of a few bytes may promise blocks of billions of tokens, nearly all of them padding.
_PADDING_BYTES: Final = 1 << 30


def export_agent(storage: "TokenDanceStorage", agent: str, path: str | os.PathLike[str]) -> None:
    """Write an agent to a `.safetensors` file, durably, in place of the file of that name: whole, or not at all.

    Needs memory for one layer's keys, not for the agent. Blocks are as `storage.reconstruct` gives them.

    Parameters
    ----------
    storage : TokenDanceStorage
        In memory or open; it is not changed.
    agent : str
    path : path
        What the module says is written there.

    Raises
    ------
    UnknownAgentError
        No agent has this id; a KeyError.
    StoreCorruptError
        The store is damaged; a ValueError.
    OSError
        The file cannot be written; what was there before still is.

    Examples
    --------
    >>> import tempfile, numpy as np, tokendance as td
    >>> from pathlib import Path
    >>> storage = td.TokenDanceStorage()
    >>> storage.register_master("planner", np.arange(12, dtype=np.float32).reshape(3, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_agent(storage, "planner", Path(folder) / "planner.safetensors")
    ...     import_agent(storage, Path(folder) / "planner.safetensors", "twin").n_diff_blocks
    0
    """
    cohort = storage._cohort
    dtype_name, block_shape = cohort.needs_master().block_type
    meta = cohort.meta(agent)
    said = {_FORMAT: _VERSION, _AGENT: agent, _META: json.dumps(dict(meta))}
    identity = getattr(storage, "identity", None)
    if identity is not None:
        said[_IDENTITY] = json.dumps(identity)
    dtype = FORMAT_NAMES[dtype_name]
    layout = _layout_or_none(cohort, agent)
    if layout is None:
        entry = TensorEntry(dtype, (cohort.n_blocks(agent), *block_shape))
        write_tensors(path, {_BLOCKS: entry}, said, lambda _name: _block_pieces(cohort, agent))
        return
    entry = TensorEntry(dtype, (1, layout.kv_heads, layout.n_tokens, layout.head_dim))
    sides = {name: side for side, name in enumerate(_tensor_names(layout))}
    write_tensors(path, dict.fromkeys(sides, entry), said, lambda name: _heads(cohort, agent, layout, sides[name]))


def import_agent(storage: "TokenDanceStorage", path: str | os.PathLike[str], agent: str) -> "SparseKVDiff | None":
    """Register an agent from a `.safetensors` file.

    Parameters
    ----------
    storage : TokenDanceStorage
        In memory or open for writing. An agent becomes its master if it has none.
    path : path
        What `export_agent` wrote; or any file with one tensor, ``blocks``, of shape ``(n_blocks, ...)``. It is not
        trusted: everything in it is checked, and nothing in it is run.
    agent : str
        Its id from now on.

    Returns
    -------
    SparseKVDiff or None
        What the agent has of its own; None for the master, which is kept whole.

    Raises
    ------
    StoreCorruptError
        The file is no safetensors file, damaged, or says what cannot be right; a ValueError.
    FormatVersionError
        It was exported by a newer version of tokendance; a ValueError.
    IdentityMismatchError
        It is from a store with another identity; a ValueError.
    ShapeMismatchError
        It does not fit the agents that are there; a ValueError.
    ValueError
        It holds other tensors, or dtypes that are not kept.

    Examples
    --------
    >>> import_agent(storage, "planner.safetensors", "planner")  # doctest: +SKIP
    """
    with open_tensors(path) as file:
        meta = _checked_meta(storage, file)
        names = file.tensors.keys()
        if names == {_BLOCKS}:
            blocks = file.read(_BLOCKS)
            return storage.register_round({agent: blocks}, meta={agent: meta}).get(agent)
        if _FORMAT not in file.metadata:
            advice = ": use import_mlx_cache for a prompt cache of mlx-lm" if "2.0" in file.metadata else ""
            shown = ", ".join(repr(name[:40]) for name in sorted(names)[:4])
            raise ValueError(
                f"{file.path} holds {len(names)} tensors ({shown}); expected one, 'blocks', or what export_agent "
                f"wrote{advice}"
            )
        layout = _file_layout(file, meta)
        pairs = _pairs(file, layout)
    return register_laid_out(storage, agent, layout, lambda padded: layers_to_blocks(pairs, padded), meta)


def _layout_or_none(cohort: Cohort, agent: str) -> CacheLayout | None:
    """Return an agent's layout if it has one that its blocks still follow."""
    try:
        return stored_layout(cohort, agent)
    except ValueError:
        return None


def _tensor_names(layout: CacheLayout) -> Iterator[str]:
    """Yield the names of a file's tensors in the order of the blocks of a token block."""
    for layer in range(layout.n_layers):
        yield f"layers.{layer}.keys"
        yield f"layers.{layer}.values"


def _block_pieces(cohort: Cohort, agent: str) -> Iterator[NDArray[np.uint8]]:
    sources, own = cohort.sources(agent)
    step = max(1, _PIECE_BYTES // cohort.needs_master().rows.row_bytes)
    for first in range(0, len(sources), step):
        yield copy_blocks(cohort, sources[first : first + step], own)


def _heads(cohort: Cohort, agent: str, layout: CacheLayout, side: int) -> Iterator[NDArray[Any]]:
    """Yield the tokens of each head of one layer's keys or values, without padding."""
    sources, own = cohort.sources(agent)
    rows = copy_blocks(cohort, np.ascontiguousarray(sources[side : layout.used_blocks : 2 * layout.n_layers]), own)
    blocks = rows.reshape(-1).view(layout.numpy_dtype).reshape(-1, *layout.block_shape)
    for head in range(layout.kv_heads):
        yield np.ascontiguousarray(blocks[:, head]).reshape(-1, layout.head_dim)[: layout.n_tokens]


def _checked_meta(storage: "TokenDanceStorage", file: TensorFile) -> dict[str, Any]:
    """Return the meta that a file carries, once its version and its identity are found to be right."""
    version = file.metadata.get(_FORMAT)
    if version is None:
        return {}
    if version != _VERSION:
        raise FormatVersionError(
            f"{file.path} has format {version[:40]!r}; this tokendance reads format {_VERSION}: use a newer one"
        )
    theirs, ours = _json_of(file, _IDENTITY), getattr(storage, "identity", None)
    if theirs and ours:
        differing = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
        if differing:
            listed = "; ".join(f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in differing)
            raise IdentityMismatchError(f"{file.path} is from a store of another identity ({listed})")
    return _json_of(file, _META)


def _json_of(file: TensorFile, key: str) -> dict[str, Any]:
    try:
        found = json.loads(file.metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise StoreCorruptError(f"{file.path} has no JSON object under {key}; the file is damaged: copy it again")
    return found


def _file_layout(file: TensorFile, meta: Mapping[str, Any]) -> CacheLayout:
    """Return the layout of a file whose tensors are exactly what it says."""
    layout = CacheLayout.from_meta(meta)
    dtype, shape = FORMAT_NAMES[layout.dtype], (1, layout.kv_heads, layout.n_tokens, layout.head_dim)
    found = {name: (entry.dtype, entry.shape) for name, entry in file.tensors.items()}
    # Their number first: the names of a billion layers must not be spelled.
    if len(found) != 2 * layout.n_layers or found != dict.fromkeys(_tensor_names(layout), (dtype, shape)):
        raise StoreCorruptError(
            f"{file.path} does not hold the keys and values of {layout.n_layers} layers, each {dtype} {shape}, as its "
            "metadata say; the file is damaged: copy it again"
        )
    return _repacked(file, layout, sum(entry.n_bytes for entry in file.tensors.values()))


def _repacked(file: TensorFile, layout: CacheLayout, n_bytes: int) -> CacheLayout:
    """Return the layout without padding blocks: whoever takes the cache pads it as it must."""
    fresh = CacheLayout.for_tokens(
        layout.n_tokens,
        dtype=layout.dtype,
        n_layers=layout.n_layers,
        kv_heads=layout.kv_heads,
        head_dim=layout.head_dim,
        block_tokens=layout.block_tokens,
    )
    if fresh.n_blocks * prod(fresh.block_shape) * fresh.numpy_dtype.itemsize > max(_PADDING_BYTES, 2 * n_bytes):
        raise StoreCorruptError(
            f"{file.path} says that {layout.n_tokens} tokens fill blocks of {layout.block_tokens}, nearly all padding; "
            "the file is damaged: copy it again"
        )
    return fresh


def _pairs(file: TensorFile, layout: CacheLayout) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    return [
        (file.read(f"layers.{layer}.keys")[0], file.read(f"layers.{layer}.values")[0])
        for layer in range(layout.n_layers)
    ]
