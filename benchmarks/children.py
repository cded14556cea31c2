"""Steps of a program that run in a Python of their own, where peaks of memory mean something."""

import json
from pathlib import Path
from typing import Any

from benchmarks.mapped import run_child

__all__ = ["run_step", "status"]

# The package is loaded from its folder: were the checkout on the path, its bare `tokendance/` would hide an installed
# one.
_CHILD = """
import importlib, importlib.util, json, sys
folder, module, step, arguments = sys.argv[1:]
init = folder + "/__init__.py"
spec = importlib.util.spec_from_file_location("benchmarks", init, submodule_search_locations=[folder])
sys.modules["benchmarks"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
print(json.dumps(getattr(importlib.import_module(module), step)(*json.loads(arguments))))
"""


def run_step(module: str, step: str, *arguments: Any, cwd: Path) -> Any:
    """Call a function of a module in a new Python and return what it returned; both ways it must be JSON."""
    told = (str(Path(__file__).parent), module, step, json.dumps(arguments))
    return json.loads(run_child(_CHILD, *told, cwd=cwd))


def status(field: str) -> int:
    """Return the bytes that /proc/self/status names, 0 where it does not."""
    with Path("/proc/self/status").open(encoding="utf-8") as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith(f"{field}:")), 0)
