"""One view of all that is stored: the archive, then the segments that are not in it yet, sealed and active alike.

A reader takes the segments that there are and the archive's snapshot after them. Between the two more may come to the
archive, so a chunk may be seen in both; it is never in neither. The archive may also be ahead of its own checkpoint,
while a slice is being written to it. So the sequence is the seam: what has been read from the archive is not read
again.

Chunks from the archive have no group and no index of their own any more and come with (0, 0); in bus order they do.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker.log.reader import ChannelReader, GroupScan, read_back, sequence_at, time_to_group
from broker.log.resolve import read_again
from broker.log.segment import SEQUENCE_MAX
from broker.model.errors import StorageError
from broker_native.groups import chunk_cut, chunk_head

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from broker.log.archive import Archive, Snapshot
    from broker.log.reader import Chunk
    from broker.log.segment import Segment
    from broker_native.answers import StretchReader


class Reading:
    """What is stored as it was at one instant; `View.reading` makes it. One thread.

    Args:
        snapshot: the archive's.
        live: the segments that are not in it, oldest first.
        channels: reads them.
    """

    __slots__ = ("_channels", "_live", "_snapshot")

    def __init__(self, snapshot: Snapshot, live: tuple[Segment, ...], channels: ChannelReader) -> None:
        self._snapshot = snapshot
        self._live = live
        self._channels = channels

    @property
    def overtaken(self) -> bool:
        """Whether a segment went to the archive and was removed meanwhile: what fails for that is found by another."""
        return any(segment.gone for segment in self._live)

    def answer(self, stretches: StretchReader, begin: int, bytes_max: int, now_s: int) -> int:
        """Answer questions that the archive alone has the answers of; see `Snapshot.answer`.

        What it has of a channel is the channel's up to there, whatever segments have as well.
        """
        return self._snapshot.answer(stretches, begin, bytes_max, now_s)

    def read_channel(
        self, channel_id: int, after_sequence: int, bytes_max: int, before_sequence: int = 0
    ) -> list[Chunk]:
        """Return chunks of a channel; see `Log.read_channel`."""
        archived = self._snapshot.chunks(channel_id, after_sequence, bytes_max, before_sequence)
        last = _last(archived) or after_sequence
        before = before_sequence or SEQUENCE_MAX
        if archived and last + 1 >= before:
            return _placed(archived)
        room = bytes_max - sum(map(len, archived))
        if archived and room <= 0:
            return _placed(archived)
        rest = self._channels.read(self._live, channel_id, last, room, before)
        if not archived:
            return rest
        # What does not go on from the archive's last chunk follows others there that had no room.
        if not rest or len(rest[0][2]) > room or _first(rest[0][2]) > last + 1:
            return _placed(archived)
        return [*_placed(archived), *_cut(rest, last)]

    def read_channel_back(self, channel_id: int, before_sequence: int, count: int, bytes_max: int) -> list[Chunk]:
        """Return the newest chunks of a channel before a sequence; see `Log.read_channel_back`."""
        newest = read_back(self._live, channel_id, before_sequence, count, bytes_max)
        begin = _first(newest[0][2]) if newest else before_sequence
        missing = count - (before_sequence - begin)
        room = bytes_max - sum(len(chunk) for _, _, chunk in newest)
        if newest and (missing <= 0 or begin == 1 or room <= 0):
            return newest
        archived = self._snapshot.chunks_back(channel_id, begin, missing, room)
        if newest and archived and (_last(archived) + 1 < begin or len(archived[-1]) > room):
            return newest
        return [*_placed(archived), *_cut(newest, _last(archived))]

    def sequence_at(self, channel_id: int, first: int, next_sequence: int, time_us: int) -> int:
        """Return the first sequence of a channel of a time or later; see `Log.sequence_at`."""
        return sequence_at(
            lambda after: self.read_channel(channel_id, after, 0, next_sequence), first, next_sequence, time_us
        )


class View:
    """Reads over archive and segments; any thread.

    Args:
        archive: the archive.
        segments: the segments that there are now, oldest first.
    """

    def __init__(self, archive: Archive, segments: Callable[[], tuple[Segment, ...]]) -> None:
        self._archive = archive
        self._segments = segments
        self._channels = ChannelReader()

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Hold the archive and the segments as they are now, for a bounded number of reads of one thread.

        Nothing else may be read from the view within the block: a thread has no two snapshots at a time.
        """
        segments = self._segments()
        with self._archive.snapshot() as snapshot:
            yield Reading(snapshot, _after(segments, snapshot.checkpoint.ordinal), self._channels)

    def channel(self, channel: int, after_sequence: int, bytes_max: int, before_sequence: int) -> list[Chunk]:
        """Return chunks of a channel; see `Log.read_channel`."""
        return self._read(lambda reading: reading.read_channel(channel, after_sequence, bytes_max, before_sequence))

    def channel_back(self, channel: int, before_sequence: int, count: int, bytes_max: int) -> list[Chunk]:
        """Return the newest chunks of a channel before a sequence; see `Log.read_channel_back`."""
        return self._read(lambda reading: reading.read_channel_back(channel, before_sequence, count, bytes_max))

    def _read(self, read: Callable[[Reading], list[Chunk]]) -> list[Chunk]:
        """Read from what there is; again, if it was overtaken."""
        while True:
            with self.reading() as reading:
                try:
                    return read(reading)
                except StorageError:
                    if not reading.overtaken:
                        raise

    def groups(
        self, after_group: int, after_index: int, bytes_max: int, wanted: Container[int] | None
    ) -> tuple[list[Chunk], tuple[int, int]]:
        """Return chunks in bus order after a place; see `Log.read_groups`."""

        def read(segments: tuple[Segment, ...]) -> tuple[list[Chunk], tuple[int, int]]:
            chunks: list[Chunk] = []
            place = (after_group, after_index)
            with self._archive.snapshot() as snapshot:
                checkpoint = snapshot.checkpoint
                live = _after(segments, checkpoint.ordinal)
                if after_group <= checkpoint.group:
                    chunks, place = snapshot.groups(after_group, after_index, bytes_max, wanted)
            if place != (after_group, after_index):
                # The caller goes on from there; a slice has one bound, not one for each layer.
                return chunks, place
            scan = GroupScan(after_group, after_index, bytes_max, wanted)
            scan.walk(live)
            return scan.chunks, scan.place

        return read_again(self._segments, read)

    def time_to_group(self, time_us: int) -> int | None:
        """Return the first group of that time or later, None when all are earlier."""

        def read(segments: tuple[Segment, ...]) -> int | None:
            with self._archive.snapshot() as snapshot:
                live = _after(segments, snapshot.checkpoint.ordinal)
                found = snapshot.group_at(time_us) if snapshot.checkpoint.time_us >= time_us else None
            return time_to_group(live, time_us) if found is None else found

        return read_again(self._segments, read)


def _after(segments: tuple[Segment, ...], ordinal: int) -> tuple[Segment, ...]:
    return tuple(segment for segment in segments if segment.ordinal > ordinal)


def _placed(chunks: list[bytes]) -> list[Chunk]:
    return [(0, 0, chunk) for chunk in chunks]


def _first(chunk: bytes) -> int:
    return chunk_head(chunk)[2]


def _last(chunks: list[bytes]) -> int:
    """Return the last sequence of ascending chunks, 0 when there is none."""
    if not chunks:
        return 0
    _, _, first, count = chunk_head(chunks[-1])
    return first + count - 1


def _cut(chunks: list[Chunk], after_sequence: int) -> list[Chunk]:
    """Return ascending chunks without the sequences up to one."""
    rest: list[Chunk] = []
    for group, index, chunk in chunks:
        _, _, first, count = chunk_head(chunk)
        if first > after_sequence:
            rest.append((group, index, chunk))
        elif first + count - 1 > after_sequence:
            rest.append((group, index, chunk_cut(chunk, after_sequence)))
    return rest
