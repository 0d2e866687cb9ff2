"""The works over very many channels: `channels` publishes to them at random, `cold` wakes each of them after a start.

Publishers have channels of their own, so that each sees all answers of a channel: that its sequences follow one another
is checked with every answer. `channels` reads everything back in the end, by one pattern, and checks every record too.
"""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.bench.conversation import Conversation
from broker.bench.load import Load, complaints
from broker.bench.result import latency_of
from broker.bench.server import OwnServer, Probe, Target
from broker.model.errors import BrokerError, error
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from broker.bench.options import Options
    from broker.bench.result import Result

START_S: Final = 5.0
"""What counts as the start of a run; the second half of it is what is sustained."""

ASK_S: Final = 1.0
"""How often the server is asked for its figures in a run."""

PING_S: Final = 0.005
"""How often the lag of the server's loop is looked at."""

COLD_PATIENCE_S: Final = 120.0
"""The names of all channels are told before the first message, so the first answer comes when all have been found."""

SETTLE_S: Final = 120.0
"""How long a server may take to archive what it was given."""


class Course:
    """How far a run was at what time: ten looks a second."""

    def __init__(self, load: Load, probe: Probe) -> None:
        self._load = load
        self._probe = probe
        self._looks: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def look(self) -> None:
        """Note how many records have been answered; the driver calls it."""
        self._looks.append((time.monotonic(), self._load.driver.acked))
        self._probe.sample_memory()

    def rate(self, begin_s: float, end_s: float) -> float:
        """Return records a second between two moments of the run, seconds since its beginning."""
        origin = self._looks[0][0]
        inside = [look for look in self._looks if begin_s <= look[0] - origin <= end_s]
        if len(inside) < 2 or inside[-1][0] == inside[0][0]:
            return 0.0
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])

    @property
    def seconds(self) -> float:
        return self._looks[-1][0] - self._looks[0][0]


class Asking:
    """A thread that asks a server something again and again while a run lasts.

    Args:
        period_s: how long it waits between two questions.
        ask: asks once; when it raises BrokerError it is asked no more, since the run itself says what has become of
            the server.
    """

    def __init__(self, period_s: float, ask: Callable[[], None]) -> None:
        self._period_s = period_s
        self._ask = ask
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-asking")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(BrokerError):
            while not self._over.wait(self._period_s):
                self._ask()


def backlog_bytes(url: str) -> int:
    """Ask a server how many bytes of its journal are not archived yet.

    Raises:
        BrokerError: it does not answer.
    """
    with Conversation(url) as conversation:
        return int(conversation.stats().get("archive_backlog_bytes", 0))


def run_channels(options: Options, target: Target) -> Result:
    """Publish to channels at random, then read everything back.

    Raises:
        BrokerError: the server refused a connection or a subscription.
    """
    with ExitStack() as stack:
        probe = Probe(target)
        load = Load(options, target, stack)
        load.prepare()
        begun = time.monotonic()
        load.add_publishers(settled=True)
        named_s = time.monotonic() - begun
        course = Course(load, probe)
        backlogs = [0]
        with Asking(ASK_S, lambda: backlogs.append(backlog_bytes(target.url))):
            result = load.measure(probe, on_slice=course.look)
        result.latency_us = latency_of(load.driver.answers)
        result.extra |= {
            "named_s": round(named_s, 3),
            "start_per_s": round(course.rate(0, START_S), 1),
            "sustained_per_s": round(course.rate(course.seconds / 2, course.seconds), 1),
            "backlog_bytes_max": max(backlogs),
            "server_us_per_message": round(result.server_cpu_s / max(result.messages, 1) * 1e6, 3),
        }
        if options.read_back and not result.errors:
            _read_back(load, result)
    return result


def _read_back(load: Load, result: Result) -> None:
    """Read all that was published from the start, and judge it."""
    begun = time.monotonic()
    load.add_subscribers(from_start=True)
    outcome = load.run(Probe(load.target), publish=False)
    seconds = time.monotonic() - begun
    result.lost, result.duplicated = outcome.lost, outcome.duplicated
    result.reordered, result.corrupt = outcome.reordered, outcome.corrupt
    result.errors += complaints(outcome, load.options)
    result.extra["read_back"] = outcome.deliveries
    result.extra["read_back_per_s"] = round(outcome.deliveries / seconds, 1)


def run_cold(options: Options, server: OwnServer) -> Result:
    """Publish once to each channel, end the server, forget what the system has cached, and publish once more.

    The figures are those of the second time, from the first name that is told to the last answer.

    Raises:
        BrokerError: the server refused a connection, or does not get done with its archive.
    """
    options = replace(options, patience_s=max(options.patience_s, COLD_PATIENCE_S))
    with ExitStack() as stack:
        target = server.start()
        empty = Probe(target).figures().memory_bytes
        load = Load(options, target, stack)
        load.add_publishers()
        written = load.run(Probe(target))
        await_archived(target.url)
        names, failures = load.names_bytes, complaints(written, options)
    server.end()
    forget_cached(server.data)
    begun = time.monotonic()
    target = server.start()
    ready_s = time.monotonic() - begun
    random.Random(1).shuffle(names)
    with ExitStack() as stack:
        probe = Probe(target)
        idle = probe.figures()
        load = Load(options, target, stack, names=names)
        load.prepare()
        # What a PING takes is the lag of the server's loop, and two thread switches here.
        lag, conversation = Histogram(), stack.enter_context(Conversation(target.url))
        with Asking(PING_S, lambda: lag.record(conversation.ping_ns())):
            begun = time.monotonic()
            load.add_publishers(head=1)
            outcome = load.run(probe)
            seconds = time.monotonic() - begun
        after = probe.figures()
        result = load.result(outcome)
        result.errors += failures
        result.seconds = seconds
        result.latency_us = latency_of(load.driver.answers)
        result.server_cpu_s = after.cpu_s - idle.cpu_s
        result.server_memory_bytes = probe.memory_bytes_max
        result.extra |= {
            "ready_ms": round(ready_s * 1000, 1),
            "loop_lag_p99_us": latency_of(lag)["p99"],
            "memory_bytes_idle_above_empty": idle.memory_bytes - empty,
            "memory_bytes_per_channel": round((after.memory_bytes - idle.memory_bytes) / options.channels, 1),
        }
    return result


def await_archived(url: str) -> None:
    """Wait until a server has archived all that it can.

    Raises:
        BrokerError: UNAVAILABLE; that takes too long.
    """
    deadline = time.monotonic() + SETTLE_S
    while (left := backlog_bytes(url)) > 0:
        if time.monotonic() > deadline:
            raise error("UNAVAILABLE", f"archive: {left} bytes of journal are left after {SETTLE_S:g} s")
        time.sleep(0.1)


def forget_cached(folder: Path) -> None:
    """Ask the system to drop what it has cached of a folder's files, where a system can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in (file for file in folder.rglob("*") if file.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
