"""docs/format.md against the code, the independent reader against the library, and the golden store against both."""

import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import ml_dtypes
import numpy as np
import pytest

import tokendance as td
from tokendance.store import collect, layout
from tokendance.store.manifest import Manifest, MasterEntry, MirrorEntry, encode
from tokendance.store.manifest_reader import decode

ROOT = Path(__file__).resolve().parents[1]
FORMAT = ROOT / "docs" / "format.md"
READER = ROOT / "docs" / "examples" / "independent_reader.py"
GOLDEN = Path(__file__).resolve().parent / "data" / "golden-1"
GOLDEN_STORES = ["float16", "bfloat16"]

# Reads what it is told to on its standard input and saves each array; zarr's warnings are errors here, too.
READ_ALL = """
import json, runpy, sys
from pathlib import Path
import numpy as np
read_agent = runpy.run_path(sys.argv[1])["read_agent"]
for number, (store, agent, generation) in enumerate(json.load(sys.stdin)):
    np.save(f"{sys.argv[2]}/{number}.npy", read_agent(Path(store), agent, generation))
assert "tokendance" not in sys.modules
"""


def stored(cache: np.ndarray) -> np.ndarray:
    """The cache as zarr holds it: bfloat16 and float8 as the integers of their bits."""
    return cache.view(layout.STORED_AS[cache.dtype.name])


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def everything_in(store: Path) -> Iterator[tuple[int, str, np.ndarray]]:
    """Each agent of each retained generation, as tokendance reconstructs it."""
    with td.open(store, mode="r") as newest:
        numbers = [generation.number for generation in newest.history()]
    for number in numbers:
        with td.open(store, mode="r", at=number) as at:
            for agent in at.agents:
                cache = at.reconstruct(agent)
                assert same(at.reconstruct(agent, copy=False), cache)
                yield number, agent, stored(cache)


def run_reader(store: Path, wanted: list[tuple[str, int]], out: Path) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    told = json.dumps([(str(store), agent, generation) for agent, generation in wanted])
    command = [sys.executable, "-W", "error", "-c", READ_ALL, str(READER), str(out)]
    return subprocess.run(command, input=told, capture_output=True, text=True, cwd=out)


def assert_read_alike(store: Path, out: Path) -> int:
    """The independent reader reads what tokendance does. Returns how many agents that were."""
    expected = list(everything_in(store))
    done = run_reader(store, [(agent, number) for number, agent, _ in expected], out)
    assert done.returncode == 0, done.stderr
    for index, (number, agent, cache) in enumerate(expected):
        assert same(np.load(out / f"{index}.npy"), cache), (number, agent)
    return len(expected)


def random_cache(n_blocks: int, block_shape: tuple[int, ...], dtype: object, seed: int) -> np.ndarray:
    """Random bits, NaNs among them."""
    dtype = np.dtype(dtype)
    shape = (n_blocks, *block_shape[:-1], block_shape[-1] * dtype.itemsize)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8).view(dtype)


# The independent reader ---------------------------------------------------------------------------------------------

DTYPES = [
    np.float64,
    np.float32,
    np.float16,
    np.int8,
    np.uint8,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
]


def test_every_dtype_is_tried():
    assert {np.dtype(dtype).name for dtype in DTYPES} == set(layout.STORED_AS)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_dtype_and_kind_of_mirror(tmp_path, dtype):
    shape = (2, 3)
    master = random_cache(10, shape, dtype, 1)
    other = master.copy()
    other[[0, 4, 9]] = random_cache(3, shape, dtype, 2)
    store = tmp_path / "s.td"
    with td.open(store, diff_threshold=0, ragged=True) as s:
        s.register_master("master", master)
        s.register_mirror("other", other)
        with s.transaction():
            s.register_mirror("equal", master)
            s.register_mirror("short", other[:4])
            s.register_mirror("long", np.concatenate((master, random_cache(3, shape, dtype, 3))))
            s.register_mirror("none", master[:0])
            s.fork("other", "a fork/of ‘other’")
        s.collective_reuse_step(["short", "none", "new"], random_cache(2, shape, dtype, 4))
        s.collective_reuse_step(["short", "long", "other"], random_cache(3, shape, dtype, 5))
        s.rebase("short")
        s.collective_reuse_step(s.agents, random_cache(1, shape, dtype, 6))
        s.register_master("short", random_cache(9, shape, dtype, 7))
        s.rebase()
    assert assert_read_alike(store, tmp_path / "out") > 50


