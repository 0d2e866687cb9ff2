"""The sequencer's native state against its plain-Python twin: bytes, answers, undo, and what a second one replays."""

from __future__ import annotations

import itertools
import random
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.model.errors import BY_NAME
from broker_native.channels import Channels
from broker_native.fanout import Fanout, Outbox, Subscription
from broker_native.lines import Line
from broker_native.published import PublishedEntries
from broker_native.publisher import CODES, Publisher
from broker_native.tails import Tails
from tests.reference import groups
from tests.reference import tails as twin
from tests.reference.frames import (
    EXPIRY,
    GONE,
    HEADERS,
    ID,
    KEY,
    NUMBER,
    PRIORITY,
    PUBLISHER,
    Published,
    Record,
    build_record,
    chunks_of,
    publish_body,
    published_of,
    records_of,
)
from tests.reference.journal import MemoryJournal

if TYPE_CHECKING:
    from collections.abc import Callable

EPHEMERAL, ACCEPTED, SYNCED = 1, 2, 3
PAYLOAD_MAX, HEADERS_MAX = 100_000, 300
CHUNK_HEADER, RECORD_HEADER = 56, 12
NAMES = {b"e.x": EPHEMERAL, b"e.y": EPHEMERAL, b"a.x": ACCEPTED, b"a.y": ACCEPTED, b"s.x": SYNCED, b"s.y": SYNCED}
SLOTS = dict(enumerate(NAMES))
PRODUCERS = [b"p" * 16, b"q" * 16, None]
"""The last one is a connection without a producer: its line ends with it."""


class Lines(dict[bytes, Line]):
    """Lines by producer, made when they are asked for."""

    def __missing__(self, producer: bytes) -> Line:
        line = self[producer] = Line(producer)
        return line


class Pair:
    """The native tails and their twin with three connections each, told the same and compared after each step."""

    def __init__(self, run: int = 1) -> None:
        self.native = Tails(run, 4770)
        self.native.begin_run(run, 1)
        self.twin = twin.Tails(run)
        self.lines = Lines()
        self.twin_lines: dict[bytes, twin.Line] = {}
        self.publishers = [
            Publisher(self.native, Line() if name is None else self.lines[name], None, HEADERS_MAX)
            for name in PRODUCERS
        ]
        self.twins = [
            twin.Publisher(self.twin, twin.Line() if name is None else self.twin_line(name), HEADERS_MAX)
            for name in PRODUCERS
        ]
        self.values: list[bytes] = []
        self.in_commit: tuple[bytes, int] | None = None
        self.number = self.chain = 0
        self.journal = MemoryJournal()
        self.journal.settled_group = 0
        for slot, name in SLOTS.items():
            self.load(name, NAMES[name])
            for publisher, other in zip(self.publishers, self.twins, strict=True):
                publisher.bind(slot, name)
                other.bind(slot, name)

    def twin_line(self, producer: bytes) -> twin.Line:
        return self.twin_lines.setdefault(producer, twin.Line(producer))

    def load(self, name: bytes, level: int) -> None:
        assert self.native.load(name, level, 2, PAYLOAD_MAX) is self.twin.load(name, level, 2, PAYLOAD_MAX)

    def set_now(self, now_us: int) -> None:
        self.native.now_us = self.twin.now_us = now_us

    def set_waits(self, waits: bool) -> None:
        self.native.accepted_waits = self.twin.accepted_waits = waits

    def publish(self, who: int, slot: int, records: list[Record], number: int | None = None) -> int:
        """Publish under the line's next number, or another one."""
        if number is None:
            number = self.twins[who].line.next
        return self.publish_body(who, publish_body(slot, number, [build_record(record) for record in records]))

    def publish_body(self, who: int, body: bytes) -> int:
        code = self.publishers[who].publish_frame(body)
        assert code == self.twins[who].publish_frame(body)
        self.check()
        return code

    def hold_early(self) -> None:
        self.native.hold_early()
        self.twin.hold_early()
        self.check()

    def close_turn(self) -> tuple[bytes | None, bytes | None]:
        values = self.native.close_turn()
        assert values == self.twin.close_turn()
        self.check_answers(self.native.take_turn_answers(), self.twin.take_turn_answers())
        self.check()
        return values

    def close_group(self, **more: Any) -> bytes:
        """Close the open group and put it in commit."""
        self.close_turn()
        fixed = {"term": 7, "writer": 9, "time_us": self.twin.now_us, **more}
        extra = fixed.pop("extra", ())
        packed = b"".join(map(groups.build_entry, extra))
        got = self.native.close_group(self.number, self.chain, **fixed, extra=packed, extra_count=len(extra))
        assert got == self.twin.close_group(self.number, self.chain, **fixed, extra=extra)
        self.check_answers(self.native.take_answers(), self.twin.take_answers())
        self.in_commit = got
        self.check()
        return got[0]

    def commit(self) -> bytes:
        """The group in commit is durable: apply it."""
        assert self.in_commit is not None
        value, self.in_commit = self.in_commit[0], None
        assert self.native.apply_group(value, self.lines.__getitem__) == self.twin.apply_group(value, self.twin_line)
        group = groups.parse_group(value)
        self.number, self.chain = group.number, group.chain
        self.values.append(value)
        self.journal.good.append(value)
        self.check()
        return value

    def group(self, **more: Any) -> groups.Group:
        """Close the open group and commit it."""
        self.close_group(**more)
        return groups.parse_group(self.commit())

    def undo(self, handed_over: bool = True) -> list[Published]:
        """The commit failed."""
        self.in_commit = None
        refused = self.native.undo(handed_over)
        self.check_answers(refused, self.twin.undo(handed_over))
        self.check()
        return [entry for _, answers in refused for entry in published_of(answers)]

    # .. channels come and go ..

    def bind(self, who: int, slot: int) -> None:
        """Name a channel for a number, as a connection does: looked up and loaded if need be."""
        name = SLOTS[slot]
        if self.native.leaving(name):
            return
        self.come(name)
        self.publishers[who].bind(slot, name)
        self.twins[who].bind(slot, name)
        self.check()

    def come(self, name: bytes) -> None:
        """Have a channel in memory that may have been evicted."""
        for missing in self.native.absent([name]):
            (entries,) = self.journal.resolve([missing])
            assert self.native.apply_entries(entries, self.lines.__getitem__) == []
            assert (entries == b"") is (missing not in self.twin.channels)
            self.twin.looked_up(missing)
        if not self.native.ready(name):
            self.load(name, NAMES[name])
        self.check()

    def unbind(self, who: int, slot: int) -> None:
        self.publishers[who].bind(slot, None)
        self.twins[who].bind(slot, None)
        self.check()

    def evict(self, settled_group: int, used_before_s: int) -> set[bytes]:
        """Look at every channel once or twice; exactly those go that nobody would miss."""
        before = set(self.native.names())
        # What could be looked up once always can.
        settled = self.journal.settled_group = max(self.journal.settled_group, min(settled_group, self.number))
        expected = {name for name in before if self.twin.evictable(name, settled, used_before_s)}
        self.native.evict(settled, used_before_s, 2 * self.native.slots)
        gone = before - set(self.native.names())
        assert gone == expected
        for name in gone:
            if not self.twin.channels[name].applied_level:
                self.twin.forget(name)
        self.check()
        return gone

    def trim(self, name: bytes, first: int) -> None:
        if name not in self.native.names():
            return
        assert self.native.trim(name, first, 2) is self.twin.trim(name, first, 2)
        self.check()

    def refuse(self, name: bytes, refused: bool) -> None:
        if name not in self.native.names():
            return
        self.native.refuse(name, refused)
        self.twin.refuse(name, refused)
        self.check()

    def drop(self, name: bytes) -> None:
        """Drop the channel if it may be dropped now."""
        if self.native.info(name) is None or self.native.leaving(name):
            return
        if self.native.held(name) or self.native.pending(name):
            with pytest.raises(RuntimeError, match="dropped"):
                self.native.drop(name)
            return
        assert self.native.drop(name) is self.twin.drop(name)
        self.check()

    def check_answers(self, got: list[tuple[Publisher, bytes]], expected: dict[twin.Publisher, bytes]) -> None:
        answers = {index: b"" for index in range(len(PRODUCERS))}
        for publisher, entries in got:
            assert isinstance(publisher, PublishedEntries)
            answers[self.publishers.index(publisher)] += entries
        assert answers == {index: expected.get(publisher, b"") for index, publisher in enumerate(self.twins)}

    def check(self) -> None:
        """Compare everything that can be asked, and the invariants of both."""
        here = set(self.native.names())
        assert len(self.native) == len(here)
        assert self.native.unborn == sum(not self.twin.channels[name].applied_level for name in here)
        assert self.native.stored == sum(bool(channel.applied_level) for channel in self.twin.channels.values())
        for name in NAMES:
            if name not in here:
                # Evicted, and then it is stored, or known nowhere.
                assert self.native.info(name) is None
                assert name not in self.twin.channels or self.twin.channels[name].applied_level
                continue
            assert self.native.info(name) == self.twin.info(name), name
            channel = self.twin.channels[name]
            assert self.native.held(name) is (channel.holders > 0)
            assert self.native.uses(name) == (channel.holders, 0)
            assert self.native.leaving(name) is channel.leaving
            assert self.native.refused(name) is channel.refused
            assert channel.applied_next <= channel.closed_next <= channel.next or channel.level == EPHEMERAL
            assert channel.seen_next <= channel.next
        assert b"".join(self.native.early_values) == b"".join(self.twin.early)
        assert self.native.early_chunks == len(self.twin.early)
        assert self.native.group_number == self.twin.group_number
        for publisher, other in zip(self.publishers, self.twins, strict=True):
            for field in ("next", "closed_next", "applied_next", "open_first", "commit_first"):
                assert getattr(publisher.line, field) == getattr(other.line, field), field

    def check_replay(self) -> None:
        """A second one that applies the committed groups arrives at the same applied state."""
        replayed, lines = Tails(1, 1234), Lines()
        for value in self.values:
            replayed.apply_group(value, lines.__getitem__)
        for name in NAMES:
            channel = self.twin.channels.get(name)
            if channel is None or not channel.applied_level:
                assert replayed.info(name) is None
                continue
            after = channel.applied_next
            epoch = channel.epochs[-1][0]
            assert replayed.info(name) == (
                channel.stored_id, channel.applied_level, epoch, channel.first, after, after, after, channel.epochs,
            )  # fmt: skip
        for producer, line in self.lines.items():
            last = line.applied_next - 1
            assert lines[producer].applied_next == last + 1
            first = max(1, last - twin.LINE_WINDOW + 1)
            assert lines[producer].lookup(first, last + 1 - first) == line.lookup(first, last + 1 - first)


