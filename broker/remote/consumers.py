"""What a bus asks about consumers: settings and beginnings as people say them, and listings page by page. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from broker.bus import Last, Since
from broker.model.consumers import (
    CONSUMERS_PAGE_MAX,
    MODE_EXCLUSIVE,
    MODE_SHARED,
    ConsumerInfo,
    ConsumerSettings,
    ConsumerStart,
    check_consumer,
    check_settings,
)
from broker.model.errors import error
from broker.model.names import is_pattern
from broker.model.positions import BusPosition, Position
from broker.wire import consuming

if TYPE_CHECKING:
    from broker.bus import Start

__all__ = ["ConsumersPages", "consumer_of", "make_settings", "named", "queue_of", "start_of"]


def consumer_of(
    name: str,
    filters: tuple[str, ...],
    *,
    lease_s: float | None,
    attempts_max: int,
    backoff_s: tuple[float, float],
    dead_letter: str | None,
    paused: bool,
) -> ConsumerSettings:
    """Return the settings of a consumer with one holder at a time.

    Raises:
        RequestError: INVALID_CONSUMER, INVALID_PATTERN, INVALID_CHANNEL.
    """
    settings = ConsumerSettings(name, filters, MODE_EXCLUSIVE, dead_letter=dead_letter, paused=paused)
    return make_settings(settings, 0.0 if lease_s is None else lease_s, attempts_max, backoff_s)


def queue_of(
    name: str,
    filters: tuple[str, ...],
    *,
    lease_s: float,
    attempts_max: int,
    backoff_s: tuple[float, float],
    dead_letter: str | None,
    lanes: bool,
    by_key: bool,
    paused: bool,
) -> ConsumerSettings:
    """Return the settings of a work queue.

    Raises:
        RequestError: As for `consumer_of`.
    """
    settings = ConsumerSettings(
        name, filters, MODE_SHARED, dead_letter=dead_letter, lanes=lanes, by_key=by_key, paused=paused
    )
    return make_settings(settings, lease_s, attempts_max, backoff_s)


def make_settings(
    settings: ConsumerSettings, lease_s: float, attempts_max: int, backoff_s: tuple[float, float]
) -> ConsumerSettings:
    """Complete settings by what is said in seconds, and judge them."""
    made = replace(
        settings,
        lease_ms=milliseconds("lease", lease_s),
        attempts_max=attempts_max,
        backoff_ms=(milliseconds("back-off", backoff_s[0]), milliseconds("back-off", backoff_s[1])),
    )
    check_settings(made)
    return made


def milliseconds(what: str, seconds: float) -> int:
    """Return seconds in milliseconds; their range is judged with the settings."""
    if not isfinite(seconds) or seconds < 0:
        raise error("INVALID_CONSUMER", f"consumer: {what}: got {seconds} s, expected 0 s or more")
    return round(seconds * 1000)


def start_of(filters: tuple[str, ...], start: Start) -> ConsumerStart:
    """Return where a consumer of these filters begins.

    Raises:
        RequestError: INVALID_POSITION; the start does not fit the filters.
    """
    match start:
        case "start":
            return ConsumerStart()
        case "new":
            return ConsumerStart(new=True)
        case BusPosition():
            return ConsumerStart(bus=start)
        case Position(epoch, sequence) if len(filters) == 1 and not is_pattern(filters[0].encode()):
            return ConsumerStart(positions=((filters[0], epoch, sequence),))
        case Last(messages):
            return ConsumerStart(last=messages)
        case Since(time_us):
            return ConsumerStart(time_us=time_us)
        case Mapping():
            return ConsumerStart(
                positions=tuple((channel, epoch, sequence) for channel, (epoch, sequence) in start.items())
            )
    raise error(
        "INVALID_POSITION",
        f"consumer: got a start of {start!r:.60} for {len(filters)} filters, expected a start that fits them",
        "A position alone is of the one channel of its consumer; a mapping names the channel of each.",
    )


class ConsumersPages:
    """A listing of consumers, as `Bus.consumers` describes it; driven as `Pages` is, with `consumers`."""

    def __init__(self, prefix: str, after: str, limit: int | None) -> None:
        self._prefix = prefix
        self._after = after
        self._left = limit
        self._ended = False

    def next(self) -> Mapping[str, object] | None:
        """Return the arguments of the next request; None when the listing is over."""
        if self._ended or (self._left is not None and self._left <= 0):
            return None
        limit = CONSUMERS_PAGE_MAX if self._left is None else min(self._left, CONSUMERS_PAGE_MAX)
        return consuming.pack_consumers_query(self._prefix, self._after, limit)

    def take(self, fields: dict[str, Any]) -> tuple[ConsumerInfo, ...]:
        """Take an answer."""
        part = consuming.decode_infos(fields)
        self._ended = not part.more or not part.consumers
        if part.consumers:
            self._after = part.consumers[-1].settings.name
        if self._left is not None:
            self._left -= len(part.consumers)
        return part.consumers


def named(name: str) -> dict[str, object]:
    """Return the arguments of an operation on one consumer.

    Raises:
        RequestError: INVALID_CONSUMER; the name is none.
    """
    check_consumer(name)
    return {"name": name}
