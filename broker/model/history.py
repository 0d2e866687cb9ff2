"""Questions about what is stored, and their answers: values that the wire packs and the node carries out. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from broker.model.positions import BusPosition

__all__ = [
    "HISTORY_BYTES_DEFAULT",
    "HISTORY_BYTES_MAX",
    "NAMES_MAX",
    "PLACES_MAX",
    "BusPart",
    "BusQuery",
    "ChannelRow",
    "HistoryPart",
    "HistoryQuery",
    "NamedChunk",
    "NamesPart",
    "NamesQuery",
    "Trim",
]

KIB: Final = 1024
HISTORY_BYTES_DEFAULT: Final = 256 * KIB
HISTORY_BYTES_MAX: Final = 1024 * KIB
"""Bytes of chunks in one answer; a larger chunk comes alone."""
NAMES_MAX: Final = 1_000
"""Channels in one answer."""
PLACES_MAX: Final = 1_000
"""Chunks in one answer to a read by bus position."""


class HistoryQuery(NamedTuple):
    """A stretch of one channel. All bounds hold together.

    Attributes:
        channel: The channel's name.
        after, after_epoch: Only past this sequence; with an epoch above 0 it is a position, and judged as one.
        before: Only before this sequence.
        from_us, until_us: Only records of this time or later, and before this time.
        last: Only the newest so many sequences of what the bounds leave.
        limit: At most so many sequences in this answer, from 1.
        reverse: The newest of them first: answers go backwards, each one still ascending.
        bytes_max: At most so many bytes of chunks in this answer, but for a single larger chunk.
    """

    channel: str
    after: int | None = None
    after_epoch: int = 0
    before: int | None = None
    from_us: int | None = None
    until_us: int | None = None
    last: int | None = None
    limit: int | None = None
    reverse: bool = False
    bytes_max: int = HISTORY_BYTES_DEFAULT


class HistoryPart(NamedTuple):
    """A part of a channel's history.

    Attributes:
        epoch, first, head, level: What the channel holds, as for `channel`.
        outcome, at: How the position that was asked for was found, as for a subscription; None when none was.
        after, before: What is left of the stretch: past the one sequence and before the other.
        more: Whether anything is left.
        chunks: Whole chunks, ascending, one behind the other.
    """

    epoch: int
    first: int
    head: int
    level: int
    outcome: str | None
    at: int
    after: int
    before: int
    more: bool
    chunks: bytes


@dataclass(frozen=True, slots=True)
class BusQuery:
    """What a pattern selects, in the order of the bus: behind a place, from a time on, or from the start."""

    pattern: str
    bus: BusPosition | None = None
    from_us: int | None = None
    bytes_max: int = HISTORY_BYTES_DEFAULT


class NamedChunk(NamedTuple):
    """A chunk, its channel's name and its place on the bus."""

    channel: str
    group: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a chunk
    chunk: bytes


@dataclass(frozen=True, slots=True)
class BusPart:
    """A part of the bus's history; `bus` is where it goes on. `outcome` is `resumed` or `diverged`."""

    outcome: str
    chunks: tuple[NamedChunk, ...]
    bus: BusPosition
    more: bool


@dataclass(frozen=True, slots=True)
class NamesQuery:
    """Stored channels whose names begin with `prefix`, ascending, past `after`; at most `limit`, 1 to `NAMES_MAX`."""

    prefix: str = ""
    after: str = ""
    limit: int = NAMES_MAX
    details: bool = False


class ChannelRow(NamedTuple):
    """A channel in a listing; all but the name is 0 in one without details."""

    name: str
    epoch: int = 0
    first: int = 0
    head: int = 0
    level: int = 0


@dataclass(frozen=True, slots=True)
class NamesPart:
    """A part of a listing."""

    channels: tuple[ChannelRow, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Trim:
    """A channel whose records below `first` are to go."""

    name: str
    first: int
