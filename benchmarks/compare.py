"""Compares the benchmarks of this checkout with those of another revision: `python -m benchmarks.compare --base REV`.

The other revision is checked out under `build/compare` with natives of its own, and gets the benchmarks of this
checkout: both sides do the same work, whatever has become of the benchmarks meanwhile. What fails on the other side, or
is only there, is named.

The suites run in turn, A B A B, a process each, and of every benchmark the shortest time of all rounds counts. What
disturbs a run can only make it longer, so the minimum is what all the noise leaves; a mean or a median of few rounds
is not. Kernels are timed by the processor's time of their process, in which nothing is that others took from it; what
goes over the loopback takes several processes, and is timed by the clock.

A machine that is faster for a moment can still favour one side. So the rounds are looked at in pairs as well, each with
the one that ran beside it: slower is what is slower by its shortest time and by the median of its pairs. It is run
again, with few others, as often as it takes or `--again` allows, before it counts.

The status is 0 when nothing is slower, 1 when something is, 2 when there is nothing to compare.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT: Final = Path(__file__).parents[1]
NATIVE: Final = Path("ext/broker_native")
SUITES: Final = ("benchmarks/micro", "benchmarks/macro")
SHARED: Final = ("benchmarks", "tests/reference")
"""What both sides have from this checkout: the benchmarks, and the plain-Python twins that make what they work on."""
CIMPORT: Final = re.compile(r"^\s*(?:from\s+broker_native\.(\w+)\s+cimport|cimport\s+broker_native\.(\w+))", re.M)
MESSAGES: Final = "20000"
"""Of a macro round, unless BENCHMARK_MESSAGES says another number."""
NONE_CHOSEN: Final = 5
"""Pytest's status when `-k` leaves nothing of a suite."""
BUILD_TIMEOUT_S: Final = 1800
SUITE_TIMEOUT_S: Final = 1800


class Incomparable(Exception):
    """There is nothing to compare; the text says why and what helps."""


@dataclass
class Side:
    """One of the two: where it is, and the times of each benchmark's rounds, seconds."""

    name: str
    folder: Path
    times: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """One benchmark on both sides.

    Attributes:
        name: its pytest id.
        base_s, head_s: the shortest times.
        ratio: of the shortest times, head to base; above 1 is slower.
        paired: the median of such ratios, each of two rounds that followed one another.
        noise: by how much the rounds of the base differ among themselves, as a share of the shortest.
    """

    name: str
    base_s: float
    head_s: float
    ratio: float
    paired: float
    noise: float


@dataclass(frozen=True)
class Report:
    """What a comparison has found.

    Attributes:
        base, head: the revisions.
        limit: by what share head may be slower.
        rounds: of each side; what was in doubt has had more.
        ratios: of what both have, the slowest first.
        only_base, only_head: benchmarks that one side has or can run.
    """

    base: str
    head: str
    limit: float
    rounds: int
    ratios: list[Ratio]
    only_base: list[str]
    only_head: list[str]

    @property
    def slower(self) -> list[Ratio]:
        """What is past the limit, however it is looked at."""
        return [ratio for ratio in self.ratios if min(ratio.ratio, ratio.paired) > 1 + self.limit]

    def as_json(self) -> dict[str, Any]:
        """Return all of it; the keys are stable."""
        slower = [ratio.name for ratio in self.slower]
        return {**asdict(self), "statistic": "min", "slower": slower}


# --- Two builds ---------------------------------------------------------------------------------------------------


