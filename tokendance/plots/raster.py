"""Agents × blocks as pixels: what share of the blocks under each pixel are an agent's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokendance.plots.gather import DrawnAgent
from tokendance.plots.style import MASTER, OWN, PAST_END, SHARED

__all__ = ["Raster", "as_colours", "enlarged", "layer_shares", "rasters"]

# Less than the pixels that the maps get in a picture, so that drawing them leaves out none: measured, 1,150 in each row
# of a single map with long names beside it, 550 in each of two, and 1,190 lines.
_MOST_COLUMNS = 1000
_MOST_ROWS = 1000
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
        return [_raster("", agents, _Grid.over(agents, stride=1, n_layers=1, bands=1, most_columns=_MOST_COLUMNS), 0)]
    bands = n_layers if len(agents) <= _AGENTS_WITH_LAYERS else 1
    grid = _Grid.over(agents, stride=2, n_layers=n_layers, bands=bands, most_columns=_MOST_COLUMNS // 2)
    return [_raster(title, agents, grid, first) for first, title in enumerate(("keys", "values"))]


class _Grid(NamedTuple):
    """Which cell of an agent's lines a block falls into: of `stride` blocks in turn, `n_layers` share a position."""

    stride: int
    n_layers: int
    bands: int
    n_positions: int
    columns: int

    @classmethod
    def over(
        cls, agents: Sequence[DrawnAgent], *, stride: int, n_layers: int, bands: int, most_columns: int
    ) -> "_Grid":
        n_positions = max(-(-agent.n_blocks // (stride * n_layers)) for agent in agents)
        return cls(stride, n_layers, bands, n_positions, max(min(n_positions, most_columns), 1))

    def counted(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of the blocks fall into each cell, ``(bands, columns)``."""
        at = blocks // self.stride
        line = at % self.n_layers * self.bands // self.n_layers
        column = at // self.n_layers * self.columns // max(self.n_positions, 1)
        found = np.bincount(line * self.columns + column, minlength=self.bands * self.columns)
        return found.reshape(self.bands, self.columns)


def _raster(title: str, agents: Sequence[DrawnAgent], grid: _Grid, first: int) -> Raster:
    """Count the blocks ``first, first + grid.stride, ...`` of all agents."""
    lines = len(agents) * grid.bands
    rows = min(lines, _MOST_ROWS)
    own, there, kept = (np.zeros((rows, grid.columns)) for _ in range(3))
    # Most agents are as long as others, and counting all their blocks takes the longest.
    whole = {
        length: grid.counted(np.arange(first, length, grid.stride)) for length in {agent.n_blocks for agent in agents}
    }
    for number, agent in enumerate(agents):
        at = (number * grid.bands + np.arange(grid.bands)) * rows // lines
        np.add.at(there, at, whole[agent.n_blocks])
        np.add.at(own, at, grid.counted(agent.own[agent.own % grid.stride == first]))
        if agent.master:
            np.add.at(kept, at, whole[agent.n_blocks])
    with np.errstate(invalid="ignore"):
        return Raster(title, own / there, kept / there, grid.n_positions, rows / len(agents))


def as_colours(raster: Raster) -> NDArray[np.float64]:
    """Return a map's pixels, ``(n_rows, n_columns, 3)`` from 0 to 1."""
    past_end = np.isnan(raster.own)[..., None]
    strength = np.nan_to_num(raster.own)
    strength = np.where(strength > 0, _FAINTEST + (1 - _FAINTEST) * strength, 0.0)[..., None]
    image = _mixed(np.array(_rgb(SHARED)), np.array(_rgb(OWN)), strength)
    image = _mixed(image, np.array(_rgb(MASTER)), np.nan_to_num(raster.kept)[..., None])
    coloured: NDArray[np.float64] = np.where(past_end, np.array(_rgb(PAST_END)), image)
    return coloured


def enlarged(image: NDArray[np.float64], n_maps: int) -> NDArray[np.float64]:
    """Return a map's pixels so large that no viewer of an SVG, some of which blur what they enlarge, runs two together.

    Examples
    --------
    >>> enlarged(np.zeros((2, 300, 3)), n_maps=1).shape
    (1000, 900, 3)
    """
    rows, columns = image.shape[:2]
    return image.repeat(max(_MOST_ROWS // rows, 1), 0).repeat(max(_MOST_COLUMNS // n_maps // columns, 1), 1)


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
