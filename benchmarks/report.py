"""The results as tables, as JSON, and between the markers of a document."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.first_calls import FirstCall
from benchmarks.machine import Machine
from benchmarks.peers import PeerRow
from benchmarks.rows import Row, in_words
from benchmarks.scale import Scale

__all__ = ["SECTIONS", "Results", "as_json", "as_text", "inserted", "table"]

SECTIONS = ("floors", "peers", "first-calls", "scale")

_BLOCK = re.compile(
    r"(?P<begin><!-- benchmark:begin(?P<names>[a-z -]*?)-->\n)(?P<old>.*?)(?P<end><!-- benchmark:end -->)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that a run measured.

    Attributes
    ----------
    whole : tuple of str
        The sections of which nothing was left out.
    """

    machine: Machine
    floors: list[Row] = field(default_factory=list)
    peers: list[PeerRow] = field(default_factory=list)
    first_calls: list[FirstCall] = field(default_factory=list)
    scale: Scale | None = None
    whole: tuple[str, ...] = ()


def as_json(results: Results) -> dict[str, Any]:
    """Return what JSON holds of the results."""
    return {
        "machine": results.machine.as_json(),
        "floors": [row.as_json() for row in results.floors],
        "peers": [row.as_json() for row in results.peers],
        "first_calls": [call.as_json() for call in results.first_calls],
        "scale": None if results.scale is None else results.scale.as_json(),
    }


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table whose columns stand under one another.

    Examples
    --------
    >>> table(("what", "n"), [("a", "1")])
    ['| what | n |', '|------|---|', '| a    | 1 |']
    """
    cells = [list(header), *(list(line) for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [text[0], rule, *text[1:]]


def _floor_line(row: Row) -> tuple[str, ...]:
    if row.ratio is None or row.low is None or row.high is None:
        return (row.name, row.against, "–", "–", "–", "–", str(row.floor or "–"), row.verdict)
    alone = row.theirs is None
    shown = f"{row.ratio:.1f} ms" if alone else f"{row.ratio:.2f} ×"
    unit = "" if alone else f"{row.low:.2f} to {row.high:.2f}"
    if row.unit == "bytes":
        unit = "–"
    elif alone:
        unit = f"{row.low:.1f} to {row.high:.1f}"
    times = in_words(row.ours, row.unit), in_words(row.theirs, row.unit)
    return (row.name, row.against, *times, shown, unit, str(row.floor or "–"), row.verdict)


def _floors(rows: list[Row]) -> list[str]:
    header = ("what", "against", "what", "against", "ratio", "quartiles", "floor", "verdict")
    notes = [f"- {row.name}: {row.note}." for row in rows if row.note]
    return table(header, map(_floor_line, rows)) + ([""] if notes else []) + notes


def _peer_line(row: PeerRow) -> tuple[str, ...]:
    if row.write is None or row.read is None or row.disk is None:
        return (row.name, row.note, *(("–",) * 5))
    ratios = [f"{ratio:.2f} ×" for ratio in (row.write_ratio or 0, row.read_ratio or 0, row.disk_ratio or 0)]
    amounts = [in_words(row.write, "s"), in_words(row.read, "s"), in_words(row.disk, "bytes")]
    return (row.name, *(cell for both in zip(amounts, ratios, strict=True) for cell in both))


def _peers(rows: list[PeerRow]) -> list[str]:
    header = ("a round of agents", "write, synced", "ratio", "cold reload", "ratio", "on disk", "ratio")
    return table(header, map(_peer_line, rows))


def _first_calls(calls: list[FirstCall]) -> list[str]:
    header = ("in a new process", "kernels not compiled yet", "kernels in numba's cache", "the second call")
    return table(
        header,
        (
            (call.name, in_words(call.cold, "s"), in_words(call.cached, "s"), in_words(call.again, "s"))
            for call in calls
        ),
    )


def _scale(scale: Scale) -> list[str]:
    if scale.note:
        return [f"Not run: {scale.note}."]
    seconds = [
        (f"register the master, {in_words(scale.agent_bytes, 'bytes')}, durable", scale.register_master),
        (f"register a mirror ({scale.own_blocks:,} own blocks), durable", scale.register_mirror),
        (f"register all {scale.agents}", scale.register_all),
        ("open the store in a new process", scale.open_store),
        ("map one agent", scale.map_one),
        (f"map all {scale.agents}, and keep them", scale.map_all),
        ("read one layer of an agent", scale.read_layer),
        (f"read one layer of all {scale.agents}", scale.read_all),
    ]
    sizes = [
        (f"{scale.agents} dense caches", scale.logical_bytes),
        ("disk used", scale.disk_bytes),
        ("peak resident memory of the writer, its input included", scale.writer_peak),
        ("peak resident memory of the reader, pages of the store included", scale.reader_peak),
        ("memory of the reader that is no page of the store", scale.reader_private),
    ]
    lines = [(name, in_words(value, "s")) for name, value in seconds]
    lines += [(name, in_words(value, "bytes")) for name, value in sizes]
    lines.append(("every layer that was read is what was registered", "yes" if scale.identical else "NO"))
    return table(("what", "result"), lines)


def _section(results: Results, name: str) -> list[str]:
    if name == "floors" and results.floors:
        return _floors(results.floors)
    if name == "peers" and results.peers:
        return _peers(results.peers)
    if name == "first-calls" and results.first_calls:
        return _first_calls(results.first_calls)
    if name == "scale" and results.scale is not None:
        return _scale(results.scale)
    return []


def as_text(results: Results, names: Sequence[str] = SECTIONS) -> str:
    """Return the machine, and the tables of some sections, as Markdown."""
    parts = ["\n".join(f"- {line}" for line in results.machine.lines())]
    parts += ["\n".join(lines) for name in names if (lines := _section(results, name))]
    return "\n\n".join(parts) + "\n"


def inserted(document: str, results: Results) -> tuple[str, list[str]]:
    """Replace what stands between the markers of a document.

    ``<!-- benchmark:begin -->`` stands for all sections but "scale"; names of sections may follow "begin". A block is
    left as it is if this run left out a part of one of its sections.

    Returns
    -------
    str
        The document.
    list of str
        What was not replaced, in words.

    Raises
    ------
    ValueError
        It has no markers.
    """
    if not _BLOCK.search(document):
        raise ValueError("it has no <!-- benchmark:begin --> ... <!-- benchmark:end --> to write between")
    left: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        names = match["names"].split() or [name for name in SECTIONS if name != "scale"]
        if unknown := set(names) - set(SECTIONS):
            raise ValueError(f"{min(unknown)!r} is no section; there are {', '.join(SECTIONS)}")
        if missing := [name for name in names if name not in results.whole]:
            left.append(
                f"the block of {', '.join(names)} stays as it was: this run has not all of {', '.join(missing)}"
            )
            return match[0]
        return f"{match['begin']}\n{as_text(results, names)}\n{match['end']}"

    return _BLOCK.sub(replaced, document), left
