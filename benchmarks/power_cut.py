"""Cutting the power under a writer, again and again, and looking for what was acknowledged.

Each cut is one life of a disk: an empty ext4 file system on a loop device, whose image lies on an XFS file system that
copies files by reference. A writer commits step after step and acknowledges each through a pipe. At a random moment
the last acknowledged step is noted and the image is copied, which takes no time. The copy is the disk as a power cut at
that moment would have left it: everything that the system had handed to the disk is in it, everything that was still in
memory is not. The writer is killed; the copy is mounted, which replays the file system's journal; a new process opens
what is there and compares every byte of every agent with what that step must have left, then verifies it and goes on.

What it does not model: a disk that forgets or reorders what it was handed but not told to flush. `tests/test_crash.py`
does, in a model.

Plain zarr and icechunk do the same steps, as far as they have them. The first step of each is synced for them, so that
they start from something durable. zarr has no generations: it writes new arrays, then points to them from the
attributes of their group. No older state is looked for where the newest cannot be read.

It needs Linux, root, loop devices, and about 4 GiB of disk. On Debian or Ubuntu:

    apt-get install xfsprogs e2fsprogs util-linux
    pip install icechunk        # left out of the table if it is not there
    python -m benchmarks power-cut --markdown docs/reliability.md

112 cuts take about 25 minutes.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.bare import has
from benchmarks.markers import between
from benchmarks.power_cut_disk import CuttingRoom, cutting_room, missing
from benchmarks.power_cut_writers import WRITERS
from benchmarks.report import table

__all__ = ["Cut", "as_text", "main"]

CHECK_SECONDS = 300
# Forked, not spawned: a child must find this package, which is on no path. Nothing here has started a thread.
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Cut:
    """What one cut left.

    Attributes
    ----------
    acknowledged : int
        The last step that was acknowledged before the cut.
    found : int or None
        The step that was there afterwards; None if nothing could be read.
    problem : str
        What was wrong with it.
    wrong : bool
        Something was read, and was not what had been written.
    """

    writer: str
    workload: str
    acknowledged: int
    found: int | None
    problem: str = ""
    wrong: bool = False

    @property
    def lost(self) -> int:
        """How many acknowledged steps are not to be had any more."""
        return self.acknowledged if self.found is None else max(self.acknowledged - self.found, 0)


def _write(writer: str, workload: str, folder: Path, pipe: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    WRITERS[writer].write(folder, workload, lambda step: os.write(pipe, b"%d\n" % step) and None)


def _check(writer: str, workload: str, folder: Path, answer: Connection) -> None:
    try:
        answer.send((WRITERS[writer].read(folder, workload), "", False))
    except Exception as error:  # noqa: BLE001 - whatever a damaged store makes of it
        text = f"{type(error).__name__}: {error}".split("\n")[0]
        answer.send((None, text, isinstance(error, AssertionError)))


def _acknowledged(pipe: int) -> int:
    """Return the last step in a pipe, by reading all that is in it; wait for one if there is none."""
    text = os.read(pipe, 1 << 20)
    while not text.endswith(b"\n"):
        text += os.read(pipe, 1 << 20)
    return int(text.split()[-1])


def _life(room: CuttingRoom, writer: str, workload: str, seconds: float) -> int:
    """Let a writer write for some seconds after its first step, then cut; return the last acknowledged step."""
    with room.fresh_disk() as disk:
        ours, theirs = os.pipe()
        child = _fork.Process(target=_write, args=(writer, workload, disk, theirs))
        child.start()
        os.close(theirs)
        try:
            step = _acknowledged(ours)
            os.sync()
            time.sleep(seconds)
            os.set_blocking(ours, False)
            with contextlib.suppress(BlockingIOError):
                step = _acknowledged(ours)
            room.cut()
            assert child.is_alive(), f"{writer} stopped by itself"
        finally:
            child.kill()
            child.join()
            os.close(ours)
    return step


def _look(room: CuttingRoom, writer: str, workload: str, acknowledged: int) -> Cut:
    with room.disk_after_the_cut() as disk:
        ours, theirs = _fork.Pipe(duplex=False)
        child = _fork.Process(target=_check, args=(writer, workload, disk, theirs))
        child.start()
        theirs.close()
        try:
            found, problem, wrong = (None, "no answer", False)
            if ours.poll(CHECK_SECONDS):
                found, problem, wrong = ours.recv()
        except EOFError:
            problem = "the reader died"
        finally:
            child.kill()
            child.join()
            ours.close()
    return Cut(writer, workload, acknowledged, found, problem, wrong)


def _line(cuts: Sequence[Cut]) -> tuple[str, ...]:
    some = [cut for cut in cuts if cut.lost]
    return (
        cuts[0].workload,
        cuts[0].writer,
        str(len(cuts)),
        str(sum(cut.found is not None for cut in cuts)),
        str(sum(cut.found is None and not cut.wrong for cut in cuts)),
        str(sum(cut.wrong for cut in cuts)),
        str(len(some)),
        f"{sum(cut.lost for cut in cuts):,} of {sum(cut.acknowledged for cut in cuts):,}",
    )


def as_text(cuts: Sequence[Cut]) -> str:
    """Return the table, as Markdown, in the order in which writers and workloads were first met."""
    rows: dict[tuple[str, str], list[Cut]] = {}
    for cut in cuts:
        rows.setdefault((cut.workload, cut.writer), []).append(cut)
    header = (
        "workload",
        "writer",
        "cuts",
        "newest state is there and right",
        "cannot be read",
        "reads wrong",
        "cuts that lost something",
        "acknowledged generations lost",
    )
    return "\n".join(table(header, map(_line, rows.values())))


def _about() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("zarr", "icechunk") if has(name))
    kernel = os.uname()
    return f"{time.strftime('%Y-%m-%d', time.gmtime())}, {kernel.sysname} {kernel.release}, {versions}."


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks power-cut", description="Cut the power under writers.")
    parser.add_argument("--cuts", type=int, default=14, metavar="N", help="cuts of each kind (default: 14)")
    parser.add_argument(
        "--between",
        type=float,
        nargs=2,
        default=(2.0, 12.0),
        metavar="SECONDS",
        help="when to cut, after a writer's first step: at random between these (default: 2 12)",
    )
    parser.add_argument("--only", metavar="NAME", help="only writers or workloads of this name")
    parser.add_argument("--dir", metavar="FOLDER", type=Path, help="where temporary files go (default: the system's)")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table between a file's markers")
    return parser.parse_args(arguments)


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(143)  # an exception, so that everything is unmounted


def main(arguments: Sequence[str]) -> int:
    """Cut, print, and return 1 if tokendance lost something."""
    options = _arguments(arguments)
    if os.geteuid() != 0 or missing():
        print(f"this needs root and {', '.join(missing()) or 'nothing else'}; see benchmarks/power_cut.py")
        return 2
    kinds = [
        (name, workload)
        for name, writer in WRITERS.items()
        for workload in writer.workloads
        if has(writer.module) and options.only in (None, name, workload)
    ]
    signal.signal(signal.SIGTERM, _stop)
    cuts: list[Cut] = []
    with cutting_room(options.dir) as room:
        # In turns, so that what else the machine does meets all of them.
        for turn in range(options.cuts):
            for writer, workload in kinds:
                acknowledged = _life(room, writer, workload, random.uniform(*options.between))
                cuts.append(_look(room, writer, workload, acknowledged))
                print(f"turn {turn + 1} of {options.cuts}: {cuts[-1]}", file=sys.stderr, flush=True)
    order = sorted(kinds, key=lambda kind: WRITERS["tokendance"].workloads.index(kind[1]))
    cuts.sort(key=lambda cut: order.index((cut.writer, cut.workload)))
    print(as_text(cuts))
    if options.markdown is not None:
        document = options.markdown.read_text(encoding="utf-8")
        options.markdown.write_text(between(document, "power-cut", f"{as_text(cuts)}\n\n{_about()}"), encoding="utf-8")
    return int(any(cut.writer == "tokendance" and (cut.lost or cut.problem) for cut in cuts))
