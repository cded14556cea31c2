"""Agents × blocks as pixels: what share of the blocks under each pixel are an agent's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokendance.plots.gather import DrawnAgent

__all__ = ["MASTER", "OWN", "PAST_END", "SHARED", "Raster", "as_colours", "layer_shares", "rasters"]

# Okabe and Ito's colours, told apart with any colour vision, and in grey.
OWN, MASTER = "#0072B2", "#E69F00"
SHARED, PAST_END = "#E9EDF0", "#FFFFFF"

_MOST_COLUMNS = 1400
_MOST_ROWS = 1200
# Beyond this many agents a layer's line would be thinner than a pixel.
_AGENTS_WITH_LAYERS = 24
# One own block among a thousand under a pixel must not vanish.
_FAINTEST = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """A map of blocks.

    Attributes
    ----------
    title : str
    own : numpy.ndarray
        ``(n_rows, n_columns)`` float: the share of an agent's blocks here that are its own; NaN past its end.
    kept : numpy.ndarray
        ``(n_rows, n_columns)`` float: the share of blocks here that are the master's.
    n_positions : int
        How many blocks, or token blocks, the columns stand for.
    rows_per_agent : float
    """

    title: str
    own: NDArray[np.float64]
    kept: NDArray[np.float64]
    n_positions: int
    rows_per_agent: float


def rasters(agents: Sequence[DrawnAgent], n_layers: int | None) -> list[Raster]:
    """Return one map of all blocks; or one of keys and one of values, over token blocks, where layers are known.

    With layers, each agent is a band with its first layer on top, as long as there is room for that.
    """
    if n_layers is None:
        return [_raster("", agents, stride=1, first=0, n_layers=1, bands=1)]
    bands = n_layers if len(agents) <= _AGENTS_WITH_LAYERS else 1
    return [
        _raster(title, agents, stride=2, first=first, n_layers=n_layers, bands=bands)
        for first, title in enumerate(("keys", "values"))
    ]


def _raster(title: str, agents: Sequence[DrawnAgent], *, stride: int, first: int, n_layers: int, bands: int) -> Raster:
    """Count own blocks ``first, first + stride, ...``, of which `n_layers` in turn share a position."""
    n_positions = max(-(-agent.n_blocks // (stride * n_layers)) for agent in agents)
    columns, lines = max(min(n_positions, _MOST_COLUMNS), 1), len(agents) * bands
    rows = min(lines, _MOST_ROWS)
    shape = (rows, columns)
    own, there, kept = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for number, agent in enumerate(agents):
        blocks = np.arange(first, agent.n_blocks, stride)
        inside = agent.own[agent.own % stride == first]
        for counted, positions in ((there, blocks), (own, inside), (kept, blocks if agent.master else blocks[:0])):
            at = positions // stride
            line = number * bands + (at % n_layers) * bands // n_layers
            row, column = line * rows // lines, at // n_layers * columns // max(n_positions, 1)
            np.add(counted, np.bincount(row * columns + column, minlength=rows * columns).reshape(shape), out=counted)
    with np.errstate(invalid="ignore"):
        return Raster(title, own / there, kept / there, n_positions, rows / len(agents))


def as_colours(raster: Raster) -> NDArray[np.float64]:
    """Return a map's pixels, ``(n_rows, n_columns, 3)`` from 0 to 1."""
    past_end = np.isnan(raster.own)[..., None]
    strength = np.nan_to_num(raster.own)
    strength = np.where(strength > 0, _FAINTEST + (1 - _FAINTEST) * strength, 0.0)[..., None]
    image = _mixed(np.array(_rgb(SHARED)), np.array(_rgb(OWN)), strength)
    image = _mixed(image, np.array(_rgb(MASTER)), np.nan_to_num(raster.kept)[..., None])
    coloured: NDArray[np.float64] = np.where(past_end, np.array(_rgb(PAST_END)), image)
    return coloured


def layer_shares(agents: Sequence[DrawnAgent], n_layers: int) -> NDArray[np.float64]:
    """Return the share of own blocks among all mirrors' blocks, ``(2, n_layers)``: keys, then values."""
    mirrors = [agent for agent in agents if not agent.master]
    own, there = np.zeros(2 * n_layers), np.zeros(2 * n_layers)
    for agent in mirrors:
        own += np.bincount(agent.own % (2 * n_layers), minlength=2 * n_layers)
        there += np.bincount(np.arange(agent.n_blocks) % (2 * n_layers), minlength=2 * n_layers)
    return (own / np.maximum(there, 1)).reshape(n_layers, 2).T


def _mixed(colour: NDArray[np.float64], other: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    return colour * (1 - share) + other * share


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue
