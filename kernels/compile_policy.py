"""How kernels are compiled, cached and started; the only file that asks numba to compile.

Every kernel is written once, with `prange`, and compiled twice: a parallel twin, and a serial twin in
which `prange` is `range`. The serial twin runs where the parallel one would be slower or would kill the
process (`run` says when). Both give the same bits.
"""

import functools
import hashlib
import os
import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy.ma  # noqa: F401 - numba's first call would import it, and a child forked meanwhile wait for it for ever
from numba import njit
from numba.extending import register_jitable
from numba.np.ufunc.parallel import threading_layer

from tokendance.kernels.forking import several_threads
from tokendance.kernels.lasting_thread import on_lasting_thread
from tokendance.kernels.loading import loading

__all__ = ["PARALLEL_FROM_BYTES", "array_of", "inlined", "on_all_cores", "run", "twin", "type_of"]

Kernel = Callable[..., None]

# Starting omp's threads costs 30 to 140 us a call and one core reads about 20 bytes a nanosecond:
# below 1 MiB the second core cannot win that back.
PARALLEL_FROM_BYTES = 1 << 20

inlined = register_jitable

_launching = threading.Lock()
_layer: str | None = None
_parallel_compiled = False
_serial_only = False


def array_of(name: str, *, written: bool = False, ndim: int = 2) -> numba.types.Array:
    """Return numba's type of a C-ordered array of dtype `name`.

    Inputs are declared read-only, so that plain, read-only and mapped arrays share one compiled
    kernel; what a kernel writes is declared with ``written=True``.
    """
    return numba.types.Array(getattr(numba.types, name), ndim, "C", readonly=not written)


def type_of(value: object) -> numba.types.Type:
    """Return numba's type of a value that is handed to a kernel as it is."""
    kind: numba.types.Type = numba.typeof(value)  # type: ignore[no-untyped-call]  # numba 0.68 leaves it untyped
    return kind


@functools.cache
def _source_hash() -> str:
    """Return a hash of all kernel sources.

    It is part of every cached kernel's name: numba's own stamp sees only the file a function stands in,
    so that a changed callee, or an upgrade that leaves the old cache behind, would run stale machine code.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _renamed(function: Kernel, arguments: tuple[numba.types.Type, ...], parallel: bool) -> Kernel:
    """Return a copy of `function` whose name holds all that it is compiled for: one kernel per cache file.

    Two processes that first compile different signatures of one function at once can mix up its index; and
    numba's cache does not tell the parallel twin from the serial one, so that whoever came first served both.
    """
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__)
    key = hashlib.sha256(repr(arguments).encode()).hexdigest()[:8]
    kind = "parallel" if parallel else "serial"
    copy.__qualname__ = f"{function.__name__}_{kind}_{key}_{_source_hash()}"
    copy.__module__ = function.__module__
    return copy


@functools.cache
def _compiled(function: Kernel, arguments: tuple[numba.types.Type, ...], parallel: bool) -> Kernel:
    global _parallel_compiled
    _parallel_compiled |= parallel
    signature = numba.types.void(*arguments)
    named = _renamed(function, arguments, parallel)
    try:
        kernel: Kernel = njit(signature, cache=True, parallel=parallel, nogil=True)(named)
    except Exception:  # noqa: BLE001 - whatever an unusable cache raises; what is wrong with a kernel is raised again
        # No folder can be written (read-only install and no home), the disk is full, or a file of the cache is damaged.
        kernel = njit(signature, parallel=parallel, nogil=True)(named)
    return kernel


def twin(function: Kernel, arguments: tuple[numba.types.Type, ...], *, parallel: bool) -> Kernel:
    """Return the serial or the parallel twin of `function`, compiled for `arguments`.

    The first call for a signature compiles or loads it from numba's cache: 0.3 to 2 s cold, 3 to 300 ms
    cached. A fork waits for a compile that is under way, so that no child inherits a half-held compiler.
    """
    with loading:
        return _compiled(function, arguments, parallel)


def run(function: Kernel, arguments: tuple[numba.types.Type, ...], values: tuple[Any, ...], n_bytes: int) -> None:
    """Run `function` on `values`, on all cores where that is safe and pays.

    It runs on one core if it touches less than `PARALLEL_FROM_BYTES`, in a process forked after parallel
    kernels were used (GNU OpenMP kills such a child), and while another thread is in a parallel kernel
    under numba's "workqueue" layer (which aborts the process when entered twice). A fork waits until it is done.
    """
    if n_bytes < PARALLEL_FROM_BYTES or _serial_only:
        twin(function, arguments, parallel=False)(*values)
        return
    with several_threads():
        _run_on_all_cores(function, arguments, values)


def _run_on_all_cores(function: Kernel, arguments: tuple[numba.types.Type, ...], values: tuple[Any, ...]) -> None:
    global _layer
    if _layer in ("omp", "tbb"):
        on_lasting_thread(partial(twin(function, arguments, parallel=True), *values))
    elif _launching.acquire(blocking=False):
        try:
            on_lasting_thread(partial(twin(function, arguments, parallel=True), *values))
            _layer = _layer or _started_layer()
        finally:
            _launching.release()
    else:
        twin(function, arguments, parallel=False)(*values)


def on_all_cores(step: Callable[[int], None], starts: Sequence[int]) -> None:
    """Call `step` for each start, on as many Python threads as numba would use; serial twins let go of the GIL."""
    # Asking numba for its number of threads starts them, under a lock that a forked child would wait for, too.
    with several_threads():
        n_threads = min(numba.get_num_threads(), len(starts))
        if n_threads < 2:
            for start in starts:
                step(start)
            return
        with ThreadPoolExecutor(n_threads) as pool:
            for _ in pool.map(step, starts):
                pass


def _started_layer() -> str | None:
    try:
        return str(threading_layer())  # type: ignore[no-untyped-call]  # numba 0.68 leaves it untyped
    except ValueError:  # NUMBA_DISABLE_JIT: nothing was started
        return None


def _after_fork_in_child() -> None:
    global _serial_only, _launching
    _launching = threading.Lock()
    _serial_only = _serial_only or _parallel_compiled or _started_layer() is not None


os.register_at_fork(after_in_child=_after_fork_in_child)
