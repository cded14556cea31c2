"""Real caches of transformers: what comes back, and what is refused."""

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers.cache_utils as kinds  # noqa: E402
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, MistralConfig  # noqa: E402

from tokendance.adapters.transformers import blocks_to_cache, cache_to_blocks  # noqa: E402
from tokendance.errors import ShapeMismatchError  # noqa: E402

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
CONFIG = LlamaConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8)


def random_tensor(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Any bits at all: NaN payloads, infinities and -0.0 among them."""
    kind = getattr(torch, dtype)
    bits = np.random.default_rng(seed).integers(0, 256, (*shape[:-1], shape[-1] * kind.itemsize), np.uint8)
    return torch.from_numpy(bits).view(kind)


def random_cache(
    tokens: int = 37, *, dtype: str = "float32", layers: int = 3, heads: int = 2, dim: int = 8, seed: int = 0
) -> DynamicCache:
    shape = (1, heads, tokens, dim)
    pairs = [[random_tensor(shape, dtype, 1000 * seed + 2 * i + side) for side in (0, 1)] for i in range(layers)]
    return DynamicCache(pairs)


def bits_of(cache: DynamicCache) -> list[bytes]:
    return [
        side.contiguous().view(torch.uint8).numpy().tobytes()
        for layer in cache.layers
        for side in (layer.keys, layer.values)
    ]


def assert_same(back: DynamicCache, original: DynamicCache) -> None:
    assert type(back) is DynamicCache
    assert len(back) == len(original)
    for new, old in zip(back.layers, original.layers, strict=True):
        for got, expected in ((new.keys, old.keys), (new.values, old.values)):
            assert got.shape == expected.shape and got.dtype == expected.dtype
            assert got.is_contiguous() and got.device.type == "cpu"
            # Its own memory, all of it used: torch.save and freeing work a layer at a time.
            assert got.untyped_storage().nbytes() == got.nbytes
    assert bits_of(back) == bits_of(original)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 48])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(dtype: str, tokens: int) -> None:
    cache = random_cache(tokens, dtype=dtype)
    before = bits_of(cache)
    blocks, layout = cache_to_blocks(cache)
    assert blocks.dtype.name == dtype
    assert blocks.shape == (-(-tokens // 16) * 3 * 2, 2, 16, 8)
    back = blocks_to_cache(blocks, layout)
    blocks.view(np.uint8)[...] = 99  # the cache has its own memory
    assert_same(back, cache)
    assert bits_of(cache) == before


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nan_payloads_and_negative_zero_come_back(dtype: str) -> None:
    cache = random_cache(5, dtype=dtype, layers=1)
    width = cache.layers[0].keys.element_size()
    integer = {2: torch.int16, 4: torch.int32}[width]
    odd = [-1, 1 - (1 << (8 * width - 1)), -(1 << (8 * width - 1)), 1, (1 << (8 * width - 1)) - 2]
    cache.layers[0].keys.view(integer)[0, 0, :, 0] = torch.tensor(odd, dtype=integer)
    assert_same(blocks_to_cache(*cache_to_blocks(cache)), cache)


def test_blocks_are_token_major_with_keys_before_values() -> None:
    cache = random_cache(20, layers=3)
    blocks, layout = cache_to_blocks(cache, block_tokens=8)
    assert layout.block_tokens == 8
    for token_block, layer, side in ((0, 0, 0), (1, 2, 1), (1, 1, 0)):
        tensor = (cache.layers[layer].keys, cache.layers[layer].values)[side]
        expected = tensor[0, :, token_block * 8 : token_block * 8 + 8].numpy()
        assert blocks[(token_block * 3 + layer) * 2 + side].tobytes() == expected.tobytes()
    assert not blocks[12:, :, 4:].any()


def test_a_growing_cache_appends_blocks() -> None:
    cache = random_cache(37)
    before, _ = cache_to_blocks(cache)
    for index in range(3):
        cache.update(random_tensor((1, 2, 13, 8), "float32", 7), random_tensor((1, 2, 13, 8), "float32", 8), index)
    after, layout = cache_to_blocks(cache)
    assert (len(before), len(after), layout.n_tokens) == (18, 24, 50)
    assert after[:12].tobytes() == before[:12].tobytes()


def test_tensors_with_strides_and_gradients_are_taken_and_left_alone() -> None:
    keys = torch.randn(1, 9, 2, 8).transpose(1, 2).requires_grad_()
    cache = DynamicCache()
    cache.update(keys, torch.randn(1, 2, 9, 16)[..., ::2], 0)
    cache.layers[0].keys = keys
    assert_same(blocks_to_cache(*cache_to_blocks(cache)), cache)
    assert cache.layers[0].keys is keys and keys.requires_grad


def test_a_restored_cache_goes_on_growing_like_the_original() -> None:
    cache = random_cache(37)
    back = blocks_to_cache(*cache_to_blocks(cache))
    for index in range(3):
        new = random_tensor((1, 2, 3, 8), "float32", index)
        for one in (cache, back):
            one.update(new, new, index)
    assert_same(back, cache)
    assert back.get_seq_length() == 40
    back.crop(-39)
    cache.crop(-39)
    assert bits_of(back) == bits_of(cache)


def test_a_cropped_cache_forgets_what_was_behind_it() -> None:
    cache = random_cache(37)
    cache.crop(-7)
    blocks, layout = cache_to_blocks(cache)
    assert layout.n_tokens == 30
    assert not blocks.view(np.int32)[6:, :, 14:].any()
    assert_same(blocks_to_cache(blocks, layout), cache)


def with_layers(*layers: Any) -> DynamicCache:
    cache = random_cache(5, layers=len(layers))
    for index, layer in enumerate(layers):
        if layer is not None:
            cache.layers[index] = layer
    return cache


def filled(layer: Any, tokens: int = 5) -> Any:
    layer.update(torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 8))
    return layer


def changed(index: int = 1, **tensors: Any) -> DynamicCache:
    cache = random_cache(5)
    for side, tensor in tensors.items():
        setattr(cache.layers[index], side, tensor)
    return cache


def static_cache() -> Any:
    return kinds.StaticCache(CONFIG, max_cache_len=8)


class MyCache(DynamicCache):
    """A subclass may mean anything by its layers."""


class MyLayer(kinds.DynamicLayer):
    """So may a layer."""


NOT_TAKEN = {
    "none": (lambda: None, "got NoneType; expected a transformers.DynamicCache"),
    "tensors": (lambda: torch.zeros(1, 2, 3, 4), "got Tensor"),
    "legacy tuples": (lambda: ((torch.zeros(1, 2, 3, 4),) * 2,), r"got tuple;.* DynamicCache\(pairs\)"),
    "encoder-decoder": (
        lambda: EncoderDecoderCache(random_cache(), random_cache()),
        "got EncoderDecoderCache;.* self_attention_cache",
    ),
    "static": (static_cache, "got StaticCache;.* past_key_values"),
    "quantized": (lambda: kinds.QuantizedCache("fp8", CONFIG), "got QuantizedCache"),
    "quantized layers": (lambda: with_layers(None, filled(kinds.Fp8QuantizedLayer())), "layer 1 is .*quantized keys"),
    "static layer": (
        lambda: with_layers(filled(kinds.StaticLayer(8))),
        "layer 0 is of type StaticLayer; .* does not grow",
    ),
    "sliding": (
        lambda: DynamicCache(config=MistralConfig(sliding_window=8, num_hidden_layers=2)),
        "layer 0 is of type DynamicSlidingWindowLayer;.*sliding-window",
    ),
    "sliding, filled": (
        lambda: with_layers(None, filled(kinds.DynamicSlidingWindowLayer(8))),
        "layer 1 .*sliding-window",
    ),
    "static sliding": (lambda: with_layers(kinds.StaticSlidingWindowLayer(8, 4)), "sliding-window"),
    "indexed": (lambda: with_layers(filled(kinds.DynamicIndexedLayer())), "indexer keys"),
    "linear": (lambda: with_layers(None, kinds.LinearAttentionLayer()), "layer 1 .*recurrent states"),
    "hybrid": (lambda: with_layers(kinds.LinearAttentionAndFullAttentionLayer()), "recurrent states"),
    "shared": (lambda: with_layers(None, kinds.DummyLayer()), "share another layer's"),
    "no layer": (lambda: with_layers(None, 3), "layer 1 is of type int"),
    "other layer": (lambda: with_layers(filled(MyLayer())), "layer 0 is of type MyLayer; .*unknown"),
    "other cache": (MyCache, "got MyCache"),
    "other cache of transformers": (kinds.MtpCache, "got MtpCache"),
}

NOT_RIGHT = {
    "no layers": (DynamicCache, "no layers"),
    "not run": (lambda: DynamicCache(config=CONFIG), "layer 0 holds nothing yet"),
    "one layer not run": (lambda: with_layers(None, kinds.DynamicLayer()), "layer 1 holds nothing yet"),
    "no tensors": (lambda: changed(values=None), "layer 1 holds nothing yet"),
    "no tokens": (lambda: DynamicCache([[torch.zeros(1, 2, 0, 4)] * 2]), "no tokens"),
    "offloading": (lambda: DynamicCache(config=CONFIG, offloading=True), "offloads its layers"),
    "batch": (lambda: DynamicCache([[torch.zeros(2, 2, 3, 4)] * 2]), r"layer 0 holds 2 sequences; expected 1"),
    "no batch": (lambda: DynamicCache([[torch.zeros(0, 2, 3, 4)] * 2]), "layer 0 holds 0 sequences"),
    "3-D": (lambda: changed(keys=torch.zeros(2, 5, 8)), r"keys of layer 1 are float32 \(2, 5, 8\) on cpu; expected"),
    "meta": (lambda: changed(0, keys=torch.zeros(1, 2, 5, 8, device="meta")), "layer 0 .* on meta; expected data"),
    "values wider": (lambda: changed(0, values=torch.zeros(1, 2, 5, 9)), "values of layer 0 .*layers must be alike"),
    "more heads": (lambda: changed(keys=torch.zeros(1, 3, 5, 8)), "keys of layer 1 .*layers must be alike"),
    "fewer tokens": (lambda: changed(2, values=torch.zeros(1, 2, 4, 8)), "values of layer 2 .*layers must be alike"),
    "mixed dtypes": (lambda: changed(keys=torch.zeros(1, 2, 5, 8).half()), "float16 .* float32 .*alike"),
    "integers": (lambda: DynamicCache([[torch.zeros(1, 2, 3, 4).int()] * 2]), "dtype 'int32' is not supported"),
    "complex": (lambda: DynamicCache([[torch.zeros(1, 2, 3, 4) * 1j] * 2]), "dtype 'complex64' is not supported"),
    "no heads": (lambda: DynamicCache([[torch.zeros(1, 0, 3, 4)] * 2]), "kv_heads"),
}


@pytest.mark.parametrize(("make", "message"), NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_other_kinds_of_caches_are_refused(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        cache_to_blocks(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "message"), NOT_RIGHT.values(), ids=NOT_RIGHT)
def test_caches_that_cannot_be_laid_out_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        cache_to_blocks(make())
    assert "\n" not in str(caught.value)


def test_one_sequence_of_a_batch_can_be_taken_out_as_the_message_says() -> None:
    one, other = random_cache(20, seed=1), random_cache(20, seed=2)
    batch = DynamicCache(
        [
            [torch.cat([a.keys, b.keys]), torch.cat([a.values, b.values])]
            for a, b in zip(one.layers, other.layers, strict=True)
        ]
    )
    with pytest.raises(ValueError, match=r"batch_select_indices\(\[i\]\)"):
        cache_to_blocks(batch)
    taken = copy.deepcopy(batch)
    taken.batch_select_indices([1])
    assert_same(blocks_to_cache(*cache_to_blocks(taken)), other)


@pytest.mark.parametrize("block_tokens", [0, -16, 1.5, None])
def test_bad_block_tokens_are_refused(block_tokens: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="block_tokens"):
        cache_to_blocks(random_cache(), block_tokens)


def test_blocks_that_do_not_fit_their_layout_are_refused() -> None:
    blocks, layout = cache_to_blocks(random_cache())
    for wrong in (blocks[:-1], blocks[:, :1], blocks.view(np.int32)):
        with pytest.raises(ShapeMismatchError, match="needs float32"):
            blocks_to_cache(wrong, layout)
