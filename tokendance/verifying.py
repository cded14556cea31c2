"""Looking at every byte of a store, and saying what is wrong with it."""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tokendance.cohort import Cohort
from tokendance.errors import StoreCorruptError
from tokendance.records import cohort_in
from tokendance.store import audit, generations, layout
from tokendance.store.arrays import DiskRows, metadata_of
from tokendance.store.collect import objects_of
from tokendance.store.folders import Folders
from tokendance.store.layout import MANIFESTS, METADATA_NAME, MIRRORS
from tokendance.store.manifest import Manifest
from tokendance.store.objects import DiskMaster, DiskOwn

__all__ = ["Audit", "Finding", "Progress", "Verification"]

Progress = Callable[[int, int], None]


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
        self._damaged: dict[str, dict[int, str]] = {}

    def run(self) -> Verification:
        """Check everything and return what was found."""
        self._read_manifests()
        checked_bytes = self._check_arrays()
        for number in sorted(self.manifests, reverse=True):
            for agent_id, problem in self.damaged_agents(self.cohort(number)).items():
                self.findings.append(Finding("agent", agent_id, problem, number))
        self._check_documents()
        referenced = {one for manifest in self.manifests.values() for one in objects_of(manifest)}
        left = [] if self.unreadable else audit.leavings(self.folders, referenced)
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

    def _read_manifests(self) -> None:
        for number in generations.numbers(self.folders):
            try:
                self.manifests[number] = generations.look_at(self.folders, number)
            except StoreCorruptError as error:
                self.unreadable.append(number)
                self.findings.append(Finding("manifest", f"{MANIFESTS}/{number}", str(error), number))
        if not self.manifests and not self.unreadable:
            self.findings.append(Finding("manifest", MANIFESTS, "there is no manifest", 0))

    def _arrays(self) -> dict[str, tuple[DiskRows, int]]:
        # Of an array that grew from one generation to the next, the longest is checked: its chunks are all there is.
        found: dict[str, tuple[DiskRows, int]] = {}
        for number in sorted(self.manifests, reverse=True):
            for rows in _arrays_of(self.cohort(number)):
                known = found.get(rows.path)
                if known is None or known[0].n_rows < rows.n_rows:
                    found[rows.path] = (rows, number)
        return found

    def _check_arrays(self) -> int:
        arrays = self._arrays()
        total = sum(rows.shape.n_chunks * rows.shape.file_bytes for rows, _ in arrays.values())
        done = 0
        for path, (rows, number) in arrays.items():
            self._damaged[path] = audit.damaged_chunks(rows)
            for chunk, problem in self._damaged[path].items():
                where = f"{path}/{layout.chunk_key(chunk, rows.shape.ndim)}"
                self.findings.append(Finding("chunk", where, problem, number))
            metadata = audit.damaged_metadata(rows)
            if metadata is not None:
                self._bad_document(path, metadata, metadata_of(rows.shape, rows.block_type), number)
            done += rows.shape.n_chunks * rows.shape.file_bytes
            if self._progress is not None:
                self._progress(done, total)
        return total

    def _agent_problem(self, cohort: Cohort, agent_id: str) -> str | None:
        own = cohort.mirrors[agent_id].table.own if agent_id in cohort.mirrors else None
        if isinstance(own, DiskOwn):
            for rows in own.arrays():
                for problem in self._damaged[rows.path].values():
                    return problem
        try:
            sources, _ = cohort.sources(agent_id)
        except (StoreCorruptError, OSError) as error:
            return str(error)
        master = cohort.needs_master().rows
        assert isinstance(master, DiskMaster)
        used = set(np.unique(sources[sources >= 0] // master.shape.chunk_rows).tolist())
        damaged = self._damaged[master.path]
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


def _arrays_of(cohort: Cohort) -> list[DiskRows]:
    if cohort.master is None:
        return []
    assert isinstance(cohort.master.rows, DiskRows)
    found = [cohort.master.rows]
    for mirror in cohort.mirrors.values():
        if isinstance(mirror.table.own, DiskOwn):
            found += mirror.table.own.arrays()
    return found
