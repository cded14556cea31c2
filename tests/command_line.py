"""The installed command ``tokendance``, run as people run it: in a terminal, or with its output in a pipe."""

import contextlib
import fcntl
import io
import os
import re
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COMMAND = Path(sysconfig.get_path("scripts")) / "tokendance"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# The terminal is what a test says; these would speak to rich, to typer or to numpy's threads behind its back.
_UNSAID = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "_TOKENDANCE_COMPLETE")


class Done(NamedTuple):
    """A command that has ended. In a terminal all it wrote, escapes included, is `out`."""

    status: int
    out: str
    err: str

    @property
    def plain(self) -> str:
        """What was written without escapes, each state of a bar on a line of its own."""
        return _ESCAPES.sub("", self.out).replace("\r\n", "\n").replace("\r", "\n")


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _UNSAID} | {"TERM": "xterm"} | more


def run(*words: object, cwd: Path, before: Sequence[str] = (), **options: Any) -> Done:
    """Run ``tokendance words...`` with pipes; `before` is what stands before the command, as ``env``."""
    command = [*before, str(COMMAND), *map(str, words)]
    options = {"env": environment(), "stdin": subprocess.DEVNULL} | options
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)
    return Done(done.returncode, done.stdout, done.stderr)


def run_here(*words: object, cwd: Path) -> Done:
    """Run the program in this process, which is ten times faster: for what has once been seen of the command itself."""
    from tokendance.cli import main

    handler, arguments = signal.getsignal(signal.SIGINT), sys.argv
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    status: Any = None
    sys.argv = [str(COMMAND), *map(str, words)]
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        status = ended.code or 0
    finally:
        signal.signal(signal.SIGINT, handler)
        sys.argv = arguments
    return Done(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]


def run_in_terminal(
    *words: object, cwd: Path, columns: int = 80, interrupt_when: Callable[[], bool] | None = None
) -> Done:
    """Run ``tokendance words...`` in a terminal of its own; press Ctrl-C once `interrupt_when` says so."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # The shell leads a session without a terminal, so the one that it opens becomes its own, and Ctrl-C reaches it.
    shell = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(theirs), str(COMMAND), *map(str, words)]
    process = subprocess.Popen(shell, cwd=cwd, env=environment(), start_new_session=True)
    os.set_blocking(ours, False)
    written, ended = b"", False
    while not ended:
        ended = process.poll() is not None
        if interrupt_when is not None and interrupt_when():
            os.write(ours, b"\x03")
            interrupt_when = None
        written += _what_is_there(ours)
        if not ended:
            _pause(process)
    os.close(theirs)
    os.close(ours)
    return Done(process.returncode, written.decode(), "")


def _what_is_there(terminal: int) -> bytes:
    found = b""
    while True:
        try:
            found += os.read(terminal, 1 << 16)
        except BlockingIOError:
            return found


def _pause(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.005)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder by name, to see that nothing changed; who last held a lock is no change."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
