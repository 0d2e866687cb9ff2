"""A small broker with a switch for each bug, and the users that exercise it: a source of histories for the checker.

It is no model of how the broker works, only of what its users see: groups that commit as a whole, retries under the
same number, crashes that take what was not committed, epochs that end with them, readers that resume. Everything
follows from the seed.
"""

from __future__ import annotations

import bisect
import random
from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from tests.checker.history import (
    ACCEPTED,
    SYNCED,
    Acked,
    Committed,
    Crashed,
    Delivered,
    Finished,
    History,
    Invoked,
    Refused,
    Run,
    Started,
    Subscribed,
    TrimAcked,
    TrimAsked,
    Trimmed,
    Unknown,
)

STEP_S = 0.001
GROUP_STEPS_MAX = 20
"""A group is open for at most 20 ms, so that the window of 50 ms covers what a crash may take of `accepted` ones."""


class Bug(StrEnum):
    """What can be wrong with a broker, one at a time."""

    ACK_EARLY = "ack early"
    DROP_TAIL = "drop tail"
    SWAP_TWO = "swap two"
    DUPLICATE_ON_RETRY = "duplicate on retry"
    REUSE_SEQUENCE = "reuse sequence"
    SKIP_AT_BATCH_EDGE = "skip at batch edge"
    RESUME_OFF_BY_ONE = "resume off by one"
    DEDUP_NOT_IN_TRANSACTION = "dedup not in the same transaction"
    STALE_EPOCH = "stale epoch"
    LOST_GROUP = "lost group"
    WRONG_CHANNEL = "wrong channel"
    UNFLUSHED_TRIM = "unflushed trim"


class Record(NamedTuple):
    """One stored record."""

    epoch: int
    sequence: int
    value: int


class Batch(NamedTuple):
    """What one call of a producer publishes."""

    producer: str
    number: int
    channel: str
    values: list[int]


@dataclass(slots=True)
class Channel:
    """One channel: `records` in order, of which the first `committed` are durable."""

    level: int
    epoch: int
    records: list[Record] = field(default_factory=list)
    committed: int = 0
    head: int = 0
    trim: int = 1
    trim_pending: int = 1
    trim_acked: int = 1

    def visible(self) -> int:
        """Return how many records readers may see."""
        return len(self.records) if self.level == ACCEPTED else self.committed


