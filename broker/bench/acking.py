"""`transactions --acks`: a queue is worked off by members of the native driver, each message with a transaction.

A transaction publishes `--batch` messages, one to each of as many channels, and acknowledges the message that it is
about: what a pipeline does that loses and doubles nothing. The figures are those of working off. Afterwards everything
is read back: of each member's transactions every channel has one message, in their order, or one was not whole; and the
server is asked whether it thinks that all of the queue is done.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.bench.client import new_loop
from broker.bench.conversation import Conversation, channel_frames
from broker.bench.load import Load
from broker.bench.options import FRAME_BYTES_MAX, Options, Work
from broker.bench.queue import WINDOW_BYTES, Queue, faults_of
from broker.bench.result import Result, latency_of
from broker.bench.server import Probe, Target
from broker_native.crew import Members
from broker_native.histogram import Histogram
from broker_native.ledger import Verifier

if TYPE_CHECKING:
    from broker.bench.client import Opener
    from broker.bus import Bus

FILL_BATCH: Final = 100
"""Messages of the queue in a PUBLISH frame, while it is filled."""

JOBS_AHEAD: Final = 2
"""A member has so many times the messages that it has transactions under way: the next one never waits for a grant."""


def run_with_acks(options: Options, target: Target, connect: Opener) -> Result:
    """Fill a queue, and have it worked off by transactions.

    Raises:
        BrokerError: the server refused a connection, the consumer or a member.
    """
    transactions = max(1, options.messages // options.batch)
    filling = replace(options, work=Work.QUEUE, publishers=1, batch=FILL_BATCH, messages=transactions)
    with ExitStack() as stack:
        probe = Probe(target)
        load = Load(filling, target, stack)
        load.add_publishers()
        _, wrong = load.fill(probe)
        if wrong is not None:
            return wrong
        queue = Queue(target, load.names[0], filling, stack)
        names = [f"{load.room}.out.{at}" for at in range(options.batch)]
        result, members = work_off(options, target, probe, queue, names, transactions, stack)
        other = queue.complaint(transactions)
        result.errors += [] if other is None else [other]
    queue.remove()
    if result.right:
        judge(result, target, connect, names, [members.acked_by(at) for at in range(options.members)])
    return result


def work_off(
    options: Options, target: Target, probe: Probe, queue: Queue, names: list[str], transactions: int, stack: ExitStack
) -> tuple[Result, Members]:
    """Have the members work the queue off. Returns what came of it, and who did how much."""
    share = max(1, options.publishers // options.members)
    members = Members(
        messages=transactions,
        payload_bytes=options.payload,
        frame_bytes_max=FRAME_BYTES_MAX + options.payload,
        publishes=options.batch,
        transactions_max=share,
    )
    before = probe.figures()
    begun = time.monotonic()
    frames = channel_frames([name.encode() for name in names])
    for _ in range(options.members):
        with Conversation(target.url) as conversation:
            conversation.name_channels(frames)
            conversation.join(queue.name, JOBS_AHEAD * share, WINDOW_BYTES)
            members.add_member(stack.enter_context(conversation.detach()).fileno())
    waited_s = time.monotonic() - begun
    done = members.run(patience_s=options.patience_s, on_slice=probe.sample_memory)
    after = probe.figures()
    result = Result(
        work=f"{options.work}:acks",
        options=options,
        messages=done.acked * options.batch,
        seconds=done.seconds + waited_s,
        latency_us=latency_of(members.latency),
        lost=done.lost,
        duplicated=done.duplicated,
        corrupt=done.corrupt,
        driver_cpu_s=done.cpu_s,
        server_cpu_s=after.cpu_s - before.cpu_s,
        server_memory_bytes=probe.memory_bytes_max,
        fsyncs=after.fsyncs - before.fsyncs,
        errors=faults_of(done),
    )
    result.extra["transactions_per_s"] = done.acked / result.seconds
    result.extra["server_us_per_transaction"] = result.server_cpu_s * 1e6 / max(done.acked, 1)
    return result, members


async def read_back(bus: Bus, names: list[str], verifier: Verifier, each: int) -> None:
    """Read what the channels have, so many messages each, and check it."""
    unused = Histogram()
    for at, name in enumerate(names):
        async with bus.subscribe(name, start="start") as subscription:
            async for batch in subscription.batches():
                verifier.check_all(batch.payloads(), unused)
                if verifier.taken >= each * (at + 1):
                    break


def judge(result: Result, target: Target, connect: Opener, names: list[str], counts: list[int]) -> None:
    """Read everything back, and enter what the ledger has seen of it.

    Args:
        result: What is entered into.
        target, connect: The server, and what gives a client.
        names: The channels, each of which every transaction has published to.
        counts: The transactions of each member.
    """
    verifier = Verifier(publishers=len(counts), channels=len(names), payload_bytes=result.options.payload)
    for member, count in enumerate(counts):
        for channel in range(len(names)):
            verifier.expect(count, publisher=member, channel=channel)

    async def run() -> None:
        async with connect(target.url) as bus, asyncio.timeout(result.options.patience_s):
            await read_back(bus, names, verifier, sum(counts))

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(run())
    except TimeoutError:
        result.errors.append(f"reading back: not through within {result.options.patience_s:g} s")
    result.deliveries = verifier.taken
    result.lost += verifier.lost
    result.duplicated += verifier.duplicated
    result.reordered += verifier.reordered
    result.corrupt += verifier.corrupt
