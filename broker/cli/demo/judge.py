"""Who published what, and did every subscriber get exactly that?

One `Ledger` holds what was published: for each channel the sequence before its first line, a running hash over
(sequence, payload), and when each line was handed to the client. One `Reader` for each subscriber holds what that one
received, by the same hash. Sequences say what is lost, repeated or out of order; the hash says that what came is what
was sent. Nothing here knows of a broker or a socket.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def _mix(digest: blake2b, sequence: int, payload: bytes) -> None:
    # The sizes make the boundaries part of what is hashed: "ab" + "c" is not "a" + "bc".
    digest.update(b"%d %d\n" % (sequence, len(payload)))
    digest.update(payload)


@dataclass(slots=True)
class Published:
    """What was published to one channel by its only publisher.

    Attributes:
        before: sequence before the first line, which the broker told with its first acknowledgement.
        posted_s: when each line was handed to the client, on the clock that the readers use.
    """

    channel: str
    before: int
    posted_s: array[float] = field(default_factory=lambda: array("d"))
    digest: blake2b = field(default_factory=lambda: blake2b(digest_size=16))

    def post(self, payloads: Iterable[bytes], now_s: float) -> None:
        """Note lines that are handed to the client now."""
        sequence = self.before + len(self.posted_s)
        for payload in payloads:
            sequence += 1
            _mix(self.digest, sequence, payload)
            self.posted_s.append(now_s)

    @property
    def last(self) -> int:
        """Sequence that the last line must get."""
        return self.before + len(self.posted_s)


class Ledger:
    """Everything that was published, by channel."""

    def __init__(self) -> None:
        self.channels: dict[str, Published] = {}

    def open(self, channel: str, before: int) -> Published:
        """Begin a channel whose next sequence is `before + 1`."""
        self.channels[channel] = published = Published(channel, before)
        return published

    @property
    def messages(self) -> int:
        """How many lines were published."""
        return sum(len(published.posted_s) for published in self.channels.values())


@dataclass(slots=True)
class Stream:
    """What one subscriber received of one channel.

    Attributes:
        first: the lowest sequence.
        last: the highest sequence.
        digest: over what came in step.
        missing: sequences between the two that have not come.
        in_step: every message followed the one before.
    """

    first: int
    last: int
    digest: blake2b = field(default_factory=lambda: blake2b(digest_size=16))
    missing: set[int] = field(default_factory=set)
    in_step: bool = True


@dataclass(frozen=True, slots=True)
class Tally:
    """The account of one subscriber, or of several added up.

    Attributes:
        expected: messages that it had to receive.
        received: messages that it received, repeated ones included.
        lost, duplicated, reordered: messages, by their sequences.
        altered: channels in which every sequence came once and in order, but not what was sent; and channels that
            nobody had published to.
    """

    expected: int = 0
    received: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    altered: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.expected + other.expected,
            self.received + other.received,
            self.lost + other.lost,
            self.duplicated + other.duplicated,
            self.reordered + other.reordered,
            self.altered + other.altered,
        )

    @property
    def passed(self) -> bool:
        """Say whether the subscriber got everything once, in order and unaltered."""
        wrong = self.lost + self.duplicated + self.reordered + self.altered
        return wrong == 0 and self.received == self.expected


class Reader:
    """One subscriber's account.

    Args:
        wants: says whether a channel is among what it subscribed.

    Attributes:
        received: messages, repeated ones included.
    """

    def __init__(self, wants: Callable[[str], bool]) -> None:
        self._wants = wants
        self.received = 0
        self._streams: dict[str, Stream] = {}
        self._duplicated = 0
        self._reordered = 0

    def take(self, channel: str, first: int, payloads: Sequence[bytes]) -> None:
        """Note consecutive messages of one channel as they arrive."""
        self.received += len(payloads)
        stream = self._streams.get(channel)
        if stream is None:
            self._streams[channel] = stream = Stream(first, first - 1)
        if first != stream.last + 1:
            payloads = self._take_out_of_step(stream, first, payloads)
            first = stream.last + 1
        digest = stream.digest
        for sequence, payload in enumerate(payloads, first):
            _mix(digest, sequence, payload)
        stream.last += len(payloads)

    def _take_out_of_step(self, stream: Stream, first: int, payloads: Sequence[bytes]) -> Sequence[bytes]:
        """Account for what does not follow the last message; return the part that does once a gap is noted."""
        stream.in_step = False
        stream.missing.update(range(stream.last + 1, first))
        late = [sequence for sequence in range(first, first + len(payloads)) if sequence <= stream.last]
        if first < stream.first:
            stream.missing.update(range(first, stream.first))
            stream.first = first
        for sequence in late:
            if sequence in stream.missing:
                stream.missing.remove(sequence)
                self._reordered += 1
            else:
                self._duplicated += 1
        stream.last = max(stream.last, first - 1)
        return payloads[len(late) :]

    def is_complete(self, ledger: Ledger) -> bool:
        """Say whether the last message of every channel that it wants has arrived."""
        return all(
            channel in self._streams and self._streams[channel].last >= published.last
            for channel, published in ledger.channels.items()
            if self._wants(channel)
        )

    def judge(self, ledger: Ledger) -> Tally:
        """Compare what was received with what was published."""
        tally = Tally(received=self.received, duplicated=self._duplicated, reordered=self._reordered)
        for channel, published in ledger.channels.items():
            if self._wants(channel):
                tally += _compare(published, self._streams.get(channel))
        strangers = [channel for channel in self._streams if channel not in ledger.channels or not self._wants(channel)]
        return tally + Tally(altered=len(strangers))


def _compare(published: Published, stream: Stream | None) -> Tally:
    expected = len(published.posted_s)
    if stream is None:
        return Tally(expected, lost=expected)
    lost = len(stream.missing) + max(0, published.last - stream.last) + max(0, stream.first - published.before - 1)
    altered = lost == 0 and stream.in_step and stream.digest.digest() != published.digest.digest()
    return Tally(expected, lost=lost, altered=int(altered))
