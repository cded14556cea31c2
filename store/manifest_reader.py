"""Reading a manifest: a store is untrusted input, so nothing in it is used before it was checked."""

import json
import math
import re
import reprlib
import sys
from typing import Any, NoReturn

from tokendance.errors import FormatVersionError, StoreCorruptError
from tokendance.store import layout
from tokendance.store.layout import FORMAT_VERSION, ITEM_BYTES, MAX_MANIFEST_BYTES, STORED_AS
from tokendance.store.manifest import Manifest, MasterEntry, MirrorEntry
from tokendance.store.names import LONGEST_NAME, is_agent_id, is_tag
from tokendance.store.seal import sealed

__all__ = ["decode", "is_sealed"]

_MOST = 1 << 62
_MOST_DIMENSIONS = 31
_HEXADECIMAL = re.compile(r"[0-9a-f]*")


def decode(data: bytes, name: str) -> Manifest:
    """Return the manifest in `data`, the content of the file `name`.

    Raises
    ------
    FormatVersionError
        It is of a format that this version does not read.
    StoreCorruptError
        Anything else is wrong with it.
    """
    content = _parsed(data.partition(b"\n")[0], name)
    number = content.get("format")
    if (type(number) is int and number != FORMAT_VERSION) or (type(number) is not int and is_sealed(data, name)):
        raise FormatVersionError(
            f"{name} is of format {reprlib.repr(number)[:60]}, this version of tokendance reads format "
            f"{FORMAT_VERSION}; install a newer one"
        )
    if not is_sealed(data, name):
        raise StoreCorruptError(f"{name} does not match its sha256; it was changed or cut short")
    return _Reader(name).manifest(content)


def is_sealed(data: bytes, name: str) -> bool:
    """Say whether a manifest's second line holds the SHA-256 of its first, as this format's do.

    Raises
    ------
    StoreCorruptError
        The second line cannot be read.
    """
    line, _, trailer = data.partition(b"\n")
    return bool(_parsed(trailer, name).get("sha256") == sealed(line))


