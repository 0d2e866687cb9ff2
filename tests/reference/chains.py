"""A sequencer in plain Python: makes chains of groups and remembers what a reader of them must find.

It assigns sequences and group numbers as the broker does, so that tests of the log need no broker, and it is the oracle
of their reads: every chunk in bus order, and what the tables come to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.reference.groups import (
    FLAG_FENCE,
    Chunk,
    Entry,
    Group,
    Tables,
    build_chunk,
    build_group,
    chunk_of,
    parse_group,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

EPOCH = (1 << 40) | 1


class Chain:
    """Builds one group after the other; a group counts once `commit` was called.

    Attributes:
        number: the number of the last group that was built.
        last: the number of the last group that counts; the predecessor of the next one.
        chunks: (group, index, chunk) of all that count, in bus order.
        values: the bytes of all groups that count, by number.
    """

    def __init__(self, run: int = 1) -> None:
        self.run = run
        self.number = 0
        self.last = 0
        self.last_chain = 0
        self.time_us = 1_000_000
        self.chunks: list[tuple[int, int, Chunk]] = []
        self.values: dict[int, bytes] = {}
        self._next: dict[int, int] = {}

    def build(
        self,
        payloads: Iterable[tuple[int, Sequence[bytes]]] = (),
        entries: Sequence[Entry] = (),
        flags: int = 0,
    ) -> bytes:
        """Return the next group: (channel, payloads) makes one chunk each, in this order."""
        self.number += 1
        self.time_us += 1_000
        heads = dict(self._next)
        chunks = []
        for channel, items in payloads:
            chunks.append(chunk_of(channel, EPOCH, heads.get(channel, 1), items, self.time_us))
            heads[channel] = chunks[-1].last + 1
        return build_group(
            Group(
                self.number,
                self.last,
                self.last_chain,
                tuple(entries),
                tuple(chunks),
                run=self.run,
                time_us=self.time_us,
                flags=flags,
            )
        )

    def fence(self) -> bytes:
        """Return the next group as a fence without chunks."""
        return self.build(flags=FLAG_FENCE)

    def commit(self, value: bytes) -> None:
        """Let a group count: it was stored."""
        group = parse_group(value)
        self.last, self.last_chain = group.number, group.chain
        self.values[group.number] = value
        for index, chunk in enumerate(group.chunks):
            self.chunks.append((group.number, index, chunk))
            self._next[chunk.channel] = chunk.last + 1

    def bus(self) -> list[tuple[int, int, bytes]]:
        """Return what reading all groups must give."""
        return [(number, index, build_chunk(chunk)) for number, index, chunk in self.chunks]

    def channel(self, channel: int, after_sequence: int = 0) -> list[tuple[int, int, bytes]]:
        """Return what reading one channel wholly must give."""
        return [
            (number, index, build_chunk(chunk))
            for number, index, chunk in self.chunks
            if chunk.channel == channel and chunk.last > after_sequence
        ]

    def tables(self) -> Tables:
        """Return what replaying all groups that count must come to."""
        tables = Tables()
        for value in self.values.values():
            tables.apply_group(value)
        return tables
