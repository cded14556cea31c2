"""The numbers behind the map, against counting one block after another."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plots.drawn_stores import agent

from tokendance.plots import raster
from tokendance.plots.raster import as_colours, layer_shares, rasters
from tokendance.plots.style import MASTER, OWN, PAST_END, SHARED


def counted(agents, n_layers, most_columns, most_rows, most_with_layers):
    """Return the maps of `rasters` as (own, kept): each block is looked at alone."""
    layers, maps = n_layers or 1, 1 if n_layers is None else 2
    bands = layers if len(agents) <= most_with_layers else 1
    n_positions = max(-(-one.n_blocks // (layers * maps)) for one in agents)
    columns = max(min(n_positions, most_columns // maps), 1)
    rows = min(len(agents) * bands, most_rows)
    found = []
    for first in range(maps):
        own, kept, there = (np.zeros((rows, columns)) for _ in range(3))
        for number, one in enumerate(agents):
            mine = set(one.own.tolist())
            for block in range(one.n_blocks):
                position, rest = divmod(block, layers * maps)
                layer, kind = divmod(rest, maps)
                if kind == first:
                    line = number * bands + (layer if bands > 1 else 0)
                    cell = line * rows // (len(agents) * bands), position * columns // n_positions
                    there[cell] += 1
                    own[cell] += block in mine
                    kept[cell] += one.master
        with np.errstate(invalid="ignore"):
            found.append((own / there, kept / there))
    return found


@st.composite
def cohorts(draw):
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=7))
    mirrors = (
        agent(f"a{at}", length, sorted(draw(st.sets(st.integers(0, length - 1))) if length else []))
        for at, length in enumerate(lengths[1:])
    )
    return [agent("m", lengths[0], master=True), *mirrors]


limits = st.tuples(st.integers(2, 12), st.integers(1, 9), st.integers(0, 8))


@given(cohorts(), st.none() | st.integers(1, 4), limits)
def test_a_map_is_what_counting_each_block_gives(agents, n_layers, few):
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in zip(("_MOST_COLUMNS", "_MOST_ROWS", "_AGENTS_WITH_LAYERS"), few, strict=True):
            patch.setattr(raster, name, limit)
        maps = rasters(agents, n_layers)
    for drawn, (own, kept) in zip(maps, counted(agents, n_layers, *few), strict=True):
        np.testing.assert_array_equal(drawn.own, own)
        np.testing.assert_array_equal(drawn.kept, kept)
    assert [one.title for one in maps] == ([""] if n_layers is None else ["keys", "values"])


@given(cohorts(), st.integers(1, 4))
def test_shares_of_layers_are_what_counting_each_block_gives(agents, n_layers):
    own, there = np.zeros((2, n_layers)), np.zeros((2, n_layers))
    for one in agents[1:]:
        for block in range(one.n_blocks):
            cell = block % 2, block // 2 % n_layers
            there[cell] += 1
            own[cell] += block in one.own
    np.testing.assert_array_equal(layer_shares(agents, n_layers), own / np.maximum(there, 1))


def colour(text):
    return [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def test_each_block_has_the_colour_of_what_it_is():
    agents = [agent("main", 4, master=True), agent("critic", 3, [1])]
    image = as_colours(rasters(agents, None)[0])
    expected = [[MASTER] * 4, [SHARED, OWN, SHARED, PAST_END]]
    np.testing.assert_allclose(image, [[colour(one) for one in row] for row in expected])


def test_one_own_block_among_many_in_a_cell_is_seen():
    agents = [agent("main", 100_000, master=True), agent("critic", 100_000, [77_777])]
    image = as_colours(rasters(agents, None)[0])
    fainter = np.abs(image[1] - colour(SHARED)).sum(axis=1)
    assert np.flatnonzero(fainter).tolist() == [777]
    assert fainter.max() > 0.3


def test_a_thousand_agents_of_a_million_blocks_take_little_memory():
    n_blocks = 1_000_000
    agents = [agent("main", n_blocks, master=True)]
    agents += [agent(f"a{i}", n_blocks - i % 3, range(i, i + 100)) for i in range(999)]
    tracemalloc.start()
    try:
        maps = rasters(agents, 28)
        as_colours(maps[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # One byte for each block would be a thousand million.
    assert peak < 150e6
    assert maps[0].own.shape == (1000, 500)
