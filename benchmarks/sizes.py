"""How large everything is. The defaults are what the published tables are made with; tests run tiny ones."""

from dataclasses import dataclass, field

__all__ = ["ModelShape", "Sizes"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A cache as a model makes it: token-major blocks ``(kv_heads, block_tokens, head_dim)`` of bfloat16.

    The defaults are Qwen2.5-7B.
    """

    tokens: int
    layers: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    block_tokens: int = 16

    @property
    def blocks_per_token_block(self) -> int:
        """Keys and values of every layer."""
        return self.layers * 2

    @property
    def n_blocks(self) -> int:
        """How many blocks a cache has."""
        return self.tokens // self.block_tokens * self.blocks_per_token_block

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """The shape of a block."""
        return (self.kv_heads, self.block_tokens, self.head_dim)

    @property
    def cache_bytes(self) -> int:
        """How long a cache is."""
        return self.n_blocks * self.kv_heads * self.block_tokens * self.head_dim * 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of everything that is measured.

    Attributes
    ----------
    repeats : int
        How often each of two things is timed.
    quick_repeats : int
        The same for what takes less than a tenth of a second.
    append_warm_up : int
        Appends that are not counted: from the 17th commit on, each also removes the oldest generation.
    """

    cache_bytes: int = 256 * _MIB
    block_bytes: int = 32 << 10
    differing: float = 0.06
    repeats: int = 7
    quick_repeats: int = 21
    round_agents: int = 8
    mapped_agents: int = 32
    many_agents: int = 1000
    few_agents: int = 10
    few_bytes: int = 16 * _MIB
    append_blocks: int = 8
    append_warm_up: int = 17
    small_mirrors: int = 500
    small_own_blocks: int = 16
    small_block_bytes: int = 4 << 10
    small_cache_blocks: int = 256
    first_call_bytes: int = 4 * _MIB
    first_call_repeats: int = 3
    peer_shape: ModelShape = field(default_factory=lambda: ModelShape(4096))
    scale_shape: ModelShape = field(default_factory=lambda: ModelShape(32768))
    scale_agents: int = 32

    @property
    def n_blocks(self) -> int:
        """How many blocks a cache has."""
        return self.cache_bytes // self.block_bytes
