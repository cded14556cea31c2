"""A picture as bytes of a PNG, an SVG, or a page that needs nothing else."""

import html
import re
import warnings
from io import BytesIO
from typing import Any

from tokendance.plots.figure import draw, headline
from tokendance.plots.gather import StoreFacts
from tokendance.plots.wording import in_bytes, shown

__all__ = ["picture"]

_DOTS_PER_INCH = 150
# What a style may change of a picture; the rest is about windows, animations and files.
_OUR_SETTINGS = (
    *("axes.", "figure.", "grid.", "hatch.", "image.", "legend.", "lines.", "patch.", "path.", "savefig.", "svg."),
    *("text.", "xtick.", "ytick."),
)
# Names of agents are often in letters that matplotlib's own font lacks; the first of these that is there has them.
_EAST_ASIAN = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
figure {{ margin: 0 }}
body {{ margin: 1em auto; max-width: 96em; font-family: sans-serif; color: #333; background: #fff }}
svg {{ width: 100%; height: auto }}
table {{ border-collapse: collapse }}
th, td {{ padding: 0.2em 0.8em; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
tr:nth-child(even) {{ background: #f3f5f7 }}
</style>
</head>
<body>
<figure role="img" aria-label="{headline}">
{picture}
</figure>
<details>
<summary>The numbers</summary>
<table>
<tr><th>agent</th><th>blocks</th><th>own</th><th>dense</th><th>stored</th></tr>
{rows}
</table>
</details>
</body>
</html>
"""


def picture(facts: StoreFacts, kind: str) -> bytes:
    """Return the picture of a store.

    Parameters
    ----------
    facts : StoreFacts
    kind : str
        ``"png"``, ``"svg"``, or ``"html"``: a page with the SVG in it, and the numbers as a table.
    """
    if kind == "html":
        return _page(facts).encode()
    return _drawn(facts, kind)


def _drawn(facts: StoreFacts, kind: str) -> bytes:
    import matplotlib as mpl

    # Without a date, and whatever style its user likes, the same store gives the same file.
    metadata: dict[str, Any] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    }[kind]
    file = BytesIO()
    with mpl.rc_context(_settings()), warnings.catch_warnings():
        # Agents may carry names in letters that the font lacks; they are boxes then, which is no reason to complain.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        draw(facts).savefig(file, format=kind, dpi=_DOTS_PER_INCH, metadata=metadata, facecolor="white")
    return file.getvalue()


def _settings() -> Any:
    import matplotlib as mpl
    from matplotlib.font_manager import get_font_names

    # All but what fonts there are, which the user knows best.
    wanted = {key: mpl.rcParamsDefault[key] for key in mpl.rcParamsDefault if key.startswith(_OUR_SETTINGS)}
    there = set(get_font_names())
    families = [*mpl.rcParams["font.sans-serif"][:1], *(name for name in _EAST_ASIAN if name in there)]
    ours = {"svg.fonttype": "none", "svg.hashsalt": "tokendance", "axes.labelsize": 9}
    return wanted | {"font.family": families} | ours


def _page(facts: StoreFacts) -> str:
    svg = _drawn(facts, "svg").decode()
    # A prologue has no place inside a page, and names a document type by its address.
    svg = re.sub(r"^.*?(?=<svg)", "", svg, count=1, flags=re.DOTALL)
    rows = "\n".join(
        f"<tr><td>{html.escape(shown(agent.name))}{' (master)' if agent.master else ''}</td><td>{agent.n_blocks:,}</td>"
        f"<td>{agent.n_blocks if agent.master else len(agent.own):,}</td><td>{in_bytes(agent.logical_bytes)}</td>"
        f"<td>{in_bytes(agent.stored_bytes)}</td></tr>"
        for agent in facts.agents
    )
    return _PAGE.format(
        title=html.escape(shown(facts.path)), headline=html.escape(headline(facts)), picture=svg, rows=rows
    )
