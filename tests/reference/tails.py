"""The sequencer's state in plain Python: the twin of `broker_native.tails`.

Channels, their open chunks, producers' lines and the open group, as lists and dicts. It makes the same bytes and gives
the same answers; nothing about it is fast. It never evicts what is stored: a channel that the native tails have evicted
and taken in again must be as if it had been there all the time. Only what is stored nowhere it forgets as well, when a
test says so (`forget`); `evictable` says what may go, and `looked_up` is told of what comes back.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.reference import groups
from tests.reference.frames import EXPIRY, HEADERS, ID, KEY, PRIORITY, PUBLISH_HEADER, PUBLISHED_ENTRY
from tests.reference.groups import RECORD_HEADER, SNAPSHOT, Chunk, Entry, Group, build_chunk

if TYPE_CHECKING:
    from collections.abc import Callable

EPHEMERAL_ID = 1 << 62
EPHEMERAL_EPOCH = 1 << 39
CHUNK_BYTES_CLOSE = 65536
LINE_WINDOW = 1024
CLIENT_FLAGS = PRIORITY | EXPIRY | KEY | HEADERS | ID

NONE, EPHEMERAL, EARLY, GROUP = range(4)
LEVEL_EPHEMERAL, LEVEL_ACCEPTED, LEVEL_SYNCED = 1, 2, 3

DUPLICATE = 1
NUMBER_GAP, INVALID_CHANNEL, PAYLOAD_TOO_LARGE = 1003, 3005, 3009
HEADERS_TOO_LARGE, INVALID_RECORD, NUMBER_OVERLAP, COMMIT_UNKNOWN = 3010, 3011, 3019, 4001
LIMIT, NOT_STORED, INVALID_ID = 1006, 3025, 3034

Run = tuple[int, int, int]
"""(channel or 0, first sequence, count) of consecutive numbers."""


class Refused(Exception):
    """A record or a frame that is not taken; carries the code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


# --- What a PUBLISH may hold ---------------------------------------------------------------------------------------


def split_records(data: bytes, count: int, payload_bytes_max: int, headers_bytes_max: int) -> list[tuple[bytes, int]]:
    """Return (record, its expiry in seconds or 0) for each of `count` records that some bytes are, wholly.

    Raises:
        Refused: they are not.
    """
    found, at = [], 0
    for _ in range(count):
        if len(data) - at < RECORD_HEADER.size:
            raise Refused(INVALID_RECORD)
        size, flags, reserved, _ = RECORD_HEADER.unpack_from(data, at)
        if not RECORD_HEADER.size <= size <= len(data) - at or reserved or flags & ~CLIENT_FLAGS:
            raise Refused(INVALID_RECORD)
        record = data[at : at + size]
        fields, expiry_s = check_fields(record[RECORD_HEADER.size :], flags, headers_bytes_max)
        if size - RECORD_HEADER.size - fields > payload_bytes_max:
            raise Refused(PAYLOAD_TOO_LARGE)
        found.append((record, expiry_s))
        at += size
    if at != len(data):
        raise Refused(INVALID_RECORD)
    return found


def check_fields(body: bytes, flags: int, headers_bytes_max: int) -> tuple[int, int]:
    """Return how many bytes a record's optional fields take, and its expiry in seconds or 0.

    Raises:
        Refused: they are not well formed.
    """
    at, expiry_s = 0, 0

    def take(size: int) -> bytes:
        nonlocal at
        if at + size > len(body):
            raise Refused(INVALID_RECORD)
        at += size
        return body[at - size : at]

    if flags & PRIORITY and take(1)[0] > 3:
        raise Refused(INVALID_RECORD)
    if flags & EXPIRY:
        expiry_s = int.from_bytes(take(4), "little")
        if expiry_s == 0:
            raise Refused(INVALID_RECORD)
    if flags & KEY:
        length = int.from_bytes(take(2), "little")
        if not 1 <= length <= 255:
            raise Refused(INVALID_RECORD)
        take(length)
    if flags & HEADERS:
        length = int.from_bytes(take(2), "little")
        if length > headers_bytes_max:
            raise Refused(HEADERS_TOO_LARGE)
        if length == 0:
            raise Refused(INVALID_RECORD)
        take(length)
    if flags & ID:
        length = take(1)[0]
        if not 1 <= length <= 64:
            raise Refused(INVALID_ID)
        take(length)
    return at, expiry_s


