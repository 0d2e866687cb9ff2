"""Messages for later: where they wait, and how they get to their channels.

They wait in a hierarchical timing wheel (Varghese and Lauck 1987) that is kept in the log, in channels of the broker's
own. A slot of level 0 is a second, one of each further level 64 of the level before it; the message's time says which.

```
 $delayed.0.<second mod 128>            the current 64 seconds and the next 64
 $delayed.1.<second / 64 mod 128>       what is further away, up to the end of the next 4,096 seconds
 $delayed.2.…  $delayed.3.…             3 days, a year
 $delayed                               the place: (due_us, sequence) up to which everything was published
```

When the wheel comes to the slot before a coarse one, that one is read from its beginning and its messages are appended
to finer slots, a chunk at a time; each chunk is trimmed away in the group that has its messages elsewhere, so that a
crash leaves every message in exactly one slot. What the trim has left is where to go on, and needs no note of its own.
A slot of level 0 is read two seconds before its time into an order by (due_us, sequence). What is due is published in
the very group that moves the place on: a crash has both or neither, and nothing is published twice or never. Behind the
place the slot is trimmed. Slots are never dropped, so that a sequence within a slot is never given twice and no name
has to be created each second.

In memory there is an entry of 32 bytes for each message, found by its channel and id, and the envelopes of the next
seconds (`broker_native.delayed`). A cancellation takes the entry out and appends a record to the slot of the message's
time, at the level that is right then; that is never coarser than the one where the message is, and so the two meet
before it is due. At a start the index is made by reading all slots. Each group that has something for a slot also has a
place of the same 64 seconds as the wheel, so what a slot means is known again at a start.

A message that its channel does not take (its profile is gone, a bound is met) is put off by a minute, as often as it
takes: it is told (`delayed_refused`) and counted, it can be listed and cancelled, and never lost.

It decides and stores; who reads slots, waits and loads channels is `broker.node.delayed`. It belongs to the core's
thread; the time is an argument.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from broker.model.errors import BrokerError, error
from broker.model.levels import Level
from broker_native.delayed import WHEEL, Waiting, slot_for
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.scheduling import schedule_frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.core.sequencer import Sequencer

__all__ = ["LEVELS", "PREFIX", "Delayed", "Refused", "Slot"]

PREFIX = b"$delayed"
LEVELS, SLOTS = WHEEL
S = 1_000_000
LEVEL_BITS = 6
RUN_SHIFT = 40
DUE_BYTES_MAX = 32 << 20
"""What the order of the next seconds may hold; what does not fit is read again when it has room."""
PLACE = Struct("<QQ")
PUBLISH = Struct("<IIQ")
ALL = (1 << SLOTS) - 1
NEVER = (1 << 64) - 1
LOAD_AHEAD_S = 2
"""So long before its time a second is read."""
PUT_OFF_US = 60 * S
"""How long a message waits whose channel has refused it."""
PUT_OFF_BUSY_US = S
"""The same when the channel is only busy, or the broker short of something for a moment."""


class Slot(NamedTuple):
    """A slot of the wheel, as it stands.

    Attributes:
        level: 0 is the finest.
        index: The slot in its level.
        start_s: The first second that it is for.
        channel: Its channel's id.
        first, end: The sequences that are committed, from the one, before the other.
    """

    level: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a slot
    start_s: int
    channel: int
    first: int
    end: int


class Refused(NamedTuple):
    """Messages that their channel did not take at their time."""

    channel: bytes
    messages: int
    failure: BrokerError


class _Batch:
    """What one group has of this.

    Attributes:
        group: Its number.
        mark: Where the changes of the index end.
        place: The place before it.
        first_us: The earliest time of what it puts into slots of level 0.
        stored: What that is: the second, records, the sequence of the first.
    """

    __slots__ = ("first_us", "group", "mark", "place", "stored")

    def __init__(self, group: int, place: tuple[int, int]) -> None:
        self.group = group
        self.mark = 0
        self.place = place
        self.first_us = NEVER
        self.stored: list[tuple[int, bytes, int]] = []


def slot_name(level: int, index: int) -> bytes:
    """Return the name of a slot's channel."""
    return b"%b.%d.%d" % (PREFIX, level, index)


