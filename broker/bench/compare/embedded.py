"""Queues inside a process: the embedded home, and four libraries that keep their messages in SQLite.

Each puts a thousand messages and gets them, again and again, and every payload is checked. The libraries are used as
their documentation says that they are quickest while a message that was put survives a crash of the process: in
transactions where they have them, without a sync where that may be turned off. Ours promises more meanwhile, and posts
and reads in two tasks, as a program with one loop would. Where a library can only put or get one by one, it does.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker.bench.client import new_loop
from broker.bench.compare.clients import Course, OurSide, faults_of, run_course
from broker.bench.compare.outcome import Measurement
from broker.model.errors import BrokerError
from broker_native.driver import Verifier

if TYPE_CHECKING:
    from broker.bench.client import Opener
    from broker.bench.compare.works import Work

SLICE_MESSAGES: Final = 1000
"""That are put before they are got: a short queue, since some of them look through all of it for each."""

MODULES: Final = {
    "persist-queue": "persistqueue", "litequeue": "litequeue", "diskcache": "diskcache", "huey": "huey"
}  # fmt: skip
"""What must be importable for each."""


class Queue(Protocol):
    """A library's queue."""

    def put_all(self, payloads: list[bytes]) -> None:
        """Put messages, in their order."""

    def get_all(self, count: int) -> list[bytes]:
        """Get as many, in their order."""

    def close(self) -> None:
        """Let go of the files."""


class PersistQueue:
    """persist-queue: each put is a commit; what was got is removed when `task_done` says so."""

    def __init__(self, folder: str) -> None:
        from persistqueue import SQLiteQueue

        self._queue: Any = SQLiteQueue(folder, auto_commit=False)

    def put_all(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self._queue.put(payload)

    def get_all(self, count: int) -> list[bytes]:
        got = [self._queue.get() for _ in range(count)]
        self._queue.task_done()
        return got

    def close(self) -> None:
        self._queue.close()


class LiteQueue:
    """litequeue: puts share a transaction; a pop has one of its own."""

    def __init__(self, folder: str) -> None:
        from litequeue import LiteQueue

        self._queue: Any = LiteQueue(Path(folder, "queue.db"))

    def put_all(self, payloads: list[bytes]) -> None:
        with self._queue.transaction():
            for payload in payloads:
                self._queue.put(payload)

    def get_all(self, count: int) -> list[bytes]:
        return [self._queue.pop().data for _ in range(count)]

    def close(self) -> None:
        self._queue.close()


class DiskCache:
    """diskcache: a Deque that evicts nothing, in transactions both ways."""

    def __init__(self, folder: str) -> None:
        from diskcache import Cache, Deque

        self._cache: Any = Cache(folder, eviction_policy="none")
        self._queue: Any = Deque.fromcache(self._cache)

    def put_all(self, payloads: list[bytes]) -> None:
        with self._queue.transact():
            for payload in payloads:
                self._queue.append(payload)

    def get_all(self, count: int) -> list[bytes]:
        with self._queue.transact():
            return [self._queue.popleft() for _ in range(count)]

    def close(self) -> None:
        self._cache.close()


class Huey:
    """huey: the storage below its tasks, so that nothing is made of the bytes."""

    def __init__(self, folder: str) -> None:
        from huey.storage import SqliteStorage

        self._queue: Any = SqliteStorage("bench", str(Path(folder, "huey.db")), fsync=False)

    def put_all(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self._queue.enqueue(payload)

    def get_all(self, count: int) -> list[bytes]:
        return [self._queue.dequeue() for _ in range(count)]

    def close(self) -> None:
        self._queue.close()


QUEUES: Final[dict[str, type[PersistQueue | LiteQueue | DiskCache | Huey]]] = {
    "persist-queue": PersistQueue, "litequeue": LiteQueue, "diskcache": DiskCache, "huey": Huey
}  # fmt: skip


def missing_module(name: str) -> str | None:
    """Return the module of a library that is not installed, or None."""
    from importlib.util import find_spec

    return None if find_spec(MODULES[name]) is not None else MODULES[name]


def measure(
    name: str, work: Work, *, seconds: float, payload: int, patience_s: float, open_embedded: Opener
) -> Measurement:
    """Put and get for some seconds, in a temporary folder (TMPDIR chooses whose disk it is).

    Returns:
        What it came to; what goes wrong is in its errors.
    """
    measurement = Measurement()
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as folder:
        if name == "broker":
            measure_ours(measurement, work, seconds, payload, patience_s, open_embedded, folder)
        else:
            measure_library(measurement, QUEUES[name](folder), seconds, payload)
    return measurement


def measure_library(measurement: Measurement, queue: Queue, seconds: float, payload: int) -> None:
    """Put a slice and get it, until the time is over."""
    verifier = Verifier(payload_bytes=payload)
    # What the measurement before this one has left is none of this one's business.
    gc.collect()
    try:
        cpu_s, begun = time.process_time(), time.perf_counter()
        while time.perf_counter() - begun < seconds:
            queue.put_all(verifier.payloads(SLICE_MESSAGES))
            verifier.check_all(queue.get_all(SLICE_MESSAGES))
            measurement.messages += SLICE_MESSAGES
        measurement.seconds = time.perf_counter() - begun
        measurement.driver_cpu_s = time.process_time() - cpu_s
    finally:
        queue.close()
    measurement.deliveries = verifier.taken
    measurement.errors += faults_of(verifier)


def measure_ours(
    measurement: Measurement,
    work: Work,
    seconds: float,
    payload: int,
    patience_s: float,
    open_embedded: Opener,
    folder: str,
) -> None:
    """Post and read over the embedded home."""

    async def run() -> None:
        course = Course(payload)
        side = OurSide(work, course, open_embedded, folder)
        await side.open()
        try:
            await run_course(course, side, measurement, seconds=seconds, patience_s=patience_s)
        finally:
            await side.close()

    gc.collect()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            runner.run(run())
        except BrokerError as failure:
            measurement.errors.append(str(failure))
    # Of a queue nobody asks how long it was; libraries that put and get in turn have no such figure.
    measurement.curve = []