def _parsed(line: bytes, name: str) -> dict[str, Any]:
    if len(line) > MAX_MANIFEST_BYTES:
        raise StoreCorruptError(f"{name} is larger than {MAX_MANIFEST_BYTES} bytes")

    def refuse(value: str) -> NoReturn:
        raise ValueError(f"{value[:40]} is no number here")

    def finite(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    try:
        text = line.decode("utf-8")
        content = json.loads(text, parse_constant=refuse, parse_float=finite, object_pairs_hook=without_doubles)
        if "\\ud" in text.lower():  # half of a surrogate pair is text that no file can hold
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise StoreCorruptError(f"{name} is not a manifest: {error}") from None
    except MemoryError:  # 64 MiB of brackets are 2 GiB of lists
        raise StoreCorruptError(f"{name} is not a manifest: what it holds does not fit into memory") from None
    if not isinstance(content, dict):
        raise StoreCorruptError(f"{name} is not a manifest: it holds a {type(content).__name__}")
    return content


class _Reader:
    """Takes the content of one manifest apart, naming the field in each complaint."""

    def __init__(self, name: str) -> None:
        self.name = name

    def complain(self, what: str, came: object) -> NoReturn:
        shown = what if what.isprintable() else ascii(what)
        text = came if isinstance(came, str) else reprlib.repr(came)  # the whole of a nested list could fill the memory
        raise StoreCorruptError(f"{self.name}: {shown}, got {text[:60]!r}")

    def whole(self, found: dict[str, Any], key: str, least: int = 0, most: int = _MOST) -> int:
        value = found[key]
        if type(value) is not int or not least <= value <= most:
            self.complain(f"{key} must be a whole number from {least} to {most}", value)
        return value

    def real(self, found: dict[str, Any], key: str) -> float:
        value = found[key]
        if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
            self.complain(f"{key} must be a number of 0 or more", value)
        return float(value)

    def agent(self, found: dict[str, Any]) -> str:
        value = found["agent"]
        if not is_agent_id(value):
            self.complain(f"agent must be text of 1 to {LONGEST_NAME} bytes in UTF-8", value)
        return str(value)

    def mapping(self, found: dict[str, Any], key: str) -> dict[str, Any]:
        value = found[key]
        if not isinstance(value, dict):
            self.complain(f"{key} must be an object", value)
        return value

    def fields(self, found: object, record: type) -> dict[str, Any]:
        names = set(record.__dataclass_fields__) | ({"format"} if record is Manifest else set())  # type: ignore[attr-defined]
        if not isinstance(found, dict) or set(found) != names:
            self.complain(
                f"a {record.__name__} has the fields {', '.join(sorted(names))}",
                sorted(found) if isinstance(found, dict) else found,
            )
        return found

    def manifest(self, content: dict[str, Any]) -> Manifest:
        found = self.fields(content, Manifest)
        generation = self.whole(found, "generation", 1)
        dtype, block_shape = self.block_type(found)
        limit = self.whole(found, "next_object")
        row_bytes = math.prod(block_shape or ()) * ITEM_BYTES[STORED_AS[dtype]] if dtype else 1
        master = None if found["master"] is None else self.master(found["master"], limit, row_bytes)
        if not isinstance(found["mirrors"], list) or (found["mirrors"] and master is None):
            self.complain("mirrors must be a list, empty without a master", found["mirrors"])
        if (master is None) != (dtype is None):
            self.complain("dtype and block_shape stand with a master, and only with one", dtype)
        n_master = master.n_blocks if master else 0
        mirrors = tuple(self.mirror(one, limit, row_bytes, n_master) for one in found["mirrors"])
        self.shared_objects(mirrors)
        if len({mirror.agent for mirror in mirrors} | {master.agent if master else ""}) != len(mirrors) + 1:
            self.complain("every agent must be there once", len(mirrors))
        if type(found["ragged"]) is not bool:
            self.complain("ragged must be true or false", found["ragged"])
        return Manifest(
            generation=generation,
            parent=self.whole(found, "parent", 0, generation - 1),
            time=self.real(found, "time"),
            threshold=self.real(found, "threshold"),
            ragged=found["ragged"],
            dtype=dtype,
            block_shape=block_shape,
            identity=self.identity(found),
            next_object=limit,
            written_bytes=self.whole(found, "written_bytes"),
            master=master,
            mirrors=mirrors,
            tags=self.tags(found, generation),
        )

    def block_type(self, found: dict[str, Any]) -> tuple[str | None, tuple[int, ...] | None]:
        dtype, shape = found["dtype"], found["block_shape"]
        if dtype is None and shape is None:
            return None, None
        if not isinstance(dtype, str) or dtype not in STORED_AS:
            self.complain(f"dtype must be one of {', '.join(STORED_AS)}", dtype)
        if not isinstance(shape, list) or not 1 <= len(shape) <= _MOST_DIMENSIONS:
            self.complain(f"block_shape must list 1 to {_MOST_DIMENSIONS} lengths", shape)
        if any(type(length) is not int or length < 1 for length in shape) or math.prod(shape) > _MOST >> 22:
            self.complain("block_shape must be lengths of 1 or more", shape)
        return dtype, tuple(shape)

    def chunk(self, found: dict[str, Any], key: str, n_rows: int, row_bytes: int) -> int:
        rows = self.whole(found, key, 1 if n_rows else 0)
        if rows > 1 and rows * row_bytes > layout.CHUNK_BYTES:
            self.complain(f"{key} must give chunks of at most {layout.CHUNK_BYTES} bytes", rows)
        return rows

    def checksums(self, found: dict[str, Any], *arrays: tuple[int, int]) -> str:
        # Every chunk that is claimed takes 8 bytes of the manifest, so that a short one cannot claim many.
        value = found["checksums"]
        n_chunks = sum(layout.n_chunks(n_rows, chunk_rows) for n_rows, chunk_rows in arrays if n_rows)
        if not isinstance(value, str) or len(value) != 8 * n_chunks or not _HEXADECIMAL.fullmatch(value):
            self.complain(f"checksums must be 8 hexadecimal digits for each of {n_chunks} chunks", value)
        return value

    def master(self, content: object, limit: int, row_bytes: int) -> MasterEntry:
        found = self.fields(content, MasterEntry)
        n_blocks = self.whole(found, "n_blocks")
        chunk_blocks = self.chunk(found, "chunk_blocks", n_blocks, row_bytes)
        return MasterEntry(
            agent=self.agent(found),
            object=self.whole(found, "object", 0, limit - 1),
            n_blocks=n_blocks,
            chunk_blocks=chunk_blocks,
            checksums=self.checksums(found, (n_blocks, chunk_blocks)),
            meta=self.mapping(found, "meta"),
        )

    def shared_objects(self, mirrors: tuple[MirrorEntry, ...]) -> None:
        sizes: dict[int | None, tuple[object, ...]] = {}
        for one in (mirror for mirror in mirrors if mirror.object is not None):
            size = (one.n_own, one.index_chunk, one.chunk_blocks, one.n_base, one.base_chunk, one.checksums)
            if sizes.setdefault(one.object, size) != size:
                self.complain("agents that share an object must give it the same sizes and checksums", one.object)

    def mirror(self, content: object, limit: int, row_bytes: int, n_master: int) -> MirrorEntry:
        found = self.fields(content, MirrorEntry)
        n_blocks = self.whole(found, "n_blocks")
        n_own = self.whole(found, "n_own", 0, n_blocks)
        n_base = self.whole(found, "n_base", 0, n_blocks)
        number = found["object"] if found["object"] is None else self.whole(found, "object", 0, limit - 1)
        if (number is None) != (n_own == 0 and n_base == 0):
            self.complain("object must be a number where a mirror has blocks or a base of its own, else null", number)
        tail = self.tail(found, n_blocks)
        if n_blocks > n_own + n_base + (2 if tail else 1) * n_master:
            self.complain("n_blocks must be blocks of the mirror's own or of the master", n_blocks)
        index_chunk = self.chunk(found, "index_chunk", n_own, 8)
        chunk_blocks = self.chunk(found, "chunk_blocks", n_own, row_bytes)
        base_chunk = self.chunk(found, "base_chunk", n_base, 8)
        return MirrorEntry(
            agent=self.agent(found),
            object=number,
            n_blocks=n_blocks,
            n_own=n_own,
            index_chunk=index_chunk,
            chunk_blocks=chunk_blocks,
            n_base=n_base,
            base_chunk=base_chunk,
            checksums=self.checksums(found, (n_own, index_chunk), (n_own, chunk_blocks), (n_base, base_chunk)),
            tail=tail,
            dropped=self.real(found, "dropped"),
            meta=self.mapping(found, "meta"),
        )

    def tail(self, found: dict[str, Any], n_blocks: int) -> tuple[tuple[int, int], ...]:
        runs = found["tail"]
        last = [-1, -_MOST]
        if not isinstance(runs, list):
            self.complain("tail must be a list", runs)
        for run in runs:
            if not isinstance(run, list) or len(run) != 2 or any(type(part) is not int for part in run):
                self.complain("tail must hold pairs of whole numbers", run)
            # Shifts go up, too: so no two runs share a block of the master, and all of them are as many as it has.
            if not last[0] < run[0] <= n_blocks or not last[1] < run[1] < _MOST:
                self.complain("tail must go upwards and stay inside the agent", run)
            last = run
        return tuple((start, shift) for start, shift in runs)

    def tags(self, found: dict[str, Any], generation: int) -> dict[str, int]:
        tags = self.mapping(found, "tags")
        for name in tags:
            if not is_tag(name):
                self.complain(f"a tag must be text of 1 to {LONGEST_NAME} bytes that is no number", name)
            self.whole(tags, name, 1, generation)
        return tags

    def identity(self, found: dict[str, Any]) -> dict[str, Any] | None:
        if found["identity"] is None:
            return None
        identity = self.mapping(found, "identity")
        for key, value in identity.items():
            if isinstance(value, list | dict):
                self.complain("identity must be flat", key)
        return identity
