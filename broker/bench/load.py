"""The works of the native driver: `pubsub`, `fanout`, `many`, `latency`, `replay` and `idle`; others build on it.

Each opens its connections one after the other in Python, hands the sockets to the driver, and lets it run. What differs
is in the options: who meets whom, whether a rate is kept, and whether reading begins after publishing has ended.
"""

from __future__ import annotations

import resource
import secrets
import socket
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from broker.bench.conversation import Conversation, WebConversation, channel_frames
from broker.bench.options import FRAME_BYTES_MAX, Options, Work
from broker.bench.result import Result, latency_of
from broker.bench.server import ROOMS, Probe, Target
from broker.model.errors import BrokerError, MalformedFrame, error, from_wire
from broker.model.levels import Level
from broker.wire import control
from broker_native.driver import Driver
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker_native.driver import Outcome
    from broker_native.driver_load import Failure

DESCRIPTORS_SPARE: Final = 256
"""Open files that a process needs besides its connections."""


def raise_descriptor_limit(connections: int) -> None:
    """Raise the soft limit of open files so far that the connections fit; a server that is started inherits it.

    Raises:
        BrokerError: LIMIT; the hard limit is lower.
    """
    wanted = connections + DESCRIPTORS_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise error("LIMIT", f"open files: {connections} connections need {wanted}, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Over(Exception):
    """What a driver was to run for is over; `on_slice` raises it."""


class Load:
    """The connections of one work and the driver that has their sockets."""

    def __init__(
        self, options: Options, target: Target, stack: ExitStack, *, names: Sequence[bytes] | None = None
    ) -> None:
        """Prepare the driver for new names, or for those given; `stack` closes the sockets when the work is over."""
        self.options = options
        self.target = target
        self.stack = stack
        self.room = f"{ROOMS[options.durability]}.{secrets.token_hex(4)}"
        self.names = [f"{self.room}.{number % options.audiences}.{number}" for number in range(options.channels)]
        self.names_bytes = list(names) if names is not None else [name.encode() for name in self.names]
        self._naming: list[bytes] = []
        self.driver = Driver(
            self.names_bytes,
            publishers=options.publishers,
            audiences=options.audiences,
            payload_bytes=options.payload,
            batch=options.batch,
            window=options.window_records,
            frame_bytes_max=FRAME_BYTES_MAX + options.payload,
            crc=options.crc,
            ids=options.ids or options.work is Work.DELAYED,
            delayed=options.work is Work.DELAYED,
            owned=options.owned,
            random=options.work is Work.CHANNELS,
            keys=options.keys,
        )

    def prepare(self) -> None:
        """Make what publishers are going to send before they publish: with a million names that takes seconds."""
        if not self._naming:
            shares = self.options.publishers if self.options.owned else 1
            self._naming = [channel_frames(self.names_bytes[index::shares]) for index in range(shares)]

    def add_publishers(self, *, head: int = 0, settled: bool = False) -> None:
        """Connect all publishers. Each names every channel, or those that it owns.

        Args:
            head: what sequence owned channels have reached; 0 when nobody knows.
            settled: wait until the server has taken the names in, so that they are no part of what follows.

        Raises:
            BrokerError: the server refuses, or its limit is below the payload.
        """
        self.prepare()
        payload = self.options.payload
        for index in range(self.options.publishers):
            with Conversation(self.target.url) as conversation:
                if payload > conversation.limits.payload_bytes_max:
                    limit = conversation.limits.payload_bytes_max
                    raise error("PAYLOAD_TOO_LARGE", f"payload: got {payload} bytes, limit {limit} bytes")
                conversation.name_channels(self._naming[index % len(self._naming)])
                if settled:
                    conversation.ping_ns()
                detached = self.stack.enter_context(conversation.detach())
            self.driver.add_publisher(detached.fileno(), head=head)

    def add_subscribers(
        self, *, from_start: bool = False, steady: int | None = None, receive_bytes: int | None = None
    ) -> None:
        """Connect and subscribe all subscribers.

        Args:
            from_start: from the start of their channels; else from new.
            steady: how many of the first of them are timed and waited for by publishers; None for all.
            receive_bytes: what the kernel takes in for each of the others before it is read; None: what it finds right.

        Raises:
            BrokerError: the server refuses.
        """
        if steady is None:
            steady = self.options.subscribers
        credit_bytes = self.options.credit_bytes
        for number in range(self.options.subscribers):
            with self.open_subscriber() as conversation:
                filters = self.filters(number % self.options.audiences)
                conversation.subscribe(filters, credit_bytes, from_start=from_start)
                detached = self.stack.enter_context(conversation.detach())
            if receive_bytes is not None and number >= steady:
                detached.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            # One literal needs no name with its chunks; anything else is told each channel's once.
            named = self.options.pattern or self.options.owned or len(filters) > 1
            self.driver.add_subscriber(
                detached.fileno(),
                credit_bytes=credit_bytes,
                named=named,
                steady=number < steady,
                web=self.options.web,
            )

    def open_subscriber(self) -> Conversation:
        """Connect one that reads."""
        if not self.options.web:
            return Conversation(self.target.url)
        assert self.target.web is not None
        return WebConversation(f"broker://{self.target.web}")

    def filters(self, audience: int) -> list[str]:
        """Return what a subscriber of an audience asks for."""
        if self.options.pattern or self.options.owned:
            return [f"{self.room}.{audience}.*"]
        return self.names[audience :: self.options.audiences]

    def run(
        self,
        probe: Probe,
        *,
        publish: bool = True,
        hold_s: float = 0,
        on_slice: Callable[[], object] | None = None,
    ) -> Outcome:
        """Let the driver run once, while the probe, or `on_slice`, watches."""
        options = self.options
        return self.driver.run(
            messages=options.messages if publish else 0,
            seconds=options.seconds if publish else 0,
            rate=options.rate,
            hold_s=hold_s,
            patience_s=options.patience_s,
            on_slice=on_slice or probe.sample_memory,
        )

    def measure(
        self,
        probe: Probe,
        *,
        publish: bool = True,
        hold_s: float = 0,
        on_slice: Callable[[], object] | None = None,
    ) -> Result:
        """Run once between two looks at the server's figures."""
        before = probe.figures()
        probe.memory_bytes_max = before.memory_bytes
        outcome = self.run(probe, publish=publish, hold_s=hold_s, on_slice=on_slice)
        result = self.result(outcome)
        try:
            after = probe.figures()
        except BrokerError as failure:
            result.errors.append(f"the server's figures: {failure}")
            return result
        result.server_cpu_s = after.cpu_s - before.cpu_s
        result.fsyncs = after.fsyncs - before.fsyncs
        result.server_memory_bytes = probe.memory_bytes_max
        return result

    def result(self, outcome: Outcome) -> Result:
        """Put what the driver counted into words and figures."""
        return Result(
            work=str(self.options.work),
            options=self.options,
            messages=outcome.sent,
            seconds=outcome.seconds,
            deliveries=outcome.deliveries,
            latency_us=latency_of(self.driver.latency),
            lost=outcome.lost,
            duplicated=outcome.duplicated,
            reordered=outcome.reordered,
            corrupt=outcome.corrupt,
            driver_cpu_s=outcome.cpu_s,
            errors=complaints(outcome, self.options),
        )

    def fill(self, probe: Probe) -> tuple[Outcome, Result | None]:
        """Publish what the work goes on with; return what came of it, and the result if that already is wrong."""
        written = self.run(probe)
        result = self.result(written)
        result.errors = [f"while publishing: {failure}" for failure in result.errors]
        return written, result if result.errors else None


def run_until(load: Load, look: Callable[[], None], seconds: float, rate: int | None = None) -> Outcome:
    """Publish and read until `look`, which is called all the while, raises Over; then read what is still under way.

    The driver is cut short rather than run by pieces: it would wait for the last message of each, and what it did not
    send meanwhile would be in no latency. So the outcome is that of the end; what was counted since the driver was made
    is in its attributes.

    Args:
        load: the driver and its connections.
        look: raises Over after `seconds` at the latest.
        seconds: how long it may take.
        rate: messages a second; None for that of the options.
    """
    options = load.options
    with suppress(Over):
        load.driver.run(seconds=seconds, rate=rate or options.rate, patience_s=seconds, on_slice=look)
    return load.driver.run(rate=options.rate, patience_s=options.patience_s)


def complaints(outcome: Outcome, options: Options) -> list[str]:
    """Say what went wrong in a run besides the messages that were counted."""
    found = []
    if outcome.failure is not None:
        found.append(describe_failure(outcome.failure))
    elif not outcome.finished:
        found.append(f"the server sent nothing for {options.patience_s:g} s and still owed answers or deliveries")
    if outcome.misplaced:
        found.append(f"{outcome.misplaced} chunks did not follow in sequence, epoch, name or bus position")
    if outcome.unordered:
        found.append(f"{outcome.unordered} answers did not follow the one before in their channel")
    if outcome.acked_twice:
        found.append(f"{outcome.acked_twice} messages were answered as duplicates, and each was sent once")
    if outcome.acked and {outcome.level_min, outcome.level_max} != {options.durability}:
        found.append(describe_level(outcome, options))
    return found


def describe_failure(failure: Failure) -> str:
    """Return what ended a run: the error that the server sent, or what the driver met."""
    if failure.reason == "error":
        try:
            sent = from_wire(control.decode(failure.body))
        except MalformedFrame as malformed:
            return f"connection {failure.connection}: an ERROR that cannot be read: {malformed}"
        return f"connection {failure.connection}: {sent}" + (f" ({sent.hint})" if sent.hint else "")
    if failure.reason == "going_away":
        return f"connection {failure.connection}: the server is going away"
    return f"connection {failure.connection}: {failure.detail}"


def describe_level(outcome: Outcome, options: Options) -> str:
    """Return which profile a server lacks whose answers report another durability than the one asked for."""
    got = sorted({label_of(outcome.level_min), label_of(outcome.level_max)})
    label = options.durability.label
    return (
        f"durability: answers say {' and '.join(got)}, asked for {label}; put this before the server's other profiles: "
        f'[[profiles]] pattern = "{ROOMS[options.durability]}.>" durability = "{label}"'
    )


def label_of(level: int) -> str:
    """Return the name of a level on the wire, or its number when nobody knows it."""
    return Level(level).label if level in list(Level) else str(level)


def run_live(options: Options, target: Target) -> Result:
    """Run `pubsub`, `fanout`, `many` or `latency`: everybody reads while it is published.

    Raises:
        BrokerError: the server refused a connection or a subscription.
    """
    with ExitStack() as stack:
        probe = Probe(target)
        load = Load(options, target, stack)
        load.add_publishers()
        load.add_subscribers()
        return load.measure(probe)


def run_replay(options: Options, target: Target, settle: Callable[[Load], None] | None = None) -> Result:
    """Publish first, then read everything from the start. The figures are those of reading.

    Args:
        options: the work's.
        target: the server.
        settle: called between the two.

    Raises:
        BrokerError: the server refused a connection or a subscription.
    """
    with ExitStack() as stack:
        probe = Probe(target)
        load = Load(options, target, stack)
        load.add_publishers()
        written, wrong = load.fill(probe)
        if wrong is not None:
            return wrong
        load.driver.latency.clear()
        if settle is not None:
            settle(load)
        begun = time.monotonic()
        load.add_subscribers(from_start=True)
        waited_s = time.monotonic() - begun
        result = load.measure(probe, publish=False)
    result.messages = written.sent
    result.seconds += waited_s
    # A stored message's age is no latency.
    result.latency_us = latency_of(Histogram())
    result.extra["publish_per_s"] = round(written.sent / written.seconds, 1) if written.seconds else 0.0
    return result


def run_idle(options: Options, target: Target) -> Result:
    """Hold subscribed connections on which nothing happens, and see what each costs the server.

    Raises:
        BrokerError: the server refused a connection or a subscription.
    """
    with ExitStack() as stack:
        probe = Probe(target)
        load = Load(options, target, stack)
        empty = probe.figures()
        load.add_subscribers()
        result = load.measure(probe, publish=False, hold_s=options.seconds)
        after = probe.figures()
    result.seconds = options.seconds
    result.server_memory_bytes = after.memory_bytes
    grown = after.memory_bytes - empty.memory_bytes
    result.extra["memory_bytes_per_connection"] = round(grown / options.subscribers, 1)
    return result


RUNNERS: Final = {Work.REPLAY: run_replay, Work.IDLE: run_idle}
"""The works that are not `run_live`."""
