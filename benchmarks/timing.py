"""Two things timed in turn, so that what slows the machine down for a while slows both."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Pairs", "Trial", "in_turn", "quartiles", "timed"]


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Something to time.

    Attributes
    ----------
    run : callable
        What is timed; its result is dropped outside of the time.
    before, after : callable
        Run before and after it, not timed.
    """

    run: Callable[[], object]
    before: Callable[[], object] = _nothing
    after: Callable[[], object] = _nothing


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of two things, the i-th of one right after the i-th of the other."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over theirs, pair by pair."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    def inverted(self) -> "Pairs":
        """Return the pairs the other way round, so that the ratio says how many times faster we are."""
        return Pairs(self.theirs, self.ours)


def timed(trial: Trial) -> float:
    """Return the seconds that one run takes."""
    trial.before()
    start = time.perf_counter()
    result = trial.run()
    seconds = time.perf_counter() - start
    del result
    trial.after()
    return seconds


def in_turn(ours: Trial, theirs: Trial, *, repeats: int, warm_up: int = 1) -> Pairs:
    """Time two things in turn: ours, theirs, ours, theirs...

    Parameters
    ----------
    repeats : int
        How many pairs.
    warm_up : int
        How many pairs run first and are not counted.
    """
    measured: list[tuple[float, float]] = []
    gc.collect()
    for turn in range(warm_up + repeats):
        pair = timed(ours), timed(theirs)
        if turn >= warm_up:
            measured.append(pair)
    return Pairs(tuple(a for a, _ in measured), tuple(b for _, b in measured))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile.

    Examples
    --------
    >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
