"""The judge of one test: adds up what all processes counted, and says whether what was asked for has come.

One for each test, where there is no worker. It hears of failures that end a test, of errors that users met, of what was
wrong with messages; the verdict is `Finding`s, one for each threshold, and all must hold. A test that could not be
brought to its end has failed, whatever its figures.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from typing import TYPE_CHECKING, Any, Final

from loadtest.histogram import Timeline, percentiles
from loadtest.ledger import Faults, faults_from
from loadtest.page import page
from loadtest.record import Finding, Record, write
from loadtest.screen import Screen
from loadtest.server import Series
from loadtest.side import ERRORS_TOLD, FURTHER
from loadtest.stages import is_level

if TYPE_CHECKING:
    from locust.env import Environment

    from loadtest.plan import Plan

BEST_STRETCH_S: Final = 5
ALONE_LAG_S: Final = 1
WORKERS_LAG_S: Final = 4
"""Locust's workers report every three seconds, each at its own time."""
AHEAD_TOLD: Final = (
    "messages came before they were sent: the clocks of the machines differ, and so latencies mean nothing"
)


class Judge:
    """Judges one test.

    Args:
        plan: what is asked for.
        url: of the broker.
        users: the most there will be.
    """

    def __init__(self, plan: Plan, url: str, users: int) -> None:
        self.plan = plan
        self.url = url
        self.users = users
        self.begun_s = time.time()
        self.timeline = Timeline()
        self.server = Series()
        self.faults = Faults()
        self.errors: Tally[str] = Tally()
        self.failures: list[str] = []
        self.closing = False
        self.closed = False
        self.passed = False
        self.finals = 0
        self._cpu: dict[str, float] = {}
        self._screen = Screen(plan, url, users)

    # -- hearing ------------------------------------------------------------------------------------------------------

    def fail(self, why: str) -> None:
        """The test cannot be brought to its end."""
        self.failures.append(why)

    def crowd_is_complete(self, users: int) -> None:
        """Users that were asked for are there. With the last of them begins what is judged, if the shape is level."""
        if is_level(self.plan.shape) and users >= self.users and not self.timeline.since_s and not self.closing:
            self.timeline.since_s = int(time.time()) + 1

    def take(self, process: str, report: dict[str, Any]) -> None:
        """Take what a process has counted since the last time.

        Raises:
            ValueError: It is no such thing.
        """
        self.timeline.add(report["seconds"])
        for what, count in report["errors"].items():
            # A test of days may meet as many different ones.
            told = what in self.errors or len(self.errors) < ERRORS_TOLD
            self.errors[what if told else FURTHER] += count
        self._cpu[process] = float(report["cpu_s"])

    def take_final(self, process: str, report: dict[str, Any]) -> None:
        """Take what came of everything in a process.

        Raises:
            ValueError: It is no such thing.
        """
        self.take(process, report)
        self.faults.add(faults_from(report["faults"]))
        self.finals += 1

    def tick(self, users: int) -> None:
        """A second has passed: show how it goes."""
        latest = self.timeline.latest(ALONE_LAG_S if len(self._cpu) < 2 else WORKERS_LAG_S)
        if latest is not None:
            self._screen.show(self.timeline.lines, latest, users, self.server, sum(self.errors.values()))

    # -- judging ------------------------------------------------------------------------------------------------------

    def begin_closing(self) -> None:
        """Publishers are about to end: what comes from now on is no part of the rate."""
        self.closing = True
        self.timeline.until_s = int(time.time())
        if self.timeline.until_s <= self.timeline.since_s:
            # Too short to leave the beginning out.
            self.timeline.since_s, self.timeline.until_s = 0, self.timeline.until_s + 1
        self._screen.say("the users stop; reading what is left")

    def close(self, environment: Environment) -> None:
        """Everything has come that will come: judge, say so, and write the reports."""
        if self.closed:
            return
        self.closed = True
        self.timeline.settle(all_of_them=True)
        if self.faults.ahead:
            self.errors[AHEAD_TOLD] += self.faults.ahead
        if self.faults.misplaced:
            self.errors["batches that did not follow in their channel's sequence"] += self.faults.misplaced
        if self.faults.corrupt:
            self.errors["messages whose bytes were wrong"] += self.faults.corrupt
        for row in (environment.runner.exceptions if environment.runner is not None else {}).values():
            self.errors[f"a user raised: {row['msg']}"] += row["count"]
        findings = self.findings()
        self.passed = not self.failures and all(each.holds for each in findings)
        record = Record(
            self.plan,
            self.url,
            self.users,
            self.begun_s,
            self.timeline,
            self.faults,
            self.errors,
            self.failures,
            self.server,
            self.workers_cores(),
            findings,
            self.passed,
        )
        self._screen.conclude(record)
        if self.plan.report:
            write(self.plan.report, page(record))
        if self.plan.report_json:
            write(self.plan.report_json, record.as_json_text())

    def workers_cores(self) -> dict[str, float]:
        """Return how many cores each process with users has used on average since the test began."""
        elapsed_s = max(time.time() - self.begun_s, 1e-3)
        return {process: cpu_s / elapsed_s for process, cpu_s in self._cpu.items()}

    def findings(self) -> list[Finding]:
        """Compare what was asked for with what has come."""
        plan, faults = self.plan, self.faults
        rate = self.timeline.rate() if is_level(plan.shape) else self.timeline.best_rate(BEST_STRETCH_S)
        p99 = percentiles(self.timeline.latency).get("p99")
        errors = sum(self.errors.values())
        counts = (
            ("lost", plan.max_lost, faults.lost),
            ("duplicated", plan.max_duplicated, faults.duplicated),
            ("reordered", plan.max_reordered, faults.reordered),
            ("errors", plan.max_errors, errors),
        )
        return [
            Finding(
                "delivered",
                f"at least {plan.min_rate:,.0f} messages/s",
                f"{rate:,.0f} messages/s",
                rate >= plan.min_rate,
            ),
            Finding(
                "p99 latency",
                f"below {plan.max_p99_ms:g} ms",
                "no message was timed" if p99 is None else f"{p99:.2f} ms",
                p99 is not None and p99 < plan.max_p99_ms,
            ),
            *(Finding(name, f"at most {most:,}", f"{got:,}", got <= most) for name, most, got in counts),
        ]
