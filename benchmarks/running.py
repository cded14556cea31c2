"""Which rows a run measures, and what happens when one cannot be measured."""

import gc
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

from benchmarks import first_calls, in_memory, mapped, on_disk, peers, scale
from benchmarks.machine import describe
from benchmarks.report import Results
from benchmarks.rows import Row
from benchmarks.workplace import Workplace

__all__ = ["GROUPS", "NAMES", "measure", "wanted"]

RowMaker = Callable[[Workplace], Iterator[Row]]
# Opening comes before appending, which makes the store larger.
GROUPS: dict[str, RowMaker] = {**in_memory.ROWS, **mapped.ROWS, **on_disk.ROWS}
NAMES = (*GROUPS, "peers", "first calls", "scale")


def wanted(only: Sequence[str], *, with_scale: bool) -> list[str]:
    """Return the names that contain one of `only`, or all of them; "scale" only if it is asked for.

    Raises
    ------
    ValueError
        One of `only` is in no name.
    """
    known = [name for name in NAMES if with_scale or name != "scale"]
    for part in only:
        if not any(part in name for name in known):
            raise ValueError(f"{part!r} is in no name; there are: {', '.join(known)}")
    return [name for name in known if not only or any(part in name for part in only)]


def _rows(place: Workplace, names: Iterable[str]) -> Iterator[Row]:
    for name in names:
        place.say(name)
        try:
            yield from GROUPS[name](place)
        except Exception as error:  # noqa: BLE001 - one broken row must not take the others down
            place.say(traceback.format_exc())
            yield Row(name, "–", note=f"failed: {type(error).__name__}: {error}".splitlines()[0], failed=True)
        gc.collect()


def measure(place: Workplace, names: Sequence[str], load_before: float) -> Results:
    """Measure what is named.

    Parameters
    ----------
    names : sequence of str
        Some of `NAMES`.
    load_before : float
        The system's load when the program began.
    """
    groups = [name for name in GROUPS if name in names]
    rows = list(_rows(place, groups))
    place.forget()
    beside = peers.measure(place) if "peers" in names else []
    calls = first_calls.measure(place) if "first calls" in names else []
    large = scale.measure(place) if "scale" in names else None
    whole = [
        section
        for section, there in (
            ("floors", len(groups) == len(GROUPS)),
            ("peers", bool(beside)),
            ("first-calls", bool(calls)),
            ("scale", large is not None),
        )
        if there
    ]
    return Results(describe(place.folder, load_before), rows, beside, calls, large, tuple(whole))
