"""The one place where a life is cut off from the world outside, for as long as it lasts.

- What the product takes from the machine by name is replaced: its log, its threads, its clock.
- Randomness comes from the seed, whoever asks.
- Real time and threads are an error that ends the life, wherever somebody asks for them, and so is a product module
  that has put such a function aside before.
- Bounds that a short life would never reach are lowered, to what the seed says.
- The product's log goes into the trace; in it, an end that finds the other one breaking the protocol fails the life.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import secrets
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from broker.client.subscription import ClientSubscription
from broker.core.sequencer import Sequencer
from broker.edge.session import Session
from broker.events import Limiter, Refusals
from broker.node.time import BrokerTime
from broker_native.groups import chunk_head, chunks_in
from broker_native.intake import Clock
from tests.simulation.disk import Everything, SimulatedCommits, SimulatedLog, SimulatedPool, chunks_in_group
from tests.simulation.kernel import Kernel, LifeFailed
from tests.simulation.policy import ASKED, EPHEMERAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker.model.errors import BrokerError
    from broker_native.messages import Batch
    from tests.simulation.disk import Disk
    from tests.simulation.policy import Policy

REAL_TIME = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep")
MAY_ASK = ("logging",)
"""Modules that stamp what they write with the real time; nothing in a life reads it."""
BROKEN_PROTOCOL = ("MALFORMED_FRAME", "FRAME_TOO_LARGE", "BAD_STATE", "VERSION", "SUBSCRIPTION_IN_USE")

Voided = set[tuple[str, int, int]]
"""(channel, epoch, sequence) of what was shown early and whose commit failed."""


@contextmanager
def sealed(kernel: Kernel, disk: Disk, policy: Policy, voided: Voided) -> Iterator[None]:
    """Cut the product off for the time of a life.

    Args:
        kernel: Whose time and chance it gets.
        disk: Where its log is.
        policy: What its bounds are.
        voided: Where to write down what failed commits have taken.
    """
    with ExitStack() as stack:
        for target, name, value in [
            *replacements(kernel, disk),
            *chance(kernel),
            *policy.bounds,
        ]:
            stack.enter_context(patch(f"{target}.{name}", value))
        stack.enter_context(patch.object(Sequencer, "failed", watch_failed(Sequencer.failed, voided)))
        stack.enter_context(patch.object(Session, "end", watch_end(Session.end, kernel, policy)))
        stack.enter_context(
            patch.object(ClientSubscription, "on_batch", watch_batch(ClientSubscription.on_batch, kernel))
        )
        stack.enter_context(watched_log(kernel, policy))
        find_what_was_put_aside()
        for name in REAL_TIME:
            stack.enter_context(patch.object(time, name, forbidden(kernel, f"time.{name}", getattr(time, name))))
        stack.enter_context(
            patch.object(threading.Thread, "start", forbidden(kernel, "a thread", threading.Thread.start))
        )
        yield


def replacements(kernel: Kernel, disk: Disk) -> list[tuple[str, str, object]]:
    """What stands for the machine."""

    class Opened:
        """`Log`, of which only `open` is called."""

        @staticmethod
        def open(path: object, **bounds: int) -> SimulatedLog:
            return SimulatedLog(disk)

    def broker_time(floor_us: int) -> BrokerTime:
        clock = Clock(manual=True)
        clock.manual_us = kernel.now_us
        kernel.clock = clock
        return BrokerTime(floor_us, kernel.wall_us, clock)

    def commits(journal: Any, loop: Any, done: Any) -> SimulatedCommits:
        loop.threads.append(SimulatedCommits(disk, journal, loop, done))
        return loop.threads[-1]  # type: ignore[no-any-return]

    def pool(**options: Any) -> SimulatedPool:
        assert kernel.running is not None
        found = SimulatedPool(disk)
        kernel.running.threads.append(found)
        return found

    return [
        ("broker.node.node", "Log", Opened),
        ("broker.node.node", "CommitThread", commits),
        ("broker.node.node", "BrokerTime", broker_time),
        ("broker.node.catchup", "ThreadPoolExecutor", pool),
        ("broker.node.loader", "ThreadPoolExecutor", pool),
        ("broker.events", "_limiter", Limiter(now_s=lambda: kernel.now_us / 1e6)),
        ("broker.events", "_refusals", Refusals(now_s=lambda: kernel.now_us / 1e6)),
    ]


def chance(kernel: Kernel) -> list[tuple[str, str, object]]:
    """Randomness from the seed."""
    return [
        ("os", "urandom", kernel.random.randbytes),
        ("secrets", "token_bytes", kernel.random.randbytes),
        ("random", "random", kernel.random.random),
    ]


def forbidden(kernel: Kernel, what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that ends the life in place of a real one."""

    def refuse(*args: Any, **options: Any) -> Any:
        asker = sys._getframe(1).f_globals["__name__"]
        if asker in MAY_ASK:
            return real(*args, **options)
        kernel.fail(f"{asker} asks for {what}")
        raise LifeFailed(f"{asker} asks for {what}")

    return refuse


