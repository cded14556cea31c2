"""The library said again, slowly: what each kernel and a whole storage must do, in loops that anyone can check.

Nothing here imports tokendance. Numbers are Python floats, blocks are compared as bytes objects.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8")
HANDED_IN = ("plain", "read-only", "unaligned", "memmap")
SAME_BITS = -1.0

Array = NDArray[Any]


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of a name; numpy itself has neither bfloat16 nor float8."""
    return np.dtype(getattr(ml_dtypes, name, name))


def handed_in(rows: Array, how: str, folder: Any = None) -> Array:
    """The same rows of bytes as different callers hand them in; a memmap is a new file in `folder`."""
    if how == "unaligned":
        room = np.empty(rows.nbytes + 65, np.uint8)
        start = -room.ctypes.data % 64 + 1
        moved = room[start : start + rows.nbytes].reshape(rows.shape)
        moved[...] = rows
        return moved
    if how == "memmap" and rows.size:
        path = folder / f"{len(list(folder.iterdir()))}.bin"
        rows.tofile(path)
        return np.memmap(path, np.uint8, "r", shape=rows.shape)
    copy = rows.copy()
    copy.flags.writeable = how == "plain"
    return copy


# The kernels ---------------------------------------------------------------------------------------------------------


def block_norms(left: Array, right: Array, dtype_name: str) -> Array:
    """The L2 norm of each block's difference; -1 where all bits are equal, infinity for what is no number."""
    dtype = dtype_named(dtype_name)
    norms = np.empty(len(left), np.float64)
    for i in range(len(left)):
        one, other = left[i].tobytes(), right[i].tobytes()
        if one == other:
            norms[i] = SAME_BITS
            continue
        deltas = [
            float(x) - float(y) for x, y in zip(np.frombuffer(one, dtype), np.frombuffer(other, dtype), strict=True)
        ]
        # math.hypot scales by the largest, so that it neither over- nor underflows before the result does.
        norms[i] = math.hypot(*deltas) if all(map(math.isfinite, deltas)) else math.inf
    return norms


def blocks_differ(left: Array, right: Array) -> NDArray[np.bool_]:
    """Whether any bit of each block differs."""
    return np.array([left[i].tobytes() != right[i].tobytes() for i in range(len(left))], np.bool_)


def restore_blocks(master: Array, own: Array, sources: NDArray[np.int64], out: Array) -> None:
    """Fill `out`: block `i` of the master for `i`, block `i` of its own for ``-1 - i``."""
    for at, source in enumerate(sources.tolist()):
        out[at] = master[source] if source >= 0 else own[-1 - source]


def round_norms(master: Array, caches: Sequence[Array], dtype_name: str) -> list[Array]:
    """`block_norms` of the master and each cache."""
    return [block_norms(master[: len(cache)], cache, dtype_name) for cache in caches]


def restore_round(master: Array, owns: Sequence[Array], sources: Sequence[Array], outs: Sequence[Array]) -> None:
    """`restore_blocks` for each agent."""
    for own, order, out in zip(owns, sources, outs, strict=True):
        restore_blocks(master, own, order, out)


def restore_layer(master: Array, own: Array, sources: Array, out: Array) -> None:
    """Each block cut into as many strips as `out` has rows, laid behind one another, as far as the rows go."""
    for head, row in enumerate(out):
        strips = [(master[at] if at >= 0 else own[~at]).reshape(len(out), -1)[head] for at in sources]
        row[:] = np.concatenate(strips or [row[:0]])[: len(row)]


# A whole storage -----------------------------------------------------------------------------------------------------


class Mirror:
    """What an agent is: all its blocks, and of each where a storage would have it.

    Attributes
    ----------
    blocks : list of bytes
    refs : list of (int or None)
        Which block of the master each block is; None for one of its own.
    dropped : float
        The largest norm that the threshold dropped.
    """

    def __init__(self, blocks: list[bytes], refs: list[int | None], dropped: float = 0.0) -> None:
        self.blocks, self.refs, self.dropped = blocks, refs, dropped

    def copy(self) -> "Mirror":
        return Mirror(list(self.blocks), list(self.refs), self.dropped)

    @property
    def own(self) -> list[int]:
        """The positions of its own blocks."""
        return [at for at, ref in enumerate(self.refs) if ref is None]


