"""The threads that may enter parallel kernels: the main one, and one that lasts as long as the process.

GNU OpenMP gives each thread that enters a parallel kernel workers of its own, and ends them with that thread. A worker
that ends unwinds its stack under a lock of libgcc, which LLVM's linker takes as well when it loads a kernel: a child
that was forked meanwhile waits for it for ever. In a trial 6 of 22,000 forks at the end of such a thread did so, and
none of 18,000 with all parallel kernels on one thread that stays.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numba

__all__ = ["on_lasting_thread"]

_lasting = ThreadPoolExecutor(1, "tokendance-kernels")


def on_lasting_thread(work: Callable[[], None]) -> None:
    """Call `work` and wait for it: here in the main thread, else in the one that lasts, as wide as numba is here."""
    if threading.current_thread() is threading.main_thread():
        work()
        return
    try:
        done: Future[None] = _lasting.submit(partial(_with_threads, numba.get_num_threads(), work))
    except RuntimeError:  # the interpreter is ending, and takes no more work; nobody forks it now
        work()
        return
    done.result()


def _with_threads(n_threads: int, work: Callable[[], None]) -> None:
    numba.set_num_threads(n_threads)
    work()
