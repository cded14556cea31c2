"""The lower part of the picture: how the store grew, and in which layers agents differ."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendance.plots.gather import Moment, StoreFacts
from tokendance.plots.raster import layer_shares
from tokendance.plots.style import INK, OWN, WRITTEN, bare, cells, shortened, unit_for

__all__ = ["draw_lower", "labelled"]

# Neither is a colour of the map: there, keys and values have a map each.
_KEYS, _VALUES = INK, "#D55E00"
_DENSE = "#7A838C"
# A few bars stay narrow, at the left, as if the rest were to come.
_LEAST_SLOTS = 8
_MOST_NUMBERS = 16
_TAG_LENGTH = 18
# Of a letter of a tag, in inches; what the two widths of the growth's axis leave is measured in them.
_LETTER, _WIDE, _NARROW = 0.075, 9.0, 4.6


def draw_lower(figure: Any, facts: StoreFacts) -> None:
    """Draw the growth, and beside it the layers, where they are known and somebody can differ in them."""
    if facts.n_layers is None or len(facts.agents) == 1:
        _draw_growth(figure.subplots(), facts.moments, _WIDE)
        return
    growth, layers = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_growth(growth, facts.moments, _NARROW)
    _draw_layers(layers, layer_shares(facts.agents, facts.n_layers))


def _draw_growth(axis: Any, moments: Sequence[Moment], inches: float) -> None:
    unit, scale = unit_for(max((max(one[2:]) for one in moments), default=1))
    at, slots = np.arange(len(moments)), max(len(moments), _LEAST_SLOTS)
    dense, stored, written = (np.array([one[part] for one in moments]) / scale for part in (2, 3, 4))
    axis.bar(at, written, width=0.5, color=WRITTEN, label="written")
    for label, colour, style, sizes in (("all agents dense", _DENSE, "--", dense), ("stored", OWN, "-", stored)):
        axis.plot(at, sizes, style, color=colour, marker="o", markersize=4, label=label)
    numbered = _spread(len(moments), min(len(moments), _MOST_NUMBERS))
    axis.set_xticks(numbered, [str(moments[index].generation) for index in numbered])
    top = np.maximum(np.maximum(dense, stored), written)
    _draw_tags(axis, moments, top, inches / slots)
    axis.set_xlim(-0.6, slots - 0.4)
    axis.set_ylim(0, float(top.max(initial=0)) * 1.2 or 1)
    axis.set_xlabel("generation")
    axis.set_ylabel(unit)
    axis.set_title("growth over generations", fontsize=10, color=INK)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    bare(axis)


def _draw_tags(axis: Any, moments: Sequence[Moment], top: NDArray[np.float64], slot: float) -> None:
    """Mark every tagged generation, and name those for which there is room, the newest first."""
    tagged = [index for index, one in enumerate(moments) if one.tags]
    if not tagged:
        return
    axis.plot(tagged, top[tagged], "v", color=INK, markersize=7, linestyle="", label="tagged")
    names = {index: shortened(", ".join(moments[index].tags), _TAG_LENGTH) for index in tagged}
    for index, leftwards in labelled({index: cells(name) * _LETTER / slot for index, name in names.items()}):
        axis.annotate(
            names[index],
            (index, top[index]),
            xytext=(4 if leftwards else -4, 6),
            textcoords="offset points",
            ha="right" if leftwards else "left",
            fontsize=8,
            color=INK,
            parse_math=False,
        )


def labelled(widths: dict[int, float]) -> list[tuple[int, bool]]:
    """Return which labels have room on a line, and whether they extend to the left of their position, or the right.

    Parameters
    ----------
    widths : dict
        How wide the label at each position is, in positions.

    Examples
    --------
    >>> labelled({0: 1.5, 1: 1.5, 9: 3.0})
    [(9, True), (1, True)]
    """
    found, free = [], float("inf")
    for index in sorted(widths, reverse=True):
        # At the left end a label has no room to the left, and at the right end none to the right.
        leftwards = index + 0.5 >= widths[index]
        end = index if leftwards else index + widths[index]
        if end < free:
            found.append((index, leftwards))
            free = index - widths[index] if leftwards else index
    return found


def _spread(n_items: int, n_chosen: int) -> list[int]:
    chosen: list[int] = np.unique(np.linspace(0, max(n_items - 1, 0), n_chosen).round().astype(int)).tolist()
    return chosen


def _draw_layers(axis: Any, shares: NDArray[np.float64]) -> None:
    layers = np.arange(shares.shape[1])
    for label, colour, style, marker, share in (
        ("keys", _KEYS, "-", "o", shares[0]),
        ("values", _VALUES, "--", "s", shares[1]),
    ):
        axis.plot(layers, 100 * share, style, color=colour, marker=marker, markersize=4, label=label)
    axis.set_ylim(0, max(float(100 * shares.max(initial=0)) * 1.15, 1))
    axis.set_xlabel("layer")
    axis.set_ylabel("own blocks, % of mirrors'")
    axis.set_title("own blocks by layer", fontsize=10, color=INK)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    bare(axis)
