"""Pipelines in threads: what the contract of all homes does not say of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError
from tests.blocking.test_workers import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker import Job
    from broker.blocking import Client


def test_a_pipeline_runs_until_it_is_ended(threads: Client, room: str) -> None:
    source, target, queue = f"s.{room}", f"s.out-{room}", f"q.{room}"
    threads.create_queue(queue, source)
    threads.publish_many(source, [b"%d" % number for number in range(40)])
    pipeline = threads.pipeline(queue, lambda job: (target, job.payload), batch=7)
    running = threading.Thread(target=pipeline.run)
    running.start()
    until(lambda: threads.consumer_info(queue).acked == 40)
    pipeline.end()
    running.join(10)
    assert not running.is_alive()
    assert [message.payload for message in threads.history(target)] == [b"%d" % number for number in range(40)]
    assert threads.consumer_info(queue).members == 0


def test_a_transform_that_outlasts_its_pipeline_publishes_nothing(threads: Client, room: str) -> None:
    source, target, queue = f"s.{room}", f"s.out-{room}", f"q.{room}"
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()
    threads.create_queue(queue, source)
    threads.publish(source, b"x")

    def transform(job: Job) -> Any:
        begun.set()
        assert go_on.wait(10)
        yield target, b"first"
        over.set()

    with threads.pipeline(queue, transform, grace_s=0.05):
        assert begun.wait(10)
    working = [thread for thread in threading.enumerate() if thread.name == f"pipeline {queue}"]
    go_on.set()
    for thread in working:
        thread.join(10)
    assert over.is_set()
    with threads.pipeline(queue, lambda _: (target, b"second")):
        until(lambda: threads.consumer_info(queue).acked == 1)
    assert [message.payload for message in threads.history(target)] == [b"second"]


def test_a_coroutine_function_is_refused(threads: Client) -> None:
    async def transform(job: Job) -> None:
        """It would never be awaited."""

    async def stream(job: Job) -> AsyncIterator[Any]:
        yield "channel", job.payload

    for function in (transform, stream):
        with pytest.raises(BrokerError, match="a plain function"):
            threads.pipeline("queue", function)
