"""Where a subscription stands (§11): what of a DELIVER is new, and how to go on after a lost connection.

Two ways, by positions and by the bus, with one interface. Both also judge the server: a sequence that comes twice or
out of order where the document promises density is `Malformed`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .frames import Bus, Chunk, Deliver, Malformed, Outcome, Record, Subscribed

INDEX_END = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The records from behind the last one to before `at` are no longer there."""

    channel: str
    at: int


@dataclass(frozen=True, slots=True)
class Diverged:
    """What was received of the channel behind `at` does not count: those sequences are given anew."""

    channel: str
    at: int


Note = Trimmed | Diverged
New = tuple[int, Record]


def _behind(chunk: Chunk, sequence: int) -> list[New]:
    """The chunk's records with sequences above `sequence`. Of a GONE run that begins before it the rest is left."""
    found: list[New] = []
    at = chunk.first
    for record in chunk.records:
        if at + record.count - 1 > sequence:
            found.append((at, record))
        at += record.count
    return found


class ByPositions:
    """For literals that started with anything but a place of the bus or a time.

    Args:
        start: the start that the application asked for.
    """

    def __init__(self, filters: list[str], start: dict[str, object] | None) -> None:
        self._filters = filters
        self._asked = start
        self._journal = b""
        self.positions: dict[str, tuple[int, int]] = {}
        if start is not None and "positions" in start:
            rows = start["positions"]
            assert isinstance(rows, list)
            self.positions = {channel: (epoch, sequence) for channel, epoch, sequence in rows}

    def welcomed(self, journal: bytes) -> list[Note]:
        """A connection, before `start`: positions of another journal mean nothing in this one."""
        notes: list[Note] = []
        if self._journal and journal != self._journal:
            notes = [Diverged(channel, 0) for channel in self.positions]
            self.positions = dict.fromkeys(self.positions, (0, 0))
        self._journal = journal
        return notes

    def start(self) -> dict[str, object] | None:
        """The `start` to subscribe with."""
        positions = dict(self.positions)
        if self._asked == {"from": "start"} and positions:
            for channel in self._filters:
                positions.setdefault(channel, (0, 0))
        if not positions:
            return self._asked
        return {"positions": [[channel, *position] for channel, position in positions.items()]}

    def subscribed(self, answer: Subscribed) -> list[Note]:
        if sorted(outcome.channel for outcome in answer.outcomes) != sorted(self._filters):
            raise Malformed(f"outcomes {answer.outcomes} for {self._filters}")
        notes: list[Note] = []
        for outcome in answer.outcomes:
            notes += self._begin(outcome)
        return notes

    def _begin(self, outcome: Outcome) -> list[Note]:
        channel, at = outcome.channel, outcome.at
        if outcome.outcome == "trimmed":
            self.positions[channel] = (outcome.epoch, at - 1)
            return [Trimmed(channel, at)]
        if outcome.outcome == "resumed":
            self.positions.setdefault(channel, (outcome.epoch, at))
            return []
        self.positions[channel] = (outcome.epoch, at)
        return [] if outcome.outcome == "new" else [Diverged(channel, at)]

    def delivered(self, channel: str, deliver: Deliver) -> tuple[list[Note], list[New]]:
        chunk = deliver.chunk
        if channel not in self.positions:
            raise Malformed(f"a DELIVER from {channel}, which is no filter")
        epoch, sequence = self.positions[channel]
        if chunk.last <= sequence and chunk.epoch == epoch:
            return [], []
        self.positions[channel] = (chunk.epoch, chunk.last)
        if chunk.first == sequence + 1:
            return [], _behind(chunk, 0)
        if chunk.first > sequence + 1:
            return [Trimmed(channel, chunk.first)], _behind(chunk, 0)
        if chunk.epoch != epoch:
            return [Diverged(channel, chunk.first - 1)], _behind(chunk, 0)
        return [], _behind(chunk, sequence)


@dataclass(frozen=True, slots=True)
class _Mark:
    epoch: int
    last: int
    group: int


class ByBus:
    """For a pattern among the filters, and for starts by a place of the bus or a time."""

    def __init__(self, start: dict[str, object] | None) -> None:
        self._asked = start
        self.place: Bus | None = None
        self._marks: dict[str, _Mark] = {}
        # Not asked for by the document, which keeps marks only: the last of each channel, to judge density by.
        self._last: dict[str, tuple[int, int]] = {}

    def welcomed(self, journal: bytes) -> list[Note]:
        """A connection, before `start`: a place names its journal, and the server tells that it is another."""
        if self.place is not None and self.place.journal != journal:
            self._marks.clear()
        return []

    def start(self) -> dict[str, object] | None:
        """The `start` to subscribe with."""
        if self.place is None:
            return self._asked
        return {"bus": [self.place.journal, self.place.group, self.place.index]}

    def subscribed(self, answer: Subscribed) -> list[Note]:
        again = self.place is not None
        self.place = answer.bus
        notes: list[Note] = []
        for outcome in answer.outcomes:
            if outcome.channel == "" and outcome.outcome not in ("resumed", "new"):
                self._last.clear()
                notes.append(Diverged("", outcome.at))
        if again and not answer.outcomes:
            raise Malformed("a start by the bus without an outcome")
        return notes

    def delivered(self, channel: str, deliver: Deliver) -> tuple[list[Note], list[New]]:
        assert self.place is not None
        chunk = deliver.chunk
        mark = self._marks.get(channel)
        dropped = mark.last if mark is not None and mark.epoch == chunk.epoch else 0
        new = _behind(chunk, dropped)
        if deliver.group:
            self._move(channel, deliver, mark)
        return self._judge(channel, chunk, new), new

    def _move(self, channel: str, deliver: Deliver, mark: _Mark | None) -> None:
        assert self.place is not None
        chunk, group = deliver.chunk, deliver.group
        place = Bus(self.place.journal, group, deliver.index)
        if deliver.early:
            last = max(chunk.last, mark.last) if mark is not None and mark.epoch == chunk.epoch else chunk.last
            self._marks[channel] = _Mark(chunk.epoch, last, group)
            if group <= 2:
                return
            place = Bus(self.place.journal, group - 2, INDEX_END)
        if (place.group, place.index) <= (self.place.group, self.place.index):
            return
        self.place = place
        whole = place.group if place.index == INDEX_END else place.group - 1
        self._marks = {name: kept for name, kept in self._marks.items() if kept.group > whole}

    def _judge(self, channel: str, chunk: Chunk, new: list[New]) -> list[Note]:
        if not new:
            return []
        first = max(new[0][0], chunk.first)
        epoch, last = self._last.get(channel, (0, first - 1))
        self._last[channel] = (chunk.epoch, chunk.last)
        if first == last + 1:
            return []
        if first > last + 1:
            return [Trimmed(channel, first)]
        if chunk.epoch == epoch:
            raise Malformed(f"{channel}: {chunk.first} to {chunk.last} of epoch {epoch} behind {last}")
        return [Diverged(channel, first - 1)]
