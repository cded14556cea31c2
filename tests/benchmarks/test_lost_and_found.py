"""The programs behind docs/reliability.md: what they do between cuts and kills is right, and they would see a loss."""

import shutil
from pathlib import Path

import benchmarks_beside  # noqa: F401 - loads the package
import numpy as np
import pytest

import tokendance as td
from benchmarks.fuzz import fuzz
from benchmarks.markers import between
from benchmarks.power_cut import Cut, as_text
from benchmarks.power_cut_steps import state_after
from benchmarks.power_cut_writers import WRITERS
from benchmarks.soak import soak
from benchmarks.soak_log import Log, print_of
from benchmarks.soak_readers import inspect


class _Anything(str):
    """A checksum that is equal to every other."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, _other: object) -> bool:
        return True

    def __ne__(self, _other: object) -> bool:
        return False


class EnoughError(Exception):
    """Ends a writer that goes on for ever."""


def write(folder: Path, writer: str, workload: str, steps: int) -> None:
    def acknowledge(step: int) -> None:
        if step == steps:
            raise EnoughError

    with pytest.raises(EnoughError):
        WRITERS[writer].write(folder, workload, acknowledge)


@pytest.mark.parametrize("workload", WRITERS["tokendance"].workloads)
def test_what_a_writer_left_is_read_and_a_damaged_byte_is_not(workload: str, tmp_path: Path) -> None:
    write(tmp_path, "tokendance", workload, 8)
    assert WRITERS["tokendance"].read(tmp_path, workload) == 8
    chunk = max((file for file in tmp_path.rglob("c.*")), key=lambda file: (file.stat().st_size, str(file)))
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    with pytest.raises((AssertionError, td.StoreCorruptError)):
        WRITERS["tokendance"].read(tmp_path, workload)


@pytest.mark.parametrize("workload", WRITERS["plain zarr"].workloads)
def test_what_zarr_left_is_read_and_a_lost_chunk_is_seen(workload: str, tmp_path: Path) -> None:
    write(tmp_path, "plain zarr", workload, 3)
    assert WRITERS["plain zarr"].read(tmp_path, workload) == 3
    shutil.rmtree(next(iter(sorted(tmp_path.glob("s.zarr/*/c")))))
    with pytest.raises((AssertionError, KeyError)):
        WRITERS["plain zarr"].read(tmp_path, workload)


def test_a_tag_of_the_model_keeps_what_was_there() -> None:
    state = state_after("collection", 7)
    assert list(state.tags) == ["tag 1"]
    assert (state.tags["tag 1"]["m"] == state_after("collection", 5).caches["m"]).all()
    assert (state.tags["tag 1"]["b"] != state.caches["b"]).any() or (
        state.tags["tag 1"]["c"] != state.caches["c"]
    ).any()


def test_the_table_counts_what_was_lost() -> None:
    cuts = [Cut("ours", "appends", 5, 6), Cut("theirs", "appends", 7, None, "no"), Cut("theirs", "appends", 4, 1)]
    lines = [[cell.strip() for cell in line.split("|")[2:-1]] for line in as_text(cuts).splitlines()[2:]]
    assert lines == [["ours", "1", "1", "0", "0", "0", "0 of 5"], ["theirs", "2", "1", "1", "0", "2", "10 of 11"]]


def test_text_goes_between_markers_and_nowhere_else() -> None:
    assert between("a <!-- x:begin -->b<!-- x:end --> c", "x", r"\1") == (
        "a <!-- x:begin -->\n\n\\1\n\n<!-- x:end --> c"
    )
    with pytest.raises(ValueError, match="x:begin"):
        between("nothing", "x", "text")


def test_an_inspection_finds_what_is_lost_or_wrong(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    log, cache = Log(tmp_path / "log"), np.ones((4, 8), np.float32)
    with td.open(tmp_path / "s.td", diff_threshold=0) as store:
        store.register_master("a", cache)
    log.announce(2, {"a": print_of(cache)}, {})
    log.acknowledge(2)
    inspect(tmp_path / "s.td", log, alone=True)
    log.acknowledge(3)
    with pytest.raises(AssertionError, match="acknowledged"):
        inspect(tmp_path / "s.td", log, alone=True)
    log.acknowledge(2)
    log.announce(2, {"a": print_of(cache + 1)}, {})
    with pytest.raises(AssertionError, match="reads wrong"):
        inspect(tmp_path / "s.td", log, alone=True)


def test_damaged_stores_are_refused_or_right(tmp_path: Path) -> None:
    finds: list[str] = []
    counts = fuzz(tmp_path, 1, range(60), 2, finds.append)
    assert finds == []
    assert counts.total() == 60
    assert sum(count for (name, _), count in counts.items() if name == "refused") > 30


def test_a_store_that_believes_its_files_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No chunk is compared with its checksum. The workers are forked, so that they have it from here.
    monkeypatch.setattr("tokendance.store.arrays.rows_checksum", lambda _rows: _Anything("00000000"))
    finds: list[str] = []
    counts = fuzz(tmp_path, 1, range(40), 2, finds.append)
    assert any(name == "wrong" for name, _ in counts)
    assert all(find.startswith("wrong: --seed 1 --only ") for find in finds)


@pytest.mark.slow
def test_a_short_soak_kills_and_loses_nothing(tmp_path: Path) -> None:
    tally = soak(tmp_path, 15, 1, lambda _text: None)
    assert tally.losses == []
    assert min(tally.writers_killed, tally.readers_killed, tally.steps, tally.reads, tally.inspections) > 0
