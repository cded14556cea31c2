"""The command ``tokendance``. typer, and whatever a command needs, are imported when they are used."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

if TYPE_CHECKING:
    import typer

INTERRUPTED = 130


def main() -> None:
    """Run the command with the arguments of this process, then exit; an error is one line on stderr."""
    try:
        import rich  # noqa: F401
        import typer
    except ModuleNotFoundError as error:
        _fail(f"the command line needs {error.name}; get it with: pip install 'tokendance[cli]'")
    from tokendance.errors import TokenDanceError

    try:
        status = build_app()(sys.argv[1:] or ["--help"], prog_name="tokendance", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not trip over it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (TokenDanceError, OSError) as error:
        _fail(str(error))
    except Exception as error:
        # Errors of usage come from click, which newer typers carry inside under a private name.
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message(), getattr(error, "exit_code", 2))
    sys.exit(status)


def build_app() -> "typer.Typer":
    """Return the typer application with all commands."""
    import typer

    app = typer.Typer(
        help="Store the KV caches of many agents as one cache and its differences.", pretty_exceptions_enable=False
    )

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

    @app.command()
    def demo(
        store: Annotated[Path, typer.Option(help="Where the store goes and stays.")] = Path("tokendance-demo.td"),
    ) -> None:
        """Let eight agents talk for three rounds, store their caches, and check them from another process."""
        from tokendance.demo.run import run_demo

        raise typer.Exit(run_demo(store))

    return app


def _fail(message: str, status: int = 1) -> NoReturn:
    print("tokendance: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)
