"""`queue`: a work queue is filled, and then worked off by its members, who acknowledge every message.

The figures are those of working off, from the first ask to the answer to the last acknowledgement. Nobody waits for the
answer to an acknowledgement before taking the next message: a message is done when it is answered, and all of them are
before a run is over. That nothing was left out or done twice is seen here by each message's stamp, and the server is
asked whether it thinks the same.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from broker.bench.conversation import Conversation
from broker.bench.load import Load, describe_failure
from broker.bench.options import FRAME_BYTES_MAX, Options
from broker.bench.result import Result, latency_of
from broker.bench.server import Probe, Target
from broker.model.consumers import ConsumerSettings, ConsumerStart
from broker.model.settings import MIB
from broker.wire.consuming import decode_info, pack_consumer_set
from broker_native.crew import Members

if TYPE_CHECKING:
    from broker_native.crew import Done

WINDOW_JOBS: Final = 4096
"""Messages that may be with a member."""

WINDOW_BYTES: Final = 4 * MIB

LEASE_MS: Final = 60_000
"""Longer than any run is held up: a lease that ends would have its message done twice."""


class Queue:
    """A shared consumer of this broker over one channel, and its members.

    Args:
        target: the server.
        channel: what it reads.
        options: the sizes.
        stack: closes the sockets when the work is over.
    """

    def __init__(self, target: Target, channel: str, options: Options, stack: ExitStack) -> None:
        self.name = f"bench-{secrets.token_hex(4)}"
        self._target = target
        self._options = options
        self._stack = stack
        settings = ConsumerSettings(self.name, (channel,), lease_ms=LEASE_MS, by_key=options.keys > 0)
        with Conversation(target.url) as conversation:
            conversation.ask("consumer_set", pack_consumer_set(settings, ConsumerStart()))

    def add_members(self, members: Members) -> None:
        """Connect all members. The first ones are handed messages at once.

        Raises:
            BrokerError: the server refuses.
        """
        window = 1 if self._options.one_at_a_time else self._options.window or WINDOW_JOBS
        for _ in range(self._options.members):
            with Conversation(self._target.url) as conversation:
                conversation.join(self.name, window, WINDOW_BYTES)
                members.add_member(self._stack.enter_context(conversation.detach()).fileno())

    def complaint(self, messages: int) -> str | None:
        """Say what the server thinks of the queue, unless that is that all of so many messages are done.

        Raises:
            BrokerError: the server does not answer.
        """
        with Conversation(self._target.url) as conversation:
            info = decode_info(conversation.ask("consumer", {"name": self.name}))
        left = info.ready + info.leased + info.delayed
        if (left, info.acked, info.redelivered, info.dead) == (0, messages, 0, 0):
            return None
        return (
            f"the server counts {info.acked:,} messages acknowledged, {left:,} not, {info.redelivered:,} given out "
            f"again and {info.dead:,} dead, of {messages:,}"
        )

    def remove(self) -> None:
        """Remove the consumer.

        Raises:
            BrokerError: the server refuses.
        """
        with Conversation(self._target.url) as conversation:
            conversation.ask("consumer_remove", {"name": self.name})


def members_of(options: Options, messages: int) -> Members:
    """Return a roll of what was published to one of our queues."""
    return Members(
        messages=messages,
        publishers=options.publishers,
        payload_bytes=options.payload,
        keys=options.keys,
        frame_bytes_max=FRAME_BYTES_MAX + options.payload,
    )


def faults_of(done: Done) -> list[str]:
    """Say what went wrong besides the messages that are counted."""
    found = []
    if done.failure is not None:
        found.append(describe_failure(done.failure))
    elif not done.finished:
        found.append("the server sent nothing for as long as anybody waits, and still owed messages or answers")
    if done.unacked:
        found.append(f"{done.unacked:,} messages were acknowledged that the server had not given out")
    return found


def run_queue(options: Options, target: Target) -> Result:
    """Fill a queue, and have it worked off.

    Raises:
        BrokerError: the server refused a connection, the consumer or a member.
    """
    with ExitStack() as stack:
        probe = Probe(target)
        load = Load(options, target, stack)
        load.add_publishers()
        written, wrong = load.fill(probe)
        if wrong is not None:
            return wrong
        queue = Queue(target, load.names[0], options, stack)
        members = members_of(options, written.sent)
        before = probe.figures()
        begun = time.monotonic()
        queue.add_members(members)
        waited_s = time.monotonic() - begun
        done = members.run(patience_s=options.patience_s, on_slice=probe.sample_memory)
        after = probe.figures()
        result = Result(
            work=str(options.work),
            options=options,
            messages=done.acked,
            seconds=done.seconds + waited_s,
            deliveries=done.taken,
            latency_us=latency_of(members.latency),
            lost=done.lost,
            duplicated=done.duplicated,
            reordered=done.overtaken,
            corrupt=done.corrupt,
            driver_cpu_s=done.cpu_s,
            server_cpu_s=after.cpu_s - before.cpu_s,
            server_memory_bytes=probe.memory_bytes_max,
            fsyncs=after.fsyncs - before.fsyncs,
            errors=faults_of(done),
        )
        other = queue.complaint(written.sent)
        result.errors += [] if other is None else [other]
    queue.remove()
    result.extra["members"] = options.members
    result.extra["keys"] = options.keys
    result.extra["publish_per_s"] = round(written.sent / written.seconds, 1) if written.seconds else 0.0
    return result
