"""Each rule by itself, on the smallest history that breaks it and the nearest one that does not."""

from __future__ import annotations

import pytest

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
    HistoryError,
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
from tests.checker.verdict import Kind

PUBLISHED: list[Event] = [
    Subscribed(0.0, "x", "a", True),
    Invoked(0.0, "p", 1, "a", [11, 12, 13]),
    Acked(0.1, "p", 1, 3, epoch=1, first=1, level=SYNCED),
]
LOG = {"a": [Run(1, 1, [11, 12, 13])]}


def found(events: list[Event], log: dict[str, list[Run]] | None = None, level: int = SYNCED) -> set[tuple[object, ...]]:
    """Return (kind, epoch, sequence, who) of the anomalies in channel a, once both checkers agree on them."""
    history = History({"a": level}, events, LOG if log is None else log)
    result = keys(check(history).anomalies)
    assert result == check_naively(history)
    return {(kind, epoch, sequence, who) for kind, channel, epoch, sequence, who in result if channel == "a"}


def delivered(first: int, values: list[int], epoch: int = 1) -> Delivered:
    return Delivered(0.2, "x", "a", epoch, first, values)


def test_nothing_happened() -> None:
    assert check(History()).passed


def test_good_history_in_any_batches() -> None:
    assert not found([*PUBLISHED, delivered(1, [11]), delivered(2, [12, 13]), Finished(0.3, "x", "a")])


def test_acknowledged_and_not_in_the_log() -> None:
    assert found(PUBLISHED, {"a": [Run(1, 1, [11, 12])]}) == {(Kind.LOST, 1, 3, "")}
    assert found(PUBLISHED, {}) == {(Kind.LOST, 1, n, "") for n in (1, 2, 3)}


def test_seen_and_not_in_the_log() -> None:
    events = [PUBLISHED[0], PUBLISHED[1], delivered(1, [11, 12, 13])]
    log = {"a": [Run(1, 1, [11])]}
    assert found(events, log) == {(Kind.LOST, 1, 2, ""), (Kind.LOST, 1, 3, "")}
    assert not found(events, log, ACCEPTED)


def test_committed_and_not_in_the_log() -> None:
    events = [PUBLISHED[1], Committed(0.1, "a", 1, 1, 3)]
    assert found(events, {"a": [Run(1, 1, [11, 12])]}) == {(Kind.LOST, 1, 3, "")}


def test_late_retry_that_was_never_stored() -> None:
    events = [PUBLISHED[1], Acked(0.1, "p", 1, 3, epoch=0, first=0, level=SYNCED)]
    assert not found(events)
    assert found(events, {"a": [Run(1, 1, [11, 12])]}) == {(Kind.LOST, 0, 0, "")}


def test_hole_in_the_log() -> None:
    assert found([PUBLISHED[1]], {"a": [Run(1, 1, [11]), Run(1, 3, [13])]}) == {(Kind.LOST, 0, 2, "")}
    assert found([PUBLISHED[1]], {"a": [Run(1, 2, [11])]}) == {(Kind.LOST, 0, 1, "")}


@pytest.mark.parametrize(
    ("later_s", "crashes", "excused"), [(0.14, True, True), (0.16, True, False), (0.14, False, False)]
)
def test_accepted_is_lost_in_its_window_only(later_s: float, crashes: bool, excused: bool) -> None:
    """A crash takes what was acknowledged within 50 ms before the last acknowledgement, however late it comes."""
    events: list[Event] = [
        PUBLISHED[1],
        Invoked(0.0, "p", 4, "a", [14]),
        Acked(0.1, "p", 1, 3, epoch=1, first=1, level=ACCEPTED),
        Acked(later_s, "p", 4, 1, epoch=1, first=4, level=ACCEPTED),
    ]
    if crashes:
        events += [Crashed(9.0), Started(10.0)]
    lost = {(Kind.LOST, 1, 3, ""), (Kind.LOST, 1, 4, "")}
    after = {(Kind.LOST, 1, 4, "")}
    log = {"a": [Run(1, 1, [11, 12])]}
    expected = set() if excused else lost - after if crashes else lost
    assert found(events, log, ACCEPTED) == expected
    assert check(History({"a": ACCEPTED}, events, log)).excused == (2 if excused else 1 if crashes else 0)


