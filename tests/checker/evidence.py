"""A history, read once and arranged for the rules: operations by value, events by type, the log by position.

Built in one pass and not changed afterwards. Times are indexes into the list of events; positions are
(epoch, sequence) pairs, which compare in the order of a channel's log.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, NamedTuple

from tests.checker.history import (
    ACCEPTED,
    Acked,
    Committed,
    Crashed,
    Delivered,
    HistoryError,
    Invoked,
    Refused,
    Stalled,
    Started,
    TrimAcked,
    TrimAsked,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.checker.history import History, Run

Position = tuple[int, int]

NEVER = 1 << 62
"""An event index after every history."""


class Answer(NamedTuple):
    """An acknowledgement together with what it acknowledges.

    A life is what lies between two starts of the server; what it had sent when it was killed arrives within it.
    """

    at: int
    life: int
    event: Acked
    channel: str
    values: list[int]


class Evidence:
    """What the rules share.

    Attributes:
        history: the history itself.
        calls: value → the event that published it.
        invoked: value → the index of that event.
        numbers: value → its number among its producer's operations.
        refused: values whose operation was refused.
        acked_at: value → index of the first acknowledgement.
        acks: every acknowledgement.
        deliveries: (index, event) of every Delivered.
        commits: (index, event) of every Committed.
        crashes: indexes of the Crashed events.
        crashed: lives that ended with a crash.
        trims: (index, event) of every TrimAsked.
        trim_asked: channel → everything below may be missing. A channel that is not in it has no trim.
        trim_acked: channel → everything below must be missing.
        last_accepted_s: life → time of the last acknowledgement at the level `accepted` in it.
        stalled_s: life → the recorder's longest stall that was not over when it began; none is not in it.
        at: channel → epoch → sequence → value of the log; the first one where the log repeats a position.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.calls: dict[int, Invoked] = {}
        self.invoked: dict[int, int] = {}
        self.numbers: dict[int, int] = {}
        self.refused: set[int] = set()
        self.acked_at: dict[int, int] = {}
        self.acks: list[Answer] = []
        self.deliveries: list[tuple[int, Delivered]] = []
        self.commits: list[tuple[int, Committed]] = []
        self.crashes: list[int] = []
        self.crashed: set[int] = set()
        self.trims: list[tuple[int, TrimAsked]] = []
        self.trim_asked: dict[str, int] = {}
        self.trim_acked: dict[str, int] = {}
        self.last_accepted_s: dict[int, float] = {}
        self.stalled_s: dict[int, float] = {}
        self.at = {channel: _positions(runs) for channel, runs in history.log.items()}
        self._ranges: dict[str, list[tuple[int, int, int]]] = {}
        self._life = 0
        self._ends_s: list[float] = []
        self._lines: dict[str, dict[int, int]] = {}
        for index, event in enumerate(history.events):
            self._take(index, event)

    def _take(self, index: int, event: object) -> None:
        match event:
            case Delivered():
                self.deliveries.append((index, event))
            case Invoked():
                self._take_invoked(index, event)
            case Acked():
                self._take_acked(index, event)
            case Refused():
                self.refused.update(self._answered(event))
            case Committed():
                self.commits.append((index, event))
            case Crashed():
                self.crashes.append(index)
                self.crashed.add(self._life)
            case Started():
                self._life += 1
                self._ends_s.append(event.at_s)
            case Stalled():
                self._take_stalled(event)
            case TrimAsked():
                self.trims.append((index, event))
                self.trim_asked[event.channel] = max(event.first, self.trim_asked.get(event.channel, 1))
            case TrimAcked():
                self.trim_acked[event.channel] = max(event.first, self.trim_acked.get(event.channel, 1))

    def _take_invoked(self, index: int, event: Invoked) -> None:
        line = self._lines.setdefault(event.producer, {})
        for number, value in enumerate(event.values, event.number):
            if value in self.invoked or number in line:
                raise HistoryError(f"{event.producer} publishes value {value} or number {number} a second time")
            self.calls[value] = event
            self.invoked[value] = index
            self.numbers[value] = number
            line[number] = value

    def _take_acked(self, index: int, event: Acked) -> None:
        values = self._answered(event)
        channels = {self.calls[value].channel for value in values}
        if len(channels) != 1:
            raise HistoryError(f"{event.producer}: one acknowledgement is about the channels {sorted(channels)}")
        self.acks.append(Answer(index, self._life, event, channels.pop(), values))
        if event.level == ACCEPTED:
            self.last_accepted_s[self._life] = event.at_s
        for value in values:
            self.acked_at.setdefault(value, index)

    def _take_stalled(self, event: Stalled) -> None:
        """A stall is written down when it is over, and a life may have ended in it."""
        begun_s = event.at_s - event.seconds
        for life in [self._life, *(life for life, end_s in enumerate(self._ends_s) if end_s > begun_s)]:
            self.stalled_s[life] = max(event.seconds, self.stalled_s.get(life, 0.0))

    def _answered(self, answer: Acked | Refused) -> list[int]:
        line = self._lines.get(answer.producer, {})
        try:
            return [line[number] for number in range(answer.number, answer.number + answer.records)]
        except KeyError as missing:
            raise HistoryError(f"{answer.producer} has an answer to number {missing}, which it never sent") from None

    def stored(self, channel: str, epoch: int) -> dict[int, int]:
        """Return sequence → value of what the log has of one epoch."""
        return self.at.get(channel, {}).get(epoch, {})

    def may_be_trimmed(self, channel: str, sequence: int) -> bool:
        """Say whether a trim that somebody asked for may have removed the sequence."""
        return sequence < self.trim_asked.get(channel, 0)

    def crash_before(self, index: int) -> int:
        """Return the index of the last crash before an event, or −1."""
        place = bisect.bisect_left(self.crashes, index)
        return self.crashes[place - 1] if place else -1

    def entries(self, channel: str) -> Iterator[tuple[int, int, int]]:
        """Yield (epoch, sequence, value) of a channel's log in the order of reading."""
        for run in self.history.log.get(channel, ()):
            for sequence, value in enumerate(run.values, run.first):
                yield run.epoch, sequence, value

    def between(self, channel: str, after: Position, before: Position) -> list[tuple[int, int, int]]:
        """Return (epoch, first, last) of what the log has strictly between two positions, ascending.

        Linear in the ranges of the channel's log: one for each epoch, as long as the log has no holes.
        """
        if channel not in self._ranges:
            self._ranges[channel] = _ranges(self.at.get(channel, {}))
        found = []
        for epoch, first, last in self._ranges[channel]:
            low = max(first, after[1] + 1) if epoch == after[0] else first
            high = min(last, before[1] - 1) if epoch == before[0] else last
            if after[0] <= epoch <= before[0] and low <= high:
                found.append((epoch, low, high))
        return found


def _positions(runs: Sequence[Run]) -> dict[int, dict[int, int]]:
    epochs: dict[int, dict[int, int]] = {}
    for run in runs:
        sequences = epochs.setdefault(run.epoch, {})
        for sequence, value in enumerate(run.values, run.first):
            sequences.setdefault(sequence, value)
    return epochs


def _ranges(epochs: dict[int, dict[int, int]]) -> list[tuple[int, int, int]]:
    ranges: list[tuple[int, int, int]] = []
    for epoch, sequences in sorted(epochs.items()):
        for sequence in sorted(sequences):
            if ranges and ranges[-1][0] == epoch and ranges[-1][2] + 1 == sequence:
                ranges[-1] = (epoch, ranges[-1][1], sequence)
            else:
                ranges.append((epoch, sequence, sequence))
    return ranges
