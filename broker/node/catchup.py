"""Readers that are behind: slices of the log until they reach the live stream.

A reader reads literals each by its own position, or everything by bus position. Slices are read on one reader thread,
bounded in bytes and by the subscription's credit, and handed to the loop. When the log has no more, what is still
missing comes from memory (recent groups, then chunks that were delivered early), in the same loop step in which the
subscription is attached: that is the seam, without gap or duplicate.

A live subscription that is refused a chunk because it has fallen behind is *demoted*: it is detached, hears `lagging`
behind what it has got, and reads on from the log by its credit like any other reader (`broker.node.demotion` says from
where). When all that is missing leaves half of its credit free it is attached again and hears `live`: a reader that is
only just fast enough would change sides all the time.

The literals of a subscription stay in memory from its admission to its end; what else a reader by bus position meets
may have been evicted, and then the reader thread asks the log for its name and for what it begins with. What retention
took before a reader came to it is told to the subscriber: the journal has what was trimmed or removed until the archive
has taken it in.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from broker.core.recent import INDEX_END
from broker.core.sequencer import DELIVER_FLAG_EARLY, MEMORY_SHARE, Sequencer
from broker.events import emit
from broker.model.errors import BrokerError, RequestError, error
from broker.model.levels import Level
from broker.model.names import matches, overlap
from broker.model.profiles import KEEP_LATEST_PER_KEY, SLOW_DISCONNECT, SLOW_LATEST
from broker.node.demotion import Undelivered
from broker.node.firsts import firsts_of
from broker.node.slices import Slice, Slices
from broker_native.chunks import chunk_expire
from broker_native.fanout import Replay
from broker_native.groups import chunk_conflate, chunk_cut, chunk_gone, chunk_head, chunks_in, chunks_of
from broker_native.trie import PatternTrie

if TYPE_CHECKING:
    from broker.core.ports import Reader, Stored
    from broker.node.demotion import Refused, Standing
    from broker_native.fanout import Subscription

    class LogReader(Reader, Stored, Protocol):
        """What is read, and asked for channels that are not in memory."""


__all__ = ["INDEX_END", "CatchUp", "Following", "Place", "Wanted"]

SLICE_BYTES_MAX = 1 << 20
QUEUED_BYTES_MAX = 2 << 20
"""A connection that has this much to send, or is about to have, gets no further slice until it has sent some."""
QUEUED_SHARE = 4
"""Nor may it be more than this part of what ends a connection, however small that bound is set."""

SLICES_BYTES_MAX = 32 << 20
SLICE_US_MAX = 5_000_000
"""What has expired since a slice was read is delivered with it, so it is not kept for long."""
SHARE_BYTES = 256 << 10
"""What one reader gets before it is the next one's turn."""
PUMP_BYTES = 2 << 20
"""And what all of them get before the loop does something else."""
PUMP_US = 1_000
"""And for how long they do, sending included: whatever a byte costs, who is live waits for no more than this."""
SEND_BYTES = 64 << 10
"""What is handed on before it is sent, so that who gets little of many subscriptions gets it in one piece."""
PUMP_STEP_BYTES = 4 << 10
"""A reader that gets little counts as one that gets so much."""
SLICES_IN_HAND_MAX = 32
"""Slices that are being read, or wait to be handed on to those who asked; fewer if there is little memory. With more,
some would be dropped before their readers' turn comes, and read again."""
CHUNK_TIME_AT = 40

PARKED_S = 0.02
"""A reader that has all but is short of credit to be live looks so often whether there is more: what it has got waits
to be consumed all the while, so nobody sees the delay."""
LEAVES_A_TURN = 32
"""Subscriptions that are detached from their channels in a turn of the loop: about half a millisecond of them."""

NEAR_MAX = 256
"""A reader of a literal that has missed no more sequences looks for them in memory before it reads the log."""

KNOWN_MAX = 4_096
"""Channels of which a reader by bus position remembers whether it wants them, or what it was told of them."""

GONE_CONFLATED = 7
COUNT_MAX = (1 << 32) - 1

NOTHING_EARLY: Mapping[int, int] = {}
BEGUN_NEW: Mapping[bytes, int] = {}

_Read = TypeVar("_Read")
_Info = tuple[int, int, int, int, int, int, int, list[tuple[int, int]]]
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
        self._patterns: PatternTrie[bytes] = PatternTrie()
        for pattern in patterns:
            self._patterns.insert(pattern, pattern)
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

    def choose(self, channels: list[int]) -> set[int]:
        """Return those that are in it, as `in` says it of one."""
        names, unwanted, name_of = self._names, self._unwanted, self._tails.name_of
        chosen = set()
        for channel in channels:
            if channel in names:
                chosen.add(channel)
            elif channel not in unwanted:
                name = name_of(channel)
                if name is None:
                    self.unknown.add(channel)
                elif self._note(channel, name):
                    chosen.add(channel)
        return chosen

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

    def _selects(self, name: bytes) -> bool:
        return name in self._literals or bool(self._patterns.match(name))

    def _note(self, channel: int, name: bytes | None) -> bool:
        if name is not None and self._selects(name):
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

    def choose(self, channels: list[int]) -> set[int]:
        """Return those that are in it; the log is asked once for all that memory does not know."""
        chosen = self._wanted.choose(channels)
        if self._wanted.unknown:
            self._wanted.learn(self._log)
            chosen = self._wanted.choose(channels)
        return chosen


