"""The checker's slow twin: the same promises, written down as sentences over whole lists.

No index, no single pass, nothing remembered from one question to the next; quadratic and worse. It exists to disagree
with `check.py` when that is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.checker.history import (
    ACCEPTED,
    SYNCED,
    Acked,
    Committed,
    Crashed,
    Delivered,
    Finished,
    History,
    Invoked,
    Refused,
    Stalled,
    Started,
    Subscribed,
    TrimAcked,
    TrimAsked,
    Trimmed,
)
from tests.checker.verdict import Anomaly, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

Key = tuple[Kind, str, int, int, str]
"""Kind, channel, epoch, sequence, and the consumer that suffered it, if it was one alone."""

Position = tuple[int, int]


def keys(anomalies: Iterable[Anomaly]) -> set[Key]:
    """Return what a verdict of the real checker says, one key for each record."""
    return {(a.kind, a.channel, a.epoch, a.sequence + n, a.who) for a in anomalies for n in range(a.records)}


def check_naively(history: History) -> set[Key]:
    """Judge a history, slowly."""
    facts = Facts(history)
    return origin(facts) | kept(facts) | log(facts) | order(facts) | early(facts) | readers(facts)


class Facts:
    """The history as flat lists with one row for each record."""

    def __init__(self, history: History) -> None:
        events = list(enumerate(history.events))
        self.history = history
        self.calls = [
            (i, e.producer, e.number + n, e.channel, value)
            for i, e in events
            if isinstance(e, Invoked)
            for n, value in enumerate(e.values)
        ]
        self.acks = [
            (i, e, channel, e.first + number - e.number, value)
            for i, e in events
            if isinstance(e, Acked)
            for _, producer, number, channel, value in self.calls
            if producer == e.producer and e.number <= number < e.number + e.records
        ]
        self.refused = [
            value
            for _, e in events
            if isinstance(e, Refused)
            for _, producer, number, _, value in self.calls
            if producer == e.producer and e.number <= number < e.number + e.records
        ]
        self.deliveries = [
            (i, e, e.first + n, value)
            for i, e in events
            if isinstance(e, Delivered)
            for n, value in enumerate(e.values)
        ]
        self.commits = [
            (i, e.channel, e.epoch, e.first + n)
            for i, e in events
            if isinstance(e, Committed)
            for n in range(e.records)
        ]
        self.entries = [
            (channel, run.epoch, run.first + n, value)
            for channel, runs in history.log.items()
            for run in runs
            for n, value in enumerate(run.values)
        ]
        self.places = {(channel, epoch, sequence) for channel, epoch, sequence, _ in self.entries}
        self.asked = [(i, e.channel, e.first) for i, e in events if isinstance(e, TrimAsked)]
        self.trimmed = [(e.channel, e.first) for _, e in events if isinstance(e, TrimAcked)]

    def call(self, value: int) -> tuple[int, str, int, str, int] | None:
        return next((call for call in self.calls if call[4] == value), None)

    def gone(self, channel: str, epoch: int, sequence: int) -> bool:
        """Say whether a place is not in the log without a trim to explain it."""
        explained = any(c == channel and sequence < first for _, c, first in self.asked)
        return (channel, epoch, sequence) not in self.places and not explained

    def excused(self, index: int, ack: Acked) -> bool:
        """Say whether a crash may have taken what this acknowledgement, event `index`, is about."""
        events = self.history.events
        begin = max((i + 1 for i, e in enumerate(events[:index]) if isinstance(e, Started)), default=0)
        end = min((i for i, e in enumerate(events) if i > index and isinstance(e, Started)), default=len(events))
        life = events[begin:end]
        last_s = [e.at_s for e in life if isinstance(e, Acked) and e.level == ACCEPTED]
        stalls = [e for e in life if isinstance(e, Stalled)]
        stalls += [e for e in events[end:] if isinstance(e, Stalled) and e.at_s - e.seconds < events[end].at_s]
        return (
            ack.level == ACCEPTED
            and any(isinstance(e, Crashed) for e in life)
            and last_s[-1] - ack.at_s <= self.history.accepted_window_s + max((e.seconds for e in stalls), default=0.0)
        )


def origin(facts: Facts) -> set[Key]:
    """Values from nowhere, in the wrong channel, or two at one position."""
    reads = [(i, e.channel, e.epoch, sequence, value) for i, e, sequence, value in facts.deliveries]
    reads += [(len(facts.history.events), *entry) for entry in facts.entries]
    found: set[Key] = set()
    for index, channel, epoch, sequence, value in reads:
        call = facts.call(value)
        if call is None or call[0] > index or value in facts.refused:
            found.add((Kind.FROM_NOWHERE, channel, epoch, sequence, ""))
        elif call[3] != channel:
            found.add((Kind.WRONG_CHANNEL, channel, epoch, sequence, ""))
    claims = list(facts.entries)
    claims += [(channel, ack.epoch, sequence, value) for _, ack, channel, sequence, value in facts.acks if ack.epoch]
    claims += [read[1:] for read in reads[: len(facts.deliveries)]]
    for channel, epoch, sequence, value in claims:
        if any(c[:3] == (channel, epoch, sequence) and c[3] != value for c in claims):
            found.add((Kind.INCONSISTENT, channel, epoch, sequence, ""))
        _, first_epoch, first, _ = next(c for c in claims if c[0] == channel and c[3] == value)
        if (first_epoch, first) != (epoch, sequence) and (
            facts.history.level(channel) >= SYNCED or first_epoch == epoch
        ):
            found.add((Kind.DUPLICATE, channel, epoch, sequence, ""))
    return found


def kept(facts: Facts) -> set[Key]:
    """Acknowledged, seen or committed, and not in the log."""
    found: set[Key] = set()
    for index, ack, channel, sequence, value in facts.acks:
        if ack.level < ACCEPTED or facts.excused(index, ack):
            continue
        if ack.epoch and facts.gone(channel, ack.epoch, sequence):
            found.add((Kind.LOST, channel, ack.epoch, sequence, ""))
        untrimmed = channel not in [c for _, c, _ in facts.asked]
        if not ack.epoch and untrimmed and value not in [entry[3] for entry in facts.entries]:
            found.add((Kind.LOST, channel, 0, 0, ""))
    for _, e, sequence, _ in facts.deliveries:
        if facts.history.level(e.channel) >= SYNCED and facts.gone(e.channel, e.epoch, sequence):
            found.add((Kind.LOST, e.channel, e.epoch, sequence, ""))
    for _, channel, epoch, sequence in facts.commits:
        if facts.gone(channel, epoch, sequence):
            found.add((Kind.LOST, channel, epoch, sequence, ""))
    return found


def log(facts: Facts) -> set[Key]:
    """The log by itself: holes, steps back, what a trim had removed."""
    found: set[Key] = set()
    for place, (channel, epoch, sequence, value) in enumerate(facts.entries):
        before = [(e, s) for c, e, s, _ in facts.entries[:place] if c == channel]
        high = max((s for _, s in before), default=0)
        if not before:
            bound = max((first for _, c, first in facts.asked if c == channel), default=1)
            high = sequence - 1 if sequence <= bound else bound - 1
        found |= {(Kind.LOST, channel, 0, missing, "") for missing in range(high + 1, sequence)}
        if any(e > epoch for e, _ in before):
            found.add((Kind.STALE_EPOCH, channel, epoch, sequence, ""))
        elif any(s >= sequence for _, s in before):
            found.add((Kind.REORDERED, channel, epoch, sequence, ""))
        if value in [v for _, _, _, v in facts.entries[:place]]:
            found.add((Kind.DUPLICATE, channel, epoch, sequence, ""))
        if any(c == channel and sequence < first for c, first in facts.trimmed):
            found.add((Kind.RESURRECTED, channel, epoch, sequence, ""))
    return found


def order(facts: Facts) -> set[Key]:
    """The order of producers and of real time, and epochs that go on after a crash."""
    found: set[Key] = set()
    for place, (channel, epoch, sequence, value) in enumerate(facts.entries):
        call = facts.call(value)
        if call is None or (channel, value) in [(c, v) for c, _, _, v in facts.entries[:place]]:
            continue
        for other_place, (other_channel, _, _, other) in enumerate(facts.entries):
            other_call = facts.call(other)
            if other_channel != channel or other_call is None:
                continue
            if other_place < place and call[1] == other_call[1] and other_call[2] > call[2]:
                found.add((Kind.REORDERED, channel, epoch, sequence, ""))
            first = all(e[0] != channel or e[3] != other for e in facts.entries[:other_place])
            if other_place > place and first and any(a[0] < call[0] for a in facts.acks if a[4] == other):
                found.add((Kind.REORDERED, channel, epoch, sequence, ""))
    for _, ack, channel, sequence, value in facts.acks:
        published = next(call[0] for call in facts.calls if call[4] == value)
        crashes = [i for i, e in enumerate(facts.history.events[:published]) if isinstance(e, Crashed)]
        seen = [a[0] for a in facts.acks if (a[2], a[1].epoch) == (channel, ack.epoch)]
        seen += [d[0] for d in facts.deliveries if (d[1].channel, d[1].epoch) == (channel, ack.epoch)]
        if ack.level == ACCEPTED and ack.epoch and crashes and min(seen) < crashes[-1]:
            found.add((Kind.STALE_EPOCH, channel, ack.epoch, sequence, ""))
    return found


def early(facts: Facts) -> set[Key]:
    """Acknowledged or shown before it was durable, or at too low a level."""
    level = facts.history.level
    found: set[Key] = {
        (Kind.EARLY, channel, ack.epoch, sequence, "")
        for _, ack, channel, sequence, _ in facts.acks
        if ack.level < level(channel)
    }
    if not facts.commits:
        return found
    shown = [(i, c, a.epoch, s) for i, a, c, s, _ in facts.acks if a.level >= SYNCED and a.epoch]
    shown += [(i, e.channel, e.epoch, s) for i, e, s, _ in facts.deliveries if level(e.channel) >= SYNCED]
    for index, channel, epoch, sequence in shown:
        # Commits of a channel's epoch are in order, so one that ends later covers everything before.
        if not any(i < index and (c, e) == (channel, epoch) and s >= sequence for i, c, e, s in facts.commits):
            found.add((Kind.EARLY, channel, epoch, sequence, ""))
    return found


def readers(facts: Facts) -> set[Key]:
    """Every consumer, in each channel that it subscribed."""
    found: set[Key] = set()
    for index, event in enumerate(facts.history.events):
        if isinstance(event, Subscribed):
            found |= reader(facts, index, event)
    return found


def reader(facts: Facts, begun: int, subscribed: Subscribed) -> set[Key]:
    """Follow one consumer in one channel, record by record."""
    who, channel = subscribed.consumer, subscribed.channel
    place: Position | None = (0, 0) if subscribed.from_start else None
    told = 0
    missing: set[Position] = set()
    found: set[Key] = set()

    def in_log_between(after: Position, before: Position) -> set[Position]:
        places = {(e, s) for c, e, s in facts.places if c == channel and s >= told}
        return {position for position in places if after < position < before}

    def new_before(before: Position) -> set[Position]:
        positions = set()
        for c, e, s, _ in facts.entries:
            call = facts.call(first_value(facts, c, e, s))
            if c == channel and (e, s) < before and s >= told and call is not None and call[0] > begun:
                positions.add((e, s))
        return positions

    for index, event in enumerate(facts.history.events):
        if getattr(event, "consumer", None) != who or getattr(event, "channel", None) != channel:
            continue
        if isinstance(event, Trimmed):
            if all(i > index or c != channel or first < event.first for i, c, first in facts.asked):
                found.add((Kind.LOST, channel, 0, event.first - 1, who))
            told = max(told, event.first)
            if place is not None and place[1] < event.first - 1:
                place = place[0], event.first - 1
        if isinstance(event, Finished):
            missed = new_before((1 << 64, 0)) if place is None else in_log_between(place, (1 << 64, 0))
            found |= {(Kind.LOST, channel, *position, who) for position in missed}
        if isinstance(event, Delivered):
            for sequence in range(event.first, event.first + len(event.values)):
                at = event.epoch, sequence
                if place is None:
                    missing |= new_before(at)
                elif at in missing:
                    found.add((Kind.REORDERED, channel, *at, who))
                    missing.remove(at)
                elif at <= place:
                    stale = at[0] < place[0]
                    found.add((Kind.STALE_EPOCH if stale else Kind.DUPLICATE, channel, *at, who))
                elif at[0] == place[0]:
                    missing |= {(at[0], s) for s in range(place[1] + 1, sequence)}
                else:
                    missing |= in_log_between(place, at)
                place = at if place is None else max(place, at)
    return found | {(Kind.SKIPPED, channel, *position, who) for position in missing}


def first_value(facts: Facts, channel: str, epoch: int, sequence: int) -> int:
    """Return the value that a reader finds first at a place of the log."""
    return next(v for c, e, s, v in facts.entries if (c, e, s) == (channel, epoch, sequence))
