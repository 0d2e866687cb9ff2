"""What a work is asked to do: its options, and the defaults that make each work the one of its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.model.levels import Level
from broker.model.settings import GIB, KIB, MIB

STAMP_BYTES: Final = 24
"""The smallest payload: it holds the stamp by which a message is recognised."""

CREDIT_BYTES: Final = 16 * MIB
"""What a subscriber grants at first, and again by eighths as it reads."""

CREDIT_SHARE: Final = 4
"""The window is so small a part of the credit. The server may see what is published before the CREDIT on another
connection that made room for it: then one window is delivered and not yet granted again, and the next one follows."""

WINDOW_BYTES_EPHEMERAL: Final = 1 * MIB
"""What may be on its way to a subscriber. More than a second-level cache only costs both sides their hits in it."""

WINDOW_BYTES_STORED: Final = 4 * MIB
"""The same where it waits for a commit: two groups of the largest size."""

AUDIENCES_BYTES_MAX: Final = 16 * MIB
"""What may be on its way to all audiences, counted once in each."""

IN_FLIGHT_BYTES_MAX: Final = 128 * MIB
"""What may be on its way to all subscribers of an audience together: it lies in the kernel's buffers."""

IN_FLIGHT_RECORDS: Final = 8192
"""Records that wait for their answers, of all publishers together, where answers are timed: more would wait longer."""

QUEUED_RECORDS: Final = 2048
"""Records that wait for their answers while a queue is filled: fewer than elsewhere, since this is not measured, and a
server that syncs each message by itself may answer none of them before it has stored all that it has read."""

RECORD_OVERHEAD_BYTES: Final = 96
"""A record's header, the server's fields, and the headers of a chunk that it may have for itself."""

FILTERS_MAX: Final = 1024
"""Literal names that fit into one SUBSCRIBE."""


class Work(StrEnum):
    """What `broker bench` can do."""

    PUBSUB = "pubsub"
    FANOUT = "fanout"
    MANY = "many"
    LATENCY = "latency"
    REPLAY = "replay"
    CLIENT = "client"
    IDLE = "idle"
    CHANNELS = "channels"
    COLD = "cold"
    RESTART = "restart"
    STORM = "storm"
    SHARED = "shared"
    SLOW = "slow"
    CATCHUP = "catchup"
    REQUESTS = "requests"
    TRANSACTIONS = "transactions"
    QUEUE = "queue"
    DELAYED = "delayed"


OVER_WEB = frozenset({Work.PUBSUB, Work.FANOUT, Work.MANY, Work.LATENCY, Work.IDLE})
"""Works whose subscribers may read over WebSockets."""