# --- Lines ---------------------------------------------------------------------------------------------------------


class Line:
    """A producer's number line."""

    def __init__(self, producer: bytes | None = None) -> None:
        self.producer = producer
        self.next = self.closed_next = self.applied_next = 1
        self.open_first = self.commit_first = 0
        self.places: dict[int, tuple[int, int]] = {}
        self.group_numbers: list[tuple[int, int, int]] = []

    def note(self, channel: int, number: int, first: int, count: int) -> None:
        """Remember where the numbers of one frame went; those of ephemeral channels go under channel 0."""
        self.group_numbers += [(number + step, channel, first + step) for step in range(count)]

    def group_runs(self) -> list[Run]:
        """Return the runs that cover the newest 1,024 numbers of the group, whole ones."""
        runs: list[Run] = []
        for _, channel, sequence in self.group_numbers:
            last = runs[-1] if runs else (-1, 0, 0)
            if last[0] == channel and (channel == 0 or last[1] + last[2] == sequence):
                runs[-1] = (channel, last[1], last[2] + 1)
            else:
                runs.append((channel, sequence, 1))
        covered, at = 0, len(runs)
        while at and covered < LINE_WINDOW:
            at -= 1
            covered += runs[at][2]
        return runs[at:]

    def apply(self, body: bytes, snapshot: bool) -> None:
        """Take over a committed LINE entry."""
        _, number, count, runs_count, _ = groups.LINE_BODY.unpack_from(body)
        packed = body[groups.LINE_BODY.size :][: runs_count * groups.LINE_RUN.size]
        runs = list(groups.LINE_RUN.iter_unpack(packed))
        if snapshot:
            self.places.clear()
        at = number + count - sum(length for _, _, length in runs)
        for channel, first, length in runs:
            for step in range(length):
                self.places[at + step] = (channel, first + step)
            at += length
        self.applied_next = number + count
        self.closed_next = max(self.closed_next, self.applied_next)
        self.next = max(self.next, self.applied_next)

    def place_of(self, number: int) -> tuple[int, int] | None:
        """Return (channel, sequence) of a number of a stored channel within the window."""
        place = self.places.get(number)
        return place if place is not None and place[0] else None


# --- Channels ------------------------------------------------------------------------------------------------------


@dataclass
class OpenChunk:
    """The chunk that takes a channel's next record."""

    time_us: int
    records: list[bytes] = field(default_factory=list)
    expiry_s: int = 0

    @property
    def size(self) -> int:
        return groups.CHUNK_HEADER.size + sum(map(len, self.records))


@dataclass
class Channel:
    """One channel: `next` and `epoch` are the pending view."""

    name: bytes
    level: int
    shard_tokens: int
    payload_bytes_max: int
    id: int = 0
    stored_id: int = 0
    epoch: int = 0
    next: int = 1
    closed_next: int = 1
    applied_next: int = 1
    seen_next: int = 1
    first: int = 1
    epochs: list[tuple[int, int]] = field(default_factory=list)
    pending_epochs: list[tuple[int, int]] = field(default_factory=list)
    chunk: OpenChunk | None = None
    chunk_class: int = NONE
    announced: bool = False
    applied_level: int = 0
    stale: bool = False
    lost: bool = False  # stale because of what happened in this run
    leaving: bool = False
    refused: bool = False
    group: int = 0
    used_s: int = 0
    holders: int = 0

    @property
    def pending(self) -> bool:
        """Whether records of it are not applied yet."""
        return self.level != LEVEL_EPHEMERAL and self.next != self.applied_next


