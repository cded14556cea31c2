"""``tokendance tag``, ``fork``, ``rm`` and ``rebase``: changes that need no files."""

from typing import Annotated

import typer

import tokendance as td
from tokendance.cli.arguments import AgentArgument, JsonOption, StoreArgument, agents_of
from tokendance.cli.failures import CommandError
from tokendance.cli.screen import print_json, say, waiting
from tokendance.cli.stores import changed

__all__ = ["fork", "rebase", "rm", "tag"]

NameArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The tag; no number.")]
RemoveOption = Annotated[bool, typer.Option("--remove", help="Take the name away instead.")]
NewArgument = Annotated[str, typer.Argument(metavar="NEW", show_default=False, help="The twin's name.")]
AgentsArgument = Annotated[
    list[str],
    typer.Argument(metavar="AGENT", show_default=False, help="Who goes; one or more.", autocompletion=agents_of),
]
MasterArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="AGENT",
        show_default=False,
        help="The new master; without it, whoever leaves the least to store.",
        autocompletion=agents_of,
    ),
]


def tag(store: StoreArgument, name: NameArgument, remove: RemoveOption = False, as_json: JsonOption = False) -> None:
    """Name the newest state of a store.

    A name keeps the state from being collected, and restore takes it as --at. A name that is there already moves.
    """
    with changed(store) as storage:
        if remove:
            storage.untag(name)
        else:
            storage.tag(name)
        _say(storage, f"has no tag {name} any more" if remove else f"is tagged {name}", as_json)


def fork(store: StoreArgument, agent: AgentArgument, new: NewArgument, as_json: JsonOption = False) -> None:
    """Give an agent a twin. No block is copied."""
    with changed(store) as storage:
        if new in storage.agents:
            raise CommandError(f"{new!r} is there already; take it away with tokendance rm, or choose another name")
        storage.fork(agent, new)
        _say(storage, f"{new} is a twin of {agent}", as_json)


def rm(store: StoreArgument, agents: AgentsArgument, as_json: JsonOption = False) -> None:
    """Take agents away. Older generations keep them until they are collected."""
    with changed(store) as storage:
        for agent in agents:
            storage.meta(agent)  # who is unknown is said before anybody is gone
        with storage.transaction():
            for agent in dict.fromkeys(agents):
                storage.remove(agent)
        _say(storage, f"without {', '.join(dict.fromkeys(agents))}", as_json)


def rebase(store: StoreArgument, agent: MasterArgument = None, as_json: JsonOption = False) -> None:
    """Make another agent the master. Every agent stays what it is, bit for bit."""
    with changed(store) as storage:
        before = storage.master_id
        with waiting("rebasing"):
            storage.rebase(agent)
        verb = "stays" if storage.master_id == before else "is now"
        _say(storage, f"{storage.master_id} {verb} the master", as_json)


def _say(storage: td.TokenDanceStore, what: str, as_json: bool) -> None:
    if as_json:
        facts = {"store": storage.path, "generation": storage.generation, "master": storage.master_id}
        print_json(facts | {"agents": storage.agents, "tags": storage.tags})
    else:
        say(f"{storage.path}: generation {storage.generation}, {what}")
