"""The state of a storage: one master, its mirrors, and nothing else. Never changed, only replaced."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokendance.block_table import BlockTable
from tokendance.errors import NoMasterError, UnknownAgentError
from tokendance.store.place import BlockType, Own, Rows

__all__ = ["EMPTY", "Cohort", "Master", "Mirror", "Rule"]


class Rule(NamedTuple):
    """What a storage was made with: its threshold, and whether agents may differ in length."""

    threshold: float
    ragged: bool


@dataclass(frozen=True, slots=True, eq=False)
class Master:
    """The agent that is kept whole."""

    agent_id: str
    rows: Rows
    block_type: BlockType
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Mirror:
    """An agent of which only its own blocks are kept.

    Attributes
    ----------
    table : BlockTable
    dropped : float
        The largest norm that the threshold dropped when it was registered.
    meta : dict
    """

    table: BlockTable
    dropped: float = 0.0
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """All agents of a storage at one moment."""

    master: Master | None = None
    mirrors: Mapping[str, Mirror] = field(default_factory=dict)

    def needs_master(self, message: str = "No master registered") -> Master:
        """Return the master.

        Raises
        ------
        NoMasterError
            There is none.
        """
        if self.master is None:
            raise NoMasterError(f"{message}; call register_master(agent_id, kv_blocks) first")
        return self.master

    def n_blocks(self, agent_id: str) -> int:
        """Return an agent's length."""
        master = self.needs_master()
        return master.rows.n_rows if agent_id == master.agent_id else self.mirror(agent_id).table.n_blocks

    def mirror(self, agent_id: str) -> Mirror:
        """Return a mirror.

        Raises
        ------
        UnknownAgentError
            No mirror has this id.
        """
        try:
            return self.mirrors[agent_id]
        except KeyError:
            raise UnknownAgentError(_unknown(agent_id, list(self.agents()))) from None

    def agents(self) -> Iterator[str]:
        """Yield all ids, the master's first."""
        if self.master is not None:
            yield self.master.agent_id
        yield from self.mirrors

    def meta(self, agent_id: str) -> Mapping[str, Any]:
        """Return what was said of an agent."""
        if self.master is not None and agent_id == self.master.agent_id:
            return self.master.meta
        return self.mirror(agent_id).meta

    def sources(self, agent_id: str) -> tuple[NDArray[np.int64], Own | None]:
        """Return where each block of an agent is, and its own blocks."""
        master = self.needs_master()
        table = None if agent_id == master.agent_id else self.mirror(agent_id).table
        if table is None or table.n_own < table.n_blocks:  # who has every block of its own outlives the master's files
            master.rows.ensure()
        if table is None:
            return np.arange(master.rows.n_rows), None
        return table.sources(master.rows.n_rows), table.own


EMPTY = Cohort()


def _unknown(agent_id: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(str(agent_id), known, 3)
    if near:
        return f"Unknown agent_id: {agent_id}; near to it are {', '.join(near)}"
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f"Unknown agent_id: {agent_id}; there are {shown or 'none'}"
