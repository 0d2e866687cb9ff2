"""`slow`: most of the subscribers stop reading, the others are to notice nothing, and nobody is to miss anything.

1. Those who will go on reading are there alone, with channels of their own, and their latency is taken. By then each
   channel of a pattern has had a message: to tell a reader its name is no part of what is looked at.
2. All are there, and have had one as well. After a moment most of them stop: their sockets fill, and all that the
   server hears of them is that they are there. The others' latency is taken again.
3. They read again while little is published, until nobody lags. Then everybody must have everything, once and in order.

The driver reads for all of them; those who have stopped cost it nothing, and their latency is in no figure. A socket of
theirs takes in little before it is read: with windows that the kernel has let grow to megabytes, to fill nine hundred
of them is gigabytes of copying, and would be all that is looked at.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from broker.bench.channels import Asking
from broker.bench.conversation import Conversation
from broker.bench.load import Load, Over, complaints, run_until
from broker.bench.result import latency_of
from broker.bench.server import Probe, Target
from broker.model.settings import KIB

if TYPE_CHECKING:
    from broker.bench.options import Options
    from broker.bench.result import Result

ALONE_S_MAX: Final = 15.0
"""How long those who go on reading are looked at alone."""
MOMENT_S: Final = 0.02
"""How long is published what everybody reads before most of them stop."""
TRICKLE_SHARE: Final = 100
"""While they catch up so small a part of the rate is published: a thousand readers of all of it are another work."""
COMPLETE_S_MAX: Final = 1_200.0
"""How long it may take until nobody lags."""
ASK_S: Final = 1.0
INTRODUCED_PER_S: Final = 2_000_000
"""Names a second that readers are told at first, all together."""
RECEIVE_BYTES: Final = 128 * KIB
"""What the socket of a subscriber that stops takes in before it is read."""


class Watching:
    """What a server says of its queues and of those who lag, the most that was seen; a thread's question each second.

    Args:
        url: where it listens.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.used_bytes_max = 0
        self.budget_bytes = 0
        self.lagging_max = 0
        self.last: dict[str, Any] = {}

    def ask(self) -> None:
        """Ask once.

        Raises:
            BrokerError: it does not answer.
        """
        with Conversation(self._url) as conversation:
            found = self.last = conversation.stats()
        self.used_bytes_max = max(self.used_bytes_max, found.get("memory_used_bytes", 0))
        self.budget_bytes = found.get("memory_budget_bytes", 0)
        self.lagging_max = max(self.lagging_max, found.get("subscriptions_lagging", 0))


class Returning:
    """Those who lag while they read again: how many there still are, and for how long they may be.

    Args:
        load: the driver that reads for them.
        probe: looks at the server's memory meanwhile.
    """

    def __init__(self, load: Load, probe: Probe) -> None:
        self._driver = load.driver
        self._probe = probe
        self._until_s = time.monotonic() + COMPLETE_S_MAX

    def look(self) -> None:
        """Raise Over when nobody lags, or when there is no time left; the driver calls it."""
        self._probe.sample_memory()
        if self._driver.live >= self._driver.lagging or time.monotonic() > self._until_s:
            raise Over


def run_slow(options: Options, target: Target) -> Result:
    """Look at those who go on reading alone and beside the others, then at all of them until they are complete.

    Raises:
        BrokerError: the server refused a connection or a subscription.
    """
    with ExitStack() as stack:
        probe = Probe(target)
        watching = Watching(target.url)
        stack.enter_context(Asking(ASK_S, watching.ask))
        failures, alone_us = look_alone(options, target, probe)
        load = Load(options, target, stack)
        load.add_publishers(settled=True)
        healthy = options.subscribers - options.slow
        load.add_subscribers(steady=healthy, receive_bytes=RECEIVE_BYTES)
        failures += introduce(load)
        moment = load.driver.run(
            messages=max(int(options.rate * MOMENT_S), 1),
            rate=options.rate,
            patience_s=options.patience_s,
            on_slice=probe.sample_memory,
        )
        load.driver.latency.clear()
        load.driver.halt(healthy)
        result = load.measure(probe)
        beside_us, owed = result.latency_us, load.driver.owed
        load.driver.read_on()
        begun, begun_cpu_s = time.monotonic(), time.thread_time()
        complete = run_until(
            load, Returning(load, probe).look, COMPLETE_S_MAX, rate=max(options.rate // TRICKLE_SHARE, 1)
        )
        complete_s, driver_s = time.monotonic() - begun, time.thread_time() - begun_cpu_s
        watching.ask()
    # Whoever stops in the middle of a chunk is in nobody's books before it has gone on.
    result.lost, result.duplicated = complete.lost, complete.duplicated
    result.reordered, result.corrupt = complete.reordered, complete.corrupt
    result.errors = list(dict.fromkeys([*failures, *complaints(moment, options), *complaints(complete, options)]))
    result.server_memory_bytes = probe.memory_bytes_max
    result.extra |= {
        "slow": options.slow,
        "p99_before_us": alone_us["p99"],
        "p99_during_us": beside_us["p99"],
        "p99_ratio": round(beside_us["p99"] / alone_us["p99"], 2) if alone_us["p99"] else 0.0,
        "memory_budget_bytes": watching.budget_bytes,
        "memory_used_bytes_max": watching.used_bytes_max,
        "memory_of_budget": round(probe.memory_bytes_max / watching.budget_bytes, 3) if watching.budget_bytes else 0.0,
        "complete_s": round(complete_s, 3),
        "complete_per_s": round(owed / complete_s, 1),
        "complete_driver_share": round(driver_s / complete_s, 3),
        "lagging": load.driver.lagging,
        "live": load.driver.live,
    }
    return result


def look_alone(options: Options, target: Target, probe: Probe) -> tuple[list[str], dict[str, float]]:
    """Run with those who go on reading alone; returns what went wrong, and their latency."""
    alone = replace(
        options, subscribers=options.subscribers - options.slow, slow=0, seconds=min(options.seconds, ALONE_S_MAX)
    )
    with ExitStack() as stack:
        load = Load(alone, target, stack)
        load.add_publishers(settled=True)
        load.add_subscribers()
        found = [f"alone: {failure}" for failure in introduce(load)]
        outcome = load.run(probe)
        wrong = outcome.lost or outcome.duplicated or outcome.reordered or outcome.corrupt
        found += [f"alone: {failure}" for failure in complaints(outcome, alone)]
        if wrong:
            found.append(f"alone: lost {outcome.lost}, duplicated {outcome.duplicated}, reordered {outcome.reordered}")
        return found, latency_of(load.driver.latency)


def introduce(load: Load) -> list[str]:
    """Publish to each channel once if readers must be told their names; returns what went wrong."""
    options = load.options
    if not options.pattern:
        return []
    rate = max(INTRODUCED_PER_S // options.subscribers, 1)
    outcome = load.driver.run(messages=options.channels, rate=rate, patience_s=options.patience_s)
    load.driver.latency.clear()
    return complaints(outcome, options)
