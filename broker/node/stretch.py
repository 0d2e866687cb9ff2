"""Reading a part of what is stored, as a question asks for it: a stretch of one channel, or of the bus.

Everything here runs on the reader thread: it reads the log, and of the core nothing but what it is given. What has
expired is taken out, and small chunks are joined, so that the answer is about as large as what it says.
"""

from __future__ import annotations

from collections.abc import Container
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from broker.core.epochs import Outcome, resume
from broker.core.recent import INDEX_END
from broker.model.history import PLACES_MAX, BusPart, BusQuery, HistoryPart, HistoryQuery, NamedChunk
from broker.model.levels import Level
from broker.model.names import matches
from broker.model.positions import BusPosition
from broker_native.chunks import chunk_expire, merge_chunks
from broker_native.groups import chunk_cut, chunk_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.core.ports import ChannelReader
    from broker.core.ports import Reader as LogReader

__all__ = ["Applied", "Known", "Selected", "read_bus", "read_stretch"]

CHUNK_BYTES_MAX = 64 << 10
"""How large a chunk of an answer gets by joining."""
SEQUENCES_MAX = 65_536
"""Sequences that one answer covers."""
KNOWN_MAX = 65_536
"""Names of channels that one reading of the bus remembers."""

ENTRY = Struct("<IHHQQQQ")
"""The header of an entry and four numbers of its body; whoever reads a shorter one has some bytes behind it."""
ENTRY_CHANNEL, ENTRY_EPOCH, ENTRY_HEAD, ENTRY_TRIM = 1, 2, 4, 7


class Known(NamedTuple):
    """What is committed of a channel.

    Attributes:
        id: Under which the log has it; 0 when it has nothing.
        level: What its profile promises.
        first: The oldest sequence there is.
        next: The one after the newest.
        epochs: (epoch, first sequence), oldest first.
    """

    id: int
    level: int
    first: int
    next: int
    epochs: list[tuple[int, int]]

    @property
    def epoch(self) -> int:
        """The epoch of the newest record, 0 for none."""
        return self.epochs[-1][0] if self.epochs else 0

    @classmethod
    def nothing(cls, level: int) -> Known:
        """Return what is known of a channel that is not stored."""
        return cls(0, level, 1, 1, [])

    @classmethod
    def from_entries(cls, entries: bytes) -> Known:
        """Return what the whole entries of a stored channel say."""
        channel, level, first, following = 0, 0, 1, 1
        epochs: list[tuple[int, int]] = []
        at, end = 0, len(entries)
        padded = entries + bytes(ENTRY.size)
        while at < end:
            size, kind, _, subject, one, two, three = ENTRY.unpack_from(padded, at)
            if kind == ENTRY_CHANNEL:
                channel, level = subject, one & 0xFF
            elif kind == ENTRY_EPOCH:
                epochs.append((one, two))
            elif kind == ENTRY_HEAD:
                # Of the first sequence a segment knows a lower bound only.
                following, first = two, max(first, three)
            elif kind == ENTRY_TRIM:
                first = max(first, one)
            at += size
        return cls(channel, level, first, following, epochs)


# -- a channel ---------------------------------------------------------------------------------------------------------


def read_stretch(log: ChannelReader, known: Known, query: HistoryQuery, now_s: int) -> HistoryPart:
    """Read a part of a channel.

    Args:
        log: Where it is stored.
        known: What is committed of it.
        query: What is asked for.
        now_s: Broker time, seconds: what has expired by then is not answered.

    Raises:
        StorageError: It cannot be read.
        ValueError: A chunk's records are not what its checksum vouches for.
    """
    outcome = _begin(known, query)
    low, high = _bounds(log, known, query, known.first if outcome is None else max(outcome.after + 1, known.first))
    count = min(max(high - low, 0), query.limit or SEQUENCES_MAX, SEQUENCES_MAX)
    begin, end = (high - count, high) if query.reverse else (low, low + count)
    chunks = _read_between(log, known.id, begin, end, query, now_s) if count else []
    if query.reverse:
        high = chunk_head(chunks[0])[2] if chunks else begin
    else:
        low = sum(chunk_head(chunks[-1])[2:]) if chunks else end
    name, at = (None, 0) if outcome is None else (outcome.name, outcome.at)
    joined = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return HistoryPart(
        known.epoch, known.first, known.next - 1, known.level, name, at, low - 1, high, low < high, joined
    )


