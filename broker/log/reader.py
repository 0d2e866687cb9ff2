"""Reading groups and chunks back, from the sealed segments and the active one alike.

Every call takes the segments once, ends its transactions before it returns, and copies out at most about the bytes that
it was asked for. A chunk is handed out only after its checksum was proved. Void groups
are never seen: indexes do not name them, and walks stop at a segment's last good group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.log.errors import damaged
from broker.log.segment import SEQUENCE_MAX, Segment, group_key, group_number
from broker_native.chunks import chunk_sequence_at
from broker_native.groups import chunk_head
from broker_native.index import GroupDamaged, read_header, scan_group

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    import lmdb

    Chunk = tuple[int, int, bytes]

SCAN_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of groups that one call of `read_groups` looks at, wanted or not, so that none takes long."""

ENDS_MAX = 4096
"""Ends of slices that are remembered; past it all are forgotten, and looked for once more."""


class ChannelReader:
    """Reads channels by their sequences.

    A reader of a long backlog asks slice after slice. Where the last slice of a channel ended is remembered, so that
    the next one goes on from that segment instead of looking for its place in all of them; it is only a short cut.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[int, int], int] = {}

    def read(
        self,
        segments: tuple[Segment, ...],
        channel: int,
        after_sequence: int,
        bytes_max: int,
        before_sequence: int = SEQUENCE_MAX,
    ) -> list[Chunk]:
        """Return the chunks of a channel whose last sequence is past `after_sequence`; see `Log.read_channel`."""
        ended_in = self._ends.pop((channel, after_sequence), None)
        if ended_in is None:
            segments = _from_sequence(segments, channel, after_sequence)
        else:
            # Sequences ascend with segments, so all that follows is in this one or a later one.
            segments = tuple(segment for segment in segments if segment.ordinal >= ended_in)
        chunks: list[Chunk] = []
        for segment in segments:
            places = segment.find(channel, after_sequence, bytes_max, before_sequence)
            if not places:
                continue
            # What does not go on from the last chunk follows others, of the segment before, that had no room.
            if chunks and (places[0][4] != after_sequence + 1 or places[0][3] > bytes_max):
                break
            chunks += segment.cut(channel, places)
            bytes_max -= sum(place[3] for place in places)
            after_sequence = places[-1][4] + places[-1][5] - 1
            ended_in = segment.ordinal
            if bytes_max <= 0:
                break
        if chunks and ended_in is not None:
            self._remember(channel, after_sequence, ended_in)
        return chunks

    def _remember(self, channel: int, sequence: int, ordinal: int) -> None:
        if len(self._ends) >= ENDS_MAX:
            self._ends.clear()
        self._ends[channel, sequence] = ordinal


def _from_sequence(segments: tuple[Segment, ...], channel: int, after_sequence: int) -> tuple[Segment, ...]:
    """Return the segments from the one on that holds the first chunk of the channel past a sequence.

    From the newest back to the one that holds the very next sequence: a channel's sequences are dense, so nothing that
    is wanted stands before it, and a reader near the head, the usual one, looks at one or two.
    """
    begin = len(segments)
    for at in range(len(segments) - 1, -1, -1):
        place = next(iter(segments[at].find(channel, after_sequence, 0)), None)
        if place is not None:
            begin = at
            if place[4] <= after_sequence + 1:
                break
    return segments[begin:]


def read_back(
    segments: tuple[Segment, ...], channel: int, before_sequence: int, count: int, bytes_max: int
) -> list[Chunk]:
    """Return the newest chunks of a channel before a sequence, ascending; see `Log.read_channel_back`."""
    after_sequence = max(before_sequence - 1 - count, 0)
    parts: list[list[Chunk]] = []
    for segment in reversed(segments):
        if before_sequence <= after_sequence + 1:
            break
        places = segment.find(channel, after_sequence, SEQUENCE_MAX, before_sequence)
        begin = len(places)
        while begin and ((not parts and begin == len(places)) or places[begin - 1][3] <= bytes_max):
            begin -= 1
            bytes_max -= places[begin][3]
        if begin < len(places):
            parts.append(segment.cut(channel, places[begin:]))
            before_sequence = places[begin][4]
        if begin:
            break
    return [chunk for part in reversed(parts) for chunk in part]


def sequence_at(read_one: Callable[[int], list[Chunk]], first: int, next_sequence: int, time_us: int) -> int:
    """Return the first sequence of a channel whose record is of a time or later, by halving; see `Log.sequence_at`.

    Args:
        read_one: gets a sequence and returns the chunk that goes past it, or nothing.
        first, next_sequence: the sequences to look among.
        time_us: the time.
    """
    low, high = first, next_sequence
    while low < high:
        middle = low + (high - low) // 2
        chunks = read_one(middle - 1)
        if not chunks:
            high = middle
            continue
        chunk = chunks[0][2]
        _, _, begin, count = chunk_head(chunk)
        found = chunk_sequence_at(chunk, time_us)
        if found == begin:
            high = min(begin, middle)
        elif found == begin + count:
            low = found
        else:
            return min(max(found, first), next_sequence)
    return min(max(low, first), next_sequence)


class GroupScan:
    """One walk over the groups after a place, in bus order; see `Log.read_groups`.

    Attributes:
        chunks: what was found.
        place: everything up to here was looked at.
    """

    def __init__(self, after_group: int, after_index: int, bytes_max: int, wanted: Container[int] | None) -> None:
        self.chunks: list[Chunk] = []
        self.place = (after_group, after_index)
        self._bytes_room = bytes_max
        self._scan_room = SCAN_BYTES_MAX
        self._wanted = wanted

    def walk(self, segments: tuple[Segment, ...]) -> None:
        """Walk until a bound is reached or the journal ends."""
        for segment in segments:
            if not segment.empty and segment.last.number >= self.place[0] and not self._walk_segment(segment):
                return

    def _walk_segment(self, segment: Segment) -> bool:
        """Walk one segment; tell whether there is room for more."""
        with segment.file.reading() as transaction:
            for number, group in segment.groups_from(transaction, max(self.place[0], segment.first)):
                if not self._take(segment, number, group):
                    return False
        return True

    def _take(self, segment: Segment, number: int, group: memoryview) -> bool:
        """Look at one group; tell whether there is room for more."""
        after_index = self.place[1] if number == self.place[0] else -1
        try:
            index, taken, complete = scan_group(group, number, after_index, self._bytes_room, self._wanted, self.chunks)
        except GroupDamaged as damage:
            raise damaged(segment.path, number, damage) from damage
        before = self.place
        if complete or index >= 0:
            # A group without chunks counts as looked at up to index 0; one whose first chunk had no room does not.
            self.place = (number, max(index, 0))
        self._bytes_room -= taken
        if self.place != before:
            # The group of the place passed in is seen a second time and must not use up the room of the next one.
            self._scan_room -= len(group)
        return complete and (self._bytes_room > 0 or not self.chunks) and self._scan_room > 0


def time_to_group(segments: tuple[Segment, ...], time_us: int) -> int | None:
    """Return the first group of that time or later, None when all are earlier."""
    for segment in segments:
        if not segment.empty and segment.last.time_us >= time_us:
            if segment.first_time_us >= time_us:
                return segment.first
            return _time_to_group_in(segment, time_us)
    return None


def _time_to_group_in(segment: Segment, time_us: int) -> int:
    """Find the group by halving the numbers: times never go back, and the segment ends at `time_us` or later."""
    low, high = segment.first, segment.last.number
    with segment.file.reading() as transaction:
        cursor = transaction.cursor()
        while low < high:
            middle = low + (high - low) // 2
            number, group_us = _group_time(segment, cursor, middle)
            if group_us >= time_us:
                high = middle
            else:
                low = number + 1
        return _group_time(segment, cursor, low)[0]


def _group_time(segment: Segment, cursor: lmdb.Cursor[memoryview], number: int) -> tuple[int, int]:
    """Return number and time of the first group from a number on; the caller knows that there is one."""
    cursor.set_range(group_key(number))
    found = group_number(cursor.key())
    if found is None:
        raise AssertionError(f"no group from {number} on in {segment.path}")
    try:
        return found, read_header(cursor.value()).time_us
    except GroupDamaged as damage:
        raise damaged(segment.path, found, damage) from damage
