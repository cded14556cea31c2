"""What the documents show runs, what they name is there, and so with the examples in docstrings."""

import doctest
import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import pkgutil
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PAGES = sorted([*DOCUMENTS, *ROOT.glob("C*.md")])
PACKAGES = ("tokendance", "tokendance.store", "tokendance.kernels")
# Read only with the extras [cli], [plot] and [hf].
OPTIONAL = {"matplotlib", "rich", "safetensors", "torch", "transformers", "typer"}


def name_of(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)


# Code blocks --------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block. What follows the language, as in ```python torch, are the modules it needs beyond the base."""

    language: str
    needs: tuple[str, ...]
    line: int
    code: str


def blocks_in(text: str) -> Iterator[Block]:
    """Yield the blocks of a page; a comment such as <!-- needs: torch typer --> speaks for all of them."""
    said = re.search(r"^<!-- needs: ([\w ]+) -->$", text, re.MULTILINE)
    needs = tuple(said[1].split()) if said else ()
    for found in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield Block(found[1], (*needs, *found[2].split()), text[: found.start()].count("\n") + 2, found[3])


def runnable_blocks(page: Path) -> list[Block]:
    """Python, and, where the page says <!-- commands run -->, what the shell is told between."""
    text = page.read_text(encoding="utf-8")
    languages = {"python", "bash"} if "\n<!-- commands run -->\n" in text else {"python"}
    return [block for block in blocks_in(text) if block.language in languages]


def missing(block: Block) -> list[str]:
    return [module for module in block.needs if importlib.util.find_spec(module) is None]


def python_of(block: Block) -> list[str]:
    """The lines of a block as Python. Of the shell, what tokendance is told runs; installing is for people."""
    if block.language == "python":
        return block.code.splitlines()
    told = (line.removeprefix("tokendance ") for line in block.code.splitlines())
    tokendance = "__import__('subprocess').run([__import__('sys').executable, '-m', 'tokendance', *{}], check=True)"
    return [
        tokendance.format(shlex.split(words, comments=True)) if words != line else ""
        for words, line in zip(told, block.code.splitlines(), strict=True)
    ]


def program_of(blocks: list[Block]) -> str:
    """One program of a file's blocks, each on the lines it has in the file, so that errors point there.

    Its name is not __main__: a block that is a whole script is defined, not run.
    """
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - 1 - len(lines)) + python_of(block)
    return "\n".join(lines) + "\n"


RUN = """
import pathlib, sys
exec(compile(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2], "exec"), {"__name__": "page"})
"""


