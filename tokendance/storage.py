"""`TokenDanceStorage`: the rules of master and mirrors, for users."""

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from tokendance import validate
from tokendance.cohort import Cohort, Rule
from tokendance.kernels.loading import loading
from tokendance.reading import ReadableStorage
from tokendance.store.place import Place

if TYPE_CHECKING:
    from tokendance.basing import Base
    from tokendance.sparse_diff import SparseKVDiff

__all__ = ["TokenDanceStorage"]

_storages: "weakref.WeakSet[TokenDanceStorage]" = weakref.WeakSet()
_Step = Callable[[Cohort, Place], Cohort]


class TokenDanceStorage(ReadableStorage):
    """The KV caches of N agents as one master and N-1 block-sparse mirrors.

    In memory when made like this, in a store on disk when made by `tokendance.open`. Arrays go in by copy
    and come out by copy or as private maps: later writes on either side change nothing on the other. It may be
    used from many threads: reads run side by side, changes one after another. A call that raises changes nothing.

    Parameters
    ----------
    diff_threshold : float
        A mirror drops blocks whose difference from the master has an L2 norm up to this; at 0 it drops
        only what is equal in every bit. What was dropped is reported as `SparseKVDiff.max_dropped_norm`.
    ragged : bool
        Let agents have different numbers of blocks.

    Examples
    --------
    >>> import numpy as np, tokendance as td
    >>> s = td.TokenDanceStorage()
    >>> master = np.zeros((8, 4), np.float32)
    >>> s.register_master("planner", master)
    >>> cache = master.copy()
    >>> cache[3] = 1
    >>> s.register_mirror("critic", cache).block_indices.tolist()
    [3]
    >>> bool((s.reconstruct("critic") == cache).all())
    True
    """

    def __init__(self, diff_threshold: float = 1e-4, ragged: bool = False) -> None:
        with loading:
            from tokendance.store.memory import MemoryPlace

        self._set_up(Rule(validate.check_threshold(diff_threshold), bool(ragged)))
        self._place: Place = MemoryPlace()

    def _set_up(self, rule: Rule) -> None:
        ReadableStorage.__init__(self, rule)
        self._news: list[str] = []
        self._lock = threading.RLock()
        _storages.add(self)

    def register_master(self, agent_id: str, kv_blocks: NDArray[Any], *, meta: Mapping[str, Any] | None = None) -> None:
        """Register the master, the agent that is kept whole.

        Under the id of the present master its content is replaced, and every mirror still comes back as it was
        registered. Under another id mirrors are cleared and must be registered again (`rebase` keeps them).

        Parameters
        ----------
        agent_id : str
            1 to 512 UTF-8 bytes.
        kv_blocks : numpy.ndarray
            ``(n_blocks, *block_shape)``; float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, int8, uint8.
        meta : dict, optional
            Anything that JSON holds, returned by `meta`.

        Raises
        ------
        ShapeMismatchError
            It has less than two dimensions, or does not fit the mirrors that stay.
        """
        with loading:
            from tokendance.registering import with_master

        key, blocks, said = validate.check_registration(agent_id, kv_blocks, meta)
        self._change(lambda cohort, place: with_master(cohort, place, self._rule, key, blocks, said))

    def register_mirror(
        self,
        agent_id: str,
        kv_blocks: NDArray[Any],
        *,
        base: "Base | None" = None,
        meta: Mapping[str, Any] | None = None,
    ) -> "SparseKVDiff":
        """Register an agent by the blocks in which it differs from the master. Reads both caches once.

        Parameters
        ----------
        agent_id : str
        kv_blocks : numpy.ndarray
            ``(n_blocks, *block_shape)`` of the master's dtype and block shape, and of its length unless `ragged`.
        base : array of int or "auto", optional
            Which master block each block is compared with, -1 for none; by default the one at its own position.
            ``"auto"`` finds blocks wherever they are in the master, byte for byte, so that a cache that something
            private shifted by whole blocks stores only what is new.
        meta : dict, optional

        Raises
        ------
        NoMasterError
            There is no master yet.
        ShapeMismatchError
            The array does not fit the master.
        ValueError
            The id is the master's.
        """
        with loading:
            from tokendance.mirroring import diff_of
            from tokendance.registering import with_mirror

        self._cohort.needs_master("register_master() must be called before register_mirror()")
        key, blocks, said = validate.check_registration(agent_id, kv_blocks, meta)
        after = self._change(lambda cohort, place: with_mirror(cohort, place, self._rule, key, blocks, said, base))
        return diff_of(after, after.mirrors[key], self.diff_threshold)

    def register_round(
        self,
        caches: Mapping[str, NDArray[Any]],
        *,
        master: str | None = None,
        meta: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "dict[str, SparseKVDiff]":
        """Register many agents in one step, electing a master where there is none.

        Agents that are not among the caches keep their content. The election makes the stored bytes smallest; it
        reads each cache once more and compares prints of blocks (`tokendance.electing.elected` says what that costs).

        Parameters
        ----------
        caches : dict
            Each agent's ``(n_blocks, *block_shape)`` array.
        master : str, optional
            Who is the master; the present one if not given, whose content is replaced if it is among the caches.
        meta : dict, optional
            Each agent's meta.

        Returns
        -------
        dict
            The difference of each agent of the round that is a mirror.
        """
        with loading:
            from tokendance.mirroring import diff_of
            from tokendance.registering import with_round

        blocks = {
            validate.check_agent_id(key): validate.check_blocks(cache, name=f"cache of {key!r}")
            for key, cache in validate.check_caches(caches).items()
        }
        said = {key: validate.check_meta(one) for key, one in (meta or {}).items()}
        if unknown := set(said) - set(blocks):
            raise ValueError(f"meta names {min(unknown)!r}, which is not among the caches")
        chosen = None if master is None else validate.check_agent_id(master)
        after = self._change(lambda cohort, place: with_round(cohort, place, self._rule, blocks, said, chosen))
        threshold = self.diff_threshold
        return {key: diff_of(after, after.mirrors[key], threshold) for key in blocks if key in after.mirrors}

    def collective_reuse_step(self, agent_ids: Iterable[str], shared_blocks: NDArray[Any]) -> dict[str, int]:
        """Append blocks that everyone was handed to the master once, and to each listed agent at its own end.

        An unknown id becomes an agent equal to the extended master. An agent that is not listed keeps its length and
        content, but for the master, which gets the blocks in any case: it is where they are. Costs the new blocks and
        the number of agents; nothing that was there is copied or compared.

        Parameters
        ----------
        agent_ids : iterable of str
        shared_blocks : numpy.ndarray
            ``(n_new, *block_shape)`` of the master's dtype and block shape.

        Returns
        -------
        dict
            How many blocks of its own the master (0) and each listed agent has.
        """
        with loading:
            from tokendance.registering import with_shared_blocks

        self._cohort.needs_master()
        if isinstance(agent_ids, str):
            raise TypeError(f"agent_ids must be a list of ids, got the string {agent_ids!r}")
        keys = [validate.check_agent_id(agent_id) for agent_id in agent_ids]
        blocks = validate.check_blocks(shared_blocks, name="shared_blocks")
        after = self._change(lambda cohort, place: with_shared_blocks(cohort, place, keys, blocks))
        counts = {after.needs_master().agent_id: 0}
        return counts | {key: after.mirrors[key].table.n_own for key in keys if key in after.mirrors}

    def fork(self, src_id: str, new_id: str) -> None:
        """Give an agent a twin under a new id. No block is copied; each goes its own way from then on."""
        with loading:
            from tokendance.registering import with_fork

        key = validate.check_agent_id(new_id)
        self._change(lambda cohort, _place: with_fork(cohort, src_id, key))

    def remove(self, agent_id: str) -> None:
        """Take an agent away. If it is the master, the others elect another first and keep their content."""
        with loading:
            from tokendance.registering import without

        self._change(lambda cohort, place: without(cohort, place, agent_id))

    def rebase(self, master_id: str | None = None) -> None:
        """Make another agent the master, by default the one that leaves the least to store.

        Every agent still reconstructs to the same bytes. Costs one read of the new master, and of what differs.
        """
        with loading:
            from tokendance.registering import with_rebase

        self._change(lambda cohort, place: with_rebase(cohort, place, master_id))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make several changes one: all of them, or, if an exception leaves the block, none.

        Other threads see the state before until the block ends, and wait with changes of their own.
        """
        with self._lock:
            if self._draft is not None:
                raise RuntimeError("transactions do not nest; end the one that is open first")
            self._writable()
            self._drafting_thread = threading.get_ident()
            self._draft = self._committed
            try:
                yield
                # A child forked in here has no draft: what its parent began is its parent's.
                if self._drafting() and (self._draft is not self._committed or self._news):
                    self._publish(self._draft)
            except BaseException:
                self._place.abandon()
                raise
            finally:
                self._draft = self._drafting_thread = None
                self._news = []

    def close(self) -> None:
        """Let go of what a store on disk holds; in memory there is nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _drafting(self) -> bool:
        return self._draft is not None

    def _change(self, step: _Step) -> Cohort:
        with self._lock:
            if self._draft is None:
                with self.transaction():
                    self._draft = after = step(self._committed, self._place)
            else:
                self._draft = after = step(self._draft, self._place)
            return after

    def _writable(self) -> None:
        """Raise if this storage cannot be changed."""

    def _publish(self, cohort: Cohort) -> None:
        """Make a state the committed one, durably where it is on disk."""
        self._committed = cohort


def _after_fork_in_child() -> None:
    # Another thread of the parent may have held a lock, which nobody in the child would ever release.
    for storage in list(_storages):
        storage._lock = threading.RLock()
        storage._draft = storage._drafting_thread = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
