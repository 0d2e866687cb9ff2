"""Publishes with ids against a plain model: what is taken, what is answered and when, failed commits, other runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker_native.lines import Line
from broker_native.publisher import CODES, Publisher
from broker_native.tails import Tails
from tests.reference import groups
from tests.reference.frames import Record, build_record, publish_body, published_of
from tests.reference.groups import build_chunk
from tests.reference.ids import Ids

ACCEPTED, SYNCED = 2, 3
WINDOW_S, COUNT_MAX = 5, 12
NAMES = (b"s.x", b"s.y", b"a.x")
CHOICES = [None, b"a", b"b", b"c", b"d", b"e" * 64]


@dataclass
class Channel:
    """What the model knows of one channel.

    Attributes:
        stored: (id or None, second) of each committed record.
        pending: The same of those behind them.
        closed: How many of those are in the group in commit.
    """

    level: int
    stored: list[tuple[bytes | None, int]] = field(default_factory=list)
    pending: list[tuple[bytes | None, int]] = field(default_factory=list)
    closed: int = 0

    def window(self, now_s: int) -> Ids:
        """The ids that a frame finds which is decided now."""
        found = Ids()
        records = self.stored + self.pending
        for sequence, (id, time_s) in enumerate(records, 1):
            if id is not None and time_s >= now_s - WINDOW_S and sequence >= len(records) + 1 - COUNT_MAX:
                found.add(id, sequence, time_s)
        return found


class Publishing(RuleBasedStateMachine):
    """Two producers, three channels, one group in commit."""

    @initialize(seed=st.integers(0, 2**64 - 1))
    def begin(self, seed: int) -> None:
        self.seed = seed
        self.now_s = 1_000
        self.values: list[bytes] = []
        self.channels = {name: Channel(ACCEPTED if name.startswith(b"a") else SYNCED) for name in NAMES}
        self.answered: dict[int, dict[int, tuple[int, bool]]] = {0: {}, 1: {}}
        self.expected: dict[int, dict[int, tuple[int, bool]]] = {0: {}, 1: {}}
        self.in_commit: bytes | None = None
        self.closed_answers: list[tuple[Publisher, bytes]] = []
        self.run = 0
        self.open()

    def open(self) -> None:
        """A new run over what is stored."""
        self.run += 1
        self.tails = Tails(self.run, self.seed)
        self.tails.now_us = self.now_s * 1_000_000
        self.tails.set_ids(0, WINDOW_S, COUNT_MAX)
        self.lines = {bytes([index]) * 16: Line(bytes([index]) * 16) for index in range(2)}
        for value in self.values:
            self.tails.apply_group(value, self.lines.__getitem__)
        self.tails.begin_run(self.run, len(self.values) + 1)
        self.publishers = [Publisher(self.tails, line, None, 0) for line in self.lines.values()]
        for name in NAMES:
            self.tails.load(name, self.channels[name].level, 2, 100)
        for publisher in self.publishers:
            publisher.bind_all(0, list(NAMES))

    def read_back(self, name: bytes) -> None:
        """Have the ids of a channel that are stored, as the reader thread finds them."""
        info = self.tails.info(name)
        assert info is not None
        ids = self.tails.ids_for()
        begin = max(info[5] - COUNT_MAX, 1)
        for value in self.values:
            for chunk in groups.parse_group(value).chunks:
                if chunk.channel == info[0] and chunk.time_us // 1_000_000 >= self.now_s - WINDOW_S:
                    ids.take(build_chunk(chunk), begin, info[4])
        assert self.tails.install_ids(name, info[0], ids)

    # .. what happens ..

    @rule(who=st.integers(0, 1), slot=st.integers(0, 2), ids=st.lists(st.sampled_from(CHOICES), min_size=1, max_size=6))
    def publish(self, who: int, slot: int, ids: list[bytes | None]) -> None:
        name, publisher = NAMES[slot], self.publishers[who]
        channel, number = self.channels[name], publisher.line.next
        records = [build_record(Record(b"%d" % number, id=id)) for id in ids]
        body = publish_body(slot, number, records)
        known = self.tails.knows_ids(name)
        code = publisher.publish_frame(body)
        if code == CODES["IDS_ABSENT"]:
            assert not known
            assert any(id is not None for id in ids)
            assert publisher.line.next == number, "nothing has happened"
            self.read_back(name)
            code = publisher.publish_frame(body)
        assert code == 0
        assert publisher.line.next == number + len(ids)
        window = channel.window(self.now_s)
        for at, id in enumerate(ids):
            sequence = window.find(id) if id is not None else 0
            self.expected[who][number + at] = (sequence or len(channel.stored + channel.pending) + 1, bool(sequence))
            if not sequence:
                channel.pending.append((id, self.now_s))
                if id is not None:
                    window.add(id, len(channel.stored + channel.pending), self.now_s)
        assert publisher.publish_frame(body) == CODES["DUPLICATE"], "its numbers are taken"

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        if not self.tails.group_empty:
            return  # a group is open for milliseconds, and its chunks have one time each
        self.now_s += seconds
        self.tails.now_us = self.now_s * 1_000_000

    @rule()
    def turn(self) -> None:
        self.tails.close_turn()
        self.take(self.tails.take_turn_answers())

    @rule()
    def close(self) -> None:
        if self.in_commit is not None or self.tails.group_empty:
            return
        self.turn()
        self.in_commit, _ = self.tails.close_group(0, 0, 0, 0, self.now_s * 1_000_000)
        self.closed_answers = self.tails.take_answers()
        for channel in self.channels.values():
            channel.closed = len(channel.pending)

    @rule()
    def commit(self) -> None:
        if self.in_commit is None:
            return
        self.values.append(self.in_commit)
        self.tails.apply_group(self.in_commit, self.lines.__getitem__)
        self.in_commit = None
        for channel in self.channels.values():
            channel.stored += channel.pending[: channel.closed]
            del channel.pending[: channel.closed]
            channel.closed = 0
        self.take(self.closed_answers)
        self.closed_answers = []

    @rule()
    def fail(self) -> None:
        if self.in_commit is None:
            return
        refused = self.tails.undo(False) + self.closed_answers
        self.in_commit, self.closed_answers = None, []
        for publisher, entries in refused:
            who = self.publishers.index(publisher)
            for entry in published_of(entries):
                for number in range(entry.number, entry.number + entry.count):
                    del self.expected[who][number]
        self.lose()

    def lose(self) -> None:
        """What is pending is gone; what was answered of it at once was accepted, no more."""
        for channel in self.channels.values():
            channel.pending.clear()
            channel.closed = 0
        for who, publisher in enumerate(self.publishers):
            for number in [number for number in self.expected[who] if number >= publisher.line.next]:
                assert number not in self.answered[who] or self.answered[who].pop(number)
                del self.expected[who][number]
            self.answered[who] = {
                number: answer for number, answer in self.answered[who].items() if number < publisher.line.next
            }

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        if clean:
            self.commit()
            self.close()
            self.commit()
        self.in_commit, self.closed_answers = None, []
        for channel in self.channels.values():
            channel.pending.clear()
            channel.closed = 0
        self.open()
        for who, publisher in enumerate(self.publishers):
            for numbers in (self.expected[who], self.answered[who]):
                for number in [number for number in numbers if number >= publisher.line.next]:
                    del numbers[number]
            # Committed, and its answer lost with the connection.
            self.answered[who] = dict(self.expected[who])

    @rule()
    def give_up(self) -> None:
        """Memory is short: what can be read back is."""
        self.tails.ids_bytes_max = 0
        for slot in range(3):
            record = build_record(Record(b"x", id=b"new"))
            self.publishers[0].publish_frame(publish_body(slot, self.publishers[0].line.next + 1, [record]))
        self.tails.ids_bytes_max = 1 << 30

    @rule()
    def sweep(self) -> None:
        self.tails.sweep_ids(10)

    def take(self, answers: list[tuple[Publisher, bytes]]) -> None:
        """Answers have come: each number once, and what the model says."""
        for publisher, entries in answers:
            who = self.publishers.index(publisher)
            for entry in published_of(entries):
                for at in range(entry.count):
                    number = entry.number + at
                    assert number not in self.answered[who]
                    self.answered[who][number] = (entry.first + at, bool(entry.flags & 1))
                    assert self.answered[who][number] == self.expected[who][number]

    # .. what always holds ..

    @invariant()
    def heads(self) -> None:
        if not hasattr(self, "channels"):
            return
        for name, channel in self.channels.items():
            info = self.tails.info(name)
            assert info is not None
            assert info[4] == len(channel.stored) + 1
            assert info[5] == len(channel.stored) + len(channel.pending) + 1

    def teardown(self) -> None:
        if hasattr(self, "channels"):
            self.commit()
            self.close()
            self.commit()
            assert self.answered == self.expected


Publishing.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_publishing = Publishing.TestCase


def opened(level: int = SYNCED, window_s: int = 60) -> tuple[Tails, Publisher]:
    tails = Tails(1, 4770)
    tails.now_us = 1_000_000_000
    tails.set_ids(0, window_s, 10_000)
    publisher = Publisher(tails, Line(b"p" * 16), None, 0)
    tails.load(b"c.x", level, 2, 100)
    publisher.bind(0, b"c.x")
    return tails, publisher


def body(publisher: Publisher, *ids: bytes | None) -> bytes:
    return publish_body(0, publisher.line.next, [build_record(Record(b"x", id=id)) for id in ids])


def test_a_retry_of_a_batch_is_one_entry() -> None:
    tails, publisher = opened()
    ids = [b"%d" % number for number in range(1_000)]
    assert publisher.publish_frame(body(publisher, *ids)) == 0
    assert publisher.publish_frame(body(publisher, *ids)) == 0
    tails.close_turn()
    tails.close_group(0, 0, 0, 0, 0)
    ((_, answers),) = tails.take_answers()
    first, second = published_of(answers)
    assert (first.number, first.first, first.count, first.flags) == (1, 1, 1_000, 0)
    assert (second.number, second.first, second.count, second.flags) == (1_001, 1, 1_000, 1)
    assert second.epoch == first.epoch
    assert (tails.records, tails.repeated) == (1_000, 1_000)
    assert publisher.line.next == 2_001


def test_a_position_is_looked_up_by_the_number_of_a_duplicate_as_well() -> None:
    tails, publisher = opened()
    assert publisher.publish_frame(body(publisher, b"a", b"b")) == 0
    assert publisher.publish_frame(body(publisher, b"b", None)) == 0
    tails.close_turn()
    value, _ = tails.close_group(0, 0, 0, 0, 0)
    tails.apply_group(value, lambda _: publisher.line)
    assert publisher.line.lookup(1, 4) == [(1, 1, 1, 2), (1, 3, 2, 2)]
    assert publisher.line.lookup(3, 1) == [(1, 3, 2, 1)]


def test_a_window_of_no_seconds_remembers_nothing() -> None:
    tails, publisher = opened(window_s=0)
    for _ in range(3):
        assert publisher.publish_frame(body(publisher, b"a")) == 0
    assert (tails.records, tails.repeated, tails.ids_bytes) == (3, 0, 0)


def test_memory_is_bounded_and_told() -> None:
    tails, publisher = opened()
    tails.ids_bytes_max = 2_000
    number = 0
    while tails.ids_bytes <= 2_000:
        number += 1
        assert publisher.publish_frame(body(publisher, b"%d" % number)) == 0
    before = tails.memory_bytes
    assert publisher.publish_frame(body(publisher, b"more")) == CODES["LIMIT"], "all of it is pending"
    assert publisher.publish_frame(body(publisher, None)) == 0, "what has no id needs none"
    tails.load(b"c.y", SYNCED, 2, 100)
    publisher.bind(1, b"c.y")
    tails.close_turn()
    value, _ = tails.close_group(0, 0, 0, 0, 0)
    tails.apply_group(value, lambda _: publisher.line)
    other = publish_body(1, publisher.line.next, [build_record(Record(b"x", id=b"y"))])
    assert publisher.publish_frame(other) == 0, "those of the other channel can be read back"
    assert not tails.knows_ids(b"c.x")
    assert tails.memory_bytes < before
    assert publisher.publish_frame(body(publisher, b"1")) == CODES["IDS_ABSENT"]


def test_the_own_publisher_takes_every_id_and_has_it_remembered() -> None:
    tails, publisher = opened()
    own = Publisher(tails, Line(), None, 0)
    own.is_own = True
    own.bind(0, b"c.x")
    assert publisher.publish_frame(body(publisher, b"a")) == 0
    assert own.publish_frame(body(own, b"a", b"b", b"b")) == 0
    assert publisher.publish_frame(body(publisher, b"b", b"a")) == 0
    assert (tails.records, tails.repeated) == (4, 2)
    tails.close_turn()
    tails.close_group(0, 0, 0, 0, 0)
    answers = {who: published_of(entries) for who, entries in tails.take_answers()}
    assert [(entry.first, entry.count, entry.flags) for entry in answers[own]] == [(2, 3, 0)]
    found = [(entry.first, entry.count, entry.flags) for entry in answers[publisher]]
    assert found == [(1, 1, 0), (4, 1, 1), (2, 1, 1)], "the newest record with an id is the one"


def test_the_own_publisher_waits_for_no_ids_and_no_memory() -> None:
    tails, publisher = opened()
    own = Publisher(tails, Line(), None, 0)
    own.is_own = True
    own.bind(0, b"c.x")
    assert publisher.publish_frame(body(publisher, b"a")) == 0
    tails.ids_bytes_max = 1
    assert own.publish_frame(body(own, b"b")) == 0
    assert publisher.publish_frame(body(publisher, b"c")) == CODES["LIMIT"]
    tails.close_turn()
    value, _ = tails.close_group(0, 0, 0, 0, 0)
    again, publisher = opened()
    again.apply_group(value, lambda _: publisher.line)
    own = Publisher(again, Line(), None, 0)
    own.is_own = True
    own.bind(0, b"c.x")
    assert publisher.publish_frame(body(publisher, b"b")) == CODES["IDS_ABSENT"]
    assert own.publish_frame(body(own, b"b")) == 0
    assert not again.knows_ids(b"c.x")


def test_what_is_read_back_for_another_channel_is_not_taken() -> None:
    tails, publisher = opened()
    assert publisher.publish_frame(body(publisher, b"a")) == 0
    assert tails.install_ids(b"c.x", 1, tails.ids_for()) is False, "they are known"
    assert tails.install_ids(b"c.unknown", 1, tails.ids_for()) is False
    with pytest.raises(KeyError):
        tails.ids_window(b"c.unknown")
    ids = tails.ids_for()
    tails.load(b"c.y", SYNCED, 2, 100)
    assert tails.install_ids(b"c.y", 0, ids) is True
    for use in (lambda: ids.find(b"a"), lambda: ids.add(b"a", 1, 1), lambda: ids.take(b"", 0, 1)):
        with pytest.raises(RuntimeError, match="given to a channel"):
            use()
    tails.load(b"c.z", SYNCED, 2, 100)
    with pytest.raises(RuntimeError, match="given to a channel"):
        tails.install_ids(b"c.z", 0, ids)
    assert (len(ids), ids.memory_bytes) == (0, 0)


def test_names_of_numbers() -> None:
    _, publisher = opened()
    assert [publisher.name_of(number) for number in (0, 1, 99)] == [b"c.x", None, None]