def test_one_axis_per_block_and_an_empty_master(tmp_path):
    store = tmp_path / "s.td"
    with td.open(store, diff_threshold=0, ragged=True) as s:
        s.register_master("m", np.zeros((0, 4), np.float32))
        s.register_mirror("a", np.ones((3, 4), np.float32))
        s.collective_reuse_step(["a", "b"], np.full((2, 4), 2, np.float32))
    assert assert_read_alike(store, tmp_path / "out") == 2 + 1 + 3


def test_several_chunks_grown_and_revised(tmp_path):
    master = random_cache(9000, (2048,), np.uint8, 1)
    store = tmp_path / "s.td"
    with td.open(store, diff_threshold=0, ragged=True) as s:
        s.register_master("m", master)
        s.register_mirror("a", np.concatenate((master[:100], master[200:300])))
        s.collective_reuse_step(["a"], master[:9])
        s.register_master("m", master[:8000])
    manifest = decode((store / "manifests" / "5").read_bytes(), "5")
    folder = store / "masters" / str(manifest.master.object)
    chunks = sorted(folder.glob("c.*"))
    assert len(chunks) > 1
    assert {chunk.stat().st_nlink for chunk in chunks} == {2}  # all of them shared, the last one holds more rows
    assert assert_read_alike(store, tmp_path / "out") == 1 + 2 + 2 + 2


@pytest.fixture
def small(tmp_path):
    """A store of several chunks and arrays, in which every byte that is read matters."""
    store = tmp_path / "small.td"
    shutil.copytree(GOLDEN / "float16.td", store)
    return store


