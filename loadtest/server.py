"""What the server says of itself, looked at every second while a test lasts.

The same `stats` that `broker top` shows, over a connection of its own, as rates where they are counters. A server that
does not tell them (they may be refused to whom we are) is loaded all the same; one that does not answer at all ends the
test.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import gevent

from broker.blocking import connect
from broker.model.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.blocking import Client
    from loadtest.plan import Plan

LOOK_TIMEOUT_S: Final = 5.0
INTERVAL_S: Final = 1.0
SILENT: Final = frozenset({"TIMEOUT", "CONNECTION_LOST", "UNAVAILABLE", "CLOSED"})

RATES: Final = {
    "records_in": "messages in /s",
    "records_out": "messages out /s",
    "bytes_out": "bytes out /s",
    "groups": "commits /s",
    "fsyncs": "fsyncs /s",
    "cpu_s": "processor, cores",
}
"""Counters that are shown as rates."""
GAUGES: Final = {
    "commit_p99_us": "commit p99, µs",
    "loop_lag_p99_us": "loop lag p99, µs",
    "rss_anon_bytes": "memory, bytes",
    "queued_bytes": "queued, bytes",
    "connections": "connections",
    "subscriptions_lagging": "subscriptions behind",
}
"""What is shown as it is."""


class Series:
    """What was seen of a server, by the second.

    Attributes:
        times_s: Of the looks, seconds since 1970.
        values: By name, as many as looks; None where the server did not tell.
        silent_why: Why it tells nothing, or empty.
    """

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.values: dict[str, list[float | None]] = {name: [] for name in (*RATES, *GAUGES)}
        self.silent_why = ""
        self.first: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self._before: tuple[float, dict[str, Any]] | None = None

    def add(self, time_s: float, stats: dict[str, Any]) -> None:
        """Take a look. The first has no rates, nor has the first after a restart."""
        before, self._before = self._before, (time_s, stats)
        self.first = self.first or stats
        self.last = stats
        if before is None or before[1].get("pid") != stats.get("pid") or time_s <= before[0]:
            return
        self.times_s.append(time_s)
        elapsed_s = time_s - before[0]
        for name in RATES:
            earlier, later = before[1].get(name), stats.get(name)
            is_told = isinstance(earlier, int | float) and isinstance(later, int | float)
            self.values[name].append((later - earlier) / elapsed_s if is_told else None)  # type: ignore[operator]
        for name in GAUGES:
            value = stats.get(name)
            self.values[name].append(float(value) if isinstance(value, int | float) else None)

    @property
    def cpu_s(self) -> float:
        """Processor seconds of the server between the first look and the last, as far as it is the same process."""
        if self.first.get("pid") != self.last.get("pid"):
            return 0.0
        return float(self.last.get("cpu_s", 0.0)) - float(self.first.get("cpu_s", 0.0))

    @property
    def cores(self) -> float:
        """How many processor cores it used on average."""
        known = [value for value in self.values["cpu_s"] if value is not None]
        return sum(known) / len(known) if known else 0.0


class Watch:
    """Looks at a server until it is told to stop.

    Args:
        url: where it is.
        plan: its patience and its token.
        series: takes what is seen.
        on_gone: called once with the reason when the server has not answered for as long as the patience lasts.
    """

    def __init__(self, url: str, plan: Plan, series: Series, on_gone: Callable[[str], object]) -> None:
        self._url = url
        self._plan = plan
        self._series = series
        self._on_gone = on_gone
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin to look."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Look no more."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        answered_s = time.monotonic()
        while True:
            try:
                # A connection that is made anew with each failure: what a client does by itself would hide it.
                with self._connect() as client:
                    while True:
                        self._look(client)
                        answered_s = time.monotonic()
                        gevent.sleep(INTERVAL_S)
            except BrokerError as failure:
                if failure.name not in SILENT:
                    self._series.silent_why = f"{failure.name}: {failure.detail}"
                    answered_s = time.monotonic()
                if time.monotonic() - answered_s > self._plan.patience:
                    self._on_gone(f"{failure.name}: {failure.detail}")
                    return
            gevent.sleep(min(INTERVAL_S, self._plan.patience / 4))

    def _connect(self) -> Client:
        wait_s = min(LOOK_TIMEOUT_S, self._plan.patience)
        return connect(self._url, token=self._plan.token or None, timeout_s=wait_s, connect_timeout_s=wait_s)

    def _look(self, client: Client) -> None:
        stats = client.stats()
        self._series.add(time.time(), stats)
