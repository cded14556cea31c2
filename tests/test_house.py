"""The rules of the house: which way imports point, how long things get, what is never written.

Each rule is a function from source text to findings. It is run over the whole tree, and over a few lines that break it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILE_POLICY = "kernels/compile_policy.py"
COMPILERS = {"cfunc", "generated_jit", "guvectorize", "jit", "jit_module", "jitclass", "njit", "stencil", "vectorize"}
VAGUE_NAMES = {"core", "helper", "helpers", "manager", "managers", "util", "utils"}
MAX_FILE, MAX_FUNCTION, MAX_KERNEL, MAX_KERNEL_ARGS = 300, 40, 25, 6

Findings = Iterator[str]
Function = ast.FunctionDef | ast.AsyncFunctionDef

needs_checkout = pytest.mark.skipif(not (ROOT / "store").is_dir(), reason="the sources are not beside the tests")


# Reading the source -------------------------------------------------------------------------------------------------


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported; `from a import b` counts as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module or ''}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def code_lines(function: Function, source: str) -> int:
    """Lines from `def` to the end, without the docstring, blank lines and lines that only hold a comment."""
    skipped: set[int] = set()
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        skipped = set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    text = source.splitlines()
    span = range(function.lineno, (function.end_lineno or function.lineno) + 1)
    return sum(1 for n in span if n not in skipped and text[n - 1].strip() and not text[n - 1].strip().startswith("#"))


def uses_prange(function: Function) -> bool:
    return any(
        (isinstance(node, ast.Name) and node.id == "prange")
        or (isinstance(node, ast.Attribute) and node.attr == "prange")
        for node in ast.walk(function)
    )


def argument_count(function: Function) -> int:
    a = function.args
    return len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs) + bool(a.vararg) + bool(a.kwarg)


# The rules ----------------------------------------------------------------------------------------------------------


def wrong_arrows(path: str, source: str) -> Findings:
    """store and kernels import of tokendance only its errors and themselves."""
    top = path.split("/", maxsplit=1)[0]
    if top not in {"store", "kernels"}:
        return
    allowed = ("tokendance.errors", f"tokendance.{top}")
    for line, name in imported_modules(ast.parse(source)):
        ours = name == "tokendance" or name.startswith("tokendance.")
        if ours and not any(name == good or name.startswith(f"{good}.") for good in allowed):
            yield f"{path}:{line} imports {name}"


def compilers_elsewhere(path: str, source: str) -> Findings:
    """Only the compile policy touches numba's compilers; only kernels touch numba at all."""
    if path == COMPILE_POLICY:
        return
    tree = ast.parse(source)
    for line, name in imported_modules(tree):
        first, *rest = name.split(".")
        if first == "numba" and (COMPILERS & set(rest) or "*" in rest or not path.startswith("kernels/")):
            yield f"{path}:{line} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in COMPILERS and ast.unparse(node.value) in {"numba", "nb"}:
            yield f"{path}:{node.lineno} uses {ast.unparse(node)}"


def relative_imports(path: str, source: str) -> Findings:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{path}:{node.lineno} is a relative import"


def too_long(path: str, source: str) -> Findings:
    if (length := len(source.splitlines())) > MAX_FILE:
        yield f"{path} has {length} lines"
    for function in functions(ast.parse(source)):
        if (length := code_lines(function, source)) > MAX_FUNCTION:
            yield f"{path}:{function.lineno} {function.name} has {length} lines of code"


def big_kernels(path: str, source: str) -> Findings:
    if not path.startswith("kernels/"):
        return
    for function in filter(uses_prange, functions(ast.parse(source))):
        if (length := code_lines(function, source)) > MAX_KERNEL:
            yield f"{path}:{function.lineno} kernel {function.name} has {length} lines of code"
        if (count := argument_count(function)) > MAX_KERNEL_ARGS:
            yield f"{path}:{function.lineno} kernel {function.name} takes {count} arguments"


def vague_names(path: str, _source: str) -> Findings:
    if {part.removesuffix(".py").strip("_") for part in path.split("/")} & VAGUE_NAMES:
        yield f"{path} does not say what it holds"


# Spelled so that this file does not break its own rule.
LOOSE_END = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")
PRIVATE_PATH = re.compile(r"(?<![\w.:/-])/(home|root|Users|work)/\w|\.\./share[d]\b|(?<!\w)\.librar[y]\b")


def loose_ends(path: str, source: str) -> Findings:
    for number, line in enumerate(source.splitlines(), start=1):
        if LOOSE_END.search(line):
            yield f"{path}:{number} leaves something for later: {line.strip()}"


def private_paths(path: str, source: str) -> Findings:
    for number, line in enumerate(source.splitlines(), start=1):
        if PRIVATE_PATH.search(line):
            yield f"{path}:{number} names a place on somebody's machine: {line.strip()}"


# The tree -----------------------------------------------------------------------------------------------------------


def python_files(*tops: str) -> list[Path]:
    return sorted(file for top in tops for file in (ROOT / top).rglob("*.py") if "__pycache__" not in file.parts)