FIRST_LIFE: list[Event] = [
    PUBLISHED[1],
    Invoked(0.0, "p", 4, "a", [14]),
    Acked(1.0, "p", 1, 3, epoch=1, first=1, level=ACCEPTED),
    Acked(1.13, "p", 4, 1, epoch=1, first=4, level=ACCEPTED),
    Crashed(1.2),
]
"""Two acknowledgements 130 ms apart; the records of neither are in the log."""

LAST_ONLY = {(Kind.LOST, 1, n, "") for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("after", "stalled_s", "excused"),
    [
        (3, 0.09, True),
        (3, 0.07, False),
        (4, 0.09, True),
        (6, 0.09, False),  # it begins in the next life
        (6, 0.2, True),  # the life ended in it
    ],
)
def test_a_recorder_that_was_held_up_widens_the_window_of_its_life(after: int, stalled_s: float, excused: bool) -> None:
    """The two may have been given 50 ms apart, when the last one was written down so much later."""
    events = [*FIRST_LIFE, Started(1.22), Subscribed(1.23, "x", "a", True)]
    events.insert(after, Stalled(events[after - 1].at_s + 0.1, stalled_s))
    assert found(events, {}, ACCEPTED) == (set() if excused else LAST_ONLY)


def test_a_recorder_that_was_held_up_excuses_no_other_life_and_no_other_level() -> None:
    later: list[Event] = [
        Started(2.0),
        Stalled(2.5, 0.4),
        Invoked(3.0, "p", 5, "a", [15]),
        Acked(3.1, "p", 5, 1, epoch=2, first=4, level=ACCEPTED),
        Crashed(3.2),
    ]
    assert found([*FIRST_LIFE, *later], {}, ACCEPTED) == LAST_ONLY
    first = [event._replace(level=SYNCED) if isinstance(event, Acked) else event for event in FIRST_LIFE]
    stalled = [*first[:4], Stalled(1.15, 0.9), *first[4:]]
    assert found(stalled, {}) == LAST_ONLY | {(Kind.LOST, 1, 4, "")}


def test_acknowledgement_that_arrives_after_the_crash_is_older_than_it() -> None:
    ack = Acked(0.2, "p", 1, 3, epoch=1, first=1, level=ACCEPTED)
    dead: list[Event] = [PUBLISHED[1], Crashed(0.1), ack, Started(0.3)]
    alive: list[Event] = [PUBLISHED[1], Crashed(0.1), Started(0.15), ack]
    assert not found(dead, {}, ACCEPTED)
    assert found(alive, {}, ACCEPTED) == {(Kind.LOST, 1, n, "") for n in (1, 2, 3)}


def test_not_delivered_to_one_who_caught_up() -> None:
    events = [*PUBLISHED, delivered(1, [11, 12]), Finished(0.3, "x", "a")]
    assert found(events) == {(Kind.LOST, 1, 3, "x")}
    assert not found(events[:-1])


def test_one_who_begins_with_what_is_new() -> None:
    start: list[Event] = [PUBLISHED[1], Subscribed(0.1, "y", "a", False), Invoked(0.1, "q", 1, "a", [21, 22])]
    log = {"a": [Run(1, 1, [11, 12, 13, 21, 22])]}
    end = Finished(0.3, "y", "a")
    assert not found([*start, Delivered(0.2, "y", "a", 1, 3, [13, 21, 22]), end], log)
    assert not found([*start, Delivered(0.2, "y", "a", 1, 4, [21, 22]), end], log)
    assert found([*start, Delivered(0.2, "y", "a", 1, 5, [22]), end], log) == {(Kind.SKIPPED, 1, 4, "y")}
    assert found([*start, end], log) == {(Kind.LOST, 1, 4, "y"), (Kind.LOST, 1, 5, "y")}


def test_value_stored_twice() -> None:
    log = {"a": [Run(1, 1, [11, 12, 13, 11])]}
    assert found(PUBLISHED, log) == {(Kind.DUPLICATE, 1, 4, "")}
    assert found(PUBLISHED, log, ACCEPTED) == {(Kind.DUPLICATE, 1, 4, "")}


def test_value_met_again_in_a_later_epoch() -> None:
    """The retry of a record whose first copy went with a crash; on a synced channel the first could not have gone."""
    events = [PUBLISHED[0], PUBLISHED[1], delivered(1, [11, 12]), delivered(2, [12, 13], epoch=2)]
    log = {"a": [Run(1, 1, [11]), Run(2, 2, [12, 13])]}
    assert not found(events, log, ACCEPTED)
    assert found(events, log) == {(Kind.DUPLICATE, 1, 2, ""), (Kind.LOST, 1, 2, "")}


