"""Measure which branches of `ext/` and of `broker/core` their tests take, and judge: `make coverage`.

The native modules are built by gcc with a counter at each branch (`BROKER_COVERAGE=1`, in `build/coverage`: the debug
build, not optimised), their tests run over that build, and gcov's counts are read by the rule of `branches.py`. The
core is Python, under coverage.py. Only the tests of a part count for it, `tests/native` and `tests/unit/core`: what a
test of the whole server happens to walk through has not been looked at by anybody.

The verdict fails when

- less than BRANCHES_MIN_PERCENT of a source's branches, or of all of them together, are taken, those that
  `explained.toml` explains not counted;
- a branch that is not taken has no explanation there, or an explanation fits no such branch;
- a condition in a source has no counterpart in the C, so that the rule no longer reads what Cython writes.

It needs gcc with its gcov, and is for Linux: another compiler counts otherwise. It writes to `build/coverage` only. The
examples of Hypothesis are the same in each run, so that the figures are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.coverage.counts import Source, read_native, read_python

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[2]
EXPLAINED = Path(__file__).with_name("explained.toml")
BUILD = Path("build/coverage")
LIBRARY = BUILD / "lib"
CORE_REPORT = BUILD / "core.json"

BRANCHES_MIN_PERCENT = 95.0
PROCESSES = 2

# Two processes at a time, the longest first. A test of a native module that is not named here runs with the first.
NATIVE_SECOND = ("driver", "crew", "trie", "posting", "intake", "fanout", "btree")


@dataclass(frozen=True)
class Explanation:
    """Why some branches are not taken.

    Attributes:
        reason: for a reader.
        branches: the keys of the branches (`Branch.key`).
        sometimes: whether they may be taken by chance, so that it is no mistake when they are.
    """

    reason: str
    branches: frozenset[str]
    sometimes: bool


def read_explanations(path: Path) -> list[Explanation]:
    """Read `explained.toml`: tables `[[never]]` and `[[sometimes]]`, each a reason and the branches that it is of."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Explanation(table["reason"], frozenset(table["branches"]), often == "sometimes")
        for often in ("never", "sometimes")
        for table in tables.get(often, [])
    ]


def judge(sources: Sequence[Source], explanations: Iterable[Explanation]) -> list[str]:
    """Return what is wrong with the counts; nothing when all is well."""
    explanations = list(explanations)
    explained = frozenset[str]().union(*(explanation.branches for explanation in explanations))
    complaints = []
    for source in [*sources, whole(sources)]:
        taken, counted = tally(source, explained)
        if taken * 100 < BRANCHES_MIN_PERCENT * counted:
            complaints.append(f"{source.name}: {taken} of {counted} branches, limit {BRANCHES_MIN_PERCENT} %")
    missed = [branch for source in sources for branch in source.branches.values() if not branch.count]
    complaints += [
        f"{branch.source}:{branch.line}: not taken, and not explained: {branch.key}"
        for branch in sorted(missed)
        if branch.key not in explained
    ]
    known = {branch.key for source in sources for branch in source.branches.values()}
    stale = {
        key
        for explanation in explanations
        for key in explanation.branches - (known if explanation.sometimes else {branch.key for branch in missed})
    }
    return complaints + [f"{EXPLAINED.name}: there is no such branch, or it is taken: {key}" for key in sorted(stale)]


def tally(source: Source, explained: frozenset[str] = frozenset()) -> tuple[int, int]:
    """Return how many branches are taken, and of how many; explained ones that are not taken do not count."""
    taken = sum(branch.count > 0 for branch in source.branches.values())
    return taken, taken + sum(not branch.count and branch.key not in explained for branch in source.branches.values())


def whole(sources: Iterable[Source]) -> Source:
    """Return all sources as one."""
    total = Source("all")
    for source in sources:
        total.lines.update({len(total.lines) + at: ran for at, ran in enumerate(source.lines.values())})
        for branch in source.branches.values():
            total.branches[len(total.branches), ""] = branch
    return total