def numbers_of(found: list[tuple[int, int, int, int]]) -> dict[int, tuple[int, int]]:
    """Return number → (channel, sequence) of a lookup, (0, 0) for one that has no place."""
    return {
        number + step: (channel, first + step if channel else 0)
        for channel, number, first, count in found
        for step in range(count)
    }


# --- Against the twin ----------------------------------------------------------------------------------------------

# Sizes around a full chunk: two of the middle ones fill one to the byte.
sizes = st.sampled_from([0, 1, 100, 32_728, 32_729, 65_468, 65_469, 70_000])
some_records = st.builds(
    Record,
    payload=sizes.map(bytes),
    priority=st.none() | st.integers(0, 3),
    expiry_s=st.none() | st.sampled_from([1, 60, 2**32 - 1]),
    key=st.none() | st.sampled_from([b"k", b"k" * 255]),
    headers=st.none() | st.sampled_from([b"\x80", b"h" * HEADERS_MAX]),
)
small_records = st.just(Record(b"x"))
publishes = st.tuples(
    st.just("publish"),
    st.integers(0, 2),
    st.integers(0, len(SLOTS) - 1),
    st.lists(some_records | small_records, min_size=1, max_size=3),
)
others = st.sampled_from(
    ["turn", "turn", "hold", "close", "commit", "commit", "fail", "unknown", "wait", "no wait", "later"]
)
steps = st.lists(publishes | st.tuples(others), max_size=40)


def take_step(pair: Pair, step: tuple[Any, ...]) -> None:
    match step:
        case "publish", who, slot, records:
            assert pair.publish(who, slot, records) == 0
        case ("turn",):
            pair.close_turn()
        case ("hold",):
            pair.hold_early()
        case ("close",) if pair.in_commit is None:
            pair.close_group()
        case ("commit",) if pair.in_commit is not None:
            pair.commit()
        case ("fail" | "unknown" as how,) if pair.in_commit is not None:
            pair.undo(how == "unknown")
            pair.group(flags=1)
        case ("wait" | "no wait" as how,):
            pair.set_waits(how == "wait")
        case ("later",):
            pair.set_now(pair.twin.now_us + 123_456)


@settings(max_examples=400, deadline=None)
@given(steps=steps)
def test_same_as_twin(steps: list[tuple[Any, ...]]) -> None:
    pair = Pair()
    pair.set_now(1_700_000_000_000_000)
    for step in steps:
        take_step(pair, step)
    if pair.in_commit is not None:
        pair.commit()
    pair.check_replay()


WEIGHTS = {
    "publish": 30, "bind": 6, "unbind": 6, "leave": 6, "everybody leaves": 2, "turn": 8, "close": 8, "commit": 8,
    "fail": 1.5, "unknown": 1, "wait": 1, "no wait": 2, "later": 3, "settle": 4, "evict": 10, "trim": 6, "drop": 8,
    "refuse": 3, "take": 3,
}  # fmt: skip


def lively_step(chance: random.Random) -> tuple[Any, ...]:
    """Draw one step of a life in which channels come and go."""
    (kind,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
    slot = chance.randrange(len(SLOTS))
    match kind:
        case "publish":
            return kind, chance.randrange(3), slot, [Record(b"x")] * chance.randint(1, 3)
        case "bind" | "unbind" | "trim" | "drop" | "leave" | "refuse" | "take":
            return kind, chance.randrange(3), slot
        case "evict":
            return kind, chance.choice([0, 0, 1, 9]), chance.choice([0, 1, 1, 1])
    return (kind,)


def take_lively_step(pair: Pair, step: tuple[Any, ...]) -> None:
    match step:
        case "publish", who, slot, _ if pair.twins[who].slots[slot] is None:
            pair.bind(who, slot)
        case "publish", who, slot, records if pair.twin.channels[SLOTS[slot]].refused:
            assert pair.publish(who, slot, records) in (0, BY_NAME["LIMIT"].code)
        case "bind", who, slot:
            pair.bind(who, slot)
        case "unbind", who, slot:
            pair.unbind(who, slot)
        case "leave", _, slot:
            for who in range(3):
                pair.unbind(who, slot)
        case ("everybody leaves",):
            for who, slot in itertools.product(range(3), SLOTS):
                pair.unbind(who, slot)
        case ("settle",):
            for _ in range(2):
                if pair.in_commit is not None:
                    pair.commit()
                pair.close_group()
            pair.commit()
        case "trim", back, slot:
            name = SLOTS[slot]
            if name in pair.twin.channels:
                pair.trim(name, max(pair.twin.channels[name].next - back, 0))
        case "drop", _, slot:
            pair.drop(SLOTS[slot])
        case "refuse" | "take" as what, _, slot:
            pair.refuse(SLOTS[slot], what == "refuse")
        case "evict", back, later:
            pair.evict(max(pair.number - back, 0) if back < 9 else 2**63, pair.twin.now_s + later)
        case _:
            take_step(pair, step)


def live(seed: int) -> None:
    chance, pair = random.Random(seed), Pair()
    pair.set_now(1_700_000_000_000_000)
    for _ in range(150):
        take_lively_step(pair, lively_step(chance))
    if pair.in_commit is not None:
        pair.commit()
    for name in NAMES:
        if not pair.native.leaving(name):
            pair.come(name)
    pair.check_replay()


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_what_was_evicted_comes_back_as_it_was(first: int) -> None:
    for seed in range(first, first + 50):
        try:
            live(seed)
        except BaseException as failure:
            failure.add_note(f"seed {seed}: live({seed})")
            raise


# --- Records -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 2, 4])
@pytest.mark.parametrize("payload", [b"", b"p", bytes(range(256))])
def test_every_combination_of_flags_is_carried(slot: int, payload: bytes) -> None:
    fields: dict[str, list[Any]] = {
        "priority": [None, 0, 3], "expiry_s": [None, 1, 2**32 - 1], "key": [None, b"k", b"k" * 255],
        "headers": [None, b"\x80", b"h" * HEADERS_MAX],
    }  # fmt: skip
    records = [
        Record(payload, **dict(zip(fields, values, strict=True))) for values in itertools.product(*fields.values())
    ]
    pair = Pair()
    pair.set_now(5_000_000)
    assert pair.publish(0, slot, records) == 0
    ephemeral, early = pair.close_turn()
    chunks = list(pair.group().chunks) if ephemeral is None else chunks_of(ephemeral)
    assert early is None or chunks == chunks_of(early)
    assert [record for chunk in chunks for record in records_of(chunk)] == records
    assert {chunk.expiry_s for chunk in chunks} == {6}, "the earliest one: 5 s after the epoch and 1 s to live"


def test_time_of_records_counts_from_the_chunks() -> None:
    pair = Pair()
    pair.set_now(1_000)
    pair.publish(0, 4, [Record(b"a", time_us=99)])
    pair.set_now(1_007)
    pair.publish(0, 4, [Record(b"b"), Record(b"c")])
    (chunk,) = pair.group().chunks
    assert chunk.time_us == 1_000
    assert [record.time_us for record in records_of(chunk)] == [0, 7, 7], "what a client says of time is ignored"


def good(**more: Any) -> bytes:
    return build_record(Record(b"payload", **more))


MALFORMED: dict[str, tuple[bytes, str]] = {
    "no header": (b"", "INVALID_RECORD"),
    "a header that is cut": (publish_body(4, 1, [good()])[:15], "INVALID_RECORD"),
    "no records": (publish_body(4, 1, []), "INVALID_RECORD"),
    "no records though there are bytes": (publish_body(4, 1, [good()], count=0), "INVALID_RECORD"),
    "more records than bytes": (publish_body(4, 1, [good()], count=2), "INVALID_RECORD"),
    "more records than may be": (publish_body(4, 1, [good()], count=65_536), "INVALID_RECORD"),
    "bytes behind the last record": (publish_body(4, 1, [good(), b"\0"], count=1), "INVALID_RECORD"),
    "a record's header that is cut": (publish_body(4, 1, [good()[:11]]), "INVALID_RECORD"),
    "a size below a header": (publish_body(4, 1, [build_record(Record(), size=11)]), "INVALID_RECORD"),
    "a size of nothing": (publish_body(4, 1, [build_record(Record(), size=0)]), "INVALID_RECORD"),
    "a size past the end": (publish_body(4, 1, [build_record(Record(), size=13)]), "INVALID_RECORD"),
    "the largest size": (publish_body(4, 1, [build_record(Record(), size=2**32 - 1)]), "INVALID_RECORD"),
    "reserved bits": (publish_body(4, 1, [build_record(Record(), reserved=1)]), "INVALID_RECORD"),
    "a publisher": (publish_body(4, 1, [good(publisher=b"me")]), "INVALID_RECORD"),
    "a number": (publish_body(4, 1, [good(number=1)]), "INVALID_RECORD"),
    "gone": (publish_body(4, 1, [build_record(Record(gone=(1, 1)))]), "INVALID_RECORD"),
    "a priority past the last": (publish_body(4, 1, [good(priority=4)]), "INVALID_RECORD"),
    "a priority that is cut": (publish_body(4, 1, [build_record(Record(), flags=4)]), "INVALID_RECORD"),
    "an expiry of nothing": (publish_body(4, 1, [good(expiry_s=0)]), "INVALID_RECORD"),
    "an expiry that is cut": (publish_body(4, 1, [build_record(Record(b"123"), flags=8)]), "INVALID_RECORD"),
    "an expiry that is cut, second": (publish_body(4, 1, [build_record(Record(b"\1234"), flags=12)]), "INVALID_RECORD"),
    "an empty key": (publish_body(4, 1, [good(key=b"")]), "INVALID_RECORD"),
    "a long key": (publish_body(4, 1, [good(key=b"k" * 256)]), "INVALID_RECORD"),
    "a key's size that is cut": (publish_body(4, 1, [build_record(Record(b"1"), flags=16)]), "INVALID_RECORD"),
    "a key that is cut": (publish_body(4, 1, [build_record(Record(b"\3\0ab"), flags=16)]), "INVALID_RECORD"),
    "empty headers": (publish_body(4, 1, [good(headers=b"")]), "INVALID_RECORD"),
    "long headers": (publish_body(4, 1, [good(headers=b"h" * (HEADERS_MAX + 1))]), "HEADERS_TOO_LARGE"),
    "a headers' size that is cut": (publish_body(4, 1, [build_record(Record(b"1"), flags=32)]), "INVALID_RECORD"),
    "headers that are cut": (publish_body(4, 1, [build_record(Record(b"\3\0ab"), flags=32)]), "INVALID_RECORD"),
    "an empty id": (publish_body(4, 1, [good(id=b"")]), "INVALID_ID"),
    "a long id": (publish_body(4, 1, [good(id=b"i" * 65)]), "INVALID_ID"),
    "an id's size that is cut": (publish_body(4, 1, [build_record(Record(), flags=64)]), "INVALID_RECORD"),
    "an id that is cut": (publish_body(4, 1, [build_record(Record(b"\3ab"), flags=64)]), "INVALID_RECORD"),
    "an id in an ephemeral channel": (publish_body(0, 1, [good(id=b"i")]), "NOT_STORED"),
    "a large payload": (publish_body(4, 1, [build_record(Record(bytes(PAYLOAD_MAX + 1)))]), "PAYLOAD_TOO_LARGE"),
    "a channel without a name": (publish_body(99, 1, [good()]), "INVALID_CHANNEL"),
    "the last channel number": (publish_body(2**32 - 1, 1, [good()]), "INVALID_CHANNEL"),
    "a number past the next": (publish_body(4, 2, [good()]), "NUMBER_GAP"),
    "number 0": (publish_body(4, 0, [good()]), "NUMBER_GAP"),
    "the last number": (publish_body(4, 2**64 - 1, [good()]), "NUMBER_GAP"),
}  # fmt: skip
MALFORMED |= {
    f"unknown flag {1 << bit:#x}": (
        publish_body(4, 1, [build_record(Record(bytes(20)), flags=1 << bit)]),
        "INVALID_RECORD",
    )
    for bit in range(16)
    if 1 << bit not in (PRIORITY, EXPIRY, KEY, HEADERS, ID)
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_is_refused_whole(kind: str) -> None:
    body, name = MALFORMED[kind]
    pair = Pair()
    before = [pair.native.info(channel) for channel in NAMES]
    assert pair.publish_body(0, body) == BY_NAME[name].code
    assert [pair.native.info(channel) for channel in NAMES] == before
    assert pair.native.group_empty
    assert (pair.native.records, pair.native.record_bytes, pair.native.turn_bytes) == (0, 0, 0)
    assert pair.publish(0, 4, [Record(b"next")]) == 0, "the line is where it was"


def test_bad_record_behind_good_ones_refuses_them_all() -> None:
    pair = Pair()
    body = publish_body(4, 1, [good(), good(), good(priority=4)])
    assert pair.publish_body(0, body) == BY_NAME["INVALID_RECORD"].code
    assert pair.native.group_empty


@given(data=st.binary(max_size=200), count=st.integers(0, 5))
def test_any_bytes_are_judged_as_the_twin_does(data: bytes, count: int) -> None:
    Pair().publish_body(0, publish_body(4, 1, [data], count=count))


@given(st.data())
def test_a_damaged_record_is_judged_as_the_twin_does(data: st.DataObject) -> None:
    body = bytearray(
        publish_body(4, 1, [good(priority=1, expiry_s=9, key=b"key", headers=b"\x81\xa1k\1"), good(key=b"x")])
    )
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(16, len(body) - 1))] = data.draw(st.integers(0, 255))
    Pair().publish_body(0, bytes(body))


