"""The one place where what users pass in is checked, before anything changes."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokendance.dtypes import dtype_named, name_of
from tokendance.errors import ShapeMismatchError
from tokendance.store.layout import STORED_AS
from tokendance.store.names import LONGEST_NAME, is_agent_id, is_tag
from tokendance.store.place import BlockType

__all__ = [
    "Blocks",
    "check_agent_id",
    "check_base",
    "check_blocks",
    "check_identity",
    "check_meta",
    "check_out",
    "check_registration",
    "check_selection",
    "check_tag",
    "check_threshold",
]


class Blocks(NamedTuple):
    """A cache that was checked.

    Attributes
    ----------
    rows : numpy.ndarray
        ``(n_blocks, block_bytes)`` uint8, C order: the caller's own memory where that was contiguous.
    block_type : BlockType
    """

    rows: NDArray[np.uint8]
    block_type: BlockType


def check_agent_id(agent_id: object) -> str:
    """Return an agent id, which is any string of 1 to 512 UTF-8 bytes."""
    return _checked_name(agent_id, "agent_id", is_agent_id(agent_id))


def _checked_name(name: object, what: str, fits: bool, more: str = "") -> str:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, got {type(name).__name__}")
    if not fits:
        n_bytes, shown = len(name.encode("utf-8", "replace")), name if len(name) <= 60 else f"{name[:60]}..."
        raise ValueError(f"{what} must have 1 to {LONGEST_NAME} bytes in UTF-8{more}, got {n_bytes}: {shown!r}")
    return name


def check_caches(caches: object) -> Mapping[Any, Any]:
    """Return a dict of agents and caches, of which there must be one at least."""
    if not isinstance(caches, Mapping):
        raise TypeError(f"caches must be a dict of agent and cache, got {type(caches).__name__}")
    if not caches:
        raise ValueError("there are no caches to register; expected at least one {agent: cache}")
    return caches


def check_blocks(kv_blocks: object, *, name: str = "kv_blocks") -> Blocks:
    """Return a cache as rows of bytes.

    Raises
    ------
    TypeError
        It is no numpy array, or of a dtype that is not kept.
    ValueError
        It has less than two dimensions, or its blocks are empty.
    """
    if not isinstance(kv_blocks, np.ndarray):
        raise TypeError(
            f"{name} must be a numpy array (n_blocks, ...), got {type(kv_blocks).__name__}; convert it first"
        )
    if hasattr(kv_blocks, "mask"):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; pass its filled() array")
    if kv_blocks.ndim < 2:
        came = kv_blocks.shape
        raise ShapeMismatchError(f"{name} must be at least 2D (n_blocks, ...); got shape {came}")
    dtype_name = name_of(kv_blocks.dtype)
    if dtype_name is None:
        raise TypeError(f"{name} has dtype {kv_blocks.dtype}; convert it to one of {', '.join(STORED_AS)}")
    block_shape = kv_blocks.shape[1:]
    if 0 in block_shape:
        raise ShapeMismatchError(f"{name} has shape {kv_blocks.shape}; each block must hold at least one element")
    plain = np.ascontiguousarray(kv_blocks)
    if not plain.flags.aligned:
        plain = plain.copy()
    n_blocks, elements = plain.shape[0], math.prod(block_shape)
    rows = np.asarray(plain).reshape(n_blocks, elements).view(np.uint8)
    return Blocks(rows, BlockType(dtype_name, block_shape))


def check_fit(blocks: Blocks, n_master: int, block_type: BlockType, *, ragged: bool, name: str = "kv_blocks") -> None:
    """Refuse a cache that cannot stand beside the master.

    Raises
    ------
    ShapeMismatchError
        Its dtype or block shape is not the master's, or its length is not and the storage is not ragged.
    """
    came, expected = (len(blocks.rows), *blocks.block_type.block_shape), (n_master, *block_type.block_shape)
    if blocks.block_type.dtype_name != block_type.dtype_name:
        raise ShapeMismatchError(
            f"{name} dtype {blocks.block_type.dtype_name} must match master dtype {block_type.dtype_name}"
        )
    if came[1:] != expected[1:]:
        raise ShapeMismatchError(f"{name} shape {came} must match master shape {expected} in every axis but the first")
    if not ragged and came != expected:
        raise ShapeMismatchError(
            f"{name} shape {came} must match master shape {expected}; agents of other lengths need ragged=True"
        )


def check_base(base: object, n_blocks: int, n_master: int) -> NDArray[np.int64] | Literal["auto"]:
    """Return a base map as ``(n_blocks,)`` int64, or "auto".

    Raises
    ------
    ValueError
        It has another length, or names a block that the master does not have.
    """
    if isinstance(base, str) and base == "auto":
        return "auto"
    if not isinstance(base, np.ndarray) or base.ndim != 1 or base.dtype.kind not in "iu":
        came = f"{base.ndim}-D {base.dtype}" if isinstance(base, np.ndarray) else f"{type(base).__name__} {base!r:.60}"
        raise TypeError(f"base must be 'auto' or a 1-D array of master positions, got {came}")
    if len(base) != n_blocks:
        raise ShapeMismatchError(f"base must name a master block for each of the {n_blocks} blocks, got {len(base)}")
    if n_blocks and not -1 <= int(base.min()) <= int(base.max()) < n_master:
        raise ValueError(f"base must hold -1 to {n_master - 1}, got {base.min()} to {base.max()}")
    return base.astype(np.int64)


def check_threshold(threshold: object) -> float:
    """Return a threshold: a finite number of 0 or more."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.integer | np.floating):
        raise TypeError(f"diff_threshold must be a number, got {type(threshold).__name__}")
    if not 0 <= threshold < math.inf:
        raise ValueError(f"diff_threshold must be finite and 0 or more, got {threshold}")
    return float(threshold)


