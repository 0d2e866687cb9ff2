"""Messages that wait for their time: plain Python, as `broker_native.delayed` has to answer."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

ENVELOPE = struct.Struct("<QQBBBBI")
RECORD = struct.Struct("<IHHI")
CHUNK = struct.Struct("<IIQQQIIQQ")
ENTRY = struct.Struct("<QQQIIBB6x")
PUBLISH = struct.Struct("<IIQ")
S = 1_000_000
SCHEDULED, CANCELLED = 1, 2
DELAYED, DUPLICATE = 2, 1
RECORD_ID = 0x40


@dataclass(frozen=True)
class Envelope:
    due_us: int
    ticket: int
    kind: int
    channel: bytes
    id: bytes
    record: bytes
    attempts: int = 0

    def pack(self) -> bytes:
        head = ENVELOPE.pack(self.due_us, self.ticket, self.kind, len(self.channel), len(self.id), self.attempts, 0)
        payload = head + self.channel + self.id + self.record
        return RECORD.pack(RECORD.size + len(payload), 0, 0, 0) + payload


def unpack(record: bytes) -> Envelope:
    due_us, ticket, kind, channel_size, id_size, attempts, _ = ENVELOPE.unpack_from(record, RECORD.size)
    at = RECORD.size + ENVELOPE.size
    channel, id = record[at : at + channel_size], record[at + channel_size : at + channel_size + id_size]
    return Envelope(due_us, ticket, kind, channel, id, record[at + channel_size + id_size :], attempts)


def split(records: bytes) -> list[bytes]:
    """Take records apart."""
    parts = []
    while records:
        (size,) = struct.unpack_from("<I", records)
        parts.append(records[:size])
        records = records[size:]
    return parts


def record_with_id(id: bytes, payload: bytes) -> bytes:
    """A record as a PUBLISH has it."""
    return RECORD.pack(RECORD.size + 1 + len(id) + len(payload), RECORD_ID, 0, 0) + bytes([len(id)]) + id + payload


def publish_body(slot: int, number: int, records: list[bytes]) -> bytes:
    """The body of a PUBLISH."""
    return PUBLISH.pack(slot, len(records), number) + b"".join(records)


def chunk_of(first: int, records: list[bytes]) -> bytes:
    """A slot's chunk; its checksum is nobody's business here."""
    body = b"".join(records)
    return CHUNK.pack(CHUNK.size + len(body), 0, 7, 1 << 40, first, len(records), 0, 0, 0) + body


def slot_for(due_us: int, cursor_s: int) -> tuple[int, int]:
    due_s = due_us // S
    for level in range(3):
        width = 64 ** (level + 1)
        if due_s // width <= cursor_s // width + 1:
            return level, due_s // 64**level % 128
    return 3, due_s // 64**3 % 128


class PlainWaiting:
    """As `broker_native.delayed.Waiting`, without its bound on the order."""

    def __init__(self) -> None:
        self.waiting: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        self.noted: dict[int, tuple[tuple[bytes, bytes], int]] = {}
        self.cancelled: set[int] = set()
        self.complete = False
        self.changes: list[tuple[tuple[bytes, bytes], tuple[int, int] | None]] = []
        self.settled = 0
        self.order: list[tuple[int, int, Envelope]] = []
        self.hand: list[tuple[int, int, Envelope]] = []
        self.groups: list[tuple[bytes, list[Envelope]]] = []

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def mark(self) -> int:
        return self.settled + len(self.changes)

    def _set(self, key: tuple[bytes, bytes], value: tuple[int, int] | None) -> None:
        self.changes.append((key, self.waiting.get(key)))
        if value is None:
            del self.waiting[key]
        else:
            self.waiting[key] = value

    def settle(self, mark: int) -> None:
        self.changes = self.changes[mark - self.settled :]
        self.settled = mark

    def take_back(self, count: int) -> None:
        for _ in range(count):
            key, before = self.changes.pop()
            if before is None:
                del self.waiting[key]
            else:
                self.waiting[key] = before

    def undo(self) -> None:
        self.take_back(len(self.changes))
        self.order, self.hand, self.groups = [], [], []

    def schedule(self, channel: bytes, body: bytes, level: int, due_us: int, ticket: int) -> tuple[bytes, int, bytes]:
        slot, _, number = PUBLISH.unpack_from(body)
        taken: list[Envelope] = []
        entries: list[list[int]] = []
        for record in split(body[PUBLISH.size :]):
            id = record[13 : 13 + record[12]]
            found = self.waiting.get((channel, id))
            if found is None:
                taken.append(Envelope(due_us, ticket + len(taken), SCHEDULED, channel, id, record))
                self._set((channel, id), (due_us, taken[-1].ticket))
            flags = DELAYED if found is None else DELAYED | DUPLICATE
            until = due_us if found is None else found[0]
            if entries and entries[-1][2:] == [until, flags]:
                entries[-1][1] += 1
            else:
                entries.append([number, 1, until, flags])
            number += 1
        packed = b"".join(
            ENTRY.pack(first, 0, until, count, slot, level, flags) for first, count, until, flags in entries
        )
        return b"".join(each.pack() for each in taken), len(taken), packed

    def cancel(self, channel: bytes, id: bytes) -> tuple[bytes, int] | None:
        found = self.waiting.get((channel, id))
        if found is None:
            return None
        self._set((channel, id), None)
        return Envelope(*found, CANCELLED, channel, id, b"").pack(), found[0]

    def find_waiting(self, channel: bytes, id: bytes) -> tuple[int, int] | None:
        return self.waiting.get((channel, id))

    def note(self, first: int, records: list[bytes], after: tuple[int, int], until: int) -> None:
        for sequence, record in enumerate(records, first):
            envelope = unpack(record)
            if sequence >= until or (envelope.due_us, sequence) <= after:
                continue
            if envelope.kind == CANCELLED:
                self.cancelled.add(envelope.ticket)
            else:
                _, due_us = self.noted.get(envelope.ticket, ((b"", b""), 0))
                key = (envelope.channel, envelope.id)
                self.noted[envelope.ticket] = (key, max(due_us, envelope.due_us))

    def finish(self) -> None:
        self.complete = True
        for ticket, (key, due_us) in self.noted.items():
            if ticket not in self.cancelled:
                self.waiting[key] = (due_us, ticket)

    def _is_live(self, envelope: Envelope) -> bool:
        return self.waiting.get((envelope.channel, envelope.id)) == (envelope.due_us, envelope.ticket)

    def _push(self, sequence: int, envelope: Envelope) -> None:
        self.order.append((envelope.due_us, sequence, envelope))
        self.order.sort(key=lambda item: item[:2])

    def add(self, records: bytes, first: int) -> None:
        for sequence, record in enumerate(split(records), first):
            if unpack(record).kind == SCHEDULED:
                self._push(sequence, unpack(record))

    def load(self, first: int, records: list[bytes], after: tuple[int, int], until: int) -> None:
        for sequence, record in enumerate(records, first):
            envelope = unpack(record)
            wanted = envelope.kind == SCHEDULED and sequence < until and (envelope.due_us, sequence) > after
            if wanted and (not self.complete or self._is_live(envelope)):
                self._push(sequence, envelope)

    def take(self, now_us: int, bytes_max: int) -> list[bytes]:
        size = 0
        names: dict[bytes, None] = {}
        while self.order and self.order[0][0] <= now_us:
            more = len(self.order[0][2].pack()) - RECORD.size
            if size and size + more > bytes_max:
                break
            item = self.order.pop(0)
            self.hand.append(item)
            size += more
            if self._is_live(item[2]):
                names[item[2].channel] = None
        return list(names)

    def send(self) -> tuple[list[tuple[bytes, bytes, int]], tuple[int, int]]:
        groups: dict[bytes, list[Envelope]] = {}
        place = (0, 0)
        for due_us, sequence, envelope in self.hand:
            place = (due_us, sequence)
            if self._is_live(envelope):
                groups.setdefault(envelope.channel, []).append(envelope)
                self._set((envelope.channel, envelope.id), None)
        self.hand = []
        self.groups = list(groups.items())
        sent = [(name, b"".join(each.record for each in some), len(some)) for name, some in self.groups]
        return sent, place

    def refuse(self, group: int, due_us: int) -> tuple[bytes, int]:
        again = [replace(each, due_us=due_us, attempts=min(each.attempts + 1, 255)) for each in self.groups[group][1]]
        for each in again:
            self._set((each.channel, each.id), (due_us, each.ticket))
        return b"".join(each.pack() for each in again), len(again)

    def spread(
        self, first: int, records: list[bytes], after: int, until: int, cursor_s: int
    ) -> list[tuple[int, int, bytes, int]]:
        slots: dict[tuple[int, int], list[bytes]] = {}
        for sequence, record in enumerate(records, first):
            envelope = unpack(record)
            if after < sequence < until and (
                not self.complete or envelope.kind == CANCELLED or self._is_live(envelope)
            ):
                slots.setdefault(slot_for(envelope.due_us, cursor_s), []).append(record)
        return [(level, slot, b"".join(some), len(some)) for (level, slot), some in slots.items()]
