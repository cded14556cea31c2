"""No thread that comes and goes enters a parallel kernel: its workers would end with it, and forks hang at that."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import pytest

from tokendance.kernels.lasting_thread import on_lasting_thread


def elsewhere(work):
    """Call `work` in a thread of its own, and return what it raised."""
    raised = []

    def call():
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed on
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised


def test_the_main_thread_works_itself():
    found = []
    on_lasting_thread(lambda: found.append(threading.current_thread()))
    assert found == [threading.main_thread()]


def test_all_others_share_one_thread_that_stays():
    found = []
    for _ in range(5):
        assert elsewhere(lambda: on_lasting_thread(lambda: found.append(threading.current_thread()))) == []
    assert len(found) == 5
    assert len(set(found)) == 1
    assert found[0].is_alive()
    assert found[0] is not threading.main_thread()


def test_what_the_work_raises_is_raised_in_its_caller():
    def fail():
        raise LookupError("no such block")

    (raised,) = elsewhere(lambda: on_lasting_thread(fail))
    assert repr(raised) == "LookupError('no such block')"
    assert elsewhere(lambda: on_lasting_thread(lambda: None)) == []


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread cannot be masked")
def test_a_callers_number_of_threads_goes_with_its_work():
    found = []

    def masked(n_threads):
        numba.set_num_threads(n_threads)
        on_lasting_thread(lambda: found.append(numba.get_num_threads()))

    for n_threads in (1, 2, 1):
        assert elsewhere(lambda: masked(n_threads)) == []  # noqa: B023 - called at once
    assert found == [1, 2, 1]


def run(program):
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "NUMBA_THREADING_LAYER": "omp", "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout.split()


def test_a_thread_that_outlives_the_main_one_gets_its_work_done():
    assert run("""
import threading, time
from tokendance.kernels.lasting_thread import on_lasting_thread
def work():
    threading.main_thread().join()
    time.sleep(0.2)
    on_lasting_thread(lambda: print("done"))
threading.Thread(target=work).start()
""") == ["done"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads cannot be listed")
@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="no parallel kernels with NUMBA_DISABLE_JIT")
def test_no_worker_ends_with_a_thread_that_called_a_parallel_kernel():
    # With each thread in the kernel itself, its worker ended as well: 2 each time.
    assert (
        run("""
import os, threading, time
import numpy as np
from tokendance.kernels import compile_policy, diff
rows = np.zeros((2 * compile_policy.PARALLEL_FROM_BYTES // 4096, 4096), np.uint8)
seen = []
def work():
    assert not diff.blocks_differ(rows, rows.copy()).any()
    seen.append((threading.get_native_id(), {int(task) for task in os.listdir("/proc/self/task")}))
for _ in range(3):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    while os.path.exists(f"/proc/self/task/{seen[-1][0]}"):
        time.sleep(0.01)
    time.sleep(0.3)
    print(len(seen[-1][1] - {int(task) for task in os.listdir("/proc/self/task")}))
""")
        == ["1"] * 3
    )
