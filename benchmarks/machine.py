"""On what, and with what, the numbers were measured."""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bare import read_both

__all__ = ["Machine", "describe"]

_PACKAGES = ("tokendance", "numpy", "numba", "zarr", "numcodecs", "ml_dtypes", "google-crc32c", "safetensors", "h5py")


@dataclass(frozen=True, slots=True)
class Machine:
    """The conditions of a run.

    Attributes
    ----------
    threads : int
        How many numba uses.
    load : tuple of float
        The system's load average over a minute when the run began, and when it ended.
    """

    date: str
    system: str
    cpu: str
    cores: int
    memory_bytes: int
    file_system: str
    threads: int
    threading_layer: str
    versions: dict[str, str]
    commit: str
    load: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return it as text."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        commit = f" (commit {self.commit})" if self.commit else ""
        memory = f"{self.memory_bytes / (1 << 30):.0f} GiB of memory, {self.file_system}"
        return [
            f"{self.date}, {self.system}",
            f"{self.cpu}, {self.cores} cores, {memory}; numba: {self.threads} threads, {self.threading_layer}",
            f"Python {platform.python_version()}, {versions}{commit}",
            f"load average {self.load[0]:.1f} at the beginning, {self.load[1]:.1f} at the end",
        ]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on: the one mounted nearest above it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    above = [(mount, kind) for mount, kind in mounts if folder.resolve().is_relative_to(mount)]
    return max(above, key=lambda found: len(found[0]))[1] if above else "unknown file system"


def _commit() -> str:
    root = Path(__file__).parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _versions() -> dict[str, str]:
    found = {}
    for package in (*_PACKAGES, "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _threading_layer() -> str:
    import numba

    sample = np.zeros((64, 8), np.uint64)
    read_both(sample, sample)  # only after a parallel kernel has run does numba name its threading layer
    try:
        return str(numba.threading_layer())
    except ValueError:  # NUMBA_DISABLE_JIT
        return "no threading layer"


def describe(folder: Path, load_before: float) -> Machine:
    """Describe this machine, and the file system of a folder."""
    import numba

    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory(),
        file_system=_file_system(folder),
        threads=numba.get_num_threads(),
        threading_layer=_threading_layer(),
        versions=_versions(),
        commit=_commit(),
        load=(load_before, os.getloadavg()[0]),
    )
