"""The writer of the soak: random changes, each announced before and acknowledged after."""

import random
from collections.abc import Callable, MutableSequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tokendance as td
from benchmarks.soak_log import Log, print_of

__all__ = ["SoakWriter", "run_writer"]

Cache = NDArray[np.float32]
Change = Callable[[td.TokenDanceStorage], object]

BLOCK = (8, 128)  # a page, so that mirrors are mapped block by block
AGENTS, TAGS = "abcdefgh", ("one", "two", "three")
LONGEST = 320  # blocks; then everybody begins anew


class GaveUpError(Exception):
    """Leaves a transaction."""


class SoakWriter:
    """A store, and beside it every agent's cache as it must be.

    Parameters
    ----------
    store : TokenDanceStore
        Open for writing.
    log : Log
    dice : random.Random
    """

    def __init__(self, store: td.TokenDanceStore, log: Log, dice: random.Random) -> None:
        self.store, self.log, self.dice = store, log, dice
        self.caches: dict[str, Cache] = {agent: store.reconstruct(agent) for agent in store.agents}
        self.master = store.master_id
        self.prints = {agent: print_of(cache) for agent, cache in self.caches.items()}

    def step(self) -> None:
        """Make one random change, or one of the things that change nothing."""
        chance = self.dice.random()
        if self.master is None or max(map(len, self.caches.values())) > LONGEST:
            self.commit(self.begin())
        elif chance < 0.12:
            self.store.gc(keep_last=self.dice.randint(1, 4))
        elif chance < 0.16:
            self.give_up()
        elif chance < 0.26:
            self.tag()
        elif chance < 0.29 and len(self.caches) > 1:
            self.commit([self.remove_master()])
        else:
            self.commit([self.change() for _ in range(self.dice.choice((1, 1, 1, 2, 3)))])

    def commit(self, changes: list[Change]) -> None:
        """Announce, commit and acknowledge changes whose outcome is in `caches` already."""
        self.prints = {agent: print_of(cache) for agent, cache in self.caches.items()}
        self.log.announce(self.store.generation + 1, self.prints, self.store.tags)
        if len(changes) == 1:
            changes[0](self.store)
        else:
            with self.store.transaction():
                for change in changes:
                    change(self.store)
        self.log.acknowledge(self.store.generation)
        self.master = self.store.master_id

    def tag(self) -> None:
        """Tag the state that there is, or take a tag away; both are generations of their own."""
        name, number = self.dice.choice(TAGS), self.store.generation + 1
        if name in self.store.tags and self.dice.random() < 0.5:
            self.log.announce(number, self.prints, {k: v for k, v in self.store.tags.items() if k != name})
            self.store.untag(name)
        else:
            self.log.announce(number, self.prints, {**self.store.tags, name: number})
            self.store.tag(name)
        self.log.acknowledge(number)

    def give_up(self) -> None:
        """Leave a transaction by an exception; it must leave nothing."""
        caches, master, generation = dict(self.caches), self.master, self.store.generation
        try:
            with self.store.transaction():
                self.change()(self.store)
                raise GaveUpError
        except GaveUpError:
            self.caches, self.master = caches, master
        assert self.store.generation == generation, "a transaction that was given up made a generation"
        assert set(self.store.agents) == set(caches), "a transaction that was given up left an agent"

    # Changes: each changes `caches`, and returns what makes the same change in the store. ----------------------------

    def change(self) -> Change:
        """Choose one that is possible."""
        kinds = [self.mirror, self.mirror, self.append, self.append, self.fork, self.remove, self.rebase, self.replace]
        return self.dice.choice(kinds)()

    def begin(self) -> list[Change]:
        """Everybody begins anew, in a round."""
        before, chosen = self.caches, self.master or "a"
        master = self.new_blocks(self.dice.randint(16, 64))
        caches = self.caches = {agent: self.near(master) for agent in {chosen, *self.dice.sample(AGENTS, 3)}}
        gone = [_removal(agent) for agent in before if agent not in caches]
        return [*gone, lambda store: store.register_round(caches, master=chosen)]

    def remove_master(self) -> Change:
        """Let the others elect another; only the store knows whom."""
        agent = self.master or ""
        del self.caches[agent]
        return _removal(agent)

    def mirror(self) -> Change:
        """Register an agent that may be there already."""
        agent = self.dice.choice([one for one in AGENTS if one != self.master])
        cache = self.caches[agent] = self.near(self.caches[self.master or ""])
        base = self.dice.choice((None, "auto"))
        return lambda store: store.register_mirror(agent, cache, base=base)

    def append(self) -> Change:
        """Hand new blocks to some."""
        agents = self.dice.sample(sorted(self.caches), self.dice.randint(1, len(self.caches)))
        shared = self.new_blocks(self.dice.randint(1, 12))
        for agent in {*agents, self.master or ""}:
            self.caches[agent] = np.concatenate((self.caches[agent], shared))
        return lambda store: store.collective_reuse_step(agents, shared)

    def fork(self) -> Change:
        """Fork somebody."""
        free = [agent for agent in AGENTS if agent not in self.caches]
        if not free:
            return self.mirror()
        source, made = self.dice.choice(sorted(self.caches)), self.dice.choice(free)
        self.caches[made] = self.caches[source]
        return lambda store: store.fork(source, made)

    def remove(self) -> Change:
        """Remove a mirror."""
        gone = [agent for agent in self.caches if agent != self.master]
        if not gone:
            return self.fork()
        agent = self.dice.choice(gone)
        del self.caches[agent]
        return _removal(agent)

    def rebase(self) -> Change:
        """Make somebody the master."""
        agent = self.master = self.dice.choice(sorted(self.caches))
        return lambda store: store.rebase(agent)

    def replace(self) -> Change:
        """Give the master another content."""
        agent = self.master or ""
        cache = self.caches[agent] = self.near(self.caches[agent])
        return lambda store: store.register_master(agent, cache)

    def new_blocks(self, n: int) -> Cache:
        """Return blocks that nobody has."""
        return np.frombuffer(self.dice.randbytes(n * 4096), np.float32).reshape(n, *BLOCK)

    def near(self, cache: Cache) -> Cache:
        """Return a cache with some other blocks, perhaps shorter."""
        near = cache[: self.dice.randint(max(len(cache) - 4, 1), len(cache))].copy()
        at = self.dice.sample(range(len(near)), self.dice.randint(0, min(len(near), 8)))
        near[at] = self.new_blocks(len(at))
        return near


def _removal(agent: str) -> Change:
    return lambda store: store.remove(agent)


def run_writer(path: Path, log_folder: Path, seed: int, counts: MutableSequence[int]) -> None:
    """Write for ever; `counts[0]` is the number of steps."""
    from tokendance.store import layout

    # Chunks of 64 KiB, so that caches of a few hundred blocks have many, and appends go in place.
    layout.CHUNK_BYTES, layout.SMALL_CHUNK_BYTES = 64 << 10, 16 << 10
    log = Log(log_folder)
    with td.open(path, mode="a", diff_threshold=0, ragged=True) as store:
        log.acknowledge(store.generation)
        writer = SoakWriter(store, log, random.Random(seed))
        while True:
            writer.step()
            counts[0] += 1
