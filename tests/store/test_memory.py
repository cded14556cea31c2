"""Blocks in memory: room after a master, so that appending to it moves nothing."""

import os
from pathlib import Path

import numpy as np
import pytest

from tokendance.store.mapping import NO_RESERVE
from tokendance.store.memory import MemoryPlace
from tokendance.store.place import BlockType

FLOATS = BlockType("float32", (1024,))

pytestmark = pytest.mark.skipif(not NO_RESERVE, reason="this system gives no address space without memory")


def blocks_of(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4096), np.uint8)


@pytest.mark.parametrize("mapped", [False, True], ids=["private", "in a file"])
def test_appending_moves_nothing(mapped: bool) -> None:
    place, expected = MemoryPlace(), blocks_of(8192, 0)
    first = rows = place.put_master(expected, FLOATS)
    if mapped:
        for piece in rows.pieces() or []:
            os.close(piece.fd)
    address = rows.view().ctypes.data
    for step in range(1, 6):
        new = blocks_of(16, step)
        rows = place.append_master(rows, new)
        expected = np.concatenate((expected, new))
        assert rows.view().ctypes.data == address
        assert np.array_equal(rows.view(), expected)
    assert np.array_equal(first.view(), expected[:8192])


def test_room_that_is_not_used_takes_no_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = blocks_of(8192, 0)
    before = resident()
    rows = MemoryPlace().put_master(blocks, FLOATS)
    assert rows.n_rows == 8192
    assert resident() - before < 2 * blocks.nbytes
