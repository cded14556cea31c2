"""The command ``tokendance``: one file for each kind of command, `program` for what holds them together."""

from tokendance.cli.program import build_app, main

__all__ = ["build_app", "main"]
