"""What must hold whatever happens: one book of everything that anybody was ever told, checked line by line.

- A position (channel, epoch, sequence) has one content for ever, whoever shows it: a delivery, an answer, the journal.
- What was acknowledged as synced is in the journal from then on, in every run.
- What was refused is not stored; only what needs no commit may have been seen.
- What was published is in the journal at most once.
- A channel's sequences are dense, and so are its epochs' stretches.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.reference import groups
from tests.reference.frames import records_of

if TYPE_CHECKING:
    from tests.reference.groups import Chunk

SYNCED = 3

Position = tuple[bytes, int, int]
"""(channel, epoch, sequence)."""


@dataclass
class Model:
    """The book."""

    content: dict[Position, bytes] = field(default_factory=dict)
    synced: dict[bytes, Position] = field(default_factory=dict)
    accepted: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    stored: dict[bytes, Position] = field(default_factory=dict)
    heads: dict[bytes, list[tuple[int, bytes]]] = field(default_factory=dict)
    epochs: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)

    # -- what anybody sees --

    def see(self, name: bytes, epoch: int, sequence: int, payload: bytes, *, early: bool = False) -> None:
        """Somebody was shown a record at a position, before its commit or after it."""
        assert epoch > 0
        assert early or payload not in self.refused, f"{payload!r} was refused and is seen"
        known = self.content.setdefault((name, epoch, sequence), payload)
        assert known == payload, f"{name!r} {epoch:#x}/{sequence}: first {known!r}, now {payload!r}"

    def see_chunk(self, name: bytes, chunk: Chunk, *, early: bool = False) -> list[tuple[int, bytes]]:
        """Somebody was shown a chunk; returns its (sequence, payload)."""
        found = [(chunk.first + index, record.payload) for index, record in enumerate(records_of(chunk))]
        assert len(found) == chunk.count
        for sequence, payload in found:
            self.see(name, chunk.epoch, sequence, payload, early=early)
        return found

    def acknowledge(self, payload: bytes, level: int, position: Position | None) -> None:
        """A producer was told that its record has a level, and a position unless that is not known any more."""
        assert payload not in self.refused, f"{payload!r} was refused and then acknowledged"
        if position is not None:
            self.see(*position, payload)
        if level < SYNCED:
            self.accepted.add(payload)
            return
        assert payload in self.stored, f"{payload!r} is acknowledged as synced and not stored"
        assert position in (None, self.stored[payload])
        self.synced[payload] = self.stored[payload]

    def refuse(self, payload: bytes) -> None:
        """A producer was told that nothing of its record has happened."""
        assert payload not in self.stored, f"{payload!r} is stored and refused"
        self.refused.add(payload)

    # -- what the journal holds --

    def journaled(self, values: list[bytes]) -> None:
        """This is the journal, whole: at a start, and at the end."""
        self.stored, self.heads, self.epochs = {}, {}, {}
        names: dict[int, bytes] = {}
        for value in values:
            self.apply(names, groups.parse_group(value))
        for payload, position in self.synced.items():
            assert self.stored.get(payload) == position, f"{payload!r} was acknowledged as synced at {position}"

    def appended(self, values: list[bytes]) -> None:
        """One more group is durable: the last of these."""
        names = {}
        for value in values:
            for entry in groups.parse_group(value).entries:
                if entry.kind == groups.CHANNEL:
                    channel, name = name_of(entry)
                    names[channel] = name
        self.apply(names, groups.parse_group(values[-1]))

    def apply(self, names: dict[int, bytes], group: groups.Group) -> None:
        for entry in group.entries:
            if entry.kind == groups.CHANNEL:
                channel, name = name_of(entry)
                assert names.setdefault(channel, name) == name
            elif entry.kind == groups.EPOCH:
                channel, epoch, first = struct.unpack("<QQQ", entry.body)
                begun = self.epochs.setdefault(names[channel], [])
                assert not begun or (epoch > begun[-1][0] and first >= begun[-1][1])
                assert first == len(self.heads.get(names[channel], [])) + 1
                begun.append((epoch, first))
        for chunk in group.chunks:
            self.apply_chunk(names[chunk.channel], chunk)

    def apply_chunk(self, name: bytes, chunk: Chunk) -> None:
        head = self.heads.setdefault(name, [])
        assert chunk.first == len(head) + 1, f"{name!r}: sequence {chunk.first} after {len(head)}"
        assert self.epochs[name][-1][0] == chunk.epoch
        for sequence, payload in self.see_chunk(name, chunk):
            assert payload not in self.stored, f"{payload!r} is stored twice"
            self.stored[payload] = (name, chunk.epoch, sequence)
            head.append((chunk.epoch, payload))


def name_of(entry: groups.Entry) -> tuple[int, bytes]:
    """Return (channel id, name) of a CHANNEL entry."""
    size = entry.body[10]
    return struct.unpack_from("<Q", entry.body)[0], entry.body[12 : 12 + size]
