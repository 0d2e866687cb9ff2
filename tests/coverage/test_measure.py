"""The verdict: what it lets pass, and each thing for which it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.coverage.counts import Branch, Source, read_python
from tests.coverage.measure import EXPLAINED, Explanation, judge, percent, read_explanations, table

if TYPE_CHECKING:
    from pathlib import Path


def source(name: str, taken: int, missed: int) -> Source:
    """A source with so many branches, each on a line of its own."""
    made = Source(name, {1: 1})
    for line in range(taken + missed):
        made.add(line, "1 true", "find", f"if at == {line}:", int(line < taken))
    return made


def explain(*lines: int, name: str = "tails.pyx", sometimes: bool = False) -> Explanation:
    keys = frozenset(f"{name} | find | if at == {line}: | 1 true" for line in lines)
    return Explanation("allocation", keys, sometimes)


def test_all_taken() -> None:
    assert judge([source("tails.pyx", 20, 0), Source("clock.h")], []) == []


def test_unexplained_branch_is_named() -> None:
    (complaint,) = judge([source("tails.pyx", 39, 1)], [])
    assert complaint == "tails.pyx:39: not taken, and not explained: tails.pyx | find | if at == 39: | 1 true"


def test_explained_branches_do_not_count() -> None:
    assert judge([source("tails.pyx", 10, 10)], [explain(*range(10, 20))]) == []


def test_too_few_of_one_source_among_many() -> None:
    complaints = judge([source("tails.pyx", 900, 0), source("trie.pyx", 18, 1)], [])
    assert complaints[0] == "trie.pyx: 18 of 19 branches, limit 95.0 %"
    assert len(complaints) == 2


def test_too_few_in_all() -> None:
    assert "all: 18 of 19 branches, limit 95.0 %" in judge([source("trie.pyx", 18, 1)], [])


def test_explanation_of_nothing_is_stale() -> None:
    for stale in (explain(3), explain(20), explain(19, name="trie.pyx")):
        (complaint,) = judge([source("tails.pyx", 20, 0)], [stale])
        assert complaint.startswith("explained.toml: there is no such branch, or it is taken: ")


def test_what_happens_by_chance_may_happen() -> None:
    assert judge([source("tails.pyx", 20, 0)], [explain(3, sometimes=True)]) == []
    assert judge([source("tails.pyx", 20, 1)], [explain(20, sometimes=True)]) == []
    assert len(judge([source("tails.pyx", 20, 0)], [explain(20, sometimes=True)])) == 1


def test_a_line_that_is_there_twice_has_one_explanation() -> None:
    twice = source("tails.pyx", 40, 0)
    for line in (50, 60):
        twice.add(line, "1 true", "find", "if data == NULL:", 0)
    key = next(branch.key for branch in twice.branches.values() if branch.line == 50)
    assert judge([twice], [Explanation("allocation", frozenset({key}), False)]) == []


def test_copies_are_added_up() -> None:
    copied = Source("tails.pyx")
    for count in (0, 2, 3):
        copied.add(7, "1 true", "find", "if at:", count)
    assert list(copied.branches.values()) == [Branch("tails.pyx", 7, "1 true", "find", "if at:", 5)]


def test_table_has_a_row_for_each_and_for_all() -> None:
    key = "trie.pyx | find | if at == 3: | 1 true"
    rows = table([source("tails.pyx", 2, 0), source("trie.pyx", 3, 1)], frozenset({key})).splitlines()
    assert [row.split() for row in rows[2:]] == [
        ["trie.pyx", "1/1", "100.0", "%", "3/4", "75.0", "%", "1"],
        ["all", "2/2", "100.0", "%", "5/6", "83.3", "%", "1"],
    ]
    assert percent(1_999, 2_000) == "99.9 %"


def test_python_is_read_from_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "core"
    folder.mkdir()
    (folder / "some.py").write_text("def find(at):\n    if at:\n        return 1\n    return 2\n\n\nfind(1)\n")
    run = ["run", "--branch", f"--data-file={tmp_path / 'data'}", str(folder / "some.py")]
    report = ["json", "-q", f"--data-file={tmp_path / 'data'}", "-o", str(tmp_path / "report.json")]
    for command in (run, report):
        subprocess.run([sys.executable, "-m", "coverage", *command], check=True, cwd=tmp_path)
    files = json.loads((tmp_path / "report.json").read_text())
    files["files"] = {str(folder / "some.py"): next(iter(files["files"].values()))}
    (tmp_path / "report.json").write_text(json.dumps(files))
    (read,) = read_python(tmp_path / "report.json", folder).values()
    assert read.lines == {1: 1, 2: 1, 3: 1, 4: 0, 7: 1}
    assert {(branch.key, branch.count) for branch in read.branches.values()} == {
        ("core/some.py | find | if at: | to `return 1`", 1),
        ("core/some.py | find | if at: | to `return 2`", 0),
    }


def test_every_explanation_has_a_reason() -> None:
    for explanation in read_explanations(EXPLAINED):
        assert len(explanation.reason) > 20
        assert explanation.branches
