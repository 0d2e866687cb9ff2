"""Settings and beginnings of consumers as people say them, and listings page by page."""

from __future__ import annotations

from typing import Any

import pytest

from broker import BrokerError, BusPosition, Last, Position, Since
from broker.model.consumers import ConsumerInfo, ConsumerSettings, ConsumerStart
from broker.remote.consumers import ConsumersPages, consumer_of, named, queue_of, start_of
from broker.wire import consuming

BUS = BusPosition(bytes(16), 5, 2)
USUAL: dict[str, Any] = {"attempts_max": 0, "backoff_s": (1.0, 60.0), "dead_letter": None, "paused": False}


def test_settings_are_said_in_seconds() -> None:
    made = consumer_of("c", ("a",), lease_s=1.5, **{**USUAL, "backoff_s": (0.25, 10)})
    assert made == ConsumerSettings("c", ("a",), "exclusive", lease_ms=1500, backoff_ms=(250, 10_000))
    assert consumer_of("c", ("a",), lease_s=None, **USUAL).lease_ms == 0
    queue = queue_of("q", ("a", "b.>"), lease_s=30, lanes=True, by_key=True, **{**USUAL, "dead_letter": "dead.q"})
    assert (queue.mode, queue.lanes, queue.by_key, queue.dead_letter) == ("shared", True, True, "dead.q")


@pytest.mark.parametrize("lease_s", [-1.0, float("nan"), float("inf"), 1e9])
def test_what_is_no_time_is_refused(lease_s: float) -> None:
    with pytest.raises(BrokerError, match="INVALID_CONSUMER"):
        consumer_of("c", ("a",), lease_s=lease_s, **USUAL)


@pytest.mark.parametrize(
    ("filters", "start", "expected"),
    [
        (("a",), "start", ConsumerStart()),
        (("a.>",), "new", ConsumerStart(new=True)),
        (("a",), Position(1, 2), ConsumerStart(positions=(("a", 1, 2),))),
        (("a", "b"), {"a": Position(1, 2)}, ConsumerStart(positions=(("a", 1, 2),))),
        (("a.>",), BUS, ConsumerStart(bus=BUS)),
        (("a",), Last(3), ConsumerStart(last=3)),
        (("a.>",), Since(4), ConsumerStart(time_us=4)),
    ],
)
def test_beginnings(filters: tuple[str, ...], start: Any, expected: ConsumerStart) -> None:
    assert start_of(filters, start) == expected


@pytest.mark.parametrize(
    ("filters", "start"), [(("a", "b"), Position(1, 2)), (("a.>",), Position(1, 2)), (("a",), "yesterday"), (("a",), 7)]
)
def test_what_is_no_beginning_is_refused(filters: tuple[str, ...], start: Any) -> None:
    with pytest.raises(BrokerError, match="INVALID_POSITION"):
        start_of(filters, start)


def test_names_are_judged() -> None:
    assert named("c.one") == {"name": "c.one"}
    for name in ("", "a..b", "$x", "x" * 201):
        with pytest.raises(BrokerError, match="INVALID_CONSUMER"):
            named(name)


def told(name: str) -> dict[str, object]:
    info = ConsumerInfo(ConsumerSettings(name, ("a",)), 1, 2, 3, 4, 5, 6, 7, -1, None, (("a", 1, 2),), 2, 900)
    return consuming.pack_info(info)


def test_listings_page_until_there_are_enough() -> None:
    pages = ConsumersPages("c.", "", None)
    assert pages.next() == {"prefix": "c.", "after": "", "limit": 100}
    (one, _) = pages.take({"consumers": [told("c.a"), told("c.b")], "more": True})
    assert (one.settings.name, one.lag, one.positions) == ("c.a", -1, (("a", 1, 2),))
    assert pages.next() == {"prefix": "c.", "after": "c.b", "limit": 100}
    assert pages.take({"consumers": [], "more": False}) == ()
    assert pages.next() is None
    bounded = ConsumersPages("", "", 1)
    assert bounded.next() == {"prefix": "", "after": "", "limit": 1}
    bounded.take({"consumers": [told("c.a")], "more": True})
    assert bounded.next() is None
