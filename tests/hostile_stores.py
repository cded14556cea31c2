"""Stores made by somebody who means harm: how they are harmed, tried by a child process, and judged."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import hostile_child
import numpy as np
from damaged_stores import make_store

__all__ = ["Harm", "Outcomes", "assert_refused", "assert_right", "check", "tried"]

CHILD = hostile_child.__file__
Harm = Callable[[Path, Path], object]
Outcomes = list[list[str]]


def tried(stores: dict[Path, dict[str, np.ndarray]], *, change: bool) -> dict[Path, Outcomes]:
    """Let a child process with little memory and time read stores, and change them; return what it says of each."""
    asked = [
        {
            "path": str(path),
            "expected": {agent: sha256(cache.tobytes()).hexdigest() for agent, cache in caches.items()},
            "change": change,
        }
        for path, caches in stores.items()
    ]
    command = [sys.executable, CHILD]
    child = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=120)
    found = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f"the child ended with {child.returncode} after {found[-1:]}: {child.stderr[-800:]}"
    return {path: [one[1:] for one in found if one[0] == str(path)] for path in stores}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def check(tmp_path: Path, outside: Path, harms: dict[str, Harm], *, change: bool = False) -> dict[str, Outcomes]:
    """Harm a store in several ways and check what comes of using each; return the outcomes."""
    made = tmp_path / "made.td"
    caches = make_store(made)
    paths = {name: tmp_path / f"{number}.td" for number, name in enumerate(harms)}
    for name, harm in harms.items():
        shutil.copytree(made, paths[name])
        outside.joinpath(paths[name].stem).mkdir()
        harm(paths[name], outside / paths[name].stem)
    before = contents(outside)
    found = tried(dict.fromkeys(paths.values(), caches), change=change)
    assert contents(outside) == before, "something outside the store was changed"
    for name, path in paths.items():
        for what, outcome, text in found[path]:
            fine = ("right", "StoreCorruptError", *(["wrong"] if what == "verify" else []))
            assert outcome in fine, (name, what, outcome, text)
            assert text.isprintable() and len(text) < 500, (name, what, text)
    return {name: found[path] for name, path in paths.items()}


def assert_refused(found: dict[str, Outcomes]) -> None:
    """Each store is refused somewhere, and `verify` has something to say of it."""
    for name, outcomes in found.items():
        assert any(outcome == "StoreCorruptError" for _, outcome, _ in outcomes), name
        assert all(outcome != "right" for what, outcome, _ in outcomes if what == "verify"), name


def assert_right(found: dict[str, Outcomes]) -> None:
    for name, outcomes in found.items():
        assert all(outcome == "right" for _, outcome, _ in outcomes), (name, outcomes)
