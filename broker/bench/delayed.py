"""`delayed`: messages are published for tomorrow, and others for soon while those wait.

The rate is that at which the first ones are scheduled, each by a PUBLISH of its own and with an id, and what they take
of the server's memory stands beside it. Then so many a second are due for some seconds, all of them scheduled before
the first is. They are read by the native driver, whose ledger knows each of them, and their order: messages are due in
the order of their counters. Their stamps say when they are due, so their latency is how late they come. It goes by this
machine's clock, as the server's has to.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from broker.bench.conversation import Conversation
from broker.bench.load import Load
from broker.bench.result import Result, latency_of
from broker.bench.server import Probe, Target
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from broker.bench.options import Options

DAY_S: Final = 86_400.0
SOON_S: Final = 2.0
"""How long before the first of those that are due is due that nobody waits for, at least;"""
SOON_MESSAGES_PER_S: Final = 20_000
"""and so many are scheduled in a second, at least."""


def run_delayed(options: Options, target: Target) -> Result:
    """Have messages wait, and others be due.

    Raises:
        BrokerError: the server refused a connection or a subscription.
    """
    with ExitStack() as stack:
        probe = Probe(target)
        result = wait(options, target, probe, stack)
    if result.right:
        with ExitStack() as stack:
            be_due(result, target, probe, stack)
    return result


def wait(options: Options, target: Target, probe: Probe, stack: ExitStack) -> Result:
    """Schedule what is due tomorrow, spread over a day."""
    with Conversation(target.url) as conversation:
        before = conversation.stats()
    load = Load(options, target, stack)
    load.add_publishers()
    load.driver.delay(lead_s=DAY_S, step_s=DAY_S / options.messages)
    load.options = replace(options, seconds=0, rate=0)
    result = load.measure(probe)
    result.options = options
    # What waits has no latency yet.
    result.latency_us = latency_of(Histogram())
    with Conversation(target.url) as conversation:
        after = conversation.stats()
    pending = int(after["delayed_pending"]) - int(before["delayed_pending"])
    if pending != options.messages:
        result.errors.append(f"the server counts {pending:,} messages that wait, of {options.messages:,}")
    grown = int(after["rss_anon_bytes"]) - int(before["rss_anon_bytes"])
    result.extra["pending"] = pending
    result.extra["memory_bytes_per_pending"] = grown / options.messages
    result.extra["index_bytes_per_pending"] = (int(after["delayed_bytes"]) - int(before["delayed_bytes"])) / max(
        pending, 1
    )
    result.extra["server_us_per_message"] = result.server_cpu_s * 1e6 / options.messages
    return result


def be_due(result: Result, target: Target, probe: Probe, stack: ExitStack) -> None:
    """Have so many messages be due each second, and enter how late they came."""
    options = result.options
    messages = max(1, int(options.rate * options.seconds))
    lead_s = SOON_S + messages / SOON_MESSAGES_PER_S
    # They are all under way at once.
    due = replace(
        options,
        messages=messages,
        seconds=0,
        rate=0,
        window=max(messages, 4 * options.batch),
        patience_s=options.patience_s + lead_s,
    )
    load = Load(due, target, stack)
    load.add_publishers()
    load.add_subscribers()
    load.driver.delay(lead_s=lead_s, step_s=1 / options.rate)
    came = load.measure(probe)
    result.deliveries = came.deliveries
    result.latency_us = came.latency_us
    result.lost += came.lost
    result.duplicated += came.duplicated
    result.reordered += came.reordered
    result.corrupt += came.corrupt
    result.errors += came.errors
    result.extra["due_per_s"] = options.rate
    result.extra["due_cpu_us"] = came.server_cpu_s * 1e6 / messages
