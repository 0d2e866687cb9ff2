"""What is compared: the works, and for each contender how it does the work and what that is worth.

Whoever compares brokers compares promises first. Each work has one, and a contender takes part in it in the mode that
comes nearest to it; where that is less, its promise says so. A peer without any such mode has no part in the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from broker.model.levels import Level

if TYPE_CHECKING:
    from collections.abc import Mapping

LATENCY_RATE: Final = 100_000
"""Messages a second that are offered where latency is compared."""

REPLAY_MESSAGES: Final = 1_000_000
"""That are stored before they are read, at most; a shorter comparison has fewer."""

REPLAY_MESSAGES_A_SECOND: Final = 400_000
"""How many of them for each second of a measurement."""

QUEUE_MESSAGES_A_SECOND: Final = 200_000
"""That are queued before they are worked off, for each second of a measurement."""

SINGLE_MESSAGES_A_SECOND: Final = 20_000
"""The same where members have one at a time."""


class By(StrEnum):
    """Who does a work."""

    NATIVE = "native"
    """The native driver, in the peer's own protocol."""
    CLIENT = "client"
    """Each one's Python client."""
    QUEUE = "queue"
    """A library inside the process."""


@dataclass(frozen=True, slots=True)
class Mode:
    """How a contender does a work.

    Attributes:
        variant: of its server's configuration; empty without a server.
        how: by what means, for people.
        promise: what it is worth, for people.
        dialect: of the native driver; for ours always `broker`.
    """

    variant: str
    how: str
    promise: str
    dialect: str = "broker"


@dataclass(frozen=True, slots=True)
class Work:
    """What everybody does.

    Attributes:
        name: in options, files and thresholds.
        title: for people.
        by: who does it.
        modes: of each contender that has a part in it; ours first.
        durability: what ours promises.
        subscribers: how many read all of it.
        rate: messages a second that are offered; 0 is as fast as it goes.
        replay: publish first, then read it all.
        members: publish first, then so many work it off and acknowledge each message; 0: nobody does.
        one_at_a_time: a member has one message at a time.
        figures: what it is judged by.
    """

    name: str
    title: str
    by: By
    modes: Mapping[str, Mode]
    durability: Level = Level.EPHEMERAL
    subscribers: int = 1
    rate: int = 0
    replay: bool = False
    members: int = 0
    one_at_a_time: bool = False
    figures: tuple[str, ...] = ("rate",)

    @property
    def stored(self) -> bool:
        """Whether messages are kept."""
        return self.durability is not Level.EPHEMERAL


AT_MOST_ONCE: Final = "at most once, never stored"

EPHEMERAL: Final = MappingProxyType(
    {
        "broker": Mode("bench", "ephemeral", AT_MOST_ONCE),
        "redis": Mode("memory", "PUBLISH, SUBSCRIBE", AT_MOST_ONCE, "redis"),
        "nats": Mode("core", "core: PUB, SUB", AT_MOST_ONCE, "nats"),
        "mosquitto": Mode("memory", "MQTT 3.1.1, QoS 0", AT_MOST_ONCE, "mqtt-0"),
        "rabbitmq": Mode("mqtt", "MQTT 3.1.1, QoS 0", AT_MOST_ONCE, "mqtt-0"),
    }
)

SYNCED: Final = MappingProxyType(
    {
        "broker": Mode("bench", "synced", "on the disk before it is acknowledged or seen"),
        "redis": Mode("always", "XADD, XREAD", "on the disk before it is acknowledged or seen", "redis-stream"),
        "nats": Mode("always", "JetStream, file", "on the disk before it is acknowledged", "jetstream"),
    }
)

RELAXED: Final = MappingProxyType(
    {
        "broker": Mode("bench", "accepted", "acknowledged and seen at once, on the disk within about 50 ms"),
        "redis": Mode("everysec", "XADD, XREAD", "acknowledged at once, on the disk within a second", "redis-stream"),
        "nats": Mode("default", "JetStream, file", "written before it is acknowledged, synced by 2 min", "jetstream"),
        "mosquitto": Mode("memory", "MQTT 3.1.1, QoS 1", "acknowledged from memory, never stored", "mqtt-1"),
        "rabbitmq": Mode("mqtt", "MQTT 3.1.1, QoS 1", "acknowledged from memory: sessions are clean", "mqtt-1"),
    }
)

REPLAY: Final = MappingProxyType(
    {
        "broker": Mode("bench", "subscribe from the start", "stored and synced"),
        "redis": Mode("everysec", "XREAD from 0", "stored, in memory as well", "redis-stream"),
        "nats": Mode("default", "ordered consumer from the start", "stored", "jetstream"),
    }
)

