"""What is stored and not in memory: looked up in the log, in sorted batches on one thread, and installed on the loop.

A frame that names a channel (or a producer's line) of which memory knows nothing waits here, with the rest of its
connection behind it; other connections go on. Whoever waits is told when all that it needs is in memory, or known not
to be stored, and handles its frame in that very callback.

- A name is in one job at a time. Nothing that is looked up is in memory, so nobody can change or evict it meanwhile.
- What somebody waits for is held in memory from the moment when it is there until all is and that one is told.
- Connections take turns: a job takes a few names of each, so one that names a million delays the next by a job or two,
  and a job ends after some milliseconds.
- What waits is bounded in bytes; beyond that the answer is BUSY.

It decides nothing and knows no frame. Everything but the look-up itself belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from broker.events import emit
from broker.model.errors import BrokerError, error
from broker_native.sorting import sort_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker.core.ports import Stored
    from broker.core.sequencer import Sequencer
    from broker_native.intake import Clock

    Found = bytes | BrokerError
    """What is stored of a key, b"" for nothing, or why that cannot be read."""
    Part = tuple[list[bytes], list[Found]]
    """Keys, and what was found of each: as many as are installed at once."""
    LookedUp = tuple[list[Part], dict[bytes, BrokerError], int]
    """What was found, in the order of the keys; which of them cannot be read; and how long it took, microseconds."""

__all__ = ["Loader"]

JOB_NAMES_MAX = 8_192
"""The more names a job has, the more of them share a page of what is stored."""
JOB_NAMES_BEGIN = 4_096
JOB_NAMES_MIN = 64
JOB_US_MAX = 80_000
"""A job that took longer makes the next one smaller: whoever comes next waits for two of them at most."""
SHARE = 64
"""Names of one connection that a job takes in a row."""
GATHER_NAMES = 256
"""Names that are taken into the next job at once while the thread has one."""
LATE_SHARE = 4
"""One in so many of a job's names is taken when the thread is free, so that who has just come is in that job."""
STEP_US_MAX = 1_000
"""The loop does something else after so long, as it does after the next bound when no clock moves."""
STEP_NAMES_MAX = 1_024
INSTALL_NAMES = 128
"""Names that are installed at once."""
AHEAD_NAMES = 2 * JOB_NAMES_MAX
"""No more than this may be found and not installed yet: the thread looks up while the loop installs."""
WAITING_BYTES_MAX = 64 << 20
ABSENT_MAX = 65_536
"""Names known not to be stored: those of frames that wait, and of frames that come next."""
DAMAGED_MAX = 4_096
DAMAGED_US = 1_000_000
"""Names that cannot be read are remembered, so many for so long."""
NAME_BYTES = 256
"""What a name that is waited for costs beside its own bytes, about."""
NO_MEMORY = error("LIMIT", "memory: none is left for loading channels", "give the process more memory")
LINE = b"\0"
"""A key is a channel's name, or this and a producer: no name has such a byte."""


class Load:
    """Names that one asker needs together.

    Attributes:
        asker: Who.
        keys: All of them.
        bytes: What it is charged.
        done: Told when they are there; None when nobody waits: they are only fetched ahead.
        left: How many are not there yet.
        held: Those of them that are held in memory.
        failure: Why one of them cannot be read.
        dropped: Nobody wants it any more.
    """

    __slots__ = ("asker", "bytes", "done", "dropped", "failure", "held", "keys", "left")

    def __init__(self, asker: Asker, keys: list[bytes], done: Callable[[BrokerError | None], None] | None) -> None:
        self.asker = asker
        self.keys = keys
        self.bytes = sum(map(len, keys)) + NAME_BYTES * len(keys)
        self.done = done
        self.left = 0
        self.held: list[bytes] = []
        self.failure: BrokerError | None = None
        self.dropped = False


class Asker:
    """One of those among whom jobs are shared out.

    Attributes:
        owner: Whose it is.
        queue: Keys that no job has taken yet; some may have come meanwhile.
        loads: What it waits for.
        in_turn: It is in the round of those who have something to ask.
    """

    __slots__ = ("in_turn", "loads", "owner", "queue")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.queue: deque[bytes] = deque()
        self.loads: dict[Load, None] = {}
        self.in_turn = False


