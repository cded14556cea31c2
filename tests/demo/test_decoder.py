"""The demo's decoder against loops that anyone can follow, in float64."""

import math

import numpy as np
import pytest

from tokendance.demo.decoder import (
    Decoder,
    DecoderConfig,
    attend,
    byte_tokens,
    cache_to_blocks,
    rotary_tables,
    rotate,
)

SMALL = DecoderConfig(n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, width=24, hidden_width=40)
TEXT = "Bram: Every fryer costs me three stalls.\n"


def slow_norm(row, gain, epsilon):
    scale = 1 / math.sqrt(sum(x * x for x in row) / len(row) + epsilon)
    return np.array([x * scale * g for x, g in zip(row, gain, strict=True)])


def slow_rotate(head, position, base):
    half = len(head) // 2
    turned = np.zeros(len(head))
    for i in range(half):
        angle = position * base ** (-2 * i / len(head))
        turned[i] = head[i] * math.cos(angle) - head[i + half] * math.sin(angle)
        turned[i + half] = head[i + half] * math.cos(angle) + head[i] * math.sin(angle)
    return turned


def slow_attention(queries, keys, values):
    n_heads, n_tokens, head_dim = queries.shape
    group = n_heads // len(keys)
    mixed = np.zeros((n_tokens, n_heads, head_dim))
    for head in range(n_heads):
        for token in range(n_tokens):
            scores = [
                float(queries[head, token] @ keys[head // group, other]) / math.sqrt(head_dim)
                for other in range(token + 1)
            ]
            weights = [math.exp(score - max(scores)) for score in scores]
            for other, weight in enumerate(weights):
                mixed[token, head] += weight / sum(weights) * values[head // group, other]
    return mixed.reshape(n_tokens, -1)


def slow_cache(decoder, tokens):
    c = decoder.config
    hidden = decoder.embedding.astype(np.float64)[tokens]
    cache = np.zeros((c.n_layers, 2, c.n_kv_heads, len(tokens), c.head_dim))
    for index, layer in enumerate(decoder.layers):
        normed = np.array([slow_norm(row, layer.attention_norm, c.norm_epsilon) for row in hidden])
        queries = (normed @ layer.query).reshape(-1, c.n_heads, c.head_dim).swapaxes(0, 1)
        keys = (normed @ layer.key).reshape(-1, c.n_kv_heads, c.head_dim).swapaxes(0, 1)
        turned_queries, turned_keys = (
            np.array([[slow_rotate(row, t, c.rope_base) for t, row in enumerate(head)] for head in heads])
            for heads in (queries, keys)
        )
        cache[index, 0] = turned_keys
        cache[index, 1] = (normed @ layer.value).reshape(-1, c.n_kv_heads, c.head_dim).swapaxes(0, 1)
        hidden = hidden + slow_attention(turned_queries, cache[index, 0], cache[index, 1]) @ layer.attention_out
        normed = np.array([slow_norm(row, layer.feed_norm, c.norm_epsilon) for row in hidden])
        gate = normed @ layer.gate
        hidden = hidden + (gate / (1 + np.exp(-gate)) * (normed @ layer.up)) @ layer.down
    return cache


@pytest.fixture(scope="module")
def decoder():
    return Decoder(SMALL)


def test_cache_is_what_slow_loops_compute(decoder):
    tokens = byte_tokens(TEXT)
    cache = decoder.extend(decoder.empty_cache(), tokens)
    assert cache.dtype == np.float32
    np.testing.assert_allclose(cache, slow_cache(decoder, tokens), rtol=0, atol=2e-5)


def test_tail_on_a_prefix_is_the_whole_prompt(decoder):
    tokens = byte_tokens(TEXT * 9)
    whole = decoder.extend(decoder.empty_cache(), tokens)
    prefix = decoder.extend(decoder.empty_cache(), tokens[:201])
    before = prefix.copy()
    both = decoder.extend(prefix, tokens[201:])
    np.testing.assert_allclose(both, whole, rtol=0, atol=5e-5)
    np.testing.assert_array_equal(both[:, :, :, :201].view(np.uint32), before.view(np.uint32))
    np.testing.assert_array_equal(prefix, before)


def test_prefix_of_a_prompt_longer_than_a_query_chunk(decoder, monkeypatch):
    tokens = byte_tokens(TEXT)
    whole = decoder.extend(decoder.empty_cache(), tokens)
    monkeypatch.setattr("tokendance.demo.decoder.QUERY_CHUNK", 7)
    np.testing.assert_allclose(decoder.extend(decoder.empty_cache(), tokens), whole, rtol=0, atol=1e-5)


def test_a_later_token_changes_nothing_before_it(decoder):
    tokens = byte_tokens(TEXT).copy()
    before = decoder.extend(decoder.empty_cache(), tokens)
    tokens[25] = ord("?")
    after = decoder.extend(decoder.empty_cache(), tokens)
    np.testing.assert_array_equal(after[:, :, :, :25], before[:, :, :, :25])
    assert (after[1:, :, :, 25:] != before[1:, :, :, 25:]).any(axis=(0, 1, 2, 4)).all()


def test_query_heads_read_the_key_head_of_their_group():
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((6, 5, 4), dtype=np.float32)
    keys, values = rng.standard_normal((2, 3, 5, 4), dtype=np.float32)
    np.testing.assert_allclose(attend(queries, keys, values), slow_attention(queries, keys, values), atol=1e-6)
    values[1] = 0
    mixed = attend(queries, keys, values).reshape(5, 6, 4)
    assert not mixed[:, 2:4].any()
    assert mixed[:, [0, 1, 4, 5]].all()


def test_rotary_scores_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((2, 1, 1, 16), dtype=np.float32)

    def score(query_position, key_position):
        tables = [rotary_tables(np.array([p]), 16, 10_000.0) for p in (query_position, key_position)]
        return (rotate(query, *tables[0]) * rotate(key, *tables[1])).sum()

    assert score(9, 4) == pytest.approx(score(905, 900), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_same_seed_same_weights_other_seed_others():
    same = Decoder(SMALL)
    other = Decoder(DecoderConfig(n_layers=3, n_heads=4, head_dim=8, width=24, hidden_width=40, seed=8))
    np.testing.assert_array_equal(Decoder(SMALL).layers[2].key, same.layers[2].key)
    assert (other.layers[2].key != same.layers[2].key).any()


def test_blocks_are_token_major_and_padded_with_zeros(decoder):
    cache = decoder.extend(decoder.empty_cache(), byte_tokens(TEXT))
    n_tokens = cache.shape[3]
    blocks = cache_to_blocks(cache, 16)
    assert blocks.shape == (math.ceil(n_tokens / 16) * SMALL.n_layers * 2, 2, 16, 8)
    assert blocks.flags.c_contiguous
    for token in range(n_tokens):
        for layer in range(SMALL.n_layers):
            for kind in (0, 1):
                block = blocks[(token // 16 * SMALL.n_layers + layer) * 2 + kind]
                np.testing.assert_array_equal(block[:, token % 16], cache[layer, kind, :, token])
    last = blocks[-SMALL.n_layers * 2 :]
    assert n_tokens % 16
    assert not last[:, :, n_tokens % 16 :].any()


def test_growing_appends_blocks(decoder):
    tokens = byte_tokens(TEXT)
    first = decoder.extend(decoder.empty_cache(), tokens[:32])
    grown = decoder.extend(first, tokens[32:])
    np.testing.assert_array_equal(cache_to_blocks(grown, 16)[: 2 * 3 * 2], cache_to_blocks(first, 16))


@pytest.mark.parametrize(
    ("sizes", "message"), [({"n_heads": 6, "n_kv_heads": 4}, "multiple of n_kv_heads"), ({"head_dim": 7}, "even")]
)
def test_sizes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**sizes)
