"""Redriving: dead letters of a consumer are published to the channels that they came from, once more.

The dead-letter channel is read from where the consumer was redriven to last. What is published and how far that is are
stored in one group: a crash between them neither repeats nor forgets a letter. In that group the letters leave the
channel as well, as far as nothing else is before them there: letters of others, or what somebody has published, stay,
and with them what follows.

Everything here runs on the loop's thread, but for the reading.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from broker.model.errors import BrokerError, error
from broker.model.names import check_channel
from broker.node.letters import letter_of, source_record
from broker_native.groups import chunk_cut, chunk_head

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.node.consumer import Consumer
    from broker.node.consumers import Consumers

__all__ = ["Redrive"]

RECORD = Struct("<IHHI")
GONE = 0x8000
GONE_RUN_AT = 16
CHUNK_HEADER_BYTES = 56
SLICE_BYTES = 256 << 10
LETTERS_A_STEP = 512


class Found(NamedTuple):
    """What a look into the dead-letter channel has found.

    Attributes:
        letters: Of the consumer: (sequence, source channel, record as it was) each.
        position: How far it has looked.
        more: There may be more behind it.
        others: The first sequence that is something else, 0 when there is none.
    """

    letters: list[tuple[int, bytes, bytes]]
    position: tuple[int, int]
    more: bool
    others: int


def find_letters(chunks: list[tuple[int, int, bytes]], consumer: str, after: tuple[int, int], limit: int) -> Found:
    """Find the letters of a consumer in chunks past a sequence: (sequence, source channel, record as it was)."""
    letters: list[tuple[int, bytes, bytes]] = []
    position, others = after, 0
    for _, _, stored in chunks:
        chunk = stored if chunk_head(stored)[2] > position[1] else chunk_cut(stored, position[1])
        _, epoch, sequence, _ = chunk_head(chunk)
        at = CHUNK_HEADER_BYTES
        while at < len(chunk):
            size, flags, _, _ = RECORD.unpack_from(chunk, at)
            record = chunk[at : at + size]
            run = 1
            if flags & GONE:
                run = int.from_bytes(record[GONE_RUN_AT : GONE_RUN_AT + 4], "little")
            else:
                letter = letter_of(record)
                if letter is not None and letter.consumer == consumer:
                    letters.append((sequence, check_channel(letter.channel), source_record(record)))
                else:
                    others = others or sequence
            at += size
            sequence += run
            position = epoch, sequence - 1
            if len(letters) >= limit:
                return Found(letters, position, more=True, others=others)
    return Found(letters, position, more=bool(chunks), others=others)


class Redrive:
    """One time of it.

    Args:
        home: What all consumers share.
        consumer: Whose letters; it is ready, and has a dead-letter channel.
        limit: How many at most.
        done: Called with how many were published, all committed, or why none was.
        check: Raises if whoever asked may not publish to a channel. What a letter says of itself is no right to it:
            anybody who may publish to the dead-letter channel can write one.
    """

    def __init__(
        self,
        home: Consumers,
        consumer: Consumer,
        limit: int,
        done: Callable[[int | BrokerError], None],
        check: Callable[[bytes], None],
    ) -> None:
        self._home = home
        self._consumer = consumer
        self._left = limit
        self._done = done
        self._check = check
        self._count = 0
        dead_letter = consumer.settings.dead_letter
        assert dead_letter is not None
        self._channel = dead_letter.encode()
        self._end = 0

    def start(self) -> None:
        """Begin with what is committed now: what is given up meanwhile is for another time."""
        info = self._home.core.tails.info(self._channel)
        assert info is not None
        self._end = info[4]
        self._step()

    def _step(self) -> None:
        if not self._consumer.ready:
            self._end_with(error("BUSY", "the consumer is being restored"))
            return
        info = self._home.core.tails.info(self._channel)
        after = self._consumer.redriven
        if info is None or not self._left or after[1] + 1 >= self._end:
            self._done(self._count)
            return
        if after[1] < info[3] - 1:
            after = info[2], info[3] - 1
        channel, limit = self._home.core.tails.stored_id(self._channel), min(self._left, LETTERS_A_STEP)
        name, end, log = self._consumer.settings.name, self._end, self._home.log

        def look() -> Found:
            chunks = log.read_channel(channel, after[1], SLICE_BYTES, end) if channel else []
            return find_letters(chunks, name, after, limit)

        self._home.catchup.submit(look).add_done_callback(self._have)

    def _have(self, job: asyncio.Future[Found]) -> None:
        if job.cancelled():
            return
        failure = job.exception()
        if failure is not None:
            lost = failure if isinstance(failure, BrokerError) else None
            self._end_with(lost or error("STORAGE_FAILED", f"{self._channel.decode()}: it cannot be read"))
            return
        found = job.result()
        names = list(dict.fromkeys(channel for _, channel, _ in found.letters))
        self._home.need(names, lambda refusal: self._publish(found, refusal))

    def _publish(self, found: Found, failure: BrokerError | None) -> None:
        """Put letters and how far they go into the open group."""
        core, consumer = self._home.core, self._consumer
        if failure is None and not consumer.ready:
            failure = error("BUSY", "the consumer is being restored")
        published, position = 0, found.position
        if failure is None:
            for sequence, channel, record in found.letters:
                try:
                    self._check(channel)
                    core.load(channel)
                    core.own.store(channel, record)
                except BrokerError as refusal:
                    failure, position = refusal, (found.position[0], sequence - 1)
                    break
                published += 1
        if failure is not None and not published:
            self._end_with(failure)
            return
        self._take_out(consumer.redriven[1], position[1], found.others)
        consumer.redriven = position

        def stored(refusal: BrokerError | None) -> None:
            if refusal is not None:
                self._end_with(refusal)
                return
            self._count += published
            self._left -= published
            if failure is not None or not found.more:
                self._done(self._count)
            else:
                self._step()

        consumer.mark()
        consumer.store(stored)

    def _take_out(self, before: int, end: int, others: int) -> None:
        """Trim what was redriven from behind a sequence up to another, in the same group, but nothing else."""
        info = self._home.core.tails.info(self._channel)
        # What was left before it is still there: a trim would take that along.
        if info is not None and before < info[3]:
            self._home.core.trim(self._channel, min(end + 1, others or end + 1), lambda failure: None)

    def _end_with(self, failure: BrokerError) -> None:
        self._done(self._count or failure)
