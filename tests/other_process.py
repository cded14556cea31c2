"""Another Python process, which does what it is told line by line."""

import ast
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

__all__ = ["OtherProcess", "ToldError"]

SECONDS = 120


class ToldError(Exception):
    """What the other process was told to do raised something."""


class OtherProcess:
    """A process that has what `told_process` has: `td`, `np`, and a few functions.

    Parameters
    ----------
    path : str or path
        Known to it as `path`.
    before : sequence of str
        A command that is given the process's own as further arguments.
    """

    def __init__(self, path: Path, before: Sequence[str] = ()) -> None:
        program = Path(__file__).with_name("told_process.py")
        self._child = subprocess.Popen(
            [*before, sys.executable, "-W", "error", program],
            cwd=path.parent,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        # Somebody who waits for ever is a finding, not a reason to wait for ever.
        self._alarm = threading.Timer(SECONDS, self._child.kill)
        self._alarm.daemon = True
        self._alarm.start()
        self(f"path = {os.fspath(path)!r}")

    @property
    def pid(self) -> int:
        return self("os.getpid()")

    def begin(self, line: str) -> None:
        """Tell it to do something, and do not wait."""
        assert "\n" not in line
        assert self._child.stdin is not None
        print(line, file=self._child.stdin, flush=True)

    def answer(self) -> Any:
        """Wait until it did it; return what it is worth, which must be something that `ast.literal_eval` reads."""
        assert self._child.stdout is not None
        text = self._child.stdout.readline()
        assert text, "the other process died"
        found = ast.literal_eval(text)
        if isinstance(found, str) and found.startswith("!"):
            raise ToldError(found[1:])
        return found

    def __call__(self, line: str) -> Any:
        self.begin(line)
        return self.answer()

    def stop(self) -> None:
        """SIGSTOP: it is there, and does nothing."""
        self._child.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._child.send_signal(signal.SIGKILL)
        self._child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._alarm.cancel()
        self.kill()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
