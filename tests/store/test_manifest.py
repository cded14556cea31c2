"""Manifests: what is written comes back, and nothing else that could stand there is taken for one."""

import contextlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from damaged_stores import edit_manifest, make_store, manifest_bytes, newest_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokendance as td
from tokendance.store.layout import MAX_MANIFEST_BYTES, STORED_AS
from tokendance.store.manifest import Manifest, MasterEntry, MirrorEntry, encode
from tokendance.store.manifest_reader import decode

MASTER = MasterEntry("m", 0, 10, 4, "0123456789abcdef00000000", {"tokens": 160})
SUMS = "ffffffff0000000112345678"
MIRROR = MirrorEntry("a", 1, 12, 3, 3, 3, 12, 12, SUMS, ((10, -3), (11, -2)), 0.5, {"turn": [1, {"x": None}]})
PLAIN = Manifest(
    generation=7,
    parent=6,
    time=1.5,
    threshold=1e-4,
    ragged=True,
    dtype="bfloat16",
    block_shape=(2, 3),
    identity={"model": "llama", "layers": 4},
    next_object=2,
    written_bytes=100,
    master=MASTER,
    mirrors=(MIRROR, replace(MIRROR, agent="b", object=None, n_own=0, n_base=0, checksums="")),
    tags={"first": 3, "naïve": 7},
)
FIELDS = {
    (): json.loads(encode(PLAIN).split(b"\n")[0]),
    ("master",): json.loads(encode(PLAIN).split(b"\n")[0])["master"],
    ("mirrors", 0): json.loads(encode(PLAIN).split(b"\n")[0])["mirrors"][0],
}
EVERY_FIELD = [(where, key) for where, record in FIELDS.items() for key in record]


def text_of(manifest: Manifest) -> dict:
    return json.loads(encode(manifest).split(b"\n")[0])


def complaint(data: bytes) -> str:
    """The one-line error with which a manifest is refused."""
    with pytest.raises((td.StoreCorruptError, td.FormatVersionError)) as caught:
        decode(data, "s.td/manifests/7")
    message = str(caught.value)
    assert message.startswith("s.td/manifests/7") and message.isprintable() and len(message) < 1000
    return message


def changed(where: tuple, key: str, value: object) -> bytes:
    """The plain manifest with another value, which may be raw JSON text, in one field."""
    content = text_of(PLAIN)
    record = content
    for step in where:
        record = record[step]
    record[key] = "@@"
    raw = value.decode() if isinstance(value, bytes) else json.dumps(value)
    return manifest_bytes(json.dumps(content).replace('"@@"', raw).encode())


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100)
counts = st.integers(0, 1 << 40)
chunk_lengths = st.integers(1, 64)


def sums(draw: st.DrawFn, *arrays: tuple[int, int]) -> str:
    """Checksums for as many chunks as arrays of these lengths and chunk lengths have."""
    n_chunks = sum(-(-n_rows // chunk_rows) for n_rows, chunk_rows in arrays)
    return "".join(draw(st.lists(st.sampled_from(["00000000", "89abcdef"]), min_size=n_chunks, max_size=n_chunks)))


metas = st.dictionaries(names, st.recursive(st.none() | st.booleans() | st.integers() | names, st.lists, max_leaves=5))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    generation = draw(st.integers(1, 1 << 50))
    next_object = draw(st.integers(1, 1 << 50))
    objects = st.integers(0, next_object - 1)
    agents = draw(st.lists(names, unique=True, max_size=5))
    master, mirrors = None, []
    if agents:
        n_blocks, chunk = draw(st.integers(40, 400)), draw(chunk_lengths)
        checksums = sums(draw, (n_blocks, chunk))
        master = MasterEntry(agents[0], draw(objects), n_blocks, chunk, checksums, draw(metas))
    # Every claim stands for some agent that could be: no more blocks than the master and its own can give.
    for position, agent in enumerate(agents[1:]):
        n_own, n_base = draw(st.integers(0, 20)), draw(st.sampled_from([0, 20]))
        number = None if n_own == n_base == 0 else position
        tail = ((0, draw(st.integers(-5, 5))),) if draw(st.booleans()) else ()
        index, values, base = [draw(chunk_lengths) for _ in range(3)]
        checksums = sums(draw, (n_own, index), (n_own, values), (n_base, base))
        meta, dropped = draw(metas), draw(st.floats(0, allow_infinity=False))
        mirrors.append(
            MirrorEntry(agent, number, 20, n_own, index, values, n_base, base, checksums, tail, dropped, meta)
        )
    return Manifest(
        generation=generation,
        parent=draw(st.integers(0, generation - 1)),
        time=draw(st.floats(0, allow_infinity=False)),
        threshold=draw(st.floats(0, allow_infinity=False)),
        ragged=draw(st.booleans()),
        dtype=draw(st.sampled_from(sorted(STORED_AS))) if agents else None,
        block_shape=tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))) if agents else None,
        identity=draw(st.none() | st.dictionaries(names, st.booleans() | st.integers() | names)),
        next_object=max(next_object, len(mirrors)),
        written_bytes=draw(counts),
        master=master,
        mirrors=tuple(mirrors),
        tags=draw(st.dictionaries(names.filter(lambda name: not name.isdecimal()), st.integers(1, generation))),
    )