class Loader:
    """Brings channels and lines into memory.

    Args:
        core: Where they go.
        log: Where they are.
        clock: What measures steps.
        loop: The loop that it belongs to.
    """

    def __init__(self, core: Sequencer, log: Stored, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._tails = core.tails
        self._log = log
        self._clock = clock
        self._loop = loop
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="broker-load")
        self._askers: dict[object, Asker] = {}
        self._round: deque[Asker] = deque()
        self._waiting: dict[bytes, tuple[Load, ...]] = {}
        self._asked: set[bytes] = set()
        self._gathered: list[bytes] = []
        self._found: deque[Part] = deque()
        self._found_count = 0
        self._answered: deque[Load] = deque()
        self._absent: dict[bytes, None] = {}
        self._absent_at = 0
        self._damaged: dict[bytes, BrokerError] = {}
        self._damaged_until_us = 0
        self._job_names = JOB_NAMES_BEGIN
        self._busy = False
        self._installing = False
        self._stopped = False
        self.waiting_bytes = 0
        self.loaded = 0

    # -- asking --------------------------------------------------------------------------------------------------------

    def missing(self, names: list[bytes]) -> list[bytes]:
        """Return those of the channels that have to be looked up before anybody may load or create them."""
        missing = self._core.missing(names)
        absent = self._known_absent()
        if not missing or not absent:
            return missing
        return [name for name in missing if name not in absent]

    def knows_line(self, producer: bytes) -> bool:
        """Whether a producer's line is in memory or surely not stored, so that nothing has to be looked up."""
        return self._core.knows_producer(producer) or LINE + producer in self._known_absent()

    def _known_absent(self) -> dict[bytes, None]:
        """Keys of which the log has said that they are not stored.

        One that is created after that is in memory, so it can only be stored and not in memory when something has been
        evicted since.
        """
        evicted = self._tails.evicted + self._core.lines.evicted
        if evicted != self._absent_at:
            self._absent_at = evicted
            self._absent.clear()
        return self._absent

    def _note_absent(self, key: bytes) -> None:
        absent = self._known_absent()
        if len(absent) >= ABSENT_MAX:
            del absent[next(iter(absent))]
        absent[key] = None

    def need(
        self,
        names: list[bytes],
        done: Callable[[BrokerError | None], None],
        owner: object = None,
        ahead: list[bytes] | None = None,
    ) -> None:
        """Bring channels into memory.

        Args:
            names: Channels that the caller needs together, in memory or not; at least one is `missing`.
            done: Called once, on the loop, never from within this call: with None when each of them is in memory or
                known not to be stored, which holds until it returns, or with the reason why one cannot be read. Not
                called after `leave`.
            owner: Who asks; owners take turns. None: nobody in particular.
            ahead: Channels that it will ask for next. Nobody is told of them.

        Raises:
            Unavailable: BUSY, too much waits; GOING_AWAY, the broker is closing.
        """
        self._add(names, done, owner)
        if ahead:
            self._add_ahead(ahead, owner)
        self._start()

    def need_line(self, producer: bytes, done: Callable[[BrokerError | None], None], owner: object = None) -> None:
        """Bring a producer's line into memory; otherwise as `need`.

        Args:
            producer: 16 bytes.
        """
        self._add([LINE + producer], done, owner)
        self._start()

    def leave(self, owner: object) -> None:
        """Forget all that an owner waits for: nobody is told, and what nobody else wants is not installed."""
        asker = self._askers.pop(owner, None)
        if asker is None:
            return
        asker.queue.clear()
        for load in list(asker.loads):
            self._drop(load)

    def _add(self, keys: list[bytes], done: Callable[[BrokerError | None], None], owner: object) -> None:
        if self._stopped:
            raise error("GOING_AWAY", "the broker is stopping")
        if len(keys) > ABSENT_MAX // 2:
            raise error("BUSY", f"names that one frame needs: got {len(keys)}, limit {ABSENT_MAX // 2}")
        load = Load(self._asker(owner), list(dict.fromkeys(keys)), done)
        if self.waiting_bytes + load.bytes > WAITING_BYTES_MAX:
            self._forget_idle(load.asker)
            raise error(
                "BUSY",
                f"names that wait to be loaded, of all connections: got {self.waiting_bytes + load.bytes} bytes, "
                f"limit {WAITING_BYTES_MAX} bytes",
            )
        self._queue(load, self._unknown(load.keys))
        for key in load.keys:
            if load not in self._waiting.get(key, ()):
                self._hold(load, key)
        assert load.left, "nothing to load"

    def _add_ahead(self, names: list[bytes], owner: object) -> None:
        """Fetch what an owner will ask for, as far as there is room: it asks for itself when its time comes."""
        load = Load(self._asker(owner), [name for name in self._unknown(names) if name not in self._waiting], None)
        if load.keys and self.waiting_bytes + load.bytes <= WAITING_BYTES_MAX:
            self._queue(load, load.keys)
        else:
            self._forget_idle(load.asker)

    def _asker(self, owner: object) -> Asker:
        asker = self._askers.get(owner)
        if asker is None:
            asker = self._askers[owner] = Asker(owner)
        return asker

    def _forget_idle(self, asker: Asker) -> None:
        """Forget one who waits for nothing."""
        if not asker.loads and self._askers.get(asker.owner) is asker:
            del self._askers[asker.owner]

    def _unknown(self, keys: list[bytes]) -> list[bytes]:
        """Return the keys of which memory knows nothing."""
        if keys and keys[0].startswith(LINE):
            return [key for key in keys if not self.knows_line(key[1:])]
        return self.missing(keys)

    def _queue(self, load: Load, keys: list[bytes]) -> None:
        """Have a load wait for keys; those that it needs come before those that it will."""
        asker, waiting, alone = load.asker, self._waiting, (load,)
        for key in keys:
            others = waiting.get(key)
            waiting[key] = (*others, load) if others else alone
        load.left += len(keys)
        self.waiting_bytes += load.bytes
        asker.loads[load] = None
        if load.done is None:
            asker.queue.extend(keys)
        else:
            asker.queue.extendleft(reversed(keys))
        if not asker.in_turn:
            asker.in_turn = True
            self._round.append(asker)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Give the thread its next job, unless it has one or the loop is far from having installed what was found."""
        if self._stopped:
            return
        if self._busy or self._found_count >= AHEAD_NAMES:
            if self._may_gather():
                self._install_soon()
            return
        self._gather(self._job_names)
        keys, self._gathered = self._gathered, []
        if self._damaged:
            keys = self._readable(keys)
        if self._found:
            self._install_soon()
        if not keys:
            return
        try:
            job = self._pool.submit(self._look_up, keys)
            asyncio.wrap_future(job, loop=self._loop).add_done_callback(lambda found: self._have(keys, found))
            self._busy = True
        except MemoryError as shortage:
            self._cannot(keys, shortage)
            self._install_soon()

    def _look_up(self, keys: list[bytes]) -> LookedUp:
        """Look keys up, on the thread; what they will be installed in is made ready beside."""
        self._tails.grow_ahead()
        found = look_up(self._log, keys, self._clock)
        self._tails.grow_ahead()
        return found

    def _may_gather(self) -> bool:
        """Whether there is something to take into the next job before the thread is free."""
        return bool(self._round) and len(self._gathered) < self._job_names - self._job_names // LATE_SHARE

    def _gather_ahead(self) -> bool:
        """Take a few keys into the next job while the thread has one; answers whether there were any to take."""
        if not self._busy or not self._may_gather():
            return False
        self._gather(min(len(self._gathered) + GATHER_NAMES, self._job_names))
        return True

    def _gather(self, count: int) -> None:
        """Take a share of each asker's keys into the next job, in turn, until it has so many."""
        keys = self._gathered
        while self._round and len(keys) < count:
            asker = self._round.popleft()
            queue = asker.queue
            taken = [queue.popleft() for _ in range(min(SHARE, count - len(keys), len(queue)))]
            # Another asker's job may have answered it, or may be about to.
            taken = [key for key in taken if key in self._waiting and key not in self._asked]
            self._asked.update(taken)
            keys += taken
            asker.in_turn = bool(asker.queue)
            if asker.in_turn:
                self._round.append(asker)

    def _readable(self, keys: list[bytes]) -> list[bytes]:
        """Answer the keys that could not be read a moment ago: one of them makes a job take many look-ups."""
        if self._clock.steady_us() >= self._damaged_until_us:
            self._damaged.clear()
            return keys
        damaged = [key for key in keys if key in self._damaged]
        self._add_found(len(damaged), parts_of(damaged, [self._damaged[key] for key in damaged]))
        return [key for key in keys if key not in self._damaged]

    def _note_damaged(self, key: bytes, failure: BrokerError) -> None:
        if not self._damaged:
            self._damaged_until_us = self._clock.steady_us() + DAMAGED_US
        if len(self._damaged) < DAMAGED_MAX:
            self._damaged[key] = failure

    def _have(self, keys: list[bytes], job: asyncio.Future[LookedUp]) -> None:
        """A job is done."""
        self._busy = False
        if self._stopped or job.cancelled():
            return
        failure = job.exception()
        if failure is None:
            parts, damaged, took_us = job.result()
            self._pace(len(keys), took_us)
            self._add_found(len(keys), parts)
            for key, damage in damaged.items():
                self._note_damaged(key, damage)
        else:
            self._cannot(keys, failure)
        self._start()
        self._install_soon()

    def _cannot(self, keys: list[bytes], failure: BaseException) -> None:
        """A job has failed."""
        self._add_found(len(keys), parts_of(keys, [self._reason(failure)] * len(keys)))

    def _add_found(self, count: int, parts: list[Part]) -> None:
        """Keep answers until they are installed."""
        self._found.extend(parts)
        self._found_count += count

    def _pace(self, count: int, took_us: int) -> None:
        if took_us > JOB_US_MAX and count > JOB_NAMES_MIN:
            self._job_names = min(max(JOB_NAMES_MIN, count * JOB_US_MAX // took_us), self._job_names)
        elif count == self._job_names and took_us < JOB_US_MAX // 2:
            self._job_names = min(JOB_NAMES_MAX, self._job_names * 2)

    @staticmethod
    def _reason(failure: BaseException) -> BrokerError:
        if isinstance(failure, BrokerError):
            return failure
        if isinstance(failure, MemoryError):
            return NO_MEMORY
        emit("load_failed", failure=failure)
        return error("STORAGE_FAILED", "loading channels: the log cannot be searched")

    # -- installing ----------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        """Install what was found, tell those who have all that they need, and see to the next job, for one step."""
        self._installing = False
        try:
            begun_us = self._clock.steady_us()
            self._gather_ahead()
            left = STEP_NAMES_MAX
            while left > 0 and self._clock.steady_us() - begun_us < STEP_US_MAX:
                if self._answered:
                    left -= 1
                    self._finish(self._answered.popleft())
                elif self._found:
                    keys, found = self._found.popleft()
                    left -= len(keys)
                    self._found_count -= len(keys)
                    self._settle(keys, found)
                elif not self._gather_ahead():
                    break
        except MemoryError:
            pass  # there was none to read the clock; the next step goes on
        finally:
            if self._found or self._answered:
                self._install_soon()
            self._start()

    def _install_soon(self) -> None:
        if not self._installing:
            self._installing = True
            self._loop.call_soon(self._install)

    def _settle(self, keys: list[bytes], found: list[Found]) -> None:
        """Keys are answered; without memory to install them, with that."""
        failures: dict[bytes, BrokerError] = {}
        shortage = None
        try:
            failures = self._take(keys, found)
        except MemoryError:
            shortage = NO_MEMORY
        self._asked.difference_update(keys)
        for key in keys:
            for load in self._waiting.pop(key, ()):
                load.left -= 1
                if shortage is not None or key in failures:
                    load.failure = shortage or failures[key]
                elif load.done is not None:
                    self._hold(load, key)
                if not load.left:
                    self._answered.append(load)

    def _take(self, keys: list[bytes], found: list[Found]) -> dict[bytes, BrokerError]:
        """Install what was found of keys that somebody waits for; returns of which that cannot be done, and why."""
        failures: dict[bytes, BrokerError] = {}
        names: list[bytes] = []
        stored: list[bytes] = []
        for key, answer in zip(keys, found, strict=True):
            if not self._waiting.get(key):
                continue
            if isinstance(answer, BrokerError):
                failures[key] = answer
            elif not answer:
                self._note_absent(key)
            elif key.startswith(LINE):
                self._take_line(key, answer, failures)
            else:
                names.append(key)
                stored.append(answer)
        # What is in memory is newer: it must never be set back.
        assert len(self._tails.absent(names)) == len(names), "a channel came into memory without asking here"
        for at, cause in self._core.install_each(stored).items():
            failures[names[at]] = self._unfit(names[at], cause)
        self.loaded += len(names)
        return failures

    def _take_line(self, key: bytes, entry: bytes, failures: dict[bytes, BrokerError]) -> None:
        assert not self._core.knows_producer(key[1:]), "a line came into memory without asking here"
        try:
            self._core.install_line(entry)
            self.loaded += 1
        except (ValueError, MemoryError) as cause:
            failures[key] = self._unfit(key, cause)

    def _unfit(self, key: bytes, cause: Exception) -> BrokerError:
        """Say why what was found cannot be installed."""
        if isinstance(cause, MemoryError):
            return self._reason(cause)
        # Entries whose checksum is right and which make no sense.
        return error("STORAGE_CORRUPT", f"tables of {key.decode('latin-1')}: {cause}")

    def _hold(self, load: Load, key: bytes) -> None:
        if key.startswith(LINE):
            return
        load.held.append(key)
        try:
            self._tails.hold(key)
        except KeyError:
            # One that is not stored, or is being removed, is nobody's to hold: whoever needs it finds that out.
            load.held.pop()
        except MemoryError as shortage:
            load.held.pop()
            load.failure = self._reason(shortage)

    def _finish(self, load: Load) -> None:
        """All keys of a load are answered."""
        if load.dropped:  # by what one of the others did
            return
        self.waiting_bytes -= load.bytes
        if load.failure is None and load.done is not None and len(load.keys) > 1:
            try:
                again = self._unknown(load.keys)
            except MemoryError as shortage:
                again, load.failure = [], self._reason(shortage)
            if again:
                # One that was not stored has been created by another meanwhile, and evicted.
                self._queue(load, again)
                return
        self._forget(load)
        # Nothing is evicted before this call returns; and a channel that is about to be removed must not be held.
        self._release(load)
        if load.done is not None:
            load.done(load.failure)

    def _forget(self, load: Load) -> None:
        del load.asker.loads[load]
        self._forget_idle(load.asker)

    def _drop(self, load: Load) -> None:
        """Nobody wants it any more; a key that nobody else waits for is looked up no more, or not installed."""
        load.dropped = True
        self.waiting_bytes -= load.bytes
        for key in load.keys:
            loads = self._waiting.get(key)
            if loads is None or load not in loads:
                continue
            others = tuple(other for other in loads if other is not load)
            if others or key in self._asked:
                self._waiting[key] = others
            else:
                del self._waiting[key]
        self._release(load)

    def _release(self, load: Load) -> None:
        for name in load.held:
            self._tails.release(name)
        load.held = []

    # -- end -----------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Tell all who wait that the broker is closing, and take no more; on the loop."""
        self._stopped = True
        failure = error("GOING_AWAY", "the broker is stopping")
        askers, self._askers = self._askers, {}
        for asker in askers.values():
            for load in list(asker.loads):
                self._drop(load)
                if load.done is not None:
                    load.done(failure)
        self._found.clear()
        self._found_count = 0
        self._gathered.clear()
        self._answered.clear()
        self._waiting.clear()
        self._asked.clear()

    def close(self) -> None:
        """End the thread; blocks until its job is done."""
        self._pool.shutdown(wait=True, cancel_futures=True)


# -- on the loader's thread --------------------------------------------------------------------------------------------


def look_up(log: Stored, keys: list[bytes], clock: Clock) -> LookedUp:
    """Find what is stored of keys."""
    begun_us = clock.steady_us()
    keys = sort_keys(keys)
    # Lines sort before all names.
    lines = bisect_left(keys, LINE + b"\xff" * 17)
    damaged: dict[bytes, BrokerError] = {}
    found = [
        *resolve_each(log.resolve_lines, [key[1:] for key in keys[:lines]], damaged, LINE),
        *resolve_each(log.resolve, keys[lines:], damaged),
    ]
    return parts_of(keys, found), damaged, clock.steady_us() - begun_us


def parts_of(keys: list[bytes], found: list[Found]) -> list[Part]:
    """Divide answers up; in parts, so that no object stands for a single one, and none is let go of with all others."""
    return [
        (keys[begin : begin + INSTALL_NAMES], found[begin : begin + INSTALL_NAMES])
        for begin in range(0, len(keys), INSTALL_NAMES)
    ]


def resolve_each(
    resolve: Callable[[list[bytes]], list[bytes]],
    keys: list[bytes],
    damaged: dict[bytes, BrokerError],
    begin: bytes = b"",
) -> Iterable[Found]:
    """Resolve keys; a failure is that of the keys alone whose answer cannot be read.

    Args:
        resolve: What finds many at once.
        keys: What it is asked.
        damaged: Gets those that cannot be read, with `begin` before each.
        begin: What the loader's keys of this kind begin with.
    """
    if not keys:
        return []
    try:
        return resolve(keys)
    except BrokerError as failure:
        if len(keys) == 1:
            damaged[begin + keys[0]] = failure
            return [failure]
    middle = len(keys) // 2
    return [
        *resolve_each(resolve, keys[:middle], damaged, begin),
        *resolve_each(resolve, keys[middle:], damaged, begin),
    ]
