"""Listings of what waits for its time, part by part.

Names and ids are in the slots of the wheel only, so these are read, on the reader thread, in the order of their times,
a bounded stretch for each part. What was read is then held against the index: cancelled and published messages are left
out. Between two parts messages may move to finer slots; such a one is listed twice or not.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from broker.events import emit
from broker.model.delayed import DelayedPart, DelayedQuery, DelayedRow
from broker.model.errors import BrokerError, error
from broker_native.delayed import envelopes_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.delayed import Delayed, Slot
    from broker.core.ports import StoredReader
    from broker.node.history import Asker

    Found = tuple[list[tuple[DelayedRow, int]], bytes]
    """Messages with their tickets, and where to go on; b"" at the end."""
    Submit = Callable[..., asyncio.Future[Found]]

__all__ = ["DelayedListing"]

SLICE_BYTES = 256 << 10
PART_BYTES_MAX = 4 << 20
"""So much of the slots is read for a part."""
PLACE = Struct("<QBBQ")
CHUNK = Struct("<24xQI")


class DelayedListing:
    """Answers the listings that connections ask for.

    Args:
        wheel: What waits.
        log: Where it is stored.
        submit: Has the reader thread call something.
        kick: Called when something is queued to be sent.
    """

    def __init__(self, wheel: Delayed, log: StoredReader, submit: Submit, kick: Callable[[], None]) -> None:
        self._wheel = wheel
        self._log = log
        self._submit = submit
        self._kick = kick

    def ask(self, asker: Asker, number: int, query: DelayedQuery, shows: Callable[[bytes], bool]) -> None:
        """Have a part listed, of it what `shows` says yes to: it is asked for the channel of each message.

        Raises:
            RequestError: INVALID_POSITION; `after` is no place.
        """
        if query.after and len(query.after) != PLACE.size:
            raise error(
                "INVALID_POSITION", f"operation delayed: `after` has {len(query.after)} bytes, expected {PLACE.size}"
            )
        job = self._submit(self._read, self._wheel.slots(), query)
        job.add_done_callback(lambda done: self._have(asker, number, done, shows))

    def _read(self, slots: list[Slot], query: DelayedQuery) -> Found:
        """Read a part, on the reader thread."""
        rows: list[tuple[DelayedRow, int]] = []
        start_s, level, index, sequence = PLACE.unpack(query.after) if query.after else (0, 0, 0, 0)
        left = PART_BYTES_MAX
        prefix = query.prefix.encode()
        for slot in slots:
            if (slot.start_s, slot.level) < (start_s, level):
                continue
            after = slot.first - 1
            if (slot.level, slot.index) == (level, index) and slot.start_s == start_s:
                after = max(after, sequence)
            while after + 1 < slot.end:
                chunks = self._log.read_channel(slot.channel, after, SLICE_BYTES, slot.end)
                if not chunks:
                    break
                for _, _, chunk in chunks:
                    first, count = CHUNK.unpack_from(chunk)
                    for sequence, due_us, ticket, channel, id, size, cancelled, refusals in envelopes_of(
                        chunk, after, slot.end
                    ):
                        after = sequence
                        if not cancelled and channel.startswith(prefix):
                            rows.append((DelayedRow(channel.decode(), id, due_us, size, refusals), ticket))
                            if len(rows) == query.limit:
                                return rows, PLACE.pack(slot.start_s, slot.level, slot.index, after)
                    after = max(after, first + count - 1)
                    left -= len(chunk)
                if left <= 0:
                    return rows, PLACE.pack(slot.start_s, slot.level, slot.index, after)
        return rows, b""

    def _have(self, asker: Asker, number: int, done: asyncio.Future[Found], shows: Callable[[bytes], bool]) -> None:
        """Answer with what is read and still waits."""
        if done.cancelled() or asker.closed:
            return
        failure = done.exception()
        if failure is None:
            found, after = done.result()
            rows = [row for row, ticket in found if shows(row.channel.encode()) and self._waits(row, ticket)]
            asker.outbox.frame(asker.encode_part(number, DelayedPart(tuple(rows), after, bool(after))))
        else:
            if not isinstance(failure, BrokerError):
                emit("history_failed", failure=failure)
                failure = error("STORAGE_FAILED", "delayed messages: they cannot be listed")
            asker.outbox.frame(asker.encode_refusal(number, failure))
        self._kick()

    def _waits(self, row: DelayedRow, ticket: int) -> bool:
        return self._wheel.waiting.find_waiting(row.channel.encode(), row.id) == (row.due_us, ticket)
