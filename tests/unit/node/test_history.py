"""Questions that are read together: each is answered for itself, and what was moved meanwhile is asked for again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from broker.model.errors import BrokerError, error
from broker.model.history import BusPart, HistoryPart, HistoryQuery, NamesPart
from broker.model.levels import Level
from broker.node.history import JOB_ASKS_MAX, JOB_BYTES_MAX, Ask, Asker, HistoryReader
from broker.node.stretch import Applied, Known
from tests.reference.groups import build_chunk, chunk_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.core.ports import StoredReader
    from broker.core.sequencer import Sequencer
    from broker_native.answers import StretchReader

APPLIED = Applied(bytes(16), 1)
DAMAGED, MOVED, MISMADE = 7, 8, 9


class ManyReadings:
    """A log of one record a channel, and how often it was looked at. `MOVED` is found at the second look."""

    def __init__(self, payload_bytes: int = 10) -> None:
        self.payload = bytes(payload_bytes)
        self.looks = 0
        self.fails = False

    @contextmanager
    def reading(self) -> Iterator[ManyReadings]:
        if self.fails:
            raise error("STORAGE_FAILED", "archive.mdb: cannot be read")
        self.looks += 1
        self.overtaken = False
        yield self

    def answer(self, stretches: StretchReader, begin: int, bytes_max: int, now_s: int) -> int:
        """Answer nothing: no archive has anything of them."""
        return 0

    def read_channel(self, channel: int, after: int, bytes_max: int, before: int = 0) -> list[tuple[int, int, bytes]]:
        if channel == DAMAGED:
            raise error("STORAGE_CORRUPT", "a segment: group 3 is damaged")
        if channel == MOVED and self.looks == 1:
            self.overtaken = True
            raise error("STORAGE_FAILED", "a segment: is not there")
        if channel == MISMADE:
            raise ValueError("its records do not cover its sequences")
        return [(0, 0, build_chunk(chunk_of(channel, 1, 1, [self.payload])))]


class Words:
    """A connection that asks; its answers are words."""

    closed = False

    def encode_part(self, number: int, part: HistoryPart | BusPart | NamesPart) -> bytes:
        assert isinstance(part, HistoryPart)
        assert part.head == 1
        return b"%d " % number + part.chunks

    def encode_refusal(self, number: int, failure: BrokerError) -> bytes:
        return b"%d %s" % (number, failure.name.encode())


def answers(log: ManyReadings, channels: list[int]) -> list[bytes]:
    """Have channels read in one job; each is its own request's number."""
    reader = HistoryReader(cast("Sequencer", None), cast("StoredReader", log), cast("Any", None), lambda: None)
    asks = [Ask(cast("Asker", Words()), channel, HistoryQuery("room"), b"room") for channel in channels]
    for ask in asks:
        ask.known = Known(ask.number, Level.SYNCED, 1, 2, [(1, 1)])
    answered = reader._read(asks, APPLIED, 0)
    assert answered.count == sum(map(len, answered.frames.values()))
    return [frame for frames in answered.frames.values() for frame in frames]


def test_a_job_looks_at_the_log_once() -> None:
    log = ManyReadings()
    assert [int(frame.split(b" ")[0]) for frame in answers(log, [1, 2, 3])] == [1, 2, 3]
    assert log.looks == 1


@pytest.mark.parametrize("damaged", [DAMAGED, MISMADE])
def test_only_who_asked_for_what_is_damaged_is_refused(damaged: int) -> None:
    log = ManyReadings()
    frames = answers(log, [1, damaged, 2])
    assert frames[1] == b"%d STORAGE_CORRUPT" % damaged
    assert [frame[:2] for frame in frames] == [b"1 ", b"%d " % damaged, b"2 "]
    assert log.looks == 1


def test_what_was_moved_is_looked_for_again() -> None:
    log = ManyReadings()
    frames = answers(log, [1, MOVED, 2])
    assert [frame[:2] for frame in frames] == [b"1 ", b"%d " % MOVED, b"2 "]
    assert b"STORAGE" not in b"".join(frames)
    assert log.looks == 2


def test_a_log_that_cannot_be_looked_at_refuses_all() -> None:
    log = ManyReadings()
    log.fails = True
    assert answers(log, [1, 2]) == [b"1 STORAGE_FAILED", b"2 STORAGE_FAILED"]


def test_a_job_ends_after_its_bytes() -> None:
    log = ManyReadings(100_000)
    assert len(answers(log, list(range(10, 10 + JOB_ASKS_MAX)))) == JOB_BYTES_MAX // 100_000 + 1
