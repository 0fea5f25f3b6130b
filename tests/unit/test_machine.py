"""Memory taken in large pages, and given back."""

import ctypes
import gc
import platform
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from fedglioma import machine
from fedglioma.machine import joined

LARGE = machine._LARGE_PAGES_FROM


@pytest.mark.parametrize("size", [0, 1, LARGE - 3, LARGE - 2, LARGE, LARGE + 4097, 3 * LARGE + 1])
def test_join_is_that_of_bytes(size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    parts = (b"\x93N", memoryview(content))
    found = joined(parts)
    assert type(found) is bytes
    assert found == b"".join(parts)
    assert hash(found) == hash(b"".join(parts))


def test_arrays_of_any_type_and_shape_are_joined_by_their_bytes() -> None:
    one = np.arange(LARGE, dtype=np.float32).reshape(-1, 4)
    none = np.zeros((0, 3), np.uint16)
    two = np.array([[1, -1]], np.int8)
    assert joined((one.data, none.data, two.data)) == one.tobytes() + b"\x01\xff"
    assert joined(()) == b""


def test_parts_that_change_afterwards_do_not_change_the_join() -> None:
    part = np.zeros(LARGE, np.uint8)
    found = joined((part.data,))
    part[:] = 1
    assert not any(found)


def test_a_join_takes_its_own_size_and_is_given_back() -> None:
    part = np.ones(8 * LARGE, np.uint8)
    tracemalloc.start()
    try:
        found = joined((b"head", part.data))
        held, most = tracemalloc.get_traced_memory()
        assert held == pytest.approx(part.nbytes, rel=0.01)
        assert most == pytest.approx(part.nbytes, rel=0.01)
        del found
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 1e5
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_the_plain_join_does(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    def absent(*_args: object) -> None:
        raise AssertionError("no C library is asked")

    monkeypatch.setattr(machine.sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    part = np.ones(2 * LARGE, np.uint8)
    assert joined((part.data,)) == part.tobytes()


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library than glibc keeps its own ways"
)
def test_what_lies_free_between_pieces_in_use_goes_back_to_the_system() -> None:
    code = """
import numpy as np
from fedglioma.machine import return_free_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

held = [np.ones(64 << 10, np.uint8) for _ in range(2000)]
del held[1::2], held[1::2], held[1::2]
before = resident()
return_free_memory()
print(before - resident())
"""
    given_back = subprocess.run(  # noqa: S603 (this interpreter)
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert int(given_back) > 60e6