class Simulation:
    """One broker, its producers and its consumers.

    Args:
        seed: everything follows from it.
        bug: what is wrong, or None for a broker that keeps its promise.
        batch_max: records in a batch, of producers and of polls.
        commits_seen: record the commits. A real server is judged without.

    Attributes:
        history: what was observed.
        injected: how often the bug had something to spoil.
    """

    def __init__(self, seed: int, bug: Bug | None = None, *, batch_max: int = 5, commits_seen: bool = True) -> None:
        self.random = random.Random(seed)
        self.bug = bug
        self.batch_max = batch_max
        self.commits_seen = commits_seen
        self.injected = 0
        self.channels = {
            "a.synced": Channel(SYNCED, epoch=1),
            "b.synced": Channel(SYNCED, epoch=1),
            "c.accepted": Channel(ACCEPTED, epoch=1),
        }
        self.history = History(levels={name: channel.level for name, channel in self.channels.items()})
        self.producers = [f"producer{n}" for n in range(3)]
        self.sent: dict[str, int] = dict.fromkeys(self.producers, 0)
        self.flying: dict[str, list[Batch]] = {producer: [] for producer in self.producers}
        self.marks: dict[tuple[str, int], tuple[int, int]] = {}
        self.spoiled: set[tuple[str, int]] = set()
        self.open: list[tuple[Batch, int, int]] = []
        self.last_group: list[tuple[Batch, int, int]] = []
        self.places: dict[tuple[str, str], tuple[int, int]] = {}
        self.step = 0
        self.open_since = 0
        self.epoch = 1
        self.value = 0

    def run(self, records: int, *, crash_every_steps: float = 40) -> History:
        """Publish about `records` records among everything else that happens, let it all end, and read the log."""
        for consumer in ("reader0", "reader1"):
            for name in self.channels:
                self._record(Subscribed(self._now(), consumer, name, True))
                self.places[consumer, name] = (0, 0)
        actions = [self._publish, self._poll, self._commit, self._reconnect, self._trim, self._crash]
        weights = [20, 30, 10, 1, 0.5, 60 / crash_every_steps]
        while self.value < records:
            self.step += 1
            if self.open and self.step - self.open_since >= GROUP_STEPS_MAX:
                self._commit()
            self.random.choices(actions, weights)[0]()
        self._end()
        return self.history

    def _now(self) -> float:
        return self.step * STEP_S

    def _record(self, event: object) -> None:
        self.history.events.append(event)  # type: ignore[arg-type]

    def _strikes(self, bug: Bug, chance: float = 1.0) -> bool:
        """Say whether the bug is the one that is switched on, and shows this time."""
        strikes = self.bug is bug and self.random.random() < chance
        self.injected += strikes
        return strikes

    # Producers

    def _publish(self) -> None:
        producer = self.random.choice(self.producers)
        count = self.random.randint(1, self.batch_max)
        values = list(range(self.value, self.value + count))
        batch = Batch(producer, self.sent[producer], self.random.choice(list(self.channels)), values)
        self.value += count
        self.sent[producer] += count
        self._record(Invoked(self._now(), producer, batch.number, batch.channel, batch.values))
        if self.random.random() < 0.02:
            self._record(Refused(self._now(), producer, batch.number, count))
            return
        self.flying[producer].append(batch)
        self._decide(batch)

    def _reconnect(self) -> None:
        """One producer loses its connection, not knowing what became of its batches."""
        producer = self.random.choice(self.producers)
        self._retry(producer)

    def _retry(self, producer: str) -> None:
        if self.flying[producer] and self.random.random() < 0.1:
            for batch in self.flying[producer]:
                self._record(Unknown(self._now(), producer, batch.number, len(batch.values)))
            self.flying[producer].clear()
        for batch in list(self.flying[producer]):
            self._decide(batch)

    def _answer(self, batch: Batch, epoch: int, first: int, *, level: int | None = None) -> None:
        if batch not in self.flying[batch.producer]:
            return
        if level is None:
            level = self.channels[batch.channel].level
        self.flying[batch.producer].remove(batch)
        self._record(Acked(self._now(), batch.producer, batch.number, len(batch.values), epoch, first, level))

    # The broker

    def _decide(self, batch: Batch) -> None:
        self.injected += (batch.producer, batch.number) in self.spoiled
        mark = self.marks.get((batch.producer, batch.number))
        if mark is not None and not self._strikes(Bug.DUPLICATE_ON_RETRY):
            if all(batch != pending for pending, _, _ in self.open):
                self._answer(batch, *mark)
            return
        channel = self.channels[batch.channel]
        first = channel.head + 1
        values = list(batch.values)
        if len(values) > 1 and self._strikes(Bug.SWAP_TWO, 0.05):
            values[0], values[1] = values[1], values[0]
        channel.records += [Record(channel.epoch, first + n, value) for n, value in enumerate(values)]
        channel.head += len(values)
        self.marks[batch.producer, batch.number] = channel.epoch, first
        if not self.open:
            self.open_since = self.step
        self.open.append((batch, channel.epoch, first))
        if channel.level == ACCEPTED or self._strikes(Bug.ACK_EARLY):
            self._answer(batch, channel.epoch, first)

    def _commit(self) -> None:
        group, self.open = self.open, []
        if len(group) > 1 and self.bug is Bug.WRONG_CHANNEL:
            self._exchange(group)
        for batch, epoch, first in group:
            if self.commits_seen:
                self._record(Committed(self._now(), batch.channel, epoch, first, len(batch.values)))
        for name, channel in self.channels.items():
            channel.committed = len(channel.records)
            if channel.trim_pending > channel.trim:
                self._apply_trim(name, channel)
        for batch, epoch, first in group:
            if self.random.random() < 0.9:
                self._answer(batch, epoch, first)
        self.last_group = group or self.last_group

    def _exchange(self, group: list[tuple[Batch, int, int]]) -> None:
        """File the first records of two channels crosswise."""
        one, other = group[0], group[-1]
        if one[0].channel == other[0].channel or not self._strikes(Bug.WRONG_CHANNEL):
            return
        lists = [self.channels[batch.channel].records for batch, _, _ in (one, other)]
        places = [bisect.bisect_left(lists[n], (epoch, first)) for n, (_, epoch, first) in enumerate((one, other))]
        values = [records[place].value for records, place in zip(lists, places, strict=True)]
        for records, place, value in zip(lists, places, reversed(values), strict=True):
            records[place] = records[place]._replace(value=value)

    def _trim(self) -> None:
        name, channel = self.random.choice(list(self.channels.items()))
        if channel.committed < 10:
            return
        channel.trim_pending = channel.records[self.random.randrange(channel.committed // 2)].sequence
        self._record(TrimAsked(self._now(), name, channel.trim_pending))
        if self.bug is Bug.UNFLUSHED_TRIM:
            self._ack_trim(name, channel)

    def _apply_trim(self, name: str, channel: Channel) -> None:
        channel.trim = channel.trim_pending
        channel.records = [record for record in channel.records if record.sequence >= channel.trim]
        channel.committed = len(channel.records)
        self._ack_trim(name, channel)

    def _ack_trim(self, name: str, channel: Channel) -> None:
        channel.trim_acked = max(channel.trim_acked, channel.trim_pending)
        self._record(TrimAcked(self._now(), name, channel.trim_pending))

    def _crash(self) -> None:
        self._record(Crashed(self._now()))
        self.step += 5
        lost, self.open = self.open, []
        self.epoch += 1
        for channel in self.channels.values():
            self._recover(channel)
        self._recover_marks(lost)
        if self.last_group and self._strikes(Bug.LOST_GROUP, 0.3):
            self._lose_group()
        self._record(Started(self._now()))
        for producer in self.producers:
            self._retry(producer)
        for key, place in self.places.items():
            self.places[key] = self._resume(key, place)

    def _recover(self, channel: Channel) -> None:
        lost = len(channel.records) > channel.committed
        del channel.records[channel.committed :]
        channel.trim_pending = channel.trim
        channel.head = channel.records[-1].sequence if channel.records else channel.trim - 1
        if channel.level == SYNCED and channel.records and self._strikes(Bug.DROP_TAIL, 0.3):
            channel.records.pop()
        if channel.level == SYNCED and channel.records and self._strikes(Bug.REUSE_SEQUENCE, 0.3):
            channel.head -= 1
            channel.records.pop()
        if channel.level == ACCEPTED and not (lost and self._strikes(Bug.STALE_EPOCH)):
            channel.epoch = self.epoch
        channel.committed = len(channel.records)

    def _recover_marks(self, lost: list[tuple[Batch, int, int]]) -> None:
        survives = self.bug is Bug.DEDUP_NOT_IN_TRANSACTION and self.random.random() < 0.5
        forgets = self.bug is Bug.DEDUP_NOT_IN_TRANSACTION and not survives
        for batch, _, _ in lost:
            if survives:
                self.spoiled.add((batch.producer, batch.number))
            else:
                self.marks.pop((batch.producer, batch.number), None)
        for batch, _, _ in self.last_group if forgets else []:
            self.spoiled.add((batch.producer, batch.number))
            self.marks.pop((batch.producer, batch.number), None)

    def _lose_group(self) -> None:
        for batch, epoch, first in self.last_group:
            channel = self.channels[batch.channel]
            gone = range(first, first + len(batch.values))
            channel.records = [r for r in channel.records if r.epoch != epoch or r.sequence not in gone]
            channel.committed = len(channel.records)
        self.last_group = []

    # Consumers

    def _resume(self, key: tuple[str, str], place: tuple[int, int]) -> tuple[int, int]:
        epoch, sequence = place
        records = self.channels[key[1]].records
        inside = any(r.epoch == epoch and r.sequence == sequence + 1 for r in records) and sequence > 1
        if inside and self._strikes(Bug.RESUME_OFF_BY_ONE):
            return epoch, sequence + self.random.choice([-1, 1])
        return place

    def _poll(self) -> None:
        key = self.random.choice(list(self.places))
        self._poll_one(key, self.random.randint(1, self.batch_max))

    def _poll_one(self, key: tuple[str, str], count: int) -> bool:
        """Hand a consumer its next records of one epoch; False when there are none."""
        consumer, name = key
        channel = self.channels[name]
        if self.places[key][1] < channel.trim - 1:
            self._record(Trimmed(self._now(), consumer, name, channel.trim))
            self.places[key] = self.places[key][0], channel.trim - 1
        start = bisect.bisect_right(channel.records, (*self.places[key], 1 << 62))
        records = channel.records[start : min(start + count, channel.visible())]
        records = [record for record in records if record.epoch == records[0].epoch]
        if not records:
            return False
        self._hand_over(consumer, name, records)
        step = len(records) == count and start + count < channel.visible() and self._strikes(Bug.SKIP_AT_BATCH_EDGE)
        last = channel.records[start + len(records) - 1 + step]
        self.places[key] = last.epoch, last.sequence
        return True

    def _hand_over(self, consumer: str, name: str, records: list[Record]) -> None:
        if len(records) > 1 and self._strikes(Bug.SWAP_TWO, 0.02):
            records[0], records[1] = records[1], records[0]
        for run in runs(records):
            self._record(Delivered(self._now(), consumer, name, *run))

    def _end(self) -> None:
        for producer in self.producers:
            self._retry(producer)
        self._commit()
        for producer in self.producers:
            self._retry(producer)
        for key in self.places:
            while self._poll_one(key, self.batch_max):
                pass
            self._record(Finished(self._now(), *key))
        self.injected += sum(channel.trim_acked > channel.trim for channel in self.channels.values())
        self.history.log = {name: runs(channel.records) for name, channel in self.channels.items()}


def runs(records: list[Record]) -> list[Run]:
    """Put consecutive records of one epoch together."""
    found: dict[int, list[Record]] = defaultdict(list)
    start = 0
    for n, record in enumerate(records):
        before = records[n - 1] if n else record
        if n and (record.epoch, record.sequence) != (before.epoch, before.sequence + 1):
            start = n
        found[start].append(record)
    return [Run(part[0].epoch, part[0].sequence, [r.value for r in part]) for part in found.values()]
