"""A small Llama with random weights, the same in every process."""

from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

DTYPES = ("float32", "bfloat16", "float16")
VOCABULARY = 512


def llama(dtype: str) -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        # Larger than usual: logits far apart, so that decoding wanders over the vocabulary.
        initializer_range=0.3,
    )
    torch.manual_seed(20)
    return LlamaForCausalLM(config).eval().to(getattr(torch, dtype))


@torch.inference_mode()
def read(model: Any, tokens: list[int], cache: DynamicCache) -> int:
    """Add `tokens` to the cache; return the token that follows them."""
    logits = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits
    return int(logits[0, -1].argmax())


def greedy(model: Any, cache: DynamicCache, first: int, n_tokens: int = 16) -> list[int]:
    """Decode `n_tokens` tokens, `first` being the one before them."""
    decoded = [first]
    for _ in range(n_tokens):
        decoded.append(read(model, decoded[-1:], cache))
    return decoded[1:]