class Tails:
    """All channels of one shard and the open group."""

    def __init__(self, run: int) -> None:
        self.run = run
        self.group_number = 1
        self.now_us = 0
        self.accepted_waits = False
        self.refuse_code = 0
        self.channels: dict[bytes, Channel] = {}
        self.by_id: dict[int, Channel] = {}
        self.dropped: dict[bytes, int] = {}
        """Of names that are free again: the group with the drop, which a look-up must know before memory forgets it."""
        self.id_next = 1
        self.ephemeral_id_next = EPHEMERAL_ID
        self.ephemeral_epochs = 0
        self.dirty: dict[int, list[Channel]] = {EPHEMERAL: [], EARLY: [], GROUP: []}
        self.closed: dict[int, list[bytes]] = {EPHEMERAL: [], EARLY: [], GROUP: []}
        self.touched: list[Channel] = []
        self.touched_commit: list[Channel] = []
        self.entries: list[Entry] = []
        self.early: list[bytes] = []
        self.lines_open: list[Line] = []
        self.lines_commit: list[Line] = []
        self.lines_unsettled: list[Line] = []
        self.publishers: list[Publisher] = []

    def begin_run(self, run: int, group_number: int) -> None:
        self.run, self.group_number = run, group_number

    # -- decide --

    def append(self, channel: Channel, record: bytes, expiry_s: int) -> None:
        """Give one record its place."""
        if channel.chunk_class == NONE:
            self.prepare(channel)
        if channel.chunk is not None and channel.chunk.size + len(record) > CHUNK_BYTES_CLOSE:
            self.closed[channel.chunk_class].append(self.finish(channel))
        if channel.chunk is None:
            channel.chunk = OpenChunk(self.now_us)
        chunk = channel.chunk
        delta_us = self.now_us - chunk.time_us
        chunk.records.append(record[:8] + struct.pack("<I", delta_us) + record[12:])
        if expiry_s:
            chunk.expiry_s = min(chunk.expiry_s or expiry_s, expiry_s)
        channel.next += 1

    def prepare(self, channel: Channel) -> None:
        """Draw what the channel's next chunk needs."""
        fresh = channel.epoch == 0 or channel.stale
        if channel.level == LEVEL_EPHEMERAL:
            if channel.id < EPHEMERAL_ID:
                channel.id = self.ephemeral_id_next
                self.by_id[channel.id] = channel
                self.ephemeral_id_next += 1
            if fresh:
                self.ephemeral_epochs += 1
                channel.epoch = self.run << 40 | EPHEMERAL_EPOCH | self.ephemeral_epochs
            channel.chunk_class = EPHEMERAL
        else:
            self.announce(channel)
            if fresh:
                channel.epoch = self.run << 40 | self.group_number
                channel.pending_epochs.append((channel.epoch, channel.next))
                self.entries.append(groups.epoch_entry(channel.id, channel.epoch, channel.next))
            early = channel.level == LEVEL_ACCEPTED and not self.accepted_waits and channel.seen_next == channel.next
            early = early and channel.applied_level in (0, LEVEL_ACCEPTED)
            channel.chunk_class = EARLY if early else GROUP
            self.touch(channel)
        channel.stale = channel.lost = False
        channel.used_s = self.now_s
        self.dirty[channel.chunk_class].append(channel)

    @property
    def now_s(self) -> int:
        return self.now_us // 1_000_000

    def touch(self, channel: Channel) -> None:
        """The open group concerns the channel."""
        if channel not in self.touched:
            self.touched.append(channel)
        channel.group = self.group_number
        channel.used_s = self.now_s

    def announce(self, channel: Channel) -> None:
        if channel.announced:
            return
        if channel.id == 0 or channel.id >= EPHEMERAL_ID:
            self.register(channel, self.id_next)
        self.entries.append(
            groups.channel_entry(channel.id, channel.name.decode(), channel.level, channel.shard_tokens)
        )
        channel.announced = True

    def register(self, channel: Channel, channel_id: int) -> None:
        channel.id = channel.stored_id = channel_id
        self.by_id[channel_id] = channel
        self.id_next = max(self.id_next, channel_id + 1)

    # -- closes --

    def finish(self, channel: Channel) -> bytes:
        """Return the channel's open chunk as bytes; it is open no more."""
        chunk = channel.chunk
        assert chunk is not None
        channel.chunk = None
        count = len(chunk.records)
        waiting = channel.next - count
        return build_chunk(
            Chunk(channel.id, channel.epoch, waiting, count, b"".join(chunk.records), chunk.time_us, chunk.expiry_s)
        )

    def take_class(self, chunk_class: int) -> list[bytes]:
        """Return the finished chunks of a class: the full ones, then the others."""
        chunks = self.closed[chunk_class]
        for channel in self.dirty[chunk_class]:
            if channel.chunk is not None:
                chunks.append(self.finish(channel))
            channel.chunk_class = NONE
            if chunk_class != GROUP:
                channel.seen_next = channel.next
        self.dirty[chunk_class], self.closed[chunk_class] = [], []
        return chunks

    def hold_early(self) -> None:
        self.closed[GROUP] += self.closed[EARLY]
        for channel in self.dirty[EARLY]:
            channel.chunk_class = GROUP
        self.dirty[GROUP] += self.dirty[EARLY]
        self.dirty[EARLY], self.closed[EARLY] = [], []
        for publisher in self.publishers:
            publisher.hold_answers()

    def close_turn(self) -> tuple[bytes | None, bytes | None]:
        ephemeral, early = self.take_class(EPHEMERAL), self.take_class(EARLY)
        self.early += early
        return b"".join(ephemeral) or None, b"".join(early) or None

    def close_group(
        self,
        predecessor: int,
        previous_chain: int,
        term: int,
        writer: int,
        time_us: int,
        flags: int = 0,
        extra: tuple[Entry, ...] = (),
    ) -> tuple[bytes, int]:
        early, self.early = self.early, []
        self.close_lines()
        chunks = [groups.parse_chunk(chunk) for chunk in [*early, *self.take_class(GROUP)]]
        value = groups.build_group(
            Group(
                self.group_number,
                predecessor,
                previous_chain,
                (*self.entries, *extra),
                tuple(chunks),
                term,
                writer,
                self.run,
                time_us,
                flags,
            )
        )
        for channel in self.touched:
            if channel.level != LEVEL_EPHEMERAL:
                channel.closed_next = channel.next
        self.touched_commit, self.touched = self.touched, []
        self.entries = []
        self.group_number += 1
        return value, len(early)

    def close_lines(self) -> None:
        for line in self.lines_open:
            line.closed_next = line.next
            line.commit_first, line.open_first = line.open_first, 0
            if line.producer is not None:
                first = line.group_numbers[0][0]
                count = len(line.group_numbers)
                self.entries.append(groups.line_entry(line.producer, first, count, line.group_runs()))
            line.group_numbers = []
        self.lines_commit, self.lines_open = self.lines_open, []

    def take_answers(self) -> dict[Publisher, bytes]:
        return self._take("group_answers")

    def take_turn_answers(self) -> dict[Publisher, bytes]:
        return self._take("turn_answers")

    def _take(self, which: str) -> dict[Publisher, bytes]:
        taken = {}
        for publisher in self.publishers:
            answers: list[Answer] = getattr(publisher, which)
            if answers:
                taken[publisher] = b"".join(answer.pack() for answer in answers)
                answers.clear()
        return taken

    # -- apply and undo --

    def apply_group(self, value: bytes, lines: Callable[[bytes], Line]) -> list[tuple[int, int, bytes]]:
        group = groups.parse_group(value)
        rest = self.apply_entries(group.entries, lines)
        for chunk in group.chunks:
            channel = self.by_id[chunk.channel]
            after = chunk.last + 1
            channel.applied_next = after
            channel.closed_next = max(channel.closed_next, after)
            channel.seen_next = max(channel.seen_next, after)
            channel.next = max(channel.next, after)
        self.touched_commit = []
        for line in self.lines_commit:
            line.commit_first = 0
        for line in self.lines_unsettled:
            line.closed_next = line.applied_next
        self.lines_commit, self.lines_unsettled = [], []
        return rest

    def apply_entries(self, entries: tuple[Entry, ...], lines: Callable[[bytes], Line]) -> list[tuple[int, int, bytes]]:
        rest = []
        for entry in entries:
            if entry.kind == groups.CHANNEL:
                self.apply_channel(entry.body)
            elif entry.kind == groups.EPOCH:
                self.apply_epoch(*struct.unpack("<QQQ", entry.body))
            elif entry.kind == groups.HEAD:
                self.apply_head(*struct.unpack("<QQQQ", entry.body))
            elif entry.kind == groups.TRIM:
                channel_id, first, _ = struct.unpack("<QQB7x", entry.body)
                channel = self.by_id[channel_id]
                channel.first = max(channel.first, min(first, channel.applied_next))
            elif entry.kind == groups.DROP:
                channel = self.by_id.pop(*struct.unpack("<Q", entry.body))
                del self.channels[channel.name]
                self.dropped[channel.name] = channel.group
            elif entry.kind == groups.LINE:
                lines(entry.body[:16]).apply(entry.body, bool(entry.flags & SNAPSHOT))
            else:
                rest.append((entry.kind, entry.flags, entry.body))
        return rest

    def apply_channel(self, body: bytes) -> None:
        channel_id, level, shard_tokens, size, _ = struct.unpack_from("<QBBBB", body)
        name = body[12 : 12 + size]
        channel = self.channels.setdefault(name, Channel(name, level, shard_tokens, 0))
        if channel.stored_id != channel_id:
            self.register(channel, channel_id)
        channel.applied_level = level
        if not channel.payload_bytes_max:
            channel.level = level
        channel.announced = channel.level == level

    def apply_epoch(self, channel_id: int, epoch: int, first: int) -> None:
        channel = self.by_id[channel_id]
        if channel.pending_epochs:
            assert channel.pending_epochs.pop(0) == (epoch, first)
        else:
            channel.epoch = epoch
        channel.epochs.append((epoch, first))

    def apply_head(self, channel_id: int, epoch: int, after: int, first: int) -> None:
        channel = self.by_id[channel_id]
        channel.epoch = epoch
        channel.next = channel.closed_next = channel.seen_next = channel.applied_next = after
        channel.first = max(channel.first, first)

    def undo(self, handed_over: bool) -> dict[Publisher, bytes]:
        for chunk_class in (EARLY, GROUP):
            for channel in self.dirty[chunk_class]:
                channel.chunk, channel.chunk_class = None, NONE
            self.dirty[chunk_class], self.closed[chunk_class] = [], []
        for channel in {id(channel): channel for channel in self.touched_commit + self.touched}.values():
            seen = channel.seen_next > channel.applied_next
            channel.leaving = False
            if channel.level == LEVEL_EPHEMERAL:
                continue
            channel.lost = channel.lost or seen or bool(channel.pending_epochs)
            channel.stale = channel.stale or channel.lost
            channel.announced = channel.level == channel.applied_level
            channel.next = channel.closed_next = channel.seen_next = channel.applied_next
            channel.pending_epochs = []
            channel.epoch = channel.epochs[-1][0] if channel.epochs else 0
        for line in self.lines_commit + self.lines_open:
            line.next = line.commit_first or line.open_first or line.next
            line.open_first = line.commit_first = 0
            line.group_numbers = []
        for line in self.lines_commit:
            if handed_over:
                self.lines_unsettled.append(line)
            else:
                line.closed_next = line.applied_next
        self.lines_commit, self.lines_open = [], []
        self.touched, self.touched_commit, self.entries, self.early = [], [], [], []
        self.group_number += 1
        refused = {publisher: publisher.split_stored_answers() for publisher in self.publishers}
        return {publisher: answers for publisher, answers in refused.items() if answers}

    # -- trims, drops, and what nobody would miss --

    def trim(self, name: bytes, first: int, reason: int = 0) -> bool:
        channel = self.channels.get(name)
        if channel is None or channel.leaving or not channel.applied_level:
            return False
        first = min(first, channel.applied_next if channel.level == LEVEL_EPHEMERAL else channel.closed_next)
        if first <= channel.first:
            return False
        self.touch(channel)
        self.entries.append(groups.trim_entry(channel.stored_id, first, reason))
        return True

    def drop(self, name: bytes) -> bool:
        """The caller sees to it that nobody uses the channel and nothing of it is pending."""
        channel = self.channels[name]
        if not channel.applied_level:
            self.forget(name)
            return False
        self.touch(channel)
        self.entries.append(groups.drop_entry(channel.stored_id))
        channel.leaving, channel.refused = True, False
        return True

    def forget(self, name: bytes) -> None:
        """Forget a channel of which nothing is stored."""
        channel = self.channels.pop(name)
        assert not channel.applied_level
        self.by_id.pop(channel.id, None)
        if channel.group:
            self.dropped[name] = channel.group

    def looked_up(self, name: bytes) -> None:
        """What is known of a name has been looked up, and can be again."""
        self.dropped.pop(name, None)
        if name in self.channels:
            self.channels[name].group = 0

    def refuse(self, name: bytes, refused: bool) -> None:
        """Refuse publishers of a channel that is here, or take them again."""
        if name in self.channels and not self.channels[name].leaving:
            self.channels[name].refused = refused

    def evictable(self, name: bytes, settled_group: int, used_before_s: int) -> bool:
        """Whether nobody would notice that the channel is not in memory."""
        channel = self.channels[name]
        if channel.holders or channel.used_s >= used_before_s or channel.group > settled_group or channel.leaving:
            return False
        if channel.refused:
            return False
        if channel.chunk_class != NONE or channel in self.touched or channel in self.touched_commit or channel.pending:
            return False
        # Stored records that were seen and lost, or ephemeral ones of a stored channel: what is stored tells nothing of
        # them, and a reader who comes back would be told wrongly.
        ephemeral_seen = channel.level == LEVEL_EPHEMERAL and channel.epoch != 0
        return not (channel.applied_level and (channel.lost or ephemeral_seen))

    # -- policies and questions --

    def load(self, name: bytes, level: int, shard_tokens: int, payload_bytes_max: int) -> bool:
        channel = self.channels.get(name)
        if channel is None:
            group = self.dropped.pop(name, 0)
            self.channels[name] = Channel(name, level, shard_tokens, payload_bytes_max, group=group, used_s=self.now_s)
            return True
        channel.used_s = self.now_s
        if (channel.level == LEVEL_EPHEMERAL) != (level == LEVEL_EPHEMERAL):
            channel.epoch, channel.stale = 0, True
            channel.lost = channel.lost or channel.level == LEVEL_EPHEMERAL
            if channel.id >= EPHEMERAL_ID:
                channel.id = channel.stored_id
                channel.next = channel.closed_next = channel.seen_next = channel.applied_next
        channel.level, channel.shard_tokens, channel.payload_bytes_max = level, shard_tokens, payload_bytes_max
        channel.announced = level == channel.applied_level
        return False

    def mark_unclean(self, name: bytes) -> None:
        channel = self.channels.get(name)
        if channel is not None and channel.applied_level:
            channel.stale = True

    def info(self, name: bytes) -> tuple[int, int, int, int, int, int, int, list[tuple[int, int]]] | None:
        channel = self.channels.get(name)
        if channel is None:
            return None
        return (
            channel.id, channel.level, channel.epoch, channel.first, channel.applied_next, channel.next,
            channel.seen_next, list(channel.epochs),
        )  # fmt: skip


