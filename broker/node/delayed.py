"""Messages for later, in a running broker: who reads the wheel's slots, turns it and brings channels into memory.

At a start the slots are read once, the seconds first: as soon as these are known, what is due is published. Whoever
schedules or cancels waits until all are known, since only then can be said what waits already.

Then the wheel turns once a second while anything waits, and when something is due. A broker that was never asked to
delay anything looks once whether there are slots, and does nothing else.

Everything belongs to the loop's thread; slots are read on the reader thread.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Any

from broker.core.delayed import PREFIX, Delayed
from broker.events import emit
from broker.model.errors import BrokerError, error
from broker.node.delayed_listing import DelayedListing

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.delayed import Slot
    from broker.core.ports import StoredReader
    from broker.core.sequencer import Sequencer
    from broker.model.delayed import DelayedQuery
    from broker.node.history import Asker
    from broker.node.loader import Loader
    from broker.node.states import StateStore
    from broker_native.intake import Clock
    from broker_native.publisher import Publisher

    Submit = Callable[..., asyncio.Future[Any]]
    Done = Callable[[BrokerError | None], None]

__all__ = ["DelayedMessages"]

SLICE_BYTES = 256 << 10
SEND_BYTES = 256 << 10
"""Of messages that are published at once; others have the loop in between."""
GROUP_SHARE = 4
"""There is room while the open group is below this part of its bound."""
TURN_S_MIN = 0.001
TURN_S_MAX = 1.0
REFUSED_S = 0.05
"""While the journal takes nothing, it is tried again so often."""
FAILED_S = 1.0
"""A slot that cannot be read is tried again so often, and told of each time."""
CHUNK = Struct("<24xQI")


class _SlotReader:
    """Reads a slot, slice by slice.

    Args:
        runner: Whose it is.
        slot: What to read: its committed records.
        take: Called with each chunk, the sequence behind which it begins to be wanted and the one at which it ends;
            answers whether the next may follow.
        done: Called when all was taken.
    """

    def __init__(
        self, runner: DelayedMessages, slot: Slot, take: Callable[[bytes, int, int], None], done: Callable[[], None]
    ) -> None:
        self.slot = slot
        self._runner = runner
        self._take = take
        self._done = done
        self._after = slot.first - 1
        self._chunks: deque[bytes] = deque()
        self._busy = False
        self.void = False

    def go_on(self) -> None:
        """Take what was read, while there is room, and read more."""
        while self._chunks and self._runner.room and not self.void:
            chunk = self._chunks.popleft()
            first, count = CHUNK.unpack_from(chunk)
            until = min(first + count, self.slot.end)
            self._take(chunk, self._after, until)
            self._after = until - 1
        if self._chunks or self._busy or self.void:
            return
        if self._after + 1 >= self.slot.end:
            self.void = True
            self._done()
            return
        self._busy = True
        job = self._runner.submit(self._runner.read, self.slot.channel, self._after, self.slot.end)
        job.add_done_callback(self._have)

    def _have(self, job: asyncio.Future[list[bytes]]) -> None:
        self._busy = False
        if job.cancelled() or self.void or self._runner.stopped:
            return
        failure = job.exception()
        if failure is not None:
            self._runner.failed(failure)
            self._runner.later(FAILED_S, self.go_on)
            return
        self._chunks.extend(job.result())
        if not self._chunks:
            self._after = self.slot.end - 1
        self.go_on()


class DelayedMessages:
    """What waits for its time in one node.

    Args:
        core: The sequencer.
        log: What is stored.
        loader: Brings channels into memory.
        states: Keeps the wheel's place.
        submit: Has the reader thread call something.
        clock: Broker time.
        loop: The loop that it belongs to.
        kick: Has the turn end.
    """

    def __init__(
        self,
        core: Sequencer,
        log: StoredReader,
        loader: Loader,
        states: StateStore,
        submit: Submit,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        kick: Callable[[], None],
    ) -> None:
        self._core = core
        self._log = log
        self._loader = loader
        self._states = states
        self.submit = submit
        self._clock = clock
        self._loop = loop
        self._kick = kick
        self.wheel = Delayed(core, os.urandom(16), kick, self._wake)
        self.ready = False
        self.stopped = False
        self._asking: list[Done] = []
        self._looks = False
        self._found: list[bytes] | None = None
        self._begun = False
        self._turning = False
        self._to_note: deque[Slot] = deque()
        self._reading: _SlotReader | None = None
        self._undone_times = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._listing = DelayedListing(self.wheel, log, submit, kick)
        self._retries: set[asyncio.TimerHandle] = set()
        self._awaits_channels = False

    # -- start ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look whether anything is stored, and begin if so."""
        self._looks = True
        self._states.names(PREFIX).add_done_callback(self._have_names)

    def need(self, done: Done) -> None:
        """Have `done` called, once and later, when all that waits is known, or with why that cannot be."""
        self._asking.append(done)
        if self._found is not None:
            self._begin(self._found)
        elif not self._looks:
            self.start()

    def _have_names(self, job: asyncio.Future[list[bytes]]) -> None:
        if job.cancelled() or self.stopped:
            return
        failure = job.exception()
        if failure is not None:
            self.failed(failure)
            self.later(FAILED_S, self.start)
            return
        self._found = [name for name in job.result() if name == PREFIX or name.startswith(PREFIX + b".")]
        if self._found or self._asking:
            self._begin(self._found)

    def _begin(self, names: list[bytes]) -> None:
        if self._begun:
            return
        self._begun = True
        slots = [name for name in names if name != PREFIX]
        self._states.load(self.wheel, self.wheel.restore, partial(self._have_state, slots))

    def _have_state(self, slots: list[bytes], failure: BrokerError | None) -> None:
        if self.stopped:
            return
        if failure is not None:
            self._begin_again(failure)
        elif self._loader.missing(slots):
            try:
                self._loader.need(slots, partial(self._have_slots, slots), self)
            except BrokerError as refusal:
                self._states.unload(self.wheel)
                self._begin_again(refusal)
        else:
            self._have_slots(slots, None)

    def _begin_again(self, failure: BrokerError) -> None:
        """It cannot be read now: tell those who wait, and try again."""
        self.failed(failure)
        self._begun = False
        self._tell(failure)
        self.later(FAILED_S, partial(self._begin, self._found or []))

    def _have_slots(self, slots: list[bytes], failure: BrokerError | None) -> None:
        if self.stopped:
            return
        if failure is not None:
            self._states.unload(self.wheel)
            self._begin_again(failure)
            return
        for name in slots:
            level, index = map(int, name[len(PREFIX) + 1 :].split(b"."))
            self.wheel.adopt(level, index)
        self._to_note.extend(sorted(self.wheel.slots()))
        self._note_next()

    def _note_next(self) -> None:
        """Take the next slot into the index: those of level 0 come first."""
        if self._to_note and self._to_note[0].level > 0:
            self._begin_turning()
        if not self._to_note:
            self.wheel.waiting.finish()
            self.ready = True
            self._begin_turning()
            self._tell(None)
            return
        reader = _SlotReader(self, self._to_note.popleft(), self._note, self._note_next)
        reader.go_on()

    def _note(self, chunk: bytes, after: int, until: int) -> None:
        self.wheel.waiting.note(chunk, *self.wheel.place, until)

    def _begin_turning(self) -> None:
        if not self._turning:
            self._turning = True
            self._wake()

    def _tell(self, failure: BrokerError | None) -> None:
        asking, self._asking = self._asking, []
        for done in asking:
            done(failure)

    # -- what sessions ask ---------------------------------------------------------------------------------------------

    def schedule(self, publisher: Publisher, body: bytes, begin: int, due_us: int) -> None:
        """As `Delayed.schedule`, when it is `ready`."""
        self.wheel.schedule(publisher, body, begin, due_us, self._core.tails.now_us)

    def schedule_frames(self, publisher: Publisher, frames: bytes, due_us_max: int) -> int:
        """As `Delayed.schedule_frames`, when it is `ready`."""
        return self.wheel.schedule_frames(publisher, frames, self._core.tails.now_us, due_us_max)

    def cancel(self, channel: bytes, id: bytes, done: Done) -> None:
        """Have a message wait no more; `done` is called when that is committed, or with why not.

        Raises:
            RequestError: UNKNOWN_MESSAGE; it does not wait.
            BrokerError: The journal takes nothing now.
        """
        if not self.wheel.cancel(channel, id):
            raise error("UNKNOWN_MESSAGE", f"channel {channel.decode()}: no message with this id waits for its time")
        self._core.requests.append(done)

    def ask(self, asker: Asker, number: int, query: DelayedQuery, shows: Callable[[bytes], bool]) -> None:
        """As `DelayedListing.ask`."""
        self._listing.ask(asker, number, query, shows)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, channel: int, after: int, end: int) -> list[bytes]:
        """Read the next slice of a slot; on the reader thread."""
        return [chunk for _, _, chunk in self._log.read_channel(channel, after, SLICE_BYTES, end)]

    @property
    def room(self) -> bool:
        """Whether the open group has room, and the journal takes anything, for what can wait."""
        tails = self._core.tails
        return not tails.refuse_code and tails.group_bytes * GROUP_SHARE < self._core.limits.group_bytes_max

    def failed(self, failure: BaseException) -> None:
        """Tell that something of it cannot be read."""
        if isinstance(failure, MemoryError):
            failure = error("LIMIT", "memory: none is left for what waits for its time", "give the process more memory")
        if isinstance(failure, BrokerError):
            emit("delayed_unreadable", code=failure.name, detail=failure.detail)
        else:
            emit("load_failed", failure=failure)

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """Do something later, unless it is stopped by then."""

        def run() -> None:
            self._retries.discard(handle)
            if not self.stopped:
                do()

        handle = self._loop.call_later(seconds, run)
        self._retries.add(handle)

    # -- turning -------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Something has changed: see to it in the next turn of the loop."""
        self._arm(0.0)

    def _arm(self, seconds: float) -> None:
        """Turn after so long, or earlier if that was so."""
        at_s = self._loop.time() + seconds
        if self.stopped or not self._turning or (self._timer is not None and self._timer_s <= at_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = at_s
        self._timer = self._loop.call_later(seconds, self._turn)

    def _turn(self) -> None:
        """Publish what is due, read what is to be read, and see when to look again."""
        self._timer = None
        if self.stopped:
            return
        wheel, now_us = self.wheel, self._clock.now_us()
        self._core.tails.now_us = max(self._core.tails.now_us, now_us)
        if self._core.tails.refuse_code:
            self._arm(REFUSED_S)
            return
        wheel.reread()
        self._send(now_us)
        wheel.advance(now_us)
        self._read_next()
        wheel.clear()
        if wheel.needed:
            next_us = wheel.next_us
            wait_s = (next_us - now_us) / 1e6 if next_us > now_us else TURN_S_MIN
            self._arm(min(max(wait_s, TURN_S_MIN), TURN_S_MAX))

    def _read_next(self) -> None:
        """Have the wheel's next slot read, one at a time."""
        wheel = self.wheel
        if self._undone_times != wheel.undone_times:
            self._undone_times = wheel.undone_times
            if self._reading is not None:
                self._reading.void = True
                self._reading = None
        if self._reading is None:
            slot = wheel.coarse()
            if slot is not None:
                self._reading = _SlotReader(self, slot, partial(wheel.spread, slot), self._read_done)
            elif (slot := wheel.may_load()) is not None:
                wheel.loading_s = wheel.loaded_s
                self._reading = _SlotReader(self, slot, self._load, self._load_done)
        if self._reading is not None:
            self._reading.go_on()

    def _load(self, chunk: bytes, after: int, until: int) -> None:
        self.wheel.waiting.load(chunk, *self.wheel.place, until)

    def _load_done(self) -> None:
        self.wheel.loaded()
        self._read_done()

    def _read_done(self) -> None:
        self._reading = None
        self._wake()

    # -- publishing ----------------------------------------------------------------------------------------------------

    def _send(self, now_us: int) -> None:
        """Publish what is due, as much as may be at once."""
        if self._awaits_channels and not self.wheel.waiting.in_hand:
            self._awaits_channels = False  # it was taken back by a failed commit
        if self._awaits_channels or not self.room:
            return
        names = self.wheel.take(now_us, SEND_BYTES)
        if not self.wheel.waiting.in_hand:
            return
        missing = self._loader.missing(names)
        if not missing:
            self._publish({})
            return
        self._awaits_channels = True
        try:
            self._loader.need(names, partial(self._have_channels, names), self)
        except BrokerError as refusal:
            self._publish(dict.fromkeys(missing, refusal))

    def _have_channels(self, names: list[bytes], failure: BrokerError | None) -> None:
        if self.stopped or not self.wheel.waiting.in_hand:
            return
        missing = self._loader.missing(names) if failure is not None else []
        self._publish({name: failure for name in missing if failure is not None})

    def _publish(self, unreadable: dict[bytes, BrokerError]) -> None:
        self._awaits_channels = False
        now_us = self._clock.now_us()
        self._core.tails.now_us = max(self._core.tails.now_us, now_us)
        if self._core.tails.refuse_code:
            # Meanwhile the journal has stopped taking anything: what is in hand is read again.
            self.wheel.give_back()
        else:
            for refused in self.wheel.publish(now_us, unreadable):
                emit(
                    "delayed_refused",
                    channel=refused.channel.decode(),
                    messages=refused.messages,
                    code=refused.failure.name,
                    detail=refused.failure.detail,
                )
        self._wake()

    # -- end -----------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Turn no more; what is due waits for the next start."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for handle in self._retries:
            handle.cancel()
        self._tell(error("GOING_AWAY", "the broker is stopping"))

    def stats(self) -> dict[str, object]:
        """Figures of this run."""
        wheel = self.wheel
        return {
            "delayed_pending": wheel.waiting.count,
            "delayed_scheduled": wheel.scheduled,
            "delayed_published": wheel.published,
            "delayed_cancelled": wheel.cancelled,
            "delayed_refused": wheel.refused,
            "delayed_bytes": wheel.waiting.index_bytes + wheel.waiting.due_bytes,
        }