@dataclass(frozen=True, slots=True)
class Options:
    """One work with everything that it needs to know.

    Attributes:
        work: which one.
        durability: the level that every answer must report; ephemeral, accepted or synced.
        publishers: connections that publish, 0 for `idle`.
        subscribers: connections that read, from 1.
        channels: names that are published to, from 1.
        payload: bytes of each message, from STAMP_BYTES.
        batch: records in each PUBLISH frame, 1 to 65,535.
        rate: messages a second of all publishers together; 0 is as fast as the subscribers read.
        seconds: when publishing ends; 0 for no bound. `idle` holds its connections that long.
        messages: when publishing ends; 0 for no bound. Not both 0.
        url: a running server, or None to start one.
        pattern: subscribe by one pattern instead of by the channels' names.
        web: subscribers read over WebSockets.
        crc: check every chunk's CRC as well.
        ids: give every message an id of its own.
        pin: keep the server and the driver on cores of their own (Linux).
        embedded: `client` only: the embedded home instead of a server.
        window: records on their way to the slowest subscriber; 0 takes what credit and memory allow. Of `queue`, jobs
            that may be with a member.
        read_back: `channels` only: read everything in the end, and check it.
        archived: `replay` only: read when the archive has all of it.
        stored_bytes: `restart` only: how much the files hold when the server is killed, about.
        unarchived_bytes: `restart` only: how much of it the archive has not, about.
        clients: `storm` only: the crowd that comes back; `channels` are then those of each of them.
        slow: `slow` only: how many of the subscribers stop reading.
        members: `queue` and `acks` only: connections that work it off.
        acks: `transactions` only: each acknowledges a message of a queue too, and the native driver commits them.
        keys: `queue` only: how many keys its messages have in turn, of which one message is under way each; 0: none.
        one_at_a_time: `queue` only: a member has one message, and the next when it has acknowledged that.
        patience_s: how long the server may owe something and send nothing before the rest counts as lost.
    """

    work: Work
    durability: Level = Level.SYNCED
    publishers: int = 1
    subscribers: int = 1
    channels: int = 1
    payload: int = 128
    batch: int = 1
    rate: int = 0
    seconds: float = 5.0
    messages: int = 0
    url: str | None = None
    pattern: bool = False
    web: bool = False
    crc: bool = False
    ids: bool = False
    pin: bool = False
    embedded: bool = False
    window: int = 0
    read_back: bool = True
    archived: bool = False
    stored_bytes: int = 0
    unarchived_bytes: int = 0
    clients: int = 0
    slow: int = 0
    members: int = 0
    acks: bool = False
    keys: int = 0
    one_at_a_time: bool = False
    patience_s: float = 10.0

    @property
    def audiences(self) -> int:
        """Groups of channels and subscribers that meet: in `many` each subscriber has channels of its own."""
        return min(self.subscribers, self.channels) if self.work is Work.MANY else 1

    @property
    def owned(self) -> bool:
        """Whether each publisher has channels of its own."""
        return self.work in (Work.CHANNELS, Work.COLD, Work.RESTART)

    @property
    def record_bytes_max(self) -> int:
        """What one record takes of a subscription's credit at most."""
        return self.payload + RECORD_OVERHEAD_BYTES

    @property
    def window_records(self) -> int:
        """Records that may be on their way to the slowest subscriber: within its credit, and within memory for all."""
        if self.owned:
            return max(self.window or IN_FLIGHT_RECORDS // self.publishers, 4 * self.batch)
        if self.work is Work.DELAYED:
            return max(self.window or IN_FLIGHT_RECORDS, 4 * self.batch)
        if self.work is Work.QUEUE:
            return max(QUEUED_RECORDS, 4 * self.batch)
        # Publishers do not wait for those who are to fall behind.
        readers = -(-(self.subscribers - self.slow) // self.audiences)
        alone = WINDOW_BYTES_EPHEMERAL if self.durability is Level.EPHEMERAL else WINDOW_BYTES_STORED
        fitting = min(alone, AUDIENCES_BYTES_MAX // self.audiences, IN_FLIGHT_BYTES_MAX // readers)
        return max(self.window or fitting // self.record_bytes_max, 4 * self.batch)

    @property
    def credit_bytes(self) -> int:
        """What SUBSCRIBE grants."""
        return max(CREDIT_BYTES, CREDIT_SHARE * self.window_records * self.record_bytes_max)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a work does unless it is told otherwise; each field is that of `Options`."""

    publishers: int = 1
    subscribers: tuple[int, ...] = (1,)
    channels: int = 1
    rate: int = 0
    seconds: float = 5.0
    messages: int = 0
    batch: int = 1
    stored_bytes: int = 0
    unarchived_bytes: int = 0
    clients: int = 0
    slow: int = 0
    members: int = 0


DEFAULTS: Final = {
    Work.PUBSUB: Defaults(),
    Work.FANOUT: Defaults(subscribers=(10, 100, 1000)),
    Work.MANY: Defaults(publishers=50, subscribers=(50,), channels=1000),
    Work.LATENCY: Defaults(rate=100_000),
    Work.REPLAY: Defaults(seconds=0, messages=2_000_000),
    Work.CLIENT: Defaults(seconds=0, messages=1_000_000),
    Work.SHARED: Defaults(publishers=8, channels=8, seconds=0, messages=800_000),
    Work.IDLE: Defaults(publishers=0, subscribers=(10_000,), seconds=2.0),
    Work.CHANNELS: Defaults(publishers=16, channels=1_000_000, seconds=60.0),
    Work.COLD: Defaults(publishers=16, channels=1_000_000, seconds=0, messages=1_000_000),
    Work.RESTART: Defaults(
        publishers=4, channels=10_000, seconds=0, batch=100, stored_bytes=GIB, unarchived_bytes=GIB // 2
    ),
    Work.STORM: Defaults(subscribers=(10,), channels=20, rate=1_000, seconds=5.0, clients=5_000),
    Work.SLOW: Defaults(subscribers=(1_000,), rate=50_000, seconds=60.0, slow=900),
    Work.CATCHUP: Defaults(subscribers=(200,), rate=100_000, seconds=10.0, messages=1_000_000),
    Work.REQUESTS: Defaults(seconds=0, messages=200_000),
    Work.TRANSACTIONS: Defaults(publishers=256, seconds=0, messages=1_000_000, batch=10),
    Work.QUEUE: Defaults(seconds=0, messages=1_000_000, batch=100, members=4),
    Work.DELAYED: Defaults(rate=10_000, seconds=10.0, messages=1_000_000),
}

ACKS_MEMBERS: Final = 4
"""Connections that have transactions with acknowledgements, unless it is told otherwise."""

PAYLOAD_BYTES_MAX: Final = 1 * MIB
FRAME_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + 80 * KIB
"""What a server takes by default; a smaller limit in its WELCOME is found before anything is published."""


def complaint(options: Options) -> str | None:
    """Say what is wrong with options, or None. What a server forbids is the server's to say."""
    work = options.work
    checks = (
        (
            options.payload < STAMP_BYTES,
            f"--payload: got {options.payload} bytes, at least {STAMP_BYTES} hold the stamp",
        ),
        (options.batch < 1 or options.batch > 65535, f"--batch: got {options.batch}, from 1 to 65535"),
        (options.channels < 1, f"--channels: got {options.channels}, at least 1"),
        (options.subscribers < 1, f"--subscribers: got {options.subscribers}, at least 1"),
        (work is not Work.IDLE and options.publishers < 1, f"--publishers: got {options.publishers}, at least 1"),
        (options.publishers > 65536, f"--publishers: got {options.publishers}, limit 65536"),
        (options.rate < 0 or options.messages < 0 or options.seconds < 0, "a rate, count or time cannot be negative"),
        (options.durability is Level.REPLICATED, "--durability: no home of this build replicates"),
        (work is Work.MANY and options.channels < options.subscribers, "many: each subscriber needs a channel"),
        (work is Work.REPLAY and options.durability is Level.EPHEMERAL, "replay: ephemeral messages are not stored"),
        (
            work is Work.TRANSACTIONS and options.durability is Level.EPHEMERAL,
            "transactions: ephemeral channels are refused",
        ),
        (work is Work.LATENCY and not options.rate, "latency: needs a --rate"),
        (options.ids and options.durability is Level.EPHEMERAL, "--ids: ephemeral channels remember none"),
        (options.ids and work in (Work.IDLE, Work.CLIENT, Work.SHARED), f"--ids: {work} publishes otherwise"),
        (
            work not in (Work.IDLE, Work.RESTART) and not options.seconds and not options.messages,
            "one of --seconds and --messages must end it",
        ),
        (
            work in (Work.REPLAY, Work.CLIENT, Work.SHARED, Work.REQUESTS, Work.TRANSACTIONS, Work.QUEUE)
            and not options.messages,
            f"{work}: needs --messages",
        ),
        (
            work is Work.SHARED and not 2 <= options.publishers <= options.messages,
            f"shared: got {options.publishers} processes, from 2 to one for each of {options.messages} messages",
        ),
        (
            work is Work.SHARED and options.durability is Level.EPHEMERAL,
            "shared: a reader that falls behind catches up from the log, which ephemeral messages are not in",
        ),
        (work is Work.SHARED and options.url is not None, "shared: compares homes of its own, so no --url"),
        (options.pin and not hasattr(os, "sched_setaffinity"), "--pin: this system does not bind processes to cores"),
        (options.owned and options.publishers > options.channels, f"{work}: each publisher needs a channel"),
        (options.owned and options.durability is Level.EPHEMERAL, f"{work}: ephemeral messages are not stored"),
        (options.owned and options.subscribers != 1, f"{work}: one subscriber reads it back"),
        (
            work in (Work.COLD, Work.RESTART) and options.url is not None,
            f"{work}: starts its server twice, so no --url",
        ),
        (
            work is Work.COLD and options.messages != options.channels,
            "cold: one message to each channel: no --messages",
        ),
        (
            work is Work.RESTART and options.durability is not Level.SYNCED,
            "restart: a kill takes what is acknowledged and not committed: --durability synced alone loses nothing",
        ),
        (
            work is Work.RESTART and bool(options.messages or options.seconds or options.rate),
            "restart: what it stores is said in bytes: no --messages, --seconds or --rate",
        ),
        (
            work is Work.RESTART and not 0 <= options.unarchived_bytes <= options.stored_bytes,
            f"--unarchived-bytes: got {options.unarchived_bytes} bytes, from 0 to the {options.stored_bytes} stored",
        ),
        (
            work is not Work.RESTART and bool(options.stored_bytes or options.unarchived_bytes),
            "--stored-bytes and --unarchived-bytes are for `restart`",
        ),
        (
            (options.clients > 0) != (work is Work.STORM),
            "--clients is for `storm`, at least 1",
        ),
        (
            work is Work.STORM and not (options.rate and options.seconds and options.channels <= FILTERS_MAX),
            f"storm: needs a --rate, --seconds and at most {FILTERS_MAX} --channels for each client",
        ),
        (
            work is Work.STORM and options.durability is Level.EPHEMERAL,
            "storm: ephemeral messages are not resumed",
        ),
        (
            (options.slow > 0) != (work is Work.SLOW) or (work is Work.SLOW and options.slow >= options.subscribers),
            f"--slow is for `slow`: got {options.slow}, from 1 to fewer than the {options.subscribers} subscribers",
        ),
        (
            work is Work.SLOW and not (options.rate and options.seconds and not options.messages),
            "slow: needs a --rate and --seconds, and no --messages",
        ),
        (
            work is Work.CATCHUP and not (options.rate and options.seconds and options.messages),
            "catchup: needs --messages to catch up, and a --rate and --seconds of those published meanwhile",
        ),
        (
            work in (Work.SLOW, Work.CATCHUP) and options.durability is Level.EPHEMERAL,
            f"{work}: ephemeral messages are not stored, so nobody catches up",
        ),
        (
            (options.members > 0) != (work is Work.QUEUE or options.acks),
            "--members is for `queue` and `transactions --acks`, at least 1",
        ),
        (options.acks and work is not Work.TRANSACTIONS, "--acks is for `transactions`"),
        (
            options.acks and not options.members <= options.publishers,
            f"--acks: got {options.members} members, at most one for each of {options.publishers} transactions",
        ),
        (
            work is not Work.QUEUE and (options.keys > 0 or options.one_at_a_time),
            "--keys and --one-at-a-time are for `queue`",
        ),
        (
            work is Work.QUEUE and (options.channels, options.subscribers, options.pattern) != (1, 1, False),
            "queue: it has one channel, and members: no --channels, --subscribers or --pattern",
        ),
        (work is Work.QUEUE and options.durability is Level.EPHEMERAL, "queue: ephemeral messages are not queued"),
        (
            work is Work.DELAYED and not (options.rate and options.seconds and options.messages),
            "delayed: needs --messages to wait, and a --rate and --seconds of those that are due",
        ),
        (work is Work.DELAYED and options.durability is Level.EPHEMERAL, "delayed: ephemeral messages cannot wait"),
        (options.web and work not in OVER_WEB, "--web is for `pubsub`, `fanout`, `many`, `latency` and `idle`"),
        (options.web and options.url is not None, "--web starts a server of its own, so no --url"),
        (options.archived and work is not Work.REPLAY, "--archived is for `replay`"),
        (options.embedded and work is not Work.CLIENT, "--embedded is for `client`"),
        (options.embedded and options.url is not None, "--embedded has no server, so no --url"),
        (
            not (options.pattern or options.owned) and options.channels > FILTERS_MAX * options.audiences,
            f"--channels: more than {FILTERS_MAX} for one subscription: take --pattern",
        ),
    )
    return next((text for wrong, text in checks if wrong), None)
