"""A picture of the table: how much of what its floor allows each row takes."""

from pathlib import Path

from benchmarks.rows import Row

__all__ = ["plot"]

# Blue and vermilion of Okabe and Ito: told apart with any kind of colour blindness. Hatching tells them apart in grey.
_MET, _MISSED = "#0072B2", "#D55E00"


def plot(rows: list[Row], path: Path) -> None:
    """Draw a bar for each row that has a floor: its ratio as a share of the floor, 1 being just met.

    Parameters
    ----------
    rows : list of Row
    path : Path
        A PNG; replaced if it is there.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    bars = [(row.name, row.share_of_floor, row.verdict) for row in rows if row.share_of_floor is not None]
    figure, axes = plt.subplots(figsize=(10, 1.4 + 0.38 * len(bars)), layout="constrained")
    label = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # where the line runs behind the number
    for at, (_name, share, verdict) in enumerate(bars):
        missed = verdict == "missed"
        axes.barh(at, share, color=_MISSED if missed else _MET, hatch="//" if missed else None, edgecolor="white")
        axes.annotate(
            f"{share:.2f}", (share, at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9, bbox=label
        )
    axes.axvline(1.0, color="black", linewidth=1.2)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("share of what the floor allows (shorter is better, the line is the floor)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        handles=[Patch(facecolor=_MET, label="met"), Patch(facecolor=_MISSED, hatch="//", label="missed")],
        loc="lower right",
        frameon=False,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
