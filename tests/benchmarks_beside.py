"""Loads the package `benchmarks` from beside the tests; a test that imports this is skipped where it is not there."""

import importlib.util
import sys
from pathlib import Path

import pytest

__all__ = ["ROOT"]

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)
if "benchmarks" not in sys.modules:
    # Not by way of sys.path: the checkout on the path would hide an installed wheel.
    spec = importlib.util.spec_from_file_location(
        "benchmarks", ROOT / "benchmarks" / "__init__.py", submodule_search_locations=[str(ROOT / "benchmarks")]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["benchmarks"])
