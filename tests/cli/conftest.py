"""Caches in files, and a store of them, which the tests of the command line start from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run

pytest.importorskip("typer")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with three caches in files, and a store that the command made of them; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    planner = np.random.default_rng(0).standard_normal((24, 2, 8, 16)).astype(np.float16)
    writer, critic = planner.copy(), planner.copy()
    writer[5:9] += 1
    critic[20] += 1
    for name, cache in (("planner", planner), ("writer", writer), ("critic", critic)):
        np.save(folder / f"{name}.npy", cache)
    said = ("--tag", "monday", "--identity", "model=qwen", "--identity", "layers=28")
    done = run("snapshot", "round.td", "planner.npy", "writer=writer.npy", "critic=critic.npy", *said, cwd=folder)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[1] == "writer: 12.0 KiB in 24 blocks, 4 of its own"
    return folder


@pytest.fixture
def room(made, tmp_path) -> Path:
    """A copy of `made` that a test may change."""
    folder = tmp_path / "room"
    shutil.copytree(made, folder)
    return folder