@given(manifests())
def test_what_is_written_comes_back(manifest: Manifest) -> None:
    assert decode(encode(manifest), "x") == manifest


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "1", [], {}, 1 << 63, 10**400], ids=lambda v: repr(v)[:9])
@pytest.mark.parametrize(("where", "key"), EVERY_FIELD, ids=str)
def test_a_value_of_a_wrong_kind_is_refused(where: tuple, key: str, value: object) -> None:
    real = value in (1.5, 1 << 63)
    right = {
        "object": value is None,
        "dropped": real,
        "time": real,
        "threshold": real,
        "ragged": value is True,
        "agent": value == "1",
        "identity": value is None or value == {},
        "meta": value == {},
        "tags": value == {},
        "tail": value == [],
        "mirrors": value == [],
    }
    if key == "object" and value is None and where:
        assert "object" in complaint(changed(where, key, value))
    elif right.get(key, False):
        decode(changed(where, key, value), "x")
    else:
        assert key in complaint(changed(where, key, value)).lower()


@pytest.mark.parametrize("raw", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"[" * 9000])
@pytest.mark.parametrize(("where", "key"), EVERY_FIELD, ids=str)
def test_numbers_that_json_should_not_hold_are_refused(where: tuple, key: str, raw: bytes) -> None:
    complaint(changed(where, key, raw))


@pytest.mark.parametrize("where", FIELDS, ids=str)
def test_missing_and_unknown_fields_are_refused_by_name(where: tuple) -> None:
    for key in FIELDS[where]:
        content = text_of(PLAIN)
        record = content
        for step in where:
            record = record[step]
        del record[key]
        assert "fields" in complaint(manifest_bytes(json.dumps(content).encode())) or key == "format"
    assert "fields" in complaint(changed(where, "surprise", 1))


