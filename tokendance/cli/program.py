"""The program: its commands, and how it ends. typer, and whatever a command needs, are imported when they are used."""

import io
import os
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

from tokendance.cli.failures import CommandError, line_of
from tokendance.errors import TokenDanceError

if TYPE_CHECKING:
    import typer

__all__ = ["Command", "build_app", "commands", "main"]

INTERRUPTED = 130
_HELP = "Store the KV caches of many agents as one cache and its differences."
_STATUS = "Exit status: 0 all is well, 1 something is wrong, 2 the command line is, 130 interrupted."


class Command(NamedTuple):
    """A command and what people would type."""

    function: Callable[..., None]
    examples: tuple[str, ...]


def main() -> None:
    """Run the command with the arguments of this process, then exit; an error is one line on stderr."""
    _set_up_streams()
    try:
        status = _run()
    except (CommandError, TokenDanceError, OSError, ValueError, MemoryError) as error:
        _end(error)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    _exit(status)


def _exit(status: int | None) -> NoReturn:
    # All is said and done: a Ctrl-C from here on just ends the process, without a traceback out of the interpreter.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def _set_up_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, io.StringIO())
        else:
            # A name that the terminal's encoding lacks is written as escapes: better than no answer.
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _run() -> int | None:
    try:
        import rich  # noqa: F401
        import typer
    except ModuleNotFoundError as error:
        raise CommandError(
            f"the command line needs {error.name}; get it with: pip install 'tokendance[cli]'"
        ) from error
    try:
        status: int | None = build_app()(sys.argv[1:] or ["--help"], prog_name="tokendance", standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort:
        _fail("interrupted", INTERRUPTED)
    except Exception as error:
        # Errors of usage come from click, which newer typers carry inside under a private name.
        if not hasattr(error, "format_message"):
            raise
        _fail(_usage(error), getattr(error, "exit_code", 2))
    if status == INTERRUPTED:  # how newer typers tell of Ctrl-C
        _fail("interrupted", INTERRUPTED)
    return status


def _usage(error: Any) -> str:
    said, context = error.format_message().removesuffix("."), getattr(error, "ctx", None)
    if context is None:
        return str(said)
    return f"{said}{'' if said.endswith('?') else ';'} see {context.command_path} --help"


def _end(error: Exception) -> NoReturn:
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; the interpreter must not trip over it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    _fail(line_of(error), error.status if isinstance(error, CommandError) else 1)


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write("tokendance: " + " ".join(message.split()) + "\n")
    _exit(status)


def commands() -> tuple[Command, ...]:
    """Return all commands, in the order in which people meet them."""
    from tokendance.cli.changing import fork, rebase, rm, tag
    from tokendance.cli.inspecting import diff, info, log
    from tokendance.cli.picture import plot
    from tokendance.cli.restore import restore
    from tokendance.cli.showing import demo
    from tokendance.cli.snapshot import snapshot
    from tokendance.cli.upkeep import gc, verify, warmup

    return (
        Command(demo, ("tokendance demo",)),
        Command(
            snapshot,
            (
                "tokendance snapshot round.td planner=planner.npy critic=critic.npy",
                "tokendance snapshot round.td caches/ --block-tokens 16 --dtype bfloat16 --tag monday",
            ),
        ),
        Command(restore, ("tokendance restore round.td critic -o critic.npy",)),
        Command(info, ("tokendance info round.td",)),
        Command(log, ("tokendance log round.td",)),
        Command(tag, ("tokendance tag round.td monday",)),
        Command(fork, ("tokendance fork round.td critic critic-2",)),
        Command(rm, ("tokendance rm round.td critic-2",)),
        Command(rebase, ("tokendance rebase round.td",)),
        Command(diff, ("tokendance diff round.td planner critic",)),
        Command(plot, ("tokendance plot round.td -o map.png",)),
        Command(verify, ("tokendance verify round.td", "tokendance verify --repair round.td")),
        Command(gc, ("tokendance gc round.td",)),
        Command(warmup, ("tokendance warmup",)),
    )


def build_app() -> "typer.Typer":
    """Return the typer application with all commands."""
    import typer

    app = typer.Typer(help=_HELP, epilog=_STATUS, rich_markup_mode=None, pretty_exceptions_enable=False)

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"tokendance {version('tokendance')}")
            raise typer.Exit

    @app.callback()
    def tokendance(
        _version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        pass

    for command in commands():
        # \b keeps click from filling lines.
        epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in command.examples)
        app.command(epilog=epilog)(command.function)
    return app
