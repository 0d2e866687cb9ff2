"""A work by the native driver: the same payloads, the same window and the same judge for everybody.

What differs between contenders is what must: the bytes on the wire. Each has the connections of its own protocol, one
for each publisher and each reader, and one message is published by each frame or command. The window is how many
messages may be published and not yet delivered to the slowest reader, or not yet acknowledged where that is promised;
it is the one that `broker bench` has for the work.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from broker.bench import options as bench
from broker.bench.compare.outcome import CURVE_PERCENTS, Measurement
from broker.bench.compare.servers import ENDED_S
from broker.bench.compare.works import REPLAY_MESSAGES, REPLAY_MESSAGES_A_SECOND, Mode, Work
from broker.bench.load import Load, describe_failure, raise_descriptor_limit
from broker.bench.peers import peer_of
from broker.bench.peers.work import PeerWork
from broker.bench.server import Target
from broker.model.errors import BrokerError
from broker_native.driver import Driver

if TYPE_CHECKING:
    from broker.bench.compare.servers import StandingServer, StartedServer
    from broker_native.driver import Outcome
    from broker_native.histogram import Histogram

    Server = StartedServer | StandingServer


class Course:
    """A driver and its connections to one contender.

    Args:
        work: what is done.
        mode: how.
        server: on whom.
        options: the sizes, as of `broker bench`.
        stack: closes the sockets when the work is over.

    Attributes:
        driver: the driver.
        load: of ours, what has the driver; else None.
        peer, peer_work: of others, who speaks with them and of what.
    """

    def __init__(self, work: Work, mode: Mode, server: Server, options: bench.Options, stack: ExitStack) -> None:
        self.work = work
        self.options = options
        self._server = server
        self._stack = stack
        self.load: Load | None = None
        if mode.dialect == "broker":
            url = f"broker://{server.address[0]}:{server.address[1]}"
            self.load = Load(options, Target(url, None), stack)
            self.driver = self.load.driver
            return
        self.peer = peer_of(mode.dialect)
        self.peer_work = PeerWork(mode.dialect, room=f"bench.{secrets.token_hex(4)}")
        self.peer.prepare(server.address, self.peer_work)
        self.driver = Driver(
            self.peer_work.names,
            publishers=options.publishers,
            payload_bytes=options.payload,
            window=options.window_records,
            dialect=mode.dialect,
        )

    def add_publishers(self) -> None:
        """Connect who publishes."""
        if self.load is not None:
            self.load.add_publishers()
            return
        for _ in range(self.options.publishers):
            opened = self._stack.enter_context(self.peer.open_publisher(self._server.address, self.peer_work))
            self.driver.add_publisher(opened.fileno())

    def add_subscribers(self) -> None:
        """Connect who reads: from the start if it is stored."""
        if self.load is not None:
            self.load.add_subscribers(from_start=self.work.replay)
            return
        for _ in range(self.options.subscribers):
            opened = self._stack.enter_context(self.peer.open_subscriber(self._server.address, self.peer_work))
            self.driver.add_subscriber(opened.fileno())

    def run(self, measurement: Measurement, *, publish: bool = True) -> Outcome:
        """Let the driver run once, and look at the server's memory all the while."""

        def look() -> None:
            measurement.memory_bytes = max(measurement.memory_bytes, self._server.memory_bytes())

        options = self.options
        return self.driver.run(
            messages=options.messages if publish else 0,
            seconds=options.seconds if publish else 0,
            rate=options.rate if publish else 0,
            patience_s=options.patience_s,
            on_slice=look,
        )


def options_of(work: Work, *, seconds: float, payload: int, patience_s: float) -> bench.Options:
    """Return the options of `broker bench` that a work comes to."""
    kind = bench.Work.FANOUT if work.subscribers > 1 else bench.Work.PUBSUB
    if work.replay:
        kind = bench.Work.REPLAY
    elif work.rate:
        kind = bench.Work.LATENCY
    return bench.Options(
        kind,
        durability=work.durability,
        subscribers=work.subscribers,
        payload=payload,
        rate=work.rate,
        seconds=0.0 if work.replay else seconds,
        messages=max(1, min(REPLAY_MESSAGES, int(REPLAY_MESSAGES_A_SECOND * seconds))) if work.replay else 0,
        patience_s=patience_s,
    )


def measure(work: Work, mode: Mode, server: Server, options: bench.Options) -> Measurement:
    """Do a work once on a server that has just been started.

    Returns:
        What it came to; what goes wrong is in its errors.
    """
    measurement = Measurement()
    raise_descriptor_limit(options.publishers + options.subscribers)
    try:
        with ExitStack() as stack:
            course = Course(work, mode, server, options, stack)
            course.add_publishers()
            if work.replay:
                measure_replay(course, measurement, server)
            else:
                course.add_subscribers()
                before = server.usage()
                outcome = course.run(measurement)
                take(measurement, outcome, before.cpu_s, server)
                measurement.curve = curve_of(course.driver.latency)
    except BrokerError as failure:
        measurement.errors.append(str(failure))
    how = server.ended(ENDED_S if measurement.errors else 0.0)
    if how is not None:
        # What its connections said follows from that.
        measurement.errors = [how]
    return measurement


def measure_replay(course: Course, measurement: Measurement, server: Server) -> None:
    """Publish, and then measure how all of it is read."""
    written = course.run(measurement)
    measurement.errors += [f"while it was stored: {each}" for each in complaints(written)]
    if measurement.errors:
        return
    before = server.usage()
    begun = time.monotonic()
    course.add_subscribers()
    # Some begin to send as soon as they are asked to, before the driver reads.
    waited_s = time.monotonic() - begun
    outcome = course.run(measurement, publish=False)
    take(measurement, outcome, before.cpu_s, server)
    measurement.seconds += waited_s
    measurement.messages = written.sent


def take(measurement: Measurement, outcome: Outcome, cpu_s: float, server: Server) -> None:
    """Enter what the driver counted, and what the server has used since it had used `cpu_s`."""
    used = server.usage()
    measurement.messages = outcome.sent
    measurement.deliveries = outcome.deliveries
    measurement.seconds = outcome.seconds
    measurement.driver_cpu_s = outcome.cpu_s
    measurement.server_cpu_s = max(0.0, used.cpu_s - cpu_s)
    measurement.memory_bytes = max(measurement.memory_bytes, used.memory_bytes)
    measurement.resident_bytes = used.resident_bytes_max
    measurement.errors += complaints(outcome)


def complaints(outcome: Outcome) -> list[str]:
    """Say what went wrong in a run."""
    faults = {"lost": outcome.lost, "duplicated": outcome.duplicated, "reordered": outcome.reordered}
    faults |= {"corrupt": outcome.corrupt, "misplaced": outcome.misplaced, "answered twice": outcome.acked_twice}
    found = [f"{count:,} messages {name}, limit 0" for name, count in faults.items() if count]
    if outcome.failure is not None:
        found.append(describe_failure(outcome.failure))
    elif not outcome.finished:
        found.append("it sent nothing for as long as the driver waits, and still owed answers or deliveries")
    return found


def curve_of(latency: Histogram) -> list[float]:
    """Return a latency curve in microseconds; empty when nothing was timed."""
    if not latency.count:
        return []
    return [latency.percentile(percent) / 1000 if percent else latency.min / 1000 for percent in CURVE_PERCENTS]
