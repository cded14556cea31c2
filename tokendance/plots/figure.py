"""The picture: the map of blocks, bytes per agent beside it, and the store's growth below."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokendance.plots.gather import DrawnAgent, Moment, StoreFacts
from tokendance.plots.raster import MASTER, OWN, SHARED, Raster, as_colours, layer_shares, rasters
from tokendance.plots.wording import count_of, in_bytes, shown

__all__ = ["draw"]

KEYS, VALUES = "#0072B2", "#D55E00"
DENSE, WRITTEN, INK = "#C5CCD3", "#56B4E9", "#333333"
_WIDTH = 13.0
_MOST_NAMES = 64
_MOST_SIZES = 32
_MOST_TAGS = 12
_NAME_LENGTH = 28


def draw(facts: StoreFacts) -> Any:
    """Return the picture of a store, a `matplotlib.figure.Figure`."""
    from matplotlib.figure import Figure

    maps = rasters(facts.agents, facts.n_layers)
    n_agents = len(facts.agents)
    map_height = float(np.clip(0.34 * n_agents, 1.6, 8.5))
    height = map_height + 4.6
    figure: Any = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    upper, lower = figure.subfigures(2, 1, height_ratios=(map_height + 1.5, 3.1))
    _draw_upper(upper, facts, maps)
    _draw_lower(lower, facts)
    return figure


def _draw_upper(figure: Any, facts: StoreFacts, maps: Sequence[Raster]) -> None:
    figure.suptitle(_headline(facts), fontsize=12, color=INK, parse_math=False)
    axes = figure.subplots(1, len(maps) + 1, sharey=True, width_ratios=[*[3 / len(maps)] * len(maps), 1])
    for axis, raster in zip(axes, maps, strict=False):
        _draw_map(axis, raster, facts)
    _name_agents(axes[0], facts.agents)
    _draw_sizes(axes[-1], facts.agents)
    _legend(figure, facts)


def _headline(facts: StoreFacts) -> str:
    n_agents = len(facts.agents)
    ratio = facts.logical_bytes / facts.stored_bytes if facts.stored_bytes else 1.0
    return (
        f"{_short(facts.path, 60)}, generation {facts.generation}: {count_of(n_agents, 'agent')}, "
        f"{in_bytes(facts.logical_bytes)} dense, {in_bytes(facts.stored_bytes)} stored\n"
        f"cohort ratio {ratio:.2f} (can never exceed {n_agents})"
    )


def _draw_map(axis: Any, raster: Raster, facts: StoreFacts) -> None:
    n_agents = len(facts.agents)
    image = as_colours(raster)
    # A map with pixels to spare is drawn in hard edges; where pixels are averaged, softly.
    few = image.shape[0] <= 200 and image.shape[1] <= 300
    axis.imshow(
        image,
        aspect="auto",
        extent=(0, max(raster.n_positions, 1), n_agents, 0),
        interpolation="nearest" if few else "auto",
    )
    layered = facts.n_layers is not None
    axis.set_xlabel("token block" if layered else "block")
    if layered:
        per_agent = ", layers from top to bottom in each agent's band" if raster.rows_per_agent > 1 else ""
        axis.set_title(f"{raster.title}{per_agent if raster.title == 'keys' else ''}", fontsize=10, color=INK)
    if n_agents <= _MOST_NAMES:
        for line in range(1, n_agents):
            axis.axhline(line, color="white", linewidth=1.5 if n_agents <= 24 else 0.6)
    _bare(axis)


def _name_agents(axis: Any, agents: Sequence[DrawnAgent]) -> None:
    if len(agents) <= _MOST_NAMES:
        names = [_short(agent.name, _NAME_LENGTH) + (" (master)" if agent.master else "") for agent in agents]
        size = 9 if len(agents) <= 24 else 6.5
        axis.set_yticks(np.arange(len(agents)) + 0.5, names, fontsize=size, parse_math=False)
        return
    axis.set_ylabel(f"{len(agents):,} agents, the master first")


def _draw_sizes(axis: Any, agents: Sequence[DrawnAgent]) -> None:
    unit, scale = _unit(max(agent.logical_bytes for agent in agents))
    dense = np.array([agent.logical_bytes for agent in agents]) / scale
    stored = np.array([agent.stored_bytes for agent in agents]) / scale
    if len(agents) <= _MOST_NAMES:
        at = np.arange(len(agents)) + 0.5
        colours = [MASTER if agent.master else OWN for agent in agents]
        axis.barh(at, dense, height=0.72, color=DENSE)
        axis.barh(at, stored, height=0.72, color=colours)
    else:
        edges = np.arange(len(agents) + 1)
        for sizes, colour in ((dense, DENSE), (stored, OWN)):
            axis.fill_betweenx(edges, np.append(sizes, sizes[-1]), step="post", color=colour, linewidth=0)
        axis.fill_betweenx([0, 1], [stored[0]] * 2, color=MASTER, linewidth=1, edgecolor=MASTER)
    if len(agents) <= _MOST_SIZES:
        for line, agent in enumerate(agents):
            axis.annotate(
                in_bytes(agent.stored_bytes),
                (dense[line], line + 0.5),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
        axis.set_xlim(0, float(dense.max(initial=0)) * 1.35 or 1)
    else:
        axis.set_xlim(0, float(dense.max(initial=0)) * 1.02 or 1)
    axis.set_title("stored, of what it takes dense", fontsize=10, color=INK)
    axis.set_xlabel(unit)
    _bare(axis)


def _legend(figure: Any, facts: StoreFacts) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=MASTER, label="the master, kept whole"),
        Patch(color=OWN, label="an agent's own blocks (fainter: some of the blocks under a pixel)"),
        Patch(color=SHARED, label="as in the master"),
        Patch(color=DENSE, label="dense"),
    ]
    if len({agent.n_blocks for agent in facts.agents}) > 1:
        handles.append(Patch(facecolor="white", edgecolor=DENSE, label="past an agent's end"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)


def _draw_lower(figure: Any, facts: StoreFacts) -> None:
    if facts.n_layers is None:
        _draw_growth(figure.subplots(), facts.moments)
        return
    growth, layers = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_growth(growth, facts.moments)
    _draw_layers(layers, layer_shares(facts.agents, facts.n_layers))


def _draw_growth(axis: Any, moments: Sequence[Moment]) -> None:
    unit, scale = _unit(max((moment.logical_bytes for moment in moments), default=1))
    at = np.arange(len(moments))
    axis.bar(
        at, [one.written_bytes / scale for one in moments], width=0.5, color=WRITTEN, label="written by its commit"
    )
    for label, colour, style, sizes in (
        ("all agents dense", "#7A838C", "--", [one.logical_bytes for one in moments]),
        ("stored", OWN, "-", [one.stored_bytes for one in moments]),
    ):
        axis.plot(at, np.array(sizes) / scale, style, color=colour, marker="o", markersize=4, label=label)
    shown_at = np.unique(np.linspace(0, max(len(moments) - 1, 0), min(len(moments), 16)).round().astype(int))
    axis.set_xticks(shown_at, [str(moments[index].generation) for index in shown_at])
    tagged = [(index, ", ".join(one.tags)) for index, one in enumerate(moments) if one.tags]
    for index, tags in tagged if len(tagged) <= _MOST_TAGS else []:
        high = max(moments[index].logical_bytes / scale, moments[index].written_bytes / scale)
        axis.annotate(
            _short(tags, 18),
            (index, high),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
            parse_math=False,
        )
    axis.set_xlim(-0.6, max(len(moments) - 1, 0) + 0.6)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.12)
    axis.set_xlabel("generation")
    axis.set_ylabel(unit)
    axis.set_title("growth, and tags", fontsize=10, color=INK)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _bare(axis)


def _draw_layers(axis: Any, shares: Any) -> None:
    layers = np.arange(shares.shape[1])
    for label, colour, style, marker, share in (
        ("keys", KEYS, "-", "o", shares[0]),
        ("values", VALUES, "--", "s", shares[1]),
    ):
        axis.plot(layers, 100 * share, style, color=colour, marker=marker, markersize=4, label=label)
    axis.set_ylim(0, max(float(100 * shares.max(initial=0)) * 1.15, 1))
    axis.set_xlabel("layer")
    axis.set_ylabel("own blocks, % of mirrors'")
    axis.set_title("own blocks by layer", fontsize=10, color=INK)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, frameon=False)
    _bare(axis)


def _bare(axis: Any) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)


def _short(text: str, most: int) -> str:
    clean = shown(text)
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def _unit(most: float) -> tuple[str, int]:
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if most >= 1024**power:
            return unit, int(1024**power)
    return "bytes", 1