def test_position_delivered_twice() -> None:
    events = [*PUBLISHED, delivered(1, [11, 12]), delivered(2, [12, 13])]
    assert found(events) == {(Kind.DUPLICATE, 1, 2, "x")}


def test_position_skipped_and_never_delivered() -> None:
    assert found([*PUBLISHED, delivered(1, [11]), delivered(3, [13])]) == {(Kind.SKIPPED, 1, 2, "x")}
    assert found([*PUBLISHED, delivered(2, [12, 13])]) == {(Kind.SKIPPED, 1, 1, "x")}


def test_position_delivered_late() -> None:
    events = [*PUBLISHED, delivered(1, [11]), delivered(3, [13]), delivered(2, [12])]
    assert found(events) == {(Kind.REORDERED, 1, 2, "x")}


def test_producers_own_order() -> None:
    assert found([PUBLISHED[1]], {"a": [Run(1, 1, [12, 11, 13])]}) == {(Kind.REORDERED, 1, 2, "")}


def test_real_time_order() -> None:
    events: list[Event] = [*PUBLISHED[1:], Invoked(0.2, "q", 1, "a", [21])]
    log = {"a": [Run(1, 1, [11, 12, 21, 13])]}
    assert (Kind.REORDERED, 1, 3, "") in found(events, log)
    concurrent: list[Event] = [Invoked(0.0, "q", 1, "a", [21]), Unknown(0.1, "q", 1, 1), PUBLISHED[1]]
    assert not found(concurrent, log)


def test_one_position_two_values() -> None:
    swapped = {"a": [Run(1, 1, [11, 12, 14])]}
    events = [*PUBLISHED, Invoked(0.2, "q", 1, "a", [14])]
    assert (Kind.INCONSISTENT, 1, 3, "") in found(events, swapped)
    assert (Kind.INCONSISTENT, 1, 1, "") in found([*events, delivered(1, [14])])


def test_value_that_nobody_published() -> None:
    assert (Kind.FROM_NOWHERE, 1, 4, "") in found(PUBLISHED, {"a": [Run(1, 1, [11, 12, 13, 99])]})
    before: list[Event] = [PUBLISHED[0], delivered(1, [11]), PUBLISHED[1]]
    assert found(before) == {(Kind.FROM_NOWHERE, 1, 1, "")}


def test_value_that_was_refused() -> None:
    events = [PUBLISHED[1], Refused(0.1, "p", 3, 1)]
    assert found(events) == {(Kind.FROM_NOWHERE, 1, 3, "")}
    assert not found(events, {"a": [Run(1, 1, [11, 12])]})


def test_value_in_another_channel() -> None:
    events: list[Event] = [PUBLISHED[1], Invoked(0.0, "p", 4, "b", [21])]
    assert found(events, {"a": [Run(1, 1, [11, 12, 13, 21])], "b": []}) == {(Kind.WRONG_CHANNEL, 1, 4, "")}


def test_acknowledged_before_its_commit() -> None:
    commit = Committed(0.1, "a", 1, 1, 3)
    assert not found([PUBLISHED[1], commit, PUBLISHED[2]])
    assert found([PUBLISHED[1], PUBLISHED[2], commit]) == {(Kind.EARLY, 1, n, "") for n in (1, 2, 3)}
    shorter = Committed(0.1, "a", 1, 1, 2)
    assert found([PUBLISHED[1], shorter, PUBLISHED[2]]) == {(Kind.EARLY, 1, 3, "")}


def test_shown_before_its_commit() -> None:
    events = [*PUBLISHED[:2], delivered(1, [11]), Committed(0.1, "a", 1, 1, 3)]
    assert found(events) == {(Kind.EARLY, 1, 1, "")}
    assert not found(events, level=ACCEPTED)


def test_acknowledged_at_less_than_was_promised() -> None:
    events = [PUBLISHED[1], Acked(0.1, "p", 1, 3, epoch=1, first=1, level=ACCEPTED)]
    assert found(events) == {(Kind.EARLY, 1, n, "") for n in (1, 2, 3)}


def test_epoch_goes_back_in_the_log() -> None:
    log = {"a": [Run(2, 1, [11, 12]), Run(1, 3, [13])]}
    assert found([PUBLISHED[1]], log) == {(Kind.STALE_EPOCH, 1, 3, "")}


