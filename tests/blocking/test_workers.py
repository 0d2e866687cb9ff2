"""Workers in threads: functions that do jobs, and stop in good order."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError, Reject, Retry

if TYPE_CHECKING:
    from broker import Job
    from broker.blocking import Client


def until(condition: Any, timeout_s: float = 10.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_functions_do_jobs_in_threads(threads: Client, room: str) -> None:
    channel, queue = f"s.{room}", f"q.{room}"
    seen: list[bytes] = []
    names: set[int] = set()

    @threads.worker(channel, queue=queue, concurrency=4)
    def work(job: Job) -> None:
        names.add(threading.get_ident())
        time.sleep(0.005)
        seen.append(job.payload)

    with threads.run_workers():
        threads.publish_many(channel, [b"%d" % number for number in range(40)])
        until(lambda: len(seen) == 40)
    assert sorted(map(int, seen)) == list(range(40))
    assert len(names) == 4
    info = threads.consumer_info(queue)
    assert (info.acked, info.leased, info.members) == (40, 0, 0)


def test_what_a_function_raises_decides(threads: Client, room: str) -> None:
    channel, queue, dead = f"s.{room}", f"q.{room}", f"s.dead-{room}"
    seen: list[tuple[bytes, int]] = []

    @threads.worker(channel, queue=queue, lease_s=0.3, backoff_s=(0.01, 0.01), attempts_max=2, dead_letter=dead)
    def work(job: Job) -> None:
        seen.append((job.payload, job.attempt))
        match job.payload:
            case b"always fails":
                raise ValueError("always")
            case b"is rejected":
                raise Reject
            case b"retries" if job.attempt == 1:
                raise Retry(0.02)
            case b"takes longer":
                time.sleep(0.8)

    with threads.subscribe(dead) as letters, threads.run_workers():
        for payload in (b"always fails", b"is rejected", b"retries", b"takes longer"):
            threads.publish(channel, payload)
        dropped = {letters.next(5).payload for _ in range(2)}  # type: ignore[union-attr]
        until(lambda: len(seen) == 6)
    assert dropped == {b"always fails", b"is rejected"}
    assert sorted(seen) == [
        (b"always fails", 1),
        (b"always fails", 2),
        (b"is rejected", 1),
        (b"retries", 1),
        (b"retries", 2),
        (b"takes longer", 1),
    ]
    assert threads.consumer_info(queue).leased == 0


def test_running_ends_when_it_is_told_and_when_it_cannot_go_on(threads: Client, room: str) -> None:
    channel, queue = f"s.{room}", f"q.{room}"
    with pytest.raises(BrokerError, match="there are none"):
        threads.run_workers().run()
    with pytest.raises(BrokerError, match="neither channels nor a queue"):
        threads.worker()
    with pytest.raises(BrokerError, match="concurrency 0"):
        threads.worker(channel, concurrency=0)
    entered, leave = threading.Event(), threading.Event()

    @threads.worker(channel, queue=queue)
    def work(job: Job) -> None:
        entered.set()
        leave.wait(10)

    workers = threads.run_workers()
    running = threading.Thread(target=workers.run)
    running.start()
    threads.publish(channel, b"x")
    assert entered.wait(10)
    workers.end()
    leave.set()
    running.join(10)
    assert not running.is_alive()
    assert threads.consumer_info(queue).acked == 1
    gone = threads.run_workers()
    removing = threading.Thread(target=remove_when_it_has_members, args=(threads, queue))
    removing.start()
    with pytest.raises(BrokerError, match="UNKNOWN_CONSUMER"):
        gone.run()
    removing.join(10)


def ack_all(jobs: list[Job]) -> None:
    for job in jobs:
        job.ack()


def remove_when_it_has_members(threads: Client, queue: str) -> None:
    until(lambda: threads.consumer_info(queue).members)
    threads.remove_consumer(queue)


def test_jobs_are_settled_from_any_thread(threads: Client, room: str) -> None:
    channel, queue = f"s.{room}", f"q.{room}"
    threads.create_queue(queue, channel)
    threads.publish_many(channel, [b"%d" % number for number in range(100)])
    with threads.consume(queue) as member:
        jobs = [job for job in (member.next(5) for _ in range(100)) if job is not None]
        settling = [threading.Thread(target=ack_all, args=(jobs[at::4],)) for at in range(3)]
        for thread in settling:
            thread.start()
        for job in jobs[3::4]:
            job.ack().result()
        for thread in settling:
            thread.join()
        member.flush()
        assert member.next(0.05) is None
        with pytest.raises(BrokerError, match="LEASE_UNKNOWN"):
            jobs[0].ack()
    assert threads.consumer_info(queue).acked == 100
    with pytest.raises(BrokerError, match="CLOSED"):
        member.next(0.05)
    assert list(member.batches()) == []
