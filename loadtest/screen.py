"""How a test goes, for people: a live view where there is a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadtest.histogram import percentiles

if TYPE_CHECKING:
    from loadtest.histogram import Line
    from loadtest.plan import Plan
    from loadtest.record import Record
    from loadtest.server import Series

PLAIN_EVERY_S: Final = 5.0
BARS: Final = " ▁▂▃▄▅▆▇█"
BARS_SHOWN: Final = 60
ERRORS_SHOWN: Final = 10


class Screen:
    """Shows one test on stdout.

    Args:
        plan: what is asked for.
        url: of the broker.
        users: the most there will be.
    """

    def __init__(self, plan: Plan, url: str, users: int) -> None:
        self._plan = plan
        self._console = Console(highlight=False)
        self._begun_s = time.monotonic()
        self._said_s = self._begun_s
        self._live: Live | None = None
        self.say(
            f"load test of {url}: {users:,} users of {plan.scenario}, {plan.shape}; asked for: "
            f"{plan.min_rate:,.0f} messages/s delivered, p99 below {plan.max_p99_ms:g} ms"
        )
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def say(self, what: str) -> None:
        """Print a line."""
        self._console.print(what, markup=False, soft_wrap=True)
        sys.stdout.flush()

    def show(self, lines: list[Line], latest: Line, users: int, server: Series, errors: int) -> None:
        """Show how it goes; every second.

        Args:
            lines: the seconds that are over and settled.
            latest: the newest one that is known.
            users: how many there are now.
            server: what it says of itself.
            errors: how many there were.
        """
        if self._live is not None:
            self._live.update(self._view(lines, latest, users, server, errors), refresh=True)
        elif time.monotonic() - self._said_s >= PLAIN_EVERY_S:
            self._said_s = time.monotonic()
            self.say(f"{self._elapsed_s():4.0f} s  {self._facts(latest, users, server, errors)}")

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begun_s

    def _facts(self, latest: Line, users: int, server: Series, errors: int) -> str:
        cpu = [value for value in server.values["cpu_s"][-1:] if value is not None]
        facts = [
            f"{users:,} users",
            f"{latest.published:,} in/s",
            f"{latest.delivered:,} delivered/s",
            f"p50 {latest.p50_ms:.1f} ms",
            f"p99 {latest.p99_ms:.1f} ms",
            *(f"server {value:.0%} of a core" for value in cpu),
            f"{errors:,} errors",
        ]
        return ", ".join(facts)

    def _view(self, lines: list[Line], latest: Line, users: int, server: Series, errors: int) -> Table:
        table = Table.grid(padding=(0, 2))
        shown = [*lines[-BARS_SHOWN:], latest]
        table.add_row(f"{self._elapsed_s():.0f} s", Text(self._facts(latest, users, server, errors)))
        table.add_row("delivered/s", Text(bars([float(line.delivered) for line in shown])))
        table.add_row("p99", Text(bars([line.p99_ms for line in shown])))
        return table

    def conclude(self, record: Record) -> None:
        """Say the verdict and what there is to know with it."""
        if self._live is not None:
            self._live.stop()
        latency = percentiles(record.timeline.latency)
        self.say("")
        for each in record.findings:
            self.say(f"  {'ok  ' if each.holds else 'FAIL'}  {each.name:12} {each.got:>24}   asked for: {each.asked}")
        told = ", ".join(f"{name.replace('p999', 'p99.9')} {value:.2f}" for name, value in latency.items())
        self.say(f"  latency from when each message was due: {told or 'none'} ms")
        self.say(f"  {record.timeline.published:,} published, {record.timeline.delivered:,} delivered and checked")
        self.say(f"  processors: {record.whose_processor_was_full()}")
        for error, count in list(record.errors.items())[:ERRORS_SHOWN]:
            self.say(f"  error, {count:,} times: {error}")
        for failure in record.failures:
            self.say(f"  ended early: {failure}")
        for what, path in (("report", record.plan.report), ("figures", record.plan.report_json)):
            if path:
                self.say(f"  {what}: {path}")
        self.say(f"{record.verdict}")


def bars(values: list[float]) -> str:
    """Draw values as bars of a line's height, the largest as high as it gets."""
    most = max(values, default=0.0)
    return "".join(BARS[round(value / most * (len(BARS) - 1))] if most else BARS[0] for value in values)