def test_limits_are_those_of_the_channel_and_the_connection() -> None:
    pair = Pair()
    assert pair.publish(0, 4, [Record(bytes(PAYLOAD_MAX), headers=b"h" * HEADERS_MAX, key=b"k" * 255)]) == 0


def test_a_channel_that_was_refused_takes_no_publish() -> None:
    pair = Pair()
    pair.publishers[0].bind(7, None)
    pair.twins[0].bind(7, None)
    assert pair.publish(0, 7, [Record()]) == BY_NAME["INVALID_CHANNEL"].code
    with pytest.raises(KeyError):
        pair.publishers[0].bind(7, b"nobody.loaded")
    with pytest.raises(ValueError, match="channel number: got 16777216"):
        pair.publishers[0].bind(1 << 24, b"s.x")
    assert [pair.publishers[0].level_of(slot) for slot in (0, 2, 4, 7, 99)] == [EPHEMERAL, ACCEPTED, SYNCED, 0, 0]


def test_codes_are_the_registrys() -> None:
    codes = dict(CODES)
    assert (codes.pop("DUPLICATE"), codes.pop("IDS_ABSENT")) == (1, 2)
    assert codes == {name: BY_NAME[name].code for name in codes}


# --- Chunks --------------------------------------------------------------------------------------------------------


def filled(size: int) -> Record:
    """A record of `size` bytes in all."""
    return Record(bytes(size - RECORD_HEADER))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([65_480 - 1], [1]),
        ([65_480], [1]),
        ([65_480 + 1], [1]),
        ([65_480 - 12, 12], [2]),
        ([65_480 - 12, 13], [1, 1]),
        ([65_480, 12], [1, 1]),
        ([12, 65_480 - 12, 12], [2, 1]),
        ([100_000], [1]),
        ([100_000, 12, 100_000, 12, 12], [1, 1, 1, 2]),
        ([12, 100_000, 12], [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("slot", [0, 2, 4])
def test_a_chunk_closes_at_65536_bytes(slot: int, sizes: list[int], expected: list[int]) -> None:
    pair = Pair()
    assert CHUNK_HEADER + 65_480 == 65_536
    pair.publish(0, slot, [filled(size) for size in sizes])
    ephemeral, _ = pair.close_turn()
    chunks = list(pair.group().chunks) if ephemeral is None else chunks_of(ephemeral)
    assert [chunk.count for chunk in chunks] == expected
    assert [chunk.first for chunk in chunks] == [1, *itertools.accumulate(expected, initial=1)][1:-1]
    assert [len(record.payload) for chunk in chunks for record in records_of(chunk)] == [
        size - RECORD_HEADER for size in sizes
    ]


def test_checksum_of_each_chunk_is_proved_by_its_bytes() -> None:
    pair = Pair()
    for slot in SLOTS:
        pair.publish(0, slot, [filled(40_000), filled(40_000), Record(b"x")])
    ephemeral, early = pair.close_turn()
    value = pair.close_group()
    for chunks in (ephemeral, early, value[groups.GROUP_HEADER.size + struct.unpack_from("<I", value, 56)[0] :]):
        assert chunks is not None
        assert len(chunks_of(chunks)) >= 4
        broken = bytearray(chunks)
        broken[-1] ^= 1
        with pytest.raises(groups.Malformed):
            chunks_of(bytes(broken))


def test_full_chunks_of_a_group_keep_each_channels_order() -> None:
    pair = Pair()
    for round_ in range(4):
        for slot in (4, 5):
            pair.publish(0, slot, [filled(40_000)])
            pair.set_now(round_ * 10 + slot)
    chunks = pair.group().chunks
    for channel in (1, 2):
        assert [chunk.first for chunk in chunks if chunk.channel == channel] == [1, 2, 3, 4]


# --- Classes: what leaves when -------------------------------------------------------------------------------------


def test_ephemeral_leaves_with_the_turn_and_is_never_journaled() -> None:
    pair = Pair()
    pair.publish(0, 0, [Record(b"typing")])
    ephemeral, early = pair.close_turn()
    assert early is None
    assert ephemeral is not None
    (chunk,) = chunks_of(ephemeral)
    assert (chunk.channel, chunk.epoch, chunk.first) == (1 << 62, 1 << 40 | 1 << 39 | 1, 1)
    assert pair.native.group_empty
    assert pair.close_turn() == (None, None)


def test_accepted_leaves_early_and_goes_first_into_its_group() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record(b"synced")])
    pair.publish(0, 2, [Record(b"one")])
    _, first = pair.close_turn()
    pair.publish(0, 3, [Record(b"two")])
    _, second = pair.close_turn()
    pair.publish(0, 2, [Record(b"three")])
    assert first is not None
    assert second is not None
    value = pair.close_group()
    assert pair.in_commit == (value, 3), "three chunks were delivered before the commit"
    chunks = groups.parse_group(value).chunks
    assert [records_of(chunk)[0].payload for chunk in chunks] == [b"one", b"two", b"three", b"synced"]
    assert value.find(first + second) > 0, "the very bytes that readers have"


def test_accepted_that_waits_keeps_its_order_until_it_has_caught_up() -> None:
    pair = Pair()
    pair.publish(0, 2, [Record(b"early")])
    pair.close_turn()
    pair.set_waits(True)
    pair.publish(0, 2, [Record(b"waits")])
    pair.set_waits(False)
    pair.publish(0, 2, [Record(b"must wait behind it")])
    assert pair.close_turn() == (None, None)
    pair.close_group()
    pair.publish(0, 2, [Record(b"and so must this one")])
    assert pair.close_turn() == (None, None)
    pair.commit()
    pair.close_group()
    pair.commit()
    pair.publish(0, 2, [Record(b"early again")])
    _, early = pair.close_turn()
    assert early is not None
    assert chunks_of(early)[0].first == 5