def test_epoch_goes_on_after_a_crash() -> None:
    events: list[Event] = [
        PUBLISHED[1],
        Acked(0.1, "p", 1, 3, epoch=1, first=1, level=ACCEPTED),
        Crashed(0.2),
        Started(0.3),
        Invoked(0.4, "p", 4, "a", [14]),
    ]
    log = {"a": [Run(1, 1, [11, 12, 13, 14])]}
    ack = Acked(0.5, "p", 4, 1, epoch=1, first=4, level=ACCEPTED)
    assert found([*events, ack], log, ACCEPTED) == {(Kind.STALE_EPOCH, 1, 4, "")}
    fresh = {"a": [Run(1, 1, [11, 12, 13]), Run(2, 4, [14])]}
    assert not found([*events, ack._replace(epoch=2)], fresh, ACCEPTED)


def test_reader_is_taken_back_to_an_older_epoch() -> None:
    log = {"a": [Run(1, 1, [11]), Run(2, 2, [12, 13])]}
    events = [PUBLISHED[0], PUBLISHED[1], delivered(1, [11]), delivered(2, [12, 13], epoch=2), delivered(1, [11])]
    assert found(events, log) == {(Kind.STALE_EPOCH, 1, 1, "x")}
    passed = [PUBLISHED[0], PUBLISHED[1], delivered(2, [12, 13], epoch=2)]
    assert found(passed, log) == {(Kind.SKIPPED, 1, 1, "x")}


def test_trim_takes_what_was_asked_for() -> None:
    events = [*PUBLISHED, TrimAsked(0.2, "a", 3)]
    assert not found(events, {"a": [Run(1, 3, [13])]})
    assert not found(events)
    assert (Kind.LOST, 1, 3, "") in found(events, {"a": []})
    told = [*events, Trimmed(0.3, "x", "a", 3), delivered(3, [13]), Finished(0.4, "x", "a")]
    assert not found(told, {"a": [Run(1, 3, [13])]})


def test_trim_that_nobody_asked_for() -> None:
    events = [*PUBLISHED, Trimmed(0.3, "x", "a", 3), delivered(3, [13])]
    assert found(events) == {(Kind.LOST, 0, 2, "x")}


def test_trim_that_does_not_last() -> None:
    events = [*PUBLISHED, TrimAsked(0.2, "a", 3), TrimAcked(0.3, "a", 3)]
    assert found(events) == {(Kind.RESURRECTED, 1, 1, ""), (Kind.RESURRECTED, 1, 2, "")}


@pytest.mark.parametrize(
    "events",
    [
        [PUBLISHED[2]],
        [PUBLISHED[1], PUBLISHED[1]],
        [delivered(1, [11])],
        [PUBLISHED[0], PUBLISHED[0]],
        [PUBLISHED[1], Invoked(0.0, "p", 4, "b", [14]), Acked(0.1, "p", 3, 2, epoch=1, first=1, level=SYNCED)],
    ],
)
def test_recorder_that_is_wrong_is_told(events: list[Event]) -> None:
    with pytest.raises(HistoryError):
        check(History(events=events))


def test_verdict_says_where_and_to_whom() -> None:
    verdict = check(History(events=[*PUBLISHED, delivered(1, [11]), Finished(0.3, "x", "a")], log=LOG))
    assert not verdict.passed
    assert verdict.count(Kind.LOST) == 2
    assert "lost: a at 1:2…3 for x: in the log, and not delivered to one who caught up" in str(verdict)


def test_delivery_of_nothing_shows_nothing_of_an_epoch() -> None:
    """Only a reader that saw records may have seen more than a crash left."""
    events: list[Event] = [
        Subscribed(0.0, "x", "a", True),
        Invoked(0.0, "p", 1, "a", [11]),
        delivered(1, []),
        Crashed(0.2),
        Invoked(0.3, "q", 1, "a", [12]),
        Acked(0.4, "q", 1, 1, epoch=1, first=1, level=ACCEPTED),
    ]
    assert not found(events, {"a": [Run(1, 1, [12])]}, ACCEPTED)
    events[2] = delivered(1, [11])
    assert (Kind.STALE_EPOCH, 1, 1, "") in found(events, {"a": [Run(1, 1, [12])]}, ACCEPTED)
