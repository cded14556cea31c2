"""What a new process pays before the first result: imports, and kernels compiled or taken from numba's cache."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.mapped import run_child
from benchmarks.timing import quartiles
from benchmarks.workplace import Workplace

__all__ = ["FirstCall", "measure"]

_PROGRAM = """
import json, sys, time
seen = {}
def step(name, call):
    start = time.perf_counter()
    result = call()
    seen[name] = time.perf_counter() - start
    return result

def load(name):
    return lambda: __import__(name)

step("import numpy", load("numpy"))
td = step("import tokendance, numpy being there", load("tokendance"))
step("import numba", load("numba"))
import numpy as np
import ml_dtypes
for name in ("float32", "float16", "bfloat16"):
    master = np.zeros((max(int(sys.argv[1]) >> 15, 2), (1 << 15) // np.dtype(name).itemsize), name)
    cache = master.copy()
    cache[1] = 1
    storage = td.TokenDanceStorage()
    storage.register_master("a", master)
    for again in ("", ", again"):
        step(f"register_mirror {name}{again}", lambda: storage.register_mirror("b", cache))
    if name == "float32":
        for again in ("", ", again"):
            step(f"reconstruct{again}", lambda: storage.reconstruct("b"))
print(json.dumps(seen))
"""


@dataclass(frozen=True, slots=True)
class FirstCall:
    """Seconds of a step in a new process with an empty cache of compiled kernels, and with a filled one."""

    name: str
    cold: float
    cached: float
    again: float | None
    repeats: int

    def as_json(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return asdict(self)


def _children(place: Workplace, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    found = []
    for _ in ("cold", "cached"):
        printed = run_child(_PROGRAM, str(place.sizes.first_call_bytes), cwd=place.folder, environment=environment)
        found.append(json.loads(printed))
    return found[0], found[1]


def measure(place: Workplace) -> list[FirstCall]:
    """Run pairs of new processes, each pair with a new empty cache folder that the first of them fills."""
    pairs = []
    for repeat in range(place.sizes.first_call_repeats):
        place.say(f"first calls, {repeat + 1} of {place.sizes.first_call_repeats}")
        folder = place.path()
        folder.mkdir()
        pairs.append(_children(place, folder))
        place.remove(folder)

    def middle(index: int, name: str) -> float:
        return quartiles([pair[index][name] for pair in pairs])[1]

    names = [name for name in pairs[0][0] if not name.endswith(", again")]
    return [
        FirstCall(
            name,
            middle(0, name),
            middle(1, name),
            middle(1, f"{name}, again") if f"{name}, again" in pairs[0][0] else None,
            len(pairs),
        )
        for name in names
    ]
