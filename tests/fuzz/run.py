"""Fuzzing from the command line: `make fuzz`, or `make fuzz ARGS="--seconds 60 --target intake"`.

Executions are spread over targets and processes in slices, each with a seed of its own. A strict slice runs with every
Python object a heap block, so that the sanitizer sees a read past any of them, the others with Python's own allocator,
which is three times as fast. What a worker dies of is written to a find, cut down to its last input when
that alone does it, and replayed by one command.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz import finds

ROOT = Path(__file__).parents[2]
FINDS = Path("build/fuzz/finds")
HANG_S = 10.0
"""A worker that begins no execution for so long hangs. One that is slow says so itself."""
POLL_S = 0.05
REPLAY_S = 60
FOREVER_S = 86400.0

SHARES = {
    "chunk": 1300,
    "tree": 900,
    "session": 6,
    "page": 2000,
    "intake": 120,
    "channels": 40,
    "reader": 120,
    "publish": 5124,
    "group": 150,
    "posting": 120,
    "words": 80,
    "bodies": 70,
    "member": 30,
    "transaction": 20,
    "dialect": 4,
    "state": 20,
    "ids": 150,
    "settle": 3,
    "settings": 10,
}
"""How executions are spread: each target gets its part of their sum. A cheap one is not more important, only cheap. The
order is that of the time that they take, so that the long ones begin first."""

SLICES = ((9, False), (1, True))
"""How a target's executions are spread over its slices, each of a seed of its own, and which of them are strict."""


@dataclass
class Slice:
    """What one worker does."""

    target: str
    seed: int
    executions: int
    seconds: float
    strict: bool
    keep: bool = False


@dataclass
class Outcome:
    """What came of all slices."""

    reports: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def environment(lib: Path, *, strict: bool) -> dict[str, str]:
    """Return the environment in which natives of a checked build can be loaded, the same for a replay."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "BROKER_"))}
    environ["PYTHONPATH"] = os.pathsep.join([str(lib), str(ROOT)])
    environ["PYTHONHASHSEED"] = "0"
    if strict:
        environ["PYTHONMALLOC"] = "malloc"
    if lib.parent.name == "sanitize":
        command = [*shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")]
        runtime = subprocess.run(
            [*command, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        environ["LD_PRELOAD"] = runtime
        # Leaks of Python are Python's; ours show in the memory that a slice grows by.
        environ["ASAN_OPTIONS"] = "detect_leaks=0:quarantine_size_mb=8:malloc_context_size=" + ("8" if strict else "1")
    return environ


class Worker:
    """A process with a slice.

    Args:
        work: The slice.
        lib: Where the natives of the checked build are.
    """

    def __init__(self, work: Slice, lib: Path) -> None:
        self.work = work
        self.lib = lib
        self.block = tempfile.NamedTemporaryFile(prefix="broker-fuzz-", buffering=0)  # noqa: SIM115  (closed by `end`)
        # As `engine.BLOCK_BYTES`, which only the worker can import.
        self.block.truncate(64 + (1 << 20))
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self.counted = (0, time.monotonic())
        self.hung = False
        words = ["fuzz", work.target, work.seed, work.executions, work.seconds, self.block.name]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", *map(str, words), "keep" if work.keep else "drop"],
            cwd=ROOT,
            env=environment(lib, strict=work.strict),
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def executions(self) -> int:
        """How many executions it has begun."""
        self.block.seek(0)
        return int.from_bytes(self.block.read(8), "little")

    def is_over(self) -> bool:
        """Whether it has ended; one that hangs is ended."""
        if self.process.poll() is not None:
            return True
        now, counted = time.monotonic(), self.executions()
        if counted != self.counted[0]:
            self.counted = (counted, now)
        elif now - self.counted[1] > HANG_S and counted:
            self.hung = True
            self.process.kill()
        return False

    def inputs(self) -> list[bytes]:
        """The inputs that its target's world had taken."""
        self.block.seek(8)
        left = int.from_bytes(self.block.read(8), "little")
        self.block.seek(64)
        inputs = []
        while left > 4:
            size = int.from_bytes(self.block.read(4), "little")
            inputs.append(self.block.read(size))
            left -= 4 + size
        return inputs

    def end(self, outcome: Outcome) -> None:
        """Take what came of it."""
        assert self.process.stdout is not None
        printed = self.process.stdout.read().decode()
        self.process.wait()
        self.errors.seek(0)
        errors = self.errors.read().decode(errors="replace")
        if self.process.returncode == 0:
            outcome.reports.append(json.loads(printed))
        else:
            why = f"no execution began for {HANG_S:g} s" if self.hung else errors
            outcome.failures.append(self.explain(why))
        self.process.stdout.close()
        self.errors.close()
        self.block.close()

    def explain(self, why: str) -> str:
        """Write the find; returns what is printed of it."""
        work = self.work
        inputs = self.inputs()
        path = finds.write(FINDS, work.target, inputs)
        alone = finds.write(FINDS, work.target, inputs[-1:])
        if path != alone and (self.hung or replay(alone, self.lib, strict=work.strict).returncode != 0):
            path.unlink()
            path = alone
        elif path != alone:
            alone.unlink()
        Path(f"{path}.txt").write_text(why, encoding="utf-8")
        head = [
            line
            for line in why.splitlines()
            if line.startswith((" ", "==", "SUMMARY")) or "Error" in line or "Broken" in line
        ]
        return "\n".join(
            [
                f"target {work.target}, seed {work.seed}, execution {self.executions()}:",
                *(head or why.splitlines())[:14],
                *why.splitlines()[-1:],
                f'replay: make fuzz ARGS="--replay {path}"',
            ]
        )


