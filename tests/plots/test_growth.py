"""Names of tags, where there is room for them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokendance.plots.growth import labelled

widths = st.dictionaries(st.integers(0, 63), st.floats(0.1, 40), min_size=1)


@given(widths)
def test_labels_do_not_overlap_and_the_newest_is_there(widths):
    found = labelled(widths)
    assert found[0][0] == max(widths)
    spans = [
        (index - widths[index], index) if leftwards else (index, index + widths[index]) for index, leftwards in found
    ]
    for (start, _), (_, end) in pairwise(spans):
        assert end <= start


def test_labels_that_fit_are_all_there():
    assert labelled({0: 2.0, 5: 2.0, 8: 2.0}) == [(8, True), (5, True), (0, False)]
    assert labelled({5: 9.0, 6: 9.0}) == [(6, False)]
