"""Where a subscription stands, without a server: what it asks for first, and what when it begins again."""

from __future__ import annotations

from typing import Any

import pytest

from broker.bus import Last, Since, Start, SubscriptionEvent
from broker.model.errors import BrokerError
from broker.model.positions import BusPosition, Position
from broker.remote.places import FILTERS_MAX, BusPlace, LiteralPlaces, make_places
from broker.wire import control

JOURNAL = b"j" * 16


@pytest.mark.parametrize(
    ("filters", "start", "kind", "wanted"),
    [
        (("a",), "new", LiteralPlaces, control.FromNew()),
        (("a", "b"), "start", LiteralPlaces, control.FromStart()),
        (("a",), Position(3, 4), LiteralPlaces, control.FromPositions((("a", 3, 4),))),
        (("a", "b"), {"b": Position(3, 4)}, LiteralPlaces, control.FromPositions((("b", 3, 4),))),
        (("a", "b"), Last(5), LiteralPlaces, control.FromLast(5)),
        (("a",), Since(6), BusPlace, control.FromTime(6)),
        (("a",), BusPosition(JOURNAL, 7, 8), BusPlace, control.FromBus(JOURNAL, 7, 8)),
        (("a", "b.*"), "start", BusPlace, control.FromStart()),
        ((">",), BusPosition(JOURNAL, 7, 8), BusPlace, control.FromBus(JOURNAL, 7, 8)),
    ],
)
def test_a_start_chooses_the_way_to_stand(
    filters: tuple[str, ...], start: Start, kind: type[Any], wanted: control.Start
) -> None:
    places = make_places(filters, start)
    assert isinstance(places, kind)
    assert places.start() == wanted


@pytest.mark.parametrize(
    ("filters", "start", "name"),
    [
        ((), "new", "INVALID_PATTERN"),
        (("a..b",), "new", "INVALID_PATTERN"),
        (tuple(f"a.{number}" for number in range(FILTERS_MAX + 1)), "new", "TOO_MANY_SUBSCRIPTIONS"),
        (("a",), "end", "INVALID_POSITION"),
        (("a",), None, "INVALID_POSITION"),
        (("a",), (3, 4), "INVALID_POSITION"),
        (("a", "b"), Position(3, 4), "INVALID_POSITION"),
        (("a",), {"b": Position(3, 4)}, "INVALID_POSITION"),
        (("a",), {"a": (3, 4)}, "INVALID_POSITION"),
        (("a.*",), Position(3, 4), "INVALID_POSITION"),
        (("a", "a.*"), Last(1), "INVALID_POSITION"),
        (("a",), Last(-1), "INVALID_POSITION"),
        (("a",), Since(-1), "INVALID_POSITION"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(filters: tuple[str, ...], start: Any, name: str) -> None:
    with pytest.raises(BrokerError, match=name):
        make_places(filters, start)


def test_channels_of_which_nothing_is_known_keep_to_what_was_asked() -> None:
    """Going on must not skip what a channel held that had not come yet."""
    bus = control.FromBus(JOURNAL, 0, 0)
    only_a = control.Subscribed(1, (control.Outcome("a", "resumed", 9, 2),), bus)
    from_start = make_places(("a", "b"), "start")
    from_start.subscribed(only_a)
    assert from_start.start() == control.FromPositions((("a", 9, 2), ("b", 0, 0)))
    from_positions = make_places(("a", "b"), {"a": Position(8, 1), "b": Position(3, 4)})
    from_positions.subscribed(only_a)
    assert from_positions.start() == control.FromPositions((("a", 8, 1), ("b", 3, 4)))


def test_positions_of_another_journal_mean_nothing() -> None:
    """Epochs of two journals may be equal, so the server would go on behind records that were never there."""
    places = make_places(("a",), "new")
    assert places.connected(JOURNAL) == []
    places.subscribed(control.Subscribed(1, (control.Outcome("a", "new", 9, 2),), control.FromBus(JOURNAL, 0, 0)))
    assert places.connected(JOURNAL) == []
    assert places.start() == control.FromPositions((("a", 9, 2),))
    assert [(event.name, event.channel, event.at) for event in places.connected(bytes(16))] == [("diverged", "a", 0)]
    assert places.start() == control.FromPositions((("a", 0, 0),))


class Arrived:
    """As much of a batch as a place looks at."""

    def __init__(self, channel: str, first: int, last: int) -> None:
        self.channel, self.epoch, self.first, self.last = channel, 1, first, last


def test_a_gap_behind_dropped_is_told_as_that_once_for_each_channel() -> None:
    places = LiteralPlaces(("a", "b"), control.FromNew())
    for name in ("a", "b"):
        assert places.accept(Arrived(name, 1, 3))[1] is None  # type: ignore[arg-type]
    places.dropped()
    assert places.accept(Arrived("a", 7, 8))[1] == SubscriptionEvent("gone", "a", 1, 4, 3, 5)  # type: ignore[arg-type]
    assert places.accept(Arrived("a", 10, 10))[1] == SubscriptionEvent("trimmed", "a", 1, 10)  # type: ignore[arg-type]
    assert places.accept(Arrived("b", 4, 4))[1] is None  # type: ignore[arg-type]
    assert places.accept(Arrived("b", 6, 6))[1] == SubscriptionEvent("trimmed", "b", 1, 6)  # type: ignore[arg-type]
    places.dropped()
    places.connected(JOURNAL)
    assert places.accept(Arrived("a", 20, 20))[1] == SubscriptionEvent("trimmed", "a", 1, 20)  # type: ignore[arg-type]