@pytest.mark.parametrize("inside", ["identity", "meta"])
@pytest.mark.parametrize("raw", [b"1e999", b"[1e999]"])
def test_infinity_hides_nowhere(inside: str, raw: bytes) -> None:
    # The next commit could not write it.
    where = () if inside == "identity" else ("master",)
    complaint(changed(where, inside, b'{"x": ' + raw + b"}"))


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ((), "parent", 7),
        ((), "next_object", 1),
        ((), "generation", 0),
        ((), "dtype", "object"),
        ((), "dtype", "int64"),
        ((), "dtype", ">f4"),
        ((), "dtype", None),
        ((), "block_shape", []),
        ((), "block_shape", [0]),
        ((), "block_shape", [True]),
        ((), "block_shape", [2.0]),
        ((), "block_shape", [1] * 32),
        ((), "block_shape", [1 << 31, 1 << 31]),
        ((), "block_shape", None),
        ((), "tags", {"future": 8}),
        ((), "tags", {"zero": 0}),
        ((), "tags", {"true": True}),
        ((), "tags", {"": 1}),
        ((), "tags", {"5": 1}),
        ((), "tags", {"x" * 513: 1}),
        ((), "tags", {"\ud800": 1}),
        ((), "tags", {"two\nlines": -1}),
        ((), "identity", {"x": [1]}),
        ((), "identity", {"x": {}}),
        ((), "identity", {"\ud800": 1}),
        ((), "master", None),
        ((), "mirrors", [1]),
        ((), "mirrors", [text_of(PLAIN)["mirrors"][0]] * 2),
        (("master",), "agent", ""),
        (("master",), "agent", "a"),
        (("master",), "agent", "é" * 257),
        (("master",), "agent", "\ud800"),
        (("master",), "object", 2),
        (("master",), "object", "../0"),
        (("master",), "chunk_blocks", 0),
        (("master",), "chunk_blocks", 1 << 61),
        (("mirrors", 0), "agent", "m"),
        (("mirrors", 0), "agent", "\udfff"),
        (("mirrors", 0), "object", 2),
        (("mirrors", 0), "object", "1/../../masters/0"),
        (("mirrors", 0), "object", None),
        (("mirrors", 0), "n_own", 13),
        (("mirrors", 0), "n_base", 13),
        (("mirrors", 0), "index_chunk", 0),
        (("mirrors", 0), "base_chunk", 0),
        (("mirrors", 0), "tail", [[11, 0], [10, 0]]),
        (("mirrors", 0), "tail", [[10, 0], [11, 0]]),
        (("mirrors", 0), "tail", [[10, 0], [11, -1]]),
        (("mirrors", 0), "tail", [[13, 0]]),
        (("mirrors", 0), "tail", [[1]]),
        (("mirrors", 0), "tail", [[-1, 0]]),
        (("mirrors", 0), "tail", [[1, 1 << 62]]),
        (("mirrors", 0), "tail", [[1, True]]),
        (("mirrors", 0), "tail", {}),
        (("master",), "checksums", "0" * 16),
        (("master",), "checksums", "0" * 32),
        (("master",), "checksums", "0123456789ABCDEF00000000"),
        (("master",), "checksums", "0123456789abcdef0000000\n"),
        (("master",), "checksums", "٠" * 24),
        (("master",), "n_blocks", 13),
        (("master",), "chunk_blocks", 5),
        (("mirrors", 0), "checksums", ""),
        (("mirrors", 0), "checksums", SUMS[:-8]),
        (("mirrors", 0), "checksums", SUMS + "00000000"),
        (("mirrors", 1), "checksums", SUMS),
        (("mirrors", 1), "object", 1),
        (("mirrors", 1), "n_blocks", 1 << 50),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_values_that_contradict_each_other_are_refused(where: tuple, key: str, value: object) -> None:
    complaint(changed(where, key, value))


def test_twins_say_the_same_of_their_object() -> None:
    twin = replace(MIRROR, agent="twin")
    decode(encode(replace(PLAIN, mirrors=(MIRROR, twin))), "x")
    for change in (
        {"n_own": 2},
        {"n_base": 0, "base_chunk": 0, "checksums": SUMS[:16]},
        {"chunk_blocks": 2, "checksums": SUMS + "00000000"},
        {"checksums": SUMS[::-1]},
        {"n_base": 5, "n_blocks": 5, "tail": ()},
    ):
        complaint(encode(replace(PLAIN, mirrors=(MIRROR, replace(twin, **change)))))


@pytest.mark.parametrize("version", [0, 2, 10**6, "1", None, [1], "x\ny", "x" * 100_000], ids=lambda v: str(v)[:9])
def test_another_format_version_is_named(version: object) -> None:
    content = text_of(PLAIN) | {"format": version, "something new": 1}
    with pytest.raises(td.FormatVersionError, match="format"):
        decode(manifest_bytes(json.dumps(content).encode()), "s.td/manifests/7")
    assert "1" in complaint(manifest_bytes(json.dumps(content).encode()))


@pytest.mark.parametrize("version", [True, 1.0])
def test_a_format_version_is_a_whole_number(version: object) -> None:
    complaint(changed((), "format", version))


def test_keys_stand_once() -> None:
    line = encode(PLAIN).split(b"\n")[0]
    for key in (b'"generation":7,', b'"tokens":160,', b'"first":3,', b'"model":"llama",'):
        name = key.split(b":")[0]
        assert name + b":" in line
        assert "twice" in complaint(manifest_bytes(line.replace(name + b":", key + name + b":", 1)))


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"1", b"null", b'"x"', b"{", b"\xff\xfe{}", b'{"format": 1', b"\0", b"\xef\xbb\xbf{}"]
)
def test_what_is_no_manifest_is_refused(line: bytes) -> None:
    complaint(manifest_bytes(line))


@pytest.mark.parametrize("number", ["9" * 100_000 + "e999", "9" * 5000, "-" + "9" * 400 + ".0"])
def test_a_number_that_none_can_hold_is_told_of_shortly(number: str) -> None:
    assert len(complaint(manifest_bytes(f'{{"a": {number}}}'.encode()))) < 300


def test_every_cut_is_noticed() -> None:
    data = encode(PLAIN)
    for length in range(len(data) - 1):
        complaint(data[:length])
    for tail in (b"x", b"{}", data, b"\0"):
        complaint(data + tail)


