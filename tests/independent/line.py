"""The producer's line (§8): which number each record has, and what becomes of it. No socket, no clock.

Every record that is handed in ends in exactly one of three ways, told in its receipt: placed, refused, or unknown
(the server lost the line, or there was no line to ask again on).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .frames import Entry, Error, Malformed

NUMBER_GAP = 1003
COMMIT_UNKNOWN = 4001
INVALID_CHANNEL = 3005
# Refusals of a frame in which one record alone may be at fault.
_OF_A_RECORD = (3009, 3010, 3011)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a record went. Epoch and sequence are 0 for a duplicate whose position is no longer known."""

    epoch: int
    sequence: int
    level: int
    duplicate: bool


@dataclass
class Receipt:
    """What became of the records of one call, one element for each: None until it is known."""

    results: list[Placed | Error | None]

    @property
    def done(self) -> bool:
        return None not in self.results


# In a receipt: whether the record is stored cannot be known.
UNKNOWN = Error(COMMIT_UNKNOWN, "COMMIT_UNKNOWN", "the line was lost with its answers", None, "", 0, 0)


@dataclass
class Frame:
    """Records for one PUBLISH. `number` is 0 until they have been sent; `fixed` when they must keep theirs."""

    channel: str
    records: list[bytes]
    receipt: Receipt
    at: int
    number: int = 0
    fixed: bool = False
    waiting: set[int] = field(default_factory=set)
    refused: Error | None = None

    @property
    def last(self) -> int:
        return self.number + len(self.records) - 1

    def settle(self, result: Error) -> None:
        results = self.receipt.results
        for at in range(self.at, self.at + len(self.records)):
            results[at] = results[at] or result

    def cut(self, length: int) -> tuple[Frame, Frame]:
        """The first `length` records and the others, as two frames that keep the numbers."""
        head = Frame(self.channel, self.records[:length], self.receipt, self.at, self.number)
        tail = Frame(self.channel, self.records[length:], self.receipt, self.at + length, self.number + length)
        return head, tail


class Line:
    """The client's side of a line.

    Args:
        lasting: whether HELLO names a producer, so that the line outlives a connection.
    """

    def __init__(self, lasting: bool) -> None:
        self._lasting = lasting
        self._journal = b""
        self._next = 1
        self._kept = 0
        self._queue: deque[Frame] = deque()
        self._in_flight: list[Frame] = []
        self.held = False

    @property
    def in_flight(self) -> int:
        """Frames that are sent and not answered in full."""
        return sum(bool(frame.waiting) for frame in self._in_flight)

    def add(self, channel: str, records: list[bytes]) -> Receipt:
        receipt = Receipt([None] * len(records))
        self._queue.append(Frame(channel, records, receipt, 0))
        return receipt

    def take(self) -> Frame | None:
        """The next frame to send, numbered; None while there is none or a refusal is being cleared up."""
        if self.held or not self._queue:
            return None
        frame = self._queue.popleft()
        if not frame.fixed:
            frame.number = self._next
            self._next += len(frame.records)
        frame.refused = None
        frame.waiting = set(range(frame.number, frame.last + 1))
        self._in_flight.append(frame)
        return frame

    def published(self, entry: Entry) -> str:
        """Settle the numbers of an entry; the channel that they were sent to."""
        frames = self._covering(entry.number, entry.count)
        for offset in range(entry.count):
            number = entry.number + offset
            frame = next(frame for frame in frames if frame.number <= number <= frame.last)
            frame.waiting.discard(number)
            sequence = entry.first + offset if entry.first else 0
            placed = Placed(entry.epoch, sequence, entry.level, entry.duplicate)
            frame.receipt.results[frame.at + number - frame.number] = placed
        if entry.level >= 3 and entry.first:
            self._kept = max(self._kept, entry.number + entry.count - 1)
        self._in_flight = [frame for frame in self._in_flight if frame.waiting or frame.refused]
        return frames[0].channel

    def refused(self, error: Error) -> None:
        for frame in self._covering(error.number, error.count):
            frame.waiting = set()
            frame.refused = error
        self.held = True

    def _covering(self, number: int, count: int) -> list[Frame]:
        wanted = set(range(number, number + count))
        frames = [frame for frame in self._in_flight if not wanted.isdisjoint(frame.waiting)]
        if not count or not wanted <= set().union(*(frame.waiting for frame in frames)):
            raise Malformed(f"an answer for numbers {number} to {number + count - 1}, which wait for none")
        return frames

    def clear_up(self, repeat: dict[str, Error]) -> float | None:
        """After a refusal, once everything in flight is answered: keep what may succeed, give up what is wrong.

        Args:
            repeat: the channels that were refused by CHANNEL, and how: their INVALID_CHANNEL is judged by that.

        Returns:
            Seconds to wait before sending goes on; None if the client must connect anew instead.
        """
        refused = sorted(self._in_flight, key=lambda frame: frame.number)
        codes = {frame.refused.code for frame in refused if frame.refused is not None}
        if codes == {NUMBER_GAP} or COMMIT_UNKNOWN in codes:
            return None
        if refused:
            self._next = refused[0].number
        kept: list[Frame] = []
        for frame in refused:
            kept += self._decide(frame, repeat)
        self._queue.extendleft(reversed(kept))
        self._in_flight = []
        self.held = False
        return 0.1 if any(1000 <= code < 2000 and code != NUMBER_GAP for code in codes) else 0.0

    @staticmethod
    def _decide(frame: Frame, repeat: dict[str, Error]) -> list[Frame]:
        error = frame.refused
        assert error is not None
        if error.code == INVALID_CHANNEL:
            error = repeat.get(frame.channel, error)
        if error.retry:
            frame.fixed = False
            return [frame]
        if error.code in _OF_A_RECORD and len(frame.records) > 1:
            return list(frame.cut(len(frame.records) // 2))
        frame.settle(error)
        return []

    def lost(self) -> None:
        """The connection is lost. Without a producer, what was not answered is unknown for good."""
        if not self._lasting:
            self._unknown()
            self._next = 1

    def welcomed(self, journal: bytes, highest: int) -> None:
        """A new connection: `highest` says what was stored of that which had no answer."""
        broken = bool(self._journal) and (journal != self._journal or highest < self._kept)
        self._journal = journal
        if self._lasting and broken:
            self._unknown()
            self._kept = 0
        again: list[Frame] = []
        for frame in self._sent():
            again += self._again(frame, highest)
        self._queue = deque(again + [frame for frame in self._queue if not frame.fixed])
        self._in_flight = []
        self._next = highest + 1
        self.held = False

    def _again(self, frame: Frame, highest: int) -> list[Frame]:
        if frame.refused is not None and frame.refused.code != COMMIT_UNKNOWN:
            return self._decide(frame, {})
        if frame.number > highest:
            frame.fixed = False
            return [frame]
        parts = [frame] if frame.last <= highest else list(frame.cut(highest - frame.number + 1))
        parts[0].fixed = True
        return parts

    def _sent(self) -> list[Frame]:
        """All that has been sent under a number and has no final answer, in the order of the line."""
        frames = self._in_flight + [frame for frame in self._queue if frame.fixed]
        return sorted(frames, key=lambda frame: frame.number)

    def _unknown(self) -> None:
        for frame in self._sent():
            frame.settle(UNKNOWN)
        self._queue = deque(frame for frame in self._queue if not frame.fixed)
        self._in_flight = []
        self.held = False
