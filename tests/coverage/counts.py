"""What was counted: the lines and branches of each source, read from gcov and from coverage.py.

Nothing is judged here. A source that was built and never loaded is read as well: its counts are 0.
"""

from __future__ import annotations

import ast
import json
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.coverage.branches import Decision, Statement, body_lines, decisions, statements


@dataclass(order=True)
class Branch:
    """One way out of one condition."""

    source: str
    line: int
    way: str
    """Of a native source: which of the line's conditions, from 1, and the value that it had. Of Python: whereto."""
    function: str
    text: str
    count: int = 0

    @property
    def key(self) -> str:
        """Name the branch without the number of its line, which changes too often to be written down."""
        return f"{self.source} | {self.function} | {self.text} | {self.way}"


@dataclass
class Source:
    """What is known of one file."""

    name: str
    lines: dict[int, int] = field(default_factory=dict)
    """How often each line ran that does something."""
    branches: dict[tuple[int, str], Branch] = field(default_factory=dict)

    def add(self, line: int, way: str, function: str, text: str, count: int) -> None:
        """Count a branch, or one more copy of it."""
        branch = self.branches.setdefault((line, way), Branch(self.name, line, way, function, text))
        branch.count += count


@dataclass
class Native:
    """The natives' counts, and the statements whose conditions were not found in the C."""

    sources: dict[str, Source]
    unread: list[str]


def read_native(build: Path, folder: Path) -> Native:
    """Read the counts of all native modules.

    Args:
        build: where the objects are, each with its gcov notes.
        folder: the sources; its name is what the C calls their package.

    Raises:
        subprocess.CalledProcessError: gcov is not the compiler's own.
    """
    texts = {f"{folder.name}/{path.name}": path.read_text() for path in sorted(folder.iterdir()) if path.suffix in READ}
    parsed = {name: statements(text) for name, text in texts.items() if not name.endswith(".h")}
    sources = {name: Source(name.partition("/")[2]) for name in texts}
    seen: set[tuple[str, int]] = set()
    compiled: set[tuple[str, int]] = set()
    for notes in sorted(build.rglob("*.gcno")):
        for path, lines in gcov(notes).items():
            if path.suffix == ".h" and f"{folder.name}/{path.name}" in texts:
                name = f"{folder.name}/{path.name}"
                read_header(sources[name], texts[name].splitlines(), lines)
            elif path.stem == notes.stem:
                c_text = path.read_text()
                for line in body_lines(c_text):
                    compiled.add((line.source, line.source_line))
                seen |= read_module(c_text, lines, parsed, texts, sources)
    unread = [
        f"{name}:{number}: {texts[name].splitlines()[number - 1].strip()}"
        for name, found in parsed.items()
        for number, statement in first_lines(found)
        if statement.decides and not statement.is_constant and statement.function
        if any((name, at) in compiled for at, other in found.items() if other is statement)
        if not any((name, at) in seen for at, other in found.items() if other is statement)
    ]
    return Native({source.name: source for source in sources.values() if source.lines}, unread)


READ = (".pyx", ".pxd", ".h")


def gcov(notes: Path) -> dict[Path, dict[int, dict[str, Any]]]:
    """Return gcov's account of one object: for each file the lines by number."""
    command = ["gcov", "--branch-probabilities", "--json-format", "--stdout", str(notes.resolve())]
    # Without counts gcov says so on its error output, and reports zeros.
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    files: dict[Path, dict[int, dict[str, Any]]] = defaultdict(dict)
    account = json.loads(output)
    for file in account["files"]:
        for line in file["lines"]:
            files[Path(account["current_working_directory"]) / file["file"]][line["line_number"]] = line
    return files


def read_header(source: Source, texts: list[str], lines: dict[int, dict[str, Any]]) -> None:
    """Count a file of our own C, of which each branch is written by hand."""
    for number, line in lines.items():
        text = texts[number - 1].strip()
        source.lines[number] = source.lines.get(number, 0) + line["count"]
        if not text.startswith("assert("):
            for order, branch in enumerate(line["branches"]):
                # Which way is which nobody knows: a compiler turns conditions around as it likes.
                source.add(
                    number, f"{order + 1} of {len(line['branches'])}", line["function_name"], text, branch["count"]
                )


def read_module(
    c_text: str,
    lines: dict[int, dict[str, Any]],
    parsed: dict[str, dict[int, Statement]],
    texts: dict[str, str],
    sources: dict[str, Source],
) -> set[tuple[str, int]]:
    """Count what one module's C has of each source; answers the lines that it found decisions of."""
    block = None
    for line in body_lines(c_text):
        statement = parsed.get(line.source, {}).get(line.source_line)
        if statement is None or not statement.runs or line.number not in lines:
            continue
        # The first line of C of a block tells: behind the last one an error may come in from elsewhere.
        if block != line.block:
            block = line.block
            ran = sources[line.source].lines
            ran[line.source_line] = max(ran.get(line.source_line, 0), lines[line.number]["count"])
    seen = set()
    for decision in decisions(c_text, parsed):
        if decision.c_line not in lines:
            continue  # of a function of a `.pxd` that stands in the C of each module and is used by others only
        name, number, order = decision.place
        seen.add((name, number))
        text = texts[name].splitlines()[number - 1].strip()
        function = parsed[name][number].function
        for holds, count in zip((decision.probe_holds, not decision.probe_holds), ways(lines, decision), strict=True):
            sources[name].add(number, way(order, holds), function, text, count)
    return seen


def ways(lines: dict[int, dict[str, Any]], decision: Decision) -> tuple[int, int]:
    """Return how often a decision went the way that its probe counts, and how often the other."""
    counts = [branch["count"] for branch in lines[decision.c_line]["branches"]]
    probed = lines[decision.c_line + 1]["count"]
    if len(counts) != 2 or probed not in counts:
        raise ValueError(
            f"{decision.place}: gcov counts {probed} after branches of {counts}; line {decision.c_line} of the C"
        )
    counts.remove(probed)
    return probed, counts[0]


def way(order: int, holds: bool) -> str:
    """Name a branch by which of a line's conditions it is of, from 1, and by what that was."""
    return f"{order} {'true' if holds else 'false'}"


def first_lines(found: dict[int, Statement]) -> list[tuple[int, Statement]]:
    """Return each statement once, with its first line."""
    firsts: dict[int, tuple[int, Statement]] = {}
    for number in sorted(found):
        firsts.setdefault(id(found[number]), (number, found[number]))
    return list(firsts.values())


def read_python(report: Path, folder: Path) -> dict[str, Source]:
    """Read coverage.py's report in JSON, of the files of one folder."""
    sources: dict[str, Source] = {}
    for name, file in json.loads(report.read_text())["files"].items():
        path = Path(name)
        if folder not in path.parents:
            continue
        text = path.read_text()
        source = sources[f"{folder.name}/{path.name}"] = Source(f"{folder.name}/{path.name}")
        source.lines = dict.fromkeys(file["executed_lines"], 1) | dict.fromkeys(file["missing_lines"], 0)
        texts, functions = text.splitlines(), functions_of(text)
        for count, arcs in ((1, file["executed_branches"]), (0, file["missing_branches"])):
            for begin, end in arcs:
                to = f"to `{texts[end - 1].strip()}`" if end > 0 else "to the end"
                source.add(begin, to, functions.get(begin, ""), texts[begin - 1].strip(), count)
    return sources


def functions_of(text: str) -> dict[int, str]:
    """Return the innermost function at each line of a Python source."""
    functions: dict[int, str] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), node.name))
    return functions
