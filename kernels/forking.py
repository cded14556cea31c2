"""Work on several threads, and forks: the one waits for the other.

A child that is forked while another thread starts OpenMP's workers can wait for ever for numba's lock around that.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["several_threads"]

_gate = threading.Condition()
_n_at_work = 0
_forking: int | None = None


@contextmanager
def several_threads() -> Iterator[None]:
    """Hold off forks while the block runs, and begin it when no fork is under way."""
    global _n_at_work
    with _gate:
        _gate.wait_for(lambda: _forking is None)
        _n_at_work += 1
    try:
        yield
    finally:
        with _gate:
            _n_at_work -= 1
            _gate.notify_all()


def _before_fork() -> None:
    global _forking
    with _gate:
        _gate.wait_for(lambda: _forking is None)
        _forking = threading.get_ident()
        _gate.wait_for(lambda: _n_at_work == 0)


def _after_fork_in_parent() -> None:
    global _forking
    with _gate:
        if _forking == threading.get_ident():  # else this was imported while the fork waited for that
            _forking = None
        _gate.notify_all()


def _after_fork_in_child() -> None:
    global _gate, _n_at_work, _forking
    _gate, _n_at_work, _forking = threading.Condition(), 0, None


# Hooks before a fork run last come, first served. This one must run before those of logging and concurrent.futures,
# whose locks the threads that it waits for may need; whoever imports this has imported them.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
