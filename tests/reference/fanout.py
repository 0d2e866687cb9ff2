"""Who reads what, and what leaves on a connection: the twin of `broker_native.fanout`.

Subscriptions and their filters are a list that is searched from end to end. The order in which several subscriptions
get one chunk is not defined, so what each of them gets is compared, and not one connection's whole stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.reference.frames import (
    DELIVER,
    DELIVER_HEADER,
    DELIVER_NAME,
    PUBLISHED,
    build_frame,
    chunks_of,
)
from tests.reference.groups import CHUNK_HEADER, Chunk, build_chunk
from tests.reference.trie import reaches

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(eq=False)
class Outbox:
    """What leaves on one connection: answers first, then everything else in its order."""

    urgent: list[bytes] = field(default_factory=list)
    ordered: list[bytes] = field(default_factory=list)
    paused: bool = False

    def frame(self, frame: bytes) -> None:
        self.urgent.append(frame)

    def ordered_frame(self, frame: bytes) -> None:
        self.ordered.append(frame)

    def published(self, answers: bytes) -> None:
        self.urgent.append(build_frame(PUBLISHED, answers))

    @property
    def queued(self) -> int:
        return sum(map(len, self.urgent + self.ordered))

    def flush(self) -> tuple[list[bytes], list[bytes]]:
        """Return the frames that leave, (answers, the rest)."""
        if self.paused:
            return [], []
        sent = self.urgent, self.ordered
        self.urgent, self.ordered = [], []
        return sent


@dataclass(eq=False)
class Subscription:
    """One stream of deliveries."""

    outbox: Outbox
    number: int
    credit: int
    overdraft: int
    tells_names: bool
    slow: bool = False
    told: set[int] = field(default_factory=set)

    def push(self, name: bytes, chunk: Chunk, group: int, index: int, flags: int) -> None:
        """Queue one chunk, whatever the credit."""
        packed = build_chunk(chunk)
        told = b""
        if self.tells_names and chunk.channel not in self.told:
            self.told.add(chunk.channel)
            told = bytes([len(name)]) + name
            flags |= DELIVER_NAME
        prefix = DELIVER_HEADER.pack(self.number, index, group)
        self.outbox.ordered_frame(build_frame(DELIVER, prefix + told + packed, flags))
        self.credit -= len(packed)


class Fanout:
    """Subscriptions by filter."""

    def __init__(self) -> None:
        self.filters: list[tuple[bytes, Subscription]] = []
        self.names: dict[int, bytes] = {}
        self.slow: list[Subscription] = []

    def attach(self, subscription: Subscription, wanted: bytes) -> None:
        self.filters.append((wanted, subscription))

    def detach(self, subscription: Subscription, wanted: bytes) -> bool:
        entry = (wanted, subscription)
        if entry not in self.filters:
            return False
        self.filters.remove(entry)
        return True

    def readers(self, name: bytes) -> Iterator[Subscription]:
        found: dict[int, Subscription] = {}
        for wanted, subscription in self.filters:
            if wanted == name or reaches(wanted, name):
                found.setdefault(id(subscription), subscription)
        yield from found.values()

    def deliver(self, value: bytes, start: int, group: int, index: int, flags: int) -> None:
        """Queue the chunks of a value to everybody who reads them."""
        for offset, chunk in enumerate(chunks_of(value[start:])):
            size = CHUNK_HEADER.size + len(chunk.records)
            for subscription in self.readers(self.names[chunk.channel]):
                if subscription.slow:
                    continue
                if subscription.credit - size < -subscription.overdraft:
                    subscription.slow = True
                    self.slow.append(subscription)
                    continue
                subscription.push(self.names[chunk.channel], chunk, group, index + offset, flags)
