"""Token buckets against a twin that fills up as time passes, and in front of what a connection publishes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.fanout import Fanout
from broker_native.intake import Clock, Intake, ReadBuffer
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.rates import Rate
from broker_native.tails import Tails
from tests.reference import rates as reference
from tests.reference.frames import PING, PUBLISH, TRANSACTION, Record, build_frame, build_record, publish_body

PER_S = st.sampled_from([0, 1, 2, 3, 7, 100, 999, 1_000_000, 10**9])
STEPS = st.lists(
    st.tuples(st.integers(0, 3_000_000), st.integers(1, 65_535), st.integers(0, 1 << 26)), min_size=1, max_size=30
)


@settings(deadline=None)
@given(PER_S, PER_S, STEPS)
def test_it_lets_in_what_the_twin_does(records_per_s: int, bytes_per_s: int, steps: list[tuple[int, int, int]]) -> None:
    rate, twin = Rate(records_per_s, bytes_per_s), reference.Rate(records_per_s, bytes_per_s)
    now_us = 1_000_000
    for pause_us, records, size in steps:
        now_us += pause_us
        assert rate.take_some(records, size, now_us) == twin.take_some(records, size, now_us)
        assert rate.wait_ms(now_us) == twin.take_some(0, 0, now_us)


def test_what_comes_in_a_second_comes_at_once_and_then_evenly() -> None:
    rate = Rate(10)
    assert [rate.take_some(1, 0, 5) for _ in range(11)] == [0] * 10 + [100]
    assert [rate.take_some(1, 0, 5 + 100_000) for _ in range(2)] == [0, 100]
    assert [rate.take_some(1, 0, 60_000_000) for _ in range(11)] == [0] * 10 + [100]


@pytest.mark.parametrize("per_s", [10**9 + 1, 1 << 63])
def test_a_rate_has_a_bound(per_s: int) -> None:
    with pytest.raises(ValueError, match="limit 1000000000"):
        Rate(per_s)
    with pytest.raises(ValueError, match="limit 1000000000"):
        Rate(0, per_s)


class Taken(Intake):
    """Notes what is told of frames."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.told: list[object] = []

    def on_over_rate(self, kind: int, flags: int, body: bytes, wait_ms: int) -> None:
        self.told.append((kind, flags, len(body), wait_ms))

    def on_frame(self, kind: int, flags: int, body: bytes) -> None:
        self.told.append((kind, flags))

    def on_refused(self, code: int, slot: int, number: int, count: int) -> None:
        self.told.append(code)

    def on_duplicate(self, slot: int, number: int, count: int) -> None:
        self.told.append("duplicate")

    def on_read(self) -> None:
        pass


def test_frames_with_records_are_counted_and_others_are_not() -> None:
    tails = Tails(1, 4770)
    tails.load(b"s.x", 3, 2, 1 << 20)
    clock = Clock(1, True)
    intake = Taken(Fanout(tails), ReadBuffer(4_096), clock, 100_000)
    publisher = Publisher(tails, Line(bytes(16)), None, 0)
    publisher.bind(0, b"s.x")
    intake.publisher = publisher
    intake.rate = Rate(4)
    record = build_record(Record(b"x"))
    three = build_frame(PUBLISH, publish_body(0, 1, [record] * 3))
    two = build_frame(PUBLISH, publish_body(0, 4, [record] * 2))
    ask = build_frame(PUBLISH, bytes(17), flags=4)
    intake.feed(three + two)  # the second one leaves a debt of one
    assert intake.told == []
    assert tails.records == 5
    transaction = build_frame(TRANSACTION, b"\1\0\0\0\0\0\0\0" + build_frame(PUBLISH, publish_body(0, 6, [record])))
    more = build_frame(PUBLISH, publish_body(0, 6, [record]))
    gap = build_frame(PUBLISH, publish_body(0, 9, [record]))
    for frame in (three, more, transaction, ask, gap, build_frame(PING, bytes(8))):
        intake.feed(frame)
    wait_ms = 500
    assert intake.told == [
        "duplicate",
        (PUBLISH, 0, len(more) - 8, wait_ms),
        (TRANSACTION, 0, len(transaction) - 8, wait_ms),
        (PUBLISH, 4, 17, wait_ms),
        1003,
        (PING, 0),
    ]
    assert tails.records == 5
    clock.manual_us += wait_ms * 1_000
    intake.feed(more)
    assert tails.records == 6
