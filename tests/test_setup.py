"""The build's refusals: what a machine lacks is said in one line, with what to install."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def preflight(prepare: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `setup.py preflight` after some Python statements, in an interpreter of its own."""
    program = f"import runpy, sys, sysconfig\n{prepare}\nsys.argv = ['setup.py', 'preflight']\n"
    program += "runpy.run_path('setup.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_machine_that_runs_this_can_build() -> None:
    result = preflight()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("prepare", "environment", "lack", "remedy"),
    [
        ("", {"CC": "no-such-compiler"}, "no working C compiler", "apt install gcc"),
        ("", {"CC": "false"}, "no working C compiler", "xcode-select --install"),
        ("", {"PATH": "/nonexistent", "CC": "cc"}, "no working C compiler", "apt install gcc"),
        ("sysconfig.get_path = lambda name: '/nonexistent'", {}, "no Python.h for Python 3.", "-dev`"),
        ("sys.modules['ensurepip'] = None", {}, "lacks ensurepip", "-venv`"),
        ("sys.version_info = (3, 10, 0)", {}, "too old", "make build PYTHON="),
    ],
    ids=["compiler absent", "compiler broken", "empty PATH", "headers absent", "ensurepip absent", "Python too old"],
)
def test_lack_is_told_in_one_line(prepare: str, environment: dict[str, str], lack: str, remedy: str) -> None:
    result = preflight(prepare, **environment)
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("broker: ")
    assert lack in line
    assert remedy in line


def test_unknown_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = names_of_setup(monkeypatch, "no_such_module")
    with pytest.raises(SystemExit, match="BROKER_ONLY names no module no_such_module"):
        setup["sources"]()


def test_only_the_named_modules_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = names_of_setup(monkeypatch, "crc32c,none")
    assert [path.stem for path in setup["sources"]()] == ["crc32c"]


def names_of_setup(monkeypatch: pytest.MonkeyPatch, only: str) -> dict[str, Any]:
    """Return the global names of setup.py, which builds nothing unless it is the program."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BROKER_ONLY", only)
    return runpy.run_path("setup.py")
