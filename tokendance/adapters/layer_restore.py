"""An agent's blocks written straight into the layers of a cache: no dense array in between."""

from collections.abc import Sequence

import numpy as np

from tokendance.adapters.array_bits import Bits
from tokendance.adapters.cache_layout import CacheLayout, pour_blocks
from tokendance.adapters.laid_out_agents import token_slabs
from tokendance.cohort import Cohort
from tokendance.kernels.loading import loading
from tokendance.restoring import kernels_pay, source_views

__all__ = ["restore_layers"]


def restore_layers(cohort: Cohort, agent: str, layout: CacheLayout, layers: Sequence[tuple[Bits, Bits]]) -> None:
    """Write an agent's blocks into layers, each byte once; padding is left behind.

    With numba at work each layer is one pass of `tokendance.kernels.restore.restore_layer`, from the master's
    blocks and the agent's own into the tensor (the idea of TokenDance's fused restore). Without it, a few MiB at a time
    go by way of a buffer that stays in the processor's cache.

    Parameters
    ----------
    cohort : Cohort
    agent : str
    layout : CacheLayout
        As `tokendance.adapters.laid_out_agents.stored_layout` returns it.
    layers : sequence of (keys, values)
        One pair per layer, each ``(kv_heads, n_tokens, head_dim)`` integers as wide as the layout's dtype, C order;
        written.

    Raises
    ------
    StoreCorruptError
        A block is damaged or missing.
    """
    if not kernels_pay(sum(side.nbytes for pair in layers for side in pair)):
        for first, blocks in token_slabs(cohort, agent, layout):
            pour_blocks(blocks, layout, layers, first_token_block=first)
        return
    with loading:
        from tokendance.kernels.restore import restore_layer

    sources, own = cohort.sources(agent)
    sources = sources[: layout.used_blocks]
    master_view, own_view = source_views(cohort, sources, own)
    for layer, pair in enumerate(layers):
        for side, target in enumerate(pair):
            of_layer = np.ascontiguousarray(sources[2 * layer + side :: 2 * layout.n_layers])
            restore_layer(master_view, own_view, of_layer, target.reshape(len(target), -1).view(np.uint8))