def listed_by_git() -> list[Path]:
    """Tracked files and those about to be, or everything where there is no git (an unpacked sdist)."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = []
    files = [ROOT / name for name in listed if name] or [f for f in ROOT.rglob("*") if "__pycache__" not in f.parts]
    return sorted(file for file in files if file.is_file())


def text_of(file: Path) -> str:
    """The text of a file; empty if it is not text."""
    data = file.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8", errors="ignore")


Rule = Callable[[str, str], Findings]
LIBRARY: tuple[Rule, ...] = (wrong_arrows, compilers_elsewhere, big_kernels)
ALL_CODE: tuple[Rule, ...] = (too_long,)
ALL_PYTHON: tuple[Rule, ...] = (relative_imports, vague_names)
ALL_TEXT: tuple[Rule, ...] = (loose_ends, private_paths)


def findings(rule: Rule, files: list[Path]) -> list[str]:
    return [line for file in files for line in rule(file.relative_to(ROOT).as_posix(), text_of(file))]


@needs_checkout
@pytest.mark.parametrize("rule", LIBRARY)
def test_library(rule):
    files = python_files("tokendance", "store", "kernels")
    assert files
    assert findings(rule, files) == []


@needs_checkout
@pytest.mark.parametrize("rule", ALL_CODE)
def test_library_benchmarks_and_tools(rule):
    assert findings(rule, python_files("tokendance", "store", "kernels", "benchmarks", "tools")) == []


@needs_checkout
@pytest.mark.parametrize("rule", ALL_PYTHON)
def test_every_python_file(rule):
    assert findings(rule, python_files("tokendance", "store", "kernels", "benchmarks", "tools", "tests")) == []


@needs_checkout
@pytest.mark.parametrize("rule", ALL_TEXT)
def test_every_text_file(rule):
    assert findings(rule, listed_by_git()) == []


@needs_checkout
def test_there_is_one_compile_policy():
    assert (ROOT / COMPILE_POLICY).is_file()


def lines_of_code(count: int, prange: bool = False, args: str = "a") -> str:
    body = ["    for i in prange(9): pass" if prange else "    pass", *["    pass"] * (count - 2)]
    return "\n".join([f"def f({args}):", *body]) + "\n"


BREAKS: list[tuple[Rule, str, str]] = [
    (wrong_arrows, "store/commit.py", "import tokendance"),
    (wrong_arrows, "store/commit.py", "from tokendance import storage"),
    (wrong_arrows, "store/commit.py", "from tokendance.kernels.diff import block_norms"),
    (wrong_arrows, "kernels/diff.py", "def f():\n    import tokendance.store.layout"),
    (wrong_arrows, "kernels/diff.py", "importlib.import_module('tokendance.validate')"),
    (compilers_elsewhere, "kernels/diff.py", "from numba import njit, prange"),
    (compilers_elsewhere, "kernels/diff.py", "from numba.core.decorators import jit"),
    (compilers_elsewhere, "kernels/diff.py", "import numba as nb\n@nb.vectorize\ndef f(a): ..."),
    (compilers_elsewhere, "kernels/diff.py", "from numba import *"),
    (compilers_elsewhere, "store/commit.py", "from numba import prange"),
    (relative_imports, "tokendance/storage.py", "from . import errors"),
    (relative_imports, "store/commit.py", "from ..kernels import diff"),
    (too_long, "tokendance/storage.py", "\n" * (MAX_FILE + 1)),
    (too_long, "tokendance/storage.py", lines_of_code(MAX_FUNCTION + 1)),
    (big_kernels, "kernels/diff.py", lines_of_code(MAX_KERNEL + 1, prange=True)),
    (big_kernels, "kernels/diff.py", lines_of_code(3, prange=True, args="a, b, c, d, e, *, out, n")),
    (vague_names, "store/utils.py", ""),
    (vague_names, "tokendance/_core.py", ""),
    (vague_names, "tokendance/helpers/mapping.py", ""),
    (loose_ends, "README.md", "TO" + "DO: write this"),
    (loose_ends, "README.md", "x = 1  # FIX" + "ME"),
    (private_paths, "README.md", "see `/" + "work/main`"),
    (private_paths, "README.md", "see ../" + "shared/x.md"),
    (private_paths, "README.md", "/ho" + "me/someone/caches"),
]

HOLDS: list[tuple[Rule, str, str]] = [
    (
        wrong_arrows,
        "store/commit.py",
        "from tokendance.errors import StoreCorruptError\nfrom tokendance.store import lock",
    ),
    (wrong_arrows, "store/commit.py", "from tokendance import errors"),
    (wrong_arrows, "tokendance/storage.py", "from tokendance.kernels import diff\nfrom tokendance.store import commit"),
    (compilers_elsewhere, COMPILE_POLICY, "from numba import njit"),
    (compilers_elsewhere, "kernels/diff.py", "from numba import prange, types"),
    (too_long, "tokendance/storage.py", lines_of_code(MAX_FUNCTION)),
    (
        too_long,
        "tokendance/storage.py",
        'def f():\n    """Long.\n' + "\n" * 80 + '    """\n\n    # why\n    return 1\n',
    ),
    (big_kernels, "kernels/diff.py", lines_of_code(MAX_KERNEL, prange=True, args="a, b, c, d, e, f")),
    (big_kernels, "kernels/diff.py", lines_of_code(MAX_KERNEL + 1)),
    (vague_names, "store/mapping.py", ""),
    (private_paths, "README.md", "https://example.org/home/page and framework/work/x and `/tmp/round.td`"),
]


def case_name(value: object) -> str:
    return value.__name__ if callable(value) else ""


@pytest.mark.parametrize(("rule", "path", "source"), BREAKS, ids=case_name)
def test_a_breach_is_found(rule, path, source):
    assert list(rule(path, source))


@pytest.mark.parametrize(("rule", "path", "source"), HOLDS, ids=case_name)
def test_what_is_allowed_passes(rule, path, source):
    assert list(rule(path, source)) == []


def test_importing_tokendance_loads_neither_numba_nor_zarr(tmp_path):
    program = "import sys, tokendance; print(*sorted({'numba', 'zarr', 'typer', 'torch'} & set(sys.modules)))"
    # Not from the checkout: there, the bare tokendance/ folder would hide an installed wheel.
    child = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout.strip(), child.stderr) == (0, "", "")
