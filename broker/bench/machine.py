"""The machine and the build that a figure belongs to: without them it means nothing."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import lmdb

from broker._version import __version__

COMMITS: Final = 200
COMMIT_BYTES: Final = 8192
"""A value of about what a group holds when the load is light: 50 records of 128 bytes."""


def commit_us_p50(folder: Path | None = None) -> float:
    """Measure what one synced LMDB commit of one value costs here: the floor under every synced latency.

    Args:
        folder: a directory on the file system in question; None for that of temporary files.

    Returns:
        The median of COMMITS commits in microseconds.

    Raises:
        OSError, lmdb.Error: the directory cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="broker-commit-", dir=folder) as scratch:
        options: dict[str, Any] = {"lib_version": 0} if lmdb.__version__ >= "3" else {}
        with lmdb.open(f"{scratch}/file", subdir=False, map_size=64 << 20, **options) as environment:
            times_us = [_commit_us(environment, number) for number in range(COMMITS)]
    return statistics.median(times_us)


def _commit_us(environment: lmdb.Environment, number: int) -> float:
    start = time.perf_counter()
    with environment.begin(write=True) as transaction:
        transaction.put(number.to_bytes(8, "big"), bytes(COMMIT_BYTES), append=True)
    return (time.perf_counter() - start) * 1e6


def describe_machine() -> dict[str, object]:
    """Return the processor, its cores, the kernel and how busy the machine was, for the record."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "kernel": f"{platform.system()} {platform.release()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        found = next((line for line in lines if line.startswith("model name")), "")
        if found:
            return found.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def revision() -> str:
    """Return the commit that is checked out, with `+` when files differ from it; else the version."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return __version__
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return found.stdout.strip() or __version__


def describe_python() -> str:
    """Return the interpreter and its version."""
    return f"{platform.python_implementation()} {platform.python_version()}"
