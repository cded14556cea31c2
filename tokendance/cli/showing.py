"""``tokendance demo``."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]

PlaceOption = Annotated[Path, typer.Option("--store", help="Where the store goes and stays.")]


def demo(store: PlaceOption = Path("tokendance-demo.td")) -> None:
    """Let eight agents talk, store their caches, and check them.

    Takes about a minute. Another process does the checking.
    """
    from tokendance.demo.run import run_demo

    raise typer.Exit(run_demo(store))
