"""What happened between two looks at a server: pure; no I/O, no clock, and nothing of how it is shown.

- A rate is a counter's growth over the time between two looks at the same run of the same process. Of a server that has
  restarted, or is another one, there is none until it was looked at twice.
- A counter that went back by itself (what a failed commit undoes) has no rate that once; the others have theirs.
- What a server does not tell is unknown, never 0: it may be older or newer than this program.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COUNTERS", "Change", "Consumer", "Reader", "Snapshot", "compare"]

COUNTERS: Final = (
    "records_in",
    "record_bytes_in",
    "records_out",
    "bytes_out",
    "chunks_out",
    "groups",
    "fsyncs",
    "demotions",
    "promotions",
    "disconnected_slow",
    "slices_read",
    "slices_shared",
    "publishes_refused_memory",
    "jobs_redelivered",
    "jobs_dead",
    "jobs_expired",
    "archive_written_bytes",
    "cpu_s",
    "archive_cpu_s",
)
"""The keys of `stats` that only grow while a server runs."""


@dataclass(frozen=True, slots=True)
class Reader:
    """One subscription that lags.

    Attributes:
        connection, subscription: Their numbers.
        peer, name: Where it comes from, and what its client calls itself; a stranger's words.
        filters: What it reads, the first few.
        behind_groups: Groups that were committed since the last one that it has something of.
        behind_messages: What its channels have that it has not got; None when only the log knows.
        behind_bytes: About what the bus has committed since the last that it got; None when messages are counted.
        behind_s: The age of the newest chunk that it got.
        since_s: How long it has been lagging.
        queued_bytes: What waits in memory to be sent on its connection.
        credit: Bytes that it may still be sent.
        policy: What its channels' profile wants for it; empty when they differ, or nobody tells.
    """

    connection: int
    subscription: int
    peer: str
    name: str
    filters: tuple[str, ...]
    behind_groups: int
    behind_messages: int | None
    behind_bytes: int | None
    behind_s: float
    since_s: float
    queued_bytes: int
    credit: int
    policy: str

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Reader:
        """Take one of the `readers` of a REPLY to `lagging`."""
        filters = fields.get("filters")
        messages, passed = _number(fields.get("behind_messages")), _number(fields.get("behind_bytes"))
        return cls(
            int(_number(fields.get("connection")) or 0),
            int(_number(fields.get("subscription")) or 0),
            str(fields.get("peer") or ""),
            str(fields.get("name") or ""),
            tuple(map(str, filters)) if isinstance(filters, list) else (),
            int(_number(fields.get("behind_groups")) or 0),
            None if messages is None else int(messages),
            None if passed is None else int(passed),
            _number(fields.get("behind_s")) or 0.0,
            _number(fields.get("since_s")) or 0.0,
            int(_number(fields.get("queued_bytes")) or 0),
            int(_number(fields.get("credit")) or 0),
            str(fields.get("policy") or ""),
        )


@dataclass(frozen=True, slots=True)
class Consumer:
    """A durable consumer or a work queue.

    Attributes:
        name: Its name.
        paused: Nothing is given out.
        members: Who takes jobs.
        waiting: Jobs that nobody has: ready, delayed, and not looked at as far as they are counted.
        leased: Jobs under way.
        acked, dead: Jobs that were done, and given up, since it was made.
    """

    name: str
    paused: bool
    members: int
    waiting: int
    leased: int
    acked: int
    dead: int

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Consumer:
        """Take one of the `consumers` of a REPLY to `consumers`."""

        def figure(key: str) -> int:
            return int(_number(fields.get(key)) or 0)

        return cls(
            str(fields.get("name") or ""),
            fields.get("paused") is True,
            figure("members"),
            figure("ready") + figure("delayed") + figure("lag"),
            figure("leased"),
            figure("acked"),
            figure("dead"),
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a server.

    Attributes:
        at_s: Steady time at which the answer was there.
        time_s: The same in seconds since 1970.
        answer_s: How long the server took to answer, the way there and back included.
        stats: What it told of itself.
        readers: Those that lag, as many as were asked for.
        more: There are others.
        consumers: The first ones by name, as many as were asked for.
    """

    at_s: float
    time_s: float
    answer_s: float
    stats: Mapping[str, object]
    readers: tuple[Reader, ...] = ()
    more: bool = False
    consumers: tuple[Consumer, ...] = ()

    def figure(self, name: str) -> float | None:
        """Return one of the numbers, or None if the server does not tell it."""
        return _number(self.stats.get(name))


@dataclass(frozen=True, slots=True)
class Change:
    """What happened between two looks.

    Attributes:
        now: The later one.
        elapsed_s: The time between them; None when there is no earlier one of the same run.
        restarted: There is one, of another run or of another process.
        rates: Growth a second, by counter; what is unknown is not in it.
        readers: Those that lag, the ones that are most behind first.
        consumers: Those that were asked for, the ones with most jobs waiting first.
        done: Jobs done a second, by the consumer's name; what is unknown is not in it.
    """

    now: Snapshot
    elapsed_s: float | None
    restarted: bool
    rates: Mapping[str, float]
    readers: tuple[Reader, ...]
    consumers: tuple[Consumer, ...] = ()
    done: Mapping[str, float] = field(default_factory=dict)

    def rate(self, name: str) -> float | None:
        """Return how much a counter grows a second, or None if that is unknown."""
        return self.rates.get(name)


def compare(previous: Snapshot | None, now: Snapshot) -> Change:
    """Say what happened between two looks.

    Args:
        previous: None for the first look.
        now: The later one.
    """
    readers = tuple(sorted(now.readers, key=lambda reader: (-reader.behind_groups, -reader.behind_s)))
    consumers = tuple(sorted(now.consumers, key=lambda consumer: (-consumer.waiting, consumer.name)))
    restarted = previous is not None and _life(previous) != _life(now)
    if previous is None or restarted or now.at_s <= previous.at_s:
        return Change(now, None, restarted, {}, readers, consumers)
    elapsed_s = now.at_s - previous.at_s
    rates = {}
    for name in COUNTERS:
        before, after = previous.figure(name), now.figure(name)
        if before is not None and after is not None and after >= before:
            rates[name] = (after - before) / elapsed_s
    before_by_name = {consumer.name: consumer.acked for consumer in previous.consumers}
    done = {
        consumer.name: (consumer.acked - before_by_name[consumer.name]) / elapsed_s
        for consumer in consumers
        # One that was removed and made again has gone back.
        if 0 <= before_by_name.get(consumer.name, -1) <= consumer.acked
    }
    return Change(now, elapsed_s, False, rates, readers, consumers, done)


def _life(snapshot: Snapshot) -> tuple[object, object]:
    return snapshot.stats.get("pid"), snapshot.stats.get("run")


def _number(value: object) -> float | None:
    """Return a number as it is; whatever else a server may answer is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
