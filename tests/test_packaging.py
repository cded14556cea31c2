"""What setup.cfg promises against what is on disk and what got installed."""

import configparser
import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TYPED = ("tokendance", "tokendance.store", "tokendance.kernels")

needs_checkout = pytest.mark.skipif(not (ROOT / "store").is_dir(), reason="the sources are not beside the tests")


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def packages_on_disk(root: Path) -> set[str]:
    """Every folder with Python files below the three roots, under the name it installs as."""
    found = set()
    for top, name in (("tokendance", "tokendance"), ("store", "tokendance.store"), ("kernels", "tokendance.kernels")):
        for file in (root / top).rglob("*.py"):
            found.add(".".join((name, *file.parent.relative_to(root / top).parts)))
    return found


def requirement_name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


@needs_checkout
def test_packages_are_the_folders_on_disk():
    listed = lines(read_setup()["options"]["packages"])
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_on_disk(ROOT)


def test_a_forgotten_subpackage_would_be_seen(tmp_path):
    for file in ("tokendance/__init__.py", "tokendance/new/thing.py", "store/deep/er/x.py", "kernels/README"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert packages_on_disk(tmp_path) == {"tokendance", "tokendance.new", "tokendance.store.deep.er"}


@needs_checkout
def test_each_package_is_a_real_one():
    folders = {file.parent for top in ("tokendance", "store", "kernels") for file in (ROOT / top).rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


@needs_checkout
def test_py_typed_is_declared_as_package_data():
    data = read_setup()["options.package_data"]
    assert {name: lines(data[name]) for name in TYPED} == {name: ["py.typed"] for name in TYPED}


@pytest.mark.parametrize("package", TYPED)
def test_py_typed_is_installed(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    assert (Path(spec.submodule_search_locations[0]) / "py.typed").is_file()


@pytest.mark.parametrize("package", lines(read_setup()["options"]["packages"]))
def test_each_package_can_be_found(package):
    assert importlib.util.find_spec(package) is not None


def test_installed_metadata_is_that_of_setup_cfg():
    setup = read_setup()
    installed = importlib.metadata.metadata("tokendance")
    assert installed["Version"] == setup["metadata"]["version"]
    assert installed["License-Expression"] == setup["metadata"]["license_expression"]
    declared = {requirement_name(item) for item in lines(setup["options"]["install_requires"])}
    required = importlib.metadata.requires("tokendance") or []
    assert {requirement_name(item) for item in required if "extra ==" not in item} == declared
    assert set(installed.get_all("Provides-Extra")) == set(setup["options.extras_require"])


def bounds(requirements: list[str]) -> dict[str, tuple[int, ...]]:
    """The version after >= or ==, by name; 3 and 3.0.0 are the same."""
    found = {}
    for requirement in requirements:
        if version := re.search(r"[>=]= *([\d.]+)", requirement):
            numbers = [int(part) for part in version[1].split(".")]
            found[requirement_name(requirement)] = (*numbers, 0, 0)[:3]
    return found


def test_the_minimal_versions_are_the_lower_bounds():
    setup = read_setup()
    extras = setup["options.extras_require"]
    declared = [lines(extras[extra]) for extra in ("cli", "plot", "test")]
    lower = [bounds(group) for group in (lines(setup["options"]["install_requires"]), *declared)]
    pins = [line for line in lines((ROOT / "tools/minimal.txt").read_text("utf-8")) if not line.startswith("#")]
    pinned = bounds(pins)
    assert len(pinned) == len(pins)
    assert all("==" in pin for pin in pins)
    # The same name has the same bound wherever it stands.
    assert {name: version for group in lower for name, version in group.items()} == {
        name: version for name, version in pinned.items() if name not in {"click", "pyparsing"}
    }
    assert all(pinned[name] == version for group in lower for name, version in group.items())


def test_the_command_is_installed():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="tokendance")
    assert command.value == "tokendance.cli:main"
