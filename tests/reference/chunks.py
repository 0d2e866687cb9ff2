"""Chunks made of the records of others, one record at a time: the twin of `broker_native.chunks`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.reference.frames import Record, build_record, records_of
from tests.reference.groups import Chunk, build_chunk, parse_chunk

U32_MAX = (1 << 32) - 1
EXPIRED, COMPACTED = 1, 2


@dataclass(frozen=True)
class Item:
    """One record at its place: sequences from `sequence` on, under an epoch, at a time since 1970."""

    sequence: int
    epoch: int
    time_us: int
    record: Record

    @property
    def next_sequence(self) -> int:
        return self.sequence + self.record.run

    @property
    def expires_s(self) -> int:
        """When it expires as a chunk's header says it, seconds since 1970, rounded down; 0 for never."""
        return self.time_us // 1_000_000 + self.record.expiry_s if self.record.expiry_s else 0

    def expired(self, now_s: int) -> bool:
        """Whether it is past its expiry, to the microsecond."""
        return self.record.expiry_s is not None and self.time_us + self.record.expiry_s * 1_000_000 <= now_s * 1_000_000

    def within(self, after: int, until: int) -> Item | None:
        """Return what of it lies past `after` and not past `until`."""
        low, high = max(self.sequence, after + 1), min(self.next_sequence, until + 1)
        if low >= high:
            return None
        record = self.record
        if record.gone is not None:
            record = replace(record, gone=(record.gone[0], high - low))
        return replace(self, sequence=low, record=record)


def items_of(chunk: bytes) -> list[Item]:
    """Return the records of a chunk."""
    parsed = parse_chunk(chunk)
    items: list[Item] = []
    sequence = parsed.first
    for record in records_of(parsed):
        items.append(Item(sequence, parsed.epoch, parsed.time_us + record.time_us, record))
        sequence += record.run
    return items


def chunk_from(channel: int, items: list[Item]) -> bytes:
    """Return the chunk of consecutive items."""
    first = items[0]
    records = b"".join(build_record(replace(item.record, time_us=item.time_us - first.time_us)) for item in items)
    expiries = [item.expires_s for item in items if item.expires_s]
    count = items[-1].next_sequence - first.sequence
    return build_chunk(
        Chunk(channel, first.epoch, first.sequence, count, records, first.time_us, min(expiries, default=0))
    )


def merge(chunks: list[bytes], bytes_max: int, after: int = 0, until: int = (1 << 64) - 1) -> list[bytes]:
    """Twin of `merge_chunks`."""
    merged: list[list[Item]] = []
    channel = parse_chunk(chunks[0]).channel if chunks else 0
    for item in (item.within(after, until) for chunk in chunks for item in items_of(chunk)):
        if item is None:
            continue
        if merged and fits(channel, merged[-1], item, bytes_max):
            merged[-1].append(item)
        else:
            merged.append([item])
    return [chunk_from(channel, items) for items in merged]


def fits(channel: int, items: list[Item], item: Item, bytes_max: int) -> bool:
    """Whether a record may stand behind others in one chunk."""
    return (
        items[0].epoch == item.epoch
        and items[-1].next_sequence == item.sequence
        and 0 <= item.time_us - items[0].time_us <= U32_MAX
        and item.next_sequence - items[0].sequence <= U32_MAX
        and len(chunk_from(channel, [*items, item])) <= bytes_max
    )


def sequence_at(chunk: bytes, time_us: int) -> int:
    """Twin of `chunk_sequence_at`."""
    items = items_of(chunk)
    return next((item.sequence for item in items if item.time_us >= time_us), items[-1].next_sequence)


def expire(chunk: bytes, now_s: int) -> bytes:
    """Twin of `chunk_expire`."""
    items: list[Item] = []
    changed = False
    for item in items_of(chunk):
        if not item.expired(now_s):
            items.append(item)
            continue
        changed = True
        put_gone(items, item, EXPIRED)
    return chunk_from(parse_chunk(chunk).channel, items) if changed else chunk


def put_gone(items: list[Item], item: Item, reason: int) -> None:
    """Put a GONE run in the place of a record; runs with the same reason become one."""
    last = items[-1].record.gone if items else None
    if last is not None and last[0] == reason:
        items[-1] = replace(items[-1], record=Record(gone=(reason, last[1] + item.record.run)))
    else:
        items.append(replace(item, record=Record(gone=(reason, item.record.run))))


def keys(chunk: bytes) -> list[tuple[bytes, int, int, bool]]:
    """Twin of `chunk_keys`."""
    return [
        (item.record.key, item.sequence, item.time_us, not item.record.payload)
        for item in items_of(chunk)
        if item.record.key is not None
    ]


def compact(chunk: bytes, latest: dict[bytes, int], deleted_until_us: int) -> bytes:
    """Twin of `chunk_compact`."""
    items: list[Item] = []
    changed = False
    for item in items_of(chunk):
        newest = latest.get(item.record.key or b"", 0)
        deleted = newest == item.sequence and not item.record.payload and item.time_us <= deleted_until_us
        if newest > item.sequence or deleted:
            changed = True
            put_gone(items, item, COMPACTED)
        elif item.record.gone is not None and item.record.gone[0] == COMPACTED:
            count = len(items)
            put_gone(items, item, COMPACTED)
            changed |= len(items) == count
        else:
            items.append(item)
    return chunk_from(parse_chunk(chunk).channel, items) if changed else chunk
