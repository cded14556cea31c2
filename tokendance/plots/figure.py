"""The picture: the map of blocks, bytes per agent beside it, and the store's growth below."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokendance.plots.gather import DrawnAgent, StoreFacts
from tokendance.plots.growth import draw_lower
from tokendance.plots.raster import Raster, as_colours, enlarged, rasters
from tokendance.plots.style import FORKED, INK, MASTER, OWN, PAST_END, SHARED, bare, shortened, unit_for
from tokendance.plots.wording import count_of, in_bytes

__all__ = ["draw", "headline"]

_WIDTH = 13.0
# In inches, for each line of a map to get a pixel of its own at 150 to the inch: measured, what stands above and below
# the map takes up to 108 more than the 1.5 inches that are set aside for it.
_ROW, _ABOVE_AND_BELOW = 1 / 150, 0.75
_MOST_NAMES = 64
_MOST_SIZES = 32
_NAME_LENGTH = 28


def draw(facts: StoreFacts) -> Any:
    """Return the picture of a store, a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure

    maps = rasters(facts.agents, facts.n_layers)
    n_agents = len(facts.agents)
    map_height = float(np.clip(max(0.34 * n_agents, maps[0].own.shape[0] * _ROW + _ABOVE_AND_BELOW), 1.6, 8.5))
    height = map_height + 4.6
    figure: Any = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    upper, lower = figure.subfigures(2, 1, height_ratios=(map_height + 1.5, 3.1))
    _draw_upper(upper, facts, maps)
    draw_lower(lower, facts)
    return figure


def headline(facts: StoreFacts) -> str:
    """Return what the picture shows, in two lines."""
    n_agents = len(facts.agents)
    some = facts.logical_bytes and facts.stored_bytes
    ratio = facts.logical_bytes / facts.stored_bytes if some else 1.0
    return (
        f"{shortened(facts.path, 60)}, generation {facts.generation}: {count_of(n_agents, 'agent')}, "
        f"{in_bytes(facts.logical_bytes)} dense, {in_bytes(facts.stored_bytes)} stored\n"
        f"cohort ratio {ratio:.2f} (can never exceed {n_agents:,})"
    )


def _draw_upper(figure: Any, facts: StoreFacts, maps: Sequence[Raster]) -> None:
    figure.suptitle(headline(facts), fontsize=12, color=INK, parse_math=False)
    axes = figure.subplots(1, len(maps) + 1, sharey=True, width_ratios=[*[3 / len(maps)] * len(maps), 1])
    for axis, raster in zip(axes, maps, strict=False):
        _draw_map(axis, raster, facts)
    _name_agents(axes[0], facts.agents)
    _draw_sizes(axes[-1], facts.agents)
    _legend(figure, facts, maps)


def _draw_map(axis: Any, raster: Raster, facts: StoreFacts) -> None:
    n_agents = len(facts.agents)
    # A map has fewer pixels than the picture, so that none is lost, and no agent's colour runs into another's.
    axis.imshow(
        enlarged(as_colours(raster), 1 if facts.n_layers is None else 2),
        aspect="auto",
        extent=(0, max(raster.n_positions, 1), n_agents, 0),
        interpolation="none",
    )
    layered = facts.n_layers is not None
    axis.set_xlabel("token block" if layered else "block")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if layered:
        per_agent = ", layers from top to bottom in each agent's band" if raster.rows_per_agent > 1 else ""
        axis.set_title(f"{raster.title}{per_agent if raster.title == 'keys' else ''}", fontsize=10, color=INK)
    if n_agents <= _MOST_NAMES:
        for line in range(1, n_agents):
            axis.axhline(line, color="white", linewidth=1.5 if n_agents <= 24 else 0.6)
    bare(axis)


def _name_agents(axis: Any, agents: Sequence[DrawnAgent]) -> None:
    if len(agents) <= _MOST_NAMES:
        names = [shortened(agent.name, _NAME_LENGTH) + (" (master)" if agent.master else "") for agent in agents]
        size = 9 if len(agents) <= 24 else 6.5
        axis.set_yticks(np.arange(len(agents)) + 0.5, names, fontsize=size, parse_math=False)
        return
    axis.set_ylabel(f"{len(agents):,} agents, the master first")


def _draw_sizes(axis: Any, agents: Sequence[DrawnAgent]) -> None:
    unit, scale = unit_for(max(max(agent.logical_bytes, agent.stored_bytes) for agent in agents))
    dense, stored, alone = (
        np.array(sizes) / scale
        for sizes in (
            [agent.logical_bytes for agent in agents],
            [agent.stored_bytes for agent in agents],
            [agent.stored_bytes - agent.forked_bytes for agent in agents],
        )
    )
    if len(agents) <= _MOST_NAMES:
        at = np.arange(len(agents)) + 0.5
        for sizes, colours in ((dense, [SHARED]), (stored, [FORKED]), (alone, _colours(agents))):
            axis.barh(at, sizes, height=0.72, color=colours)
    else:
        edges = np.arange(len(agents) + 1)
        for sizes, colour in ((dense, SHARED), (stored, FORKED), (alone, OWN)):
            axis.fill_betweenx(edges, np.append(sizes, sizes[-1]), step="post", color=colour, linewidth=0)
        axis.fill_betweenx([0, 1], [stored[0]] * 2, color=MASTER, linewidth=1, edgecolor=MASTER)
    widest = np.maximum(dense, stored)
    if len(agents) <= _MOST_SIZES:
        _write_sizes(axis, agents, widest)
    room = 1.02 if len(agents) > _MOST_SIZES else 1.65 if any(agent.forked_bytes for agent in agents) else 1.35
    axis.set_xlim(0, float(widest.max(initial=0)) * room or 1)
    axis.set_title("bytes stored, of dense", fontsize=10, color=INK)
    axis.set_xlabel(unit)
    bare(axis)


def _colours(agents: Sequence[DrawnAgent]) -> list[str]:
    return [MASTER if agent.master else OWN for agent in agents]


def _write_sizes(axis: Any, agents: Sequence[DrawnAgent], widest: Any) -> None:
    for line, agent in enumerate(agents):
        axis.annotate(
            in_bytes(agent.stored_bytes) + (" shared" if agent.forked_bytes else ""),
            (widest[line], line + 0.5),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )


def _legend(figure: Any, facts: StoreFacts, maps: Sequence[Raster]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=MASTER, label="the master, kept whole")]
    if len(facts.agents) > 1:
        partly = any(((raster.own > 0) & (raster.own < 1)).any() for raster in maps)
        fainter = " (fainter: some of the blocks here)" if partly else ""
        handles.append(Patch(color=OWN, label=f"an agent's own blocks{fainter}"))
        handles.append(Patch(color=SHARED, label="as in the master, not stored again"))
    if any(agent.forked_bytes for agent in facts.agents):
        handles.append(Patch(color=FORKED, label="stored with the agent it was forked from"))
    if len({agent.n_blocks for agent in facts.agents}) > 1:
        handles.append(Patch(facecolor=PAST_END, edgecolor=SHARED, label="past an agent's end"))
    # Five in a row are wider than the picture.
    columns = len(handles) if len(handles) < 5 else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
