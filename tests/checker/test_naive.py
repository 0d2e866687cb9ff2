"""The checker and its naive twin agree, on histories of good and bad brokers and on ones that are damaged at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checker.check import check
from tests.checker.history import (
    ACCEPTED,
    SYNCED,
    Acked,
    Committed,
    Crashed,
    Delivered,
    Event,
    Finished,
    History,
    Invoked,
    Refused,
    Run,
    Stalled,
    Started,
    Subscribed,
    TrimAcked,
    TrimAsked,
    Trimmed,
    Unknown,
)
from tests.checker.naive import check_naively, keys
from tests.checker.simulated import Bug, Simulation

if TYPE_CHECKING:
    from collections.abc import Sequence

CHANNELS = ["a", "b"]
PRODUCERS = ["p", "q"]
CONSUMERS = ["x", "y"]


def assert_agree(history: History) -> None:
    fast, slow = keys(check(history).anomalies), check_naively(history)
    assert fast == slow, f"only the checker: {fast - slow}; only its twin: {slow - fast}"


@given(seed=st.integers(0, 1 << 32), bug=st.sampled_from([None, *Bug]), batch_max=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_agree_on_simulated_brokers(seed: int, bug: Bug | None, batch_max: int) -> None:
    assert_agree(Simulation(seed, bug, batch_max=batch_max).run(60, crash_every_steps=20))


@given(seed=st.integers(0, 1 << 32), data=st.data())
@settings(max_examples=60, deadline=None)
def test_agree_on_damaged_histories(seed: int, data: st.DataObject) -> None:
    history = Simulation(seed).run(40, crash_every_steps=20)
    kept: tuple[type, ...] = (Invoked, Subscribed)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(history.events) - 2))
        if isinstance(history.events[place], kept) or isinstance(history.events[place + 1], kept):
            continue
        if data.draw(st.booleans()):
            del history.events[place]
        else:
            history.events[place : place + 2] = history.events[place + 1], history.events[place]
    assert_agree(history)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Histories of no broker at all: any event with any small number in it."""
    small = st.integers(1, 6)
    channel, consumer, values = st.sampled_from(CHANNELS), st.sampled_from(CONSUMERS), st.integers(0, 9)
    lists = st.lists(values, max_size=4)
    strategy: st.SearchStrategy[Event] = st.one_of(
        st.builds(Delivered, st.just(0.0), consumer, channel, st.integers(1, 3), small, lists),
        st.builds(Delivered, st.just(0.0), consumer, channel, st.integers(1, 3), small, lists),
        st.builds(Trimmed, st.just(0.0), consumer, channel, small),
        st.builds(Finished, st.just(0.0), consumer, channel),
        st.builds(Committed, st.just(0.0), channel, st.integers(1, 3), small, small),
        st.builds(TrimAsked, st.just(0.0), channel, small),
        st.builds(TrimAcked, st.just(0.0), channel, small),
        st.builds(Crashed, st.just(0.0)),
        st.builds(Started, st.just(0.0)),
        st.builds(Stalled, st.just(0.0), st.sampled_from([0.02, 0.05, 0.1])),
        st.builds(_answer, st.sampled_from(PRODUCERS), st.integers(0, 2), st.integers(0, 3), small, st.integers(1, 3)),
    )
    events = draw(st.lists(strategy, max_size=16))
    # An operation is invoked before it is answered; a value is not always invoked before it is read.
    calls: list[Event] = [
        Invoked(0.0, producer, 2 * n, draw(channel), [4 * n + p, 4 * n + p + 2])
        for n in range(2)
        for p, producer in enumerate(PRODUCERS)
    ]
    answers = [place for place, event in enumerate(events) if isinstance(event, (Acked, Refused, Unknown))]
    for call in calls:
        events.insert(draw(st.integers(0, min(answers, default=len(events)))), call)
        answers = [place for place, event in enumerate(events) if isinstance(event, (Acked, Refused, Unknown))]
    subscriptions: list[Event] = [Subscribed(0.0, x, c, draw(st.booleans())) for x in CONSUMERS for c in CHANNELS]
    clocked = [event._replace(at_s=place * 0.01) for place, event in enumerate([*subscriptions, *events])]
    runs: st.SearchStrategy[Sequence[Run]] = st.lists(st.builds(Run, st.integers(1, 3), small, lists), max_size=3)
    levels = {name: draw(st.sampled_from([1, ACCEPTED, SYNCED])) for name in CHANNELS}
    return History(levels, clocked, {name: draw(runs) for name in CHANNELS})


def _answer(producer: str, number: int, epoch: int, first: int, level: int) -> Event:
    """Answer one call of two records: mostly acknowledge it, sometimes refuse it."""
    if number == 2:
        return Refused(0.0, producer, 2, 2) if level == 1 else Unknown(0.0, producer, 2, 2)
    return Acked(0.0, producer, 2 * number, 2, epoch, first, level)


@given(histories())
@settings(max_examples=400, deadline=None)
def test_agree_on_nonsense(history: History) -> None:
    assert_agree(history)
