"""Looking at every byte of a store, and saying what is wrong with it."""

import contextlib
import json
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tokendance.cohort import Cohort
from tokendance.errors import FormatVersionError, StoreCorruptError, UnknownGenerationError
from tokendance.records import cohort_in
from tokendance.store import audit, generations, layout
from tokendance.store.arrays import DiskRows
from tokendance.store.chunks import ArrayRecord, metadata_of
from tokendance.store.collect import objects_of
from tokendance.store.folders import Folders
from tokendance.store.layout import MANIFESTS, METADATA_NAME, MIRRORS
from tokendance.store.leavings import leavings
from tokendance.store.manifest import Manifest
from tokendance.store.objects import DiskMaster, DiskOwn

__all__ = ["Audit", "Finding", "Progress", "Verification"]

Progress = Callable[[int, int], None]

# A process may have 1024 files open. Older generations than so many are there because they are tagged.
_PINNED = 256


class Finding(NamedTuple):
    """Something that is wrong with a store.

    Attributes
    ----------
    kind : str
        ``"manifest"``, ``"metadata"``, ``"chunk"``, or ``"agent"``, whose blocks cannot be put together.
    where : str
        The file, as seen from the store's folder; or the agent.
    problem : str
    generation : int
        The generation it was met in; the newest, where several share it.
    """

    kind: str
    where: str
    problem: str
    generation: int


class Verification(NamedTuple):
    """What `verify` found.

    Attributes
    ----------
    findings : tuple of Finding
    leavings : tuple of str
        Objects and files that no generation refers to: harmless, left by writers that died, removed by `gc`.
    checked_bytes : int
    repairs : tuple of str
        What was put aside or put right; then `findings` is what was wrong before.
    """

    findings: tuple[Finding, ...]
    leavings: tuple[str, ...]
    checked_bytes: int
    repairs: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


