"""The numbers of specification.md as Python ints, for code that is not on the hot path.

`ext/broker_native/layout.pxd` says the same numbers to native code. tests/unit/wire compares the three.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

VERSION: Final = 1
HELLO_MAGIC: Final = b"BROKER\0\1"

FRAME_HEADER_BYTES: Final = 8
HELLO_BYTES_MAX: Final = 16 * KIB
FRAME_BYTES_BEFORE_WELCOME_MAX: Final = 64 * KIB
FRAME_BYTES_MAX: Final = 64 * MIB + (64 * KIB - 1) + 64 * KIB
"""Body of any frame: the largest payload and headers that a server can be given as limits, and what stands beside."""

PRODUCER_BYTES: Final = 16
JOURNAL_BYTES: Final = 16
LINE_WINDOW: Final = 1024
"""Numbers of a producer's line whose positions the server still knows: a retry within them is answered exactly."""

PUBLISH_HEADER_BYTES: Final = 16
PUBLISH_COUNT_MAX: Final = 65535
PUBLISH_EXPECT_BYTES: Final = 16
TRANSACTION_HEADER_BYTES: Final = 8
PUBLISHED_ENTRY_BYTES: Final = 40
DELIVER_HEADER_BYTES: Final = 16
CREDIT_BYTES: Final = 16
ACK_HEADER_BYTES: Final = 16
ACK_ENTRY_BYTES: Final = 24
JOBS_HEADER_BYTES: Final = 32
JOB_HEADER_BYTES: Final = 40
JOBS_BYTES_MAX: Final = 256 * KIB
ACKED_BYTES: Final = 16
RECORD_HEADER_BYTES: Final = 12
CHUNK_HEADER_BYTES: Final = 56
CHUNK_BYTES_CLOSE: Final = 64 * KIB
GONE_RECORD_BYTES: Final = 20

HELLO_SECONDS_MAX: Final = 2.0
PING_AFTER_SECONDS: Final = 15.0
SILENCE_SECONDS_MAX: Final = 45.0


class Kind(IntEnum):
    """What a frame is: the fifth byte of its header."""

    HELLO = 1
    WELCOME = 2
    ERROR = 3
    PING = 4
    PONG = 5
    GOING_AWAY = 6
    CHANNEL = 7
    SUBSCRIBE = 8
    SUBSCRIBED = 9
    UNSUBSCRIBE = 10
    UNSUBSCRIBED = 11
    EVENT = 12
    REQUEST = 13
    REPLY = 14
    PUBLISH = 16
    PUBLISHED = 17
    DELIVER = 18
    ACK = 19
    CREDIT = 20
    JOBS = 21
    ACKED = 22
    TRANSACTION = 23


class PublishFlag(IntFlag):
    """Flags in the header of a PUBLISH frame."""

    EXPECT = 1
    AT = 2
    ASK = 4
    REPLY = 8


class DeliverFlag(IntFlag):
    """Flags in the header of a DELIVER frame."""

    NAME = 1
    EARLY = 2


class JobFlag(IntFlag):
    """Flags of a job."""

    REDELIVERED = 1
    NAME = 2


class RecordFlag(IntFlag):
    """Which fields a record has between its header and its payload, in the order of their bits."""

    PUBLISHER = 0x0001
    NUMBER = 0x0002
    PRIORITY = 0x0004
    EXPIRY = 0x0008
    KEY = 0x0010
    HEADERS = 0x0020
    ID = 0x0040
    GONE = 0x8000


RECORD_FLAGS_CLIENT: Final = (
    RecordFlag.PRIORITY | RecordFlag.EXPIRY | RecordFlag.KEY | RecordFlag.HEADERS | RecordFlag.ID
)
RECORD_FLAGS_KNOWN: Final = RECORD_FLAGS_CLIENT | RecordFlag.PUBLISHER | RecordFlag.NUMBER | RecordFlag.GONE

PUBLISHED_FLAG_DUPLICATE: Final = 1


class GoneReason(IntEnum):
    """Why a run of sequences holds no messages any more."""

    EXPIRED = 1
    COMPACTED = 2
    REVOKED = 3
    ERASED = 4
    DROPPED = 5
    LOST = 6
    CONFLATED = 7


class Priority(IntEnum):
    """The priority byte of a record; a record without one is NORMAL."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3
