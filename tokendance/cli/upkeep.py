"""``tokendance verify``, ``gc`` and ``warmup``: what is done now and then."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

import tokendance as td
from tokendance.cli.arguments import JsonOption, StoreArgument
from tokendance.cli.failures import about
from tokendance.cli.screen import print_json, progress, say, waiting
from tokendance.cli.stores import changed, check_store
from tokendance.demo.disk import disk_usage
from tokendance.plots.wording import count_of, in_bytes

__all__ = ["gc", "verify", "warmup"]

RepairOption = Annotated[
    bool, typer.Option("--repair", help="Drop what cannot be right, say what, and keep the rest readable.")
]
KeepOption = Annotated[
    int, typer.Option("--keep-last", metavar="N", min=1, help="How many of the newest untagged generations stay.")
]


def verify(store: StoreArgument, repair: RepairOption = False, as_json: JsonOption = False) -> None:
    """Check every byte of every generation of a store.

    The exit status is 1 if anything was wrong, also if it has been repaired.
    """
    check_store(store)
    started = time.perf_counter()
    with about(store), progress("verifying") as show:
        found = td.verify(store, repair=repair, progress=show)
    if as_json:
        facts: dict[str, Any] = {"store": str(store), "ok": found.ok, "checked_bytes": found.checked_bytes}
        facts |= {"findings": [finding._asdict() for finding in found.findings]}
        print_json(facts | {"leavings": found.leavings, "repairs": found.repairs})
    else:
        _print(found, store, time.perf_counter() - started)
    if not found.ok:
        raise typer.Exit(1)


def _print(found: Any, store: Path, seconds: float) -> None:
    for finding in found.findings:
        say(f"{finding.kind} {finding.where} (generation {finding.generation}): {finding.problem}")
    for repaired in found.repairs:
        say(f"repaired: {repaired}")
    if any("which is tagged" in repaired for repaired in found.repairs):
        say("what is tagged stays as it is; tokendance tag --remove, then gc, lets it go")
    if found.leavings:
        say(f"{count_of(len(found.leavings), 'leaving')} of writers that died, harmless; tokendance gc removes them")
    rate = f"{in_bytes(found.checked_bytes)} in {seconds:.1f} s"
    if found.ok:
        say(f"{store}: all is well, {rate}")
    else:
        advice = "" if found.repairs else "; tokendance verify --repair keeps what is whole"
        say(f"{store}: {count_of(len(found.findings), 'finding')}, {rate}{advice}")


def gc(store: StoreArgument, keep_last: KeepOption = 1, as_json: JsonOption = False) -> None:
    """Remove generations that nobody needs.

    The newest, tagged ones, and those that somebody has open stay. What writers that died have left goes.
    """
    with changed(store) as storage:
        before = disk_usage(store).allocated
        with waiting("collecting"):
            removed = storage.gc(keep_last=keep_last)
        freed = before - disk_usage(store).allocated
        kept = [generation.number for generation in storage.history()]
    if as_json:
        print_json({"store": str(store), "removed": removed, "kept": kept, "freed_bytes": freed})
    else:
        say(f"{store}: {count_of(len(removed), 'generation')} removed, {len(kept):,} kept, {in_bytes(freed)} freed")


def warmup(as_json: JsonOption = False) -> None:
    """Compile all kernels and cache them.

    No later call has to wait for that.
    """
    from tokendance.kernels.warm import warm_up

    started = time.perf_counter()
    with progress("compiling", of_bytes=False) as show:
        warmed = warm_up(show)
    seconds = time.perf_counter() - started
    if as_json:
        print_json({"n_kernels": warmed.n_kernels, "folder": warmed.folder, "seconds": seconds})
        return
    say(f"{count_of(warmed.n_kernels, 'kernel')} compiled or loaded in {seconds:.1f} s")
    say(f"they are cached in {warmed.folder}" if warmed.folder else "they are not cached: no folder can be written")