def replay(path: Path, lib: Path, *, strict: bool, show: bool = False) -> subprocess.CompletedProcess[bytes]:
    """Execute a find in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.worker", "replay", str(path.absolute())],
        cwd=ROOT,
        env=environment(lib, strict=strict),
        capture_output=not show,
        timeout=REPLAY_S,
        check=False,
    )


def work_through(slices: list[Slice], lib: Path, processes: int) -> Outcome:
    """Do all slices, so many at a time. A target that failed is not gone on with."""
    outcome = Outcome()
    waiting = list(reversed(slices))
    running: list[Worker] = []
    failed: set[str] = set()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                work = waiting.pop()
                if work.target not in failed:
                    running.append(Worker(work, lib))
            time.sleep(POLL_S)
            for worker in [worker for worker in running if worker.is_over()]:
                running.remove(worker)
                before = len(outcome.failures)
                worker.end(outcome)
                if len(outcome.failures) > before:
                    failed.add(worker.work.target)
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.wait()
    return outcome


def plan(targets: list[str], executions: int, seconds: float | None, seed: int, processes: int) -> list[Slice]:
    """Spread executions, or seconds, over targets: slices of several seeds each, the long ones first."""
    whole = sum(SHARES.get(target, 1) for target in targets)
    slices = []
    for index, (share, strict) in enumerate(SLICES):
        for target in targets:
            if seconds is None:
                count, limit_s = executions * SHARES.get(target, 1) * share // (whole * 10) + 1, FOREVER_S
            else:
                count, limit_s = 1 << 62, seconds * processes / (len(targets) * len(SLICES))
            slices.append(Slice(target, seed * 1000 + index, count, limit_s, strict))
    return slices


def show(outcome: Outcome, targets: list[str]) -> None:
    """Print a line for each target, and what was found."""
    print(f"{'target':10}{'executions':>12}{'/cpu s':>10}{'edges':>8}{'new':>6}{'slowest ms':>12}{'grown MiB':>11}")
    for target in targets:
        mine = [report for report in outcome.reports if report["target"] == target]
        if mine:
            executions = sum(report["executions"] for report in mine)
            rate = executions / max(0.001, sum(report["cpu_s"] for report in mine))
            edges, slowest, grown = (
                max(report[key] for report in mine) for key in ("edges", "slowest_us", "grown_mib")
            )
            fresh = sum(report["fresh"] for report in mine)
            print(f"{target:10}{executions:12,}{rate:10,.0f}{edges:8}{fresh:6}{slowest / 1000:12.1f}{grown:11.1f}")
    for failure in outcome.failures:
        print(f"\nFOUND {failure}")


def main() -> int:
    """Fuzz, or replay; the status is 1 when something was found."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--lib", type=Path, default=Path("build/sanitize/lib"), help="where the checked build is")
    parser.add_argument("--target", action="append", metavar="NAME", help=f"one of {', '.join(SHARES)}; all of them")
    parser.add_argument("--executions", type=int, default=10_000_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, help="so long instead of so many executions")
    parser.add_argument("--seed", type=int, help="of the mutations; one drawn from the clock with --seconds, else 1")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", action="store_true", help="add what walks new code to tests/fuzz/corpus")
    parser.add_argument("--replay", type=Path, metavar="FIND", help="execute what a find holds")
    asked = parser.parse_args()
    lib = asked.lib.absolute()
    if asked.replay is not None:
        return replay(asked.replay, lib, strict=True, show=True).returncode
    seed = asked.seed if asked.seed is not None else 1 if asked.seconds is None else int(time.time())
    targets = asked.target or list(SHARES)
    slices = plan(targets, asked.executions, asked.seconds, seed, asked.processes)
    for work in slices:
        work.keep = asked.keep and not work.strict
    started = time.monotonic()
    outcome = work_through(slices, lib, asked.processes)
    show(outcome, targets)
    executions = sum(report["executions"] for report in outcome.reports)
    print(
        f"{executions:,.0f} executions in {time.monotonic() - started:.1f} s over {asked.processes} processes, "
        f"seed {seed}: {len(outcome.failures)} found"
    )
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