def test_the_command(tmp_path, small):
    out = tmp_path / "agent.npy"
    done = subprocess.run([sys.executable, READER, small, "critic", out, "3"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with td.open(small, mode="r", at=3) as s:
        assert same(np.load(out), s.reconstruct("critic"))


def swap_endian(document: bytes) -> bytes:
    return document.replace(b'"little"', b'"big"')


def flip(data: bytes) -> bytes:
    return data[:5] + bytes([data[5] ^ 1]) + data[6:]


DAMAGE = {
    "a chunk is missing": ("masters/5/c.1.0.0.0", None),
    "positions are missing": ("mirrors/7/indices/c.0", None),
    "a chunk is cut short": ("masters/5/c.0.0.0.0", lambda data: data[:-100]),
    "a bit of a chunk": ("masters/5/c.0.0.0.0", flip),
    "a bit of the own blocks": ("mirrors/7/values/c.0.0.0.0", flip),
    "a bit of the base map": ("mirrors/7/base/c.0", flip),
    "a bit of the manifest": ("manifests/5", flip),
    "another byte order": ("masters/5/zarr.json", swap_endian),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_the_reader_finds_damage(tmp_path, small, case):
    name, damage = DAMAGE[case]
    file = small / name
    data = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage(data))
        assert file.read_bytes() != data
    done = run_reader(small, [("critic", 5)], tmp_path / "out")
    assert done.returncode != 0
    assert "Error" in done.stderr


def test_zarr_alone_reads_a_missing_chunk_as_zeros(small):
    """Why a reader must look for each chunk itself."""
    zarr = pytest.importorskip("zarr")
    (small / "masters/5/c.1.0.0.0").unlink()
    assert not zarr.open_array(small / "masters/5", mode="r")[16:32].any()


# The golden store ---------------------------------------------------------------------------------------------------


def expected_of(name: str) -> Iterator[tuple[int, str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.expected.npz") as saved:
        for key in saved.files:
            number, agent = key.split("|")
            yield int(number), unquote(agent), saved[key]


def fingerprint(folder: Path) -> list[tuple[str, int, str]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(str(file), file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def assert_golden(store: Path, name: str) -> None:
    count = 0
    for number, agents in itertools.groupby(expected_of(name), key=lambda one: one[0]):
        with td.open(store, mode="r", at=number) as s:
            for _, agent, cache in agents:
                assert same(stored(s.reconstruct(agent)), cache), (number, agent)
                assert same(stored(s.reconstruct(agent, copy=False)), cache), (number, agent)
                count += 1
    assert count == {"float16": 41, "bfloat16": 3}[name]


@pytest.mark.parametrize("name", GOLDEN_STORES)
def test_golden_is_read_where_it_is_and_not_touched(name):
    before = fingerprint(GOLDEN)
    assert_golden(GOLDEN / f"{name}.td", name)
    assert fingerprint(GOLDEN) == before


@pytest.mark.parametrize("name", GOLDEN_STORES)
def test_golden_is_read_by_the_independent_reader(tmp_path, name):
    expected = list(expected_of(name))
    wanted = [(agent, number) for number, agent, _ in expected]
    done = run_reader(GOLDEN / f"{name}.td", wanted, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for index, (number, agent, cache) in enumerate(expected):
        assert same(np.load(tmp_path / "out" / f"{index}.npy"), cache), (number, agent)


@pytest.mark.parametrize("name", GOLDEN_STORES)
def test_golden_goes_on_being_written(tmp_path, name):
    store = tmp_path / "copy.td"
    shutil.copytree(GOLDEN / f"{name}.td", store)
    with td.open(store, mode="r+") as s:
        first = s.generation
        shared = s.master_cache[s.master_id][:2].copy()
        before = {agent: s.reconstruct(agent) for agent in s.agents}
        s.collective_reuse_step(s.agents, shared)
        s.rebase(s.agents[-1])
        assert s.generation == first + 2
        for agent, cache in before.items():
            assert same(s.reconstruct(agent), np.concatenate((cache, shared)))
    assert_golden(store, name)
    assert assert_read_alike(store, tmp_path / "out") > len(before)


def test_golden_says_what_else_it_holds():
    with td.open(GOLDEN / "float16.td", mode="r") as s:
        assert s.tags == {"round 1": 2, "rebased": 4, "round 2": 5, "branch": 6}
        assert [(one.number, one.parent) for one in s.history()] == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 2)]
        assert s.identity == {"model": "golden", "layers": 1, "kv_heads": 2, "head_dim": 16, "rope": 10000.0}
        assert s.meta("critic") == {"tokens": 159, "stop": ["\n"]}
        assert (s.diff_threshold, s.ragged) == (0.5, True)
    with td.open(GOLDEN / "float16.td", mode="r", at="round 1") as s:
        assert 0 < s.mirrors["nearly"].max_dropped_norm <= s.diff_threshold


@pytest.mark.parametrize("name", GOLDEN_STORES)
def test_golden_is_whole(name):
    found = td.verify(GOLDEN / f"{name}.td")
    assert (found.findings, found.leavings) == ((), ())


def test_golden_covers_the_block_table():
    """A reader that passes the golden store has met tails, base maps, both, forks, and mirrors with nothing."""
    manifests = [decode((GOLDEN / "float16.td/manifests" / str(n)).read_bytes(), str(n)) for n in range(1, 7)]
    mirrors = [mirror for manifest in manifests for mirror in manifest.mirrors]
    assert any(mirror.tail and not mirror.n_base for mirror in mirrors)
    assert any(mirror.tail and mirror.n_base for mirror in mirrors)
    assert any(mirror.n_base and not mirror.n_own for mirror in mirrors)
    assert any(mirror.object is None and mirror.n_blocks for mirror in mirrors)
    assert any(mirror.n_blocks == 0 for mirror in mirrors)
    numbers = [mirror.object for mirror in manifests[4].mirrors if mirror.object is not None]
    assert len(numbers) > len(set(numbers))
    assert any(m.master and m.master.n_blocks > m.master.chunk_blocks for m in manifests)


def test_golden_is_small_and_complete():
    files = [file for file in GOLDEN.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 150 << 10
    assert not [folder for folder in GOLDEN.rglob("*") if folder.is_dir() and not any(folder.iterdir())]


# The document -------------------------------------------------------------------------------------------------------


def fenced(language: str, after: str) -> str:
    """The first block of a language after some text."""
    text = FORMAT.read_text(encoding="utf-8").split(after, 1)[1]
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def table_after(heading: str) -> list[list[str]]:
    """The rows of the first table after some text, without backquotes."""
    text = FORMAT.read_text(encoding="utf-8").split(heading, 1)[1]
    lines = itertools.takewhile(lambda line: line.startswith("|"), text[text.index("\n|") + 1 :].splitlines())
    _, rule, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert set("".join(rule)) == {"-"}
    assert {len(row) for row in rows} == {len(rule)}
    return [[cell.replace("`", "") if n < 2 else cell for n, cell in enumerate(row)] for row in rows]


def test_the_reader_is_quoted_whole():
    assert fenced("python", "## An independent reader") == READER.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "record", "also"),
    [
        ("### Fields of a manifest", Manifest, ["format"]),
        ("The fields of `master`:", MasterEntry, []),
        ("The fields of each of `mirrors`:", MirrorEntry, []),
    ],
    ids=["manifest", "master", "mirror"],
)
def test_each_field_is_documented_in_its_order(heading, record, also):
    assert [row[0] for row in table_after(heading)] == also + [field.name for field in dataclasses.fields(record)]


# Values that break the documented type or bounds of a field, by what the tables say of it.
WRONG = {
    "whole": [-1, 1.0, "1", True, None, 1 << 70],
    "whole or null": [-1, 1.0, "1", True, 1 << 70],
    "real": [-1, "1", True, None],
    "boolean": [0, "false", None],
    "string": ["", 1, None, "x" * 513],
    "string or null": ["float128", 1],
    "array or null": [[], [0], [1.0], [1] * 32, [1 << 41], "4"],
    "object or null": [[], "x", 1],
    "object": [[], "x", 1, None],
    "array": [{}, "x", 1, None, [1]],
}


def resealed(content: dict) -> bytes:
    line = json.dumps(content).encode()
    return line + b'\n{"sha256":"' + hashlib.sha256(line).hexdigest().encode() + b'"}\n'


def cases() -> Iterator[tuple[str, str, str]]:
    for part, heading in (
        ("manifest", "### Fields of a manifest"),
        ("master", "The fields of `master`:"),
        ("mirror", "The fields of each of `mirrors`:"),
    ):
        yield from ((part, name, kind) for name, kind, *_ in table_after(heading))


@pytest.mark.parametrize(("part", "name", "kind"), list(cases()), ids=lambda value: value.replace(" ", "-"))
def test_the_documented_types_and_bounds_are_enforced(part, name, kind):
    line = (GOLDEN / "float16.td/manifests/5").read_bytes().split(b"\n")[0]
    for wrong in WRONG[kind]:
        if name == "format" and wrong == 1:  # 1.0 and true, which Python takes for 1
            continue
        content = json.loads(line)
        where = {"manifest": content, "master": content["master"], "mirror": content["mirrors"][1]}[part]
        assert name in where
        where[name] = wrong
        with pytest.raises((td.StoreCorruptError, td.FormatVersionError)):
            decode(resealed(content), "5")
        del where[name]
        with pytest.raises((td.StoreCorruptError, td.FormatVersionError)):
            decode(resealed(content), "5")
        where[name + "_too"] = 1
        with pytest.raises((td.StoreCorruptError, td.FormatVersionError)):
            decode(resealed(content), "5")


def test_the_newer_format_is_refused_before_its_checksum():
    with pytest.raises(td.FormatVersionError):
        decode(b'{"format":2}\nanother kind of checksum\n', "1")


@pytest.mark.parametrize("number", range(1, 7))
def test_encoding_what_was_decoded_gives_the_same_bytes(number):
    data = (GOLDEN / "float16.td/manifests" / str(number)).read_bytes()
    assert encode(decode(data, str(number))) == data


def test_dtypes_are_those_of_the_code():
    assert {row[0]: row[1] for row in table_after("### Dtypes")} == layout.STORED_AS


def test_constants_are_those_of_the_code():
    for name, value, _ in table_after("### Constants"):
        module = collect if name == "KEPT_GENERATIONS" else layout
        assert str(getattr(module, name)) == value, name


def test_array_metadata_is_what_the_table_says():
    keys = {key for row in table_after("### Arrays") for key in row[0].split(", ")}
    for stored_as in layout.ITEM_BYTES:
        assert set(json.loads(layout.array_document((4, 2), 4, stored_as, stored_as))) == keys


def test_the_root_is_the_one_shown():
    assert json.loads(fenced("json", "### Groups")) == json.loads(layout.root_document())


def test_the_checksum_is_the_one_named():
    google_crc32c = pytest.importorskip("google_crc32c")
    said = re.search(r"crc32c of `(\d+)` is `([0-9a-f]{8})`", FORMAT.read_text(encoding="utf-8"))
    assert f"{google_crc32c.value(said[1].encode()):08x}" == said[2]


def hexadecimal(file: Path) -> str:
    data = file.read_bytes()
    return "".join(data[start : start + 16].hex(" ") + "\n" for start in range(0, len(data), 16))


def test_the_example_is_the_golden_store():
    store = GOLDEN / "bfloat16.td"
    files = {file.relative_to(store).as_posix(): file.stat().st_size for file in store.rglob("*") if file.is_file()}
    listing = "".join(f"{size:6}  {name}\n" for name, size in sorted(files.items()))
    line, trailer = (store / "manifests/2").read_text().splitlines()
    assert fenced("text", "Its files and their lengths:") == listing
    assert json.loads(fenced("json", "The first line of")) == json.loads(line)
    assert fenced("json", "The second line:") == trailer + "\n"
    assert fenced("text", "`mirrors/1/indices/c.0`:") == hexadecimal(store / "mirrors/1/indices/c.0")
    assert fenced("text", "`mirrors/1/values/c.0.0.0`:") == hexadecimal(store / "mirrors/1/values/c.0.0.0")
