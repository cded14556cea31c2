"""What a mirror looks like to its owner: which blocks are its own, and how they differ."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SparseKVDiff"]


class SparseKVDiff:
    """A mirror's difference from its master.

    Parameters
    ----------
    block_indices : numpy.ndarray
        ``(n_diff_blocks,)`` int64, sorted: the positions of its own blocks.
    diff_values : numpy.ndarray
        ``(n_diff_blocks, *block_shape)``, in the cache's dtype: mirror minus master; for a block that has no
        counterpart in the master, the block itself.
    total_blocks : int
        The agent's length.
    threshold : float
        Blocks whose difference had an L2 norm up to this were dropped.
    max_dropped_norm : float
        The largest norm that was dropped: no block comes back further than this from what was registered.

    Examples
    --------
    >>> diff = SparseKVDiff(np.array([1, 4]), np.ones((2, 3), np.float32), total_blocks=8)
    >>> diff.n_diff_blocks, diff.sparsity
    (2, 0.75)
    """

    __slots__ = ("_block_indices", "_diff_values", "max_dropped_norm", "threshold", "total_blocks")

    def __init__(
        self,
        block_indices: NDArray[np.int64] | Callable[[], NDArray[np.int64]],
        diff_values: NDArray[Any] | Callable[[], NDArray[Any]],
        total_blocks: int,
        threshold: float = 1e-4,
        max_dropped_norm: float = 0.0,
    ) -> None:
        self._block_indices = block_indices
        self._diff_values = diff_values
        self.total_blocks = total_blocks
        self.threshold = threshold
        self.max_dropped_norm = max_dropped_norm

    @property
    def block_indices(self) -> NDArray[np.int64]:
        """Positions of the mirror's own blocks, read when first asked for."""
        if callable(self._block_indices):
            self._block_indices = self._block_indices()
        return self._block_indices

    @property
    def diff_values(self) -> NDArray[Any]:
        """Mirror minus master at those positions, worked out when first asked for; what is stored are the blocks."""
        if callable(self._diff_values):
            self._diff_values = self._diff_values()
        return self._diff_values

    @property
    def n_diff_blocks(self) -> int:
        """How many blocks are the mirror's own."""
        return int(self.block_indices.shape[0])

    @property
    def sparsity(self) -> float:
        """Share of blocks that the master stands for, 0 for an empty cache."""
        return 1.0 - self.n_diff_blocks / self.total_blocks if self.total_blocks else 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what it is worth, without the storage that it comes from."""
        values = (self.block_indices, self.diff_values, self.total_blocks, self.threshold, self.max_dropped_norm)
        return type(self), values

    def __repr__(self) -> str:
        return (
            f"SparseKVDiff(n_diff_blocks={self.n_diff_blocks}, total_blocks={self.total_blocks}, "
            f"threshold={self.threshold:g}, max_dropped_norm={self.max_dropped_norm:g})"
        )
