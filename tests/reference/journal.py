"""A journal in memory that can fail, and be found after a crash, in every way that the real one can.

It keeps the files' rules without the files: a list of segments, each a list of groups. A group whose commit failed
after it was handed over may be in its segment or not. The next group goes to a fresh segment and names the last good
one, which makes what stands behind that one in earlier segments void. `replay` follows from the segments alone.

It is the log's two ports at once: `Journal` for the commit thread, `Reader` for readers, who see good groups only. What
it has of channels and of producers' lines, `resolve` and `resolve_lines` find by folding its groups.
"""

from __future__ import annotations

from contextlib import nullcontext
from enum import Enum
from typing import TYPE_CHECKING

from broker.log.errors import AppendError
from broker.model.errors import BY_NAME
from broker_native.chunks import chunk_sequence_at
from broker_native.groups import chunk_head, chunks_in, chunks_of, chunks_start
from tests.reference import groups
from tests.reference.groups import Group, parse_group

if TYPE_CHECKING:
    from collections.abc import Container
    from contextlib import AbstractContextManager

    from broker_native.answers import StretchReader

PlacedChunk = tuple[int, int, bytes]


class Fate(Enum):
    """What becomes of an append: is it in the file, and was the caller told so?"""

    STORED = "stored"
    REFUSED = "nothing was handed over"
    SURVIVES = "handed over, failed, and in the file all the same"
    LOST = "handed over, failed, and not in the file"


