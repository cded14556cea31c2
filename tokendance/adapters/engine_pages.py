"""What an engine hands over, its pages and a block table, checked before anything is read or written."""

import operator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokendance.adapters.array_bits import Bits, bits_of, is_array, is_tensor
from tokendance.adapters.page_copies import PagedSequence
from tokendance.errors import ShapeMismatchError

__all__ = ["Order", "check_sizes", "paged_sequence", "whole_number"]

Order = Literal["2,n", "n,2"]
_SHAPES = {
    "2,n": "(2, num_blocks, block_size, kv_heads, head_dim)",
    "n,2": "(num_blocks, 2, block_size, kv_heads, head_dim)",
}


def paged_sequence(
    layers: Any, block_table: Any, n_tokens: int, order: Order, *, written: bool = False
) -> PagedSequence:
    """Return a sequence of `n_tokens` among an engine's pages.

    Parameters
    ----------
    layers, block_table, order
        As `tokendance.adapters.paged.pages_to_blocks` takes them.
    n_tokens : int
    written : bool
        Whether the pages will be written to.

    Raises
    ------
    TypeError, ValueError
        As `tokendance.adapters.paged.pages_to_blocks` says; or the pages cannot be written to.
    """
    pairs, dtype = _sides(layers, order, written=written)
    num_blocks, page_tokens = pairs[0][0].shape[:2]
    if n_tokens < 1:
        raise ValueError(f"n_tokens is {n_tokens}; expected at least 1")
    return PagedSequence(pairs, _pages(block_table, n_tokens, num_blocks, page_tokens), dtype)


def check_sizes(block_tokens: int, page_tokens: int) -> None:
    """Raise ValueError unless one of the two is a multiple of the other."""
    if block_tokens % page_tokens and page_tokens % block_tokens:
        raise ValueError(
            f"blocks of {block_tokens} tokens do not fit pages of {page_tokens}; expected one to be a multiple of the "
            "other: register the agent with a block_tokens that is"
        )


def whole_number(value: Any, name: str) -> int:
    """Return an int, numpy's and torch's included.

    Raises
    ------
    TypeError
        It is something else.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected a whole number") from None


def _sides(layers: Any, order: Order, *, written: bool) -> tuple[tuple[tuple[Bits, Bits], ...], str]:
    """Return each layer's keys and values as integers, and their dtype."""
    if order not in _SHAPES:
        raise ValueError(f"order is {order!r}; expected '2,n' for {_SHAPES['2,n']}, or 'n,2' for {_SHAPES['n,2']}")
    found = [bits_of(layer, f"layer {index}", written=written) for index, layer in enumerate(layers)]
    if not found:
        raise ValueError("there are no layers; expected one array per layer")
    axis = 0 if order == "2,n" else 1
    dtype, first = found[0]
    if first.ndim != 5 or first.shape[axis] != 2 or 0 in first.shape:
        advice = "put a single layer in a list" if is_array(layers) else "pass the other order, or reshape the pages"
        raise ShapeMismatchError(
            f"layer 0 has shape {first.shape}; expected {_SHAPES[order]} for order={order!r}: {advice}"
        )
    for index, (name, bits) in enumerate(found):
        if (name, bits.shape) != (dtype, first.shape):
            raise ShapeMismatchError(
                f"layer {index} is {name} {bits.shape}, layer 0 is {dtype} {first.shape}: all layers must be alike"
            )
    if written and len({bits.ctypes.data for _, bits in found}) < len(found):
        raise ValueError("two layers are the same memory, so one would overwrite the other: pass an array per layer")
    sides = [np.moveaxis(bits, axis, 0) for _, bits in found]
    return tuple((side[0], side[1]) for side in sides), dtype


def _pages(block_table: Any, n_tokens: int, num_blocks: int, page_tokens: int) -> NDArray[np.int64]:
    """Return the pages that `n_tokens` need, checked."""
    if is_tensor(block_table):
        block_table = block_table.detach().cpu().numpy()
    table = np.asarray(block_table if isinstance(block_table, np.ndarray) else list(block_table))
    if table.ndim != 1 or (len(table) and table.dtype.kind not in "iu"):
        raise TypeError(f"block_table is {table.ndim}-D {table.dtype}; expected a list of page numbers")
    needed = -(-n_tokens // page_tokens)
    if len(table) < needed:
        raise ValueError(
            f"block_table has {len(table)} pages of {page_tokens} tokens; {n_tokens} tokens need {needed}: add pages"
        )
    used = table[:needed]
    outside = (used < 0) | (used >= num_blocks)
    if outside.any():
        at = int(outside.argmax())
        raise ValueError(f"block_table[{at}] is {used[at]}; expected a page from 0 to {num_blocks - 1}")
    pages: NDArray[np.int64] = used.astype(np.int64)
    _check_unique(pages)
    return pages


def _check_unique(pages: NDArray[np.int64]) -> None:
    order = np.argsort(pages, kind="stable")
    again = np.flatnonzero(np.diff(pages[order]) == 0)
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        raise ValueError(
            f"block_table names page {pages[first]} twice, at {first} and at {second}; expected each page once (tables "
            "of sliding-window layers, which repeat a null page, are not supported)"
        )
