"""What the heap of a serving process gives back: measured in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HOLE = """
import ctypes
from pathlib import Path
from broker.edge.heap import settle_heap

if {settled}:
    assert settle_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def array(size):
    at = libc.malloc(size)
    ctypes.memset(at, 1, size)
    return at

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))

libc.free(array(24 << 20))
before = anonymous_bytes()
large = array(16 << 20)
small = [array(1 << 10) for _ in range(1000)]
libc.free(large)
print(anonymous_bytes() - before)
"""


def kept_bytes(*, settled: bool) -> int:
    """Return what a process keeps of a large array that was freed after a larger one, with small items behind it."""
    script = HOLE.format(settled=settled)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the bounds are those of the GNU C library's heap")
def test_large_arrays_leave_nothing_behind() -> None:
    assert kept_bytes(settled=False) > 12 << 20
    assert kept_bytes(settled=True) < 4 << 20
