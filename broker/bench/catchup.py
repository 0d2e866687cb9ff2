"""`catchup`: many readers catch up with what is stored while others are live, who are to notice nothing.

What is stored is published first. Then those who are live are there alone, with a channel of their own, and their
latency is taken; and again while the readers read it all from the start. The two have a driver each, on a thread of its
own: one for both would let a message wait for what it reads of the others.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.bench.load import Load, Over, complaints, run_until
from broker.bench.result import latency_of
from broker.bench.server import Probe, Target

if TYPE_CHECKING:
    from typing import Self

    from broker.bench.options import Options
    from broker.bench.result import Result
    from broker_native.driver import Outcome

LIVE_READERS: Final = 10
CATCH_UP_S_MAX: Final = 1_200.0
"""How long it may take until everybody has everything."""
NICE: Final = 5
"""The readers are on other machines, so they must not take the processor from those who are to notice nothing."""


class CatchingUp:
    """Readers that read what is stored, on a thread of their own. As a context, in which they do.

    Args:
        load: their driver; they are added by the thread.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._outcome: Outcome | None = None
        self._failure: Exception | None = None
        self.seconds = 0.0
        self.cpu_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-catchup")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        if sys.platform == "linux":  # where a thread has a niceness of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        begun = time.monotonic()
        try:
            self._load.add_subscribers(from_start=True)
            options = self._load.options
            self._outcome = self._load.driver.run(patience_s=options.patience_s, on_slice=self._go_on)
        except Exception as failure:
            self._failure = failure
        self.seconds = time.monotonic() - begun
        self.cpu_s = time.thread_time()

    def _go_on(self) -> None:
        if self._over.is_set():
            raise Over

    @property
    def is_over(self) -> bool:
        """Whether everybody has everything, or nothing comes any more."""
        return not self._thread.is_alive()

    def outcome(self) -> Outcome:
        """Return what they have found; call it behind the context.

        Raises:
            BrokerError: the server refused one of them.
            Over: they were cut short.
        """
        if self._failure is not None:
            raise self._failure
        assert self._outcome is not None
        return self._outcome


def run_catchup(options: Options, target: Target) -> Result:
    """Store, look at those who are live alone, then beside all who catch up.

    Raises:
        BrokerError: the server refused a connection or a subscription.
    """
    with ExitStack() as stack:
        probe = Probe(target)
        stored = Load(options, target, stack)
        stored.add_publishers()
        written = stored.driver.run(messages=options.messages, patience_s=options.patience_s)
        stored.driver.latency.clear()
        live = Load(replace(options, subscribers=LIVE_READERS, channels=1, pattern=False), target, stack)
        live.add_publishers()
        live.add_subscribers()
        alone = live.driver.run(seconds=options.seconds, rate=options.rate, patience_s=options.patience_s)
        alone_us = latency_of(live.driver.latency)
        live.driver.latency.clear()
        before = probe.figures()
        acked, begun, begun_cpu_s = live.driver.acked, time.monotonic(), time.thread_time()
        catching = CatchingUp(stored)
        with catching:
            until_s = begun + CATCH_UP_S_MAX

            def look() -> None:
                probe.sample_memory()
                if catching.is_over or time.monotonic() > until_s:
                    raise Over

            beside = run_until(live, look, CATCH_UP_S_MAX)
        driver_s = time.thread_time() - begun_cpu_s
        after = probe.figures()
        read = catching.outcome()
        result = stored.result(read)
        result.latency_us = latency_of(live.driver.latency)
        result.messages = live.driver.acked - acked
        result.deliveries = read.deliveries + live.driver.latency.count
    result.seconds = catching.seconds
    result.lost += beside.lost
    result.duplicated += beside.duplicated
    result.reordered += beside.reordered
    result.corrupt += beside.corrupt
    named = {"while storing": written, "alone": alone, "live": beside}
    result.errors += [f"{name}: {each}" for name, outcome in named.items() for each in complaints(outcome, options)]
    result.server_cpu_s = after.cpu_s - before.cpu_s
    result.fsyncs = after.fsyncs - before.fsyncs
    result.server_memory_bytes = probe.memory_bytes_max
    result.driver_cpu_s = catching.cpu_s
    during_us = result.latency_us
    result.extra |= {
        "stored": written.sent,
        "publish_per_s": round(written.sent / written.seconds, 1) if written.seconds else 0.0,
        "caught_up": read.deliveries,
        "p99_before_us": alone_us["p99"],
        "p99_during_us": during_us["p99"],
        "p99_ratio": round(during_us["p99"] / alone_us["p99"], 2) if alone_us["p99"] else 0.0,
        "live_driver_share": round(driver_s / catching.seconds, 3),
    }
    return result
