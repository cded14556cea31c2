"""What a `DynamicCache` of transformers 5 must be to be kept, and how its tensors are reached as numpy arrays.

torch and transformers are imported by the functions, not by this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokendance.adapters.cache_layout import CacheLayout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import DynamicCache

    Bits = NDArray[np.signedinteger[Any]]

__all__ = ["empty_cache", "layer_bits", "layout_of"]

# In this order: a layer may be several of these, and the first says best what is in the way.
_LAYER_REASONS: Final = (
    ("Quantized", "quantized keys and values cannot be taken out unchanged: use DynamicCache(config=model.config)"),
    ("LinearAttention", "a hybrid model's convolution and recurrent states are not supported yet"),
    ("Indexed", "the indexer keys of sparse attention are not supported yet"),
    ("Sliding", "sliding-window layers are not supported yet: use a model with full attention in every layer"),
    ("Static", "a static layer does not grow: use DynamicCache(config=model.config)"),
    ("Dummy", "layers that share another layer's keys and values are not supported yet"),
)


def layout_of(cache: DynamicCache, block_tokens: int) -> CacheLayout:
    """Check everything that could make a cache come back as another one, and describe what is left.

    Raises
    ------
    TypeError
        `cache` is not a DynamicCache of full-attention layers.
    ValueError
        Its content is not what a layout can describe, or `block_tokens` is less than 1.
    """
    _check_kind(cache)
    for index, layer in enumerate(cache.layers):
        _check_layer(layer, index)
    keys = cache.layers[0].keys
    _, kv_heads, n_tokens, head_dim = keys.shape
    for index, layer in enumerate(cache.layers):
        for side in ("keys", "values"):
            tensor = getattr(layer, side)
            if tensor.shape != keys.shape or tensor.dtype != keys.dtype:
                raise ValueError(
                    f"the {side} of layer {index} are {_describe(tensor)}, the keys of layer 0 {_describe(keys)}: "
                    "all layers must be alike"
                )
    if n_tokens == 0:
        raise ValueError("the cache holds no tokens: run the model on a prompt first")
    return CacheLayout.for_tokens(
        n_tokens,
        dtype=str(keys.dtype).removeprefix("torch."),
        n_layers=len(cache.layers),
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
    )


def _check_kind(cache: Any) -> None:
    expected = "expected a transformers.DynamicCache"
    if type(cache) is not _dynamic_classes()[0]:
        ancestors = {ancestor.__name__ for ancestor in type(cache).__mro__}
        if "EncoderDecoderCache" in ancestors:
            advice = "register its self_attention_cache and cross_attention_cache as two agents"
        elif ancestors & {"tuple", "list"}:
            advice = "DynamicCache(pairs) makes one from (keys, values) pairs"
        else:
            advice = "DynamicCache(config=model.config), passed to the model as past_key_values, is one"
        raise TypeError(f"got {type(cache).__name__}; {expected}: {advice}")
    if cache.offloading:
        raise ValueError(f"got a cache that offloads its layers; {expected} made without offloading=True")
    if not cache.layers:
        raise ValueError("the cache has no layers: run the model on a prompt first")


def _check_layer(layer: Any, index: int) -> None:
    if type(layer) is not _dynamic_classes()[1]:
        ancestry = " ".join(ancestor.__name__ for ancestor in type(layer).__mro__)
        reason = next((reason for mark, reason in _LAYER_REASONS if mark in ancestry), "unknown kinds are refused")
        raise TypeError(f"layer {index} is of type {type(layer).__name__}; expected DynamicLayer: {reason}")
    if not layer.is_initialized or layer.keys is None or layer.values is None:
        raise ValueError(f"layer {index} holds nothing yet: run the model on a prompt first")
    for side in ("keys", "values"):
        tensor = getattr(layer, side)
        if tensor.ndim != 4 or tensor.is_meta:
            raise ValueError(
                f"the {side} of layer {index} are {_describe(tensor)}; expected data of (1, kv_heads, tokens, head_dim)"
            )
        if tensor.shape[0] != 1:
            raise ValueError(
                f"layer {index} holds {tensor.shape[0]} sequences; expected 1: copy the cache and take one out with "
                "batch_select_indices([i]) per agent"
            )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"


def layer_bits(cache: DynamicCache) -> list[tuple[Bits, Bits]]:
    """Return each layer's keys and values as integers ``(kv_heads, n_tokens, head_dim)``; CPU tensors share memory."""
    return [(_tensor_bits(layer.keys), _tensor_bits(layer.values)) for layer in cache.layers]


def empty_cache(layout: CacheLayout) -> DynamicCache:
    """Return a cache on the CPU whose tensors have their final shape and no content yet."""
    cache_class, layer_class = _dynamic_classes()
    import torch

    shape = (1, layout.kv_heads, layout.n_tokens, layout.head_dim)
    cache = cache_class()
    for _ in range(layout.n_layers):
        # One tensor each, so that memory goes back layer by layer as the growing cache replaces them.
        # Placed by hand: `update` would copy them once more.
        keys, values = (torch.empty(shape, dtype=getattr(torch, layout.dtype), device="cpu") for _ in range(2))
        layer = layer_class()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _tensor_bits(tensor: Tensor) -> Bits:
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    # Without its batch axis, and as integers because numpy has no bfloat16 of its own.
    bits: Bits = tensor.detach().cpu().view(integers[tensor.element_size()]).numpy()[0]
    return bits


def _dynamic_classes() -> tuple[Any, Any]:
    """Return DynamicCache and DynamicLayer."""
    try:
        import torch  # noqa: F401 - transformers imports without it, and fails later with a longer story
        from transformers.cache_utils import DynamicCache, DynamicLayer
    except ImportError as error:
        raise ImportError(
            "the transformers adapter needs torch and transformers 5: pip install 'tokendance[hf]'"
        ) from error
    return DynamicCache, DynamicLayer
