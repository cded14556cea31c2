"""Every script in examples/ does what it says, as its reader would run it."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokendance as td

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: object) -> list[str]:
    """Run a script with every warning an error; return what it printed."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_resume_agents(tmp_path: Path) -> None:
    parked, resumed, after = run("resume_agents.py", tmp_path)
    assert parked.startswith("parked planner, writer, critic: 2.8 times smaller") or "2.9 times" in parked
    assert "resumed critic at 264 blocks, parked it at 266" in resumed
    written = int(re.sub(r"\D", "", resumed.rsplit(":", 1)[1]))
    assert 2 * 4096 <= written < 16 * 4096
    assert after == "critic has 266 blocks now, at turn 2"
    assert td.verify(tmp_path / "agents.td").ok


def test_fan_out(tmp_path: Path) -> None:
    forked, explored, kept = run("fan_out.py", tmp_path, 4)
    assert forked == "4 forks of 512 blocks: 0 bytes of blocks written"
    assert explored.startswith("explored: 16 blocks of their own, 4.")
    assert re.fullmatch(r"kept (planner/\d); agents are now planner, \1", kept)
    with td.open(tmp_path / "fan-out.td", "r", at="explored") as store:
        assert len(store.agents) == 2


def test_nightly_snapshot(tmp_path: Path) -> None:
    *nights, kept, looked = run("nightly_snapshot.py", tmp_path, 9)
    assert len(nights) == 9
    written = [int(re.sub(r"\D", "", night.split(":")[1].split("bytes")[0])) for night in nights]
    # The first night writes everything, each later one what changed.
    assert max(written[1:]) < written[0] / 3
    assert kept == "7 nights are kept, from 2026-01-03"
    assert looked == "all agents of 2026-01-03 are what they were"
    with td.open(tmp_path / "nights.td", "r") as store:
        # Those nights, and the state that the last untag made.
        assert len(store.history()) == 8


def test_engine_pages(tmp_path: Path) -> None:
    parked, restored, compared = run("engine_pages.py", tmp_path)
    # 28 of 32 pages are the same: 64 / 36.
    assert parked == "parked 2 sequences of 500 tokens, 1.78 times smaller"
    assert restored == "restored 500 tokens of critic into pages 40 to 71"
    assert compared == "every bit of the sequence is there, and no other page was touched"


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    pytest.importorskip("prometheus_client")
    path = tmp_path / "store.td"
    child = subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / "prometheus_exporter.py"), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert child.stdout is not None
    yield path, child.stdout.readline().strip()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, "")


def scraped(address: str) -> dict[tuple[str, str], float]:
    """What Prometheus would read: each sample by its name and agent."""
    from prometheus_client.parser import text_string_to_metric_families

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=60) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("agent", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_reads_what_stats_says(exporter: tuple[Path, str]) -> None:
    path, address = exporter
    assert scraped(address) == {("tokendance_up", ""): 0}

    planner = np.zeros((32, 1024), np.float32)
    critic = planner.copy()
    critic[3:5] = 1
    caches: dict[str, Any] = {"planner": planner, 'the "critic"\n': critic}
    with td.open(path, diff_threshold=0) as store:
        store.register_round(caches, master="planner")
        stats = store.stats()
        found = scraped(address)  # while the writer has it open
        store.remove('the "critic"\n')
        later = scraped(address)
    for name in ("logical_bytes", "stored_bytes", "byte_ratio", "generation", "written_bytes", "n_mirrors"):
        assert found["tokendance_" + name, ""] == stats[name]
    for name in ("logical_bytes", "stored_bytes", "n_diff_blocks", "max_dropped_norm"):
        assert found["tokendance_mirror_" + name, 'the "critic"\n'] == stats["mirrors"]['the "critic"\n'][name]
    assert found["tokendance_up", ""] == 1
    assert len(found) == 11
    assert later["tokendance_generation", ""] == stats["generation"] + 1
    assert ("tokendance_mirror_logical_bytes", 'the "critic"\n') not in later


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [file.name for file in sorted(EXAMPLES.glob("*.py")) if f'"{file.name}"' not in text] == []
