"""What commands show: tables, bars, sizes, progress, and JSON for machines."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tokendance.plots.wording import in_bytes, shown

__all__ = ["bar", "in_time", "print_facts", "print_json", "print_table", "progress", "say", "waiting"]

# Wide enough for any table: what is piped is for grep, and a cut name would not be found.
_PIPE_WIDTH = 10_000
_BAR_CELLS = 24
_LEAST_BAR_CELLS = 5
# As long as a moment; longer names are folded.
_LEAST_CELLS = 25


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


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[str] = (),
    bars: Sequence[tuple[float, float]] = (),
) -> None:
    """Print a table: lined on a terminal, as Markdown where somebody may paste or grep it.

    Parameters
    ----------
    left : sequence of str
        Headers of columns that hold text; the first one does anyway, the others hold numbers.
    bars : sequence of (part, whole)
        What a bar at the end of each row shows, where the last header has no cells in `rows`. A terminal without room
        goes without.
    """
    terminal = sys.stdout.isatty()
    console = Console(
        width=None if terminal else _PIPE_WIDTH, markup=False, highlight=False, emoji=False, no_color=not terminal
    )
    table = Table(box=box.SIMPLE_HEAD if terminal else box.MARKDOWN, pad_edge=not terminal)
    columns = [[header, *(shown(row[at]) for row in rows)] for at, header in enumerate(headers[: len(rows[0])])]
    if bars:
        room = console.width - sum(_width(column) + 3 for column in columns) - 3
        cells, most = min(room, _BAR_CELLS), max(whole for _, whole in bars)
        if cells >= _LEAST_BAR_CELLS:
            columns.append([headers[-1], *(bar(part, whole, most, cells) for part, whole in bars)])
    for header, *column in columns:
        least = min(_width([header, *column]), _LEAST_CELLS)
        text = header in (headers[0], *left)
        title = header.replace(" ", "\n") if terminal else header
        table.add_column(title, justify="left" if text else "right", overflow="fold", min_width=least)
    for row in list(zip(*columns, strict=True))[1:]:
        table.add_row(*row)
    # Names are folded to what the numbers leave; a number is never cut, even if the terminal has to wrap the line.
    needed = Measurement.get(console, console.options.update(width=_PIPE_WIDTH), table).minimum
    console.width = max(console.width, needed)
    with console.capture() as captured:
        console.print(table)
    lines = (line.rstrip() for line in captured.get().splitlines())
    sys.stdout.write("".join(f"{line}\n" for line in lines if line))


def _width(column: Sequence[str]) -> int:
    header, *cells = column
    return max(map(cell_len, (*header.split(), *cells)))


def bar(part: float, whole: float, most: float, cells: int) -> str:
    """Return a bar of a part of a whole, drawn to the scale of the largest whole, which takes all cells.

    Examples
    --------
    >>> bar(25, 50, 100, 24)  # doctest: +SKIP
    '██████░░░░░░'
    """
    full, empty = ("█", "░") if _can_print("█░") else ("#", ".")
    if most <= 0 or whole <= 0:
        return ""
    long = max(round(cells * whole / most), 1)
    filled = min(max(round(cells * part / most), 1 if part > 0 else 0), long)
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


class _Done(ProgressColumn):
    """How much of how much, and how fast; rich's own columns give one in powers of 1,024 and the other of 1,000."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        rate = f", {in_bytes(speed)}/s" if speed else ""
        whole = "" if task.total is None else f" of {in_bytes(task.total)}"
        return Text(f"{in_bytes(task.completed)}{whole}{rate}")


@contextmanager
def progress(words: str, *, of_bytes: bool = True) -> Iterator[Callable[..., None]]:
    """Show a bar with bytes and their rate on stderr while the block runs; nothing where that is no terminal.

    Yields a function that takes how much is done, how much there is, and, if they change, the words beside the bar.

    Parameters
    ----------
    words : str
    of_bytes : bool
        Whether what is counted are bytes.
    """
    with _bar(words, _Done() if of_bytes else MofNCompleteColumn(), TimeRemainingColumn()) as (shown_bar, task):

        def show(done: int, total: int, words: str | None = None) -> None:
            said = None if words is None else shown(words)
            # New words are shown at once: what they tell of may be over before the bar is drawn again.
            shown_bar.update(task, completed=done, total=total, description=said, refresh=words is not None)

        yield show


@contextmanager
def waiting(words: str) -> Iterator[None]:
    """Show that something goes on that cannot be counted, and for how long; nothing where stderr is no terminal."""
    with _bar(words, TimeElapsedColumn()):
        yield


@contextmanager
def _bar(words: str, *columns: ProgressColumn) -> Iterator[tuple[Progress, TaskID]]:
    # The terminal is asked itself: rich also takes a word in the environment for one.
    terminal = sys.stderr.isatty()
    shown_bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not terminal,
    )
    task = shown_bar.add_task(words, total=None)
    # Starting and stopping one that is disabled writes an empty line with rich 13.0.
    with shown_bar if terminal else nullcontext():
        yield shown_bar, task
