"""The command line of the benchmarks."""

import argparse
import importlib
import json
import os
import signal
import sys
from pathlib import Path

# `python -m` puts the checkout on the path, where its bare `tokendance/` would hide what is installed.
_ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]


# Each has arguments of its own.
_PROGRAMS = ("fuzz", "hundred", "power-cut", "soak")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure every speed that tokendance promises: each row is a ratio of two things timed in turn.",
        epilog="Four more programs, with arguments of their own: `python -m benchmarks hundred`, `soak`, `power-cut` "
        "and `fuzz`.",
    )
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="measure what contains NAME")
    parser.add_argument(
        "--scale", action="store_true", help="also run 32 agents of 1.75 GiB each (minutes, 8 GiB of disk)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")
    parser.add_argument("--plot", metavar="PNG", type=Path, help="draw the rows that have a floor")
    parser.add_argument(
        "--markdown", metavar="FILE", type=Path, nargs="+", default=[], help="write the tables between a file's markers"
    )
    parser.add_argument("--dir", metavar="FOLDER", type=Path, help="where temporary files go (default: here)")
    arguments = parser.parse_args()
    from benchmarks.running import wanted

    try:
        arguments.names = wanted(arguments.only, with_scale=arguments.scale)
    except ValueError as error:
        parser.error(f"--only {error}")
    return arguments


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(143)


def main() -> int:
    """Measure, print, and return 1 if something could not be measured."""
    program = sys.argv[1] if len(sys.argv) > 1 else ""
    if program in _PROGRAMS:
        found = importlib.import_module(f"benchmarks.{program.replace('-', '_')}").main(sys.argv[2:])
        return int(found)
    load_before = os.getloadavg()[0]
    arguments = _arguments()
    from benchmarks.plot import plot
    from benchmarks.report import as_json, as_text, inserted
    from benchmarks.running import measure
    from benchmarks.sizes import Sizes
    from benchmarks.workplace import workplace

    signal.signal(signal.SIGTERM, _stop)  # an exception, so that the temporary folder is removed
    documents = {path: path.read_text(encoding="utf-8") for path in arguments.markdown}
    with workplace(Sizes(), arguments.dir, _say) as place:
        results = measure(place, arguments.names, load_before)
    print(json.dumps(as_json(results), indent=1, ensure_ascii=False) if arguments.json else as_text(results))
    for path, document in documents.items():
        text, left = inserted(document, results)
        path.write_text(text, encoding="utf-8")
        for line in left:
            _say(f"{path}: {line}")
    if arguments.plot is not None:
        plot(results.floors, arguments.plot)
    return int(any(row.failed for row in results.floors))


if __name__ == "__main__":
    sys.exit(main())
