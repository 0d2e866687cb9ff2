"""The guide "Compare brokers in your CI": every command in it is taken, and every demand can be met."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.bench.compare.demands import parse_all
from broker.bench.compare.works import WORKS
from broker.cli.compare import command

if TYPE_CHECKING:
    from collections.abc import Sequence

GUIDE = (Path(__file__).parents[2] / "benchmarks" / "CI.md").read_text(encoding="utf-8")
WORKFLOWS = (Path(__file__).parents[2] / ".github" / "workflows").glob("*.yml")
LINES = [line.strip().removeprefix("- run: ") for text in (GUIDE, *(path.read_text() for path in WORKFLOWS))
         for line in text.splitlines()]  # fmt: skip
COMMANDS = [line.removeprefix(".venv/bin/") for line in LINES if re.match(r"(\.venv/bin/)?broker bench compare ", line)]
CONTENDERS: dict[str, Sequence[str]] = {name: tuple(work.modes) for name, work in WORKS.items()}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_comparison_that_is_shown_is_one(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("before.json").write_text("{}")
    words = shlex.split(line)
    context = command.make_context("compare", words[3:])
    assert context.params["peers"]
    parse_all(context.params["require"], CONTENDERS)


def test_there_are_comparisons_to_try() -> None:
    assert len(COMMANDS) >= 7


def test_a_module_that_is_run_is_there() -> None:
    modules = [match.group(1) for line in LINES if (match := re.search(r"python -m (broker[\w.]+)", line))]
    assert "broker.bench.tracked" in modules
    for module in modules:
        assert callable(import_module(module).main)