def _begin(known: Known, query: HistoryQuery) -> Outcome | None:
    """Judge the position that is asked for."""
    if query.after is None or known.level == Level.EPHEMERAL:
        return None
    if query.after_epoch:
        return resume(known.epochs, known.first, known.next, query.after_epoch, query.after)
    if query.after + 1 < known.first:
        return Outcome("trimmed", known.first, known.first - 1)
    return Outcome("resumed", query.after, query.after)


def _bounds(log: ChannelReader, known: Known, query: HistoryQuery, low: int) -> tuple[int, int]:
    """Return the sequences that are asked for: from the one, before the other."""
    high = known.next if query.before is None else min(query.before, known.next)
    if query.from_us is not None and low < high:
        low = log.sequence_at(known.id, low, high, query.from_us)
    if query.until_us is not None and low < high:
        high = log.sequence_at(known.id, low, high, query.until_us)
    if query.last is not None:
        low = max(low, high - query.last)
    # Nothing may be left, and what was asked for may lie past the head: then the stretch is empty where it ends.
    return min(low, max(high, 1)), max(high, 1)


def _read_between(
    log: ChannelReader, channel: int, begin: int, end: int, query: HistoryQuery, now_s: int
) -> list[bytes]:
    """Read chunks of the sequences from `begin` before `end`: as many as there is room for, at least one."""
    if query.reverse:
        found = log.read_channel_back(channel, end, end - begin, query.bytes_max)
    else:
        found = log.read_channel(channel, begin - 1, query.bytes_max, end)
    return merge_chunks([chunk_expire(chunk, now_s) for _, _, chunk in found], CHUNK_BYTES_MAX, begin - 1, end - 1)


# -- the bus -----------------------------------------------------------------------------------------------------------


class Applied(NamedTuple):
    """How far the journal is applied: what is behind that has been delivered to nobody yet."""

    journal: bytes
    group: int


class Selected(Container[int]):
    """The channel ids that a pattern selects, and their names.

    Args:
        pattern: The pattern, checked.
        name_of: Answers the name of an id; None for one that nobody has.
    """

    def __init__(self, pattern: bytes, name_of: Callable[[int], bytes | None]) -> None:
        self._pattern = pattern
        self._name_of = name_of
        self._names: dict[int, bytes | None] = {}

    def __contains__(self, channel: object) -> bool:
        assert isinstance(channel, int)
        return self.name(channel) is not None

    def name(self, channel: int) -> bytes | None:
        """Return the name of a channel that the pattern selects, None for any other."""
        if channel not in self._names:
            if len(self._names) >= KNOWN_MAX:
                self._names.clear()
            name = self._name_of(channel)
            self._names[channel] = name if name is not None and matches(self._pattern, name) else None
        return self._names[channel]


def read_bus(
    log: LogReader,
    selected: Selected,
    query: BusQuery,
    applied: Applied,
    now_s: int,
    firsts_of: Callable[[dict[int, bytes]], dict[int, int]],
) -> BusPart:
    """Read a part of the bus; arguments and errors as for `read_stretch`.

    `firsts_of` answers for channels and their names the oldest sequence that each still has, and nothing for one that
    was removed: groups that are not archived yet hold what was trimmed or removed since.
    """
    place = (0, 0)
    if query.bus is not None:
        if query.bus.journal != applied.journal or query.bus.group > applied.group:
            return BusPart("diverged", (), BusPosition(*applied, INDEX_END), more=False)
        place = (query.bus.group, query.bus.index)
    elif query.from_us is not None:
        place = (min(max(log.time_to_group(query.from_us) - 1, 0), applied.group), INDEX_END)
    found, place = log.read_groups(*place, query.bytes_max, selected)
    if len(found) > PLACES_MAX:
        del found[PLACES_MAX:]
        place = found[-1][:2]
    if place[0] > applied.group:
        place = (applied.group, INDEX_END)
    found = [(group, index, chunk) for group, index, chunk in found if group <= applied.group]
    names = {channel: selected.name(channel) or b"" for channel, *_ in (chunk_head(chunk) for _, _, chunk in found)}
    firsts = firsts_of(names)
    chunks: list[NamedChunk] = []
    for group, index, chunk in found:
        channel, _, first, count = chunk_head(chunk)
        oldest = firsts.get(channel)
        if oldest is not None and first + count > oldest:
            kept = chunk if first >= oldest else chunk_cut(chunk, oldest - 1)
            chunks.append(NamedChunk(names[channel].decode(), group, index, chunk_expire(kept, now_s)))
    # Of a group that is the last there may be more than this answer had room for: the next one says.
    return BusPart(
        "resumed", tuple(chunks), BusPosition(applied.journal, *place), more=bool(found) or place[0] < applied.group
    )
