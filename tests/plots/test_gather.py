"""What the picture is told of a store, against the store's own answers."""

import numpy as np
import pytest
from plots.drawn_stores import layered_store

import tokendance as td
from tokendance.plots import gather
from tokendance.plots.gather import gathered


@pytest.fixture
def store(tmp_path):
    cache = np.arange(80, dtype=np.float32).reshape(20, 4)
    other = cache.copy()
    other[3:5] += 1
    with td.open(tmp_path / "round.td", ragged=True) as made:
        made.register_round({"main": cache, "critic": other, "short": cache[:7]}, master="main")
        made.tag("monday")
        made.fork("critic", "twin")
        made.collective_reuse_step(["twin", "short"], cache[:2])
        yield made


def test_agents_are_as_the_store_says(store):
    facts, stats = gathered(store), store.stats()
    assert [one.name for one in facts.agents] == store.agents
    assert [one.master for one in facts.agents] == [True, False, False, False]
    for one in facts.agents:
        whole = store.reconstruct(one.name)
        assert (one.n_blocks, one.logical_bytes) == (len(whole), whole.nbytes)
        np.testing.assert_array_equal(one.own, [] if one.master else store.mirrors[one.name].block_indices)
        assert one.stored_bytes == (whole.nbytes if one.master else stats["mirrors"][one.name]["stored_bytes"])
    assert (facts.logical_bytes, facts.stored_bytes) == (stats["logical_bytes"], stats["stored_bytes"])
    assert (facts.path, facts.generation, facts.n_layers) == (store.path, store.generation, None)


def test_what_a_fork_shares_is_told_once(tmp_path):
    cache = np.zeros((64, 256), np.float32)
    other = cache.copy()
    other[:32] += 1
    with td.open(tmp_path / "round.td") as store:
        store.register_round({"main": cache, "critic": other}, master="main")
        store.fork("critic", "twin")
        store.fork("main", "like-main")
        main, critic, twin, like_main = gathered(store).agents
        assert twin.stored_bytes == twin.forked_bytes == critic.stored_bytes > 32 * 1024
        assert (main.forked_bytes, critic.forked_bytes, like_main.stored_bytes) == (0, 0, 0)
        # All that is not shared is in the store's own sum, which adds only the manifest.
        alone = sum(one.stored_bytes - one.forked_bytes for one in (main, critic, twin, like_main))
        assert 0 < store.stats()["stored_bytes"] - alone < 4096


def test_growth_is_the_history(store):
    facts = gathered(store)
    history = [one for one in store.history() if one.agents]
    assert [(one.generation, one.tags, one.written_bytes) for one in facts.moments] == [
        (one.number, one.tags, one.written_bytes) for one in history
    ]
    assert ("monday",) in [one.tags for one in facts.moments]
    for moment in facts.moments:
        with td.open(store.path, mode="r", at=moment.generation) as earlier:
            stats = earlier.stats()
        assert (moment.logical_bytes, moment.stored_bytes) == (stats["logical_bytes"], stats["stored_bytes"])


def test_of_a_long_history_no_written_byte_is_left_out(store, monkeypatch):
    for number in range(9):
        store.register_mirror("critic", np.full((20, 4), number, np.float32))
    monkeypatch.setattr(gather, "_MOST_MOMENTS", 4)
    moments, history = gathered(store).moments, store.history()
    assert len(moments) == 4
    assert (moments[0].generation, moments[-1].generation) == (2, store.generation)
    assert sum(one.written_bytes for one in moments) == sum(one.written_bytes for one in history)


def test_an_older_state_knows_nothing_of_what_came_after(store):
    with td.open(store.path, mode="r", at="monday") as earlier:
        facts = gathered(earlier)
    assert [one.name for one in facts.agents] == ["main", "critic", "short"]
    assert facts.moments[-1].generation == facts.generation < store.generation


def test_layers_are_known_when_all_agents_say_the_same(tmp_path):
    with layered_store(tmp_path / "layers.td") as store:
        facts = gathered(store)
        assert facts.n_layers == 3
        assert facts.agents[1].own.tolist() == [(4 * 3 + 1) * 2, (4 * 3 + 2) * 2 + 1]
        store.register_mirror("plain", store.reconstruct("main"))
        assert gathered(store).n_layers is None
