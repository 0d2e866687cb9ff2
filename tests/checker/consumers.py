"""The rules of one consumer and one channel: from where it began it gets everything, once, in order.

A consumer's place is the highest position that it was handed. A delivery in the same epoch must continue at the next
sequence. One in a later epoch must continue with the record that the log has after the place: the tail of an
`accepted` epoch that a crash took is not in the log, so a reader who had seen it goes on where the log does.
Positions that were passed over are remembered: one that arrives late is reordered, one that never arrives is skipped.

What a trim removed is not in the log either; there, steps between two epochs cannot be judged, and are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.checker.history import Delivered, Finished, HistoryError, Subscribed, Trimmed
from tests.checker.verdict import Anomaly, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.checker.evidence import Evidence, Position

BEFORE_ALL: Position = (0, 0)
AFTER_ALL: Position = (1 << 64, 0)


@dataclass(slots=True)
class Reading:
    """One consumer in one channel.

    Attributes:
        begun: index of the subscription.
        place: the highest position handed over; None before the first one of a consumer that began with what is new.
        told: the consumer knows that everything below is trimmed.
        passed: (epoch, first, last) that it has gone past without them.
    """

    begun: int
    place: Position | None
    told: int = 0
    passed: list[tuple[int, int, int]] = field(default_factory=list)


def check_consumers(evidence: Evidence) -> Iterator[Anomaly]:
    """Follow every consumer through every channel that it subscribed."""
    readings: dict[tuple[str, str], Reading] = {}
    trim_asked: dict[str, int] = {}
    trims = iter(evidence.trims)
    next_trim = next(trims, None)
    for index, event in enumerate(evidence.history.events):
        while next_trim is not None and next_trim[0] < index:
            trim = next_trim[1]
            trim_asked[trim.channel] = max(trim.first, trim_asked.get(trim.channel, 0))
            next_trim = next(trims, None)
        match event:
            case Delivered():
                yield from _deliver(evidence, _reading(readings, event), event)
            case Subscribed():
                if (event.consumer, event.channel) in readings:
                    raise HistoryError(f"{event.consumer} subscribes {event.channel} a second time")
                place = BEFORE_ALL if event.from_start else None
                readings[event.consumer, event.channel] = Reading(index, place)
            case Trimmed():
                yield from _trim(trim_asked.get(event.channel, 0), _reading(readings, event), event)
            case Finished():
                yield from _finish(evidence, _reading(readings, event), event)
    for (consumer, channel), reading in readings.items():
        for epoch, first, last in reading.passed:
            yield Anomaly(Kind.SKIPPED, channel, epoch, first, last - first + 1, consumer, "never delivered")


def _reading(readings: dict[tuple[str, str], Reading], event: Delivered | Trimmed | Finished) -> Reading:
    reading = readings.get((event.consumer, event.channel))
    if reading is None:
        raise HistoryError(f"{event.consumer} never subscribed {event.channel}")
    return reading


def _deliver(evidence: Evidence, reading: Reading, event: Delivered) -> Iterator[Anomaly]:
    if not event.values:
        return
    first, last = event.first, event.first + len(event.values) - 1
    if reading.place is None:
        reading.passed += _missed_by_new(evidence, reading, event.channel, (event.epoch, first))
        reading.place = event.epoch, first - 1
    epoch, sequence = reading.place
    if event.epoch > epoch:
        gap = evidence.between(event.channel, reading.place, (event.epoch, first))
        reading.passed += [(e, max(low, reading.told), high) for e, low, high in gap if high >= reading.told]
    elif event.epoch == epoch and first > sequence + 1:
        reading.passed.append((epoch, sequence + 1, first - 1))
    for late in range(first, last + 1):
        if (event.epoch, late) > reading.place:
            break
        yield _late(reading, event, late)
    reading.place = max(reading.place, (event.epoch, last))


def _missed_by_new(evidence: Evidence, reading: Reading, channel: str, before: Position) -> list[tuple[int, int, int]]:
    """Return what the log has before a position and was published after the subscription."""
    return [
        (epoch, sequence, sequence)
        for epoch, sequences in evidence.at.get(channel, {}).items()
        for sequence, value in sequences.items()
        if (epoch, sequence) < before and sequence >= reading.told
        if evidence.invoked.get(value, -1) > reading.begun
    ]


def _late(reading: Reading, event: Delivered, sequence: int) -> Anomaly:
    """Judge one record at or below the place of its reader."""
    for place, (epoch, first, last) in enumerate(reading.passed):
        if epoch == event.epoch and first <= sequence <= last:
            rest = [(epoch, first, sequence - 1), (epoch, sequence + 1, last)]
            reading.passed[place : place + 1] = [gap for gap in rest if gap[1] <= gap[2]]
            return _anomaly(Kind.REORDERED, event, sequence, "delivered after a later one")
    assert reading.place is not None
    if event.epoch < reading.place[0]:
        return _anomaly(Kind.STALE_EPOCH, event, sequence, f"delivered after epoch {reading.place[0]}")
    return _anomaly(Kind.DUPLICATE, event, sequence, "delivered before")


def _anomaly(kind: Kind, event: Delivered, sequence: int, detail: str) -> Anomaly:
    return Anomaly(kind, event.channel, event.epoch, sequence, 1, event.consumer, detail)


def _trim(asked: int, reading: Reading, event: Trimmed) -> Iterator[Anomaly]:
    if event.first > asked:
        detail = f"said to be trimmed below {event.first}, but nobody asked for more than below {asked}"
        yield Anomaly(Kind.LOST, event.channel, 0, event.first - 1, 1, event.consumer, detail)
    reading.told = max(reading.told, event.first)
    if reading.place is not None and event.first - 1 > reading.place[1]:
        reading.place = reading.place[0], event.first - 1


def _finish(evidence: Evidence, reading: Reading, event: Finished) -> Iterator[Anomaly]:
    if reading.place is None:
        missed = _missed_by_new(evidence, reading, event.channel, AFTER_ALL)
    else:
        missed = evidence.between(event.channel, reading.place, AFTER_ALL)
    for epoch, first, last in missed:
        low = max(first, reading.told)
        if low <= last:
            detail = "in the log, and not delivered to one who caught up"
            yield Anomaly(Kind.LOST, event.channel, epoch, low, last - low + 1, event.consumer, detail)