def check_meta(meta: object, *, name: str = "meta") -> dict[str, Any]:
    """Return a copy of a dict that JSON holds as it is; None is an empty one."""
    if meta is None:
        return {}
    if not isinstance(meta, Mapping):
        raise TypeError(f"{name} must be a dict, got {type(meta).__name__}")
    try:
        text = json.dumps(dict(meta), allow_nan=False, ensure_ascii=False).encode("utf-8")
        copy: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must hold what JSON can: text, finite numbers, lists, dicts ({error})") from None
    if copy != meta:
        raise ValueError(f"{name} would come back changed: JSON has only text as keys, and lists instead of tuples")
    return copy


def check_registration(agent_id: object, kv_blocks: object, meta: object) -> tuple[str, Blocks, dict[str, Any]]:
    """Return what an agent is registered with: its id, its cache as rows of bytes and its meta."""
    return check_agent_id(agent_id), check_blocks(kv_blocks), check_meta(meta)


def check_identity(identity: object) -> dict[str, Any] | None:
    """Return a copy of an identity: a flat dict of text, numbers and truths."""
    if identity is None:
        return None
    copy = check_meta(identity, name="identity")
    for key, value in copy.items():
        if isinstance(value, list | dict):
            raise ValueError(f"identity must be flat; {key!r} holds a {type(value).__name__}")
    return copy


def check_tag(name: object) -> str:
    """Return a tag's name: what can be an agent's id, and is no number, since numbers are generations."""
    return _checked_name(name, "a tag", is_tag(name), " and be no number")


def check_out(out: object, n_blocks: int, block_type: BlockType) -> NDArray[np.uint8]:
    """Return the rows of an array that is to be filled.

    Raises
    ------
    ValueError
        Its shape, dtype or order is not exactly that of the result, or it is read-only.
    """
    shape, dtype = (n_blocks, *block_type.block_shape), dtype_named(block_type.dtype_name)
    if not isinstance(out, np.ndarray):
        raise ShapeMismatchError(f"out must be a numpy array, got {type(out).__name__}")
    if out.shape != shape or out.dtype != dtype:
        raise ShapeMismatchError(f"out must have shape {shape} and dtype {dtype}, got {out.shape} and {out.dtype}")
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise ShapeMismatchError("out must be C-contiguous, aligned and writable; pass np.empty(shape, dtype)")
    return out.reshape(n_blocks, -1).view(np.uint8) if n_blocks else np.empty((0, 1), np.uint8)


def check_selection(blocks: object, n_blocks: int) -> NDArray[np.int64]:
    """Return the positions that a slice, an index array or a mask selects, ``(n,)`` int64."""
    if not isinstance(blocks, slice | list | tuple | range | np.ndarray):
        raise TypeError(f"blocks must be a slice or a 1-D index array, got {type(blocks).__name__}")
    chosen = blocks if isinstance(blocks, slice) else np.asarray(blocks if len(blocks) else np.empty(0, np.int64))
    if isinstance(chosen, np.ndarray) and (chosen.ndim != 1 or chosen.dtype.kind not in "iub"):
        raise TypeError(f"blocks must be a slice or a 1-D index array, got {chosen.ndim}-D {chosen.dtype}")
    try:
        return np.ascontiguousarray(np.arange(n_blocks)[chosen])
    except IndexError as error:
        raise IndexError(f"blocks reaches outside the agent's {n_blocks} blocks: {error}") from None
