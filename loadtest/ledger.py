"""Who published how much, who received what of it, and whether the two agree.

Each message carries a counter of its publisher and channel, and a `Reading` (native) checks every one that comes to a
reader: what is missing between two of them, what comes twice, what comes late, what is damaged. What the counters
cannot say is whether the first and the last ones came. Sums can: the channels of a test are new, so the broker's
sequence in a channel is the number of messages that were published before, and a reader that begins after sequence
`after` is due all that was published in the channel less `after`.

A process keeps an `Account` of its own users. In the end publishers stop; the accounts say how much was published to
each channel, by all processes together; readers read until they have what they are due, or nothing comes any more; and
what is missing then is lost. A reader that leaves earlier is due what it has received, since nobody can say what was
still on its way; gaps between what it did receive are lost all the same.

Pure: no sockets, no clock, no Locust. One thread.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from broker_native.readings import Reading, stamped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(slots=True)
class Faults:
    """What was wrong with messages.

    Attributes:
        taken: Messages that came.
        lost: Published, due, and never came.
        duplicated: Came again.
        reordered: Came behind one that was published later by the same publisher.
        corrupt: Came with other bytes.
        misplaced: Batches that did not follow in the channel's sequence.
        ahead: Messages that came before they were sent, by the clocks of two machines.
    """

    taken: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupt: int = 0
    misplaced: int = 0
    ahead: int = 0

    def add(self, other: Faults) -> None:
        """Add those of others."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def as_list(self) -> list[int]:
        """Return the counts in their order, for a message."""
        return [getattr(self, each.name) for each in fields(self)]


def number_of(channel: str) -> int:
    """Return the number that a channel's messages are stamped with."""
    return zlib.crc32(channel.encode())


def faults_of(reading: Reading) -> Faults:
    """Return what one reading has seen; `lost` is what is missing between messages that came."""
    return Faults(
        reading.taken,
        reading.missing,
        reading.duplicated,
        reading.reordered,
        reading.corrupt,
        reading.misplaced,
        reading.ahead,
    )


class Account:
    """What the users of one process published and received."""

    def __init__(self) -> None:
        self.published: dict[str, int] = {}
        self._counters: dict[tuple[str, int], int] = {}
        self._readings: dict[str, list[Reading]] = {}
        self._retired = Faults()

    # -- publishing ---------------------------------------------------------------------------------------------------

    def window(self, channel: str, publisher: int, count: int, due_ns: int, payload_bytes: int) -> list[bytes]:
        """Make the next messages of a publisher in a channel.

        Args:
            channel: its name.
            publisher: its number in that channel, which no other publisher has, in no process.
            count: how many.
            due_ns: when they are due to be sent.
            payload_bytes: of each.
        """
        return stamped(
            count,
            publisher=publisher,
            counter=self._counters.get((channel, publisher), 0),
            time_ns=due_ns,
            channel=number_of(channel),
            payload_bytes=payload_bytes,
        )

    def sent(self, channel: str, publisher: int, count: int) -> None:
        """Count a window as published: the broker has taken it, or may have.

        One that was refused is not: its counters are used again, so that readers see no gap.
        """
        self._counters[channel, publisher] = self._counters.get((channel, publisher), 0) + count
        self.published[channel] = self.published.get(channel, 0) + count

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, channel: str, after: int, payload_bytes: int) -> Reading:
        """Begin to read a channel behind a sequence."""
        reading = Reading(channel=number_of(channel), payload_bytes=payload_bytes, after=after)
        self._readings.setdefault(channel, []).append(reading)
        return reading

    def retire(self, channel: str, reading: Reading) -> None:
        """End a reading before the test ends."""
        readings = self._readings.get(channel, [])
        if reading in readings:
            readings.remove(reading)
            self._retired.add(faults_of(reading))

    # -- the end ------------------------------------------------------------------------------------------------------

    def owed(self, published: Mapping[str, int]) -> int:
        """Return how many messages are still to come to all readers, when so many were published to each channel."""
        return sum(
            max(0, published.get(channel, 0) - each.after - each.received)
            for channel, readings in self._readings.items()
            for each in readings
        )

    def settle(self, published: Mapping[str, int]) -> Faults:
        """Say what came of everything, when so many were published to each channel and nothing comes any more."""
        faults = Faults()
        faults.add(self._retired)
        for channel, readings in self._readings.items():
            for each in readings:
                seen = faults_of(each)
                # A reader that has more than it is due got what was published before it came: once too often.
                due = published.get(channel, 0) - each.after
                seen.lost = max(seen.lost, due - each.received)
                seen.duplicated += max(0, each.received - due)
                faults.add(seen)
        return faults

    @property
    def readers(self) -> int:
        """How many channels are being read, by all readers together."""
        return sum(map(len, self._readings.values()))


def sum_published(accounts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up what several processes have published to each channel."""
    total: dict[str, int] = {}
    for published in accounts:
        for channel, count in published.items():
            total[channel] = total.get(channel, 0) + count
    return total


def faults_from(values: Any) -> Faults:
    """Return faults that came as a message.

    Raises:
        ValueError: They are none.
    """
    if not isinstance(values, list) or len(values) != len(fields(Faults)) or not all(type(v) is int for v in values):
        raise ValueError(f"faults: got {str(values)[:80]!a}")
    return Faults(*values)
