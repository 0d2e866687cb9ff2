"""What was observed of a broker while it ran, for the checker to judge.

A history is a list of events in the order in which one recorder saw them, plus the log as a fresh reader finds it at
the end. The recorder lives in one process and on one loop, so that an event that stands earlier happened earlier: an
operation that was acknowledged before another one was invoked truly precedes it.

Every published record carries a value of its own, an integer that is never published twice. A publisher that retries
repeats the value; the application does not. All that the checker says follows from who saw which value where.

The model is that of Jepsen's `total-queue` and `kafka` checkers: operations have an invocation and one of three
outcomes (acknowledged, refused, unknown), and polls are compared with each other and with the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EPHEMERAL = 1
ACCEPTED = 2
SYNCED = 3


class Invoked(NamedTuple):
    """A producer hands `values` to its client, as its operations `number`, `number + 1`, …"""

    at_s: float
    producer: str
    number: int
    channel: str
    values: Sequence[int]


class Acked(NamedTuple):
    """Operations `number … number + records − 1` are acknowledged at `first … first + count − 1` of `epoch`.

    Epoch 0 says that they are stored, but that the position is no longer known: the answer to a very late retry.
    """

    at_s: float
    producer: str
    number: int
    records: int
    epoch: int
    first: int
    level: int


class Refused(NamedTuple):
    """The operations were refused for good: no reader may ever see them."""

    at_s: float
    producer: str
    number: int
    records: int


class Unknown(NamedTuple):
    """The producer gave up on the operations without an answer: they may be stored, once, or not at all."""

    at_s: float
    producer: str
    number: int
    records: int


class Subscribed(NamedTuple):
    """A consumer begins with `channel`: from its start, or with what is invoked from now on."""

    at_s: float
    consumer: str
    channel: str
    from_start: bool


class Delivered(NamedTuple):
    """One batch of consecutive records handed to a consumer."""

    at_s: float
    consumer: str
    channel: str
    epoch: int
    first: int
    values: Sequence[int]


class Trimmed(NamedTuple):
    """A consumer is told that retention has taken everything below `first`."""

    at_s: float
    consumer: str
    channel: str
    first: int


class Finished(NamedTuple):
    """A consumer says that it has caught up with `channel`, after the last operation."""

    at_s: float
    consumer: str
    channel: str


class Committed(NamedTuple):
    """The journal reports the records as durable. Histories of a real server, seen from outside, have none."""

    at_s: float
    channel: str
    epoch: int
    first: int
    records: int


class TrimAsked(NamedTuple):
    """Somebody asks for the removal of everything below `first`: from now on it may be missing."""

    at_s: float
    channel: str
    first: int


class TrimAcked(NamedTuple):
    """The removal of everything below `first` is acknowledged: it may not come back."""

    at_s: float
    channel: str
    first: int


class Crashed(NamedTuple):
    """The server was killed: it did nothing after this event."""

    at_s: float


class Started(NamedTuple):
    """The server is about to be started: it did nothing between the crash and this event."""

    at_s: float


class Stalled(NamedTuple):
    """The recorder did nothing for up to `seconds` before this: what it wrote down then may be so much older."""

    at_s: float
    seconds: float


Event = (
    Invoked
    | Acked
    | Refused
    | Unknown
    | Subscribed
    | Delivered
    | Trimmed
    | Finished
    | Committed
    | TrimAsked
    | TrimAcked
    | Crashed
    | Started
    | Stalled
)


class Run(NamedTuple):
    """Consecutive records of one channel in the log, as a reader from the start received them."""

    epoch: int
    first: int
    values: Sequence[int]


class HistoryError(ValueError):
    """The history contradicts itself, whatever the broker did: the recorder is wrong."""


@dataclass(slots=True)
class History:
    """Everything that one check looks at.

    Attributes:
        levels: durability of each channel; one that is not named is synced.
        events: in the order in which they happened.
        log: what a reader from the start found in each channel after everything else, in the order of reading.
        accepted_window_s: how long before the last `accepted` acknowledgement of a life that ended with a crash
            another one may be for its loss to be excused; and longer by the recorder's longest stall in that life.
    """

    levels: Mapping[str, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    log: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    accepted_window_s: float = 0.05

    def level(self, channel: str) -> int:
        """Return the durability that readers of `channel` were promised."""
        return self.levels.get(channel, SYNCED)
