"""A directory to share, and nothing left of it afterwards: no process, whatever the test did to its server.

Servers come from the nursery, which spares each test half a second of imports. A test that is about the command and its
environment takes `real_start`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.shared import starting
from tests.shared.processes import end_all

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def nursery() -> Iterator[str]:
    """The path of a nursery's socket."""
    with tempfile.TemporaryDirectory(prefix="broker-") as folder:
        path = f"{folder}/nursery"
        command = [sys.executable, "-m", "tests.shared.nursery", path]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield path
            process.stdin.close()
            assert process.wait(10) == 0


@pytest.fixture
def real_start() -> None:
    """Have servers started by the product's own command."""


@pytest.fixture(autouse=True)
def starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have servers forked by the nursery, unless the test is about how they are run."""
    if "real_start" not in request.fixturenames:
        monkeypatch.setattr(starting, "interpreter", lambda: stub(request.getfixturevalue("nursery")))


def stub(nursery: str) -> list[str]:
    """Return the command that stands for `python -m broker`."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("stub.py")), nursery]


def environment() -> dict[str, str]:
    """Return an environment in which a child imports the same broker, and the tests."""
    return {"PYTHONPATH": f"{ROOT}:{ROOT / 'ext'}", "PATH": "/usr/bin:/bin"}


@pytest.fixture
def data() -> Iterator[Path]:
    """A directory that is not there yet, whose socket's path is short enough."""
    # Not pytest's folder, whose names are longer than the path of a Unix socket may be.
    folder = Path(tempfile.mkdtemp(prefix="broker-")).resolve()
    try:
        yield folder / "data"
    finally:
        end_all(folder)
        shutil.rmtree(folder, ignore_errors=True)