def table(sources: Sequence[Source], explained: frozenset[str]) -> str:
    """Return the figures for a reader."""
    rows = [("source", "lines", "", "branches", "", "explained")]
    for source in [*sources, whole(sources)]:
        ran, lines = sum(count > 0 for count in source.lines.values()), len(source.lines)
        taken, branches = tally(source)
        reasons = branches - tally(source, explained)[1]
        rows.append(
            (
                source.name,
                f"{ran}/{lines}",
                percent(ran, lines),
                f"{taken}/{branches}",
                percent(taken, branches),
                str(reasons or ""),
            )
        )
    return "\n".join("{:22}{:>12}{:>9}{:>12}{:>9}{:>11}".format(*row) for row in rows)


def percent(part: int, of: int) -> str:
    """Return a share, rounded down so that only all of it is 100 %."""
    return f"{part * 1000 // of / 10:.1f} %" if of else "–"


def build() -> None:
    """Build the native modules with counters, without counts of an earlier run."""
    if shutil.which("gcov") is None or not sys.platform.startswith("linux"):
        sys.exit("broker: branches are counted with gcc and gcov on Linux; `apt install gcc` on Debian and Ubuntu")
    options = ["build_ext", "--build-lib", str(LIBRARY), "--build-temp", str(BUILD / "temp")]
    environment = {**os.environ, "BROKER_COVERAGE": "1"}
    subprocess.run([sys.executable, "setup.py", "-q", *options], env=environment, check=True, stdout=subprocess.PIPE)
    shutil.copy(Path("ext/broker_native/__init__.py"), LIBRARY / "broker_native")
    for counts in BUILD.rglob("*.gcda"):
        counts.unlink()


def run_tests() -> None:
    """Run the tests of the parts that are measured, PROCESSES at a time."""
    tests = sorted(Path("tests/native").glob("test_*.py"))
    second = [f"test_{name}.py" for name in NATIVE_SECOND]
    halves = [[str(path) for path in tests if (path.name in second) == half] for half in (False, True)]
    core = ["-m", "coverage", "run", "--branch", "--source=broker/core", f"--data-file={BUILD / 'core.data'}"]
    commands = [*(["-m", "pytest", *half] for half in halves), [*core, "-m", "pytest", "tests/unit/core"]]
    with ThreadPoolExecutor(PROCESSES) as pool:
        if any(pool.map(run_pytest, commands)):
            sys.exit("broker: the tests fail, so that their coverage means nothing")
    report = ["-m", "coverage", "json", "-q", f"--data-file={BUILD / 'core.data'}", "-o", str(CORE_REPORT)]
    subprocess.run([sys.executable, *report], check=True)


def run_pytest(command: Sequence[str]) -> int:
    """Run one part of the tests over the build with counters. Says nothing when they pass; answers their status."""
    options = ["-q", "-p", "no:cacheprovider", "-o", f"pythonpath={LIBRARY} .", "--hypothesis-seed=0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, *command, *options], env=environment, check=False, capture_output=True, text=True
    )
    print(result.stdout if result.returncode else result.stdout.splitlines()[-1], flush=True)
    return result.returncode


def main() -> int:
    """Build, run, count and judge; answers the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.coverage.measure", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--counted", action="store_true", help="judge the counts of the last run; run nothing")
    counted = parser.parse_args().counted
    os.chdir(ROOT)
    begun = time.monotonic()
    if not counted:
        build()
        run_tests()
    native = read_native(BUILD, Path("ext/broker_native"))
    sources = [*native.sources.values(), *read_python(CORE_REPORT, Path("broker/core")).values()]
    explanations = read_explanations(EXPLAINED)
    print(table(sources, frozenset[str]().union(*(explanation.branches for explanation in explanations))))
    print(f"in {time.monotonic() - begun:.0f} s")
    complaints = [f"{place}: a condition that the C does not have" for place in native.unread]
    complaints += judge(sources, explanations)
    print(*complaints, sep="\n", end="\n" if complaints else "")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
