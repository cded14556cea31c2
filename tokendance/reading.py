"""What a storage tells: agents, caches, ratios. `tokendance.storage` is the part that changes it."""

import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from numpy.typing import NDArray

from tokendance import validate
from tokendance.cohort import EMPTY, Cohort, Rule
from tokendance.dtypes import dtype_named
from tokendance.kernels.loading import loading
from tokendance.restoring import reconstructed, reconstructed_round
from tokendance.store.mapping import read_only

if TYPE_CHECKING:
    from tokendance.sparse_diff import SparseKVDiff

__all__ = ["ReadableStorage"]


class ReadableStorage:
    """The reading half of `tokendance.TokenDanceStorage`; any number of threads may be in it.

    Parameters
    ----------
    rule : Rule
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._committed: Cohort = EMPTY
        self._draft: Cohort | None = None
        self._drafting_thread: int | None = None
        self._identity: Mapping[str, Any] | None = None

    @property
    def diff_threshold(self) -> float:
        """The threshold that it was made with."""
        return self._rule.threshold

    @property
    def ragged(self) -> bool:
        """Whether agents may have different numbers of blocks."""
        return self._rule.ragged

    @property
    def _cohort(self) -> Cohort:
        draft = self._draft
        return draft if draft is not None and self._drafting_thread == threading.get_ident() else self._committed

    @property
    def master_id(self) -> str | None:
        """The master's id, None before there is one."""
        master = self._cohort.master
        return None if master is None else master.agent_id

    @property
    def master_cache(self) -> dict[str, NDArray[Any]]:
        """The master's blocks under its id, ``(n_blocks, *block_shape)``, read-only and not copied."""
        master = self._cohort.master
        if master is None:
            return {}
        rows = read_only(master.rows.view())
        shape = (master.rows.n_rows, *master.block_type.block_shape)
        return {master.agent_id: rows.reshape(-1).view(dtype_named(master.block_type.dtype_name)).reshape(shape)}

    @property
    def mirrors(self) -> "dict[str, SparseKVDiff]":
        """Every mirror's difference, by agent id."""
        with loading:
            from tokendance.mirroring import diff_of

        cohort = self._cohort
        return {key: diff_of(cohort, mirror, self.diff_threshold) for key, mirror in cohort.mirrors.items()}

    @property
    def agents(self) -> list[str]:
        """All agent ids, the master's first."""
        return list(self._cohort.agents())

    def meta(self, agent_id: str) -> dict[str, Any]:
        """Return a copy of what was said of an agent when it was registered."""
        return validate.check_meta(self._cohort.meta(agent_id))

    def reconstruct(
        self, agent_id: str, *, out: NDArray[Any] | None = None, copy: bool = True, blocks: object = None
    ) -> NDArray[Any]:
        """Return an agent's cache, bit for bit as it was registered but for blocks that the threshold dropped.

        Parameters
        ----------
        agent_id : str
        out : numpy.ndarray, optional
            Filled and returned; must have exactly the result's shape and dtype, in C order.
        copy : bool
            False for a private array that shares its unchanged pages with the store: made in milliseconds whatever
            its size, writable, and never seen by anyone else. Its checksums are not checked.
        blocks : slice or array of int, optional
            Only these blocks, in this order; only what they need is read and checked.

        Returns
        -------
        numpy.ndarray
            ``(n_blocks, *block_shape)``, C order, starting on a 64-byte boundary.

        Raises
        ------
        NoMasterError, UnknownAgentError
            There is no such agent.
        ShapeMismatchError
            `out` does not fit.
        StoreCorruptError
            A file is missing, cut short, or does not match its checksum.
        """
        return reconstructed(self._cohort, agent_id, out, copy, blocks)

    def reconstruct_many(self, agent_ids: Iterable[str] | None = None, *, copy: bool = True) -> dict[str, NDArray[Any]]:
        """Return the caches of many agents, all of one state, reading the master from memory once.

        Parameters
        ----------
        agent_ids : iterable of str, optional
            All agents if not given.
        copy : bool
            As for `reconstruct`.

        Returns
        -------
        dict
            Each agent's cache.
        """
        cohort = self._cohort
        chosen = list(dict.fromkeys(cohort.agents() if agent_ids is None else agent_ids))
        return dict(zip(chosen, reconstructed_round(cohort, chosen, copy), strict=True))

    def compression_ratio(self) -> float:
        """Return the blocks of all agents over the blocks that are stored: at most the number of agents."""
        with loading:
            from tokendance.accounting import compression_ratio

        return compression_ratio(self._cohort)

    def stats(self) -> dict[str, Any]:
        """Return what is stored.

        Returns
        -------
        dict
            ``master_id``, ``master_blocks``, ``n_mirrors``, ``diff_blocks_total``, ``compression_ratio`` (blocks),
            ``diff_threshold``; in bytes for the cohort ``logical_bytes`` (as dense caches), ``stored_bytes`` (with
            positions and metadata) and ``byte_ratio``, which cannot exceed the number of agents; and under ``mirrors``
            the same for each mirror, whose ratio can.
        """
        with loading:
            from tokendance.accounting import statistics

        return statistics(self._cohort, self.diff_threshold, self._extra_bytes())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all agents to a store on disk, in place of the store that is there, if one is.

        The state that is shown now, with the identity if there is one; older generations and tags stay behind.

        Raises
        ------
        FileExistsError
            Something else is at `path`; it is not touched.
        """
        with loading:
            from tokendance.opening import save

        save(self._cohort, self._rule, os.fspath(path), self._identity)

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: a copy would close the files of this one."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled; fork() an agent, or save() it and open that"
        )

    def __repr__(self) -> str:
        master = self._cohort.master
        return (
            f"{type(self).__name__}(master={self.master_id!r}, master_blocks={master.rows.n_rows if master else 0}, "
            f"mirrors={len(self._cohort.mirrors)}, "
            f"diff_blocks={sum(mirror.table.n_own for mirror in self._cohort.mirrors.values())}, "
            f"compression={self.compression_ratio():.2f}x, threshold={self.diff_threshold:.0e})"
        )

    def _extra_bytes(self) -> int:
        """Return what is stored beside blocks: nothing in memory."""
        return 0
