"""The work `requests`: what a Python program gets that asks and waits for replies.

Two parts, each a result of its own:

    requests:one      one task, one request at a time: how long a reply takes to come
    requests:many     1,000 tasks, each one request at a time: how many replies come

Whoever responds is a process of its own, with what was asked; several are members of one live group. Each reply is
compared with its request.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from broker.bench.result import Result, latency_of
from broker.bench.server import ROOMS, figures
from broker.bench.shared import run_on_loop
from broker.model.errors import BrokerError, error
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from broker.bench.client import Opener
    from broker.bench.options import Options
    from broker.bench.server import Target
    from broker.bus import Bus

TASKS: Final = 1000
ONE_SHARE: Final = 20
"""`requests:one` asks one for so many of the other part: it is that much slower."""
GROUP: Final = "responders"
START_S_MAX: Final = 60.0


def run_requests(options: Options, target: Target, connect: Opener) -> list[Result]:
    """Run both parts over connections to a server.

    Raises:
        BrokerError: There is no connection to be had; TIMEOUT, a responder does not come up.
    """
    channel = f"{ROOMS[options.durability]}.{secrets.token_hex(4)}"
    with ExitStack() as stack:
        for _ in range(options.subscribers):
            stack.enter_context(responding(connect, target.url, channel))
        results: list[Result] = run_on_loop(ask_all(options, connect, target.url, channel))
    return results


async def ask_all(options: Options, connect: Opener, url: str, channel: str) -> list[Result]:
    """Run both parts, one after the other."""
    async with connect(url) as bus:
        one = await measure("one", bus, options, channel, 1, max(options.messages // ONE_SHARE, 1))
        many = await measure("many", bus, options, channel, TASKS, options.messages)
    return [one, many]


async def measure(part: str, bus: Bus, options: Options, channel: str, tasks: int, count: int) -> Result:
    """Let tasks ask, each one request at a time, until there were so many."""
    result = Result(f"{options.work}:{part}", options)
    latency, numbers = Histogram(), iter(range(count))

    async def ask() -> None:
        clock_ns, record, request = time.perf_counter_ns, latency.record, bus.request
        padding = bytes(options.payload - 8)
        for number in numbers:
            payload = number.to_bytes(8, "little") + padding
            begun_ns = clock_ns()
            reply = await request(channel, payload, timeout_s=options.patience_s)
            record(clock_ns() - begun_ns)
            result.corrupt += reply.payload != payload

    before = figures(await bus.stats())
    cpu_s, begun = time.process_time(), time.perf_counter()
    try:
        await asyncio.gather(*(ask() for _ in range(min(tasks, count))))
    except BrokerError as failure:
        result.errors.append(str(failure))
    result.seconds = time.perf_counter() - begun
    result.driver_cpu_s = time.process_time() - cpu_s
    after = figures(await bus.stats())
    result.server_cpu_s, result.fsyncs = after.cpu_s - before.cpu_s, after.fsyncs - before.fsyncs
    result.server_memory_bytes = after.memory_bytes
    result.messages, result.deliveries = count, latency.count
    result.lost = count - latency.count
    result.latency_us = latency_of(latency)
    return result


@contextmanager
def responding(connect: Opener, url: str, channel: str) -> Iterator[None]:
    """Have a process respond, from when it listens to the end of the block."""
    # Spawned, not forked: it has nothing of ours, and no bus of a parent.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=respond, args=(there, connect, url, channel), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(START_S_MAX):
            raise error("TIMEOUT", f"requests: a responder said nothing for {START_S_MAX:g} s")
        yield
    finally:
        process.terminate()
        process.join()
        process.close()
        here.close()


def respond(ready: Connection, connect: Opener, url: str, channel: str) -> None:
    """Be a responder, until this process is ended."""
    run_on_loop(respond_to_all(ready, connect, url, channel))


async def respond_to_all(ready: Connection, connect: Opener, url: str, channel: str) -> None:
    """Reply to everything with what was asked."""
    async with connect(url) as bus, bus.subscribe(channel, group=GROUP) as subscription:
        ready.send(os.getpid())
        async for batch in subscription.batches():
            for message in batch:
                bus.respond(message, message.payload)
