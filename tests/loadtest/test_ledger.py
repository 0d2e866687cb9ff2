"""Whether published and received agree: each fault planted once, over several processes as well."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from broker.model.errors import error
from broker_native.messages import FrameReader
from loadtest.histogram import Counter
from loadtest.ledger import Account, Faults, faults_from, sum_published
from loadtest.plan import Plan
from loadtest.side import ERRORS_TOLD, Seats, Side
from tests.reference.server import chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker_native.readings import Reading

NAME = "load.s.x"
BYTES = 32


class Channel:
    """A channel that delivers what it is told to, published by one account and read by another."""

    def __init__(self) -> None:
        self.publisher, self.reader = Account(), Account()
        self.counter = Counter()
        self.messages: list[bytes] = []

    def publish(self, count: int, publisher: int = 0) -> None:
        self.messages += self.publisher.window(NAME, publisher, count, 1, BYTES)
        self.publisher.sent(NAME, publisher, count)

    def deliver(self, reading: Reading, messages: Sequence[bytes], first: int) -> None:
        records = [struct.pack("<IHHI", 12 + len(each), 0, 0, 0) + each for each in messages]
        [batch] = FrameReader(error, 1 << 20).chunks(chunk(1, 1, first, records), NAME)
        self.counter.take("chat", reading, batch)

    def settle(self) -> Faults:
        return self.reader.settle(sum_published([self.publisher.published, self.reader.published]))


@pytest.fixture
def channel() -> Channel:
    return Channel()


def test_who_reads_all_that_is_due_lacks_nothing(channel: Channel) -> None:
    early = channel.reader.read(NAME, 0, BYTES)
    channel.publish(3)
    late = channel.reader.read(NAME, 3, BYTES)
    channel.publish(2, publisher=1)
    assert channel.reader.owed(channel.publisher.published) == 7
    channel.deliver(early, channel.messages, 1)
    channel.deliver(late, channel.messages[3:], 4)
    assert channel.reader.owed(channel.publisher.published) == 0
    assert channel.settle() == Faults(taken=7)
    assert channel.counter.delivered == 7


@pytest.mark.parametrize("missing", [slice(0, 1), slice(2, 3), slice(4, 5), slice(0, 5)], ids=str)
def test_what_does_not_come_is_lost_wherever_it_was(channel: Channel, missing: slice) -> None:
    reading = channel.reader.read(NAME, 0, BYTES)
    channel.publish(5)
    lost = len(channel.messages[missing])
    del channel.messages[missing]
    if channel.messages:
        channel.deliver(reading, channel.messages, 1)
    assert channel.settle().lost == lost


def test_what_comes_twice_and_late_is_seen(channel: Channel) -> None:
    reading = channel.reader.read(NAME, 0, BYTES)
    channel.publish(4)
    a, b, c, d = channel.messages
    channel.deliver(reading, [a, c, b, b, d], 1)
    assert channel.settle() == Faults(taken=5, duplicated=1, reordered=1)


def test_what_came_before_the_reader_is_once_too_often(channel: Channel) -> None:
    channel.publish(4)
    reading = channel.reader.read(NAME, 2, BYTES)
    channel.deliver(reading, channel.messages[1:], 2)
    faults = channel.settle()
    assert (faults.duplicated, faults.lost, faults.misplaced) == (1, 0, 1)


def test_one_reader_does_not_make_up_for_another(channel: Channel) -> None:
    one, other = channel.reader.read(NAME, 0, BYTES), channel.reader.read(NAME, 0, BYTES)
    channel.publish(2)
    channel.deliver(one, [*channel.messages, channel.messages[1]], 1)
    channel.deliver(other, channel.messages[:1], 1)
    faults = channel.settle()
    assert (faults.lost, faults.duplicated) == (1, 1)


def test_who_leaves_is_due_what_came_and_gaps_in_it_are_lost(channel: Channel) -> None:
    reading = channel.reader.read(NAME, 0, BYTES)
    channel.publish(6)
    channel.deliver(reading, [channel.messages[0], channel.messages[2]], 1)
    channel.reader.retire(NAME, reading)
    channel.reader.retire(NAME, reading)
    assert channel.settle() == Faults(taken=2, lost=1)
    assert channel.reader.readers == 0


def test_accounts_travel() -> None:
    faults = Faults(1, 2, 3, 4, 5, 6, 7)
    assert faults_from(faults.as_list()) == faults
    for wrong in (None, [1], [1, 2, 3, 4, 5, 6, "7"], [True] * 7):
        with pytest.raises(ValueError, match="faults"):
            faults_from(wrong)
    assert sum_published([{"a": 1}, {"a": 2, "b": 3}]) == {"a": 3, "b": 3}


def test_seats_are_dense_and_are_taken_again() -> None:
    seats = Seats()
    assert [seats.take("chat") for _ in range(3)] == [0, 1, 2]
    assert seats.take("fanout") == 0
    seats.leave("chat", 1)
    assert [seats.take("chat") for _ in range(2)] == [1, 3]


def test_a_side_waits_for_what_is_due_as_long_as_something_comes() -> None:
    side = Side(Plan(), "broker://x:1", "t", Seats())
    reading = side.account.read(NAME, 0, BYTES)
    messages = side.account.window(NAME, 0, 3, 1, BYTES)
    side.account.sent(NAME, 0, 3)
    left = [messages[:1], messages[1:2]]

    def sleep(_: float) -> None:
        if left:
            records = [struct.pack("<IHHI", 12 + len(each), 0, 0, 0) + each for each in left.pop(0)]
            [batch] = FrameReader(error, 1 << 20).chunks(chunk(1, 1, reading.sequence + 1, records), NAME)
            side.counter.take("chat", reading, batch)

    published = side.finish_publishing(sleep, 0.0)
    answer = side.finish_reading(published, sleep, 0.02)
    assert faults_from(answer["faults"]) == Faults(taken=2, lost=1)
    assert sum(second[2] for second in answer["seconds"]) == 2
    assert side.closing


def test_unanswered_windows_and_many_errors_are_told() -> None:
    side = Side(Plan(), "broker://x:1", "t", Seats())
    side.unanswered = 2
    side.finish_publishing(lambda _: None, 0.0)
    for number in range(2 * ERRORS_TOLD):
        side.fail(f"error {number}")
    errors = side.report()["errors"]
    assert "2 windows had no answer for 0 s" in errors
    assert errors["further errors"] == ERRORS_TOLD + 1
    assert side.report()["errors"] == {}
