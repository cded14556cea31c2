"""``tokendance plot``: a picture of a store."""

from pathlib import Path
from typing import Annotated

import typer

from tokendance.cli.arguments import JsonOption, StoreArgument
from tokendance.cli.failures import CommandError, UsageError
from tokendance.cli.replacing import replaced
from tokendance.cli.screen import print_json, say, waiting
from tokendance.cli.stores import opened
from tokendance.plots.wording import count_of

__all__ = ["plot"]

_SUFFIXES = (".png", ".svg", ".html")

OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", show_default=False, help="A .png, .svg or .html file.")
]


def plot(store: StoreArgument, out: OutOption, as_json: JsonOption = False) -> None:
    """Draw a store.

    Which blocks each agent has of its own, what it takes, and how the store grew.
    """
    if out.suffix not in _SUFFIXES:
        raise UsageError(f"{out} must end in {', '.join(_SUFFIXES)}, which says what to draw")
    try:
        import matplotlib as mpl  # noqa: F401 - whether it is there
    except ModuleNotFoundError as error:
        raise CommandError(f"plotting needs {error.name}; get it with: pip install 'tokendance[plot]'") from error
    from tokendance.plots.gather import gathered
    from tokendance.plots.page import picture

    with waiting("drawing"):
        with opened(store) as storage:
            facts = gathered(storage)
        if not facts.agents:
            raise CommandError(f"{store} has no agents to draw")
        drawn = picture(facts, out.suffix[1:])
    with replaced(out) as file:
        file.write(drawn)
    if as_json:
        print_json({"store": str(store), "file": str(out), "n_agents": len(facts.agents)})
    else:
        say(f"{out}: {count_of(len(facts.agents), 'agent')} of {store}")
