"""Ten minutes of one writer, three readers, collection, and kills at random moments.

The writer changes a store at random, says in a log what each generation will hold before it commits it, and that it is
committed afterwards. Readers open the newest generation and older ones, compare every byte that they read with the log,
and keep mapped arrays while the store moves on. One of the four is killed by SIGKILL every now and then. Then the
store must hold the last acknowledged generation, or the one that was being committed, with the right bytes; `verify`
must find nothing; and a new process takes the place of the killed one.

    python -m benchmarks soak --minutes 10 --markdown docs/reliability.md
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokendance.kernels.diff  # noqa: F401 - so that each writer need not import it again
from benchmarks.markers import between
from benchmarks.soak_log import Log
from benchmarks.soak_readers import inspect, run_reader
from benchmarks.soak_writer import run_writer

__all__ = ["Tally", "main", "soak"]

READERS = 3
# Forked: a child must find this package, which is on no path, and should start at once.
_fork = multiprocessing.get_context("fork")


@dataclass(slots=True)
class Tally:
    """What happened.

    Attributes
    ----------
    losses : list of str
        What was lost, mixed up or damaged: one line each.
    """

    seconds: float = 0.0
    steps: int = 0
    reads: int = 0
    generations: int = 0
    writers_killed: int = 0
    readers_killed: int = 0
    inspections: int = 0
    losses: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        operations = f"{self.steps + self.reads:,} operations ({self.steps:,} of the writer, {self.reads:,} reads)"
        kills = f"{self.writers_killed + self.readers_killed:,} kills ({self.writers_killed:,} of the writer)"
        return (
            f"{self.seconds / 60:.1f} minutes, {operations}, {self.generations:,} generations, {kills}, "
            f"{self.inspections:,} inspections, losses: {len(self.losses)}"
        )


class _Crew:
    """The processes, each started anew when it was killed; the first is the writer."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self._folder, self._dice = folder, dice
        self.counts = [_fork.RawArray("Q", 1) for _ in range(1 + READERS)]
        self._steps_before = 0
        self.members = [self._start(number) for number in range(1 + READERS)]

    def _start(self, number: int) -> Any:
        run = run_reader if number else run_writer
        seed = self._dice.randrange(2**32)
        child = _fork.Process(target=_told, args=(run, self._folder, seed, self.counts[number]))
        child.start()
        if number == 0:
            self._steps_before = self.counts[0][0]
        return child

    def wait_for_writer(self, seconds: float) -> None:
        """Wait until the writer has made a step: one that is killed while it starts shows little."""
        end = time.monotonic() + seconds
        while self.counts[0][0] == self._steps_before and self.members[0].is_alive() and time.monotonic() < end:
            time.sleep(0.02)

    def kill(self, number: int) -> None:
        self.members[number].kill()
        self.members[number].join()

    def replace(self, number: int) -> None:
        self.members[number] = self._start(number)

    def died(self) -> list[int]:
        return [number for number, member in enumerate(self.members) if not member.is_alive()]


def _told(run: Callable[..., None], folder: Path, seed: int, counts: Any) -> None:
    """Run a process that only ends by being killed; leave a note of what else ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the killer ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        run(folder / "s.td", folder / "log", seed, counts)
    except BaseException:
        (folder / "notes" / f"{os.getpid()}").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def soak(folder: Path, seconds: float, seed: int, say: Callable[[str], None]) -> Tally:
    """Soak a store in a folder."""
    import tokendance as td

    dice, tally = random.Random(seed), Tally()
    for name in ("log", "notes"):
        (folder / name).mkdir()
    td.open(folder / "s.td", mode="w-", diff_threshold=0, ragged=True).close()
    log = Log(folder / "log")
    log.acknowledge(1)
    start = said = time.monotonic()
    crew = _Crew(folder, dice)
    try:
        while time.monotonic() - start < seconds and not tally.losses:
            crew.wait_for_writer(60)
            time.sleep(dice.uniform(0, 1.5))
            _kill_somebody(crew, tally, dice, folder, log)
            tally.steps, tally.reads = crew.counts[0][0], sum(counts[0] for counts in crew.counts[1:])
            tally.seconds, tally.generations = time.monotonic() - start, log.acknowledged()
            if time.monotonic() - said > 30:
                said = time.monotonic()
                say(str(tally))
    finally:
        for number in range(1 + READERS):
            crew.kill(number)
    return tally


def _kill_somebody(crew: _Crew, tally: Tally, dice: random.Random, folder: Path, log: Log) -> None:
    if died := crew.died():
        notes = "\n".join(note.read_text(encoding="utf-8") for note in (folder / "notes").iterdir())
        tally.losses.append(f"{'a reader' if died[0] else 'the writer'} ended by itself:\n{notes}")
        return
    number = 0 if dice.random() < 0.6 else dice.randint(1, READERS)
    crew.kill(number)
    tally.readers_killed += number > 0
    tally.writers_killed += number == 0
    try:
        inspect(folder / "s.td", log, alone=number == 0)
    except Exception:  # noqa: BLE001 - whatever is wrong is what this looks for
        tally.losses.append(f"after a kill of {'a reader' if number else 'the writer'}:\n{traceback.format_exc()}")
        return
    tally.inspections += 1
    crew.replace(number)


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(143)  # an exception, so that the others are killed and the folder is removed


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Soak, print, and return 1 if something was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description="Write, read, collect and kill.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="of all that is random, moments aside")
    parser.add_argument("--dir", metavar="FOLDER", type=Path, help="where temporary files go (default: the system's)")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the last line between a file's markers")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="soak-") as folder:
        tally = soak(Path(folder), options.minutes * 60, seed, _say)
    for loss in tally.losses:
        print(loss)
    last = f"soak, seed {seed}: {tally}"
    print(last)
    if options.markdown is not None:
        document = options.markdown.read_text(encoding="utf-8")
        options.markdown.write_text(between(document, "soak", f"```text\n{last}\n```"), encoding="utf-8")
    return int(bool(tally.losses))
