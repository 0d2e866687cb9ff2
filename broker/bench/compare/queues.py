"""A work queue at each contender: filled by the native driver, and worked off by the native crew.

The messages, the members and the judge are the same for everybody. How many messages a member asks for at once is what
is the fastest for its server; nobody waits for the answer to an acknowledgement before asking for more. What is in the
queue is bounded by how fast a server takes it in as well, so that one that syncs each message has less to work off.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from broker.bench import options as bench
from broker.bench.compare.native import Course, complaints
from broker.bench.compare.outcome import Measurement
from broker.bench.compare.servers import ENDED_S
from broker.bench.compare.works import QUEUE_MESSAGES_A_SECOND, SINGLE_MESSAGES_A_SECOND, Mode, Work
from broker.bench.load import raise_descriptor_limit
from broker.bench.peers import QUEUES
from broker.bench.queue import Queue, faults_of, members_of
from broker.model.errors import BrokerError
from broker_native.crew import Members

if TYPE_CHECKING:
    from typing import Protocol

    from broker.bench.compare.native import Server

    class Contended(Protocol):
        """A queue that is there."""

        def add_members(self, members: Members) -> None:
            """Connect all members."""

        def complaint(self, messages: int) -> str | None:
            """Say what the server thinks of it, unless that is that all of so many messages are done."""


class PeerQueue:
    """A queue over what a course has stored at a peer.

    Args:
        course: it; a peer's.
        mode: how it is done there.
        server: on whom.
        options: the sizes.
        stack: closes the sockets when the work is over.

    Attributes:
        members: the crew, which has nobody yet.
    """

    def __init__(
        self, course: Course, mode: Mode, server: Server, options: bench.Options, messages: int, stack: ExitStack
    ) -> None:
        self._peer = QUEUES[mode.dialect]
        self._work = course.peer_work
        self._address = server.address
        self._options = options
        self._stack = stack
        self._batch = 1 if options.one_at_a_time else self._peer.QUEUE_BATCH
        self.members = Members(
            messages=messages,
            publishers=options.publishers,
            payload_bytes=options.payload,
            batch=self._batch,
            words=self._peer.make_queue(self._address, self._work),
            protocol=mode.dialect,
        )

    def add_members(self, members: Members) -> None:
        """Connect all members."""
        for number in range(self._options.members):
            seat = self._peer.open_member(self._address, self._work, number, self._batch)
            self._stack.enter_context(seat.socket)
            members.add_member(seat.socket.fileno(), ask=seat.ask, inbox=seat.inbox)

    def complaint(self, messages: int) -> str | None:
        """Say how many messages the server thinks are left, unless there are none."""
        left = self._peer.count_undone(self._address, self._work)
        return f"the server counts {left:,} messages that are not acknowledged, of {messages:,}" if left else None


def options_of(work: Work, *, seconds: float, payload: int, patience_s: float) -> bench.Options:
    """Return the options of `broker bench queue` that a work comes to: filling ends with a number or a time."""
    a_second = SINGLE_MESSAGES_A_SECOND if work.one_at_a_time else QUEUE_MESSAGES_A_SECOND
    return bench.Options(
        bench.Work.QUEUE,
        durability=work.durability,
        payload=payload,
        seconds=seconds,
        messages=max(1, int(a_second * seconds)),
        members=work.members,
        one_at_a_time=work.one_at_a_time,
        patience_s=patience_s,
    )


def measure(work: Work, mode: Mode, server: Server, options: bench.Options) -> Measurement:
    """Fill a queue on a server that has just been started, and have it worked off.

    Returns:
        What working it off came to; what goes wrong is in its errors.
    """
    measurement = Measurement()
    raise_descriptor_limit(options.publishers + options.members)
    try:
        with ExitStack() as stack:
            course = Course(work, mode, server, options, stack)
            course.add_publishers()
            written = course.run(measurement)
            measurement.errors += [f"while it was stored: {each}" for each in complaints(written)]
            if not measurement.errors:
                measurement.messages = written.sent
                measure_work(course, mode, server, options, measurement, stack)
    except BrokerError as failure:
        measurement.errors.append(str(failure))
    how = server.ended(ENDED_S if measurement.errors else 0.0)
    if how is not None:
        # What its connections said follows from that.
        measurement.errors = [how]
    return measurement


def measure_work(
    course: Course, mode: Mode, server: Server, options: bench.Options, measurement: Measurement, stack: ExitStack
) -> None:
    """Have what a course has stored worked off."""
    messages = measurement.messages
    queue: Contended
    if course.load is not None:
        queue = Queue(course.load.target, course.load.names[0], options, stack)
        members = members_of(options, messages)
    else:
        queue = theirs = PeerQueue(course, mode, server, options, messages, stack)
        members = theirs.members

    def look() -> None:
        measurement.memory_bytes = max(measurement.memory_bytes, server.memory_bytes())

    before = server.usage()
    begun = time.monotonic()
    queue.add_members(members)
    # Ours begins to hand out messages as soon as it has a member.
    waited_s = time.monotonic() - begun
    done = members.run(patience_s=options.patience_s, on_slice=look)
    used = server.usage()
    measurement.deliveries = done.acked
    measurement.seconds = done.seconds + waited_s
    measurement.driver_cpu_s = done.cpu_s
    measurement.server_cpu_s = max(0.0, used.cpu_s - before.cpu_s)
    measurement.memory_bytes = max(measurement.memory_bytes, used.memory_bytes)
    measurement.resident_bytes = used.resident_bytes_max
    counts = {"lost": done.lost, "duplicated": done.duplicated, "corrupt": done.corrupt, "overtaken": done.overtaken}
    measurement.errors += [f"{count:,} messages {name}, limit 0" for name, count in counts.items() if count]
    measurement.errors += faults_of(done)
    other = queue.complaint(messages)
    measurement.errors += [] if other is None else [other]
