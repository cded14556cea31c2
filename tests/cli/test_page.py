"""The page on the command line tells of every command, and of every option that not all of them have."""

import re
from pathlib import Path

import pytest
import typer
from command_line import run_here

from tokendance.cli import build_app

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]


def section(command: str) -> str:
    return PAGE.partition(f"\n## {command}\n")[2].partition("\n## ")[0]


def test_the_page_has_a_section_for_each_command_and_no_other():
    assert re.findall(r"^## (\w+)$", PAGE, re.MULTILINE) != []
    assert sorted(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_section_tells_of_the_options_of_its_command(command):
    options = {name for one in COMMANDS[command].params for name in one.opts if name.startswith("--")}
    assert options
    everywhere = {"--help", "--json", "--identity"}
    assert [name for name in options - everywhere if name not in section(command)] == []


def test_each_command_shows_an_example(tmp_path):
    for command in COMMANDS:
        done = run_here(command, "--help", cwd=tmp_path)
        assert f"tokendance {command}" in done.out.partition("Example:")[2]
