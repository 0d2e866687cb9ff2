"""A group: everything that commits together, on its way through the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker_native.groups import chunk_heads, chunk_offset, chunks_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.model.errors import BrokerError
    from broker_native.publisher import Publisher

__all__ = ["Duplicate", "Group"]


@dataclass(slots=True)
class Duplicate:
    """A publish whose numbers a pending group holds: it is answered with that group."""

    publisher: Publisher
    slot: int
    number: int
    count: int


@dataclass(slots=True)
class Group:
    """One journal entry and what waits for it.

    Attributes:
        number: Its number; increases, never used again.
        value: The bytes that are journaled.
        chain: Its chain checksum.
        early: Index of its first chunk that was not delivered before the commit.
        early_values: The chunks that were, for a reader that joins meanwhile.
        opened_us: Broker time of its oldest record.
        answers: (publisher, PUBLISHED entries) to send after the commit.
        duplicates: Publishes to answer after the commit.
        late_s: When it was committed, seconds, if that took so long that records of it may have expired; else 0.
        requests: Called after the commit with None, or with why it failed; on the core's thread.
        heads: Its chunks by channel, (index, first sequence, count, offset, size) each; made when first asked for.
    """

    number: int
    predecessor: int
    value: bytes
    chain: int
    early: int
    early_values: list[bytes]
    opened_us: int
    answers: list[tuple[Publisher, bytes]] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    late_s: int = 0
    requests: list[Callable[[BrokerError | None], None]] = field(default_factory=list)
    _heads: dict[int, list[tuple[int, int, int, int, int]]] | None = None

    @property
    def heads(self) -> dict[int, list[tuple[int, int, int, int, int]]]:
        if self._heads is None:
            self._heads = chunk_heads(self.value, chunks_start(self.value))
        return self._heads

    def offset(self, index: int) -> int:
        """Return where the chunk with this index begins in the value, bytes."""
        return chunk_offset(self.value, index)