class Delayed:
    """What waits for its time.

    Args:
        core: The sequencer.
        key: 16 random bytes for the index.
        changed: Called when something was put into the open group: a turn has to end.
        settled: Called when a group with something of this is committed, or undone.
        due_bytes_max: What the order of the next seconds may hold, bytes.

    Attributes:
        waiting: The index and the order.
        cursor_s: The second at which the wheel stands.
        loaded_s: What is due before this second is in the order.
        loading_s: The second that is being read into it, -1 for none.
        scheduled, published, cancelled, refused: How many messages, in this run.
        undone_times: How often everything was read anew: what was being read then is void.
    """

    channel = PREFIX

    def __init__(
        self,
        core: Sequencer,
        key: bytes,
        changed: Callable[[], None],
        settled: Callable[[], None],
        due_bytes_max: int = DUE_BYTES_MAX,
    ) -> None:
        self._core = core
        self._changed = changed
        self._tell_settled = settled
        self.waiting = Waiting(key, due_bytes_max)
        self.cursor_s = 0
        self.loaded_s = 0
        self.loading_s = -1
        self.scheduled = 0
        self.published = 0
        self.cancelled = 0
        self.refused = 0
        self.undone_times = 0
        self._place = (0, 0)
        self._place_noted = False
        self._stored_block = -1
        self._ticket = 0
        self._occupied = [0] * LEVELS
        self._next: dict[int, int] = {}
        self._batches: deque[_Batch] = deque()
        self._line = Line()
        # What it stores is answered to nobody: its batches hear of their groups.
        self._publisher = Publisher(core.tails, self._line, core.own, core.limits.headers_bytes_max)

    # -- as a state ----------------------------------------------------------------------------------------------------

    def changes(self) -> bytes:
        """Return the place, if it was noted."""
        if not self._place_noted:
            return b""
        self._place_noted = False
        return self.snapshot()

    def snapshot(self) -> bytes:
        return PLACE.pack(*self._place)

    def undone(self) -> None:
        """A commit failed; the batches have taken back what they have changed."""
        self._core.states.add(self, PLACE.size)

    def restore(self, snapshot: bytes, changes: list[bytes]) -> None:
        """Begin where the place says, before anything else."""
        newest = changes[-1] if changes else snapshot
        if newest:
            self._set_place(PLACE.unpack(newest))
            self._stored_block = self.cursor_s >> LEVEL_BITS

    def _set_place(self, place: tuple[int, int]) -> None:
        self._place = place
        self.cursor_s = self.loaded_s = place[0] // S

    @property
    def place(self) -> tuple[int, int]:
        """Up to where everything was published, be it committed or not."""
        return self._place

    # -- slots ---------------------------------------------------------------------------------------------------------

    def adopt(self, level: int, index: int) -> None:
        """Take a slot that is stored, and whose channel is in memory."""
        self._bind(level * SLOTS + index)
        self._look(level * SLOTS + index)

    def _bind(self, slot: int) -> None:
        """Have a slot's channel in memory for good."""
        name = slot_name(*divmod(slot, SLOTS))
        self._core.load(name)
        self._publisher.bind(slot, name)

    def _look(self, slot: int) -> None:
        """Go by what a slot's channel has."""
        level, index = divmod(slot, SLOTS)
        info = self._core.tails.info(slot_name(level, index))
        assert info is not None
        self._next[slot] = info[5]
        bit = 1 << index
        self._occupied[level] = self._occupied[level] | bit if info[5] > info[3] else self._occupied[level] & ~bit

    def _store(self, level: int, index: int, records: bytes, count: int, due_us: int) -> None:
        """Put records into a slot, the first of which is due then or later.

        Raises:
            BrokerError: The journal takes nothing now; nothing has changed.
        """
        slot = level * SLOTS + index
        if slot not in self._next:
            self._bind(slot)
            self._look(slot)
        batch = self._batch()
        code = self._publisher.publish_frame(PUBLISH.pack(slot, count, self._line.next) + records)
        if code:
            raise error(code, f"delayed messages: {count} records of the broker's own, {len(records)} bytes")
        if self._stored_block != self.cursor_s >> LEVEL_BITS:
            self._note_place()
        if level == 0:
            batch.first_us = min(batch.first_us, due_us)
            batch.stored.append((self._number(0, index), records, self._next[slot]))
        self._next[slot] += count
        self._occupied[level] |= 1 << index
        self._changed()

    def _note_place(self) -> None:
        """Have the place stored with the open group."""
        self._batch()
        self._place_noted = True
        self._stored_block = self.cursor_s >> LEVEL_BITS
        self._core.states.touch(self)
        self._changed()

    def slots(self) -> list[Slot]:
        """Return the slots that hold something, as far as that is committed, those of the earliest times first."""
        found = [
            self.slot(level, index)
            for level, occupied in enumerate(self._occupied)
            for index in range(SLOTS)
            if occupied >> index & 1
        ]
        return sorted(found, key=lambda slot: (slot.start_s, slot.level))

    def slot(self, level: int, index: int) -> Slot:
        """Return a slot that holds something."""
        info = self._core.tails.info(slot_name(level, index))
        assert info is not None
        return Slot(level, index, self._number(level, index) << LEVEL_BITS * level, info[0], info[3], info[4])

    def _number(self, level: int, index: int) -> int:
        """Return how many slots of the level came before this one since 1970."""
        now = self.cursor_s >> LEVEL_BITS * level
        return now + ((index - now) & SLOTS - 1)

    def _first_number(self, level: int, begin: int) -> int:
        """Return the number of the level's first slot from one on that holds something, -1 for none."""
        turn = begin & SLOTS - 1
        turned = (self._occupied[level] >> turn | self._occupied[level] << SLOTS - turn) & ALL
        return begin + (turned & -turned).bit_length() - 1 if turned else -1

    # -- groups --------------------------------------------------------------------------------------------------------

    def _batch(self) -> _Batch:
        """Return what is noted of the open group."""
        group = self._core.tails.group_number
        if self._batches and self._batches[-1].group == group:
            return self._batches[-1]
        if self._batches:
            self._batches[-1].mark = self.waiting.mark
        batch = _Batch(group, self._place)
        self._batches.append(batch)
        self._core.requests.append(self._settled)
        return batch

    def _settled(self, failure: BrokerError | None) -> None:
        """A group with something of this is committed, or is undone, and those behind it as well."""
        self._tell_settled()
        if failure is not None:
            self._undo()
            return
        batch = self._batches.popleft()
        self.waiting.settle(batch.mark if self._batches else self.waiting.mark)
        for second, records, first in batch.stored:
            if second < self.loaded_s or second == self.loading_s:
                self.waiting.add(records, first)

    def _undo(self) -> None:
        """Go back to what is committed; the order is read anew."""
        if not self._batches:
            return
        self.waiting.undo()
        self._set_place(self._batches[0].place)
        self._batches.clear()
        self._stored_block = -1
        self._place_noted = False
        self.loading_s = -1
        self.undone_times += 1
        for slot in self._next:
            self._look(slot)

    @property
    def pending(self) -> bool:
        """Whether something of this is not committed."""
        return bool(self._batches)

    # -- what publishers ask -------------------------------------------------------------------------------------------

    def schedule(self, publisher: Publisher, body: bytes, begin: int, due_us: int, now_us: int) -> None:
        """Have the records of a PUBLISH wait, whose frame was found good (`Publisher.judge`).

        Args:
            publisher: Whose they are; it is answered when that is committed.
            body: The body of the frame.
            begin: Where its records begin.
            due_us: When they are to be published; what is past is due now.
            now_us: The time.

        Raises:
            RequestError: INVALID_RECORD, a record without an id; nothing has changed.
            BrokerError: The journal takes nothing now; nothing has changed.
        """
        slot, _, number = PUBLISH.unpack_from(body)
        name = publisher.name_of(slot)
        assert name is not None
        self._wind(now_us)
        due_us = max(due_us, now_us, self._place[0])
        self._batch()
        ticket = (self._core.tails.run << RUN_SHIFT) + self._ticket + 1
        try:
            records, taken, entries = self.waiting.schedule(name, body, begin, publisher.level_of(slot), due_us, ticket)
        except ValueError as cause:
            raise error("INVALID_RECORD", f"publish {number}: {cause}") from None
        if taken:
            try:
                self._store(*slot_for(due_us, self.cursor_s), records, taken, due_us)
            except BaseException:
                self.waiting.take_back(taken)
                raise
            self._ticket += taken
        elif self._core.tails.group_empty:
            # The group has to come to pass, though it would have nothing.
            self._note_place()
        self.scheduled += taken
        publisher.take_elsewhere(entries)

    def schedule_frames(self, publisher: Publisher, frames: bytes, now_us: int, due_us_max: int) -> int:
        """Have the records of PUBLISH frames wait, from the first on as long as there is nothing else to be answered.

        Args:
            publisher: Whose they are; it is answered when that is committed.
            frames: Whole PUBLISH frames with AT, headers included.
            now_us: The time.
            due_us_max: What is due later is refused, and so not taken here.

        Returns:
            How many frames were taken.

        Raises:
            BrokerError: The journal has not taken them, though it takes records.
        """
        if self._core.tails.refuse_code:
            return 0
        self._wind(now_us)
        self._batch()
        ticket = (self._core.tails.run << RUN_SHIFT) + self._ticket + 1
        due_us_min = max(now_us, self._place[0])
        taken, messages, slots, entries = schedule_frames(
            self.waiting, publisher, frames, now_us, due_us_min, due_us_max, self.cursor_s, ticket
        )
        if not taken:
            return 0
        try:
            for level, index, records, count, first_us in slots:
                self._store(level, index, records, count, first_us)
        except BaseException:
            self.waiting.take_back(messages)
            raise
        self._ticket += messages
        if not messages and self._core.tails.group_empty:
            # The group has to come to pass, though it would have nothing.
            self._note_place()
        self.scheduled += messages
        publisher.take_elsewhere(entries)
        return taken

    def _wind(self, now_us: int) -> None:
        """Let the wheel stand at the present, when nothing has kept it turning."""
        if not self.waiting.count and now_us // S != self.cursor_s:
            self.advance(now_us)
            self.may_load()

    def cancel(self, channel: bytes, id: bytes) -> bool:
        """Have a message wait no more; returns whether it did.

        Raises:
            BrokerError: The journal takes nothing now; nothing has changed.
        """
        self._batch()
        found = self.waiting.cancel(channel, id)
        if found is None:
            return False
        record, due_us = found
        try:
            self._store(*slot_for(due_us, self.cursor_s), record, 1, due_us)
        except BaseException:
            self.waiting.take_back(1)
            raise
        self.cancelled += 1
        return True

    # -- publishing ----------------------------------------------------------------------------------------------------

    def take(self, now_us: int, bytes_max: int) -> list[bytes]:
        """Take in hand what is due; return the names of its channels.

        Nothing is taken past what is not in the order yet: what is being read, and what is not committed.
        """
        return self.waiting.take(min(now_us, self._takeable_us), bytes_max)

    @property
    def _takeable_us(self) -> int:
        """Until when what is due is in the order: not what is being read, nor what is not committed."""
        return max(min(self.loaded_s * S, *(batch.first_us for batch in self._batches), NEVER), 1) - 1

    @property
    def next_us(self) -> int:
        """When there is something to take next, as far as that depends on nothing but time."""
        next_us: int = self.waiting.next_us
        return next_us if next_us <= self._takeable_us else NEVER

    def give_back(self) -> None:
        """What is in hand cannot be published now: read it again."""
        self.waiting.forget_order()
        self.loaded_s, self.loading_s = self.cursor_s, -1
        self.undone_times += 1

    def publish(self, now_us: int, unreadable: dict[bytes, BrokerError]) -> list[Refused]:
        """Publish what is in hand, with the place behind it.

        Args:
            now_us: The time.
            unreadable: Channels that cannot be brought into memory, and why; all others are there.

        Returns:
            What was not taken, and waits again.
        """
        self._batch()
        groups, place = self.waiting.send()
        refused = []
        for at, (name, records, count) in enumerate(groups):
            try:
                self._publish(name, records, count, unreadable.get(name))
                self.published += count
            except BrokerError as failure:
                due_us = now_us + (PUT_OFF_BUSY_US if failure.temporary else PUT_OFF_US)
                again, count = self.waiting.refuse(at, due_us)
                self._store(*slot_for(due_us, self.cursor_s), again, count, due_us)
                self.refused += count
                refused.append(Refused(name, count, failure))
        self._place = place
        self._note_place()
        return refused

    def _publish(self, name: bytes, records: bytes, count: int, unreadable: BrokerError | None) -> None:
        if unreadable is not None:
            raise unreadable
        self._core.load(name)
        info = self._core.tails.info(name)
        assert info is not None
        if info[1] == Level.EPHEMERAL:
            raise error("NOT_STORED", f"channel {name.decode()}: its profile has become ephemeral")
        self._core.own.store(name, records, count)

    # -- the wheel -----------------------------------------------------------------------------------------------------

    def coarse(self) -> Slot | None:
        """Return the coarse slot whose messages are to go into finer ones now, the coarsest first."""
        for level in range(LEVELS - 1, 0, -1):
            now = self.cursor_s >> LEVEL_BITS * level
            if 0 <= (number := self._first_number(level, now)) <= now + 1:
                return self.slot(level, number & (SLOTS - 1))
        return None

    def spread(self, slot: Slot, chunk: bytes, after: int, until: int) -> None:
        """Put a chunk of a coarse slot into finer ones, and take it out of that; while the journal takes records.

        Args:
            slot: The slot.
            chunk: Its next chunk.
            after: The sequence behind which to begin.
            until: The sequence behind the chunk's last one.
        """
        assert not self._core.tails.refuse_code
        if not self.waiting.complete:
            self.waiting.note(chunk, *self._place, until)
        for level, index, records, count in self.waiting.spread(chunk, after, until, self.cursor_s):
            self._store(level, index, records, count, (self._number(level, index) << LEVEL_BITS * level) * S)
        self._trim(slot.level, slot.index, until)

    def _trim(self, level: int, index: int, until: int) -> None:
        """Take what is below a sequence out of a slot."""
        self._batch()
        self._core.trim(slot_name(level, index), until, _nothing)
        self._changed()
        if until >= self._next[level * SLOTS + index]:
            self._occupied[level] &= ~(1 << index)

    def may_load(self) -> Slot | None:
        """Go past seconds for which nothing is stored; return the slot of the next one, if it is time to read it."""
        while self.loaded_s <= self.cursor_s + LOAD_AHEAD_S and self.waiting.horizon_us == NEVER:
            for level in range(1, LEVELS):
                if self._occupied[level] >> (self.loaded_s >> LEVEL_BITS * level & SLOTS - 1) & 1:
                    return None
            if self._occupied[0] >> (self.loaded_s & SLOTS - 1) & 1:
                return self.slot(0, self.loaded_s & SLOTS - 1)
            self.loaded_s += 1
        return None

    def loaded(self) -> None:
        """The second that was being read is in the order."""
        self.loaded_s, self.loading_s = self.loading_s + 1, -1

    def reread(self) -> None:
        """Once the order is empty, go back to what it had no room for."""
        if self.waiting.horizon_us != NEVER and not self.waiting.due_count and not self.waiting.in_hand:
            self.loaded_s = self.waiting.horizon_us // S
            self.waiting.forget_horizon()

    def advance(self, now_us: int) -> None:
        """Let the wheel turn as far as everything is done."""
        at_s = min(now_us, self.waiting.next_us, self.waiting.horizon_us, *(each.first_us for each in self._batches))
        at_s = min(at_s // S, self._stop())
        if at_s <= self.cursor_s or self.waiting.in_hand:
            return
        second = self._first_number(0, self.cursor_s)
        while 0 <= second < at_s:
            index = second & SLOTS - 1
            self._trim(0, index, self.slot(0, index).end)
            second = self._first_number(0, second + 1)
        self.cursor_s = at_s
        self.loaded_s = max(self.loaded_s, at_s)
        if self._place[0] < at_s * S:
            self._place = (at_s * S, 0)

    def _stop(self) -> int:
        """Return the second at which the wheel has to wait for what is not read or not spread."""
        second = self._first_number(0, max(self.loaded_s, self.cursor_s))
        stop_s = second if second >= 0 else NEVER
        for level in range(1, LEVELS):
            number = self._first_number(level, self.cursor_s >> LEVEL_BITS * level)
            if number >= 0:
                stop_s = min(stop_s, number << LEVEL_BITS * level)
        return stop_s

    @property
    def needed(self) -> bool:
        """Whether the wheel has to turn: something waits, or is to be cleared away."""
        return bool(self.waiting.count or self._batches or any(self._occupied))

    def clear(self) -> None:
        """When nothing waits any more, take what was cancelled out of all slots."""
        if self.waiting.count or not self.waiting.complete or self._batches or self.loading_s >= 0:
            return
        for slot in self.slots():
            self._trim(slot.level, slot.index, slot.end)
        self.waiting.forget_order()


def _nothing(failure: BrokerError | None) -> None:
    """Nobody waits for a trim of slots: what it leaves is passed over."""
