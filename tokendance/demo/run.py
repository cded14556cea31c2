"""One run of the demo, from an empty folder to the last line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import tokendance as td
from tokendance.demo.check import CheckFailedError, check_in_child
from tokendance.demo.decoder import DecoderConfig
from tokendance.demo.disk import disk_usage
from tokendance.demo.report import Measured, print_report
from tokendance.demo.rounds import MADE_BY, N_STEPS, play_rounds

PLAIN_WIDTH = 80
# Made once: default arguments are shared anyway, and the record is frozen.
STANDARD = DecoderConfig()


def run_demo(store: Path, config: DecoderConfig = STANDARD) -> int:
    """Play the rounds, store them, have another process check every byte, and print what was measured.

    Parameters
    ----------
    store : Path
        Where the store goes; an earlier demo's store is replaced.
    config : DecoderConfig
        Sizes of the decoder.

    Returns
    -------
    int
        Exit status: 0 when all agents came back identical, else 1.

    Raises
    ------
    FileExistsError
        If something other than a demo's store is at ``store``; it is left as it is.
    """
    console = _console()
    refuse_what_is_not_ours(store)
    with tempfile.TemporaryDirectory(prefix="tokendance-demo-") as folder:
        dense_folder = Path(folder)
        with _progress(console) as step_done, td.open(store, mode="w", diff_threshold=0.0, ragged=True) as storage:
            rounds = play_rounds(storage, config, dense_folder, step_done)
            stats = storage.stats()
            own_blocks = {agent: mirror.n_diff_blocks for agent, mirror in storage.mirrors.items()}
            measured = Measured(config, rounds, str(storage.master_id), own_blocks, stats, disk_usage(store))
        try:
            check = check_in_child(store, dense_folder)
        except CheckFailedError as error:
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
            return 1
    print_report(console, store, measured, check)
    return 0 if check.identical else 1


def refuse_what_is_not_ours(path: Path) -> None:
    """Raise FileExistsError unless there is nothing at ``path``, or a store in which every agent is a demo's.

    ``mode="w"`` alone would also replace a store that holds somebody's work.
    """
    if not os.path.lexists(path):
        return
    advice = "it stays as it is; choose another place with --store"
    try:
        with td.open(path, mode="r") as storage:
            ours = all(storage.meta(agent).get("made_by") == MADE_BY for agent in storage.agents)
    except (td.TokenDanceError, OSError, ValueError) as error:
        raise FileExistsError(f"{path} exists and cannot be opened as a demo's store ({error}); {advice}") from error
    if not ours:
        raise FileExistsError(f"{path} is a store with agents that no demo made; {advice}")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, no_color=True)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    columns = TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("making the decoder", total=N_STEPS)
        yield lambda words: progress.update(task, advance=1, description=words)
