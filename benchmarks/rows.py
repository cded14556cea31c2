"""A row of the table: a ratio, its floor, and whether it was met."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.timing import Pairs, quartiles

__all__ = ["Floor", "Row", "from_bytes", "from_pairs", "from_seconds", "in_words", "skipped"]


@dataclass(frozen=True, slots=True)
class Floor:
    """What a ratio has to stay below, or above.

    Attributes
    ----------
    limit : float
    at_least : bool
        Whether the ratio must be that large, not that small.
    text : str
        How it is said, where the limit alone does not say it.
    """

    limit: float
    at_least: bool = False
    text: str = ""

    def met_by(self, ratio: float) -> bool:
        """Say whether a ratio meets the floor."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        return self.text or f"{'≥' if self.at_least else '≤'} {self.limit:g} ×"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name, against : str
        What was measured, and what it is compared with.
    ratio, low, high : float or None
        The median of the pairs' ratios and its quartiles; None if the row was skipped.
    ours, theirs : float or None
        The medians of the two, in `unit`; `theirs` is None if the row is not a ratio.
    unit : str
        "s" or "bytes".
    floor : Floor or None
        None for a row that only informs.
    note : str
        Why it was skipped, or what is special.
    failed : bool
        Whether it is skipped because it raised.
    """

    name: str
    against: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    ours: float | None = None
    theirs: float | None = None
    unit: str = "s"
    repeats: int = 0
    floor: Floor | None = None
    note: str = ""
    failed: bool = False

    @property
    def verdict(self) -> str:
        """One of: met, missed, skipped, failed, and a dash for a row that only informs."""
        if self.ratio is None:
            return "failed" if self.failed else "skipped"
        if self.floor is None:
            return "–"
        return "met" if self.floor.met_by(self.ratio) else "missed"

    @property
    def share_of_floor(self) -> float | None:
        """How much of what its floor allows the ratio takes: 1 is just met, more is missed."""
        if self.ratio is None or self.floor is None:
            return None
        return self.floor.limit / self.ratio if self.floor.at_least else self.ratio / self.floor.limit

    def as_json(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return asdict(self) | {"verdict": self.verdict, "share_of_floor": self.share_of_floor}


def from_pairs(name: str, against: str, pairs: Pairs, floor: Floor | None = None, note: str = "") -> Row:
    """Return the row of two things that were timed in turn.

    Examples
    --------
    >>> row = from_pairs("a", "b", Pairs((1.0, 2.0, 3.0), (2.0, 2.0, 2.0)), Floor(0.9))
    >>> row.ratio, row.verdict
    (1.0, 'missed')
    """
    low, ratio, high = quartiles(pairs.ratios)
    ours, theirs = quartiles(pairs.ours)[1], quartiles(pairs.theirs)[1]
    return Row(name, against, ratio, low, high, ours, theirs, "s", len(pairs.ours), floor, note)


def from_seconds(name: str, seconds: tuple[float, ...], floor: Floor, note: str = "") -> Row:
    """Return the row of something that is compared with nothing; its "ratio" is in milliseconds."""
    low, median, high = (value * 1e3 for value in quartiles(seconds))
    return Row(name, "–", median, low, high, median / 1e3, None, "s", len(seconds), floor, note)


def from_bytes(name: str, against: str, ours: float, theirs: float, floor: Floor | None = None, note: str = "") -> Row:
    """Return the row of two sizes."""
    ratio = ours / theirs
    return Row(name, against, ratio, ratio, ratio, ours, theirs, "bytes", 1, floor, note)


def skipped(name: str, against: str, why: str) -> Row:
    """Return the row of something that cannot be measured here."""
    return Row(name, against, note=why)


def in_words(amount: float | None, unit: str) -> str:
    """Return seconds or bytes with a unit that suits them.

    Examples
    --------
    >>> in_words(0.0123, "s"), in_words(3 << 20, "bytes"), in_words(None, "s")
    ('12.3 ms', '3.0 MiB', '–')
    """
    if amount is None:
        return "–"
    if unit == "bytes":
        if amount >= 1 << 30:
            return f"{amount / (1 << 30):.2f} GiB"
        return f"{amount / (1 << 20):.1f} MiB" if amount >= 1 << 20 else f"{amount / 1024:.1f} KiB"
    if amount >= 1:
        return f"{amount:.2f} s"
    return f"{amount * 1e3:.1f} ms" if amount >= 1e-3 else f"{amount * 1e6:.0f} µs"