class MemoryJournal:
    """Groups in segments, in memory."""

    settled_group = 0
    """Nothing can be looked up, so nothing that is stored is evicted."""

    def __init__(self) -> None:
        self.segments: list[list[bytes]] = [[]]
        self.good: list[bytes] = []
        self.fate = Fate.STORED
        self._failed = False
        self._attempted = 0
        self.settled_group = 2**64
        self._tables = groups.Tables()
        self._folded = 0

    # -- Journal --

    def stats(self) -> dict[str, int | float]:
        """Tell what a broker is judged by, of a journal that has no archive."""
        return {"commits": len(self.good), "commit_refusals": 0}

    def append(self, number: int, value: bytes) -> None:
        """Store a group, or do what `fate` says."""
        group = parse_group(value)
        last = self.last
        assert group.number == number
        assert not self._failed, "abandon comes first"
        assert (group.predecessor, group.previous_chain) == ((last.number, last.chain) if last else (0, 0))
        assert number > (last.number if last else 0)
        assert number >= self._attempted
        self._attempted = number
        if self.fate in (Fate.STORED, Fate.SURVIVES):
            self.segments[-1].append(value)
        if self.fate is Fate.STORED:
            self.good.append(value)
            return
        failure = AppendError(BY_NAME["STORAGE_FAILED"].code, f"group {number}: {self.fate.value}")
        failure.handed_over = self._failed = self.fate is not Fate.REFUSED
        raise failure

    def abandon(self) -> None:
        """Go on in a fresh segment."""
        if self._failed:
            self.segments.append([])
            self._failed = False

    @property
    def last(self) -> Group | None:
        """The last good group."""
        return parse_group(self.good[-1]) if self.good else None

    # -- a start --

    def replay(self) -> list[bytes]:
        """Return the good groups as a start finds them; from now on they are the journal."""
        limit = 2**64
        kept: list[list[bytes]] = []
        for segment in reversed(self.segments):
            found = [value for value in segment if parse_group(value).number <= limit]
            if segment:
                limit = min(limit, parse_group(segment[0]).predecessor)
            kept.insert(0, found)
        self.good = [value for segment in kept for value in segment]
        self._tables, self._folded = groups.Tables(), 0
        self.settled_group = 2**64
        self._failed = False
        self._attempted = parse_group(self.good[-1]).number if self.good else 0
        self.fate = Fate.STORED
        # Void groups at the end of a segment stay in the file; their numbers are never used again.
        while len(self.segments) > 1 and not kept[-1]:
            self.segments.pop()
            kept.pop()
        return list(self.good)

    # -- tables --

    @property
    def tables(self) -> groups.Tables:
        """What the settled groups amount to: only those can be looked up."""
        while self._folded < len(self.good) and parse_group(self.good[self._folded]).number <= self.settled_group:
            self._tables.apply_group(self.good[self._folded])
            self._folded += 1
        return self._tables

    @property
    def ids(self) -> set[int]:
        """Every id that a channel ever had, dropped ones too."""
        return {
            int.from_bytes(entry.body[:8], "little")
            for value in self.good
            for entry in parse_group(value).entries
            if entry.kind == groups.CHANNEL
        }

    @property
    def runs(self) -> list[tuple[int, bool]]:
        """Each run, and whether the one before it ended in good order."""
        found = [body for kind, body in self.tables.runs if kind == groups.RUN]
        return [(int.from_bytes(body[:8], "little"), bool(body[8])) for body in found]

    def resolve(self, names: list[bytes]) -> list[bytes]:
        """Return the entries to apply for each name, nothing for a channel that is not stored."""
        ids = {body[4 : 4 + body[2]]: channel for channel, body in self.tables.channels.items()}
        return [self._channel_entries(ids[name]) if name in ids else b"" for name in names]

    def _channel_entries(self, channel: int) -> bytes:
        tables = self.tables
        entries = [groups.Entry(groups.CHANNEL, channel.to_bytes(8, "little") + tables.channels[channel])]
        entries += [groups.epoch_entry(channel, *mark) for mark in tables.epochs.get(channel, [])]
        entries.append(groups.head_entry(channel, *tables.heads[channel]))
        return b"".join(map(groups.build_entry, entries))

    def names_of(self, ids: list[int]) -> list[bytes | None]:
        """Return the names of stored channels, None for an id that no channel has."""
        bodies = [self.tables.channels.get(channel) for channel in ids]
        return [None if body is None else body[4 : 4 + body[2]] for body in bodies]

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[bytes]:
        """The smallest names of all stored channels with a prefix past another name, ascending, at most so many."""
        tables = groups.Tables()
        for value in self.good:
            tables.apply_group(value)
        names = sorted(body[4 : 4 + body[2]] for body in tables.channels.values())
        return [name for name in names if name.startswith(prefix) and name > after][:count_max]

    def resolve_lines(self, producers: list[bytes]) -> list[bytes]:
        """Return the entry to apply for each producer's line, nothing for one that is not stored."""
        return [self._line_entry(producer) for producer in producers]

    def _line_entry(self, producer: bytes) -> bytes:
        line = self.tables.lines.get(producer)
        if line is None:
            return b""
        number = line.highest + 1
        runs: list[tuple[int, int, int]] = []
        while number - 1 in line.places:
            number -= 1
            runs.insert(0, (*line.places[number], 1))
        count = line.highest + 1 - number
        return groups.build_entry(groups.line_entry(producer, number, count, runs, groups.SNAPSHOT))

    # -- Reader --

    def reading(self) -> AbstractContextManager[MemoryJournal]:
        """Return itself: nothing of it is ever moved."""
        return nullcontext(self)

    @property
    def overtaken(self) -> bool:
        """Nothing is ever moved."""
        return False

    def answer(self, stretches: StretchReader, begin: int, bytes_max: int, now_s: int) -> int:
        """There is no archive, so none is answered in one pass."""
        return 0

    def read_channel(
        self, channel_id: int, after_sequence: int, bytes_max: int, before_sequence: int = 0
    ) -> list[PlacedChunk]:
        """Return chunks of a channel past a sequence, at least one if there is one."""
        found: list[PlacedChunk] = []
        for number, value in self._numbered():
            for index, chunk in chunks_of(value, chunks_start(value), channel_id, after_sequence):
                if (found and bytes_max < len(chunk)) or (before_sequence and chunk_head(chunk)[2] >= before_sequence):
                    return found
                found.append((number, index, chunk))
                bytes_max -= len(chunk)
        return found

    def read_channel_back(self, channel_id: int, before_sequence: int, count: int, bytes_max: int) -> list[PlacedChunk]:
        """Return the newest chunks before a sequence, back to `count` sequences before it, at least one."""
        after = max(before_sequence - 1 - count, 0)
        found = self.read_channel(channel_id, after, 1 << 62, before_sequence)
        while len(found) > 1 and sum(len(chunk) for _, _, chunk in found) > bytes_max:
            del found[0]
        return found

    def sequence_at(self, channel_id: int, first: int, next_sequence: int, time_us: int) -> int:
        """Return the first sequence whose record is of a time or later, by looking at them all."""
        for _, _, chunk in self.read_channel(channel_id, first - 1, 1 << 62, next_sequence):
            found = chunk_sequence_at(chunk, time_us)
            if found < sum(chunk_head(chunk)[2:]):
                return max(found, first)
        return next_sequence

    def read_groups(
        self, after_group: int, after_index: int, bytes_max: int, wanted: Container[int] | None
    ) -> tuple[list[PlacedChunk], tuple[int, int]]:
        """Return the wanted chunks after a place, and the place up to which everything was looked at."""
        found: list[PlacedChunk] = []
        place = (after_group, after_index)
        for number, value in self._numbered():
            for index, chunk in chunks_in(value, chunks_start(value), _Everything() if wanted is None else wanted):
                if (number, index) <= (after_group, after_index):
                    continue
                if found and bytes_max < len(chunk):
                    return found, place
                found.append((number, index, chunk))
                bytes_max -= len(chunk)
                place = (number, index)
            if number >= place[0]:
                place = max(place, (number, max(0, len(parse_group(value).chunks) - 1)))
        return found, place

    def time_to_group(self, time_us: int) -> int:
        """Return the first group of that time or later."""
        for value in self.good:
            group = parse_group(value)
            if group.time_us >= time_us:
                return group.number
        return self.last.number + 1 if self.last else 1

    def _numbered(self) -> list[tuple[int, bytes]]:
        return [(int.from_bytes(value[8:16], "little"), value) for value in self.good]


class _Everything:
    def __contains__(self, channel: object) -> bool:
        return True
