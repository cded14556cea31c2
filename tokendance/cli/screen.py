"""What commands show: tables, bars, sizes, progress, and JSON for machines."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from tokendance.plots.wording import shown

__all__ = ["bar", "in_time", "print_facts", "print_json", "print_table", "progress", "say"]

# Wide enough for any table: what is piped is for grep, and a cut name would not be found.
_PIPE_WIDTH = 10_000
_BAR_CELLS = 24


def say(line: str) -> None:
    """Print one line."""
    sys.stdout.write(shown(line) + "\n")


def print_json(facts: Mapping[str, Any]) -> None:
    """Print facts as one JSON object; an infinite ratio, which JSON cannot hold, as null."""
    sys.stdout.write(json.dumps(_finite(facts), indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and values, one a line, the values below each other."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        say(f"{name:<{width}}  {value}".rstrip())


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()) -> None:
    """Print a table: lined on a terminal, as Markdown where somebody may paste or grep it.

    Parameters
    ----------
    left : sequence of str
        Headers of columns that hold text; the first one does anyway, the others hold numbers.
    """
    terminal = sys.stdout.isatty()
    console = Console(
        width=None if terminal else _PIPE_WIDTH, markup=False, highlight=False, emoji=False, no_color=not terminal
    )
    table = Table(box=box.SIMPLE_HEAD if terminal else box.MARKDOWN, pad_edge=not terminal)
    for number, header in enumerate(headers):
        text = number == 0 or header in left
        table.add_column(header, justify="left" if text else "right", overflow="fold" if text else "ellipsis")
    for row in rows:
        table.add_row(*map(shown, row))
    with console.capture() as captured:
        console.print(table)
    lines = (line.rstrip() for line in captured.get().splitlines())
    sys.stdout.write("".join(f"{line}\n" for line in lines if line))


def bar(part: float, whole: float, most: float) -> str:
    """Return a bar of a part of a whole, drawn to the scale of the largest whole.

    Examples
    --------
    >>> bar(25, 50, 100)  # doctest: +SKIP
    '██████░░░░░░'
    """
    full, empty = ("█", "░") if _can_print("█░") else ("#", ".")
    if most <= 0 or whole <= 0:
        return ""
    long = max(round(_BAR_CELLS * whole / most), 1)
    filled = min(max(round(_BAR_CELLS * part / most), 1 if part > 0 else 0), long)
    return full * filled + empty * (long - filled)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def in_time(seconds: float) -> str:
    """Return a moment as the wall clock here showed it."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} s"


@contextmanager
def progress(words: str, *, of_bytes: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with bytes and their rate on stderr while the block runs; nothing where that is no terminal.

    Yields a function that takes how much is done, and how much there is.

    Parameters
    ----------
    words : str
    of_bytes : bool
        Whether what is counted are bytes.
    """
    counts: tuple[ProgressColumn, ...] = (MofNCompleteColumn(),)
    if of_bytes:
        counts = (DownloadColumn(binary_units=True), TransferSpeedColumn())
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *counts, TimeRemainingColumn())
    # The terminal is asked itself: rich also takes a word in the environment for one.
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown_bar:
        task = shown_bar.add_task(words, total=None)
        yield lambda done, total: shown_bar.update(task, completed=done, total=total)
