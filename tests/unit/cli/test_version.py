"""`broker version`: lines for people and one object for programs, also where uvloop is not installed."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import TYPE_CHECKING

from broker._version import __version__
from broker.cli.main import main

if TYPE_CHECKING:
    import pytest


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"broker {__version__}"
    assert f"lmdb {importlib.metadata.version('lmdb')}" in lines


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)
    assert set(versions) == {"broker", "python", "uvloop", "lmdb", "lmdb library", "system"}
    assert versions["python"].endswith(platform.python_version())


def test_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed = importlib.metadata.version

    def version(package: str) -> str:
        if package == "uvloop":
            raise importlib.metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["version"]) == 0
    assert "uvloop not installed" in capsys.readouterr().out
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uvloop"] is None
