"""How an array in a file is cut into blocks, and put together again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendance.errors import ShapeMismatchError

__all__ = ["META_KEY", "Cut"]

META_KEY = "snapshot"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Which axis of an array becomes the blocks.

    Without `block_tokens` each index of the axis is a block. With it, a block is that many indices long and keeps the
    axis where it was; the last one is filled up with zeros, which never come back.

    Parameters
    ----------
    shape : tuple of int
        The array's.
    block_axis : int
        0 or more.
    block_tokens : int or None

    Raises
    ------
    ShapeMismatchError
        The array has no such axis.

    Examples
    --------
    >>> cut = Cut((2, 10, 4), block_axis=1, block_tokens=4)
    >>> cut.n_blocks, cut.block_shape
    (3, (2, 4, 4))
    """

    shape: tuple[int, ...]
    block_axis: int
    block_tokens: int | None

    def __post_init__(self) -> None:
        if not 0 <= self.block_axis < len(self.shape):
            raise ShapeMismatchError(f"an array of shape {self.shape} has no axis {self.block_axis} to be its blocks")

    @property
    def length(self) -> int:
        """How long the axis is."""
        return self.shape[self.block_axis]

    @property
    def n_blocks(self) -> int:
        """How many blocks the array becomes."""
        return -(-self.length // (self.block_tokens or 1))

    @property
    def block_shape(self) -> tuple[int, ...]:
        """What one block looks like."""
        inside = () if self.block_tokens is None else (self.block_tokens,)
        return (*self.shape[: self.block_axis], *inside, *self.shape[self.block_axis + 1 :])

    @property
    def in_file_order(self) -> bool:
        """Whether the blocks' bytes, one after another, are the array's."""
        return self.block_axis == 0

    def blocks_of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array as ``(n_blocks, *block_shape)``, a view of it where that can be."""
        if self.block_tokens is None:
            return np.moveaxis(array, self.block_axis, 0)
        whole, tail = divmod(self.length, self.block_tokens)
        if not tail:
            return np.moveaxis(array.reshape(self._split(whole)), self.block_axis, 0)
        blocks = np.zeros((self.n_blocks, *self.block_shape), array.dtype)
        middle = whole * self.block_tokens
        blocks[:whole] = np.moveaxis(self._along(array, 0, middle).reshape(self._split(whole)), self.block_axis, 0)
        self._along(blocks[whole], 0, tail)[...] = self._along(array, middle, self.length)
        return blocks

    def pour(self, blocks: NDArray[Any], first: int, array: NDArray[Any]) -> None:
        """Write blocks, the first of which is block `first`, to where in `array` they came from."""
        if self.block_tokens is None:
            np.moveaxis(array, self.block_axis, 0)[first : first + len(blocks)] = blocks
            return
        for number, block in enumerate(blocks, start=first):
            start = number * self.block_tokens
            stop = min(start + self.block_tokens, self.length)
            self._along(array, start, stop)[...] = self._along(block, 0, stop - start)

    def to_meta(self) -> dict[str, Any]:
        """Return what an agent's meta says, so that `from_meta` can undo the cut."""
        record = {"version": _VERSION, "shape": list(self.shape), "block_axis": self.block_axis}
        return {META_KEY: record | {"block_tokens": self.block_tokens}}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], n_blocks: int, block_shape: tuple[int, ...]) -> "Cut | None":
        """Return the cut that gave an agent's blocks, or None where its meta does not say, or no longer fits."""
        found = meta.get(META_KEY)
        if not isinstance(found, Mapping) or found.get("version") != _VERSION:
            return None
        shape, axis, tokens = found.get("shape"), found.get("block_axis"), found.get("block_tokens")
        if not isinstance(shape, list) or type(axis) is not int or not 0 <= axis < len(shape):
            return None
        numbers = [*shape, 1 if tokens is None else tokens]
        if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers) or numbers[-1] == 0:
            return None
        cut = cls(tuple(shape), axis, tokens)
        return cut if (cut.n_blocks, cut.block_shape) == (n_blocks, block_shape) else None

    @property
    def n_elements(self) -> int:
        """How many elements the array has."""
        return math.prod(self.shape)

    def _split(self, count: int) -> tuple[int, ...]:
        return (*self.shape[: self.block_axis], count, self.block_tokens or 1, *self.shape[self.block_axis + 1 :])

    def _along(self, array: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
        return array[(slice(None),) * self.block_axis + (slice(start, stop),)]
