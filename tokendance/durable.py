"""A storage whose blocks are in a store on disk, and how one is opened."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokendance import validate
from tokendance.cohort import EMPTY, Cohort, Rule
from tokendance.errors import ReadOnlyError, StoreLockedError, UnknownGenerationError
from tokendance.kernels.loading import loading
from tokendance.records import Commit, Generation, cohort_in, manifest_of
from tokendance.storage import TokenDanceStorage
from tokendance.store import generations
from tokendance.store.folders import Folders
from tokendance.store.lock import WriterLock
from tokendance.store.manifest import Manifest, encode
from tokendance.store.place import Place

if TYPE_CHECKING:
    from tokendance.verifying import Progress, Verification

Step = Callable[[Cohort, Place], Cohort]

__all__ = ["TokenDanceStore"]


class TokenDanceStore(TokenDanceStorage):
    """A `TokenDanceStorage` on disk, made by `tokendance.open`.

    Every change is a generation of its own, durable when the call returns; `transaction` makes several one. A
    reader keeps the generation that it opened, whatever writers do meanwhile. Use it as a context manager, or
    `close` it.
    """

    def __init__(self, folders: Folders, lock: WriterLock | None, at: int | str | None, *, checksums: bool) -> None:
        self._folders = folders
        self._writer = lock
        self._checksums = checksums
        self._pin = -1
        self._load(at)

    def _load(self, at: int | str | None) -> None:
        folders = self._folders
        newest, self._pin = generations.open_generation(folders)
        wanted = _generation_at(newest, at)
        if wanted == newest.generation:
            manifest = newest
        else:
            os.close(self._pin)
            self._pin = -1
            manifest, self._pin = generations.open_generation(folders, wanted)
        self._set_up(Rule(manifest.threshold, manifest.ragged))
        self._manifest = manifest
        self._last = newest.generation
        self._identity = manifest.identity
        self._tags = dict(newest.tags)
        self._next_object = newest.next_object
        self._committed = cohort_in(manifest, folders, checksums=self._checksums)
        if self._writer is not None:
            with loading:
                from tokendance.store.collect import Collector
                from tokendance.store.disk import DiskPlace

            self._place: DiskPlace = DiskPlace(folders, newest.next_object, checksums=self._checksums)
            self._collector = Collector(folders)

    @property
    def path(self) -> str:
        """Where the store is."""
        return self._folders.path

    @property
    def generation(self) -> int:
        """The number of the committed state that this storage shows."""
        return self._manifest.generation

    @property
    def identity(self) -> dict[str, Any] | None:
        """What the caches belong to, as recorded when the store was made."""
        return None if self._identity is None else dict(self._identity)

    @property
    def tags(self) -> dict[str, int]:
        """Tags and the generations that they keep."""
        return dict(self._tags)

    def stats(self) -> dict[str, Any]:
        """Return what `TokenDanceStorage.stats` does, with the state's ``generation`` and its ``written_bytes``.

        ``written_bytes`` is what its commit wrote, without the manifest; ``stored_bytes`` counts the manifest in.
        """
        manifest = self._manifest
        return {**super().stats(), "generation": manifest.generation, "written_bytes": manifest.written_bytes}

    def tag(self, name: str) -> int:
        """Give the state a name that keeps it and that `tokendance.open` takes as ``at=``.

        The name is part of a manifest, so this commits a generation like any change, and returns its number;
        inside a transaction it names the generation that the transaction makes. A name may be given anew.
        """
        key = validate.check_tag(name)
        with self._lock:
            if self._draft is None:
                with self.transaction():
                    self._news.append(key)
            else:
                self._news.append(key)
                return self._last + 1
            return self.generation

    def untag(self, name: str) -> None:
        """Take a tag away, in a generation of its own; the one it was on is then collected like any other."""
        with self._lock:
            if self._draft is not None:
                raise RuntimeError("untag() cannot run inside a transaction; end it first")
            if name not in self._tags:
                raise UnknownGenerationError(
                    f"there is no tag {name!r}; tags are: {', '.join(sorted(self._tags)) or 'none'}"
                )
            before, self._tags = self._tags, {key: number for key, number in self._tags.items() if key != name}
            try:
                with self.transaction():
                    self._news.append("")
            except BaseException:
                self._tags = before
                raise

    def history(self) -> list[Generation]:
        """Return the generations that are there, oldest first."""
        found: list[Generation] = []
        for number in generations.numbers(self._folders):
            try:
                manifest, fd = generations.open_generation(self._folders, number)
            except UnknownGenerationError:  # collected meanwhile by the writer
                continue
            os.close(fd)
            tags = tuple(sorted(name for name, kept in self._tags.items() if kept == number))
            master = [manifest.master.agent] if manifest.master else []
            agents = (*master, *(mirror.agent for mirror in manifest.mirrors))
            found.append(Generation(number, manifest.parent, manifest.time, tags, agents, manifest.written_bytes))
        return found

    def gc(self, keep_last: int = 1) -> list[int]:
        """Remove generations that nobody needs, and leavings of writers that died.

        Parameters
        ----------
        keep_last : int
            How many of the newest untagged generations stay; tagged ones, and those that a reader has open, stay too.

        Returns
        -------
        list of int
            The generations that were removed.
        """
        if type(keep_last) is not int or keep_last < 1:
            raise ValueError(f"keep_last must be a whole number of 1 or more, got {keep_last!r}")
        with self._lock:
            if self._draft is not None:
                raise RuntimeError("gc() cannot run inside a transaction; end it first")
            self._writable()
            removed = self._collector.prune(self._tags.values(), keep_last)
            self._collector.sweep()
            return removed

    def verify(self, *, repair: bool = False, progress: "Progress | None" = None) -> "Verification":
        """Check every byte of every generation; `tokendance.repairing.verify_store` says what repair does.

        Parameters
        ----------
        repair : bool
            Drop what cannot be right and keep the rest.
        progress : callable, optional
            Called with the bytes read so far and the bytes there are.
        """
        with loading:
            from tokendance.repairing import repair_store
            from tokendance.verifying import Audit

        with self._lock:
            if not repair:
                return Audit(self._folders, progress).run()
            if self._draft is not None:
                raise RuntimeError("verify(repair=True) cannot run inside a transaction; end it first")
            self._writable()
            assert self._writer is not None
            self._unpin()
            try:
                return repair_store(self._folders, self._writer, progress)
            finally:
                self._load(None)

    def drop_generations(self, numbers: list[int]) -> list[int]:
        """Remove generations that are damaged, and the tags on them; those that a reader has open stay."""
        for name in [name for name, number in self._tags.items() if number in numbers]:
            self.untag(name)
        return self._collector.remove(numbers)

    def start_over(self, rule: Rule, identity: dict[str, Any] | None, step: Step | None = None) -> None:
        """Commit a generation made with another rule, empty or what `step` makes of nothing, and collect the others."""
        with self._lock, self.transaction():
            self._rule, self._identity, self._tags = rule, identity, {}
            self._draft = replace(EMPTY) if step is None else step(EMPTY, self._place)
        try:
            self.gc()
        except OSError as error:  # what could not be removed is removed by a later one
            _could_not_remove(self.path, error)

    def take_over(self, step: Step) -> None:
        """Commit what `step` makes of this store's cohort."""
        self._change(step)

    def number_after(self, generation: int, next_object: int) -> None:
        """Give the next generation and object numbers past those of a generation that was there once and is damaged."""
        self._last = max(self._last, generation)
        self._place.next_object = max(self._place.next_object, next_object)

    def close(self) -> None:
        """Let others write, and forget the files. Arrays that were mapped stay as they are."""
        with self._lock:
            if self._writer is not None:
                self._writer.release()
            self._unpin()
            self._folders.close()

    def __del__(self) -> None:
        """Let go of the generation of a store that was dropped without closing it."""
        if hasattr(self, "_pin"):
            self._unpin()

    def _unpin(self) -> None:
        if self._pin >= 0:
            os.close(self._pin)
            self._pin = -1

    def _extra_bytes(self) -> int:
        return len(encode(self._manifest))

    def _writable(self) -> None:
        self._folders.fd()
        if self._writer is None:
            raise ReadOnlyError(f"{self.path} was opened with mode='r'; open it with mode='r+' to change it")
        if self._writer.pid != os.getpid():
            raise StoreLockedError(
                f"{self.path} is being written by process {self._writer.pid}, which this process was forked from; open "
                "it again here once that one has closed it"
            )

    def _publish(self, cohort: Cohort) -> None:
        with loading:
            from tokendance.store.collect import objects_of

        number = self._last + 1
        tags = {**self._tags, **{name: number for name in self._news if name}}
        commit = Commit(number, self.generation, self.identity, tags, self._place.next_object, 0)
        manifest = manifest_of(cohort, self._rule, commit)
        referenced = objects_of(manifest)
        written = self._place.make_durable(set(referenced))
        manifest = replace(manifest, written_bytes=written)
        try:
            generations.publish(self._folders, manifest)
        except BaseException:
            if number in generations.numbers(self._folders):
                self._adopt(cohort, manifest)
            else:
                self._place.discard(one for one in referenced if one[1] >= self._next_object)
            raise
        self._adopt(cohort, manifest)
        try:
            self._collector.prune(tags.values())
        except OSError as error:  # the commit stands; what could not be removed is removed by a later one
            _could_not_remove(self.path, error)

    def _adopt(self, cohort: Cohort, manifest: Manifest) -> None:
        self._committed, self._manifest, self._last = cohort, manifest, manifest.generation
        self._tags, self._next_object = dict(manifest.tags), manifest.next_object
        self._collector.remember(manifest)
        self._unpin()


def _could_not_remove(path: str, error: OSError) -> None:
    import logging

    logging.getLogger("tokendance").warning("%s: old generations could not be removed: %s", path, error)


def _generation_at(newest: Manifest, at: int | str | None) -> int:
    if at is None:
        return newest.generation
    if isinstance(at, str) and not at.isdecimal():
        if at not in newest.tags:
            known = ", ".join(sorted(newest.tags)) or "none"
            raise UnknownGenerationError(f"there is no tag {at!r}; tags are: {known}")
        return newest.tags[at]
    return int(at)
