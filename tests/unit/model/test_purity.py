"""The model imports the standard library and itself, and nothing that does I/O or keeps time."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import broker.model

MODULES = sorted(Path(broker.model.__file__).parent.glob("*.py"))
IMPURE = {"asyncio", "io", "os", "random", "socket", "threading", "time", "pathlib", "subprocess", "logging"}


def imported(source: str) -> set[str]:
    """Return every module that a source imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or ".")
    return found


def test_all_modules_are_looked_at() -> None:
    assert {"errors.py", "names.py", "limits.py", "profiles.py", "positions.py"} <= {path.name for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_imports_only_the_standard_library_and_the_model(path: Path) -> None:
    for module in imported(path.read_text(encoding="utf-8")):
        root = module.partition(".")[0]
        assert module.startswith("broker.model") or (root in sys.stdlib_module_names and root not in IMPURE), module