def test_early_chunks_that_are_held_wait_with_their_answers() -> None:
    pair = Pair()
    pair.publish(0, 2, [Record(b"seen")])
    pair.close_turn()
    for slot, payload in ((0, b"ephemeral"), (2, b"a" * 70_000), (2, b"b"), (4, b"synced")):
        pair.publish(0, slot, [Record(payload)])
    pair.hold_early()
    pair.hold_early()
    pair.publish(0, 2, [Record(b"c")])
    ephemeral, early = pair.native.close_turn()
    assert (ephemeral, early) == pair.twin.close_turn()
    assert ephemeral is not None
    assert early is None
    (at_once,) = [answers for _, answers in pair.native.take_turn_answers()]
    assert [entry.level for entry in published_of(at_once)] == [1], "who waits for nothing is answered all the same"
    pair.twin.take_turn_answers()
    value, delivered = pair.native.close_group(0, 0, 0, 0, 0)
    assert (value, delivered) == pair.twin.close_group(0, 0, 0, 0, 0)
    assert delivered == 1
    payloads = [record.payload for chunk in groups.parse_group(value).chunks for record in records_of(chunk)]
    assert payloads == [b"seen", b"a" * 70_000, b"synced", b"b", b"c"]
    (later,) = [answers for _, answers in pair.native.take_answers()]
    assert sorted((entry.number, entry.count) for entry in published_of(later)) == [(3, 2), (5, 1), (6, 1)]


def test_accepted_records_wait_from_the_first_read_after_their_time() -> None:
    tails = Tails(1, 4770)
    tails.begin_read(1 << 63)
    assert not tails.accepted_waits, "nothing is uncommitted"
    tails.early_until_us = 100
    for now_us, waits in ((99, False), (100, False), (101, True)):
        tails.begin_read(now_us)
        assert (tails.now_us, tails.accepted_waits) == (now_us, waits)


def test_levels_in_answers() -> None:
    pair = Pair()
    for slot in (0, 2, 4):
        pair.publish(0, slot, [Record()])
    pair.native.close_turn()
    ((_, answers),) = pair.native.take_turn_answers()
    assert [(entry.number, entry.level) for entry in published_of(answers)] == [(1, EPHEMERAL), (2, ACCEPTED)]
    pair.native.close_group(0, 0, 0, 0, 0)
    ((_, answers),) = pair.native.take_answers()
    assert [(entry.number, entry.level) for entry in published_of(answers)] == [(3, SYNCED)]


# --- Answers -------------------------------------------------------------------------------------------------------


def test_answers_are_one_entry_where_they_go_on() -> None:
    pair = Pair()
    for slot, count in ((4, 2), (4, 3), (5, 1), (4, 1), (4, 1)):
        pair.publish(0, slot, [Record()] * count)
    pair.publish(1, 5, [Record()])
    pair.publish(0, 5, [Record()])
    pair.native.close_turn()
    pair.native.close_group(0, 0, 0, 0, 0)
    answers = {publisher: published_of(entries) for publisher, entries in pair.native.take_answers()}
    assert [(entry.number, entry.slot, entry.first, entry.count) for entry in answers[pair.publishers[0]]] == [
        (1, 4, 1, 5),
        (6, 5, 1, 1),
        (7, 4, 6, 2),
        (9, 5, 3, 1),  # sequence 2 is another producer's
    ]
    assert [(entry.number, entry.first) for entry in answers[pair.publishers[1]]] == [(1, 2)]


def test_figures_count_what_was_taken() -> None:
    pair = Pair()
    body = publish_body(4, 1, [good(), good()])
    pair.publish_body(0, body)
    assert (pair.native.records, pair.native.record_bytes) == (2, len(body) - 16)
    assert (pair.native.turn_bytes, pair.native.group_bytes) == (len(body), len(body))
    pair.publish_body(0, publish_body(0, 3, [good()]))
    assert pair.native.group_bytes == len(body), "ephemeral records are no part of the group"
    pair.close_turn()
    assert (pair.native.turn_bytes, pair.native.group_bytes) == (0, len(body))
    pair.close_group()
    assert pair.native.group_bytes == 0


# --- Numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "count", "name"),
    [(1, 3, "DUPLICATE"), (1, 5, "DUPLICATE"), (5, 1, "DUPLICATE"), (5, 2, "NUMBER_OVERLAP"), (7, 1, "NUMBER_GAP")],
)
def test_numbers_out_of_line(number: int, count: int, name: str) -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()] * 5)
    assert pair.publish(0, 4, [Record()] * count, number) == CODES[name]
    assert pair.native.info(b"s.x")[5] == 6  # type: ignore[index]


def test_storage_that_refuses_takes_ephemeral_records_and_answers_duplicates() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.group()
    pair.native.refuse_code = pair.twin.refuse_code = 1008
    assert pair.publish(0, 4, [Record()]) == 1008
    assert pair.publish(0, 2, [Record()]) == 1008
    assert pair.publish(0, 4, [Record()], 9) == 1008, "which number comes next may not be known either"
    assert pair.publish(0, 4, [Record()], 1) == CODES["DUPLICATE"]
    assert pair.publish(0, 0, [Record()]) == 0


@pytest.mark.parametrize("back", [0, 1, 1022, 1023, 1024, 1025, 1500])
def test_a_line_knows_the_places_of_its_last_1024_numbers(back: int) -> None:
    pair = Pair()
    expected = {}
    for number in range(1, 2001):  # a run for each number: the channels take turns
        assert pair.publish(0, 4 + number % 2, [Record()]) == 0
        expected[number] = (2 - number % 2, (number + 1) // 2)
        if number % 300 == 0:
            pair.group()
    pair.group()
    number = 2000 - back
    line = pair.lines[b"p" * 16]
    ((channel, at, first, count),) = line.lookup(number, 1)
    assert (at, count) == (number, 1)
    if back < 1024:
        place = pair.twin_lines[b"p" * 16].place_of(number)
        assert (channel, first) == place == (pair.native.info(SLOTS[4 + number % 2])[0], expected[number][1])  # type: ignore[index]
    elif channel:
        # What is still known beyond the window is true, too.
        assert first == expected[number][1]
    pair.check_replay()


def test_one_group_with_more_runs_than_a_line_keeps() -> None:
    pair = Pair()
    for number in range(10_000):
        pair.publishers[0].publish_frame(publish_body(4 + number % 2, number + 1, [good()]))
        pair.twins[0].publish_frame(publish_body(4 + number % 2, number + 1, [good()]))
    (entry,) = (entry for entry in pair.group().entries if entry.kind == groups.LINE)
    _, number, count, runs, _ = groups.LINE_BODY.unpack_from(entry.body)
    assert (number, count, runs) == (1, 10_000, 1024)


def test_lookup_names_what_it_does_not_know() -> None:
    line = Line(b"p" * 16)
    tails = Tails(1, 1)
    entry = groups.line_entry(b"p" * 16, 11, 10, [(7, 100, 3), (0, 5, 2), (8, 50, 2)])
    tails.apply_entries(groups.build_entry(entry), lambda _: line)
    assert line.lookup(10, 12) == [
        (0, 10, 0, 4),  # never known: numbers 11 to 13 are beyond what the entry tells
        (7, 14, 100, 3),
        (0, 17, 0, 2),  # ephemeral
        (8, 19, 50, 2),
        (0, 21, 0, 1),
    ]
    assert line.lookup(15, 1) == [(7, 15, 101, 1)]
    assert (line.next, line.closed_next, line.applied_next) == (21, 21, 21)


def test_a_snapshot_replaces_what_a_line_knew() -> None:
    line = Line(b"p" * 16)
    tails = Tails(1, 1)
    for entry in (
        groups.line_entry(b"p" * 16, 1, 5, [(7, 1, 5)]),
        groups.line_entry(b"p" * 16, 6, 2, [(8, 1, 2)], flags=groups.SNAPSHOT),
    ):
        tails.apply_entries(groups.build_entry(entry), lambda _: line)
    assert line.lookup(4, 4) == [(0, 4, 0, 2), (8, 6, 1, 2)]


def test_a_connections_own_line_is_not_journaled() -> None:
    pair = Pair()
    pair.publish(2, 4, [Record()] * 3)
    assert [entry.kind for entry in pair.group().entries] == [groups.CHANNEL, groups.EPOCH]
    assert pair.publishers[2].line.lookup(1, 3) == [(0, 1, 0, 3)]


def test_ephemeral_numbers_are_journaled_with_the_next_group_of_their_line() -> None:
    pair = Pair()
    pair.publish(0, 0, [Record()] * 3)
    assert pair.native.group_empty
    pair.publish(0, 4, [Record()])
    pair.publish(0, 1, [Record()] * 2)
    pair.group()
    line = pair.lines[b"p" * 16]
    assert line.applied_next == 7
    assert numbers_of(line.lookup(1, 6)) == {number: (1, 1) if number == 4 else (0, 0) for number in range(1, 7)}


# --- Undo ----------------------------------------------------------------------------------------------------------


def test_undo_gives_numbers_and_sequences_that_nobody_saw_again() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record(b"kept")])
    pair.group()
    epoch = pair.native.info(b"s.x")[2]  # type: ignore[index]
    pair.publish(0, 4, [Record(b"in commit")] * 2)
    pair.close_group()
    pair.publish(0, 4, [Record(b"open")])
    refused = pair.undo()
    assert [(entry.number, entry.count) for entry in refused] == [(4, 1)], "what was closed is its group's to answer"
    assert pair.publishers[0].line.next == 2
    pair.group(flags=1)
    assert pair.publish(0, 4, [Record(b"again")]) == 0
    (chunk,) = pair.group().chunks
    assert (chunk.epoch, chunk.first) == (epoch, 2), "nobody saw another sequence 2"
    pair.check_replay()


