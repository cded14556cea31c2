"""Prompt caches as `mlx_lm.save_prompt_cache` writes them, read without mlx.

Its file is a safetensors file of flattened Python lists: tensors ``<layer>.0`` and ``<layer>.1`` are a layer's keys and
values, ``(1, kv_heads, n_tokens, head_dim)``; of the metadata, ``2.<layer>`` is the class of the layer's cache,
``0.<layer>`` what else that class keeps, and ``1.<key>`` what the caller added. mlx-lm makes objects of the class
names; here they are only compared with the one that is supported.
"""

import os
import re
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from tokendance.adapters.cache_layout import CacheLayout, layers_to_blocks
from tokendance.adapters.laid_out_agents import register_laid_out
from tokendance.adapters.safetensors_file import TensorFile, open_tensors

if TYPE_CHECKING:
    from tokendance import SparseKVDiff, TokenDanceStorage

__all__ = ["import_mlx_cache"]

_SUPPORTED: Final = "KVCache"
_REASONS: Final = {
    "QuantizedKVCache": "quantized keys and values cannot be taken out unchanged: save the cache without kv_bits",
    "RotatingKVCache": "a rotating cache has dropped tokens: make it without max_kv_size",
    "ChunkedKVCache": "a chunked cache has dropped tokens",
    "ArraysCache": "convolution and recurrent states are not supported yet",
    "MambaCache": "convolution and recurrent states are not supported yet",
    "CacheList": "several caches in one layer are not supported yet",
    "BatchKVCache": "it holds several sequences: extract one per agent",
    "BatchRotatingKVCache": "it holds several sequences, and has dropped tokens",
}


def import_mlx_cache(
    storage: "TokenDanceStorage", path: str | os.PathLike[str], agent: str, *, block_tokens: int = 16
) -> "SparseKVDiff | None":
    """Register an agent from a prompt cache of mlx-lm; the other adapters load it.

    Parameters
    ----------
    storage : TokenDanceStorage
        In memory or open for writing. An agent becomes its master if it has none.
    path : path
        What ``mlx_lm.models.cache.save_prompt_cache`` wrote, every layer a ``KVCache`` of one sequence. It is not
        trusted: everything in it is checked, and nothing in it is run.
    agent : str
    block_tokens : int
        Tokens per block; the same for all agents of a storage.

    Returns
    -------
    SparseKVDiff or None
        What the agent has of its own; None for the master, which is kept whole. What the caller of
        `save_prompt_cache` had added (the model's name, say) is under ``"mlx_lm"`` in ``storage.meta(agent)``.

    Raises
    ------
    StoreCorruptError
        The file is no safetensors file, or damaged; a ValueError.
    ValueError
        It is no prompt cache, or one of layers that are not supported; the message says why.
    ShapeMismatchError
        It does not fit the agents that are there; a ValueError.

    Examples
    --------
    >>> import_mlx_cache(storage, "prompt.safetensors", "planner")  # doctest: +SKIP
    """
    with open_tensors(path) as file:
        layers = range(_n_layers(file))
        n_tokens = _n_tokens(file, layers)
        _, kv_heads, _, head_dim = file.tensors["0.0"].shape
        pairs = [(_taken(file, f"{layer}.0", n_tokens), _taken(file, f"{layer}.1", n_tokens)) for layer in layers]
        added = {key.removeprefix("1."): value for key, value in file.metadata.items() if key.startswith("1.")}
    layout = CacheLayout.for_tokens(
        n_tokens,
        dtype=pairs[0][0].dtype.name,
        n_layers=len(layers),
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
    )
    meta = {"mlx_lm": added} if added else {}
    return register_laid_out(storage, agent, layout, lambda padded: layers_to_blocks(pairs, padded), meta)


def _n_layers(file: TensorFile) -> int:
    """Return the number of layers, once each is found to be of the class that is supported."""
    classes = {key: name for key, name in file.metadata.items() if re.fullmatch(r"2\.\d+", key)}
    if not classes:
        raise ValueError(
            f"{file.path} names no cache classes; expected what mlx_lm.models.cache.save_prompt_cache wrote: use "
            "import_agent for other files"
        )
    for key, name in classes.items():
        if name != _SUPPORTED:
            reason = _REASONS.get(name, "unknown kinds are refused")
            raise ValueError(
                f"{file.path}: layer {key.removeprefix('2.')[:20]} is a {name[:80]!r}; expected {_SUPPORTED}: {reason}"
            )
    layers = range(len(classes))
    if classes.keys() != {f"2.{layer}" for layer in layers} or file.tensors.keys() != {
        f"{layer}.{side}" for layer in layers for side in (0, 1)
    }:
        raise ValueError(
            f"{file.path} holds {len(file.tensors)} tensors for {len(layers)} layers; expected <layer>.0 and <layer>.1 "
            "for each: save the cache again"
        )
    return len(layers)


def _n_tokens(file: TensorFile, layers: range) -> int:
    """Return how many tokens the layers hold, once all are found to be alike."""
    first = file.tensors["0.0"]
    for name, entry in file.tensors.items():
        if (entry.dtype, entry.shape) != (first.dtype, first.shape):
            raise ValueError(
                f"{file.path}: tensor {name} is {entry.dtype} {entry.shape}, 0.0 is {first.dtype} {first.shape}; "
                "expected all layers alike"
            )
    if len(first.shape) != 4 or first.shape[0] != 1 or 0 in first.shape:
        raise ValueError(
            f"{file.path}: layers have shape {first.shape}; expected (1, kv_heads, n_tokens, head_dim), one sequence"
        )
    kept = {key: value for key, value in file.metadata.items() if key.startswith("0.")}
    offsets = {kept.pop(f"0.{layer}", "") for layer in layers}
    offset = offsets.pop()
    # mlx-lm cuts what it saves to its tokens and keeps no offset; a file that says one may hold room for more.
    if offset == "" and not offsets and not kept:
        return first.shape[2]
    if offsets or kept or not re.fullmatch(r"[1-9][0-9]{0,17}", offset) or int(offset) > first.shape[2]:
        raise ValueError(
            f"{file.path}: its layers keep the state {offset[:40]!r}; expected none, or one number of tokens up to "
            f"{first.shape[2]} for all"
        )
    return int(offset)


def _taken(file: TensorFile, name: str, n_tokens: int) -> NDArray[Any]:
    tokens: NDArray[Any] = file.read(name)[0, :, :n_tokens]
    return tokens