ACKS_LATER: Final = "acknowledgements are written a little later"
"""What JetStream does whatever is set: a consumer's state is flushed behind its answers."""

QUEUE: Final = MappingProxyType(
    {
        "broker": Mode("bench", "shared consumer: JOBS, ACK", "on the disk before an acknowledgement is answered"),
        "redis": Mode(
            "always", "XREADGROUP, XACK", "on the disk before an acknowledgement is answered", "redis-stream"
        ),
        "nats": Mode("always", "JetStream, file: pull, +ACK", f"messages on the disk; {ACKS_LATER}", "jetstream"),
    }
)

QUEUE_RELAXED: Final = MappingProxyType(
    {
        "broker": Mode("bench", "shared consumer: JOBS, ACK", "on the disk before an acknowledgement is answered"),
        "redis": Mode("everysec", "XREADGROUP, XACK", "answered at once, on the disk within a second", "redis-stream"),
        "nats": Mode("default", "JetStream, file: pull, +ACK", f"messages synced by 2 min; {ACKS_LATER}", "jetstream"),
    }
)

CLIENTS: Final = MappingProxyType(
    {
        "broker": Mode("bench", "post(), batches()", AT_MOST_ONCE),
        "redis": Mode("memory", "redis-py with hiredis: pipelines of PUBLISH, listen()", AT_MOST_ONCE),
        "nats": Mode("core", "nats-py: publish(), callback", AT_MOST_ONCE),
    }
)

CLIENTS_SYNCED: Final = MappingProxyType(
    {
        "broker": Mode("bench", "post(), drain(), batches()", "on the disk before it is acknowledged or seen"),
        "redis": Mode(
            "always", "redis-py with hiredis: pipelines of XADD, XREAD", "on the disk before it is acknowledged"
        ),
        "nats": Mode("always", "nats-py: publish_async(), fetch()", "on the disk before it is acknowledged"),
    }
)

QUEUES: Final = MappingProxyType(
    {
        "broker": Mode("", "Broker.open: post(), drain(), batches()", "on the disk before it is acknowledged or seen"),
        "persist-queue": Mode(
            "", "SQLiteQueue, auto_commit off, task_done() after 1,000", "put: on the disk; got: by the thousand"
        ),
        "litequeue": Mode(
            "", "put() in transactions of 1,000, pop()", "survives a crash of the process, not of the machine"
        ),
        "diskcache": Mode(
            "", "Deque, transact() around 1,000, no eviction", "survives a crash of the process, not of the machine"
        ),
        "huey": Mode(
            "", "SqliteStorage, fsync off: enqueue(), dequeue()", "survives a crash of the process, not of the machine"
        ),
    }
)

ALL: Final = (
    Work("ephemeral", "1 → 1, ephemeral", By.NATIVE, EPHEMERAL),
    *(
        Work(f"fanout-{readers}", f"1 → {readers:,}, ephemeral", By.NATIVE, EPHEMERAL, subscribers=readers)
        for readers in (10, 100, 1000)
    ),
    Work("synced", "1 → 1, synced and delivered", By.NATIVE, SYNCED, Level.SYNCED),
    Work("everysec", "1 → 1, synced a little later", By.NATIVE, RELAXED, Level.ACCEPTED),
    Work("replay", "read what is stored", By.NATIVE, REPLAY, Level.SYNCED, replay=True),
    Work(
        "latency", f"latency at {LATENCY_RATE:,}/s, ephemeral", By.NATIVE, EPHEMERAL,
        rate=LATENCY_RATE, figures=("p50", "p99"),
    ),
    Work("queue", "lease and acknowledge, 4 members, synced", By.NATIVE, QUEUE, Level.SYNCED, members=4),
    Work(
        "queue-everysec", "lease and acknowledge, 4 members, theirs synced a little later", By.NATIVE, QUEUE_RELAXED,
        Level.SYNCED, members=4,
    ),
    Work(
        "queue-single", "lease and acknowledge one at a time, 64 members, synced", By.NATIVE, QUEUE, Level.SYNCED,
        members=64, one_at_a_time=True,
    ),
    Work("python", "Python client, 1 → 1, ephemeral", By.CLIENT, CLIENTS),
    Work("python-synced", "Python client, 1 → 1, synced", By.CLIENT, CLIENTS_SYNCED, Level.SYNCED),
    Work("embedded", "put and get inside a process", By.QUEUE, QUEUES, Level.SYNCED),
)  # fmt: skip

WORKS: Final = {work.name: work for work in ALL}
"""By name, in the order in which they are done and told."""

QUEUE_PEERS: Final = tuple(name for name in QUEUES if name != "broker")
