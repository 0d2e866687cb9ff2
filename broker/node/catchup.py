"""Readers that are behind: slices of the log until they reach the live stream.

A reader reads literals each by its own position, or everything by bus position. Slices are read on one reader thread,
bounded in bytes and by the subscription's credit, and handed to the loop. When the log has no more, what is still
missing comes from memory (recent groups, then chunks that were delivered early), in the same loop step in which the
subscription is attached: that is the seam, without gap or duplicate.

The literals of a subscription stay in memory from its admission to its end; what else a reader by bus position meets
may have been evicted, and then the reader thread asks the log for its name. What retention took before a reader came to
it is told to the subscriber.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from broker.core.recent import INDEX_END
from broker.core.sequencer import DELIVER_FLAG_EARLY, Sequencer
from broker.events import emit
from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker.model.names import matches
from broker_native.chunks import chunk_expire
from broker_native.groups import chunk_cut, chunk_head, chunks_in, chunks_of

if TYPE_CHECKING:
    from broker.core.ports import Reader as LogReader
    from broker_native.fanout import Outbox, Subscription

__all__ = ["INDEX_END", "CatchUp", "Following", "Place", "Wanted"]

SLICE_BYTES_MAX = 1 << 20
QUEUED_BYTES_MAX = 2 << 20
"""A connection that has this much to send, or is about to have, gets no further slice until it has sent some."""
QUEUED_SHARE = 4
"""Nor may it be more than this part of what ends a connection, however small that bound is set."""

LEAVES_A_TURN = 32
"""Subscriptions that are detached from their channels in a turn of the loop: about half a millisecond of them."""

NEAR_MAX = 256
"""A reader of a literal that has missed no more sequences looks for them in memory before it reads the log."""

KNOWN_MAX = 4_096
"""Channels of which a reader by bus position remembers whether it wants them."""

_Read = TypeVar("_Read")

Place = tuple[int, int]
"""(group, index): a bus position in this journal."""


class Wanted(Container[int]):
    """The channel ids that a subscription's filters reach. Used on the reader thread too.

    The loop asks no disk: an id that memory does not know is not in it, and stands in `unknown` until `learn`.

    Args:
        core: Knows the names of channels in memory.
        literals, patterns: The filters.

    Attributes:
        unknown: Ids of which nobody can tell without asking the log.
    """

    def __init__(self, core: Sequencer, literals: list[bytes], patterns: list[bytes]) -> None:
        self._tails = core.tails
        self._literals = frozenset(literals)
        self._patterns = patterns
        self._names: dict[int, bytes] = {}
        self._unwanted: set[int] = set()
        self.unknown: set[int] = set()

    def __contains__(self, channel: object) -> bool:
        assert isinstance(channel, int)
        if channel in self._names:
            return True
        if channel in self._unwanted:
            return False
        name = self._tails.name_of(channel)
        if name is None:
            self.unknown.add(channel)
            return False
        return self._note(channel, name)

    def name_of(self, channel: int) -> bytes | None:
        """Return the name of a channel that is in it, in memory or not."""
        return self._names.get(channel)

    def forget(self) -> None:
        """Keep no more than a bounded part of what is known; of chunks that were found all must have been handed on."""
        if len(self._names) > KNOWN_MAX:
            self._names.clear()

    def learn(self, log: LogReader) -> None:
        """Have the log say what `unknown` is; on the reader thread, while the loop leaves this alone.

        Raises:
            StorageError: One of them cannot be read.
        """
        ids = sorted(self.unknown)
        for channel, name in zip(ids, log.names_of(ids), strict=True):
            self._note(channel, name)
        self.unknown.clear()

    def _note(self, channel: int, name: bytes | None) -> bool:
        if name is not None and (name in self._literals or any(matches(pattern, name) for pattern in self._patterns)):
            self._names[channel] = name
            return True
        if len(self._unwanted) >= KNOWN_MAX:
            self._unwanted.clear()
        self._unwanted.add(channel)
        return False


class WantedThere(Container[int]):
    """The same on the reader thread, which asks the log at once.

    Args:
        wanted: What the filters reach.
        log: Knows the names of all stored channels.
    """

    def __init__(self, wanted: Wanted, log: LogReader) -> None:
        self._wanted = wanted
        self._log = log

    def __contains__(self, channel: object) -> bool:
        if channel in self._wanted:
            return True
        if not self._wanted.unknown:
            return False
        self._wanted.learn(self._log)
        return channel in self._wanted


class Following:
    """What one subscription follows, and how far it is behind.

    Attributes:
        after: For literals that catch up: name → the last sequence handed over.
        place: For a reader by bus position: the last chunk handed over; None when it reads literals.
        live: Everything is attached.
        asked: What was committed when the slice in flight was asked for: the next sequence, or the group.
        exhausted: The log had nothing beyond that.
    """

    __slots__ = (
        "after",
        "asked",
        "busy",
        "exhausted",
        "literals",
        "live",
        "patterns",
        "place",
        "subscription",
        "wanted",
    )

    def __init__(self, subscription: Subscription, literals: list[bytes], patterns: list[bytes]) -> None:
        self.subscription = subscription
        self.literals = literals
        self.patterns = patterns
        self.after: dict[bytes, int] = {}
        self.place: Place | None = None
        self.wanted: Wanted | None = None
        self.live = False
        self.busy = False
        self.asked = 0
        self.exhausted = False


class CatchUp:
    """Drives the readers of one node.

    Args:
        core: The sequencer, for what is in memory.
        log: For what is not.
        loop: The loop that it belongs to.
        kick: Called when something is queued to be sent.
        lost: Called with (subscription, error) when its history cannot be read.
    """

    def __init__(
        self,
        core: Sequencer,
        log: LogReader,
        loop: asyncio.AbstractEventLoop,
        kick: Callable[[], None],
        lost: Callable[[Subscription, BaseException], None],
    ) -> None:
        self._core = core
        self._fanout = core.fanout
        self._log = log
        self._loop = loop
        self._kick = kick
        self._lost = lost
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broker-read")
        self._crowded: dict[Following, None] = {}
        self._leaving: deque[Following] = deque()
        self._leaves = 0  # in this turn
        self._asked: dict[Outbox, int] = {}

    def close(self) -> None:
        """End the reader thread; blocks until its slice is read."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, work: Callable[..., _Read], *arguments: object) -> asyncio.Future[_Read]:
        """Have the reader thread do a bounded piece of reading, behind what it was given before."""
        return asyncio.wrap_future(self._pool.submit(work, *arguments), loop=self._loop)

    # -- start and stop ------------------------------------------------------------------------------------------------

    def follow(self, following: Following) -> None:
        """Begin: literals in `after` catch up and the others are live, or everything by `place`."""
        following.subscription.state = following
        following.subscription.behind = True
        for name in following.literals:
            self._core.tails.hold(name)
        if following.place is None:
            for name in following.literals:
                if name not in following.after:
                    self._fanout.attach(following.subscription, name)
        self.step(following)

    def leave(self, following: Following) -> None:
        """Stop delivering to the subscription, live or not.

        When thousands leave in one turn, what they leave behind is taken away in the turns that follow.
        """
        subscription = following.subscription
        subscription.state = None
        subscription.slow = True
        if self._leaves < LEAVES_A_TURN:
            self._detach(following)
        else:
            self._leaving.append(following)
        if not self._leaves:
            self._loop.call_soon(self._leave_on)
        self._leaves += 1

    def _leave_on(self) -> None:
        self._leaves = min(LEAVES_A_TURN, len(self._leaving))
        for _ in range(self._leaves):
            self._detach(self._leaving.popleft())
        if self._leaves:
            self._loop.call_soon(self._leave_on)

    def _detach(self, following: Following) -> None:
        subscription = following.subscription
        for name in following.literals:
            self._fanout.detach(subscription, name)
            self._core.tails.release(name)
        for pattern in following.patterns:
            self._fanout.detach_pattern(subscription, pattern)

    def locate_time(self, time_us: int, found: Callable[[int | BrokerError], None]) -> None:
        """Find the first group whose time is not below `time_us`; calls `found` with it, or with why not."""

        def tell(located: asyncio.Future[int]) -> None:
            if located.cancelled():
                return
            failure = located.exception()
            if failure is None:
                found(located.result())
            elif isinstance(failure, BrokerError):
                found(failure)
            else:
                emit("time_not_found", failure=failure)
                found(error("STORAGE_FAILED", f"time {time_us}: the log cannot be searched"))

        asyncio.wrap_future(self._pool.submit(self._log.time_to_group, time_us), loop=self._loop).add_done_callback(
            tell
        )

    # -- one step ------------------------------------------------------------------------------------------------------

    def step(self, following: Following) -> None:
        """Go on if the subscription has credit and its connection has room. Call it whenever either changes."""
        try:
            self._step(following)
        except MemoryError as failure:
            self._lost(following.subscription, failure)

    def _step(self, following: Following) -> None:
        subscription = following.subscription
        if following.live or following.busy or subscription.state is not following:
            return
        while self._join(following):
            if following.live:
                subscription.behind = False
                self._kick()
                return
        if subscription.credit <= 0:
            return
        outbox = subscription.outbox
        room = min(QUEUED_BYTES_MAX, self._core.limits.connection_bytes_max // QUEUED_SHARE)
        if self._room(following) < 0:
            self._crowded[following] = None
            return
        following.busy = True
        bytes_max = min(SLICE_BYTES_MAX, subscription.credit, room)
        # Many readers of one connection ask before the first slice is queued, so what they ask for counts.
        self._asked[outbox] = self._asked.get(outbox, 0) + bytes_max
        if following.place is None:
            name, after = next(iter(following.after.items()))
            info = self._core.tails.info(name)
            assert info is not None
            self._pass_trimmed(following, name, info[3])
            after = following.after[name]
            following.asked = info[4]
            future = self._pool.submit(self._read_channel, name, self._core.tails.stored_id(name), after, bytes_max)
        else:
            following.asked = self._core.applied_number
            future = self._pool.submit(self._read_groups, following, bytes_max)
        asyncio.wrap_future(future, loop=self._loop).add_done_callback(
            lambda read: self._have(following, read, bytes_max)
        )

    def _room(self, following: Following) -> int:
        """Return how much more a subscription's connection may have to send, bytes; none without credit."""
        subscription = following.subscription
        if subscription.credit <= 0:
            return 0
        outbox = subscription.outbox
        room = min(QUEUED_BYTES_MAX, self._core.limits.connection_bytes_max // QUEUED_SHARE)
        return room - outbox.queued - self._asked.get(outbox, 0)

    def flushed(self) -> None:
        """Connections have sent: go on with those that had too much to send. Call it after each flush.

        A transport that takes everything at once never says that it takes bytes again.
        """
        if self._crowded:
            crowded, self._crowded = self._crowded, {}
            for following in crowded:
                self.step(following)

    def _read_channel(
        self, name: bytes, channel: int, after: int, bytes_max: int
    ) -> tuple[bytes | None, list[tuple[int, int, bytes]], Place | None]:
        return name, self._log.read_channel(channel, after, bytes_max), None

    def _read_groups(
        self, following: Following, bytes_max: int
    ) -> tuple[bytes | None, list[tuple[int, int, bytes]], Place | None]:
        assert following.place is not None
        assert following.wanted is not None
        following.wanted.forget()
        if following.wanted.unknown:
            following.wanted.learn(self._log)
        wanted = WantedThere(following.wanted, self._log)
        chunks, place = self._log.read_groups(*following.place, bytes_max, wanted)
        return None, chunks, place

    def _have(
        self,
        following: Following,
        read: asyncio.Future[tuple[bytes | None, list[tuple[int, int, bytes]], Place | None]],
        asked_bytes: int,
    ) -> None:
        """A slice is here: queue it, and read on."""
        following.busy = False
        outbox = following.subscription.outbox
        self._asked[outbox] -= asked_bytes
        if not self._asked[outbox]:
            del self._asked[outbox]
        if read.cancelled():
            return
        # Asked for even if nobody waits for it any more: a failure that is never looked at makes asyncio complain.
        failure = read.exception()
        if following.subscription.state is not following:
            return
        if failure is not None:
            if not isinstance(failure, BrokerError | MemoryError):
                emit("catchup_failed", failure=failure)
            self._lost(following.subscription, failure)
            return
        try:
            self._queue_slice(following, *read.result())
        except MemoryError as shortage:
            self._lost(following.subscription, shortage)
            return
        except ValueError as damage:  # a chunk whose checksum is right and whose records are not
            self._lost(following.subscription, error("STORAGE_CORRUPT", f"history of a subscription: {damage}"))
            return
        self._kick()
        self.step(following)

    def _queue_slice(
        self, following: Following, name: bytes | None, chunks: list[tuple[int, int, bytes]], place: Place | None
    ) -> None:
        # A group may be on the disk before this thread has applied it. It will be delivered like any other.
        applied = self._core.applied_number
        now_s = self._core.tails.now_us // 1_000_000
        chunks = [(group, at, chunk_expire(chunk, now_s)) for group, at, chunk in chunks if group <= applied]
        if place is not None and place[0] > applied:
            place = (applied, INDEX_END)
        if name is not None:
            self._queue_channel(following, name, chunks)
            info = self._core.tails.info(name)
            assert info is not None
            self._pass_trimmed(following, name, info[3])
            following.exhausted = following.after[name] + 1 >= following.asked
        else:
            assert place is not None
            for group, index, chunk in chunks:
                self._deliver_wanted(following, chunk, group, index)
            following.place = place
            following.exhausted = place[0] >= following.asked

    def _queue_channel(self, following: Following, name: bytes, chunks: list[tuple[int, int, bytes]]) -> None:
        after = following.after[name]
        for group, index, chunk in chunks:
            _, _, first, count = chunk_head(chunk)
            self._pass_trimmed(following, name, first)
            whole = chunk if first > after else chunk_cut(chunk, after)
            self._fanout.deliver_one(following.subscription, whole, group, index)
            after = following.after[name] = first + count - 1

    def _deliver_wanted(self, following: Following, chunk: bytes, group: int, index: int, flags: int = 0) -> None:
        assert following.wanted is not None
        name = following.wanted.name_of(chunk_head(chunk)[0])
        self._fanout.deliver_one(following.subscription, chunk, group, index, flags, name)

    def _pass_trimmed(self, following: Following, name: bytes, first: int) -> None:
        """Tell a subscriber that what would have come next is there no more, if so: `first` is what comes instead."""
        if first > following.after[name] + 1:
            following.after[name] = first - 1
            following.subscription.outbox.owner.on_trimmed(following.subscription, name, first)

    # -- the seam ------------------------------------------------------------------------------------------------------

    def _join(self, following: Following) -> bool:
        """Attach what has reached the live stream; answers whether anything was."""
        if following.place is not None:
            return self._join_bus(following)
        name, after = next(iter(following.after.items()), (None, 0))
        if name is None:
            following.live = True
            return True
        info = self._core.tails.info(name)
        assert info is not None
        channel = self._core.tails.stored_id(name)
        # What a channel has had since it became ephemeral is never read back.
        seen_next = info[4] if info[1] == Level.EPHEMERAL else info[6]
        if after + 1 < seen_next:
            # Whoever missed a little gets it from memory, where thousands may look who come back at once.
            near = info[3] <= after + 1 and seen_next - after <= NEAR_MAX and self._room(following) > 0
            if not following.exhausted and not near:
                return False
            missing = self._in_memory(channel, after)
            if not missing or chunk_head(missing[0][2])[2] > after + 1 or not self._affordable(following, missing):
                following.exhausted = False
                return False
            self._queue_missing(following, name, missing)
        del following.after[name]
        following.exhausted = False
        self._fanout.attach(following.subscription, name)
        return True

    def _in_memory(self, channel: int, after: int) -> list[tuple[int, int, bytes, int]]:
        """What memory has of a channel past a sequence: recent groups, then chunks delivered early."""
        missing = [(group, index, chunk, 0) for group, index, chunk in self._core.recent.of_channel(channel, after)]
        for number, index, value in self._early_values():
            missing += [
                (number, index + at, chunk, DELIVER_FLAG_EARLY) for at, chunk in chunks_of(value, 0, channel, after)
            ]
        return missing

    def _early_values(self) -> list[tuple[int, int, bytes]]:
        """Values delivered ahead of their commit: (group, index of the first chunk, value)."""
        found: list[tuple[int, int, bytes]] = []
        pending = [(self._core.tails.group_number, self._core.tails.early_values)]
        if self._core.in_commit is not None:
            pending.insert(0, (self._core.in_commit.number, self._core.in_commit.early_values))
        for number, values in pending:
            index = 0
            for value in values:
                found.append((number, index, value))
                index += len(chunks_in(value, 0, _EVERYTHING))
        return found

    def _affordable(self, following: Following, missing: list[tuple[int, int, bytes, int]]) -> bool:
        subscription = following.subscription
        missing_bytes = sum(len(chunk) for _, _, chunk, _ in missing)
        if not following.exhausted and missing_bytes > min(subscription.credit, self._room(following)):
            return False
        return missing_bytes <= subscription.credit + subscription.overdraft

    def _queue_missing(self, following: Following, name: bytes, missing: list[tuple[int, int, bytes, int]]) -> None:
        after = following.after[name]
        for group, index, chunk, flags in missing:
            _, _, first, count = chunk_head(chunk)
            whole = chunk if first > after else chunk_cut(chunk, after)
            self._fanout.deliver_one(following.subscription, whole, group, index, flags)
            after = first + count - 1

    def _join_bus(self, following: Following) -> bool:
        assert following.place is not None
        assert following.wanted is not None
        if not following.exhausted and following.place[0] < self._core.applied_number:
            return False
        committed = self._core.recent.after(*following.place, following.wanted)
        if committed is None or following.wanted.unknown:
            following.exhausted = False
            return False
        missing = [(group, index, chunk, 0) for group, index, chunk in committed]
        for number, index, value in self._early_values():
            missing += [
                (number, index + at, chunk, DELIVER_FLAG_EARLY) for at, chunk in chunks_in(value, 0, following.wanted)
            ]
        if following.wanted.unknown or not self._affordable(following, missing):
            following.exhausted = False
            return False
        for group, index, chunk, flags in missing:
            self._deliver_wanted(following, chunk, group, index, flags)
        for name in following.literals:
            self._fanout.attach(following.subscription, name)
        for pattern in following.patterns:
            self._fanout.attach_pattern(following.subscription, pattern)
        following.live = True
        return True


class _Everything(Container[int]):
    def __contains__(self, channel: object) -> bool:
        return True


_EVERYTHING = _Everything()
