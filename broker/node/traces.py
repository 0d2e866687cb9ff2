"""Where one message is and how it came there, as far as memory and the log know: for one who asks why it did not come.

The log is read on the reader thread, one chunk a question; the rest is in memory. When its group went to the disk, was
there and was delivered is known of the newest groups only (`broker.node.passages`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from broker.events import emit
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker.model.names import matches
from broker_native.groups import chunk_head
from broker_native.messages import FrameReader

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.ports import StoredReader
    from broker.core.sequencer import Sequencer
    from broker.model.consumers import ConsumerInfo
    from broker.node.catchup import Following
    from broker.node.passages import Passages

    Place = tuple[int, int]
    Found = tuple[int, int, bytes] | None
    Submit = Callable[..., asyncio.Future[Found]]

__all__ = ["Traced", "Traces", "consumer_state", "reader_state"]


class Traced(NamedTuple):
    """One message.

    Attributes:
        channel: Its name.
        sequence: In it.
        place: (group, index) while the journal has it; (0, 0) in the archive, and for what is not committed.
        time_us: When it was taken, broker time; 0 for what was not read.
        seen: It was handed to those who read it live.
        fields: What is told of it, by name, as the specification has it (§13, `trace`).
    """

    channel: bytes
    sequence: int
    place: Place
    time_us: int
    seen: bool
    fields: dict[str, object]


class Traces:
    """Finds messages.

    Args:
        core: Knows the channels in memory.
        log: Has what is stored.
        submit: Has the reader thread call something.
        passages: Knows the newest groups.
    """

    def __init__(self, core: Sequencer, log: StoredReader, submit: Submit, passages: Passages) -> None:
        self._core = core
        self._log = log
        self._submit = submit
        self._passages = passages

    def find(self, name: bytes, sequence: int, told: Callable[[Traced | BrokerError], None]) -> None:
        """Find a message of a channel that is in memory, if it is stored.

        Args:
            name: The channel.
            sequence: In it.
            told: Called with what was found, perhaps within this call.

        Raises:
            RequestError: NOT_STORED; INVALID_POSITION, there has been no such message.
        """
        info = self._core.tails.info(name)
        head = info[5] - 1 if info is not None else 0
        if info is None or sequence > head:
            detail = f"trace {name.decode()}: got sequence {sequence}, the channel ends with {head}"
            raise error("INVALID_POSITION", detail, "Ask for one that a publish has answered, or a message has.")
        _, level, _, first, applied_next, _, seen_next, _ = info
        if level == Level.EPHEMERAL:
            raise error("NOT_STORED", f"trace {name.decode()}: the channel is ephemeral, so nothing of it is kept")
        if sequence < first:
            told(Traced(name, sequence, (0, 0), 0, True, {"state": "trimmed"}))
            return
        if sequence >= applied_next:
            told(Traced(name, sequence, (0, 0), 0, sequence < seen_next, {"state": "pending"}))
            return
        job = self._submit(self._read, self._core.tails.stored_id(name), sequence)
        job.add_done_callback(lambda done: self._have(name, sequence, done, told))

    def _read(self, channel: int, sequence: int) -> Found:
        """Read its chunk, on the reader thread."""
        for group, index, chunk in self._log.read_channel(channel, sequence - 1, 1, sequence + 1):
            _, _, first, count = chunk_head(chunk)
            if first <= sequence < first + count:
                return group, index, chunk
        return None

    def _have(
        self, name: bytes, sequence: int, done: asyncio.Future[Found], told: Callable[[Traced | BrokerError], None]
    ) -> None:
        if done.cancelled():
            return
        failure = done.exception()
        if isinstance(failure, BrokerError):
            told(failure)
        elif failure is not None:
            emit("history_failed", failure=failure)
            told(error("STORAGE_FAILED", f"trace {name.decode()}: the log cannot be read"))
        else:
            told(self._describe(name, sequence, done.result()))

    def _describe(self, name: bytes, sequence: int, found: Found) -> Traced:
        if found is None:
            # Retention took it between the two looks.
            return Traced(name, sequence, (0, 0), 0, True, {"state": "trimmed"})
        group, index, chunk = found
        fields, time_us = describe_record(chunk, name.decode(), sequence)
        fields["archived"] = not group
        if group:
            fields["group"], fields["index"] = group, index
            passage = self._passages.find(group)
            if passage is not None:
                fields |= passage._asdict()
        return Traced(name, sequence, (group, index), time_us, True, fields)


def describe_record(chunk: bytes, channel: str, sequence: int) -> tuple[dict[str, object], int]:
    """Say what there is to tell of a record besides its payload, and when it was taken, about so if it is gone."""
    (batch,) = FrameReader(error, 0).chunks(chunk, channel)
    fields: dict[str, object] = {"state": "stored", "epoch": batch.epoch}
    for first, count, reason in batch.gone:
        if first <= sequence < first + count:
            return {**fields, "state": "gone", "reason": reason}, batch.time_us
    message = next(message for message in batch if message.sequence == sequence)
    fields |= {"time_us": message.time, "bytes": len(message.payload)}
    told = {"key": message.key, "id": message.id, "publisher": message.publisher, "expiry_s": message.expiry_s}
    return {**fields, **{name: value for name, value in told.items() if value is not None}}, message.time


# -- who has got it ----------------------------------------------------------------------------------------------------


def reader_state(following: Following, traced: Traced) -> str | None:
    """Say how a subscription stands to a message; None when it does not want its channel.

    Returns:
        `passed`, it was handed to its connection; `behind`, not yet; `before`, it began behind it; `shared`, it is a
        member of a live group, of which one got it; `unknown`, the message is in the archive, which knows no groups.
    """
    name = traced.channel
    if name not in following.literals and not any(matches(pattern, name) for pattern in following.patterns):
        return None
    if following.subscription.group is not None:
        return "shared"
    if following.place is None:
        return _literal_state(following, traced)
    if not traced.place[0]:
        if not traced.time_us:
            return "passed" if following.live and traced.seen else "behind"
        since = traced.time_us > following.begun_us or not following.begun[0]
        return "passed" if following.live and since else "unknown"
    if traced.place <= following.begun:
        return "before"
    return "passed" if following.live or traced.place <= following.place else "behind"


def _literal_state(following: Following, traced: Traced) -> str:
    """The same of one that reads channels by their own positions."""
    begun = following.begun_after.get(traced.channel)
    if begun is not None:
        if traced.sequence <= begun:
            return "before"
    elif traced.time_us and traced.time_us <= following.begun_us and traced.place[0] <= following.begun[0]:
        return "before"
    after = following.after.get(traced.channel)
    if after is not None:
        return "passed" if traced.sequence <= after else "behind"
    return "passed" if traced.seen else "behind"


def consumer_state(info: ConsumerInfo, traced: Traced) -> str | None:
    """Say whether a durable consumer has done a message: `done` or `open`; `unknown` as of `reader_state`; None when
    it does not want its channel."""
    if not any(matches(each.encode(), traced.channel) for each in info.settings.filters):
        return None
    if info.bus is None:
        floors = {channel.encode(): sequence for channel, _, sequence in info.positions}
        return "done" if traced.sequence <= floors.get(traced.channel, 0) else "open"
    if not traced.place[0]:
        return "unknown" if traced.time_us else "open"
    return "done" if traced.place <= (info.bus.group, info.bus.index) else "open"