class Following:
    """What one subscription follows, and how far it is behind.

    Attributes:
        after: For literals that catch up: name → the last sequence handed over.
        place: For a reader by bus position: the last chunk handed over; None when it reads literals.
        live: Everything is attached.
        exhausted: The log had nothing beyond that.
        told: By a channel's id, what a reader by bus position was told that the channel begins with.
        lagging: It was live and has fallen behind.
        since_us: Broker time at which it has.
        reached, reached_us: The group and the time of the last chunk that it got, while it is lagging.
        early_done: Of groups past `place`, how many of their first chunks it got before they were committed.
        window: The credit that it began with.
        reading: The literal that is read next while it is lagging.
        begun, begun_us: The last group that was committed when it began, or where it began by bus position; and when.
        begun_after: Of literals that began elsewhere than with what came, behind which sequence.
        passing: (turn, index) of the first ephemeral chunk that it has not got, while it is lagging.
        keeps_all: It gets everything that is stored, whatever profiles want for those who fall behind.
    """

    __slots__ = (
        "_filters",
        "after",
        "begun",
        "begun_after",
        "begun_us",
        "busy",
        "early_done",
        "exhausted",
        "keeps_all",
        "lagging",
        "literals",
        "live",
        "passing",
        "patterns",
        "place",
        "reached",
        "reached_us",
        "reading",
        "since_us",
        "subscription",
        "told",
        "wanted",
        "window",
    )

    def __init__(self, subscription: Subscription, literals: list[bytes], patterns: list[bytes]) -> None:
        self.subscription = subscription
        self.literals = literals
        self.patterns = patterns
        self._filters: tuple[bytes, ...] | None = None
        self.after: dict[bytes, int] = {}
        self.place: Place | None = None
        self.wanted: Wanted | None = None
        self.live = False
        self.busy = False
        self.exhausted = False
        self.told: dict[int, int] = {}
        self.lagging = False
        self.since_us = 0
        self.reached = 0
        self.reached_us = 0
        self.early_done: Mapping[int, int] = NOTHING_EARLY
        self.window = subscription.credit
        self.reading: bytes | None = None
        self.begun: Place = (0, 0)
        self.begun_after: Mapping[bytes, int] = BEGUN_NEW
        self.begun_us = 0
        self.passing = (0, 0)
        self.keeps_all = False

    @property
    def filters(self) -> tuple[bytes, ...]:
        """What it follows; the same for all who follow the same."""
        if self._filters is None:
            self._filters = (*sorted(self.literals), *sorted(self.patterns))
        return self._filters

    @property
    def attached(self) -> bool:
        """Whether anything of it is live."""
        return self.live or (self.place is None and len(self.after) < len(self.literals))

    def has(self, group: int, index: int) -> bool:
        """Whether a reader by bus position got a chunk before its group was committed."""
        return bool(self.early_done) and index < self.early_done.get(group, 0)


