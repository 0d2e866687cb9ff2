"""Questions about what is stored, answered from the reader thread.

What connections ask in one turn of the loop is read in one job, so that a question costs a look-up and not two
hand-overs between threads. What the archive alone can answer of it, most of what is ever asked, is read, joined and
packed by `broker_native.answers` in one pass; only the rest is put together here, question by question.

A job takes one question of each connection in turn, ends after about a megabyte of answers, and there is one at a time:
subscriptions that catch up have the thread in between. A connection that has much to send waits until it has sent it,
and one that asks faster than it is answered is not read meanwhile.

A question about a channel whose newest records are acknowledged and not yet committed waits for their commit: who asks
behind a publish finds it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol, TypeAlias

from broker.events import emit
from broker.model.delayed import DelayedPart
from broker.model.errors import BrokerError, StorageError, error
from broker.model.history import BusPart, BusQuery, HistoryPart, HistoryQuery, NamesPart
from broker.model.levels import Level
from broker.node.firsts import firsts_of
from broker.node.stretch import Applied, Known, Selected, begin_at, read_bus, read_stretch
from broker_native.answers import StretchReader

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.ports import Reading, StoredReader
    from broker.core.sequencer import Sequencer
    from broker_native.fanout import Outbox

__all__ = ["ASKS_MAX", "Asker", "HistoryReader"]

ASKS_MAX = 1_024
"""Questions of one connection that may wait; at this many it is not read, until half of them are answered."""
JOB_ASKS_MAX = 256
SPARE_SHARE = 4
"""Behind a job that came to its bound, the next one takes so many more than that one answered."""
JOB_BYTES_MAX = 1 << 20
"""Bytes of answers after which a job ends; the questions that it has not come to are the first of the next one."""
QUEUED_BYTES_MAX = 2 << 20
"""A connection that has this much to send waits with its questions."""
QUEUED_SHARE = 4
"""Nor may it be more than this part of what ends a connection, however small that bound is set."""

Query: TypeAlias = HistoryQuery | BusQuery
Part: TypeAlias = HistoryPart | BusPart | NamesPart | DelayedPart


class Asker(Protocol):
    """A connection that asks."""

    closed: bool

    @property
    def outbox(self) -> Outbox:
        """Where its answers go."""

    def encode_part(self, number: int, part: Part) -> bytes:
        """The frame of an answer. On the reader thread."""

    def encode_refusal(self, number: int, failure: BrokerError) -> bytes:
        """The frame that refuses. On the reader thread."""

    def read_on_asking(self) -> None:
        """Few of its questions are left."""


class Ask:
    """One question.

    Attributes:
        name: The channel or pattern, checked.
        level: What the channel would promise if it is not stored.
        group: It waits until this group is applied.
        known: What memory knows of the channel, taken when the job is made; None for a pattern, and for a channel that
            only the log knows of.
        stored: The entries of such a channel, where nothing need be made of them: it is asked for by no position.
    """

    __slots__ = ("asker", "group", "known", "level", "name", "number", "query", "stored")

    def __init__(self, asker: Asker, number: int, query: Query, name: bytes) -> None:
        self.asker = asker
        self.number = number
        self.query = query
        self.name = name
        self.level = Level.SYNCED
        self.group = 0
        self.known: Known | None = None
        self.stored = b""


class Answered:
    """What a job has answered.

    Attributes:
        count: So many of its questions, the first of them.
        room: Bytes that further answers may take, at or below 0 when it is to end.
        frames: The answers, whole frames, by who asked.
    """

    __slots__ = ("count", "frames", "room")

    def __init__(self) -> None:
        self.count = 0
        self.room = JOB_BYTES_MAX
        self.frames: dict[Asker, list[bytes]] = {}

    def add(self, asker: Asker, frames: bytes, count: int = 1) -> None:
        """Add the answers to the next questions, which are of one connection."""
        self.frames.setdefault(asker, []).append(frames)
        self.count += count
        self.room -= len(frames)


class HistoryReader:
    """The questions of all connections of one node. On the loop, but for what `_read` does.

    Args:
        core: Knows the channels in memory.
        log: What is stored.
        submit: Has the reader thread call something.
        kick: Called when something is queued to be sent.
    """

    def __init__(
        self,
        core: Sequencer,
        log: StoredReader,
        submit: Callable[[Callable[..., Answered], list[Ask], Applied, int], asyncio.Future[Answered]],
        kick: Callable[[], None],
    ) -> None:
        self._core = core
        self._log = log
        self._submit = submit
        self._kick = kick
        self._waiting: dict[Asker, deque[Ask]] = {}
        self._crowded: dict[Asker, deque[Ask]] = {}
        self._uncommitted: list[Ask] = []
        # The reader thread's, of the one job that there is.
        self._stretches = StretchReader()
        self._busy = False
        self._job_asks = JOB_ASKS_MAX

    # -- what sessions call --------------------------------------------------------------------------------------------

    def ask(self, asker: Asker, number: int, query: Query, name: bytes) -> int:
        """Have a question answered.

        Args:
            asker: Who asks.
            number: The request's.
            query: The question.
            name: Its channel or pattern, checked.

        Returns:
            How many questions of the connection wait.

        Raises:
            RequestError: NO_PROFILE; there is no such channel and could be none.
        """
        ask = Ask(asker, number, query, name)
        if isinstance(query, HistoryQuery):
            info = self._core.tails.info(name)
            if info is None:
                ask.level = self._core.profiles.resolve(name).durability
            elif info[1] != Level.EPHEMERAL and info[6] > info[4]:
                ask.group = self._pending_group()
        if ask.group:
            self._uncommitted.append(ask)
        else:
            self._queue(ask)
        return len(self._waiting.get(asker, ())) + len(self._crowded.get(asker, ())) + len(self._uncommitted)

    def leave(self, asker: Asker) -> None:
        """Forget the questions of a connection that is gone."""
        self._waiting.pop(asker, None)
        self._crowded.pop(asker, None)

    # -- what the node calls -------------------------------------------------------------------------------------------

    def settled(self) -> None:
        """A group was applied, or failed."""
        if self._uncommitted:
            asks, self._uncommitted = self._uncommitted, []
            for ask in asks:
                if ask.asker.closed:
                    continue
                if ask.group > self._core.applied_number and not self._core.idle:
                    self._uncommitted.append(ask)
                else:
                    self._queue(ask)
        self.go_on()

    def flushed(self) -> None:
        """Connections have sent: those that had too much to send may go on. Call it after each flush."""
        if self._crowded:
            crowded, self._crowded = self._crowded, {}
            for asker, asks in crowded.items():
                self._waiting.setdefault(asker, deque()).extend(asks)
        self.go_on()

    def go_on(self) -> None:
        """Begin a job if there are questions and none is being read. Called at the end of a turn, so that all of its
        questions are there."""
        if self._busy or not self._waiting:
            return
        asks = self._take()
        if asks:
            self._busy = True
            applied = Applied(self._core.journal, self._core.applied_number)
            job = self._submit(self._read, asks, applied, self._core.tails.now_us // 1_000_000)
            job.add_done_callback(lambda done: self._have(asks, done))

    # -- a job ---------------------------------------------------------------------------------------------------------

    def _queue(self, ask: Ask) -> None:
        crowded = self._crowded.get(ask.asker)
        if crowded is not None:
            crowded.append(ask)
        else:
            self._waiting.setdefault(ask.asker, deque()).append(ask)

    def _pending_group(self) -> int:
        """The newest group that may hold what was answered and is not committed yet."""
        if not self._core.tails.group_empty or self._core.in_commit is None:
            return self._core.tails.group_number
        return self._core.in_commit.number

    def _take(self) -> list[Ask]:
        """Take questions for a job, one of each connection in turn."""
        taken: list[Ask] = []
        room = min(QUEUED_BYTES_MAX, self._core.limits.connection_bytes_max // QUEUED_SHARE)
        while self._waiting and len(taken) < self._job_asks:
            asker = next(iter(self._waiting))
            asks = self._waiting.pop(asker)
            if asker.outbox.queued > room:
                self._crowded[asker] = asks
                continue
            # Alone it is its turn again and again.
            for _ in range(1 if self._waiting else min(len(asks), self._job_asks - len(taken))):
                ask = asks.popleft()
                if not asker.closed:
                    ask.known = self._known(ask)
                    taken.append(ask)
            if asks:
                self._waiting[asker] = asks
        return taken

    def _known(self, ask: Ask) -> Known | None:
        """What memory has of the channel that is asked for."""
        if isinstance(ask.query, BusQuery):
            return None
        info = self._core.tails.info(ask.name)
        if info is None:
            return None if self._core.missing([ask.name]) else Known.nothing(ask.level)
        _, level, epoch, first, applied_next, _, seen_next, epochs = info
        if level == Level.EPHEMERAL:
            # Nothing of it is read back.
            return Known(0, level, seen_next, seen_next, [(epoch, seen_next)])
        return Known(self._core.tails.stored_id(ask.name), level, first, applied_next, epochs)

    def _read(self, asks: list[Ask], applied: Applied, now_s: int) -> Answered:
        """Answer questions, on the reader thread: the first of them, at least one."""
        answered = Answered()
        self._resolve([ask for ask in asks if ask.known is None and isinstance(ask.query, HistoryQuery)])
        self._stretches.clear()
        for ask in asks:
            self._add(ask)
        while answered.count < len(asks) and answered.room > 0:
            ask = asks[answered.count]
            if ask.known is None and not ask.stored:
                answered.add(ask.asker, self._answer(ask, applied, now_s))
                continue
            try:
                self._answer_some(asks, answered, now_s)
            except BrokerError as refusal:
                ask = asks[answered.count]
                answered.add(ask.asker, ask.asker.encode_refusal(ask.number, refusal))
        return answered

    def _add(self, ask: Ask) -> None:
        """Have the next question answered in one pass with those beside it, if it is of a kind that can be."""
        if ask.stored and isinstance(ask.query, HistoryQuery):
            self._stretches.add_stored(ask.number, ask.stored, ask.query)
        elif ask.known is None or not isinstance(ask.query, HistoryQuery):
            self._stretches.skip()
        else:
            outcome = None if ask.query.after is None else begin_at(ask.known, ask.query)
            self._stretches.add(ask.number, ask.known, ask.query, outcome)

    def _answer_some(self, asks: list[Ask], answered: Answered, now_s: int) -> None:
        """Answer the next ones, as far as they ask for channels that are known, from one look at what is stored.

        Raises:
            StorageError: It cannot be looked at.
        """
        with self._log.reading() as reading:
            while answered.count < len(asks) and answered.room > 0:
                ask = asks[answered.count]
                if ask.known is None and not ask.stored:
                    return
                if self._answer_many(asks, answered, reading, now_s):
                    continue
                frame = self._answer_stretch(ask, ask.known or self._from_log(ask, ask.stored), reading, now_s)
                if frame is None:
                    return
                answered.add(ask.asker, frame)

    def _answer_many(self, asks: list[Ask], answered: Answered, reading: Reading, now_s: int) -> int:
        """Answer the next ones in one pass; returns how many, 0 when the next one takes more than that."""
        begin = answered.count
        try:
            end = begin + reading.answer(self._stretches, begin, answered.room, now_s)
        except (StorageError, ValueError):
            return 0  # who answers it alone meets the same, and refuses it
        while answered.count < end:
            first = last = answered.count
            while last + 1 < end and asks[last + 1].asker is asks[first].asker:
                last += 1
            answered.add(asks[first].asker, self._stretches.frames_of(first, last + 1), last + 1 - first)
        return end - begin

    def _resolve(self, asks: list[Ask]) -> None:
        """Look up the channels that are not in memory, all at once; on the reader thread."""
        try:
            stored = self._log.resolve([ask.name for ask in asks]) if asks else []
        except BrokerError:
            return  # each is looked up by itself, so that only what is damaged is refused
        for ask, entries in zip(asks, stored, strict=True):
            if (
                entries
                and ask.level != Level.EPHEMERAL
                and isinstance(ask.query, HistoryQuery)
                and ask.query.after is None
            ):
                ask.stored = entries
            else:
                ask.known = self._from_log(ask, entries)

    def _from_log(self, ask: Ask, entries: bytes) -> Known:
        known = Known.from_entries(entries) if entries else Known.nothing(ask.level)
        if ask.level == Level.EPHEMERAL:
            # Its profile has become so since it was stored.
            return Known(0, ask.level, known.next, known.next, known.epochs)
        return known

    def _names_of(self, channels: list[int]) -> list[bytes | None]:
        """Names of channels by their ids, in memory or not; on the reader thread."""
        names = [self._core.tails.name_of(channel) for channel in channels]
        absent = [at for at, name in enumerate(names) if name is None]
        if absent:
            stored = self._log.names_of([channels[at] for at in absent])
            for at, name in zip(absent, stored, strict=True):
                # One that has come into memory since is that channel, or else what is there under its name is another:
                # this one was removed, and the log does not know of that yet.
                known = name is None or self._core.missing([name])
                names[at] = name if known else self._core.tails.name_of(channels[at])
        return names

    def _answer_stretch(self, ask: Ask, known: Known, reading: Reading, now_s: int) -> bytes | None:
        """Answer a question about a channel; None when it must be asked of another reading."""
        assert isinstance(ask.query, HistoryQuery)
        try:
            return ask.asker.encode_part(ask.number, read_stretch(reading, known, ask.query, now_s))
        except BrokerError as refusal:
            return None if reading.overtaken else ask.asker.encode_refusal(ask.number, refusal)
        except ValueError as damage:
            return self._refuse_damaged(ask, damage)

    def _firsts_of(self, names: dict[int, bytes]) -> dict[int, int]:
        """What channels begin with now, by their ids; on the reader thread."""
        return firsts_of(self._core.tails, self._log, names)

    def _answer(self, ask: Ask, applied: Applied, now_s: int) -> bytes:
        """Answer a question about a pattern, or a channel that could not be looked up with others."""
        try:
            part: Part
            if isinstance(ask.query, BusQuery):
                selected = Selected(ask.name, self._names_of)
                part = read_bus(self._log, selected, ask.query, applied, now_s, self._firsts_of)
            else:
                part = read_stretch(self._log, self._from_log(ask, self._log.resolve([ask.name])[0]), ask.query, now_s)
            return ask.asker.encode_part(ask.number, part)
        except BrokerError as refusal:
            return ask.asker.encode_refusal(ask.number, refusal)
        except ValueError as damage:
            return self._refuse_damaged(ask, damage)

    def _refuse_damaged(self, ask: Ask, damage: ValueError) -> bytes:
        """Refuse for a chunk whose checksum is right and whose records are not."""
        failure = error("STORAGE_CORRUPT", f"history of {ask.name.decode()}: {damage}")
        return ask.asker.encode_refusal(ask.number, failure)

    def _have(self, asks: list[Ask], done: asyncio.Future[Answered]) -> None:
        """A job is done: queue its answers, and begin the next one."""
        self._busy = False
        if done.cancelled():
            return
        failure = done.exception()
        answered = done.result() if failure is None else self._refuse(asks, failure)
        for asker, frames in answered.frames.items():
            if not asker.closed:
                asker.outbox.shared_frames(frames[0] if len(frames) == 1 else b"".join(frames))
        # What a job takes and does not come to is looked up for nothing.
        more = answered.count if answered.count == len(asks) else answered.count // SPARE_SHARE
        self._job_asks = min(answered.count + more + 1, JOB_ASKS_MAX)
        for ask in reversed(asks[answered.count :]):
            self._waiting.setdefault(ask.asker, deque()).appendleft(ask)
        for asker in {ask.asker: None for ask in asks}:
            if len(self._waiting.get(asker, ())) <= ASKS_MAX // 2:
                asker.read_on_asking()
        self._kick()
        self.go_on()

    def _refuse(self, asks: list[Ask], failure: BaseException) -> Answered:
        """A job failed as a whole: nobody may wait for it in vain."""
        if isinstance(failure, MemoryError):
            refusal = error("LIMIT", "memory: none is left to read history", "ask for less at a time")
        else:
            emit("history_failed", failure=failure)
            refusal = error("STORAGE_FAILED", "history: it cannot be read")
        answered = Answered()
        for ask in asks:
            answered.add(ask.asker, ask.asker.encode_refusal(ask.number, refusal))
        return answered