def find_what_was_put_aside() -> None:
    """A product module that holds one of these functions by itself would be overlooked.

    Raises:
        LifeFailed: There is one.
    """
    real = {id(getattr(time, name)): f"time.{name}" for name in REAL_TIME}
    real |= {id(function): function.__qualname__ for function in (REAL_URANDOM, REAL_TOKEN_BYTES, REAL_RANDOM)}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("broker", "broker_native"):
            found = [real[id(value)] for value in vars(module).values() if id(value) in real]
            if found:
                raise LifeFailed(f"{name} has put aside {found}")


REAL_URANDOM, REAL_TOKEN_BYTES, REAL_RANDOM = os.urandom, secrets.token_bytes, random.random


# -- what is watched ---------------------------------------------------------------------------------------------------


def watch_failed(failed: Callable[..., None], voided: Voided) -> Callable[..., None]:
    """Write down what readers have seen early of groups that are about to be undone."""

    def watched(self: Sequencer, failure: BrokerError, *, handed_over: bool) -> None:
        assert self.in_commit is not None
        early = [
            chunk_head(chunk) for value in self.tails.early_values for _, chunk in chunks_in(value, 0, Everything())
        ]
        for channel, epoch, first, count in [*chunks_in_group(self.in_commit.value), *early]:
            name = self.tails.name_of(channel)
            assert name is not None
            voided.update((name.decode(), epoch, first + step) for step in range(count))
        failed(self, failure, handed_over=handed_over)

    return watched


def watch_end(end: Callable[..., None], kernel: Kernel, policy: Policy) -> Callable[..., None]:
    """Write down which connections the server ends, and for which reasons it must not."""

    def watched(self: Session, failure: BrokerError) -> None:
        if not self.closed:
            kernel.note("end", failure)
            if failure.name in BROKEN_PROTOCOL:
                kernel.fail(f"the server says of its client: {failure}")
            if failure.name == "PING_TIMEOUT" and not policy.has_silences:
                kernel.fail(f"nobody was silent, and yet: {failure}")
            if failure.name == "GOING_AWAY" and self.opened and policy.is_calm:
                kernel.fail("a client that could leave in good order did not")
        end(self, failure)

    return watched


def watch_batch(on_batch: Callable[..., None], kernel: Kernel) -> Callable[..., None]:
    """What one SUBSCRIBE brings of a channel is dense, until an epoch ends or the server says that it dropped some.

    The client would bear with more.
    """
    places: dict[tuple[int, ClientSubscription, str], tuple[int, int, int]] = {}

    def watched(self: ClientSubscription, batch: Batch) -> None:
        key = batch.subscription, self, batch.channel
        epoch, last, told = places.get(key, (batch.epoch, batch.first - 1, 0))
        dropped = sum(event.name == "dropped" for event in self.events)
        gap = batch.first > last + 1 and batch.channel == EPHEMERAL and dropped > told
        # A live group's messages are shared among its members.
        gap = gap or (batch.channel == ASKED and batch.first > last)
        if batch.epoch < epoch or (batch.epoch == epoch and batch.first != last + 1 and not gap):
            kernel.fail(f"{batch.channel}: {batch.epoch}:{batch.first} is delivered after {epoch}:{last}")
        places[key] = batch.epoch, batch.last, dropped
        on_batch(self, batch)

    return watched


class TraceHandler(logging.Handler):
    """The product's log as entries of the trace."""

    def __init__(self, kernel: Kernel, policy: Policy) -> None:
        super().__init__(logging.INFO)
        self._kernel = kernel
        self._policy = policy

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self._kernel.note("log", message)
        if "broke the protocol" in message:
            self._kernel.fail(f"a client says of its server: {message}")
        if "PING_TIMEOUT" in message and not self._policy.has_silences:
            self._kernel.fail(f"nobody was silent, and yet: {message}")
        if record.exc_info and record.exc_info[1] is not None:
            self._kernel.fail(f"logged: {message}: {record.exc_info[1]!r}", record.exc_info[1])


@contextmanager
def watched_log(kernel: Kernel, policy: Policy) -> Iterator[None]:
    """Have the product's log go into the trace."""
    package = logging.getLogger("broker")
    handler = TraceHandler(kernel, policy)
    before = package.level, package.propagate, package.handlers[:]
    package.handlers[:] = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        yield
    finally:
        package.setLevel(before[0])
        package.propagate = before[1]
        package.handlers[:] = before[2]


def freeze() -> None:
    """Keep what is loaded out of the collector's way, in a process that does nothing but live lives."""
    gc.collect()
    gc.freeze()