def test_records_that_were_seen_and_lost_begin_a_new_epoch() -> None:
    pair = Pair()
    pair.publish(0, 2, [Record(b"stored")])
    old = pair.group().chunks[0].epoch
    pair.publish(0, 2, [Record(b"seen")])
    pair.close_turn()
    pair.close_group()
    pair.undo()
    pair.group(flags=1)
    pair.publish(0, 2, [Record(b"another")])
    (chunk,) = pair.group().chunks
    assert chunk.first == 2
    assert chunk.epoch > old
    assert pair.native.info(b"a.x")[7] == [(old, 1), (chunk.epoch, 2)]  # type: ignore[index]


def test_records_of_the_turn_fail_with_their_group_and_ephemeral_ones_do_not() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.close_group()
    pair.publish(0, 0, [Record(b"ephemeral")])
    pair.publish(0, 2, [Record(b"not yet delivered")])
    pair.publish(1, 0, [Record(b"ephemeral")])
    assert [(entry.number, entry.level) for entry in pair.undo()] == [(3, ACCEPTED)]
    ephemeral, early = pair.close_turn()
    assert ephemeral is not None
    assert early is None
    assert pair.native.info(b"a.x")[2] == 0, "its epoch is undone; nobody saw it"  # type: ignore[index]


def test_an_epoch_that_is_undone_is_drawn_again() -> None:
    """After a crash readers may know sequences of the old epoch, so nothing may bring that one back."""
    pair = Pair()
    pair.publish(0, 2, [Record(b"stored")])
    old = pair.group().chunks[0].epoch
    pair.native.mark_unclean(b"a.x")
    pair.twin.mark_unclean(b"a.x")
    pair.set_waits(True)
    pair.publish(0, 2, [Record(b"nobody sees it")])
    pair.close_group()
    pair.undo()
    pair.group(flags=1)
    pair.publish(0, 2, [Record(b"another")])
    (chunk,) = pair.group().chunks
    assert chunk.first == 2
    assert chunk.epoch > old


def test_a_channel_that_was_undone_is_announced_again_under_its_id() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.close_group()
    pair.publish(0, 5, [Record()])
    pair.undo()
    pair.group(flags=1)
    pair.publish(0, 5, [Record()])
    pair.publish(0, 4, [Record()])
    announced = [entry.body for entry in pair.group().entries if entry.kind == groups.CHANNEL]
    assert [struct.unpack_from("<Q", body)[0] for body in announced] == [2, 1]
    pair.check_replay()


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_failed_group_that_may_be_stored_still_counts_until_the_next_is(handed_over: bool) -> None:
    """A line that is told less might give the number of a stored record to another one."""
    pair = Pair()
    pair.publish(0, 4, [Record()] * 3)
    pair.close_group()
    pair.publish(0, 4, [Record()])
    pair.undo(handed_over)
    line = pair.publishers[0].line
    assert line.next == 1
    assert line.closed_next == (4 if handed_over else 1)
    pair.native.refuse_code = pair.twin.refuse_code = 1008
    codes = [pair.publish(0, 4, [Record()], number) for number in (1, 3, 4)]
    assert codes == [4001 if handed_over else 1008] * 2 + [1008]
    pair.native.refuse_code = pair.twin.refuse_code = 0
    pair.group(flags=1)
    assert line.closed_next == 1


def test_group_numbers_are_not_used_again() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.close_group()
    pair.undo()
    assert pair.group(flags=1).number == 3
    assert pair.values == [pair.values[-1]]


def test_a_line_that_is_only_open_goes_back_to_where_it_was() -> None:
    """The failed group was of another line, and of a third one that goes on in the open group."""
    pair = Pair()
    pair.publish(1, 4, [Record()])
    pair.group()
    pair.publish(0, 4, [Record()] * 2)
    pair.close_group()
    pair.publish(0, 4, [Record()])
    pair.publish(1, 5, [Record()] * 3)
    pair.publish(2, 0, [Record()])
    pair.undo()
    assert [publisher.line.next for publisher in pair.publishers] == [1, 2, 2]
    pair.group(flags=1)


def test_early_answers_of_the_turn_all_fail_with_their_group() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.close_group()
    pair.publish(0, 2, [Record(b"not yet delivered")])
    pair.publish(1, 0, [Record(b"ephemeral")])
    assert [(entry.number, entry.level) for entry in pair.undo()] == [(2, ACCEPTED)]
    assert [publisher for publisher, _ in pair.native.take_turn_answers()] == [pair.publishers[1]]


def test_more_full_chunks_than_there_was_room_for() -> None:
    """Of one channel and one group: they all go into it, in their order."""
    pair = Pair()
    for number in range(40):
        pair.publish(0, 4, [Record(bytes(65_000)), Record(b"%d" % number)])
    chunks = pair.group().chunks
    assert len(chunks) == 40
    assert [chunk.first for chunk in chunks] == sorted(chunk.first for chunk in chunks)
    pair.check_replay()


def test_a_group_with_anything_in_it_is_not_empty() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    assert not pair.native.group_empty
    pair.group()
    assert pair.native.group_empty
    pair.load(b"s.x", ACCEPTED)
    pair.native.mark_unclean(b"s.x")
    pair.twin.mark_unclean(b"s.x")
    pair.publish(0, 4, [Record()])
    assert not pair.native.group_empty


def test_one_group_in_commit_at_a_time_and_no_open_early_chunk() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.close_group()
    with pytest.raises(RuntimeError, match="in commit"):
        pair.native.close_group(0, 0, 0, 0, 0)
    pair.commit()
    pair.publish(0, 2, [Record()])
    with pytest.raises(RuntimeError, match="close_turn comes first"):
        pair.native.close_group(0, 0, 0, 0, 0)


# --- Replay --------------------------------------------------------------------------------------------------------


def test_an_empty_group_is_a_header() -> None:
    pair = Pair()
    assert pair.native.group_empty
    group = pair.group(flags=1, extra=(groups.run_entry(1, clean=True),))
    assert group == groups.Group(
        1, 0, entries=(groups.run_entry(1, clean=True),), term=7, writer=9, run=1, time_us=0, flags=1
    )


def test_entries_that_are_not_the_tails_own_come_back() -> None:
    tails = Tails(1, 1)
    entries = [groups.run_entry(3, clean=False), groups.close_entry(2), groups.Entry(900, b"abc", groups.IGNORABLE)]
    packed = b"".join(map(groups.build_entry, entries))
    expected = [(entry.kind, entry.flags, entry.body) for entry in entries]
    for buffer in (packed, bytearray(packed), memoryview(packed)):
        assert tails.apply_entries(buffer, Line) == expected
    assert len(tails) == 0


@pytest.mark.parametrize(
    "entries",
    [
        b"\0" * 7,
        struct.pack("<IHH", 7, 900, 1),
        struct.pack("<IHH", 9, 900, 1),
        struct.pack("<IHH", 8, groups.EPOCH, 0),
        struct.pack("<IHH", 20, groups.CHANNEL, 0) + bytes(12),
        groups.build_entry(groups.channel_entry(1, "name"))[:-1],
        struct.pack("<IHHQBBBB", 23, groups.CHANNEL, 0, 1, 3, 2, 4, 0) + b"nam",
        struct.pack("<IHHQBBBB", 21, groups.CHANNEL, 0, 0, 3, 2, 1, 0) + b"n",
        struct.pack("<IHHQBBBB", 21, groups.CHANNEL, 0, 1, 3, 2, 0, 0) + b"n",
        struct.pack("<IHHQBBBB", 21, groups.CHANNEL, 0, 1 << 62, 3, 2, 1, 0) + b"n",
        groups.build_entry(groups.epoch_entry(5, 1, 1)),
        groups.build_entry(groups.head_entry(5, 1, 1, 1)),
        groups.build_entry(groups.Entry(groups.LINE, bytes(39))),
        groups.build_entry(groups.Entry(groups.LINE, groups.LINE_BODY.pack(bytes(16), 1, 1, 1, 0))),
        groups.build_entry(groups.Entry(groups.LINE, groups.LINE_BODY.pack(bytes(16), 1, 1, 2**32 - 1, 0))),
    ],
)
def test_entries_that_make_no_sense_are_an_error(entries: bytes) -> None:
    with pytest.raises(ValueError, match=r"entry|channel|run"):
        Tails(1, 1).apply_entries(entries, Line)


@pytest.mark.parametrize("change", [(1, 0), (0, 1), (1, 1)])
def test_an_epoch_that_is_not_the_pending_one_is_an_error(change: tuple[int, int]) -> None:
    """Whoever decided it is not who applies it."""
    pair = Pair()
    pair.publish(0, 4, [Record()])
    value = pair.close_group()
    (mine,) = [entry for entry in groups.parse_group(value).entries if entry.kind == groups.EPOCH]
    channel, epoch, first = struct.unpack("<QQQ", mine.body)
    theirs = groups.epoch_entry(channel, epoch + change[0], first + change[1])
    with pytest.raises(ValueError, match=f"channel {channel}: applied epoch"):
        pair.native.apply_entries(groups.build_entry(theirs), Line)


def test_an_epoch_that_is_told_twice_is_one() -> None:
    """A sealed segment's delta says again what its groups said."""
    tails = Tails(1, 1)
    channel, epoch = groups.channel_entry(1, "name"), groups.epoch_entry(1, 77, 1)
    packed = b"".join(map(groups.build_entry, (channel, epoch, channel, epoch, groups.epoch_entry(1, 78, 5))))
    assert tails.apply_entries(packed, Line) == []
    info = tails.info(b"name")
    assert info is not None
    assert info[7] == [(77, 1), (78, 5)]


