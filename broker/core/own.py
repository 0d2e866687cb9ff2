"""What the broker stores by itself: records of its own, in the open group with everything else.

They go into channels that users cannot name (`$…`) or, copies of messages, into users' channels. Either way they are
ordinary records: whatever becomes of the group becomes of them.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from broker.model.errors import error
from broker.model.names import display
from broker_native.lines import Line
from broker_native.publisher import Publisher

if TYPE_CHECKING:
    from typing import Self

    from broker.model.errors import BrokerError
    from broker_native.tails import Tails

__all__ = ["OwnPublisher", "payloads_of", "record_of"]

PUBLISH = Struct("<IIQ")
RECORD = Struct("<IHHI")
CHUNK = Struct("<II8x8xQI")
CHUNK_HEADER_BYTES = 56
SLOT = 0


class OwnPublisher:
    """The broker's own publisher. Its line begins with each run and is never journaled: nothing of it is repeated.

    Args:
        tails: Where records go.
        headers_bytes_max: Limit of a record's headers, bytes.
    """

    def __init__(self, tails: Tails, headers_bytes_max: int) -> None:
        self._tails = tails
        self._line = Line()
        self._publisher = Publisher(tails, self._line, self, headers_bytes_max)
        self._publisher.is_own = True

    @property
    def outbox(self) -> Self:
        """Where its answers go: to itself, who does not read them. Whoever must know has itself told by the group."""
        return self

    def published(self, answers: bytes) -> None:
        """Take answers."""

    def refuse(self, failure: BrokerError, number: int, count: int) -> None:
        """Take a failure. What the records stood for is undone by whoever stored them."""

    def store(self, name: bytes, records: bytes, count: int = 1) -> int:
        """Put records into the open group.

        Args:
            name: A channel that is in memory and has its profile (`Sequencer.load`).
            records: As in a PUBLISH (specification §3), one after the other; copied.
            count: How many, 1 to 65,535.

        Returns:
            The sequence of the first; the others follow it.

        Raises:
            BrokerError: They are refused, all of them: what the journal says at this moment, PAYLOAD_TOO_LARGE,
                INVALID_RECORD.
        """
        info = self._tails.info(name)
        assert info is not None
        self._publisher.bind(SLOT, name)
        code = self._publisher.publish_frame(PUBLISH.pack(SLOT, count, self._line.next) + records)
        self._publisher.bind(SLOT, None)
        if code:
            raise error(code, f"channel {display(name)}: {count} records of the broker's own, {len(records)} bytes")
        first: int = info[5]
        return first


def record_of(payload: bytes) -> bytes:
    """Return a payload as a record that has nothing else."""
    return RECORD.pack(RECORD.size + len(payload), 0, 0, 0) + payload


def payloads_of(chunk: bytes, after: int) -> list[bytes]:
    """Return the payloads of a chunk's records past a sequence; of a chunk that holds such records only."""
    size, _, first, count = CHUNK.unpack_from(chunk)
    payloads = []
    at = CHUNK_HEADER_BYTES
    for sequence in range(first, first + count):
        record_bytes = RECORD.unpack_from(chunk, at)[0]
        if sequence > after:
            payloads.append(chunk[at + RECORD.size : at + record_bytes])
        at += record_bytes
    assert at == size
    return payloads