class CatchUp:
    """Drives the readers of one node.

    Args:
        core: The sequencer, for what is in memory.
        log: For what is not.
        loop: The loop that it belongs to.
        kick: Called when something is queued to be sent.
        send: Sends what is queued, at once.
        steady_us: A clock that never goes back, µs.
        lost: Called with (subscription, error) when its history cannot be read.

    Attributes:
        lagging: Those that were live and have fallen behind.
        demotions, promotions: How often that happened, and how often one of them has become live again.
        cut: How many were ended for it, as their profile wants.
        count: How many subscriptions there are.
        slices_read, slices_shared: How often a slice was read, and how often one was there that another had asked for.
        slices: What is kept of the log.
        room_bytes: What may be queued for a connection whose transport takes nothing.
    """

    def __init__(
        self,
        core: Sequencer,
        log: LogReader,
        loop: asyncio.AbstractEventLoop,
        kick: Callable[[], None],
        send: Callable[[], object],
        steady_us: Callable[[], int],
        lost: Callable[[Subscription, BaseException], None],
    ) -> None:
        self._core = core
        self._fanout = core.fanout
        self._log = log
        self._loop = loop
        self._kick = kick
        self._send = send
        self._steady_us = steady_us
        self._lost = lost
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broker-read")
        self._crowded: dict[Following, None] = {}
        self._leaving: deque[Following] = deque()
        self._leaves = 0  # in this turn
        self._ready: OrderedDict[Following, Slice] = OrderedDict()
        self._in_hand: dict[Slice, int] = {}  # those of `_ready`, and of how many
        self._unread: dict[Following, None] = {}  # they wait until less is in hand
        self._pumping = False
        self._reading: dict[tuple[Hashable, int | Place], list[tuple[Following, bytes | None]]] = {}
        slices_bytes_max = min(SLICES_BYTES_MAX, core.limits.memory_bytes_max // MEMORY_SHARE)
        self.slices = Slices(slices_bytes_max)
        self._in_hand_max = max(min(SLICES_IN_HAND_MAX, slices_bytes_max // SLICE_BYTES_MAX), 1)
        self.room_bytes = QUEUED_BYTES_MAX
        self.lagging: dict[Following, None] = {}
        self.demotions = 0
        self.promotions = 0
        self.cut = 0
        self.count = 0
        self.slices_read = 0
        self.slices_shared = 0
        self._parked: dict[Following, None] = {}
        self._park_timer: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Look for nothing more by itself. Call it before `close`, on the loop."""
        self._parked.clear()
        self._ready.clear()
        self._in_hand.clear()
        self._unread.clear()
        if self._park_timer is not None:
            self._park_timer.cancel()
            self._park_timer = None

    def close(self) -> None:
        """End the reader thread; blocks until its slice is read."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, work: Callable[..., _Read], *arguments: object) -> asyncio.Future[_Read]:
        """Have the reader thread do a bounded piece of reading, behind what it was given before."""
        return asyncio.wrap_future(self._pool.submit(work, *arguments), loop=self._loop)

    @property
    def slices_bytes(self) -> int:
        """What there is of the log in memory, kept or in hand."""
        return self.slices.size_bytes + sum(one.size_bytes for one in self._in_hand if not self.slices.keeps(one))

    # -- start and stop ------------------------------------------------------------------------------------------------

    def follow(self, following: Following) -> None:
        """Begin: literals in `after` catch up and the others are live, or everything by `place`."""
        following.subscription.state = following
        following.subscription.behind = True
        self.count += 1
        following.begun = following.place or (self._core.applied_number, INDEX_END)
        following.begun_us = self._core.tails.now_us
        if following.after:
            following.begun_after = dict(following.after)
        for name in following.literals:
            self._core.tails.hold(name)
        if following.subscription.group is not None:
            self._follow_group(following)
            return
        if following.place is None:
            for name in following.literals:
                if name not in following.after:
                    self._fanout.attach(following.subscription, name)
        self.step(following)

    def _follow_group(self, following: Following) -> None:
        """Let a member of a live group have its share; it has no place to catch up from, and is passed over instead."""
        for name in following.literals:
            self._fanout.attach(following.subscription, name)
        for pattern in following.patterns:
            self._fanout.attach_pattern(following.subscription, pattern)
        following.subscription.behind = False
        following.live = True

    def leave(self, following: Following) -> None:
        """Stop delivering to the subscription, live or not.

        When thousands leave in one turn, what they leave behind is taken away in the turns that follow.
        """
        subscription = following.subscription
        subscription.state = None
        subscription.slow = True
        self.count -= 1
        self._lags_no_more(following)
        self._parked.pop(following, None)
        self._unread.pop(following, None)
        self._take_ready(following)
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

    # -- those who fall behind -----------------------------------------------------------------------------------------

    def demote(self, slow: list[Subscription]) -> None:
        """Let subscriptions that were refused a chunk read on from the log. Call it at the end of that turn."""
        undelivered = Undelivered(self._core)
        for subscription in slow:
            if subscription.state is None:
                continue
            name = self._core.tails.name_of(subscription.refused_channel)
            if self._policy(subscription.state, name, SLOW_DISCONNECT):
                self.cut += 1
                self._lost(subscription, _slow_consumer(subscription))
            else:
                self._demote(subscription.state, undelivered, subscription.refused)

    def demote_all(self, subscriptions: Iterable[Subscription]) -> None:
        """Do the same, as far as they are live, with those that have got all that was delivered to them. Call it
        between two turns."""
        undelivered = Undelivered(self._core)
        for subscription in subscriptions:
            following = subscription.state
            if following is None or subscription.group is not None:
                continue
            if not subscription.slow and following.attached:
                self._demote(following, undelivered, None)

    def _policy(self, following: Following, name: bytes | None, policy: str) -> bool:
        """Whether a channel's profile has this policy for a reader that falls behind."""
        profiles = self._core.profiles
        if policy not in profiles.slow or name is None or following.keeps_all:
            return False
        try:
            return profiles.resolve(name).slow == policy
        except RequestError:
            return False  # profiles have changed, and none is for it any more

    def _loses_within(self, name: bytes) -> bool:
        """Whether retention takes from the middle of a channel, so that only the log can tell what it still has."""
        profiles = self._core.profiles
        if KEEP_LATEST_PER_KEY not in profiles.keep:
            return False
        try:
            return profiles.resolve(name).keep == KEEP_LATEST_PER_KEY
        except RequestError:
            return True  # nobody knows what it kept

    def _demote(self, following: Following, undelivered: Undelivered, refused: Refused | None) -> None:
        try:
            standing = undelivered.standing(refused)
            self._draw_back(following, standing, undelivered)
            following.passing = standing.passing
            self._fall_behind(following)
        except MemoryError as failure:
            self._lost(following.subscription, failure)
            return
        self.step(following)

    def _fall_behind(self, following: Following) -> None:
        subscription = following.subscription
        following.live = following.exhausted = False
        following.reading = None
        subscription.behind = True
        subscription.slow = False
        if not following.lagging:
            following.lagging = True
            following.since_us = following.reached_us = self._core.tails.now_us
            following.reached = self._core.applied_number
            self.lagging[following] = None
            self._core.somebody_lags = True
            self.demotions += 1
            more = {"group": self._core.applied_number, "since_us": following.since_us}
            subscription.outbox.owner.tell(subscription, "lagging", more)
            self._kick()

    def _draw_back(self, following: Following, standing: Standing, undelivered: Undelivered) -> None:
        """Take what is live of it out of the fan-out, and note how far it has come."""
        subscription = following.subscription
        if following.place is not None:
            following.place, following.early_done = standing.place, standing.early_done
            for pattern in following.patterns:
                self._fanout.detach_pattern(subscription, pattern)
        for name in following.literals:
            if name not in following.after:
                self._fanout.detach(subscription, name)
                if following.place is None:
                    following.after[name] = undelivered.after(name, standing)

    def tick(self, now_us: int) -> None:
        """Drop slices that are no longer fresh. Call it once a second, with broker time."""
        self.slices.forget(now_us - SLICE_US_MAX)

    def undone(self) -> None:
        """A commit has failed: what those who lag had seen of it before is no more, and its sequences come again."""
        for following in self.lagging:
            for name, after in following.after.items():
                info = self._core.tails.info(name)
                assert info is not None
                if info[1] != Level.EPHEMERAL and after >= info[6]:
                    following.after[name] = info[6] - 1

    def _park(self, following: Following) -> None:
        """Look again in a moment."""
        self._parked[following] = None
        if self._park_timer is None:
            self._park_timer = self._loop.call_later(PARKED_S, self._unpark)

    def _unpark(self) -> None:
        self._park_timer = None
        parked, self._parked = self._parked, {}
        for following in parked:
            self.step(following)

    # -- one step ------------------------------------------------------------------------------------------------------

    def step(self, following: Following, last: Slice | None = None) -> None:
        """Go on if the subscription has credit and its connection has room. Call it whenever either changes.

        Args:
            following: The subscription.
            last: What it was handed some of just now.
        """
        try:
            self._step(following, last)
        except MemoryError as failure:
            self._lost(following.subscription, failure)

    def _step(self, following: Following, last: Slice | None) -> None:
        subscription = following.subscription
        if following.live or following.busy or subscription.slow or subscription.state is not following:
            return
        self._parked.pop(following, None)
        room = self._room(following)
        while not (room <= 0 and following.lagging) and self._join(following):
            if following.live:
                self._take_ready(following)
                self._kick()
                return
        if subscription.credit <= 0 or following in self._parked or following in self._ready:
            return
        if subscription.outbox.paused:
            return  # its connection tells when it takes bytes again
        if room <= 0:
            self._crowded[following] = None
        elif (one := self._at_hand(following, last)) is not None:
            self.slices_shared += one.begin == (following.place or following.after.get(following.reading or b""))
            self._make_ready(following, one)
        else:
            self._read(following)

    def _room(self, following: Following) -> int:
        """How much more may be queued for its connection; nothing for one that lags while its transport takes none."""
        outbox = following.subscription.outbox
        if outbox.paused and following.lagging:
            return 0
        queued_max = min(QUEUED_BYTES_MAX, self._core.limits.connection_bytes_max // QUEUED_SHARE)
        if outbox.paused:
            queued_max = min(queued_max, self.room_bytes)
        return queued_max - outbox.queued

    def _at_hand(self, following: Following, last: Slice | None = None) -> Slice | None:
        """Return the slice that a reader goes on with, if somebody has asked for it before; `last` is its last one."""
        key: Hashable
        at: int | Place
        if following.place is not None:
            key, at = following.filters, following.place
        else:
            name = self._next_name(following)
            key, at = self._core.tails.stored_id(name), following.after[name]
        if last is not None and (last.key != key or self._core.tails.now_us - last.read_us > SLICE_US_MAX):
            last = None
        if last is not None and last.begin <= at < last.end:  # type: ignore[operator]
            return last
        return self.slices.find(key, at)

    def _next_name(self, following: Following) -> bytes:
        """Return the literal that is read next; where what retention has left of it begins."""
        name = following.reading or next(iter(following.after))
        info = self._core.tails.info(name)
        assert info is not None
        self._pass_trimmed(following, name, info[3])
        if following.lagging and self._policy(following, name, SLOW_LATEST):
            self._skip(following, name, info)
        return name

    # -- slices of the log ---------------------------------------------------------------------------------------------

    def _read(self, following: Following) -> None:
        """Have the next slice read, or wait for one that is being read for somebody else."""
        limit = min(SLICE_BYTES_MAX, self._core.limits.connection_bytes_max // QUEUED_SHARE)
        name = self._next_name(following) if following.place is None else None
        key: tuple[Hashable, int | Place]
        if name is not None:
            channel, after = self._core.tails.stored_id(name), following.after[name]
            key = channel, after
        else:
            assert following.place is not None
            place = following.place
            key = following.filters, place
        waiting = self._reading.get(key)
        if waiting is not None:
            following.busy = True
            waiting.append((following, name))
            self.slices_shared += 1
            return
        if len(self._reading) + len(self._in_hand) >= self._in_hand_max:
            self._unread[following] = None
            return
        following.busy = True
        self._reading[key] = [(following, name)]
        self.slices_read += 1
        if name is not None:
            info = self._core.tails.info(name)
            assert info is not None
            asked = info[4]
            future = self._pool.submit(self._read_channel, channel, after, asked, limit)
        else:
            asked = self._core.applied_number
            future = self._pool.submit(self._read_groups, following, place, asked, limit)
        asyncio.wrap_future(future, loop=self._loop).add_done_callback(lambda read: self._have(key, read))

    def _read_channel(self, channel: int, after: int, asked: int, bytes_max: int) -> Slice:
        return Slice(channel, after, after, self._log.read_channel(channel, after, bytes_max), asked, {}, {})

    def _read_groups(self, following: Following, after: Place, asked: int, bytes_max: int) -> Slice:
        assert following.wanted is not None
        following.wanted.forget()
        if following.wanted.unknown:
            following.wanted.learn(self._log)
        wanted = WantedThere(following.wanted, self._log)
        chunks, place = self._log.read_groups(*after, bytes_max, wanted)
        names = _names(following.wanted, chunks)
        return Slice(
            following.filters, after, place, chunks, asked, names, dict(firsts_of(self._core.tails, self._log, names))
        )

    def _have(self, key: tuple[Hashable, int | Place], read: asyncio.Future[Slice]) -> None:
        """A slice is here: hand it to those who wait for it."""
        waiting = self._reading.pop(key)
        for following, _ in waiting:
            following.busy = False
        if not read.cancelled():
            self._serve(waiting, read)
            self._read_more()

    def _serve(self, waiting: list[tuple[Following, bytes | None]], read: asyncio.Future[Slice]) -> None:
        # Asked for even if nobody waits for it any more: a failure that is never looked at makes asyncio complain.
        failure = read.exception()
        if failure is None:
            try:
                one = self._committed(read.result())
            except (MemoryError, ValueError) as damage:
                failure = damage
        waiting = [each for each in waiting if each[0].subscription.state is each[0]]
        if failure is not None:
            self._tell_lost([following for following, _ in waiting], failure)
            return
        if one.chunks:
            for following, _ in waiting:
                self._make_ready(following, one)
            return
        for following, name in waiting:
            if self._hand(following, one, name, 0):
                self.step(following)
        self._kick()

    def _tell_lost(self, readers: list[Following], failure: BaseException) -> None:
        if isinstance(failure, ValueError):  # a chunk whose checksum is right and whose records are not
            failure = error("STORAGE_CORRUPT", f"history of a subscription: {failure}")
        if readers and not isinstance(failure, BrokerError | MemoryError):
            emit("catchup_failed", failure=failure)
        for following in readers:
            self._lost(following.subscription, failure)

    def _committed(self, one: Slice) -> Slice:
        """Take what was read, without what has expired, and keep it for others."""
        # A group may be on the disk before this thread has applied it. It will be delivered like any other.
        applied, now_s = self._core.applied_number, self._core.tails.now_us // 1_000_000
        chunks = [(group, at, chunk_expire(chunk, now_s)) for group, at, chunk in one.chunks if group <= applied]
        end = one.end
        if isinstance(end, tuple):
            end = end if end[0] <= applied else (applied, INDEX_END)
        elif chunks:
            _, _, first, count = chunk_head(chunks[-1][2])
            end = first + count - 1
        made = Slice(one.key, one.begin, end, chunks, one.asked, one.names, one.firsts)
        made.read_us = self._core.tails.now_us
        made.replay = Replay(self._core.fanout, made.chunks, made.names)
        self.slices.keep(made)
        return made

    def _make_ready(self, following: Following, one: Slice) -> None:
        """Have a slice that is here handed on, in turn with others; it is kept in hand until then."""
        self._take_ready(following)
        self._ready[following] = one
        self._in_hand[one] = self._in_hand.get(one, 0) + 1
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _take_ready(self, following: Following) -> Slice | None:
        """It waits no more to be handed what it is due."""
        one = self._ready.pop(following, None)
        if one is not None:
            self._in_hand[one] -= 1
            if not self._in_hand[one]:
                del self._in_hand[one]
        return one

    def _read_more(self) -> None:
        """Less is in hand: read for those who wait."""
        while self._unread and len(self._reading) + len(self._in_hand) < self._in_hand_max:
            following = next(iter(self._unread))
            del self._unread[following]
            self.step(following)

    def _pump(self) -> None:
        """Hand slices on, to each reader a part; what is live goes in between.

        What is handed on is sent here as well. Left to the end of the turn it would be sent all at once, and by then
        nobody could say any more that it takes too long.
        """
        try:
            self._hand_on()
            self._read_more()
        finally:
            self._pumping = bool(self._ready)
            if self._pumping:
                self._loop.call_soon(self._pump)
        self._kick()

    def _hand_on(self) -> None:
        left, unsent = PUMP_BYTES, 0
        until_us = self._steady_us() + PUMP_US
        while self._ready and left > 0:
            following = next(iter(self._ready))
            last = self._take_ready(following)
            subscription = following.subscription
            if subscription.state is not following or following.live or following.busy or subscription.slow:
                continue
            if subscription.outbox.paused:
                continue  # its connection tells when it takes bytes again
            credit = subscription.credit
            one = self._at_hand(following, last)
            name = self._next_name(following) if one is not None and following.place is None else None
            if one is None or self._hand(following, one, name, min(SHARE_BYTES, left)):
                handed = credit - subscription.credit
                left -= max(handed, PUMP_STEP_BYTES)
                unsent += handed
                if unsent >= SEND_BYTES:
                    unsent = 0
                    self._send()
                self.step(following, one)
            if self._steady_us() >= until_us:
                break

    def _hand(self, following: Following, one: Slice, name: bytes | None, bytes_max: int) -> bool:
        """Queue what a reader is due of a slice; answers whether it is still to be served."""
        bytes_max = min(bytes_max, self._room(following))
        try:
            if name is not None:
                self._hand_channel(following, one, name, bytes_max)
            else:
                self._hand_groups(following, one, bytes_max)
        except (MemoryError, ValueError) as failure:
            self._tell_lost([following], failure)
            return False
        return True

    def _hand_channel(self, following: Following, one: Slice, name: bytes, bytes_max: int) -> None:
        subscription = following.subscription
        after = following.after[name]
        if after < one.begin:  # type: ignore[operator]
            return  # a commit has failed since it was asked for, and took what the reader had seen of it
        at = bisect_right(one.ends, after)
        if at < len(one.chunks) and subscription.credit > 0 and bytes_max > 0:
            group, index, chunk = one.chunks[at]
            _, _, first, count = chunk_head(chunk)
            self._pass_trimmed(following, name, first)
            whole = chunk if first > after else chunk_cut(chunk, after)
            whole = self._conflate(following, name, whole, first + count - 1)
            self._fanout.deliver_one(subscription, whole, group, index)
            at += 1
            if not (following.lagging and self._policy(following, name, SLOW_LATEST)):
                assert one.replay is not None
                at, _ = self._fanout.deliver_run(subscription, one.replay, at, bytes_max - len(whole), None)
        if at:
            following.after[name] = max(after, one.ends[at - 1])  # type: ignore[assignment]
            self._note_reached(following, one.chunks[at - 1])
        if at == len(one.chunks):
            info = self._core.tails.info(name)
            assert info is not None
            self._pass_trimmed(following, name, info[3])
            following.exhausted = following.after[name] + 1 >= one.asked
        else:
            following.exhausted = False

    def _hand_groups(self, following: Following, one: Slice, bytes_max: int) -> None:
        assert following.place is not None
        if one.firsts_at != self._core.removals:
            one.firsts = self._firsts_now(one.names, one.firsts)
            one.firsts_at = self._core.removals
        place = following.place
        at = bisect_right(one.ends, place)
        left = following.subscription.credit - bytes_max
        by_one = bool(following.early_done) or (following.lagging and SLOW_LATEST in self._core.profiles.slow)
        while at < len(one.chunks):
            credit = following.subscription.credit
            if credit <= 0 or credit <= left:
                break
            low = by_one
            if not by_one:
                assert one.replay is not None
                at, low = self._fanout.deliver_run(following.subscription, one.replay, at, credit - left, one.firsts)
            if low:
                group, index, chunk = one.chunks[at]
                if not following.has(group, index):
                    self._deliver_wanted(following, one.names, chunk, group, index, 0, one.firsts)
                at += 1
        if at:
            self._note_reached(following, one.chunks[at - 1])
        if at == len(one.chunks):
            place = max(place, one.end)  # type: ignore[assignment]
        elif at:
            place = max(place, one.ends[at - 1])  # type: ignore[assignment]
        following.place = place
        following.exhausted = at == len(one.chunks) and place[0] >= one.asked
        if following.early_done and place[0] > max(following.early_done):
            following.early_done = NOTHING_EARLY

    def _note_reached(self, following: Following, last: tuple[int, int, bytes]) -> None:
        """Remember how far a reader has come, for those who ask who is behind."""
        following.reached = last[0]
        following.reached_us = int.from_bytes(last[2][CHUNK_TIME_AT : CHUNK_TIME_AT + 8], "little")

    def flushed(self) -> None:
        """Connections have sent: go on with those that had too much to send. Call it after each flush.

        A transport that takes everything at once never says that it takes bytes again.
        """
        if self._crowded:
            crowded, self._crowded = self._crowded, {}
            for following in crowded:
                self.step(following)

    def _firsts_now(self, names: Mapping[int, bytes], read: Mapping[int, int]) -> dict[int, int]:
        """What channels begin with by now, of what the reader thread has found; one that was removed is not in it."""
        firsts: dict[int, int] = {}
        for channel, name in names.items():
            info = self._core.tails.info(name)
            if info is None:
                # It was evicted, or else it was removed.
                if channel in read and self._core.tails.absent([name]):
                    firsts[channel] = read[channel]
            elif channel in (info[0], self._core.tails.stored_id(name)):
                firsts[channel] = info[3]
        return firsts

    def _deliver_wanted(
        self,
        following: Following,
        names: Mapping[int, bytes],
        chunk: bytes,
        group: int,
        index: int,
        flags: int,
        firsts: Mapping[int, int],
    ) -> None:
        """Deliver what a channel still has of a chunk, and tell once that the rest was trimmed."""
        channel, _, first, count = chunk_head(chunk)
        begin = firsts.get(channel)
        if begin is None:
            return
        name = names.get(channel)
        if first < begin:
            self._tell_trimmed(following, channel, name, begin)
            if first + count <= begin:
                return
            chunk = chunk_cut(chunk, begin - 1)
        if name is not None and not flags:
            chunk = self._conflate(following, name, chunk, first + count - 1)
        self._fanout.deliver_one(following.subscription, chunk, group, index, flags, name)

    def _conflate(self, following: Following, name: bytes, chunk: bytes, last: int) -> bytes:
        """Return what of a chunk a reader gets that has fallen behind, if its channel's profile wants no more."""
        if not following.lagging or not self._policy(following, name, SLOW_LATEST):
            return chunk
        info = self._core.tails.info(name)
        if info is None or last >= info[4]:
            return chunk
        return chunk_conflate(chunk, keep_last=last + 1 == info[4])

    def _skip(self, following: Following, name: bytes, info: _Info) -> None:
        """Pass over all of a channel but its newest record; one run stands for it."""
        after, newest = following.after[name], info[4] - 1
        if newest - after < 2:
            return
        epoch = next((epoch for epoch, begin in reversed(info[7]) if begin < newest), info[2])
        count = min(newest - 1 - after, COUNT_MAX)
        gone = chunk_gone(
            self._core.tails.stored_id(name), epoch, after + 1, count, self._core.tails.now_us, GONE_CONFLATED
        )
        self._fanout.deliver_one(following.subscription, gone, 0, 0, 0, name)
        following.after[name] = after + count

    def _tell_trimmed(self, following: Following, channel: int, name: bytes | None, first: int) -> None:
        if name is None or following.told.get(channel, 0) >= first:
            return
        if len(following.told) >= KNOWN_MAX:
            following.told.clear()
        following.told[channel] = first
        following.subscription.outbox.owner.on_trimmed(following.subscription, name, first)

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
        if following.lagging:
            return self._join_again(following)
        name, after = next(iter(following.after.items()), (None, 0))
        if name is None:
            self._go_live(following)
            return True
        info = self._core.tails.info(name)
        assert info is not None
        channel = self._core.tails.stored_id(name)
        # What a channel has had since it became ephemeral is never read back.
        seen_next = info[4] if info[1] == Level.EPHEMERAL else info[6]
        if after + 1 < seen_next:
            # Whoever missed a little gets it from memory, where thousands may look who come back at once.
            near = (
                info[3] <= after + 1
                and seen_next - after <= NEAR_MAX
                and self._room(following) > 0 < following.subscription.credit
                and not self._loses_within(name)
            )
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

    def _join_again(self, following: Following) -> bool:
        """Attach all literals of a reader that has fallen behind, at once; answers whether they were."""
        if following.reading is not None and not following.exhausted:
            return False
        following.reading = None
        missing: dict[bytes, list[tuple[int, int, bytes, int]]] = {}
        for name in following.after:
            info = self._core.tails.info(name)
            assert info is not None
            self._pass_trimmed(following, name, info[3])
            after = following.after[name]
            seen_next = info[4] if info[1] == Level.EPHEMERAL else info[6]
            if after + 1 < seen_next:
                channel = self._core.tails.stored_id(name)
                if after + 1 < info[4] and not self._core.recent.begins(channel, after):
                    return self._read_on(following, name)
                missing[name] = self._wanted_of(following, name, self._in_memory(channel, after))
        if not self._affordable(following, [each for found in missing.values() for each in found]):
            return self._read_on(
                following, next((name for name, found in missing.items() if found and not found[0][3]), None)
            )
        for name, found in missing.items():
            self._queue_missing(following, name, found)
        self._go_live(following)
        for name in following.literals:
            self._fanout.attach(following.subscription, name)
        following.after.clear()
        return True

    def _wanted_of(
        self, following: Following, name: bytes, found: list[tuple[int, int, bytes, int]]
    ) -> list[tuple[int, int, bytes, int]]:
        """Return what memory has of a channel as a reader gets it that has fallen behind."""
        if not self._policy(following, name, SLOW_LATEST):
            return found
        after = following.after[name]
        wanted = []
        for group, index, chunk, flags in found:
            _, _, first, count = chunk_head(chunk)
            whole = chunk if first > after else chunk_cut(chunk, after)
            if not flags:
                whole = self._conflate(following, name, whole, first + count - 1)
            wanted.append((group, index, whole, flags))
        return wanted

    def _read_on(self, following: Following, name: bytes | None) -> bool:
        """It is not live yet: read this literal next, or look again in a moment when nothing can be read."""
        following.exhausted = False
        following.reading = name
        if name is None:
            self._park(following)
        return False

    def _go_live(self, following: Following) -> None:
        """Everything that is missing is queued, and what comes next comes by itself."""
        following.live = True
        following.subscription.behind = False
        following.early_done = NOTHING_EARLY
        if following.lagging:
            following.lagging = False
            following.subscription.outbox.owner.tell(following.subscription, "live", {})
            self._deliver_passing(following)
            self._lags_no_more(following)
            self.promotions += 1

    def _lags_no_more(self, following: Following) -> None:
        self.lagging.pop(following, None)
        self._core.somebody_lags = bool(self.lagging)

    def _deliver_passing(self, following: Following) -> None:
        """Deliver what memory has of the ephemeral messages that came meanwhile, the newest that fit; tell of more."""
        core, (turn, index) = self._core, following.passing
        if core.fanout.turn < turn or not self._wants_ephemeral(following):
            return
        left = following.subscription.credit
        chosen: list[tuple[bytes, bytes]] = []
        seen: set[bytes] = set()
        dropped = not core.passing.reaches(turn)
        for channel, chunk in reversed(core.passing.since(turn, index)):
            name = core.tails.name_of(channel)
            if name is None:  # it has left memory, and with it what its readers knew of it
                dropped = True
            elif name in following.literals or any(matches(pattern, name) for pattern in following.patterns):
                latest = self._policy(following, name, SLOW_LATEST)
                left -= len(chunk)
                if (left < 0 and chosen) or (latest and name in seen):
                    dropped = True
                else:
                    chosen.append((name, chunk_conflate(chunk, keep_last=True) if latest else chunk))
                seen.add(name)
        if dropped:
            following.subscription.outbox.owner.tell(following.subscription, "dropped", {})
        for name, chunk in reversed(chosen):
            self._fanout.deliver_one(following.subscription, chunk, 0, 0, 0, name)

    def _wants_ephemeral(self, following: Following) -> bool:
        """Whether its filters reach a channel that is ephemeral, as far as profiles tell."""
        filters = following.literals + following.patterns
        return any(overlap(wanted, pattern) for pattern in self._core.profiles.ephemeral for wanted in filters)

    def _in_memory(self, channel: int, after: int) -> list[tuple[int, int, bytes, int]]:
        """What memory has of a channel past a sequence: recent groups without what has expired, then chunks delivered
        early."""
        now_s = self._core.tails.now_us // 1_000_000
        missing = [
            (group, index, chunk_expire(chunk, now_s), 0)
            for group, index, chunk in self._core.recent.of_channel(channel, after)
        ]
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
        if following.lagging:
            return subscription.credit - missing_bytes >= following.window // 2
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
        missing = [(group, index, chunk, 0) for group, index, chunk in committed if not following.has(group, index)]
        for number, index, value in self._early_values():
            missing += [
                (number, index + at, chunk, DELIVER_FLAG_EARLY)
                for at, chunk in chunks_in(value, 0, following.wanted)
                if not following.has(number, index + at)
            ]
        names = _names(following.wanted, [each[:3] for each in missing])
        # What a channel that was evicted meanwhile begins with only the log can tell.
        unsure = following.wanted.unknown or self._core.tails.absent(list(names.values()))
        if unsure or not self._affordable(following, missing):
            following.exhausted = False
            if following.lagging and not unsure and not committed:
                following.place = max(following.place, (self._core.applied_number, INDEX_END))
                self._park(following)
            return False
        firsts = self._firsts_now(names, {})
        for group, index, chunk, flags in missing:
            self._deliver_wanted(following, names, chunk, group, index, flags, firsts)
        self._go_live(following)
        for name in following.literals:
            self._fanout.attach(following.subscription, name)
        for pattern in following.patterns:
            self._fanout.attach_pattern(following.subscription, pattern)
        return True


def _slow_consumer(subscription: Subscription) -> BrokerError:
    return error(
        "SLOW_CONSUMER",
        f"subscription {subscription.number}: its credit and {subscription.overdraft} bytes beyond are used up",
        "reconnect and resume from the last position; everything stored is kept",
    )


def _names(wanted: Wanted, chunks: list[tuple[int, int, bytes]]) -> dict[int, bytes]:
    """Return the names of the channels of chunks that were found, by their ids."""
    ids = {chunk_head(chunk)[0]: None for _, _, chunk in chunks}
    return {channel: name for channel in ids if (name := wanted.name_of(channel)) is not None}


class _Everything(Container[int]):
    def __contains__(self, channel: object) -> bool:
        return True


_EVERYTHING = _Everything()
