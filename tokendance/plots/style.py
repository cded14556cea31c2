"""Colours, sizes and short words that all parts of the picture share."""

import unicodedata
from typing import Any

from tokendance.plots.wording import shown

__all__ = ["FORKED", "INK", "MASTER", "OWN", "PAST_END", "SHARED", "WRITTEN", "bare", "cells", "shortened", "unit_for"]

# Okabe and Ito's colours, and tints between them and white: those that touch are told apart with any colour vision, and
# in grey.
OWN, MASTER, WRITTEN = "#0072B2", "#E69F00", "#56B4E9"
FORKED, SHARED, PAST_END, INK = "#86BDDF", "#DCE3E8", "#FFFFFF", "#333333"


def bare(axis: Any) -> None:
    """Take away what frames an axis without saying anything."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)


def cells(text: str) -> int:
    """Return how wide a text is, in letters; those of East Asia are as wide as two.

    Examples
    --------
    >>> cells("critic"), cells("評論家")
    (6, 6)
    """
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def shortened(text: str, most: int) -> str:
    r"""Return text in at most so many letters, all of them printable; names alike at first often differ at the end.

    Examples
    --------
    >>> shortened("conversation-17-of-the-writer-0042", 16)
    'conversa…er-0042'
    """
    clean = shown(text)
    return clean if len(clean) <= most else clean[: most // 2] + "…" + clean[len(clean) - (most - 1 - most // 2) :]


def unit_for(most: float) -> tuple[str, int]:
    """Return the unit in which sizes up to `most` are said, and how many bytes it is.

    Examples
    --------
    >>> unit_for(3 << 20)
    ('MiB', 1048576)
    """
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if most >= 1024**power:
            return unit, int(1024**power)
    return "bytes", 1
