"""The program that maps a hundred agents at once: few small ones, what it counts, and a wrong byte that it must see."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks_beside import ROOT

import tokendance as td

if sys.platform != "linux":
    pytest.skip("it reads /proc", allow_module_level=True)

from benchmarks import hundred as program
from benchmarks.hundred import Plan, hundred, main, words_at

SMALL = Plan(agents=5, agent_bytes=2 << 20, block_bytes=4 << 10, own=0.05, places=400)


def arguments(path: Path) -> tuple[object, ...]:
    return (str(path), SMALL.agents, SMALL.agent_bytes, SMALL.block_bytes, SMALL.own, SMALL.places)


def test_words_follow_from_where_they_stand() -> None:
    at = np.arange(SMALL.n_blocks * SMALL.block_words, dtype=np.uint64)
    master, mirror, other = (words_at(SMALL, agent, at).reshape(-1, SMALL.block_words) for agent in (0, 1, 2))
    assert len(np.unique(master)) == master.size
    for agent, cache in ((1, mirror), (2, other)):
        differ = np.flatnonzero((cache != master).any(axis=1))
        assert differ.tolist() == SMALL.own_blocks(agent).tolist()
        assert (cache[differ] != master[differ]).all()
    # The first number that splitmix64 gives for the seed 0 is that of position 1 here.
    assert int(words_at(SMALL, 0, np.array([1], np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_few_small_agents_are_read_right(tmp_path: Path) -> None:
    found = hundred(SMALL, tmp_path)
    assert found.wrong_bytes == 0
    assert found.own_blocks == 4 * round(0.05 * SMALL.n_blocks)
    assert found.own_places > 0
    assert (found.own_copied, found.all_copied) == (0, 0)
    assert found.maps > 2 * found.own_blocks
    assert found.rss == found.anonymous + found.file_backed
    assert 0 < found.pss <= found.rss
    assert SMALL.agent_bytes < found.disk < 2 * SMALL.agent_bytes


def test_a_wrong_byte_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.td"
    program.write(*arguments(path))
    with td.open(path) as store:
        cache = store.reconstruct("agent-3")
        cache.view(np.uint8)[:] ^= 1  # every byte is wrong by one bit
        store.register_mirror("agent-3", cache)
    found = program.read(*arguments(path))
    assert found["wrong_bytes"] == 8 * SMALL.places


def test_it_prints_json_and_fills_the_markers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- hundred:begin -->\nold\n<!-- hundred:end -->\n\nz\n", encoding="utf-8")
    told = ["--agents", "3", "--mib", "1", "--places", "50", "--dir", str(tmp_path)]
    assert main([*told, "--json", "--markdown", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["hundred"]["agents"], found["hundred"]["wrong_bytes"]) == (3, 0)
    text = page.read_text(encoding="utf-8")
    assert "old" not in text and text.startswith("# A\n") and text.endswith("z\n")
    assert "| wrong bytes " in text and "PSS" in text and "maps of the process" in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.md"]


def test_without_room_it_is_not_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": 0}))
    assert main(["--dir", str(tmp_path)]) == 2
    assert "free disk; see --dir" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_documents_have_its_markers_filled() -> None:
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    inside = document.split("<!-- hundred:begin -->")[1].split("<!-- hundred:end -->")[0]
    lines = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in inside.splitlines() if "|" in line}
    assert lines["wrong bytes"] == "0"
    assert lines["100 dense caches"] == "100.00 GiB"


def test_it_is_on_the_command_line() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks", "hundred", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert "--places" in child.stdout