def test_a_group_with_a_chunk_of_nobody_is_an_error() -> None:
    value = groups.build_group(groups.Group(1, 0, chunks=(groups.chunk_of(1, 1, 1, [b"x"]),)))
    with pytest.raises(ValueError, match="unknown channel 1"):
        Tails(1, 1).apply_group(value, Line)


def test_heads_of_a_table_delta_are_the_state_that_its_groups_left() -> None:
    delta = [
        groups.channel_entry(1, "a.b", level=ACCEPTED, shard_tokens=3),
        groups.epoch_entry(1, 1 << 40 | 5, 1),
        groups.epoch_entry(1, 2 << 40 | 9, 11),
        groups.head_entry(1, 2 << 40 | 9, 20, 4),
        groups.head_entry(1, 2 << 40 | 9, 21, 1),  # a later segment that knows a lower bound only
    ]
    tails = Tails(1, 1)
    tails.apply_entries(b"".join(map(groups.build_entry, delta)), Line)
    epochs = [(1 << 40 | 5, 1), (2 << 40 | 9, 11)]
    assert tails.info(b"a.b") == (1, ACCEPTED, 2 << 40 | 9, 4, 21, 21, 21, epochs)
    assert not tails.ready(b"a.b")
    assert tails.load(b"a.b", ACCEPTED, 2, 100) is False
    assert tails.ready(b"a.b")
    assert (tails.name_of(1), tails.name_of(2), tails.name_of(0), tails.names()) == (b"a.b", None, None, [b"a.b"])


def test_records_go_on_behind_a_replayed_head() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record(b"1"), Record(b"2")])
    pair.group()
    again = Tails(1, 1)
    lines = Lines()
    again.apply_group(pair.values[0], lines.__getitem__)
    again.begin_run(2, 2)
    again.load(b"s.x", SYNCED, 2, PAYLOAD_MAX)
    publisher = Publisher(again, lines[b"p" * 16], None, HEADERS_MAX)
    publisher.bind(0, b"s.x")
    assert publisher.publish_frame(publish_body(0, 1, [good(), good()])) == CODES["DUPLICATE"]
    assert publisher.publish_frame(publish_body(0, 3, [good()])) == 0
    value, _ = again.close_group(1, pair.chain, 0, 0, 0)
    (chunk,) = groups.parse_group(value).chunks
    assert (chunk.channel, chunk.epoch, chunk.first) == (1, 1 << 40 | 1, 3)


# --- Policies ------------------------------------------------------------------------------------------------------


def test_a_new_level_is_journaled_with_the_next_record() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.group()
    pair.load(b"s.x", ACCEPTED)
    assert pair.native.group_empty
    pair.publish(0, 4, [Record()])
    (entry,) = (entry for entry in pair.group().entries if entry.kind == groups.CHANNEL)
    assert entry == groups.channel_entry(1, "s.x", level=ACCEPTED)
    pair.publish(0, 4, [Record()])
    assert groups.CHANNEL not in [entry.kind for entry in pair.group().entries]
    pair.check_replay()


def test_a_channel_that_was_synced_waits_until_the_journal_knows_that_it_is_accepted() -> None:
    """A start after a crash has only the journal to tell it whose readers may have seen more."""
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.group()
    pair.load(b"s.x", ACCEPTED)
    pair.publish(0, 4, [Record()])
    assert pair.close_turn() == (None, None)
    pair.group()
    pair.publish(0, 4, [Record()])
    assert pair.close_turn()[1] is not None


def test_there_and_back_between_stored_and_ephemeral() -> None:
    """A channel keeps its id in the journal, and each stay begins an epoch."""
    pair = Pair()
    pair.publish(0, 4, [Record(b"1"), Record(b"2")])
    first = pair.group().chunks[0]
    pair.load(b"s.x", EPHEMERAL)
    pair.publish(0, 4, [Record(b"3")])
    ephemeral, _ = pair.close_turn()
    assert ephemeral is not None
    (second,) = chunks_of(ephemeral)
    assert second.channel >= 1 << 62
    assert second.epoch != first.epoch
    pair.load(b"s.x", SYNCED)
    pair.publish(0, 4, [Record(b"3 again")])
    (third,) = pair.group().chunks
    assert third.channel == first.channel
    assert third.first == 3
    assert len({first.epoch, second.epoch, third.epoch}) == 3
    names = [pair.native.name_of(channel) for channel in (first.channel, second.channel)]
    assert names == [b"s.x", None], "what it was called in between is nobody's, for ever"
    pair.check_replay()


def test_an_ephemeral_channel_that_becomes_stored_begins_at_1() -> None:
    pair = Pair()
    pair.publish(0, 0, [Record(), Record()])
    pair.close_turn()
    pair.load(b"e.x", SYNCED)
    pair.publish(0, 0, [Record()])
    (chunk,) = pair.group().chunks
    assert (chunk.channel, chunk.first) == (1, 1)
    pair.check_replay()


@pytest.mark.parametrize("state", ["open", "delivered early", "in commit"])
def test_a_policy_changes_between_groups_only(state: str) -> None:
    pair = Pair()
    pair.publish(0, 2, [Record()])
    if state != "open":
        pair.close_turn()
    if state == "in commit":
        pair.close_group()
    with pytest.raises(RuntimeError, match="between groups"):
        pair.native.load(b"a.x", SYNCED, 2, PAYLOAD_MAX)


def test_an_ephemeral_channel_that_was_stored_begins_an_epoch_after_a_crash() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.group()
    pair.load(b"s.x", EPHEMERAL)
    epochs = []
    for _ in range(2):
        pair.publish(0, 4, [Record()])
        ephemeral, _ = pair.close_turn()
        assert ephemeral is not None
        epochs += [chunk.epoch for chunk in chunks_of(ephemeral)]
        pair.native.mark_unclean(b"s.x")
        pair.twin.mark_unclean(b"s.x")
    assert len(set(epochs)) == 2


def test_what_is_asked_of_a_channel_that_is_not_there() -> None:
    tails = Tails(1, 1)
    tails.mark_unclean(b"nobody")
    assert not tails.ready(b"nobody")
    assert tails.stored_id(b"nobody") == 0
    for channel in (0, 1, (1 << 62) - 1, 1 << 62, (1 << 64) - 1):
        assert tails.name_of(channel) is None
    assert tails.load(b"some", SYNCED, 2, 1)
    tails.mark_unclean(b"some")
    assert tails.ready(b"some")
    assert tails.stored_id(b"some") == 0
    publisher = Publisher(tails, Line(), None, 0)
    publisher.bind(0, b"some")
    assert publisher.publish_frame(publish_body(0, 1, [build_record(Record())])) == 0
    assert tails.stored_id(b"some") == 1
    assert tails.name_of(1) == b"some"


@pytest.mark.parametrize("name", [b"", b"n" * 256])
def test_names_have_a_size(name: bytes) -> None:
    with pytest.raises(ValueError, match="channel name"):
        Tails(1, 1).load(name, SYNCED, 2, 1)


@pytest.mark.parametrize("run", [0, 1 << 24])
def test_runs_have_a_range(run: int) -> None:
    with pytest.raises(ValueError, match="run: got"):
        Tails(run, 1)
    with pytest.raises(ValueError, match="run: got"):
        Tails(1, 1).begin_run(run, 1)


def test_many_channels_are_found_by_name_and_id() -> None:
    names = [b"room.%d" % index for index in range(5_000)]
    names += [b"n" * size for size in range(1, 256)]
    tails = Tails(1, 99)
    publisher = Publisher(tails, Line(), None, 0)
    for number, name in enumerate(names):
        assert tails.load(name, (EPHEMERAL, SYNCED)[number % 2], 2, 1)
        assert not tails.load(name, (EPHEMERAL, SYNCED)[number % 2], 2, 1)
        publisher.bind(0, name)
        assert publisher.publish_frame(publish_body(0, number + 1, [build_record(Record())])) == 0
    assert len(tails) == len(names)
    assert sorted(tails.names()) == sorted(names)
    for name in names:
        info = tails.info(name)
        assert info is not None
        assert tails.name_of(info[0]) == name
    assert tails.info(b"nobody") is None


# --- Eviction ------------------------------------------------------------------------------------------------------


def stored_entries(first: int, count: int) -> bytes:
    """What is stored of channels whose ids follow one another, as a look-up tells it."""
    return b"".join(
        groups.build_entry(entry)
        for channel in range(first, first + count)
        for entry in (
            groups.channel_entry(channel, f"chat.room.{channel:014d}"),
            groups.epoch_entry(channel, 1 << 40 | 1, 1),
            groups.head_entry(channel, 1 << 40 | 1, 9, 1),
        )
    )


def test_memory_of_channels_comes_and_goes() -> None:
    tails, count = Tails(1, 1), 50_000
    tails.begin_run(2, 10)
    empty = tails.memory_bytes
    for round_ in range(2):
        tails.apply_entries(stored_entries(1, count), Line)
        assert len(tails) == count
        assert tails.stored_id(b"chat.room.00000000000777") == 777
        assert (tails.memory_bytes - empty) / count <= 400
        assert tails.evict(9, 1, 2 * tails.slots) == count
        assert tails.evicted == count * (round_ + 1)
        assert tails.memory_bytes <= empty + (1 << 20)
    assert tails.stored == 0, "what was looked up was counted when it was stored"


def test_an_id_far_ahead_costs_nothing() -> None:
    tails = Tails(1, 1)
    empty = tails.memory_bytes
    tails.apply_entries(groups.build_entry(groups.channel_entry((1 << 62) - 2, "far")), Line)
    assert tails.name_of((1 << 62) - 2) == b"far"
    assert tails.id_next == (1 << 62) - 1
    assert tails.memory_bytes <= empty + 65_536
    with pytest.raises(ValueError, match="another channel"):
        tails.apply_entries(groups.build_entry(groups.channel_entry((1 << 62) - 2, "other")), Line)