@settings(max_examples=300)
@given(st.integers(0, 8 * len(encode(PLAIN)) - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    data = bytearray(encode(PLAIN))
    data[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(td.StoreCorruptError, td.FormatVersionError):
        assert decode(bytes(data), "s.td/manifests/7") == PLAIN


def test_a_wrong_sha256_is_refused() -> None:
    line = encode(PLAIN).split(b"\n")[0]
    for trailer in (b"{}", b'{"sha256": null}', b'{"sha256": "' + b"0" * 64 + b'"}', b"[]", b'{"sha256": 5}', b""):
        complaint(line + b"\n" + trailer + b"\n")


@settings(max_examples=300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([key for _, key in EVERY_FIELD]), inner)
        ),
        max_leaves=8,
    ),
    st.sampled_from(EVERY_FIELD),
)
def test_anything_at_all_in_a_field_is_refused_or_a_manifest(value: object, field: tuple) -> None:
    where, key = field
    with contextlib.suppress(td.StoreCorruptError, td.FormatVersionError):
        encode(decode(changed(where, key, json.dumps(value).encode()), "s.td/manifests/7"))


# What a writer acknowledges, a reader can read ------------------------------------------------------------------------


def test_a_manifest_too_large_to_read_is_not_committed(tmp_path, monkeypatch) -> None:
    caches = make_store(tmp_path / "s.td")
    for module in ("manifest", "generations"):
        monkeypatch.setattr(f"tokendance.store.{module}.MAX_MANIFEST_BYTES", 100_000)
    with td.open(tmp_path / "s.td", mode="r+") as store:
        with pytest.raises(ValueError):
            store.register_mirror("a", caches["b"], meta={"x": "y" * 200_000})
        assert store.reconstruct("a").tobytes() == caches["a"].tobytes()
    with td.open(tmp_path / "s.td", mode="r") as store:
        assert store.reconstruct("a").tobytes() == caches["a"].tobytes()
    assert MAX_MANIFEST_BYTES == 64 << 20


@pytest.mark.parametrize("depth", [100, 500, 900, 960, 980, 990, 2000])
def test_meta_of_any_depth_is_refused_or_comes_back(depth: int, tmp_path) -> None:
    caches = make_store(tmp_path / "s.td")
    meta: dict = {}
    for _ in range(depth):
        meta = {"x": meta}
    with td.open(tmp_path / "s.td", mode="r+") as store:
        try:
            store.register_mirror("a", caches["b"], meta=meta)
        except ValueError:
            meta = {}
    with td.open(tmp_path / "s.td", mode="r") as store:
        found, levels = store.meta("a"), 0
        while found:
            found, levels = found["x"], levels + 1
        assert levels == (depth if meta else 0)


@pytest.mark.parametrize(
    "meta", [{"x": "\ud800"}, {"\udfff": 1}, {"x": 1 << 4000}, {"x": -0.0}, {"x": 5e-324}], ids=ascii
)
def test_meta_of_any_content_is_refused_or_comes_back(meta: dict, tmp_path) -> None:
    caches = make_store(tmp_path / "s.td")
    with td.open(tmp_path / "s.td", mode="r+") as store:
        try:
            store.register_mirror("a", caches["b"], meta=meta)
        except ValueError:
            meta = {}
    with td.open(tmp_path / "s.td", mode="r") as store:
        assert repr(store.meta("a")) == repr(meta)


@pytest.mark.parametrize("value", [math.inf, -1, "x", None, True])
def test_a_damaged_manifest_stops_every_mode_and_names_the_file(value: object, tmp_path) -> None:
    make_store(tmp_path / "s.td")
    edit_manifest(tmp_path / "s.td", lambda content: content.update(generation=value))
    before = newest_manifest(tmp_path / "s.td").read_bytes()
    for mode in ("r", "r+", "a"):
        with pytest.raises(td.StoreCorruptError, match="manifests/2"):
            td.open(tmp_path / "s.td", mode=mode)
    assert newest_manifest(tmp_path / "s.td").read_bytes() == before


def test_numbers_of_numpy_are_written_as_numbers(tmp_path) -> None:
    with td.open(tmp_path / "s.td", diff_threshold=np.float32(0.5)) as store:
        store.register_master("m", np.zeros((np.int64(3), 2), np.float32))
        store.tag("x")
    with td.open(tmp_path / "s.td", mode="r", at="x") as store:
        assert store.diff_threshold == 0.5
