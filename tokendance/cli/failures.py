"""What went wrong, as one line for a person at a terminal."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokendance.errors import TokenDanceError
from tokendance.plots.wording import shown

__all__ = ["CommandError", "UsageError", "about", "line_of"]


class CommandError(Exception):
    """A command cannot do what it was asked; its message is one line, and the exit status 1."""

    status = 1


class UsageError(CommandError):
    """The command line itself is wrong; the exit status is 2."""

    status = 2


def line_of(error: BaseException) -> str:
    """Return what an error says, without errno and line breaks."""
    if isinstance(error, OSError) and not isinstance(error, TokenDanceError) and error.strerror:
        said = error.strerror
        if error.filename is not None and not isinstance(error.filename, int):
            said = f"{os.fsdecode(error.filename)}: {said}"
    elif isinstance(error, MemoryError):
        said = f"there is not enough memory for this; {error}".rstrip("; ")
    else:
        said = str(error) or type(error).__name__
    return shown(" ".join(said.split()))


@contextmanager
def about(path: Path, outcome: str = "") -> Iterator[None]:
    """Say of which file or store an error of the operating system is; inside a store it may name no path, or half one.

    Parameters
    ----------
    path : Path
    outcome : str
        What became of it, said at the end of the line.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, TokenDanceError) or not error.strerror:
            raise
        said = error.strerror
        if str(path) in said:  # it is a sentence of our own
            raise CommandError(said) from error
        end = f"; {outcome}" if outcome else ""
        raise CommandError(f"{path}: {said}{end}") from error