def run_blocks(page: Path, blocks: list[Block], folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(program_of(blocks), encoding="utf-8")
    # No warning is let through, but those of torch and transformers about themselves.
    strict = [] if any("torch" in block.needs for block in blocks) else ["-W", "error"]
    command = [sys.executable, *strict, "-c", RUN, str(program), name_of(page)]
    (folder / "cwd").mkdir()
    return subprocess.run(command, cwd=folder / "cwd", capture_output=True, text=True)


WITH_PYTHON = [page for page in DOCUMENTS if any(not block.needs for block in runnable_blocks(page))]
NEEDING_MORE = [page for page in DOCUMENTS if any(block.needs for block in runnable_blocks(page))]


# What the comments beside a page's code say that it prints.
PRINTS = {"README.md": ["3.33", "(15, 2, 16, 64)", "True"]}


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(page, tmp_path):
    done = run_blocks(page, [block for block in runnable_blocks(page) if not block.needs], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    expected = PRINTS.get(name_of(page), [])
    assert done.stdout.splitlines()[: len(expected)] == expected


@pytest.mark.parametrize("page", NEEDING_MORE, ids=name_of)
def test_the_blocks_that_need_more_run_too(page, tmp_path):
    blocks = runnable_blocks(page)
    lacking = sorted({module for block in blocks for module in missing(block)})
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    done = run_blocks(page, blocks, tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_the_shell_is_told_runs_between(tmp_path):
    pytest.importorskip("typer")
    text = (
        "<!-- needs: typer -->\n<!-- commands run -->\n```python\nx = 1\n```\n```bash\npip install nothing\n{}\n```\n"
    )
    page = tmp_path / "page.md"
    for command, status in (("tokendance --version  # so", 0), ("tokendance demolish", 1)):
        page.write_text(text.format(command), encoding="utf-8")
        (folder := tmp_path / str(status)).mkdir()
        done = run_blocks(ROOT / "page.md", runnable_blocks(page), folder)
        assert (done.returncode, "line 8" in done.stderr) == (status, status == 1)


def test_a_broken_block_is_found(tmp_path):
    page = "text\n```python\nx = 1\n```\n```python torch\ny = 1\n```\n\n```python\nassert x == 2\n```\n"
    blocks = list(blocks_in(page))
    assert [(block.needs, block.line) for block in blocks] == [((), 3), (("torch",), 6), ((), 10)]
    done = run_blocks(ROOT / "page.md", [blocks[0], blocks[2]], tmp_path)
    assert done.returncode != 0
    assert 'File "page.md", line 10' in done.stderr


def test_every_language_is_known():
    """So that no Python hides under another name."""
    found = {block.language for page in PAGES for block in blocks_in(page.read_text(encoding="utf-8"))}
    assert found <= {"python", "bash", "text", "json", "bibtex"}


def unknown_fences(text: str) -> list[str]:
    """Fences that are none of the known kinds; the one other kind shows a whole script of examples/, tested there."""
    shown = r'^```\{\.python\}\n--8<-- "(examples/\w+\.py)"\n```$'
    for name in re.findall(shown, text, re.MULTILINE):
        assert (ROOT / name).is_file(), name
    rest = re.sub(
        shown, "", re.sub(r"^```\w+[^\n]*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE
    )
    return re.findall(r"^ *(?:```|~~~).*$", rest, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_hides(page):
    assert unknown_fences(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text", ["```\nx\n```", "~~~\nx\n~~~", "    ```python\n    x\n    ```", "```{.python}\nx\n```"]
)
def test_a_hidden_block_is_found(text):
    assert unknown_fences(text)


# Shell commands -----------------------------------------------------------------------------------------------------


def commands_in(page: Path) -> Iterator[list[str]]:
    for block in blocks_in(page.read_text(encoding="utf-8")):
        for line in block.code.splitlines() if block.language == "bash" else ():
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            for joins, command in itertools.groupby(words, key=lambda word: word in ("&&", "||", "|", ";")):
                named = list(itertools.dropwhile(re.compile(r"\w+=").match, command))
                if named and not joins:
                    yield named


@functools.cache
def subcommand_exists(name: str) -> bool:
    command = [sys.executable, "-m", "tokendance", name, "--help"]
    # Not from the checkout: there, the bare tokendance/ folder would hide an installed wheel.
    return subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True).returncode == 0


def command_exists(words: list[str]) -> bool:
    name, *rest = words
    if name == "tokendance":
        pytest.importorskip("typer")
        return bool(importlib.metadata.entry_points(group="console_scripts", name=name)) and subcommand_exists(rest[0])
    if name == "python" and rest[:1] == ["-m"]:
        return (ROOT / rest[1] / "__main__.py").is_file() or importlib.util.find_spec(rest[1]) is not None
    if name in ("pip", "pytest"):
        return importlib.util.find_spec(name) is not None
    return name in ("cd", "cmp", "coverage", "git", "mkdocs", "rsync", "ruff", "tar") or (ROOT / name).is_file()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_exist(page):
    assert [words for words in commands_in(page) if not command_exists(words)] == []


def test_the_readme_names_the_two_commands():
    commands = [" ".join(words) for words in commands_in(ROOT / "README.md")]
    assert commands == ["pip install -e .[cli]", "tokendance demo", "pip install -e .[test]", "pytest"]


@pytest.mark.parametrize("words", [["tokendance", "demolish"], ["python", "-m", "nowhere"], ["frobnicate"]])
def test_a_command_that_is_not_there_is_found(words):
    assert not command_exists(words)


def test_the_extras_that_are_named_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"(?:tokendance|\.)\[([a-z,]+)\]", text)
    extras = set(importlib.metadata.metadata("tokendance").get_all("Provides-Extra"))
    assert {extra for group in named for extra in group.split(",")} <= extras


# Links --------------------------------------------------------------------------------------------------------------


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """The names GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert list(broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One: two\n[a](#one-two) [b](#two) [c](nowhere.md) [d](page.md#one) [e](https://example.org)\n")
    assert list(broken_links(page)) == ["#two", "nowhere.md", "page.md#one"]


def test_the_readme_has_room_for_the_benchmark():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- benchmark:begin[a-z -]*-->\n.*?<!-- benchmark:end -->", text, re.DOTALL)) == 1


# Doctests -----------------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    """Every module by the name it is imported by; store/ and kernels/ need not lie inside tokendance/."""
    names = set(PACKAGES)
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        names |= {module.name for module in pkgutil.walk_packages(path, f"{package}.", onerror=lambda _name: None)}
    return sorted(name for name in names if not name.endswith("__main__"))


def test_modules_of_all_three_folders_are_found():
    assert {"tokendance.storage", "tokendance.store.layout", "tokendance.kernels.diff"} <= set(modules())


@pytest.mark.parametrize("name", modules())
def test_doctests(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"not installed: {error.name}")
    failed, _ = doctest.testmod(module)
    assert failed == 0


def test_doctests_are_really_run():
    """As many as there are in the modules that have some today, or more."""
    finder = doctest.DocTestFinder()
    counts = {
        name: sum(bool(test.examples) for test in finder.find(importlib.import_module(name)))
        for name in ("tokendance.storage", "tokendance.opening", "tokendance.dtypes", "tokendance.sparse_diff")
    }
    assert all(counts.values()), counts