class NaiveStorage:
    """A storage that keeps every agent's cache whole, and works out beside it what need not be kept.

    It checks no input: what is handed in is right. Where agents tie as the next master it takes the first, or
    the one it is told (`heir`), which must be one of those that tie.

    One corner is left open: where a collective step put, at the position of a block that an agent had beyond the
    master's end, the very bits of that block, the block may stay the agent's own or not until it is registered again.
    """

    def __init__(self, diff_threshold: float = 1e-4) -> None:
        self.threshold = diff_threshold
        self.master_id: str | None = None
        self.master: list[bytes] = []
        self.mirrors: dict[str, Mirror] = {}
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.block_shape: tuple[int, ...] = ()

    # What it tells

    @property
    def agents(self) -> list[str]:
        """All agents, the master first."""
        return [] if self.master_id is None else [self.master_id, *self.mirrors]

    def blocks_of(self, agent_id: str) -> list[bytes]:
        return self.master if agent_id == self.master_id else self.mirrors[agent_id].blocks

    def reconstruct(self, agent_id: str) -> Array:
        """The cache of an agent, as a new array."""
        blocks = self.blocks_of(agent_id)
        return np.frombuffer(b"".join(blocks), self.dtype).reshape(len(blocks), *self.block_shape).copy()

    def own_positions(self, agent_id: str) -> list[int]:
        """Where an agent has blocks of its own; the master has none."""
        return [] if agent_id == self.master_id else self.mirrors[agent_id].own

    def total_blocks(self) -> int:
        """The blocks of all agents, as if each were kept whole."""
        return sum(len(self.blocks_of(agent)) for agent in self.agents)

    def stored_blocks(self) -> int:
        """The master's blocks and all own ones (twins that were forked counted twice)."""
        return len(self.master) + sum(len(mirror.own) for mirror in self.mirrors.values())

    def best_masters(self, among: Iterable[str] | None = None) -> list[str]:
        """The agents that, as master, would leave the fewest blocks to store."""
        caches = {agent: self.blocks_of(agent) for agent in (self.agents if among is None else among)}
        return _best(caches)

    def check(self) -> None:
        """What must hold whatever happened: a block that is not an agent's own is the master block it refers to."""
        for agent, mirror in self.mirrors.items():
            assert len(mirror.blocks) == len(mirror.refs)
            for block, ref in zip(mirror.blocks, mirror.refs, strict=True):
                assert ref is None or block == self.master[ref], agent

    # What changes it

    def register_master(self, agent_id: str, cache: Array) -> None:
        """Another id clears the mirrors; the same one keeps each mirror's content."""
        blocks = self._taken(cache)
        if agent_id != self.master_id:
            self.mirrors = {}
        self._become(agent_id, blocks, self.mirrors)

    def register_mirror(self, agent_id: str, cache: Array, base: Any = None) -> Mirror:
        """A block that differs by more than the threshold is the mirror's own, any other is the master's.

        With a `base` of "auto", one that the master has elsewhere, bit for bit, is the master's too.
        """
        self.mirrors[agent_id] = mirror = self._seen(self._taken(cache), base)
        return mirror.copy()

    def register_round(self, caches: Mapping[str, Array], master: str | None = None) -> None:
        """Many at once; the master's own content is replaced in the same step. Agents outside keep theirs."""
        taken = {agent: self._taken(cache) for agent, cache in caches.items()}
        if master is None:
            master = _best(taken)[0] if self.master_id is None else self.master_id
        self.mirrors = {agent: mirror for agent, mirror in self.mirrors.items() if agent not in taken}
        if master not in taken:
            self.rebase(master)
        else:
            if self.master_id not in (None, master) and self.master_id not in taken:
                self.mirrors[self.master_id] = self._twin_of_master()
            self._become(master, taken[master], {a: mirror for a, mirror in self.mirrors.items() if a != master})
        for agent, blocks in taken.items():
            if agent != master:
                self.mirrors[agent] = self._seen(blocks)

    def collective_reuse_step(self, agent_ids: Iterable[str], shared: Array) -> dict[str, int]:
        """The master always gets the shared blocks, each listed agent at its own end; others keep their length."""
        new, end = self._taken(shared), len(self.master)
        self.master = self.master + new
        for agent in dict.fromkeys(agent_ids):
            if agent == self.master_id:
                continue
            if agent not in self.mirrors:
                self.mirrors[agent] = self._twin_of_master()
            else:
                mirror = self.mirrors[agent]
                mirror.blocks.extend(new)
                mirror.refs.extend(range(end, end + len(new)))
        return {agent: len(self.own_positions(agent)) for agent in [self.master_id or "", *agent_ids]}

    def fork(self, src_id: str, new_id: str) -> None:
        """A twin, which goes its own way from then on."""
        self.mirrors[new_id] = self._twin_of_master() if src_id == self.master_id else self.mirrors[src_id].copy()

    def remove(self, agent_id: str, heir: str | None = None) -> None:
        """If it is the master, the others elect another first."""
        if agent_id == self.master_id:
            if not self.mirrors:
                self.master_id, self.master = None, []
                return
            best = self.best_masters(self.mirrors)
            assert heir is None or heir in best
            self.rebase(heir or best[0])
        del self.mirrors[agent_id]

    def rebase(self, master_id: str | None = None) -> None:
        """Another master; every agent keeps its content."""
        master_id = master_id or self.best_masters()[0]
        if master_id == self.master_id:
            return
        mirrors = {self.master_id or "": self._twin_of_master(), **self.mirrors}
        chosen = mirrors.pop(master_id)
        moved = {ref: at for at, ref in enumerate(chosen.refs) if ref is not None}
        self._become(master_id, chosen.blocks, mirrors, moved=moved)

    # Steps of these

    def _taken(self, cache: Array) -> list[bytes]:
        self.dtype, self.block_shape = cache.dtype, cache.shape[1:]
        return [block.tobytes() for block in cache]

    def _twin_of_master(self) -> Mirror:
        return Mirror(list(self.master), list(range(len(self.master))))

    def _seen(self, blocks: list[bytes], base: Any = None) -> Mirror:
        """A cache as a mirror of the master sees it: what the threshold drops is the master's bytes."""
        mirror = Mirror([], [])
        for at, block in enumerate(blocks):
            ref: int | None = at if base is None or isinstance(base, str) else int(base[at])
            norm = math.inf
            if ref is not None and 0 <= ref < len(self.master):
                pair = [np.frombuffer(rows, np.uint8)[None] for rows in (self.master[ref], block)]
                norm = float(block_norms(pair[0], pair[1], self.dtype.name)[0])
            if norm != SAME_BITS if self.threshold == 0 else norm > self.threshold:
                ref, norm = None, 0.0
                if isinstance(base, str) and block in self.master:
                    ref = max(there for there, other in enumerate(self.master) if other == block)
            mirror.blocks.append(block if ref is None else self.master[ref])
            mirror.refs.append(ref)
            mirror.dropped = max(mirror.dropped, norm)
        return mirror

    def _become(
        self, master_id: str, master: list[bytes], mirrors: dict[str, Mirror], moved: dict[int, int] | None = None
    ) -> None:
        """Make `master` the master: each block of a mirror is looked for in it, and is its own where it is not there.

        It is there if the old master's block that the mirror referred to is (`moved` says where, else at the same
        position), or if the same bits are at the block's own position.
        """
        old = self.master
        if moved is None:
            moved = {at: at for at in range(min(len(old), len(master))) if old[at] == master[at]}
        for mirror in mirrors.values():
            for at, block in enumerate(mirror.blocks):
                ref = mirror.refs[at]
                there = None if ref is None else moved.get(ref)
                if there is None and at < len(master) and master[at] == block:
                    there = at
                mirror.refs[at] = there
        self.master_id, self.master, self.mirrors = master_id, list(master), mirrors


def _best(caches: Mapping[str, list[bytes]]) -> list[str]:
    stored: dict[str, int] = {}
    for agent, blocks in caches.items():
        alike = [
            sum(one == same for one, same in zip(other, blocks, strict=False))
            for name, other in caches.items()
            if name != agent
        ]
        stored[agent] = sum(len(other) for other in caches.values()) - sum(alike)
    fewest = min(stored.values())
    return [agent for agent, count in stored.items() if count == fewest]
