"""Twenty thousand damaged and hostile stores: each is refused in one line, or read right.

Small stores are changed at random: bits, lengths, files swapped for each other or for links and FIFOs, manifests and
metadata that say something else, sealed anew or not. Each is opened, every agent is read, copied and mapped, and it is
verified; a quarter are then changed, too. What is read must be what was registered, or what an independent reader finds
if the manifest was rewritten; anything but a `TokenDanceError` is a find. So is a damaged store in which `verify` finds
nothing. Stores that take more than 30 seconds or 2 GiB are finds as well.

    python -m benchmarks fuzz --stores 20000 --markdown docs/reliability.md
"""

import argparse
import contextlib
import mmap
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.fuzz_stores import Base, make_bases
from benchmarks.fuzz_trial import SECONDS, Outcome, tried
from benchmarks.markers import between

__all__ = ["fuzz", "main"]

_MEMORY = 2 << 30
# A process tries this many: what one leaves behind in it, memory or open files, is met by the next ones.
_STORES_EACH = 250
# Forked: a child must find this package, which is on no path, and should start at once.
_fork = multiprocessing.get_context("fork")


class _Worker:
    """A process that tries some stores, one after another, and says what came of each."""

    def __init__(self, folder: Path, bases: list[Base], seed: int, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)
        self.heard = time.monotonic()
        self.stuck = False
        self.ears, mouth = _fork.Pipe(duplex=False)
        self.process: Any = _fork.Process(target=_work, args=(folder, bases, seed, self.numbers, mouth))
        self.process.start()
        mouth.close()

    def outcome(self) -> Outcome | None:
        """Return the next one, which has come; None at the end."""
        self.heard = time.monotonic()
        with contextlib.suppress(EOFError):
            found: Outcome = self.ears.recv()
            return found
        self.process.join()
        return None

    def ended_early(self) -> Outcome:
        """Return what it means that the process ended before it had tried all."""
        return Outcome("hang" if self.stuck else "crash", "unknown", f"the process ended with {self.process.exitcode}")

    def kill_if_stuck(self) -> None:
        """Kill it if it is where no alarm is heard."""
        if time.monotonic() - self.heard > 2 * SECONDS:
            self.stuck = True
            self.process.kill()


def _work(folder: Path, bases: list[Base], seed: int, numbers: list[int], mouth: Connection) -> None:
    # Address space beside what is taken already: whoever forked this may have mapped much.
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (taken + _MEMORY, taken + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        room = folder / str(number)
        room.mkdir()
        mouth.send(tried(room, bases, f"{seed}:{number}"))
    mouth.close()


def fuzz(
    folder: Path, seed: int, numbers: Sequence[int], n_workers: int, say: Callable[[str], None]
) -> Counter[tuple[str, str]]:
    """Try stores and count what came of them.

    Parameters
    ----------
    folder : Path
        An empty one.
    seed : int
        With a store's number it says what that store is.
    numbers : sequence of int
        Which stores to try.
    say : callable
        Told of each find.

    Returns
    -------
    Counter
        By outcome and kind of change.
    """
    folder.joinpath("whole").mkdir()
    bases = make_bases(folder / "whole")
    waiting = [list(numbers[at : at + _STORES_EACH]) for at in range(0, len(numbers), _STORES_EACH)]
    workers: dict[Connection, _Worker] = {}
    counts: Counter[tuple[str, str]] = Counter()
    while waiting or workers:
        while waiting and len(workers) < n_workers:
            worker = _Worker(folder, bases, seed, waiting.pop(0))
            workers[worker.ears] = worker
        for ears in wait(list(workers), timeout=1):
            worker = workers[ears]  # type: ignore[index]
            outcome = worker.outcome()
            if outcome is None:
                del workers[worker.ears]
                if not worker.numbers:
                    continue
                outcome = worker.ended_early()
                waiting.append(worker.numbers[1:])
            _count(counts, outcome, seed, worker.numbers.pop(0), say)
        for worker in workers.values():
            worker.kill_if_stuck()
    return counts


def _count(
    counts: Counter[tuple[str, str]], outcome: Outcome, seed: int, number: int, say: Callable[[str], None]
) -> None:
    counts[outcome.name, outcome.kind] += 1
    if outcome.name not in ("refused", "right"):
        say(f"{outcome.name}: --seed {seed} --only {number} ({outcome.kind}): {outcome.note}")
    if counts.total() % 1000 == 0:
        say(f"{counts.total()} stores")


def _table(counts: Counter[tuple[str, str]]) -> str:
    names = ("refused", "right", "wrong", "crash", "hang")
    head = f"{'':22}" + "".join(f"{name:>9}" for name in names)
    kinds = sorted({kind for _, kind in counts})
    lines = [head, *(f"{kind:22}" + "".join(f"{counts[name, kind]:9}" for name in names) for kind in kinds)]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Fuzz, print, and return 1 if there was a find."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fuzz", description="Damage stores and use them.")
    parser.add_argument("--stores", type=int, default=20_000, help="how many")
    parser.add_argument("--seed", type=int, help="of all that is random")
    parser.add_argument("--only", metavar="NUMBER", type=int, help="one store, as a find names it")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--dir", metavar="FOLDER", type=Path, help="where temporary files go (default: the system's)")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write what came of it between a file's markers")
    options = parser.parse_args(arguments)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    numbers = range(options.stores) if options.only is None else [options.only]
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="fuzz-") as folder:
        counts = fuzz(Path(folder), seed, numbers, options.workers, _say)
    total = Counter[str]()
    for (name, _), count in counts.items():
        total[name] += count
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    said = (
        f"{_table(counts)}\n\n"
        f"fuzz, seed {seed}: {total.total():,} stores, refused {total['refused']:,}, right {total['right']:,}, "
        f"wrong {total['wrong']}, crashes {total['crash']}, hangs {total['hang']}; {peak} MiB at most"
    )
    print(said)
    if options.markdown is not None:
        document = options.markdown.read_text(encoding="utf-8")
        options.markdown.write_text(between(document, "fuzz", f"```text\n{said}\n```"), encoding="utf-8")
    return int(total["wrong"] + total["crash"] + total["hang"] > 0)