# --- A connection that publishes -----------------------------------------------------------------------------------


@dataclass
class Answer:
    """One PUBLISHED entry."""

    number: int
    epoch: int
    first: int
    count: int
    slot: int
    level: int

    def goes_on(self, other: Answer) -> bool:
        """Whether another entry is this one's continuation."""
        return (
            (other.slot, other.epoch) == (self.slot, self.epoch)
            and other.number == self.number + self.count
            and other.first == self.first + self.count
        )

    def pack(self) -> bytes:
        return PUBLISHED_ENTRY.pack(self.number, self.epoch, self.first, self.count, self.slot, self.level, 0, bytes(6))


class Publisher:
    """The publishing side of one connection."""

    def __init__(self, tails: Tails, line: Line, headers_bytes_max: int) -> None:
        self.tails = tails
        self.line = line
        self.headers_bytes_max = headers_bytes_max
        self.slots: dict[int, Channel | None] = {}
        self.turn_answers: list[Answer] = []
        self.group_answers: list[Answer] = []
        tails.publishers.append(self)

    def bind(self, number: int, name: bytes | None) -> None:
        old = self.slots.get(number)
        self.slots[number] = new = None if name is None else self.tails.channels[name]
        if new is not None:
            new.holders += 1
        if old is not None:
            old.holders -= 1
            old.used_s = self.tails.now_s

    def publish_frame(self, body: bytes) -> int:
        """Decide one PUBLISH body: 0, DUPLICATE or the code of the refusal."""
        try:
            return self._publish(body)
        except Refused as refused:
            return refused.code

    def _publish(self, body: bytes) -> int:
        if len(body) < PUBLISH_HEADER.size:
            raise Refused(INVALID_RECORD)
        slot, count, number = PUBLISH_HEADER.unpack_from(body)
        channel = self.slots.get(slot)
        if channel is None:
            raise Refused(INVALID_CHANNEL)
        if not 1 <= count <= 65535:
            raise Refused(INVALID_RECORD)
        stored = channel.level != LEVEL_EPHEMERAL
        if number >= self.line.next and stored and self.tails.refuse_code:
            raise Refused(COMMIT_UNKNOWN if number < self.line.closed_next else self.tails.refuse_code)
        if number == 0 or number > self.line.next:
            raise Refused(NUMBER_GAP)
        if number < self.line.next:
            return NUMBER_OVERLAP if number + count > self.line.next else DUPLICATE
        records = split_records(body[PUBLISH_HEADER.size :], count, channel.payload_bytes_max, self.headers_bytes_max)
        if channel.refused and channel.chunk_class == NONE:
            raise Refused(LIMIT)
        if not stored and any(RECORD_HEADER.unpack_from(record)[1] & ID for record, _ in records):
            raise Refused(NOT_STORED)
        first = channel.next
        for record, expiry_s in records:
            self.tails.append(channel, record, expiry_s and self.tails.now_us // 1_000_000 + expiry_s)
        self._number(channel, slot, number, first, count)
        return 0

    def _number(self, channel: Channel, slot: int, number: int, first: int, count: int) -> None:
        line = self.line
        line.next = number + count
        stored = channel.level != LEVEL_EPHEMERAL
        line.note(channel.id if stored else 0, number, first, count)
        if stored and not line.open_first:
            line.open_first = number
            self.tails.lines_open.append(line)
        answer = Answer(number, channel.epoch, first, count, slot, channel.level)
        answers = self.group_answers if channel.chunk_class == GROUP else self.turn_answers
        if answers and answers[-1].goes_on(answer):
            answers[-1].count += count
        else:
            answers.append(answer)

    def hold_answers(self) -> None:
        """Have the turn's answers of stored channels wait for the group."""
        self.group_answers += [answer for answer in self.turn_answers if answer.level != LEVEL_EPHEMERAL]
        self.turn_answers = [answer for answer in self.turn_answers if answer.level == LEVEL_EPHEMERAL]

    def split_stored_answers(self) -> bytes:
        """Take the answers that fail with the pending groups: those of stored channels."""
        failed = self.group_answers + [answer for answer in self.turn_answers if answer.level != LEVEL_EPHEMERAL]
        self.group_answers = []
        self.turn_answers = [answer for answer in self.turn_answers if answer.level == LEVEL_EPHEMERAL]
        return b"".join(answer.pack() for answer in failed)
