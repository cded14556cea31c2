"""What `save` takes along: agents, rule and identity, and nothing older."""

from pathlib import Path

import numpy as np
import pytest

import tokendance as td

PLANNER = np.arange(64, dtype=np.float32).reshape(8, 8)


def test_a_saved_store_belongs_to_the_same_model(tmp_path: Path) -> None:
    with td.open(tmp_path / "a.td", diff_threshold=0, ragged=True, identity={"model": "m"}) as store:
        store.register_master("planner", PLANNER)
        store.tag("first")
        store.save(tmp_path / "b.td")
    with td.open(tmp_path / "b.td", "r", identity={"model": "m"}) as saved:
        assert (saved.identity, saved.tags, saved.ragged) == ({"model": "m"}, {}, True)
        assert np.array_equal(saved.reconstruct("planner"), PLANNER)
    with pytest.raises(td.IdentityMismatchError, match="model: store 'm', asked 'n'"):
        td.open(tmp_path / "b.td", "r", identity={"model": "n"})


def test_a_saved_storage_in_memory_belongs_to_nothing_also_over_another_store(tmp_path: Path) -> None:
    td.open(tmp_path / "a.td", identity={"model": "m"}).close()
    storage = td.TokenDanceStorage()
    storage.register_master("planner", PLANNER)
    storage.save(tmp_path / "a.td")
    with td.open(tmp_path / "a.td", "r") as saved:
        assert saved.identity is None
