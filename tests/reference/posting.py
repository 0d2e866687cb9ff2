"""The server's half of publishing in plain Python: one producer's line, and what it answers to frames.

It stores whole frames or nothing, takes the number after the highest, knows duplicates, and refuses the rest, as the
protocol's specification says in §3. A record whose payload begins with `bad` makes its frame be refused, and so does a
channel whose name begins with `no`.
"""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field

from tests.reference import frames as twin

EPOCH = 77
SYNCED = 3


@dataclass
class Refused:
    """An ERROR that answers a PUBLISH."""

    number: int
    count: int
    name: str


@dataclass
class LineServer:
    """What is stored, and the line that it was published on.

    Attributes:
        window: how many numbers' positions are known for duplicates.
        entry_records_max: answers are cut into entries of so many records.
    """

    window: int = 1024
    entry_records_max: int = 1 << 16
    highest: int = 0
    stored: dict[str, list[bytes]] = field(default_factory=dict)
    positions: dict[int, tuple[str, int]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def connect(self) -> int:
        """Begin a new connection; return the highest number, as WELCOME does."""
        self.names = {}
        return self.highest

    def receive(self, stream: bytes) -> list[bytes | Refused]:
        """Take whole frames; return the PUBLISHED bodies and refusals, in order."""
        answers: list[bytes | Refused] = []
        for frame in twin.frames_of(stream):
            if frame.kind == twin.CHANNEL:
                number = int.from_bytes(frame.body[:4], "little")
                assert number <= max(self.names, default=-1) + 1, "channel numbers are not dense"
                self.names[number] = frame.body[4:].decode()
            elif frame.kind == twin.TRANSACTION:
                answers += self.transact(frame.body)
            else:
                assert frame.kind == twin.PUBLISH
                answers.append(self.publish(frame.body, frame.flags))
        return answers

    def transact(self, body: bytes) -> list[bytes | Refused]:
        """Take all publishes of a transaction or none."""
        publishes, acks = struct.unpack_from("<II", body)
        inner = twin.frames_of(body[8:])
        assert (publishes, acks) == (len(inner), 0)
        headers = [twin.PUBLISH_HEADER.unpack_from(frame.body) for frame in inner]
        numbers = [number for _, _, number in headers]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        before = copy.deepcopy((self.highest, self.stored, self.positions))
        heads = {name: self.head(name) for name in self.names.values()}
        answers = [self.publish(frame.body, frame.flags, heads) for frame in inner]
        refused = next((answer for answer in answers if isinstance(answer, Refused)), None)
        if refused is None:
            return answers
        self.highest, self.stored, self.positions = before
        return [Refused(numbers[0], len(numbers), refused.name)]

    def head(self, name: str) -> tuple[int, int]:
        """Return the newest position of a channel."""
        count = len(self.stored.get(name, ()))
        return (EPOCH, count) if count else (0, 0)

    def publish(self, body: bytes, flags: int = 0, heads: dict[str, tuple[int, int]] | None = None) -> bytes | Refused:
        slot, count, number = twin.PUBLISH_HEADER.unpack_from(body)
        at = twin.PUBLISH_HEADER.size
        expect = struct.unpack_from("<QQ", body, at) if flags else None
        records = self.split(body[at + 16 * flags :])
        assert len(records) == count
        assert count >= 1
        name = self.names[slot]
        if name.startswith("no"):
            return Refused(number, count, "NO_PROFILE")
        if any(record.startswith(b"bad") for record in records):
            return Refused(number, count, "PAYLOAD_TOO_LARGE")
        if number > self.highest + 1:
            return Refused(number, count, "NUMBER_GAP")
        assert not number <= self.highest < number + count - 1, "a frame overlaps the line's end"
        duplicate = number <= self.highest
        if not duplicate and expect is not None and expect != (heads[name] if heads else self.head(name)):
            return Refused(number, count, "CONFLICT")
        if not duplicate:
            channel = self.stored.setdefault(name, [])
            for index, record in enumerate(records):
                channel.append(record)
                self.positions[number + index] = (name, len(channel))
            self.highest = number + count - 1
        return self.answer(slot, number, count, duplicate)

    def answer(self, slot: int, number: int, count: int, duplicate: bool) -> bytes:
        entries = []
        for begin in range(number, number + count, self.entry_records_max):
            part = min(self.entry_records_max, number + count - begin)
            known = not duplicate or begin > self.highest - self.window
            first = self.positions[begin][1] if known else 0
            entries.append(
                twin.PUBLISHED_ENTRY.pack(
                    begin, EPOCH if known else 0, first, part, slot, SYNCED, int(duplicate), bytes(6)
                )
            )
        return b"".join(entries)

    @staticmethod
    def split(data: bytes) -> list[bytes]:
        """Return the payloads of records."""
        payloads, at = [], 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            record = data[at : at + size]
            skip = 12
            flags = int.from_bytes(record[4:6], "little")
            assert flags & ~(twin.PRIORITY | twin.EXPIRY | twin.KEY | twin.HEADERS) == 0
            skip += 1 if flags & twin.PRIORITY else 0
            skip += 4 if flags & twin.EXPIRY else 0
            for flag in (twin.KEY, twin.HEADERS):
                if flags & flag:
                    skip += 2 + int.from_bytes(record[skip : skip + 2], "little")
            payloads.append(record[skip:])
            at += size
        return payloads