def test_channels_alone_are_found_changed_and_freed() -> None:
    channels = Channels(1, 4770)
    assert channels.load(b"c.x", SYNCED, 2, 100) is True
    channels.apply_entries(groups.build_entry(groups.channel_entry(7, "c.y", SYNCED)), Line)
    assert (len(channels), channels.name_of(7), channels.unready([b"c.x", b"c.y"])) == (2, b"c.y", [1])
    assert channels.evict(0, 1, 2 * channels.slots) == 2
    assert channels.names() == []


def test_an_eviction_goes_on_where_it_stopped() -> None:
    tails = Tails(1, 1)
    for index in range(3_000):
        tails.load(b"room.%d" % index, SYNCED, 2, 10)
    tails.hold(b"room.7")
    freed, calls = 0, 0
    while len(tails) > 1:
        freed += tails.evict(0, 1, 100)
        calls += 1
    assert freed == 2_999
    assert calls <= 2 * tails.slots // 100 + 100
    assert tails.names() == [b"room.7"]
    tails.release(b"room.7")
    assert tails.evict(0, 1, 2 * tails.slots) == 1
    assert tails.evicted == 0, "none of them was stored"


@pytest.mark.parametrize(("trims", "first"), [((3,), 3), ((9,), 4), ((3, 2), 3), ((2, 1 << 60), 4)])
def test_a_trim_goes_no_further_than_the_head(trims: tuple[int, ...], first: int) -> None:
    """Sequences 1 to 3 are stored; whatever a trim says, the next record is not below the first."""
    entries = [groups.channel_entry(1, "s.x"), groups.epoch_entry(1, 77, 1), groups.head_entry(1, 77, 4, 1)]
    packed = b"".join(map(groups.build_entry, [*entries, *(groups.trim_entry(1, trim) for trim in trims)]))
    tails = Tails(1, 1)
    tails.apply_entries(packed, Line)
    info = tails.info(b"s.x")
    assert info is not None
    assert (info[3], info[4]) == (first, 4)


def test_holds_are_counted_and_end() -> None:
    tails = Tails(1, 1)
    tails.load(b"s.x", SYNCED, 2, 10)
    for use in (tails.hold, tails.hold, tails.release):
        use(b"s.x")
        assert tails.held(b"s.x")
    tails.release(b"s.x")
    assert not tails.held(b"s.x")
    for use in (tails.hold, tails.release):
        with pytest.raises(KeyError):
            use(b"nobody")
    with pytest.raises(KeyError):
        tails.release(b"s.x")
    assert not tails.held(b"nobody")
    assert not tails.pending(b"nobody")
    assert not tails.leaving(b"nobody")


def test_what_is_used_again_stays_for_a_while() -> None:
    tails = Tails(1, 1)
    tails.now_us = 100_000_000
    tails.load(b"s.x", SYNCED, 2, 10)
    tails.now_us = 105_000_000
    tails.hold(b"s.x")
    tails.release(b"s.x")
    assert tails.evict(0, 105, 2 * tails.slots) == 0
    assert tails.evict(0, 106, 2 * tails.slots) == 1


def test_a_publisher_lets_its_channels_go_when_it_ends() -> None:
    tails = Tails(1, 1)
    tails.load(b"s.x", SYNCED, 2, 10)
    publishers = [Publisher(tails, Line(), None, 0) for _ in range(2)]
    for publisher in publishers:
        for slot in range(20):
            publisher.bind(slot, b"s.x")
    publishers[0].leave()
    assert publishers[0].publish_frame(publish_body(0, 1, [build_record(Record())])) == twin.INVALID_CHANNEL
    assert tails.held(b"s.x")
    publishers.clear()
    del publisher
    assert not tails.held(b"s.x")


def test_a_dropped_name_is_nobodys_until_then_and_anothers_afterwards() -> None:
    pair = Pair()
    name, producer = b"s.x", 0
    pair.publish(producer, 4, [Record()])
    pair.group()
    for who in range(3):
        pair.unbind(who, 4)
    pair.drop(name)
    assert pair.native.leaving(name)
    assert not pair.native.ready(name)
    for refused in (pair.native.hold, pair.native.drop):
        with pytest.raises(KeyError):
            refused(name)
    with pytest.raises(KeyError):
        pair.publishers[0].bind(9, name)
    with pytest.raises(RuntimeError, match="between groups"):
        pair.native.load(name, SYNCED, 2, 1)
    assert not pair.native.trim(name, 2)
    pair.group()
    assert pair.native.info(name) is None
    assert pair.native.absent([name, b"s.never", name, b"s.never"]) == [b"s.never"], "nobody needs to look it up"
    assert pair.native.name_of(1) is None
    pair.bind(0, 4)
    pair.publish(producer, 4, [Record()])
    (chunk,) = pair.group().chunks
    assert (chunk.channel, chunk.first) == (2, 1), "an id is not given twice"
    pair.check_replay()


def test_a_dropped_name_is_looked_up_once_that_tells_of_the_drop() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.group()
    for who in range(3):
        pair.unbind(who, 4)
    pair.drop(b"s.x")
    pair.group()
    assert pair.native.stored == 0
    pair.native.evict(pair.number - 1, 1 << 31, 2 * pair.native.slots)
    assert pair.native.absent([b"s.x"]) == []
    pair.native.evict(pair.number, 1 << 31, 2 * pair.native.slots)
    assert pair.native.absent([b"s.x"]) == [b"s.x"]


def test_a_dropped_name_that_is_let_go_again_is_not_looked_up_either() -> None:
    """The name is loaded for somebody who publishes nothing, and dropped once more: there is no entry for that."""
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.group()
    pair.journal.settled_group = 1
    for who in range(3):
        pair.unbind(who, 4)
    pair.drop(b"s.x")
    pair.group()
    pair.load(b"s.x", SYNCED)
    assert not pair.native.drop(b"s.x")
    assert pair.native.info(b"s.x") is None
    assert pair.native.absent([b"s.x"]) == [], "a look-up would find what group 1 stored"
    pair.native.evict(1, 1 << 31, 2 * pair.native.slots)
    assert pair.native.absent([b"s.x"]) == []
    pair.native.evict(2, 1 << 31, 2 * pair.native.slots)
    assert pair.native.absent([b"s.x"]) == [b"s.x"]


def test_a_head_does_not_overtake_what_is_pending() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.group()
    pair.publish(0, 4, [Record()])
    with pytest.raises(ValueError, match="pending"):
        pair.native.apply_entries(groups.build_entry(groups.head_entry(1, 1 << 40 | 1, 2, 1)), Line)


def test_a_drop_of_what_is_in_use_is_an_error() -> None:
    pair = Pair()
    pair.publish(0, 4, [Record()])
    pair.group()
    with pytest.raises(ValueError, match="in use"):
        pair.native.apply_entries(groups.build_entry(groups.drop_entry(1)), Line)


def test_ephemeral_records_outlive_a_trim_that_failed() -> None:
    """What was stored of a channel that is ephemeral now may be trimmed; its records are not that group's."""
    pair = Pair()
    pair.publish(0, 4, [Record(), Record(), Record()])
    pair.group()
    pair.load(b"s.x", EPHEMERAL)
    pair.publish(0, 4, [Record()])
    pair.close_turn()
    pair.trim(b"s.x", 3)
    pair.close_group()
    pair.undo()
    pair.group(flags=1)
    pair.publish(0, 4, [Record()])
    ephemeral, _ = pair.close_turn()
    assert ephemeral is not None
    assert chunks_of(ephemeral)[0].first == 5
    pair.trim(b"s.x", 3)
    pair.group()
    info = pair.native.info(b"s.x")
    assert info is not None
    assert info[3] == 3


def test_ephemeral_records_of_a_stored_channel_keep_it_in_memory() -> None:
    """Nobody else knows that readers saw sequences which a stored record gets again; with one of those it is known."""
    pair = Pair()
    for who in range(3):
        pair.unbind(who, 4)
    pair.bind(0, 4)
    pair.publish(0, 4, [Record()])
    pair.group()
    pair.load(b"s.x", EPHEMERAL)
    pair.publish(0, 4, [Record()])
    pair.close_turn()
    pair.unbind(0, 4)
    assert b"s.x" not in pair.evict(pair.number, 1 << 31)
    pair.load(b"s.x", SYNCED)
    assert b"s.x" not in pair.evict(pair.number, 1 << 31)
    pair.bind(0, 4)
    pair.publish(0, 4, [Record()])
    pair.group()
    pair.unbind(0, 4)
    assert b"s.x" in pair.evict(pair.number, 1 << 31)
    pair.bind(0, 4)
    assert pair.native.info(b"s.x") == pair.twin.info(b"s.x")


def test_profiles_are_counted() -> None:
    pair = Pair()
    tails = pair.native
    tails.load(b"new", SYNCED, 2, 10, 3)
    assert [tails.count(profile) for profile in (3, 4)] == [1, 0]
    publisher = Publisher(tails, Line(), None, 0)
    publisher.bind(0, b"new")
    publisher.publish_frame(publish_body(0, 1, [build_record(Record())]))
    publisher.leave()
    tails.load(b"other", SYNCED, 2, 10, 3)
    assert tails.count(3) == 2
    value, _ = tails.close_group(0, 0, 0, 0, 0)
    tails.take_answers()
    tails.apply_group(value, Line)
    assert tails.evict(1, 1, 2 * tails.slots) == 2
    assert tails.count(3) == 1, "what is stored counts wherever it is"
    pair.journal.good.append(value)
    pair.journal.settled_group = 1
    tails.apply_entries(pair.journal.resolve([b"new"])[0], Line)
    tails.load(b"new", SYNCED, 2, 10, 3)
    assert tails.count(3) == 1
    tails.load(b"new", SYNCED, 2, 10, 4)
    assert [tails.count(profile) for profile in (3, 4)] == [0, 1]
    tails.count_stored(4, 5)
    assert tails.count(4) == 6
    assert tails.drop(b"new")
    value, _ = tails.close_group(1, 0, 0, 0, 0)
    tails.apply_group(value, Line)
    assert tails.count(4) == 5