def run(command: Sequence[str], folder: Path, timeout_s: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a side's folder, which sees that side's code and no other.

    Raises:
        Incomparable: it takes too long.
    """
    own = {**os.environ, **environment, "PYTHONPATH": f"{folder}{os.pathsep}{folder / 'ext'}", "PYTHONHASHSEED": "0"}
    try:
        return subprocess.run(
            command, cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as late:
        raise Incomparable(f"{folder}: `{' '.join(command)}` took more than {timeout_s:.0f} s") from late


def git(root: Path, *arguments: str) -> str:
    """Return what git says.

    Raises:
        Incomparable: it refuses.
    """
    try:
        told = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError as failure:
        raise Incomparable(f"git cannot be run: {failure}") from failure
    if told.returncode:
        raise Incomparable(f"git {' '.join(arguments)}: {told.stderr.strip()}")
    return told.stdout.strip()


def head_of(root: Path) -> Side:
    """Return this checkout as it is, with whatever is not committed."""
    changed = " with changes" if git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return Side(git(root, "rev-parse", "--short", "HEAD") + changed, root)


def base_of(root: Path, revision: str) -> tuple[Side, list[str]]:
    """Check a revision out, build it, and give it this checkout's benchmarks.

    Returns:
        The side, and the names of the benchmarks that it had of its own.

    Raises:
        Incomparable: there is no such revision, or it does not build.
    """
    commit = git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    folder = root / "build" / "compare" / commit[:12]
    names_file, built = folder / ".benchmarks.json", folder / ".built"
    if not built.exists():
        shutil.rmtree(folder, ignore_errors=True)
        git(root, "worktree", "prune")
        git(root, "worktree", "add", "--detach", "--force", str(folder), commit)
        build(root, folder)
        names_file.write_text(json.dumps(collect(folder)), encoding="utf-8")
        built.touch()
    for name in SHARED:
        shutil.rmtree(folder / name, ignore_errors=True)
        if (root / name).exists():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return Side(f"{revision} ({commit[:9]})", folder), json.loads(names_file.read_text(encoding="utf-8"))


def build(root: Path, folder: Path) -> None:
    """Build a side's native modules; those whose sources are the very same here are copied.

    Raises:
        Incomparable: the build fails.
    """
    names = [path.stem for path in sorted((folder / NATIVE).glob("*.pyx"))]
    wanted = [name for name in names if not copy_native(root, folder, name)]
    if names and not wanted:
        return
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    told = run(command, folder, BUILD_TIMEOUT_S, BROKER_ONLY=",".join(wanted))
    if told.returncode:
        raise Incomparable(f"{folder}: the build fails\n{told.stdout[-2000:]}{told.stderr[-2000:]}")


def copy_native(root: Path, folder: Path, name: str) -> bool:
    """Copy a native module that was built here, if it is made of the same sources and not older than they are."""
    found = [path for path in (root / NATIVE).glob(f"{name}.*.so")]
    here = native_sources(root, name)
    if not found or digest(root, here) != digest(folder, native_sources(folder, name)):
        return False
    if found[0].stat().st_mtime < max((root / path).stat().st_mtime for path in here if path.parent == NATIVE):
        return False
    shutil.copy2(found[0], folder / NATIVE)
    return True


def native_sources(root: Path, name: str) -> list[Path]:
    """Return what a native module is made of: its body, all declarations that it cimports, headers, the build."""
    found, left = {Path("setup.py")}, [name]
    found |= {path.relative_to(root) for path in (root / NATIVE).glob("*.h")}
    seen = set()
    while left:
        module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        for path in (NATIVE / f"{module}.pyx", NATIVE / f"{module}.pxd"):
            if (root / path).exists() and (path.suffix == ".pxd" or module == name):
                found.add(path)
                text = (root / path).read_text(encoding="utf-8")
                left += ["".join(match) for match in CIMPORT.findall(text)]
    return sorted(found)


def digest(root: Path, paths: Iterable[Path]) -> str:
    """Return a hash of some files, their names included."""
    told = hashlib.sha256()
    for path in paths:
        told.update(str(path).encode() + b"\0" + (root / path).read_bytes() + b"\0")
    return told.hexdigest()


def check_own(side: Side) -> None:
    """Demand that a side imports its own code.

    Raises:
        Incomparable: it does not.
    """
    line = "import broker; print(broker.__file__)"
    told = run([sys.executable, "-c", line], side.folder, 60)
    if told.returncode or not Path(told.stdout.strip()).is_relative_to(side.folder):
        raise Incomparable(f"{side.name}: imports {told.stdout.strip()}{told.stderr.strip()}, not {side.folder}/broker")


# --- Rounds -------------------------------------------------------------------------------------------------------


def collect(folder: Path) -> list[str]:
    """Return the names of a side's benchmarks."""
    present = [suite for suite in SUITES if (folder / suite).exists()]
    if not present:
        return []
    told = run(pytest_command(present, ["--collect-only"]), folder, 300)
    return [line for line in told.stdout.splitlines() if "::" in line and not line.startswith("ERROR")]


def pytest_command(chosen: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return the command that runs benchmarks."""
    plain = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--timeout", "600"]
    # `-k` may choose none of a suite, which is no error.
    plain += ["-W", "ignore:Not saving anything"]
    return [sys.executable, "-m", "pytest", *plain, *options, *chosen]


def run_suites(side: Side, chosen: Sequence[str], options: Sequence[str], strict: bool) -> None:
    """Run a side's benchmarks once: kernels by the processor's time, all else by the clock."""
    kernels = [each for each in chosen if each.startswith(SUITES[0])]
    others = [each for each in chosen if each not in kernels]
    for those, timer in ((kernels, "time.process_time"), (others, "time.perf_counter")):
        if those:
            run_suite(side, those, [*options, f"--benchmark-timer={timer}"], strict)


def run_suite(side: Side, chosen: Sequence[str], options: Sequence[str], strict: bool) -> None:
    """Run some benchmarks of a side once, and keep the shortest time of each.

    Args:
        side: where.
        chosen: files, folders or pytest ids.
        options: more of pytest's.
        strict: whether a benchmark that fails ends the comparison; on the other side it is named.

    Raises:
        Incomparable: nothing runs, or one fails that may not.
    """
    with TemporaryDirectory() as folder:
        json_path = Path(folder) / "times.json"
        timing = ["--benchmark-json", str(json_path), "--benchmark-max-time=0.05", "--benchmark-disable-gc"]
        messages = os.environ.get("BENCHMARK_MESSAGES", MESSAGES)
        told = run(
            pytest_command(chosen, [*timing, *options]), side.folder, SUITE_TIMEOUT_S, BENCHMARK_MESSAGES=messages
        )
        if told.returncode == NONE_CHOSEN:
            return
        if (strict and told.returncode) or not json_path.exists() or not json_path.stat().st_size:
            raise Incomparable(f"{side.name}: the benchmarks fail\n{told.stdout[-4000:]}{told.stderr[-2000:]}")
        for each in json.loads(json_path.read_text(encoding="utf-8"))["benchmarks"]:
            side.times.setdefault(each["fullname"], []).append(each["stats"]["min"])


def compare(base: Side, head: Side, own: Sequence[str], options: argparse.Namespace) -> Report:
    """Run both sides in turn, then again whatever seems slower.

    Raises:
        Incomparable: there is nothing that both have.
    """
    chosen = options.paths or [suite for suite in SUITES if (head.folder / suite).exists()]
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        for side in (base, head):
            run_suites(side, chosen, options.pytest, side is head)
    report = judge(base, head, own, options)
    for _ in range(options.again):
        doubtful = [ratio.name for ratio in report.slower]
        if not doubtful:
            break
        say(f"again, {len(doubtful)} in doubt: {', '.join(doubtful)}")
        for side in (base, head) * 2:
            run_suites(side, doubtful, options.pytest, side is head)
        report = judge(base, head, own, options)
    return report


def judge(base: Side, head: Side, own: Sequence[str], options: argparse.Namespace) -> Report:
    """Put the times of both sides beside each other.

    Raises:
        Incomparable: they have nothing in common.
    """
    both = base.times.keys() & head.times.keys()
    if not both:
        raise Incomparable(f"{base.name} and {head.name} have no benchmark in common")
    ratios = []
    for name in both:
        old, new = base.times[name], head.times[name]
        paired = statistics.median(after / before for before, after in zip(old, new, strict=False))
        ratios.append(Ratio(name, min(old), min(new), min(new) / min(old), paired, max(old) / min(old) - 1))
    ratios.sort(key=lambda ratio: -min(ratio.ratio, ratio.paired))
    everything = not options.paths and not options.pytest
    gone = sorted(set(own) - set(collect(head.folder))) if everything else []
    return Report(
        base.name, head.name, options.limit, options.rounds, ratios, gone, sorted(head.times.keys() - base.times.keys())
    )


# --- Telling ------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """Tell what is going on, beside the result."""
    print(line, file=sys.stderr, flush=True)


def seconds(value: float) -> str:
    """Return a time in a unit that suits it."""
    for unit, factor in (("ns", 1e9), ("µs", 1e6), ("ms", 1e3)):
        if value * factor < 1000:
            return f"{value * factor:.1f} {unit}"
    return f"{value:.2f} s"


def print_report(report: Report) -> None:
    """Print a line for each benchmark, and the verdict."""
    print(f"base {report.base}, head {report.head}; the shortest of {report.rounds} rounds each, run in turn")
    print(f"{'base':>10}{'head':>12}{'ratio':>8}{'paired':>8}{'noise':>8}  benchmark")
    for ratio in report.ratios:
        note = "  < slower" if ratio in report.slower else ""
        times = f"{seconds(ratio.base_s):>10}{seconds(ratio.head_s):>12}"
        print(f"{times}{ratio.ratio:>8.3f}{ratio.paired:>8.3f}{ratio.noise:>8.0%}  {ratio.name}{note}")
    for name in report.only_base:
        print(f"only at {report.base}: {name}")
    for name in report.only_head:
        print(f"only at {report.head}: {name}")
    slower = [ratio.name for ratio in report.slower]
    if slower:
        print(f"{len(slower)} of {len(report.ratios)} are more than {report.limit:.0%} slower: {', '.join(slower)}")
    else:
        print(f"none of {len(report.ratios)} is more than {report.limit:.0%} slower")


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--base", required=True, metavar="REV", help="the revision to compare with")
    made.add_argument("--rounds", type=int, default=4, help="of each side (default: %(default)s)")
    made.add_argument("--again", type=int, default=8, help="how often doubtful ones are run again (%(default)s)")
    made.add_argument("--limit", type=float, default=0.10, help="share by which head may be slower (%(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    made.add_argument("-k", dest="keyword", metavar="EXPRESSION", help="benchmarks whose names match, as in pytest")
    made.add_argument("paths", nargs="*", help="files, folders or pytest ids; default: micro and macro")
    made.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its status."""
    options = parser().parse_args(arguments)
    options.pytest = ["-k", options.keyword] if options.keyword else []
    if options.rounds < 1 or options.again < 0 or not options.limit >= 0:
        print("broker: --rounds is at least 1, --again and --limit at least 0", file=sys.stderr)
        return 2
    try:
        head = head_of(options.root)
        say(f"building {options.base}")
        base, own = base_of(options.root, options.base)
        for side in (base, head):
            check_own(side)
        report = compare(base, head, own, options)
        if options.json is not None:
            options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    except (Incomparable, OSError) as failure:
        print(f"broker: {failure}", file=sys.stderr)
        return 2
    print_report(report)
    return 1 if report.slower else 0


if __name__ == "__main__":
    sys.exit(main())
