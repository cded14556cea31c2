"""``tokendance tag``, ``fork``, ``rm`` and ``rebase``: changes that need no files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

import tokendance as td
from tokendance.cli.arguments import AgentArgument, JsonOption, StoreArgument, agents_of
from tokendance.cli.failures import about
from tokendance.cli.screen import print_json, say

__all__ = ["fork", "rebase", "rm", "tag"]

NameArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The tag; no number.")]
NewArgument = Annotated[str, typer.Argument(metavar="NEW", show_default=False, help="The twin's name.")]
AgentsArgument = Annotated[
    list[str],
    typer.Argument(metavar="AGENT...", show_default=False, help="Who goes.", autocompletion=agents_of),
]
MasterArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[AGENT]",
        show_default=False,
        help="The new master; without it, whoever leaves the least to store.",
        autocompletion=agents_of,
    ),
]


@contextmanager
def changed(path: Path) -> Iterator[td.TokenDanceStore]:
    """Open a store to change it; an error of the disk says which store it is, and that nothing changed."""
    with about(path, "nothing was changed"), td.open(path, mode="r+") as storage:
        yield storage


def tag(store: StoreArgument, name: NameArgument, as_json: JsonOption = False) -> None:
    """Name the newest state of a store, which keeps it from being collected."""
    with changed(store) as storage:
        storage.tag(name)
        _say(storage, f"is tagged {name}", as_json)


def fork(store: StoreArgument, agent: AgentArgument, new: NewArgument, as_json: JsonOption = False) -> None:
    """Give an agent a twin. No block is copied."""
    with changed(store) as storage:
        storage.fork(agent, new)
        _say(storage, f"{new} is a twin of {agent}", as_json)


def rm(store: StoreArgument, agents: AgentsArgument, as_json: JsonOption = False) -> None:
    """Take agents away. Older generations keep them until they are collected."""
    with changed(store) as storage:
        with storage.transaction():
            for agent in dict.fromkeys(agents):
                storage.remove(agent)
        _say(storage, f"without {', '.join(dict.fromkeys(agents))}", as_json)


def rebase(store: StoreArgument, agent: MasterArgument = None, as_json: JsonOption = False) -> None:
    """Make another agent the master. Every agent stays what it is, bit for bit."""
    with changed(store) as storage:
        before = storage.master_id
        storage.rebase(agent)
        verb = "stays" if storage.master_id == before else "is now"
        _say(storage, f"{storage.master_id} {verb} the master", as_json)


def _say(storage: td.TokenDanceStore, what: str, as_json: bool) -> None:
    if as_json:
        facts = {"store": storage.path, "generation": storage.generation, "master": storage.master_id}
        print_json(facts | {"agents": storage.agents, "tags": storage.tags})
    else:
        say(f"{storage.path}: generation {storage.generation}, {what}")
