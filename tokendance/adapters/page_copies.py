"""An engine's KV pages as they are in memory, and the two copies between them and blocks.

Plain numpy on integers. Pages and blocks may differ in size if one divides the other; their common unit is the smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tokendance.adapters.array_bits import Bits
from tokendance.adapters.cache_layout import CacheLayout

__all__ = ["PagedSequence", "gather_pages", "pour_into_pages"]

# Indexing pages by an array copies them once on the way; this much of it stays in the processor's cache.
_GATHERED_BYTES: Final = 256 << 10

Places = tuple[NDArray[np.int64], NDArray[np.int64]] | tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class PagedSequence:
    """One sequence's keys and values among an engine's pages.

    Attributes
    ----------
    layers : tuple of (keys, values)
        One pair per layer, each ``(num_blocks, block_size, kv_heads, head_dim)`` integers, any strides.
    pages : numpy.ndarray
        ``(n,)`` int64: the pages of the sequence in the order of its tokens, checked.
    dtype : str
        What the integers are the bits of.
    """

    layers: tuple[tuple[Bits, Bits], ...]
    pages: NDArray[np.int64]
    dtype: str

    @property
    def page_tokens(self) -> int:
        """Tokens per page."""
        return int(self.layers[0][0].shape[1])

    def layout(self, n_tokens: int, block_tokens: int) -> CacheLayout:
        """Return the layout that holds the sequence's tokens."""
        _, _, kv_heads, head_dim = self.layers[0][0].shape
        return CacheLayout.for_tokens(
            n_tokens,
            dtype=self.dtype,
            n_layers=len(self.layers),
            kv_heads=kv_heads,
            head_dim=head_dim,
            block_tokens=block_tokens,
        )


def gather_pages(sequence: PagedSequence, layout: CacheLayout) -> NDArray[Any]:
    """Copy a sequence out of its pages into blocks, padding zeroed.

    Parameters
    ----------
    sequence : PagedSequence
        Its page size divides ``layout.block_tokens``, or is a multiple of it.
    layout : CacheLayout

    Returns
    -------
    numpy.ndarray
        ``(layout.n_blocks, *layout.block_shape)`` of ``layout.numpy_dtype``, C order.
    """
    blocks = np.empty((layout.n_blocks, *layout.block_shape), layout.numpy_dtype)
    bits = _by_token_block(blocks, layout)
    n_token_blocks = -(-layout.n_tokens // layout.block_tokens)
    step = max(1, _GATHERED_BYTES // (blocks.itemsize * layout.kv_heads * layout.block_tokens * layout.head_dim))
    for first in range(0, n_token_blocks, step):
        few = bits[first : min(first + step, n_token_blocks)]
        for inside, pages, places in _meetings(few, layout, sequence, first):
            inside[...] = pages[places]
    tail = layout.n_tokens % layout.block_tokens
    if tail:
        bits[n_token_blocks - 1, :, :, :, tail:] = 0
    bits[n_token_blocks:] = 0
    return blocks


def pour_into_pages(
    blocks: NDArray[Any], layout: CacheLayout, sequence: PagedSequence, *, first_token_block: int
) -> None:
    """Write blocks into the pages of a sequence, each byte once; slots behind the last token are left as they are.

    Parameters
    ----------
    blocks : numpy.ndarray
        Whole token blocks, ``(k * n_layers * 2, kv_heads, block_tokens, head_dim)``.
    layout : CacheLayout
        Layout of the cache that they are part of.
    sequence : PagedSequence
        Its page size divides ``layout.block_tokens``, or is a multiple of it; its layers are writable.
    first_token_block : int
        Which token block of the cache ``blocks[0]`` begins.
    """
    for inside, pages, places in _meetings(_by_token_block(blocks, layout), layout, sequence, first_token_block):
        pages[places] = inside


def _by_token_block(blocks: NDArray[Any], layout: CacheLayout) -> Bits:
    bits: Bits = blocks.view(f"i{blocks.itemsize}")
    return bits.reshape(-1, layout.n_layers, 2, *layout.block_shape)


def _meetings(
    bits: Bits, layout: CacheLayout, sequence: PagedSequence, first_token_block: int
) -> Iterator[tuple[Bits, Bits, Places]]:
    """Yield ``(inside, pages, places)`` for every stretch that blocks and pages share.

    `inside` is a view of the blocks, ``(..., tokens, kv_heads, head_dim)``, and ``pages[places]`` the same tokens in
    the pages: views all, whatever the strides, because splitting an axis never copies.
    """
    unit = min(layout.block_tokens, sequence.page_tokens)
    per_page, per_block = sequence.page_tokens // unit, layout.block_tokens // unit
    start = first_token_block * layout.block_tokens
    whole, tail = divmod(min(layout.n_tokens - start, len(bits) * layout.block_tokens), layout.block_tokens)
    units = start // unit + np.arange(whole * per_block).reshape(whole, per_block)
    places = (sequence.pages[units // per_page], units % per_page)
    for layer, pair in enumerate(sequence.layers):
        for side, side_pages in enumerate(pair):
            inside = bits[:, layer, side]
            n_pages, _, kv_heads, head_dim = side_pages.shape
            pages = side_pages.reshape(n_pages, per_page, unit, kv_heads, head_dim)
            if whole:
                split = inside[:whole].reshape(whole, kv_heads, per_block, unit, head_dim)
                yield split.transpose(0, 2, 3, 1, 4), pages, places
            for done in range(0, tail, unit):
                page, within = divmod((start + whole * layout.block_tokens + done) // unit, per_page)
                n = min(unit, tail - done)
                last = inside[whole, :, done : done + n].swapaxes(0, 1)
                yield last, pages[:, :, :n], (int(sequence.pages[page]), within)
