"""A process that runs a pipeline and may be killed at any instant: `python -m tests.fault.piping URL KIND SEED`.

It takes what the queue gives out, and publishes each job's payload to two channels. Now and then it fails. KIND is
`asyncio` or `blocking`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from typing import TYPE_CHECKING

from broker import BackoffPolicy, BrokerError, Output, Retry, connect
from broker.blocking import connect as connect_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker import Job

QUEUE = "pipe"
SOURCE = "pipe.in"
TARGETS = ("pipe.synced.out", "pipe.accepted.out")
BACKOFF = BackoffPolicy(first_s=0.01, longest_s=0.04)
BATCH = 24


class Transform:
    """Publishes what it gets, and fails for a share of the jobs."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def __call__(self, job: Job) -> Iterator[Output]:
        for target in TARGETS:
            yield Output(target, job.payload, key=job.key)
            if self._chance.random() < 0.01:
                raise Retry(0.01)


async def pipe(url: str, transform: Transform) -> None:
    """Run a pipeline on a loop for ever."""
    while True:
        try:
            async with connect(url, backoff=BACKOFF) as bus:
                await bus.pipeline(QUEUE, transform, batch=BATCH)
        except BrokerError:
            await asyncio.sleep(0.02)


def pipe_blocking(url: str, transform: Transform) -> None:
    """Run a pipeline in a thread for ever."""
    while True:
        try:
            with connect_blocking(url, backoff=BACKOFF) as bus:
                bus.pipeline(QUEUE, transform, batch=BATCH).run()
        except BrokerError:
            time.sleep(0.02)


if __name__ == "__main__":
    _, where, kind, seed = sys.argv
    if kind == "asyncio":
        asyncio.run(pipe(where, Transform(int(seed))))
    else:
        pipe_blocking(where, Transform(int(seed)))
