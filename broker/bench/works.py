"""From options to results: start or find the server, run the work, put the machine's own figure beside it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from broker.bench.acking import run_with_acks
from broker.bench.archived import archive_all, storage_for
from broker.bench.asking import run_requests
from broker.bench.catchup import run_catchup
from broker.bench.channels import run_channels, run_cold
from broker.bench.client import run_client, run_embedded
from broker.bench.delayed import run_delayed
from broker.bench.load import RUNNERS, raise_descriptor_limit, run_live, run_replay
from broker.bench.machine import commit_us_p50
from broker.bench.options import Options, Work
from broker.bench.queue import run_queue
from broker.bench.restart import run_restart
from broker.bench.server import own_server, running_server
from broker.bench.shared import run_shared
from broker.bench.slow import run_slow
from broker.bench.storm import run_storm
from broker.bench.transactions import run_transactions

if TYPE_CHECKING:
    from broker.bench.client import Opener
    from broker.bench.result import Result


def run_work(
    options: Options,
    *,
    connect: Opener | None = None,
    open_embedded: Opener | None = None,
    open_shared: Opener | None = None,
) -> list[Result]:
    """Run one work.

    Args:
        options: options without a complaint.
        connect: gives the client for a URL; `client`, `requests` and `shared` need it.
        open_embedded: gives the embedded broker for a directory; `client` with `embedded` needs it.
        open_shared: gives the bus of a shared directory; `shared` needs it.

    Returns:
        One result, or for `client` one for each of its parts, and for `shared` one for each home.

    Raises:
        BrokerError: the server does not start, or refuses a connection or a subscription.
    """
    floor_us = commit_us_p50()
    # A crowd is there twice for a moment: the server may see the new connections before the end of the old ones.
    raise_descriptor_limit(options.publishers + options.subscribers + options.members + 2 * options.clients)
    if options.embedded:
        assert open_embedded is not None
        results = run_embedded(options, open_embedded)
    elif options.work is Work.SHARED:
        assert connect is not None
        assert open_shared is not None
        results = run_shared(options, connect, open_shared)
    else:
        results = _run_with_server(options, connect)
    for result in results:
        result.commit_us_p50 = floor_us
    return results


def _run_with_server(options: Options, connect: Opener | None) -> list[Result]:
    with ExitStack() as stack:
        server_cores, driver_cores = split_cores() if options.pin else (None, None)
        storage = storage_for(options)
        if options.work in (Work.COLD, Work.RESTART):
            server = stack.enter_context(own_server(cores=server_cores, channels=options.channels, storage=storage))
            keep_to(stack, driver_cores)
            return [(run_cold if options.work is Work.COLD else run_restart)(options, server)]
        target = stack.enter_context(
            running_server(options.url, cores=server_cores, channels=options.channels, storage=storage, web=options.web)
        )
        keep_to(stack, driver_cores)
        if options.acks:
            assert connect is not None
            return [run_with_acks(options, target, connect)]
        if options.work in (Work.CLIENT, Work.TRANSACTIONS):
            assert connect is not None
            return (run_client if options.work is Work.CLIENT else run_transactions)(options, target, connect)
        if options.work is Work.REQUESTS:
            assert connect is not None
            return run_requests(options, target, connect)
        if options.archived:
            return [run_replay(options, target, archive_all)]
        return [(OTHERS.get(options.work) or RUNNERS.get(options.work, run_live))(options, target)]


OTHERS: Final = {
    Work.CHANNELS: run_channels, Work.STORM: run_storm, Work.SLOW: run_slow, Work.CATCHUP: run_catchup,
    Work.QUEUE: run_queue, Work.DELAYED: run_delayed,
}  # fmt: skip
"""The works that have modules of their own."""


def keep_to(stack: ExitStack, cores: set[int] | None) -> None:
    """Keep this process to cores until the stack is closed; None does nothing."""
    if cores is not None:
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores)


def split_cores() -> tuple[set[int], set[int]]:
    """Return cores for the server, all but the last, and the last one for the driver; the same one if there is one."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[:-1] or cores), {cores[-1]}
