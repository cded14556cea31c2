"""A fork and work on several threads wait for each other."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")

BEGIN = """
import os, signal, threading, time
from tokendance.kernels import compile_policy
from tokendance.kernels.forking import several_threads

signal.alarm(60)
said, begun, end = [], threading.Event(), threading.Event()

def work():
    with several_threads():
        begun.set()
        end.wait()
        said.append("work done")

def forked(in_child=lambda: None):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        in_child()
        os._exit(0)
    said.append("forked")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run(program: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", BEGIN + program], capture_output=True, text=True, check=False, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    return found.stdout.strip()


def test_a_fork_waits_for_work_on_several_threads() -> None:
    assert (
        run("""
worker = threading.Thread(target=work)
worker.start()
begun.wait()
threading.Timer(0.3, end.set).start()
print(forked(), said)
worker.join()
""")
        == "0 ['work done', 'forked']"
    )


def test_work_waits_for_a_fork_that_waits_for_other_work() -> None:
    assert (
        run("""
worker = threading.Thread(target=work)
worker.start()
begun.wait()
late = threading.Thread(target=lambda: (time.sleep(0.2), several_threads().__enter__(), said.append("late work")))
late.start()
threading.Timer(0.6, end.set).start()
print(forked(), said[:2])
late.join()
print(said)
""")
        == "0 ['work done', 'forked']\n['work done', 'forked', 'late work']"
    )


def test_a_child_forked_from_among_threads_at_work_works_on_several_threads_itself() -> None:
    assert (
        run("""
def toil():
    while not end.is_set():
        compile_policy.on_all_cores(lambda _start: time.sleep(0.001), range(4))

workers = [threading.Thread(target=toil) for _ in range(3)]
for worker in workers: worker.start()
def in_child():
    compile_policy.on_all_cores(lambda _start: None, range(4))
    assert forked() == 0
print({forked(in_child) for _ in range(20)}, said == ["forked"] * 20)
end.set()
for worker in workers: worker.join()
""")
        == "{0} True"
    )


def test_two_threads_fork_at_once() -> None:
    assert (
        run("""
found = []
threads = [threading.Thread(target=lambda: found.extend(forked() for _ in range(20))) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(set(found), len(found))
""")
        == "{0} 60"
    )
