"""The picture: nothing leaves it, no word covers another, and it says what it shows."""

from itertools import combinations

import pytest
from plots.drawn_stores import agent, cohort, facts_of

from tokendance.plots.gather import DrawnAgent, Moment

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.text import Annotation  # noqa: E402

from tokendance.plots.figure import draw  # noqa: E402
from tokendance.plots.raster import rasters  # noqa: E402

NIGHTS = [Moment(n, (f"nightly-2026-01-{n:02}",) if n % 2 else (), 900, 500 + n, 9) for n in range(2, 40)]
LONG = [agent(f"conversation-{i:03}-" + "x" * 400, 48 - 3 * i, [i]) for i in range(9)]
FORKS = [DrawnAgent(f"fork-{i}", False, 40, LONG[1].own, 4000, 900, 900) for i in range(3)]

CASES = {
    "one": facts_of(cohort(1)),
    "one with layers": facts_of(cohort(1), n_layers=4),
    "few agents with many layers": facts_of(cohort(3, 2000), n_layers=94),
    "many agents with many layers": facts_of([*cohort(22, 9000), *FORKS[:1], *LONG[:1]], n_layers=126),
    "two": facts_of(cohort(2)),
    "two with layers": facts_of(cohort(2), n_layers=4),
    "many tags": facts_of(cohort(12), moments=NIGHTS),
    "many tags with layers": facts_of(cohort(12), n_layers=8, moments=NIGHTS),
    "long names, lengths and forks": facts_of([agent("m" * 512, 90, master=True), *LONG, *FORKS], path="p" * 4000),
    "all named": facts_of(cohort(64), n_layers=4),
    "too many to name": facts_of([*cohort(300, 2000), *LONG, *FORKS]),
    "no blocks": facts_of([agent("a", 0, master=True), agent("b", 0)], moments=[Moment(2, (), 0, 0, 0)]),
    "math and markup": facts_of([agent("$x^{2$", 5, master=True), agent("<b>&_{1}$ \\frac", 5, [1])], path="$a_$"),
    "a thousand": facts_of(cohort(1000, 2000)),
}


def words_of(figure):
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.fixture(params=CASES, scope="module")
def drawn(request):
    figure = draw(CASES[request.param])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return CASES[request.param], figure, canvas.get_renderer()


def test_nothing_leaves_the_picture(drawn):
    _, figure, renderer = drawn
    used, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
    assert min(used.x0, used.y0, width - used.x1, height - used.y1) >= 0


def test_no_words_overlap(drawn):
    _, figure, renderer = drawn
    notes = [note.get_window_extent(renderer) for note in figure.findobj(Annotation)]
    axes = [axis for part in figure.subfigs for axis in part.axes]
    # Names of agents stand below each other, the numbers of generations beside each other.
    labels = [
        [label.get_window_extent(renderer) for label in labels if label.get_text()]
        for labels in (axes[0].get_yticklabels(), axes[0].get_xticklabels(), axes[-1].get_xticklabels())
    ]
    for boxes in ([box.padded(-1) for box in group] for group in (notes, *labels)):
        assert [(one, other) for one, other in combinations(boxes, 2) if one.overlaps(other)] == []


def test_it_says_how_many_and_never_promises_more(drawn):
    facts, figure, _ = drawn
    n_agents = len(facts.agents)
    assert f"{n_agents:,} agent" in words_of(figure)
    assert f"(can never exceed {n_agents:,})" in words_of(figure)


def test_maps_are_not_scaled_down(drawn):
    """Each cell of a map gets a pixel, so that no agent and no block is left out of the file."""
    facts, figure, renderer = drawn
    drawn_maps = [axis for part in figure.subfigs for axis in part.axes if axis.images]
    for axis, raster in zip(drawn_maps, rasters(facts.agents, facts.n_layers), strict=True):
        # Anything softer would let an agent's colour run into its neighbours' lines.
        assert axis.images[0].get_interpolation() == "none"
        box, (rows, columns) = axis.get_window_extent(renderer), raster.own.shape
        scale = 150 / figure.dpi
        assert (box.height * scale >= rows, box.width * scale >= columns) == (True, True)


def legend_of(name):
    figure = draw(CASES[name])
    return [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()]


def test_the_legend_tells_of_what_is_there_and_of_nothing_else():
    assert legend_of("one") == ["the master, kept whole"]
    both = ["the master, kept whole", "an agent's own blocks", "as in the master, not stored again"]
    assert legend_of("two") == both
    assert legend_of("a thousand")[1] == "an agent's own blocks (fainter: some of the blocks here)"
    rest = ["stored with the agent it was forked from", "past an agent's end"]
    assert legend_of("long names, lengths and forks") == both + rest


def test_keys_and_values_have_a_map_each_when_the_layers_are_known():
    titles = [axis.get_title() for axis in draw(CASES["two with layers"]).subfigs[0].axes]
    assert titles[:2] == ["keys, layers from top to bottom in each agent's band", "values"]
    lines = draw(CASES["two with layers"]).subfigs[1].axes[1].lines
    assert [line.get_label() for line in lines] == ["keys", "values"]
    assert len({line.get_marker() for line in lines}) == 2


def test_names_that_differ_only_at_the_end_differ_in_the_picture():
    agents = [agent("main", 5, master=True), *(agent("conversation " * 9 + str(i), 5) for i in range(9))]
    labels = [label.get_text() for label in draw(facts_of(agents)).subfigs[0].axes[0].get_yticklabels()]
    assert len(set(labels)) == 10
