"""The bounds of a broker, in one frozen value that every layer is given.

Everything that a peer can make grow has a bound here and a named answer when it is reached. WELCOME states some of
them as they are at that moment. After a reload a connection keeps the sizes of frames and of headers that it began
with; every other bound is the new one for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from broker.model.settings import GIB, KIB, MIB, check_settings, invalid, setting

FRAME_OVERHEAD_BYTES = 64 * KIB
"""What a frame may hold besides one largest record: prefixes, names, and a chunk of smaller records."""

FRAME_HEADER_BYTES = 8
"""What stands before the body of each frame."""

DAY_S = 24 * 3_600

DESCRIPTORS_RESERVED = 128
"""Open files kept for listeners, the journal's segments and the process itself when connections are bounded."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a broker.

    Raises:
        ConfigError: INVALID_CONFIG; a value is out of its range, or two contradict each other.
    """

    SECTION: ClassVar[str] = "limits"

    payload_bytes_max: int = field(
        default=1 * MIB,
        metadata=setting(
            "Largest payload of one message; more is answered PAYLOAD_TOO_LARGE.",
            unit="bytes",
            low=1,
            high=64 * MIB,
            reloadable=True,
        ),
    )
    headers_bytes_max: int = field(
        default=16 * KIB,
        metadata=setting(
            "Largest packed headers of one message; more is answered HEADERS_TOO_LARGE.",
            unit="bytes",
            low=0,
            high=64 * KIB - 1,
            reloadable=True,
        ),
    )
    channels_max: int = field(
        default=1_000_000,
        metadata=setting(
            "Channels of the whole broker; one more is answered TOO_MANY_CHANNELS.",
            unit="channels",
            low=1,
            high=(1 << 32) - 1,
            reloadable=True,
        ),
    )
    channels_per_connection_max: int = field(
        default=65_536,
        metadata=setting(
            "Channels that one connection may name for publishing; one more is answered TOO_MANY_CHANNELS.",
            unit="channels",
            low=1,
            high=1 << 24,
            reloadable=True,
        ),
    )
    subscriptions_per_connection_max: int = field(
        default=4_096,
        metadata=setting(
            "Subscriptions of one connection; one more is answered TOO_MANY_SUBSCRIPTIONS.",
            unit="subscriptions",
            low=1,
            high=1 << 20,
            reloadable=True,
        ),
    )
    filters_per_subscription_max: int = field(
        default=1_000,
        metadata=setting(
            "Channels and patterns of one subscription; more is answered TOO_MANY_SUBSCRIPTIONS.",
            unit="filters",
            low=1,
            high=1_000,  # a control map has at most 1,024 items
            reloadable=True,
        ),
    )
    filters_per_connection_max: int = field(
        default=32_768,
        metadata=setting(
            "Channels and patterns of all subscriptions of one connection; more is answered TOO_MANY_SUBSCRIPTIONS. "
            "Each costs up to 1 KiB of memory.",
            unit="filters",
            low=1,
            high=1 << 24,
            reloadable=True,
        ),
    )
    pattern_tokens_max: int = field(
        default=12,
        metadata=setting(
            "Tokens of a pattern that has a `*`; more is answered INVALID_PATTERN. Patterns with a `*` here and there "
            "can match one name in 2 to this power of ways, and to find them all takes as long.",
            unit="tokens",
            low=1,
            high=128,
            reloadable=True,
        ),
    )
    producers_max: int = field(
        default=100_000,
        metadata=setting(
            "Producers whose numbers the broker remembers; one more is answered LIMIT, known ones go on. Each costs "
            "about 600 bytes of memory, and up to 20 KiB if it changes the channel with every message.",
            unit="producers",
            low=1,
            high=(1 << 32) - 1,
            reloadable=True,
        ),
    )
    consumers_max: int = field(
        default=10_000,
        metadata=setting(
            "Durable consumers and work queues of the whole broker; one more is answered LIMIT.",
            unit="consumers",
            low=0,
            high=1 << 20,
            reloadable=True,
        ),
    )
    members_per_consumer_max: int = field(
        default=4_096,
        metadata=setting(
            "Members of one work queue; one more is answered LIMIT.",
            unit="members",
            low=1,
            high=1 << 20,
            reloadable=True,
        ),
    )
    connections_max: int = field(
        default=0,
        metadata=setting(
            "Connections of all listeners; one more is answered TOO_MANY_CONNECTIONS. 0 takes what the limit of open "
            "files leaves.",
            unit="connections",
            low=0,
            high=1 << 20,
            reloadable=True,
        ),
    )
    hello_timeout_s: float = field(
        default=2.0,
        metadata=setting(
            "How long a new connection may take to send HELLO before it is closed.",
            unit="seconds",
            low=0.05,
            high=60,
            reloadable=True,
        ),
    )
    ping_interval_s: float = field(
        default=15.0,
        metadata=setting(
            "Silence after which a connection is pinged.",
            unit="seconds",
            low=0.05,
            high=3_600,
            reloadable=True,
        ),
    )
    ping_timeout_s: float = field(
        default=45.0,
        metadata=setting(
            "Silence after which a connection is closed with PING_TIMEOUT; longer than ping_interval_s.",
            unit="seconds",
            low=0.1,
            high=10_800,
            reloadable=True,
        ),
    )
    subscription_bytes_max: int = field(
        default=256 * KIB,
        metadata=setting(
            "What may wait for one subscription beyond its credit before it has to read on from the log.",
            unit="bytes",
            low=0,
            high=1 * GIB,
            reloadable=True,
        ),
    )
    connection_bytes_max: int = field(
        default=16 * MIB,
        metadata=setting(
            "What may wait to be sent on one connection before its subscriptions have to read on from the log; at "
            "least one largest frame. Answers alone that reach it end the connection with SLOW_CONSUMER.",
            unit="bytes",
            low=64 * KIB,
            high=4 * GIB,
            reloadable=True,
        ),
    )
    memory_bytes_max: int = field(
        default=1 * GIB,
        metadata=setting(
            "What all queues may hold together: what waits to be sent, has arrived in part, is pending, or is kept to "
            "be read again. From 80 % on publishers are not read, from 95 % on PUBLISH is answered BUSY.",
            unit="bytes",
            low=16 * MIB,
            high=1 << 44,
            reloadable=True,
        ),
    )
    ids_bytes_max: int = field(
        default=256 * MIB,
        metadata=setting(
            "What remembered message ids may take of memory_bytes_max, of which they never take more than a quarter. "
            "Beyond it those of other channels are given up, and read back when they are needed; when none can be, a "
            "PUBLISH with ids is answered LIMIT.",
            unit="bytes",
            low=1 * MIB,
            high=1 << 40,
            reloadable=True,
        ),
    )
    partial_bytes_max: int = field(
        default=32 * MIB,
        metadata=setting(
            "What may be kept of frames that have not arrived whole, of all connections together, and the same again "
            "of frames that wait for their turn; at least one largest frame. Beyond it the connection whose frame "
            "began first is ended with LIMIT.",
            unit="bytes",
            low=64 * KIB,
            high=4 * GIB,
            reloadable=True,
        ),
    )
    early_partial_bytes_max: int = field(
        default=4 * MIB,
        metadata=setting(
            "What may be kept of HELLO frames that have not arrived whole, of all connections together; beyond it the "
            "connection that began first is ended with LIMIT.",
            unit="bytes",
            low=32 * KIB,
            high=1 * GIB,
            reloadable=True,
        ),
    )
    group_bytes_max: int = field(
        default=2 * MIB,
        metadata=setting(
            "Size at which a group closes; a record that is larger still is a group of its own.",
            unit="bytes",
            low=64 * KIB,
            high=64 * MIB,
            reloadable=True,
        ),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.ping_timeout_s <= self.ping_interval_s:
            raise invalid(
                "limits.ping_timeout_s",
                f"got {self.ping_timeout_s} seconds, expected more than limits.ping_interval_s, "
                f"{self.ping_interval_s} seconds",
            )
        if self.connection_bytes_max < self.frame_bytes_max:
            raise invalid(
                "limits.connection_bytes_max",
                f"got {self.connection_bytes_max} bytes, expected room for the largest frame, "
                f"{self.frame_bytes_max} bytes (payload_bytes_max + headers_bytes_max + {FRAME_OVERHEAD_BYTES})",
            )

        if self.partial_bytes_max < FRAME_HEADER_BYTES + self.frame_bytes_max:
            raise invalid(
                "limits.partial_bytes_max",
                f"got {self.partial_bytes_max} bytes, expected room for the largest frame and its header, "
                f"{FRAME_HEADER_BYTES + self.frame_bytes_max} bytes",
            )

    delay_s_max: int = field(
        default=366 * DAY_S,
        metadata=setting(
            "How far away the time of a message may be that is published later; more is answered INVALID_TIME.",
            unit="seconds",
            low=1,
            high=366 * DAY_S,  # what the timing wheel reaches is a little more
            reloadable=True,
        ),
    )

    connects_per_s: int = field(
        default=0,
        metadata=setting(
            "Connections that one address may make in a second; more is answered TOO_MANY_CONNECTIONS. 0 sets no "
            "bound.",
            unit="connections per second",
            low=0,
            high=1_000_000_000,
            reloadable=True,
        ),
    )
    failed_sign_ins_per_s: int = field(
        default=5,
        metadata=setting(
            "Tokens that are no good that one address may come with in a second; then all of its tokens are "
            "answered RATE_LIMITED for a while. 0 sets no bound.",
            unit="tokens per second",
            low=0,
            high=1_000_000_000,
            reloadable=True,
        ),
    )
    publishes_per_s: int = field(
        default=0,
        metadata=setting(
            "Messages that one user, or one address without users, may publish in a second; more is answered "
            "RATE_LIMITED. 0 sets no bound.",
            unit="messages per second",
            low=0,
            high=1_000_000_000,
            reloadable=True,
        ),
    )
    publish_bytes_per_s: int = field(
        default=0,
        metadata=setting(
            "The same of bytes of publishes, headers and fields included.",
            unit="bytes per second",
            low=0,
            high=1_000_000_000,
            reloadable=True,
        ),
    )
    subscribes_per_s: int = field(
        default=0,
        metadata=setting(
            "Subscriptions that one user, or one address without users, may begin in a second; more is answered "
            "RATE_LIMITED. 0 sets no bound.",
            unit="subscriptions per second",
            low=0,
            high=1_000_000_000,
            reloadable=True,
        ),
    )

    @property
    def frame_bytes_max(self) -> int:
        """Largest body of a frame in bytes: one largest record and what may stand beside it."""
        return self.payload_bytes_max + self.headers_bytes_max + FRAME_OVERHEAD_BYTES

    def connections_bound(self, descriptors_max: int) -> int:
        """Return how many connections may be open at once.

        Args:
            descriptors_max: the process's limit of open files (RLIMIT_NOFILE, soft), from 0.

        Returns:
            `connections_max`, or what the limit of open files leaves if that is less or `connections_max` is 0; at
            least 1.
        """
        left = max(1, descriptors_max - DESCRIPTORS_RESERVED)
        return min(self.connections_max, left) if self.connections_max else left

    @classmethod
    def small(cls) -> Limits:
        """Return limits that a test reaches within a few requests and a fraction of a second."""
        return cls(
            payload_bytes_max=1 * KIB,
            headers_bytes_max=128,
            channels_max=16,
            channels_per_connection_max=8,
            subscriptions_per_connection_max=4,
            filters_per_subscription_max=4,
            filters_per_connection_max=6,
            pattern_tokens_max=4,
            producers_max=4,
            consumers_max=4,
            members_per_consumer_max=4,
            failed_sign_ins_per_s=2,
            connections_max=4,
            hello_timeout_s=0.2,
            ping_interval_s=0.2,
            ping_timeout_s=0.6,
            subscription_bytes_max=4 * KIB,
            connection_bytes_max=128 * KIB,
            memory_bytes_max=16 * MIB,
            ids_bytes_max=1 * MIB,
            partial_bytes_max=128 * KIB,
            early_partial_bytes_max=32 * KIB,
            group_bytes_max=64 * KIB,
            delay_s_max=3_600,
        )
