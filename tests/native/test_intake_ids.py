"""Frames with ids as they come off a connection against the same frames decided one by one, and against a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.fanout import Fanout
from broker_native.intake import Clock, Intake, ReadBuffer
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails
from tests.reference.frames import PING, PUBLISH, Record, build_frame, build_record, publish_body, published_of
from tests.reference.ids import Ids

SYNCED = 3
NOW_S = 1_000
FRAME_BYTES_MAX = 100_000


class Taken(Intake):
    """Counts what is neither a publish nor decided."""

    frames = 0

    def on_frame(self, kind: int, flags: int, body: bytes) -> None:
        self.frames += 1

    def on_refused(self, code: int, slot: int, number: int, count: int) -> None:
        self.frames += 1

    def on_read(self) -> None:
        pass


class Side:
    """Tails of its own with two connections that share a read buffer."""

    def __init__(self, window: int) -> None:
        self.tails = Tails(1, 4770)
        self.tails.now_us = NOW_S * 1_000_000
        self.tails.set_ids(0, 60, window)
        self.tails.load(b"s.x", SYNCED, 2, 1 << 20)
        self.buffer = ReadBuffer(4_096)
        fanout, clock = Fanout(self.tails), Clock(NOW_S * 1_000_000, True)
        self.publishers = [Publisher(self.tails, Line(bytes([who]) * 16), None, 0) for who in range(2)]
        self.intakes = [Taken(fanout, self.buffer, clock, FRAME_BYTES_MAX) for _ in self.publishers]
        for publisher, intake in zip(self.publishers, self.intakes, strict=True):
            publisher.bind(0, b"s.x")
            intake.publisher = publisher

    def read(self, who: int, data: bytes) -> None:
        """Bytes come into the shared buffer: each time at the same address."""
        view = self.intakes[who].get_buffer(-1)
        view[: len(data)] = data
        self.intakes[who].buffer_updated(len(data))

    def close(self) -> tuple[bytes, list[list[tuple[int, int, int, int]]]]:
        """Return the group, and (number, first, count, flags) of each answer of either connection."""
        self.tails.close_turn()
        answers = self.tails.take_turn_answers()
        group, _ = self.tails.close_group(0, 0, 0, 0, NOW_S * 1_000_000)
        answers += self.tails.take_answers()
        found: list[list[tuple[int, int, int, int]]] = [[], []]
        for publisher, entries in answers:
            found[self.publishers.index(publisher)] += [
                (entry.number, entry.first, entry.count, entry.flags) for entry in published_of(entries)
            ]
        return group, found


def frames_of(reads: list[tuple[int, list[list[int]]]]) -> list[tuple[int, list[bytes]]]:
    """The frames of each read: a record for each number, with that as its id, without one for 0; none is a PING."""
    numbers = [1, 1]
    made = []
    for who, frames in reads:
        built = []
        for ids in frames:
            if not ids:
                built.append(build_frame(PING, bytes(8)))
                continue
            records = [
                build_record(Record(b"x", id=b"%d" % id if id else None, key=b"k" if id % 3 else None)) for id in ids
            ]
            built.append(build_frame(PUBLISH, publish_body(0, numbers[who], records)))
            numbers[who] += len(ids)
        made.append((who, built))
    return made


READS = st.lists(
    st.tuples(st.integers(0, 1), st.lists(st.lists(st.integers(0, 60), max_size=20), min_size=1, max_size=40)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(reads=READS, window=st.sampled_from([1, 10, 1_000]), cut=st.integers(1, 4_096))
def test_as_one_frame_at_a_time(reads: list[tuple[int, list[list[int]]]], window: int, cut: int) -> None:
    together, apart = Side(window), Side(window)
    model, stored = Ids(), 0
    expected: list[list[tuple[int, bool]]] = [[], []]
    for (who, ids_of_frames), (_, frames) in zip(reads, frames_of(reads), strict=True):
        data = b"".join(frames)
        for at in range(0, len(data), cut):
            together.read(who, data[at : at + cut])
        for frame in frames:
            apart.intakes[who].feed(frame)
        for ids in ids_of_frames:
            model.expire(0, max(stored + 1 - window, 0))
            for id in ids:
                known = model.find(b"%d" % id) if id else 0
                stored += not known
                expected[who].append((known or stored, bool(known)))
                if id and not known:
                    model.add(b"%d" % id, stored, NOW_S)
    group, answers = together.close()
    assert (group, answers) == apart.close()
    for who in range(2):
        assert expected[who] == [
            (first + index, bool(flags & 1)) for _, first, count, flags in answers[who] for index in range(count)
        ]


@pytest.mark.parametrize("batch", [1, 7, 16, 17, 100])
def test_a_buffer_that_is_read_into_again(batch: int) -> None:
    """Other ids at the same places are other ids."""
    side = Side(1_000_000)
    number = 1
    for read in range(50):
        frames = []
        while sum(map(len, frames)) < 2_000:
            ids = [b"%08d" % (number + index) for index in range(batch)]
            records = [build_record(Record(b"x", id=id)) for id in ids]
            frames.append(build_frame(PUBLISH, publish_body(0, number, records)))
            number += batch
        data = b"".join(frames)
        for at in range(0, len(data), 4_096):
            side.read(0, data[at : at + 4_096])
        assert side.publishers[0].line.next == number, read
    assert side.tails.repeated == 0
    assert side.tails.records == number - 1


def test_what_is_refused_leaves_no_hash_behind() -> None:
    """Frames that are refused were looked at ahead; those behind them are decided by their own ids."""
    side = Side(1_000_000)
    frames = [build_frame(PUBLISH, publish_body(0, 1, [build_record(Record(b"x", id=b"first"))]))]
    for index in range(40):
        wrong = build_record(Record(b"x", id=b"no-%d" % index))
        frames.append(build_frame(PUBLISH, publish_body(0, 100 + index, [wrong])))
        right = build_record(Record(b"x", id=b"yes-%d" % (index % 20)))
        frames.append(build_frame(PUBLISH, publish_body(0, index + 2, [right])))
    data = b"".join(frames)
    for at in range(0, len(data), 4_096):
        side.read(0, data[at : at + 4_096])
    assert side.publishers[0].line.next == 42
    assert side.tails.records == 21
    assert side.tails.repeated == 20