class Audit:
    """One look at every file of a store; shared objects are read once.

    Parameters
    ----------
    folders : Folders
    progress : callable, optional
        Called with the bytes read so far and the bytes there are.

    Attributes
    ----------
    findings : list of Finding
    manifests : dict
        The readable manifests by generation.
    unreadable : list of int
        The other generations.
    documents : dict
        What each damaged metadata file must hold, by its folder.
    """

    def __init__(self, folders: Folders, progress: Progress | None = None) -> None:
        self.folders = folders
        self.findings: list[Finding] = []
        self.manifests: dict[int, Manifest] = {}
        self.unreadable: list[int] = []
        self.documents: dict[str, bytes] = {}
        self._progress = progress
        self._cohorts: dict[int, Cohort] = {}
        self._damaged: dict[tuple[str, ArrayRecord], dict[int, str]] = {}

    def run(self) -> Verification:
        """Check everything and return what was found; a writer may commit and collect meanwhile."""
        with contextlib.ExitStack() as pins:
            self._read_manifests(pins)
            return self._run()

    def _run(self) -> Verification:
        checked_bytes = self._check_arrays()
        for number in sorted(self.manifests, reverse=True):
            for agent_id, problem in self.damaged_agents(self.cohort(number)).items():
                self.findings.append(Finding("agent", agent_id, problem, number))
        self._check_documents()
        referenced = {one for manifest in self.manifests.values() for one in objects_of(manifest)}
        left = [] if self.unreadable else leavings(self.folders, referenced, self.manifests.values())
        return Verification(tuple(self.findings), tuple(left), checked_bytes)

    def cohort(self, number: int) -> Cohort:
        """Return the cohort of a readable generation."""
        if number not in self._cohorts:
            self._cohorts[number] = cohort_in(self.manifests[number], self.folders, checksums=False)
        return self._cohorts[number]

    def damaged_agents(self, cohort: Cohort) -> dict[str, str]:
        """Return, for each agent of a cohort that does not come back whole, why."""
        found: dict[str, str] = {}
        for agent_id in cohort.agents():
            problem = self._agent_problem(cohort, agent_id)
            if problem is not None:
                found[agent_id] = problem
        return found

    def _read_manifests(self, pins: contextlib.ExitStack) -> None:
        # All are pinned for the time of the look: what a writer collects meanwhile would be found missing.
        there = generations.numbers(self.folders)
        for number in reversed(there):
            try:
                self.manifests[number], fd = generations.open_generation(self.folders, number)
            except UnknownGenerationError:  # collected before it could be pinned
                continue
            except (StoreCorruptError, FormatVersionError) as error:
                if isinstance(error, FormatVersionError) and not audit.is_of_this_format(self.folders, number):
                    raise
                self.unreadable.append(number)
                self.findings.append(Finding("manifest", f"{MANIFESTS}/{number}", str(error), number))
            else:
                if len(self.manifests) > _PINNED:
                    os.close(fd)
                else:
                    pins.callback(os.close, fd)
        if there and not self.manifests and not self.unreadable:
            self._read_manifests(pins)  # all were collected, so there are newer ones
        elif not there:
            self.findings.append(Finding("manifest", MANIFESTS, "there is no manifest", 0))

    def _arrays(self) -> dict[str, list[tuple[DiskRows, int]]]:
        # An array that grew has another length, and so another last checksum, in each generation: the longest is first.
        found: dict[tuple[str, ArrayRecord], tuple[DiskRows, int]] = {}
        for number in sorted(self.manifests, reverse=True):
            for rows in _arrays_of(self.cohort(number)):
                found.setdefault((rows.path, rows.record), (rows, number))
        claims: dict[str, list[tuple[DiskRows, int]]] = {}
        for rows, number in sorted(found.values(), key=lambda one: -one[0].n_rows):
            claims.setdefault(rows.path, []).append((rows, number))
        return claims

    def _check_arrays(self) -> int:
        arrays = self._arrays()
        total = sum(_file_bytes(claims[0][0]) for claims in arrays.values())
        done = 0
        for path, claims in arrays.items():
            known: dict[audit.Claim, str] = {}
            problems: dict[int, tuple[str, int]] = {}
            for rows, number in claims:
                damaged = self._damaged[path, rows.record] = audit.damaged_chunks(rows, known)
                for chunk, problem in damaged.items():
                    problems.setdefault(chunk, (problem, number))
            longest, number = claims[0]
            for chunk, (problem, met) in problems.items():
                where = f"{path}/{layout.chunk_key(chunk, longest.record.ndim)}"
                self.findings.append(Finding("chunk", where, problem, met))
            metadata = audit.damaged_metadata(longest)
            if metadata is not None:
                self._bad_document(path, metadata, metadata_of(longest.record, longest.block_type), number)
            done += _file_bytes(longest)
            if self._progress is not None:
                self._progress(done, total)
        return total

    def _agent_problem(self, cohort: Cohort, agent_id: str) -> str | None:
        own = cohort.mirrors[agent_id].table.own if agent_id in cohort.mirrors else None
        if isinstance(own, DiskOwn):
            for rows in own.arrays():
                for problem in self._damaged[rows.path, rows.record].values():
                    return problem
        try:
            sources, _ = cohort.sources(agent_id)
        except (StoreCorruptError, OSError) as error:
            return str(error)
        master = cohort.needs_master().rows
        assert isinstance(master, DiskMaster)
        used = set(np.unique(sources[sources >= 0] // master.record.chunk_rows).tolist())
        damaged = self._damaged[master.path, master.record]
        return next((problem for chunk, problem in damaged.items() if chunk in used), None)

    def _check_documents(self) -> None:
        number = max(self.manifests, default=0)
        self._check_document("", "", layout.root_document(), number)
        self._check_document(MANIFESTS, "", layout.manifests_document(), number)
        for group in layout.GROUPS:
            self._check_document(group, "", layout.group_document(), number)
        mirrors = {one for manifest in self.manifests.values() for one in objects_of(manifest) if one[0] == MIRRORS}
        for group, mirror in sorted(mirrors):
            self._check_document(group, str(mirror), layout.group_document(), number)

    def _check_document(self, group: str, folder: str, expected: bytes, number: int) -> None:
        path = f"{folder}/{METADATA_NAME}" if folder else METADATA_NAME
        problem = audit.damaged_document(path, self.folders.fd(group), json.loads(expected))
        if problem is not None:
            self._bad_document("/".join(part for part in (group, folder) if part), problem, expected, number)

    def _bad_document(self, folder: str, problem: str, content: bytes, number: int) -> None:
        where = f"{folder}/{METADATA_NAME}" if folder else METADATA_NAME
        self.findings.append(Finding("metadata", where, problem, number))
        self.documents[folder] = content


def _file_bytes(rows: DiskRows) -> int:
    return rows.record.n_chunks * rows.record.file_bytes


def _arrays_of(cohort: Cohort) -> list[DiskRows]:
    if cohort.master is None:
        return []
    assert isinstance(cohort.master.rows, DiskRows)
    found = [cohort.master.rows]
    for mirror in cohort.mirrors.values():
        if isinstance(mirror.table.own, DiskOwn):
            found += mirror.table.own.arrays()
    return found
