"""Fresh memory: aligned, and its own, whatever it was before."""

import gc
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tokendance.store import fresh
from tokendance.store.fresh import ALIGNMENT, aligned_empty

_LARGE = 5 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is only kept where the system can take it back")


@pytest.fixture(autouse=True)
def _no_spares():
    fresh._spare.clear()
    yield
    fresh._spare.clear()


@pytest.mark.parametrize("n_bytes", [1, 1000, _LARGE - 1, _LARGE])
def test_it_starts_on_a_boundary_and_has_the_length_asked_for(n_bytes):
    array = aligned_empty(n_bytes)
    assert array.shape == (n_bytes,)
    assert array.ctypes.data % ALIGNMENT == 0
    assert array.flags.writeable


def test_what_was_freed_serves_the_next_who_asks():
    first = aligned_empty(_LARGE)
    address = first.ctypes.data
    del first
    second = aligned_empty(_LARGE - 4096)
    assert second.ctypes.data == address
    assert second.shape == (_LARGE - 4096,)
    assert not fresh._spare


@pytest.mark.parametrize(
    "view_of",
    [
        lambda array: array[100:],
        lambda array: array.reshape(-1, 1024).view(np.float32)[3:5],
        lambda array: np.frombuffer(array.data.toreadonly(), np.uint8),
    ],
)
def test_nothing_is_reused_while_a_view_of_it_lives(view_of):
    first = aligned_empty(_LARGE)
    first[:] = 7
    view = view_of(first)
    del first
    second = aligned_empty(_LARGE)
    second[:] = 9
    assert (view.view(np.uint8) == 7).all()


def test_a_region_much_larger_than_asked_for_is_left_alone():
    first = aligned_empty(4 * _LARGE)
    address = first.ctypes.data
    del first
    second = aligned_empty(_LARGE)
    assert second.ctypes.data != address
    assert len(fresh._spare) == 1


def test_spares_are_bounded(monkeypatch):
    monkeypatch.setattr(fresh, "_MOST_SPARE_BYTES", 3 * _LARGE)
    arrays = [aligned_empty(_LARGE) for _ in range(8)]
    arrays.append(aligned_empty(4 * _LARGE))
    del arrays
    gc.collect()
    assert sum(map(len, fresh._spare)) == 3 * _LARGE


def test_threads_never_share_a_region():
    wrong = []

    def work(mark):
        for _ in range(200):
            array = aligned_empty(_LARGE)
            array[::4096] = mark
            if not (array[::4096] == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_child_has_its_own():
    program = """
import os
from tokendance.store.fresh import aligned_empty
array = aligned_empty(5 << 20); array[:] = 1; del array
child = os.fork()
array = aligned_empty(5 << 20)
array[:] = 2 if child else 3
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert (array == 2).all()
else:
    os._exit(0 if (array == 3).all() else 1)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60, cwd=Path(__file__).parent)
