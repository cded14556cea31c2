"""What a store must hold: agents as tuples of kinds of blocks, and what each operation makes of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

import tokendance as td

__all__ = ["ELECTED", "Model", "cache_of", "operations", "planned"]

SHAPE = (4, 64)  # 1 KiB; four to a page
KINDS = np.random.default_rng(0).integers(0, 256, (6, 1024), np.uint8).view(np.float32).reshape(6, *SHAPE)
ELECTED = "(whoever the storage elected)"
AGENTS, TAGS = "abcdef", ("x", "y")

Cache = tuple[int, ...]
Operation = tuple[Any, ...]
Call = Callable[[td.TokenDanceStore], object]


def cache_of(kinds: Cache) -> np.ndarray:
    """The array that a cache of the model stands for."""
    return KINDS[list(kinds)]


@dataclass(frozen=True)
class Model:
    """The agents and tags of a store.

    Attributes
    ----------
    caches : dict
        The kind of each block of each agent.
    master : str or None
    tags : dict
        The generation that each tag keeps.
    """

    caches: dict[str, Cache] = field(default_factory=dict)
    master: str | None = None
    tags: dict[str, int] = field(default_factory=dict)

    def having(self, *, master: str | None = "", **caches: Cache) -> "Model":
        return replace(self, caches={**self.caches, **caches}, master=self.master if master == "" else master)


# What is drawn ------------------------------------------------------------------------------------------------------

agents = st.sampled_from(AGENTS)
kinds = st.lists(st.integers(0, len(KINDS) - 1), max_size=20)
few_kinds = st.lists(st.integers(0, len(KINDS) - 1), max_size=4)
contents = st.one_of(
    st.tuples(st.just("new"), kinds),
    st.tuples(st.just("edited"), few_kinds),
    st.tuples(st.just("shifted"), few_kinds),
)
operations = st.one_of(
    st.tuples(st.just("master"), agents, contents),
    st.tuples(st.just("mirror"), agents, contents, st.sampled_from([None, "auto"])),
    st.tuples(st.just("round"), st.dictionaries(agents, contents, min_size=1, max_size=3), st.none() | agents),
    st.tuples(st.just("append"), st.lists(agents, max_size=3), kinds),
    st.tuples(st.just("fork"), agents, agents),
    st.tuples(st.just("remove"), agents),
    st.tuples(st.just("rebase"), st.none() | agents),
    st.tuples(st.just("tag"), st.sampled_from(TAGS)),
)


def _resolved(content: tuple[str, list[int]], model: Model) -> Cache:
    """A cache that is new, or the master's with some blocks changed, or with some before it."""
    how, some = content
    master = model.caches.get(model.master or "", ())
    if how == "shifted":
        return (*some, *master)
    if how == "new" or not master:
        return tuple(some)
    edited = list(master)
    for turn, kind in enumerate(some):
        edited[(turn * 7 + kind) % len(master)] = kind
    return tuple(edited)


# What it makes of a model -------------------------------------------------------------------------------------------


def planned(operation: Operation, model: Model, number: int) -> tuple[Model, Call] | None:
    """Return what an operation makes of a model, and the call that does it; None if it is not possible now.

    Parameters
    ----------
    number : int
        The generation that it will make.
    """
    what, *rest = operation
    return _PLANS[what](model, number, *rest)


def _master(model: Model, _number: int, agent: str, content: Any) -> tuple[Model, Call]:
    cache = _resolved(content, model)
    kept = model if agent == model.master else replace(model, caches={})
    return kept.having(master=agent, **{agent: cache}), lambda store: store.register_master(agent, cache_of(cache))


def _mirror(model: Model, _number: int, agent: str, content: Any, base: Any) -> tuple[Model, Call] | None:
    if model.master in (None, agent):
        return None
    cache = _resolved(content, model)
    return model.having(**{agent: cache}), lambda store: store.register_mirror(agent, cache_of(cache), base=base)


def _round(model: Model, _number: int, contents: Any, master: str | None) -> tuple[Model, Call] | None:
    if master is not None and master not in model.caches and master not in contents:
        return None
    caches = {agent: _resolved(content, model) for agent, content in contents.items()}
    arrays = {agent: cache_of(cache) for agent, cache in caches.items()}
    chosen = master or model.master or ELECTED
    return model.having(master=chosen, **caches), lambda store: store.register_round(arrays, master=master)


def _append(model: Model, _number: int, some: list[str], shared: list[int]) -> tuple[Model, Call] | None:
    if model.master is None:
        return None
    master = (*model.caches[model.master], *shared)
    longer = {agent: (*model.caches[agent], *shared) if agent in model.caches else master for agent in some}
    after = model.having(**{**longer, model.master: master})
    return after, lambda store: store.collective_reuse_step(some, cache_of(tuple(shared)))


def _fork(model: Model, _number: int, source: str, new: str) -> tuple[Model, Call] | None:
    if source not in model.caches or new in model.caches:
        return None
    return model.having(**{new: model.caches[source]}), lambda store: store.fork(source, new)


def _remove(model: Model, _number: int, agent: str) -> tuple[Model, Call] | None:
    if agent not in model.caches:
        return None
    left = {key: cache for key, cache in model.caches.items() if key != agent}
    master = model.master if agent != model.master else ELECTED if left else None
    return replace(model, caches=left, master=master), lambda store: store.remove(agent)


def _rebase(model: Model, _number: int, agent: str | None) -> tuple[Model, Call] | None:
    if model.master is None or (agent is not None and agent not in model.caches):
        return None
    return model.having(master=agent or ELECTED), lambda store: store.rebase(agent)


def _tag(model: Model, number: int, name: str) -> tuple[Model, Call]:
    return replace(model, tags={**model.tags, name: number}), lambda store: store.tag(name)


_PLANS = {
    "master": _master,
    "mirror": _mirror,
    "round": _round,
    "append": _append,
    "fork": _fork,
    "remove": _remove,
    "rebase": _rebase,
    "tag": _tag,
}
