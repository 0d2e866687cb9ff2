"""The account of what transports hold: a thousand that are handed the same value, take it all, or stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.works import Works, measure
from broker_native.unsent import Sender, Unsent

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.works import Run, Work

WORKS = Works("unsent")

READERS = 1000
VALUE = bytes(10_000)


class Connection:
    """The outbox and the transport of one reader."""

    def __init__(self, *, paused: bool) -> None:
        self.paused = paused

    def writelines(self, pieces: list[bytes | memoryview]) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return len(VALUE)


def senders(unsent: Unsent, *, paused: bool, messages: bool = False) -> list[Sender]:
    connections = [Connection(paused=paused) for _ in range(READERS)]
    return [Sender(unsent, connection, connection, True, messages=messages) for connection in connections]


@WORKS.work(READERS, 0)
def write() -> Run:
    unsent = Unsent()
    writing = senders(unsent, paused=False)

    def run() -> int:
        for sender in writing:
            sender.writelines([VALUE])
        return unsent.bytes

    return run


@WORKS.work(READERS, 0)
def write_messages() -> Run:
    unsent = Unsent()
    writing = senders(unsent, paused=False, messages=True)

    def run() -> int:
        for sender in writing:
            sender.writelines([VALUE])
        return unsent.bytes

    return run


@WORKS.work(READERS, len(VALUE))
def stop_and_go_on() -> Run:
    unsent = Unsent()
    stopping = senders(unsent, paused=True)

    def run() -> int:
        for sender in stopping:
            sender.writelines([VALUE])
        held = unsent.bytes
        for sender in stopping:
            sender.release()
        return held + unsent.bytes

    return run


def test_unsent(benchmark: BenchmarkFixture, kernel_work: Work) -> None:
    measure(benchmark, kernel_work)
