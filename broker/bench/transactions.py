"""The work `transactions`: tasks of one Python client that each commit one transaction at a time.

A transaction publishes `--batch` messages, one to each of as many channels. The rate is that of messages; what a
transaction costs the server, and how many there were a second, stand beside it. Afterwards everything is read back: the
ledger of each channel knows its messages and their order.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from itertools import chain
from typing import TYPE_CHECKING, Final

from broker.bench.client import new_loop
from broker.bench.result import Result, latency_of
from broker.bench.server import ROOMS, figures
from broker.model.errors import BrokerError
from broker_native.driver import Verifier
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.bench.client import Opener
    from broker.bench.options import Options
    from broker.bench.server import Target
    from broker.bus import Bus

SLICE_MESSAGES: Final = 1024


class Ledger:
    """One channel, what is published to it, and what has been seen of it.

    Args:
        channel: Its name.
        messages: How many there will be.
        payload_bytes: Of each.
    """

    def __init__(self, channel: str, messages: int, payload_bytes: int) -> None:
        self.channel = channel
        self.messages = messages
        self.verifier = Verifier(payload_bytes=payload_bytes)

    def payloads(self) -> Iterator[bytes]:
        """Yield all payloads, made in slices."""
        slices = range(0, self.messages, SLICE_MESSAGES)
        return chain.from_iterable(
            self.verifier.payloads(min(SLICE_MESSAGES, self.messages - begin)) for begin in slices
        )

    async def read_back(self, bus: Bus) -> None:
        """Read what is stored of it and check it."""
        unused = Histogram()
        async with bus.subscribe(self.channel, start="start") as subscription:
            async for batch in subscription.batches():
                self.verifier.check_all(batch.payloads(), unused)
                if self.verifier.taken >= self.messages:
                    return


async def commit_some(bus: Bus, ledgers: list[Ledger], rows: Iterator[tuple[bytes, ...]], latency: Histogram) -> None:
    """Commit what no other task has taken, one transaction after the other."""
    clock_ns = time.perf_counter_ns
    names = [ledger.channel for ledger in ledgers]
    for row in rows:
        begun_ns = clock_ns()
        async with bus.transaction() as tx:
            publish = tx.publish
            for channel, payload in zip(names, row, strict=True):
                publish(channel, payload)
        latency.record(clock_ns() - begun_ns)


async def run_on(bus: Bus, options: Options) -> Result:
    """Commit all transactions, and read them back."""
    transactions = max(1, options.messages // options.batch)
    room = f"{ROOMS[options.durability]}.{secrets.token_hex(4)}"
    ledgers = [Ledger(f"{room}.{at}", transactions, options.payload) for at in range(options.batch)]
    result = Result(f"{options.work}", options, messages=transactions * options.batch)
    rows = zip(*(ledger.payloads() for ledger in ledgers), strict=True)
    latency = Histogram()
    before = figures(await bus.stats())
    cpu_s, begun = time.process_time(), time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(options.publishers):
                group.create_task(commit_some(bus, ledgers, rows, latency))
    except* BrokerError as failures:
        result.errors += [str(failure) for failure in failures.exceptions]
    result.seconds = time.perf_counter() - begun
    result.driver_cpu_s = time.process_time() - cpu_s
    after = figures(await bus.stats())
    result.server_cpu_s = after.cpu_s - before.cpu_s
    result.fsyncs = after.fsyncs - before.fsyncs
    result.server_memory_bytes = after.memory_bytes
    result.latency_us = latency_of(latency)
    result.extra["transactions_per_s"] = transactions / result.seconds
    result.extra["server_us_per_transaction"] = result.server_cpu_s * 1e6 / transactions
    if not result.errors:
        await judge(result, bus, ledgers)
    return result


async def judge(result: Result, bus: Bus, ledgers: list[Ledger]) -> None:
    """Read everything back and enter what the ledgers have seen."""
    try:
        async with asyncio.timeout(result.options.patience_s):
            for ledger in ledgers:
                await ledger.read_back(bus)
    except TimeoutError:
        result.errors.append(f"reading back: not through within {result.options.patience_s:g} s")
    for verifier in (ledger.verifier for ledger in ledgers):
        result.deliveries += verifier.taken
        result.lost += verifier.lost
        result.duplicated += verifier.duplicated
        result.reordered += verifier.reordered
        result.corrupt += verifier.corrupt


def run_transactions(options: Options, target: Target, connect: Opener) -> list[Result]:
    """Run the work over a connection to a server.

    Raises:
        BrokerError: There is no connection to be had.
    """

    async def run() -> list[Result]:
        async with connect(target.url) as bus:
            return [await run_on(bus, options)]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(run())
