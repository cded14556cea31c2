"""What the demo prints: each round, each agent, the totals, and the times to get a cache back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tokendance.demo.check import CheckRecord
from tokendance.demo.decoder import DecoderConfig
from tokendance.demo.disk import DiskUsage
from tokendance.demo.rounds import RoundRecord

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Measured:
    """What the process that wrote the store knows about it; ``stats`` is what the storage says after the last round."""

    config: DecoderConfig
    rounds: list[RoundRecord]
    master: str
    own_blocks: dict[str, int]
    stats: Mapping[str, Any]
    disk: DiskUsage


def print_report(console: Console, store: Path, measured: Measured, check: CheckRecord) -> None:
    """Print all tables, where the store is, and as the last line whether all agents are identical."""
    console.print(_introduction(measured), markup=False, highlight=False, soft_wrap=True)
    for table in (_round_table(console, measured), _agent_table(console, measured), _totals(measured, check)):
        _print_trimmed(console, table)
    console.print()
    for line in (f"the store stays in {store.resolve()}", *_verdict(check)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _introduction(measured: Measured) -> str:
    c, last = measured.config, measured.rounds[-1]
    return (
        f"{len(last.tokens)} agents talk for {len(measured.rounds)} rounds. Their lines were written beforehand.\n"
        f"Their caches are computed, by a decoder of {c.n_layers} layers, {c.n_heads} heads and {c.n_kv_heads}\n"
        f"key-value heads of {c.head_dim} float32 each, with random weights from a seed."
    )


def _print_trimmed(console: Console, table: Table) -> None:
    """Print an empty line and a table without the blanks and blank lines that rich fills up with."""
    with console.capture() as captured:
        console.print(table, highlight=False)
    lines = (line.rstrip() for line in captured.get().splitlines())
    console.file.write("\n" + "".join(f"{line}\n" for line in lines if line))


def _round_table(console: Console, measured: Measured) -> Table:
    table = _table(console, "round", "generation", "shared", "tokens", "dense", "disk grew", "commit")
    for record in measured.rounds:
        fewest, most = min(record.tokens.values()), max(record.tokens.values())
        table.add_row(
            str(record.number),
            str(record.generation),
            f"{record.shared_tokens:,}",
            f"{fewest:,}-{most:,}",
            _mib(sum(record.dense_bytes.values())),
            _mib(record.disk_bytes),
            f"{record.commit_seconds:.2f} s",
        )
    return table


def _agent_table(console: Console, measured: Measured) -> Table:
    table = _table(
        console, f"round {len(measured.rounds)}", "tokens", "blocks", "own blocks", "dense", "stored", "ratio"
    )
    mirrors = measured.stats["mirrors"]
    of_mirrors = sum(mirror["stored_bytes"] for mirror in mirrors.values())
    last = measured.rounds[-1]
    for agent, tokens in last.tokens.items():
        blocks, dense = last.n_blocks[agent], _mib(last.dense_bytes[agent])
        if agent == measured.master:
            label, own, stored, ratio = f"{agent} (master)", blocks, measured.stats["stored_bytes"] - of_mirrors, "-"
        else:
            mirror = mirrors[agent]
            label, own, stored = agent, measured.own_blocks[agent], mirror["stored_bytes"]
            ratio = f"{mirror['byte_ratio']:.2f}"
        table.add_row(label, f"{tokens:,}", f"{blocks:,}", f"{own:,}", dense, _mib(stored), ratio)
    return table


def _totals(measured: Measured, check: CheckRecord) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in (*_sizes(measured), *(_times(check) if check.identical else ())):
        table.add_row(*row)
    return table


def _sizes(measured: Measured) -> Iterator[tuple[str, str, str]]:
    stats, last = measured.stats, measured.rounds[-1].number
    n_agents = len(stats["mirrors"]) + 1
    ratios = [mirror["byte_ratio"] for mirror in stats["mirrors"].values()]
    all_dense = sum(sum(record.dense_bytes.values()) for record in measured.rounds)
    yield f"round {last}, dense", _mib(stats["logical_bytes"]), f"{n_agents} whole caches"
    yield f"round {last}, stored", _mib(stats["stored_bytes"]), "the master, and each mirror's own blocks"
    yield "cohort ratio", f"{stats['byte_ratio']:.2f}", f"can never exceed {n_agents} for {n_agents} agents"
    yield "per-mirror ratio", f"{min(ratios):.1f} to {max(ratios):.1f}", "one cache over what its mirror stores"
    yield "the folder on disk", _mib(measured.disk.allocated), f"all rounds kept; dense they are {_mib(all_dense)}"
    yield "its files add up to", _mib(measured.disk.apparent), "with holes in them, which take no room"


def _times(check: CheckRecord) -> Iterator[tuple[str, str, str]]:
    yield "reload, mapped", _ms(check.mapped), "one agent; a page is read when it is touched"
    yield "reload, np.load", _ms(check.loaded), "its dense .npy file, from the page cache"
    yield "mapped, read whole", _ms(check.mapped_read), "each until every byte was read once"
    yield "np.load, read whole", _ms(check.loaded_read), ""


def _verdict(check: CheckRecord) -> Iterator[str]:
    for difference in check.differences:
        place = "" if difference.block is None else f" at block {difference.block}"
        yield f"{difference.agent} is not identical{place}: {difference.reason}"
    if check.identical:
        yield "all agents identical"


def _table(console: Console, *headers: str) -> Table:
    """Return a table that is lined on a terminal, and Markdown where somebody may paste or grep it."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN, pad_edge=not console.is_terminal)
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left")
    return table


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f} MiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
