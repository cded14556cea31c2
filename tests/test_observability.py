"""What a running system can be watched by: numbers, log records under one name, and progress."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokendance as td
from tokendance.store import page_table

MASTER = np.zeros((12, 1024), np.float32)


def some_round() -> dict[str, Any]:
    caches = {name: MASTER.copy() for name in "abc"}
    caches["b"][3] = 1
    caches["c"][5:7] = 2
    return caches


def messages(records: list[logging.LogRecord], level: int) -> list[str]:
    return [record.getMessage() for record in records if record.levelno == level]


def test_the_numbers_of_a_store_say_which_state_they_are_of(tmp_path: Path) -> None:
    with td.open(tmp_path / "s.td", diff_threshold=0) as store:
        store.register_round(some_round())
        first = store.stats()
        store.tag("round-1")
        second = store.stats()
    assert (first["generation"], second["generation"]) == (2, 3)
    assert first["written_bytes"] >= 15 * MASTER[0].nbytes
    assert second["written_bytes"] == 0  # a tag is in the manifest alone
    with td.open(tmp_path / "s.td", "r", at=2) as store:
        assert store.stats() == first
    assert td.TokenDanceStorage().stats().keys() == first.keys() - {"generation", "written_bytes"}


def test_each_mirror_and_the_cohort_have_their_own_ratio(tmp_path: Path) -> None:
    with td.open(tmp_path / "s.td", diff_threshold=0) as store:
        store.register_round(some_round(), master="a")
        stats = store.stats()
    for name, n_own in (("b", 1), ("c", 2)):
        one = stats["mirrors"][name]
        assert one["logical_bytes"] == MASTER.nbytes
        assert n_own * MASTER[0].nbytes <= one["stored_bytes"] <= n_own * MASTER[0].nbytes + 2048
        assert one["byte_ratio"] == one["logical_bytes"] / one["stored_bytes"]
    assert stats["byte_ratio"] < 3 < stats["mirrors"]["b"]["byte_ratio"]
    assert stats["stored_bytes"] >= MASTER.nbytes + sum(one["stored_bytes"] for one in stats["mirrors"].values())


def test_commits_and_collections_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tokendance"), td.open(tmp_path / "s.td", diff_threshold=0) as store:
        store.register_round(some_round())
        store.remove("c")
        removed = store.gc()
    found = messages(caplog.records, logging.INFO)
    assert [text for text in found if "committed generation 2: 3 agents" in text]
    assert [text for text in found if "committed generation 3: 2 agents, 0 bytes" in text]
    assert [text for text in found if f"collected generations {removed} and 1 objects" in text]
    assert all(str(tmp_path / "s.td") in text for text in found)
    assert {record.name for record in caplog.records} == {"tokendance.store"}


def test_a_fallback_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def refused(*_args: Any, **_named: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    with td.open(tmp_path / "s.td", diff_threshold=0) as store:
        store.register_round(some_round(), master="a")
        monkeypatch.setattr(page_table, "lay_out", refused)
        with caplog.at_level(logging.INFO, logger="tokendance"):
            taken = store.reconstruct("b", copy=False)
    assert np.array_equal(taken, some_round()["b"])
    assert [text for text in messages(caplog.records, logging.INFO) if "copied, not mapped" in text]


def test_verify_says_how_far_it_is(tmp_path: Path) -> None:
    with td.open(tmp_path / "s.td", diff_threshold=0) as store:
        store.register_round(some_round())
        seen: list[tuple[int, int]] = []
        found = store.verify(progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (found.checked_bytes, found.checked_bytes)
