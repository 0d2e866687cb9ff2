"""The ids of a channel's newest records, read back from the log when the first PUBLISH with an id needs them.

They stand in the records themselves, so nothing else has to survive a restart or an eviction: what the window covers is
read by the reader thread, newest records first found by time and count, then in their order. Until it is there nobody
decides a frame with ids of that channel, so no id can be given meanwhile that this reading misses.

A job reads a few megabytes, of one channel after the other, so that subscriptions which catch up have the thread in
between. Everything but the reading itself belongs to the loop's thread.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from broker.events import emit
from broker.model.errors import BrokerError, error
from broker_native.groups import chunk_head

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.ports import ChannelReader
    from broker.core.sequencer import Sequencer
    from broker_native.ids import Ids

    Told = Callable[[BrokerError | None], None]

__all__ = ["IdsLoader"]

JOB_BYTES_MAX = 4 << 20
READ_BYTES = 1 << 20
CHANNELS_WAITING_MAX = 65_536
SWEEP_SEGMENTS = 16
"""Of about 600 channels each: so many are looked at in a second."""


class Part:
    """One channel whose ids are read.

    Attributes:
        channel: The id under which the log has it.
        at: The next sequence to be read.
        end: The sequence after the last one.
        from_us: Records of before this time are outside of the window.
        begun: The first sequence of that time has been found.
        ids: What was found so far.
        failure: Why it cannot be read.
    """

    __slots__ = ("at", "begun", "channel", "end", "failure", "from_us", "ids", "name")

    def __init__(self, name: bytes, channel: int, at: int, end: int, from_us: int, ids: Ids) -> None:
        self.name = name
        self.channel = channel
        self.at = at
        self.end = end
        self.from_us = from_us
        self.begun = False
        self.ids = ids
        self.failure: BaseException | None = None

    def read(self, log: ChannelReader) -> int:
        """Read the next records, on the reader thread; returns how many bytes they were."""
        if not self.begun:
            self.begun = True
            self.at = log.sequence_at(self.channel, self.at, self.end, self.from_us)
        size = 0
        found = log.read_channel(self.channel, self.at - 1, READ_BYTES, self.end) if self.at < self.end else []
        after = self.at
        for _, _, chunk in found:
            _, _, first, count = chunk_head(chunk)
            self.ids.take(chunk, after, self.end)
            after = max(after, first + count)
            size += len(chunk)
        # What retention took meanwhile, nobody can read.
        self.at = after if found else self.end
        return size


class IdsLoader:
    """Reads back the ids of channels, for those who wait.

    Args:
        core: Where they go.
        log: Where the records are.
        submit: Has the reader thread call something.
        loop: The loop that it belongs to.
    """

    def __init__(
        self,
        core: Sequencer,
        log: ChannelReader,
        submit: Callable[[Callable[..., None], list[Part]], asyncio.Future[None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._core = core
        self._log = log
        self._submit = submit
        self._loop = loop
        self._waiting: dict[bytes, list[tuple[object, Told]]] = {}
        self._queue: deque[bytes] = deque()
        self._parts: deque[Part] = deque()
        self._busy = False
        self._stopped = False
        self.loaded = 0

    def need(self, name: bytes, done: Told, owner: object) -> None:
        """Bring the ids of a channel into memory.

        Args:
            name: A stored channel, in memory and held there by the caller until it is told.
            done: Called once, on the loop, never from within this call: with None when they are there, which holds
                until it returns, or with the reason why they cannot be read. Not called after `leave`.
            owner: Who asks.

        Raises:
            Unavailable: BUSY, too much waits; GOING_AWAY, the broker is closing.
        """
        if self._stopped:
            raise error("GOING_AWAY", "the broker is stopping")
        if name not in self._waiting:
            if len(self._waiting) >= CHANNELS_WAITING_MAX:
                raise error(
                    "BUSY",
                    f"channels whose message ids wait to be read: got {len(self._waiting) + 1}, "
                    f"limit {CHANNELS_WAITING_MAX}",
                )
            self._waiting[name] = []
            self._queue.append(name)
        self._waiting[name].append((owner, done))
        self._loop.call_soon(self._go_on)

    def leave(self, owner: object) -> None:
        """Forget what an owner waits for."""
        for name, askers in self._waiting.items():
            self._waiting[name] = [asker for asker in askers if asker[0] is not owner]

    def sweep(self) -> None:
        """Forget ids that have left their windows, of some channels; once a second."""
        self._core.tails.sweep_ids(SWEEP_SEGMENTS)

    def _go_on(self) -> None:
        """Begin a job if there is something to read and none is under way."""
        if self._busy or self._stopped:
            return
        while self._queue:
            name = self._queue.popleft()
            part = self._part_of(name)
            if part is None:
                self._tell(name, None)
            else:
                self._parts.append(part)
        if self._parts:
            parts = list(self._parts)
            self._busy = True
            job = self._submit(self._read, parts)
            job.add_done_callback(self._have)

    def _part_of(self, name: bytes) -> Part | None:
        """What is to be read of a channel; None for nothing: nobody waits, or it is known or gone."""
        tails = self._core.tails
        info = tails.info(name)
        if not self._waiting.get(name) or info is None or tails.knows_ids(name):
            return None
        _, _, _, first, applied_next, next_sequence, _, _ = info
        window_s, count_max = tails.ids_window(name)
        begin = max(first, next_sequence - count_max, 1)
        from_us = max(tails.now_us // 1_000_000 - window_s, 0) * 1_000_000
        return Part(name, tails.stored_id(name), begin, applied_next, from_us, tails.ids_for())

    def _read(self, parts: list[Part]) -> None:
        """Read on, on the reader thread: one channel after the other, until it is enough."""
        left = JOB_BYTES_MAX
        for part in parts:
            try:
                while part.at < part.end and left > 0:
                    left -= part.read(self._log)
            except (BrokerError, MemoryError, ValueError) as failure:
                part.failure = failure
            if left <= 0:
                return

    def _have(self, job: asyncio.Future[None]) -> None:
        """A job is done: hand out what is whole, and read on."""
        self._busy = False
        if self._stopped or job.cancelled():
            return
        failure = job.exception()
        if failure is not None:
            self._parts[0].failure = failure
        while self._parts and (self._parts[0].at >= self._parts[0].end or self._parts[0].failure is not None):
            self._finish(self._parts.popleft())
        self._go_on()

    def _finish(self, part: Part) -> None:
        try:
            if part.failure is None and self._core.tails.install_ids(part.name, part.channel, part.ids):
                self.loaded += 1
        except MemoryError as shortage:
            part.failure = shortage
        self._tell(part.name, None if part.failure is None else _reason(part.name, part.failure))

    def _tell(self, name: bytes, failure: BrokerError | None) -> None:
        """Tell all who wait for a channel."""
        askers = self._waiting.get(name, [])
        while askers:
            _, done = askers.pop(0)
            done(failure)
            # One who was told may have made another leave.
            askers = self._waiting.get(name, [])
        self._waiting.pop(name, None)

    def stop(self) -> None:
        """Tell all who wait that the broker is closing, and take no more."""
        self._stopped = True
        failure = error("GOING_AWAY", "the broker is stopping")
        for name in list(self._waiting):
            self._tell(name, failure)
        self._queue.clear()
        self._parts.clear()


def _reason(name: bytes, failure: BaseException) -> BrokerError:
    """Say why the ids of a channel cannot be had."""
    if isinstance(failure, BrokerError):
        return failure
    if isinstance(failure, MemoryError):
        return error("LIMIT", "memory: none is left for message ids", "give the process more memory")
    if isinstance(failure, ValueError):
        return error("STORAGE_CORRUPT", f"message ids of {name.decode()}: {failure}")
    emit("load_failed", failure=failure)
    return error("STORAGE_FAILED", f"message ids of {name.decode()}: they cannot be read")
