"""The machinery behind `python -m benchmarks`, on sizes so small that nothing it finds means anything."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from benchmarks_beside import ROOT

from benchmarks import first_calls, peers, running, scale
from benchmarks.bare import numpy_mirror, read_both
from benchmarks.machine import describe
from benchmarks.on_disk import allocated
from benchmarks.plot import plot
from benchmarks.report import SECTIONS, Results, as_json, as_text, inserted, table
from benchmarks.rows import Floor, Row, from_bytes, from_pairs, from_seconds, skipped
from benchmarks.sizes import ModelShape, Sizes
from benchmarks.timing import Pairs, Trial, in_turn, quartiles, timed
from benchmarks.workplace import changed, workplace

TINY = Sizes(
    cache_bytes=128 << 10,
    block_bytes=4 << 10,
    repeats=2,
    quick_repeats=2,
    round_agents=3,
    mapped_agents=3,
    many_agents=5,
    few_agents=2,
    few_bytes=16 << 10,
    append_blocks=2,
    append_warm_up=1,
    small_mirrors=2,
    small_own_blocks=2,
    small_cache_blocks=8,
    first_call_bytes=64 << 10,
    first_call_repeats=1,
    peer_shape=ModelShape(64, layers=2, kv_heads=1, head_dim=16),
    scale_shape=ModelShape(128, layers=2, kv_heads=2, head_dim=16),
    scale_agents=4,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with workplace(TINY, tmp_path_factory.mktemp("benchmarks")) as made:
        yield made


@pytest.fixture(scope="module")
def results(place):
    rows = [
        from_pairs("fast", "slow", Pairs((1.0, 1.0), (2.0, 4.0)), Floor(1.0)),
        from_pairs("slow", "fast", Pairs((3.0, 3.0), (1.0, 1.0)), Floor(4.0, at_least=True)),
        from_seconds("open", (0.01, 0.02, 0.03), Floor(50.0, text="≤ 50 ms")),
        from_bytes("disk", "unique", 103, 100, Floor(1.02), note="a note"),
        skipped("torch", "–", "torch is not installed"),
    ]
    beside = [
        peers.PeerRow("ours", 1.0, 2.0, 3, 1.0, 1.0, 1.0, 2),
        peers.PeerRow("theirs", note="theirs is not installed"),
    ]
    calls = [first_calls.FirstCall("import", 0.1, 0.2, None, 1)]
    large = scale.Scale(2, 1 << 20, identical=True)
    return Results(describe(place.folder, 0.5), rows, beside, calls, large, SECTIONS)


# Timing and arithmetic ----------------------------------------------------------------------------------------------


def test_two_things_are_timed_in_turn_and_the_first_turn_is_not_counted():
    seen = []
    ours = Trial(lambda: seen.append("A"), lambda: seen.append("before"), lambda: seen.append("after"))
    pairs = in_turn(ours, Trial(lambda: seen.append("B")), repeats=2)
    assert seen == ["before", "A", "after", "B"] * 3
    assert len(pairs.ours) == len(pairs.theirs) == 2


def test_what_comes_before_and_after_is_not_timed(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: next(clock))
    assert timed(Trial(lambda: None, lambda: next(clock), lambda: next(clock))) == 1


def test_a_ratio_is_the_median_of_the_pairs_ratios():
    # Not the ratio of the medians, 2 / 2: the machine was slow while the last pair ran, for both.
    row = from_pairs("a", "b", Pairs((1.0, 2.0, 30.0), (1.0, 4.0, 10.0)))
    assert (row.low, row.ratio, row.high) == (0.75, 1.0, 2.0)
    assert (row.ours, row.theirs, row.repeats) == (2.0, 4.0, 3)
    assert Pairs((1.0,), (4.0,)).inverted().ratios == (4.0,)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("ratio", "floor", "verdict", "share"),
    [
        (1.2, Floor(1.2), "met", 1.0),
        (1.3, Floor(1.25), "missed", 1.04),
        (6.0, Floor(6.0, at_least=True), "met", 1.0),
        (3.0, Floor(6.0, at_least=True), "missed", 2.0),
        (3.0, None, "–", None),
        (None, Floor(1.0), "skipped", None),
    ],
)
def test_verdicts(ratio, floor, verdict, share):
    row = Row("a", "b", ratio, floor=floor)
    assert row.verdict == verdict
    assert row.share_of_floor == (share if share is None else pytest.approx(share))


def test_what_rows_are_compared_with_is_right():
    rng = np.random.default_rng(0)
    master = rng.standard_normal((16, 4, 8), np.float32)
    cache = changed(rng, master, 0.25)
    differs = np.flatnonzero((cache != master).reshape(16, -1).any(axis=1))
    assert len(differs) == 4
    assert np.array_equal(np.flatnonzero(read_both(master, cache)), differs)
    kept, deltas = numpy_mirror(master, cache)
    assert np.array_equal(kept, differs)
    assert np.array_equal(deltas, (cache - master)[differs])


def test_a_file_with_two_names_takes_its_bytes_once(tmp_path):
    (tmp_path / "a").write_bytes(bytes(8192))
    before = allocated(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert allocated(tmp_path) == before >= 8192


# Rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", running.GROUPS)
def test_each_group_of_rows_runs(place, name):
    rows = list(running.GROUPS[name](place))
    assert rows
    for row in rows:
        if row.verdict == "skipped":
            assert "not installed" in row.note or "smaps_rollup" in row.note
        else:
            assert row.ratio is not None
            assert math.isfinite(row.ratio)
            assert row.floor is not None or row.note
    shared = {store.name for store in (place.mapped_store, place.store_of_many)}
    assert {path.name for path in place.folder.iterdir()} == shared


def test_a_broken_row_is_reported_and_the_others_run(place, monkeypatch):
    def broken(_place):
        raise RuntimeError("no\nsuch luck")
        yield

    groups = {"broken": broken, "fine": lambda _place: iter([from_bytes("fine", "b", 1, 2)])}
    monkeypatch.setattr(running, "GROUPS", groups)
    found = running.measure(place, ["broken", "fine"], 0.0)
    assert [(row.name, row.verdict) for row in found.floors] == [("broken", "failed"), ("fine", "–")]
    assert found.floors[0].note == "failed: RuntimeError: no"
    assert found.whole == ("floors",)


def test_a_run_that_leaves_rows_out_is_not_whole(place, monkeypatch):
    groups = {name: lambda _place: iter([]) for name in ("one", "two")}
    monkeypatch.setattr(running, "GROUPS", groups)
    assert running.measure(place, ["one"], 0.0).whole == ()


def test_names_are_chosen_by_a_part_of_them():
    assert running.wanted([], with_scale=False) == [name for name in running.NAMES if name != "scale"]
    assert running.wanted(["float16", "peers"], with_scale=False) == ["register_mirror float16", "peers"]
    assert running.wanted(["scale"], with_scale=True) == ["scale"]
    with pytest.raises(ValueError, match="'scale' is in no name"):
        running.wanted(["scale"], with_scale=False)


def test_peers_give_back_what_they_were_given_and_missing_ones_are_named(place):
    absent = peers.Peer("absent", lambda path, caches: None, lambda path, agents: {}, "no_such_module_anywhere")
    rows = peers.measure(place, (*peers.PEERS, absent))
    assert rows[0].write_ratio == rows[0].read_ratio == rows[0].disk_ratio == 1.0
    assert rows[-1] == peers.PeerRow("absent", note="no_such_module_anywhere is not installed")
    for row in rows:
        assert row.note or min(row.write, row.read, row.disk) > 0


def test_a_peer_that_gives_back_something_else_is_an_error(place):
    zeros = peers.Peer(
        "zeros",
        lambda path, caches: path.write_bytes(b"x"),
        lambda path, agents: {agent: np.zeros(1) for agent in agents},
    )
    with pytest.raises(AssertionError, match="zeros gave agent-0 back changed"):
        peers.measure(place, (zeros,))


def test_first_calls(place, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # seconds of compiling are not what is tested
    found = {call.name: call for call in first_calls.measure(place)}
    assert {"import numba", "register_mirror float32", "register_mirror bfloat16", "reconstruct"} <= set(found)
    assert found["import numba"].again is None
    assert all(call.cold > 0 and call.cached > 0 for call in found.values())
    assert found["reconstruct"].again > 0


def test_scale_reads_what_it_registered(place):
    found = scale.measure(place)
    assert found.identical
    assert found.own_blocks % TINY.scale_shape.blocks_per_token_block == 0
    assert found.logical_bytes == 4 * TINY.scale_shape.cache_bytes == 4 * 8 * 4 * 2 * 16 * 16 * 2
    assert min(found.register_all, found.map_all, found.read_all, found.disk_bytes, found.reader_peak) > 0


def test_scale_without_room_is_not_run(place, monkeypatch):
    monkeypatch.setattr(scale.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": 0}))
    assert "free disk" in scale.measure(place).note


# Reports ------------------------------------------------------------------------------------------------------------


def test_json_is_json(results):
    found = json.loads(json.dumps(as_json(results), allow_nan=False))
    assert [row["verdict"] for row in found["floors"]] == ["met", "missed", "met", "missed", "skipped"]
    assert found["floors"][0]["ratio"] == 0.375
    assert found["machine"]["versions"]["numpy"] == np.__version__
    assert found["machine"]["threads"] >= 1
    assert found["peers"][1]["note"] == "theirs is not installed"
    assert found["scale"]["logical_bytes"] == 2 << 20


def test_text_says_everything(results):
    text = as_text(results)
    for expected in (*results.machine.lines(), "met", "missed", "skipped", "≤ 50 ms", "20.0 ms", "a note", "1.03 ×"):
        assert expected in text
    assert "theirs is not installed" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) <= 4  # as many columns in each line as its table has


def test_columns_stand_under_one_another():
    lines = table(("a", "long header"), [("longer cell", "x"), ("", "y")])
    assert len({len(line) for line in lines}) == 1


def test_tables_go_between_the_markers_and_nothing_else_changes(results):
    document = "# Speed\n\n<!-- benchmark:begin floors -->\nold\n<!-- benchmark:end -->\n\nlast words\n"
    text, left = inserted(document, results)
    assert left == []
    assert text.startswith("# Speed\n\n<!-- benchmark:begin floors -->\n")
    assert text.endswith("<!-- benchmark:end -->\n\nlast words\n")
    assert "old" not in text
    assert "| fast " in text
    assert "in a new process" not in text
    assert inserted(text, results) == (text, [])


def test_a_block_without_names_holds_all_but_scale(results):
    text, _ = inserted("<!-- benchmark:begin -->\n<!-- benchmark:end -->\n", results)
    assert "| fast " in text
    assert "in a new process" in text
    assert "dense caches" not in text


def test_a_block_of_which_rows_were_left_out_stays(results):
    part = Results(results.machine, results.floors[:1], whole=())
    document = "<!-- benchmark:begin floors -->\nold\n<!-- benchmark:end -->\n"
    text, left = inserted(document, part)
    assert text == document
    assert len(left) == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [("no markers", "has no"), ("<!-- benchmark:begin speed -->\n<!-- benchmark:end -->", "'speed' is no section")],
)
def test_a_document_that_cannot_be_filled(results, document, message):
    with pytest.raises(ValueError, match=message):
        inserted(document, results)


def test_a_picture_is_drawn(results, tmp_path):
    plot(results.floors, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_the_documents_have_blocks_that_exist():
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    named = re.findall(r"<!-- benchmark:begin ?([a-z -]*?) ?-->", document)
    assert {name for names in named for name in names.split()} == set(SECTIONS)


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["--help"], 0, "--markdown"),
        (["--only", "nothing of that name"], 2, "is in no name; there are: register_mirror"),
    ],
)
def test_the_command_line(arguments, status, expected):
    child = subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == status, child.stderr
    assert expected in child.stdout + child.stderr