# --- Carried and ignored -------------------------------------------------------------------------------------------


def test_what_later_versions_write_is_carried() -> None:
    """Gone runs, publishers, numbers in records, further entries, terms and writers change and break nothing."""
    records = b"".join(
        build_record(record)
        for record in (
            Record(gone=(2, 1_000)),
            Record(b"x", publisher=b"ada", number=77, priority=0, expiry_s=5, key=b"k", headers=b"\x80"),
            Record(gone=(5, 1)),
        )
    )
    chunk = groups.Chunk(4, 3 << 40 | 8, 10, 1_002, records, time_us=9, expiry_s=99)
    group = groups.Group(
        8,
        7,
        entries=(
            groups.channel_entry(4, "a.b.c", shard_tokens=128),
            groups.Entry(40_000, b"a table that this version does not know", groups.IGNORABLE),
            groups.epoch_entry(4, 3 << 40 | 8, 10),
        ),
        chunks=(chunk,),
        term=2**64 - 1,
        writer=2**64 - 1,
        run=3,
    )
    tails = Tails(1, 1)
    rest = tails.apply_group(groups.build_group(group), Line)
    assert rest == [(40_000, groups.IGNORABLE, b"a table that this version does not know")]
    assert tails.info(b"a.b.c") == (4, SYNCED, 3 << 40 | 8, 1, 1_012, 1_012, 1_012, [(3 << 40 | 8, 10)])


def test_flags_that_only_the_server_sets_are_not_taken_from_clients() -> None:
    for flag in (PUBLISHER, NUMBER, GONE):
        body = publish_body(4, 1, [build_record(Record(bytes(30)), flags=flag)])
        assert Pair().publish_body(0, body) == BY_NAME["INVALID_RECORD"].code


def test_shard_tokens_are_journaled_with_the_channel() -> None:
    pair = Pair()
    pair.native.load(b"s.x", SYNCED, 128, PAYLOAD_MAX)
    pair.twin.load(b"s.x", SYNCED, 128, PAYLOAD_MAX)
    pair.publish(0, 4, [Record()])
    assert pair.group().entries[0] == groups.channel_entry(1, "s.x", shard_tokens=128)


# --- Ownership -----------------------------------------------------------------------------------------------------


def test_publishers_and_owners_are_let_go() -> None:
    import weakref

    class Owner:
        pass

    owner = Owner()
    alive = weakref.ref(owner)
    tails = Tails(1, 1)
    tails.load(b"s.x", SYNCED, 2, 10)
    publisher = Publisher(tails, Line(), owner, 0)
    publisher.bind(0, b"s.x")
    publisher.publish_frame(publish_body(0, 1, [build_record(Record())]))
    tails.close_group(0, 0, 0, 0, 0)
    del publisher, owner
    assert alive() is not None, "an answer waits"
    assert len(tails.take_answers()) == 1
    assert alive() is None


def test_tails_are_freed_with_everything_open() -> None:
    """Under the sanitizer this is a leak check."""
    make: Callable[[], Pair] = Pair
    for _ in range(20):
        pair = make()
        for slot in SLOTS:
            pair.publish(0, slot, [filled(40_000), filled(40_000)])


@given(
    st.sets(st.sampled_from([b"s.%d" % number for number in range(300)]), max_size=300),
    st.sampled_from([b"", b"s.", b"s.1", b"s.29", b"t"]),
    st.sampled_from([b"", b"s.", b"s.150", b"s.99", b"t"]),
    st.sampled_from([None, b"s.2", b"s.200", b"s"]),
)
@settings(max_examples=40, deadline=None)
def test_stored_names_between_two(names: set[bytes], prefix: bytes, after: bytes, before: bytes | None) -> None:
    """What a sorted list says, in whatever steps the table is walked; a channel without a committed record is none."""
    tails = stored_channels(names)
    tails.load(b"s.unborn", SYNCED, 2, PAYLOAD_MAX)
    found, key = [], 0
    while True:
        some, key = tails.names_between(key, 1, prefix, after, before)
        found += some
        if not key:
            break
    wanted = [name for name in names if name.startswith(prefix) and name > after and (before is None or name < before)]
    assert sorted(found) == sorted(wanted)


def test_names_are_walked_while_more_come() -> None:
    """Those that were there are met, though the table grows on the way; a longer name follows its beginning."""
    names = {b"s.%05d" % number for number in range(3_000)}
    tails = stored_channels(names)
    found, key = tails.names_between(0, 1, b"", b"", None)
    assert key
    for number in range(20_000):
        tails.load(b"s.more.%d" % number, SYNCED, 2, PAYLOAD_MAX)
    while key:
        some, key = tails.names_between(key, 1, b"", b"", None)
        found += some
    assert set(found) == names
    tails = stored_channels({b"s.a", b"s.ab", b"s.b"})
    assert sorted(tails.names_between(0, 99, b"s", b"s.a", b"s.b")[0]) == [b"s.ab"]


def stored_channels(names: set[bytes]) -> Tails:
    """Return tails that have applied the entries of so many stored channels."""
    tails = Tails(1, 7)
    entries = b"".join(
        struct.pack("<IHHQBBBB", (20 + len(name) + 7) // 8 * 8, 1, 0, number, SYNCED, 2, len(name), 0)
        + name.ljust((20 + len(name) + 7) // 8 * 8 - 20, b"\0")
        for number, name in enumerate(sorted(names), 1)
    )
    tails.apply_entries(entries, Lines().__getitem__)
    tails.begin_run(2, 5)
    return tails


# --- Many at once ---------------------------------------------------------------------------------------------------


def test_many_are_applied_each_by_itself() -> None:
    tails = Tails(1, 4770)
    sound = [groups.build_entry(groups.channel_entry(number, f"m.{number}")) for number in range(1, 4)]
    failures = tails.apply_each([sound[0], b"cut", b"", sound[1][:-1], sound[2]], Line)
    assert {at: type(failure) for at, failure in failures.items()} == {1: ValueError, 3: ValueError}
    assert sorted(tails.names()) == [b"m.1", b"m.3"]


def test_who_is_not_ready_is_told_by_index() -> None:
    tails = Tails(1, 4770)
    tails.apply_entries(groups.build_entry(groups.channel_entry(1, "m.stored")), Line)
    tails.load(b"m.ready", SYNCED, 2, 10)
    assert tails.unready([b"m.ready", b"m.none", b"m.stored", b"m.ready", b"m.none"]) == [1, 2, 4]
    tails.load_stored([b"m.ready", b"m.none", b"m.stored"], SYNCED, 2, 10, 0, 0, 0)
    assert tails.unready([b"m.stored", b"m.none"]) == [1], "nothing comes into being"


def test_numbers_are_given_to_many() -> None:
    tails = Tails(1, 4770)
    publisher = Publisher(tails, Line(None), None, 100)
    for name in (b"m.1", b"m.2"):
        tails.load(name, SYNCED, 2, 10)
    publisher.bind_all(3, [b"m.1", None, b"m.2", b"m.1"])
    assert [publisher.level_of(number) for number in range(8)] == [0, 0, 0, SYNCED, 0, SYNCED, SYNCED, 0]
    assert tails.held(b"m.1")
    with pytest.raises(KeyError):
        publisher.bind_all(7, [b"m.2", b"m.none"])
    publisher.leave()
    assert not tails.held(b"m.1")


def test_of_a_channel_that_nobody_knows_there_is_nothing_to_say_or_do() -> None:
    tails = Tails(1, 1)
    assert tails.uses(b"nobody") == (0, 0)
    assert not tails.trim(b"nobody", 5)
    assert tails.stored_id(b"nobody") == 0
    tails.mark_unclean(b"nobody")
    with pytest.raises(KeyError):
        tails.drop(b"nobody")
    assert tails.info(b"nobody") is None


def test_a_channel_that_is_refused_takes_what_was_begun_and_what_is_the_brokers_own() -> None:
    pair = Pair()
    limit = BY_NAME["LIMIT"].code
    slot = list(NAMES).index(b"s.x")
    assert pair.publish(0, slot, [Record(b"1")]) == 0
    pair.refuse(b"s.x", True)
    assert pair.native.ready(b"s.x")
    assert pair.native.unready([b"s.x"]) == []
    assert pair.publish(0, slot, [Record(b"2")]) == 0, "its chunk is open"
    pair.group()
    assert pair.publish(0, slot, [Record(b"3")]) == limit
    body = publish_body(slot, pair.twins[0].line.next, [build_record(Record(b"3"))])
    assert pair.publishers[0].judge(body, 16) == limit
    own = Publisher(pair.native, Line(), None, HEADERS_MAX)
    own.is_own = True
    own.bind(slot, b"s.x")
    assert own.publish_frame(publish_body(slot, 1, [build_record(Record(b"3"))])) == 0
    pair.native.undo(False)
    assert pair.native.refused(b"s.x"), "a failed commit says nothing of what is held"
    pair.native.refuse(b"s.x", False)
    assert pair.publishers[0].publish_frame(body) == 0
    pair.native.refuse(b"nobody", True)
    assert not pair.native.refused(b"nobody")


def test_a_reader_by_its_name_holds_a_channel() -> None:
    tails = Tails(1, 1)
    tails.begin_run(1, 1)
    tails.load(b"s.x", SYNCED, 2, 10)
    fanout = Fanout(tails)
    subscription = Subscription(Outbox(fanout, None), 1, 0, 0, False)
    fanout.attach(subscription, b"s.x")
    assert tails.held(b"s.x")
    assert tails.uses(b"s.x") == (0, 1)
    with pytest.raises(RuntimeError, match="when nobody uses it"):
        tails.drop(b"s.x")
    fanout.detach(subscription, b"s.x")
    assert not tails.held(b"s.x")
    fanout.close()


def test_ids_of_a_run_are_below_those_of_ephemeral_channels() -> None:
    tails = Tails(1, 1)
    with pytest.raises(ValueError, match="id"):
        tails.begin_run(1, 1, (1 << 64) - 1)
