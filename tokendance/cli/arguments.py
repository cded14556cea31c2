"""Arguments and options that several commands share, and what the shell is told when it asks for names."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

import tokendance as td
from tokendance.cli.failures import UsageError

__all__ = [
    "AgentArgument",
    "IdentityOption",
    "JsonOption",
    "OtherAgentArgument",
    "StoreArgument",
    "generations_of",
    "identity_of",
]


def agents_of(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the agents of the store that the command line names, for completion."""
    try:
        with td.open(_store_in(ctx), mode="r") as storage:
            return [agent for agent in storage.agents if agent.startswith(incomplete)]
    except (ValueError, OSError, td.TokenDanceError):
        return []


def generations_of(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the tags and generations of the store that the command line names, for completion."""
    try:
        with td.open(_store_in(ctx), mode="r") as storage:
            numbers = [str(generation.number) for generation in storage.history()]
            return [name for name in (*storage.tags, *numbers) if name.startswith(incomplete)]
    except (ValueError, OSError, td.TokenDanceError):
        return []


def _store_in(ctx: typer.Context) -> str | Path:
    # Before an option that still lacks its value nothing is parsed; the store is then the first word.
    return ctx.params.get("store") or next(iter(ctx.args), "")


StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", show_default=False, help="The store's folder.")]
AgentArgument = Annotated[
    str, typer.Argument(metavar="AGENT", show_default=False, help="An agent's name.", autocompletion=agents_of)
]
OtherAgentArgument = Annotated[
    str, typer.Argument(metavar="AGENT", show_default=False, help="Another's.", autocompletion=agents_of)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
IdentityOption = Annotated[
    list[str] | None,
    typer.Option(
        "--identity",
        metavar="KEY=VALUE",
        show_default=False,
        help="What the caches belong to, as model=... or layers=28; once for each key. A new store records it; another "
        "store must have been made with exactly this.",
    ),
]


def identity_of(pairs: list[str] | None) -> dict[str, Any] | None:
    """Return the identity that ``KEY=VALUE`` pairs spell; numbers and truths are read as JSON has them.

    Examples
    --------
    >>> identity_of(["model=qwen", "layers=28", "tied=true", "scale=NaN"])
    {'model': 'qwen', 'layers': 28, 'tied': True, 'scale': 'NaN'}
    """
    if not pairs:
        return None
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--identity takes KEY=VALUE, got {pair!r}")
        if key in found:
            raise UsageError(f"--identity names {key!r} twice")
        found[key] = _scalar(value)
    return found


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    # What is not finite is no JSON, and a word then.
    return value if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)) else text
