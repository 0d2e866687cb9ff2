"""All that is known of a test when it is over: for programs as JSON, for the page and the screen as figures."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from broker._version import __version__
from broker.bench.machine import describe_machine, describe_python, revision
from loadtest.histogram import curve, percentiles
from loadtest.server import GAUGES, RATES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadtest.histogram import Timeline
    from loadtest.ledger import Faults
    from loadtest.plan import Plan
    from loadtest.server import Series

FULL_SHARE: Final = 0.9
"""From here on a process has used up its core: whatever limited the test, it is among the suspects."""
SECRET: Final = "***"


class Finding(NamedTuple):
    """One threshold: what was asked for, what has come, and whether that will do."""

    name: str
    asked: str
    got: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Record:
    """One test.

    Attributes:
        plan, url, users, begun_s: What was asked for, of whom, and when.
        timeline: Throughput and latency.
        faults: What was wrong with messages.
        errors: What else went wrong, and how often.
        failures: Why the test could not be brought to its end, if it could not.
        server: What the server said of itself.
        workers_cores: Cores that each process with users has used on average.
        findings, passed: The verdict.
    """

    plan: Plan
    url: str
    users: int
    begun_s: float
    timeline: Timeline
    faults: Faults
    errors: Mapping[str, int]
    failures: list[str]
    server: Series
    workers_cores: Mapping[str, float]
    findings: list[Finding]
    passed: bool

    @property
    def verdict(self) -> str:
        """PASSED or FAILED."""
        return "PASSED" if self.passed else "FAILED"

    def whose_processor_was_full(self) -> str:
        """Say in a sentence who had no processor time left."""
        shares = {f"worker {number}": cores for number, cores in enumerate(self.workers_cores.values(), 1)}
        if len(shares) == 1:
            shares = {"the generator": next(iter(shares.values()))}
        shares = {"the server": self.server.cores, **shares}
        told = ", ".join(f"{who} used {cores:.2f} cores" for who, cores in shares.items())
        full = [who for who, cores in shares.items() if cores >= FULL_SHARE]
        return f"{told}; {' and '.join(full)} had none left" if full else f"{told}; none was full"

    def as_json(self) -> dict[str, object]:
        """Return the figures for programs. Names and their meaning are stable."""
        timeline, plan = self.timeline, asdict(self.plan)
        if plan["token"]:
            plan["token"] = SECRET
        return {
            "passed": self.passed,
            "failures": self.failures,
            "findings": [each._asdict() for each in self.findings],
            "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.begun_s)),
            "url": self.url,
            "users": self.users,
            "plan": plan,
            "delivered": timeline.delivered,
            "published": timeline.published,
            "delivered_per_s": round(timeline.rate(), 1),
            "latency_ms": {name: round(value, 4) for name, value in percentiles(timeline.latency).items()},
            "latency_ms_by_scenario": {
                kind: {name: round(value, 4) for name, value in percentiles(latency).items()}
                for kind, latency in sorted(timeline.latencies.items())
            },
            "latency_curve": [[round(percent, 4), round(ms, 4)] for percent, ms in curve(timeline.latency)],
            "faults": asdict(self.faults),
            "errors": dict(self.errors),
            "seconds": [
                [
                    line.at_s,
                    line.published,
                    line.delivered,
                    round(line.p50_ms, 3),
                    round(line.p99_ms, 3),
                    round(line.max_ms, 3),
                ]
                for line in timeline.lines
            ],
            "judged_from": timeline.since_s,
            "server": {
                "cores": round(self.server.cores, 3),
                "cpu_s": round(self.server.cpu_s, 3),
                "silent": self.server.silent_why,
                "times": [round(at_s, 2) for at_s in self.server.times_s],
                **{name: self.server.values[name] for name in (*RATES, *GAUGES)},
            },
            "workers_cores": {process: round(cores, 3) for process, cores in self.workers_cores.items()},
            "bottleneck": self.whose_processor_was_full(),
            "revision": revision(),
            "version": __version__,
            "python": describe_python(),
            "machine": describe_machine(),
        }

    def as_json_text(self) -> str:
        """Return the same as a file's text."""
        return json.dumps(self.as_json(), indent=1) + "\n"


def write(path: str, text: str) -> None:
    """Write a report, and the folder that it is in if that is missing.

    Raises:
        OSError: It cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
