"""Durable consumers and work queues: what is set of one, what is told of it, and what a member says of its jobs.

Values that the wire packs and the node carries out. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.model.errors import BrokerError, error
from broker.model.names import check_channel, check_pattern, display, matches

if TYPE_CHECKING:
    from broker.model.positions import BusPosition

__all__ = [
    "BACK_OFF",
    "CONSUMERS_PAGE_MAX",
    "CONSUMER_NAME_BYTES_MAX",
    "DELAY_MS_MAX",
    "JOBS_PAGE_MAX",
    "MODE_EXCLUSIVE",
    "MODE_SHARED",
    "Consume",
    "ConsumerInfo",
    "ConsumerSettings",
    "ConsumerStart",
    "ConsumersPart",
    "DoneRun",
    "Settle",
    "Verdict",
    "WaitingJob",
    "check_consumer",
    "check_settings",
]

MODE_EXCLUSIVE: Final = "exclusive"
"""One holder at a time, in order; who comes later takes over."""
MODE_SHARED: Final = "shared"
"""A work queue: each message goes to one of many members."""

CONSUMER_NAME_BYTES_MAX: Final = 200
"""A consumer's name is a channel's name of at most so many bytes: what is remembered of it has a channel of its own."""
CONSUMER_FILTERS_MAX: Final = 100
DAY_MS: Final = 24 * 3_600_000
LEASE_MS_MIN: Final = 10
LEASE_MS_MAX: Final = DAY_MS
DELAY_MS_MAX: Final = 366 * DAY_MS
ATTEMPTS_MAX: Final = 65_535
BACK_OFF: Final = (1 << 64) - 1
"""The delay of a nack that leaves it to the consumer's back-off."""
WINDOW_MAX: Final = 65_536
WINDOW_DEFAULT: Final = 256
WINDOW_BYTES_DEFAULT: Final = 1 << 20
CONSUMERS_PAGE_MAX: Final = 100
"""Consumers in one answer."""
JOBS_PAGE_MAX: Final = 1_000
"""Jobs, or runs of them, in one answer or question."""


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """What somebody has set of a consumer.

    Attributes:
        name: Its name.
        filters: The channels and patterns that it reads; they stay as they are for its life, and so does `mode`.
        mode: MODE_EXCLUSIVE or MODE_SHARED.
        lease_ms: How long a member has a job before it is given to another; 0, of an exclusive one only: for ever.
        attempts_max: After so many attempts a job is dead; 0 sets no bound.
        backoff_ms: How long a job waits before its second attempt, and at most before later ones.
        dead_letter: The channel that gets a copy of each job that is dead; None for no copy.
        lanes: Jobs go by their priority.
        by_key: At most one job of a key is under way.
        paused: Nothing is given out.
    """

    name: str
    filters: tuple[str, ...]
    mode: str = MODE_SHARED
    lease_ms: int = 30_000
    attempts_max: int = 0
    backoff_ms: tuple[int, int] = (1_000, 60_000)
    dead_letter: str | None = None
    lanes: bool = False
    by_key: bool = False
    paused: bool = False

    @property
    def exclusive(self) -> bool:
        """Whether it has one holder at a time."""
        return self.mode == MODE_EXCLUSIVE


class ConsumerStart(NamedTuple):
    """Where a consumer begins to read, or is set back to. At most one of these but `new` is given; none: the start.

    Attributes:
        new: With what is published from now on.
        positions: Behind (channel, epoch, sequence) of each; literals that are not listed begin at their start.
        bus: Behind a place of the bus; of consumers with a pattern.
        time_us: With what is not older than this.
        last: So that the last so many of each channel come first; of literals.
    """

    new: bool = False
    positions: tuple[tuple[str, int, int], ...] = ()
    bus: BusPosition | None = None
    time_us: int | None = None
    last: int | None = None


class Consume(NamedTuple):
    """What a SUBSCRIBE asks for that makes its subscription a member of a consumer.

    Attributes:
        name: The consumer's.
        window: Jobs that may be under way to this member.
        bytes_max: And of how many bytes; one job in any case.
    """

    name: str
    window: int = WINDOW_DEFAULT
    bytes_max: int = WINDOW_BYTES_DEFAULT


class ConsumerInfo(NamedTuple):
    """What there is to tell of a consumer.

    Attributes:
        settings: As they are set.
        members: Who takes jobs.
        ready, leased, delayed: Jobs in memory that wait to be given out, are under way, or wait for their time.
        acked, redelivered, dead: Jobs that were done; given out again; and given up, with a copy or without; since the
            consumer was made.
        lag: Messages that are stored and that it has not looked at yet; -1: nobody has counted them.
        bus: Up to where everything is done, of a consumer with a pattern; else None.
        positions: The same of each literal of one without: (channel, epoch, sequence).
        held_channels: How many channels retention keeps past their bounds, since this consumer has not done what would
            go, and no other one is further behind.
        held_bytes: What of them is kept so, about.
    """

    settings: ConsumerSettings
    members: int
    ready: int
    leased: int
    delayed: int
    acked: int
    redelivered: int
    dead: int
    lag: int
    bus: BusPosition | None
    positions: tuple[tuple[str, int, int], ...]
    held_channels: int = 0
    held_bytes: int = 0


class ConsumersPart(NamedTuple):
    """A part of the consumers in the order of their names; `more`: there are others behind it."""

    consumers: tuple[ConsumerInfo, ...]
    more: bool


class WaitingJob(NamedTuple):
    """A job that is not done.

    Attributes:
        channel, epoch, sequence: Whose it is.
        attempt: How often it was given out.
        due_us: When it may be given out again, or when its lease ends; 0: it is ready.
        member: Number of the member that has it; 0: nobody.
    """

    channel: str
    epoch: int
    sequence: int
    attempt: int
    due_us: int
    member: int


class DoneRun(NamedTuple):
    """Consecutive messages of a channel that somebody has worked off."""

    channel: str
    epoch: int
    first: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a run


class Verdict(IntEnum):
    """What a member says of a job."""

    ACK = 1
    """It is done."""
    NACK = 2
    """It failed: give it out again, later."""
    REJECT = 3
    """It will never succeed."""
    EXTEND = 4
    """It takes longer."""
    ACK_THROUGH = 5
    """It is done, and so is everything that this subscription was given before it."""
    RELEASE = 6
    """It was not begun, and is no attempt: give it to others. The member is about to leave, and gets nothing more."""


class Settle(NamedTuple):
    """What an ACK says of consecutive leases.

    Attributes:
        first, leases: Which.
        verdict: What.
        ms: NACK: how long to wait, BACK_OFF for what is set; EXTEND: how long it may take from now, 0 for what is set.
    """

    first: int
    leases: int
    verdict: Verdict
    ms: int = 0


def check_consumer(name: str | bytes) -> bytes:
    """Return a consumer's name as bytes if it is one.

    Raises:
        RequestError: INVALID_CONSUMER.
    """
    try:
        checked = check_channel(name)
    except BrokerError as refusal:
        raise _invalid(f"name: {refusal.detail}") from None
    if len(checked) > CONSUMER_NAME_BYTES_MAX:
        raise _invalid(f"name {display(checked)}: got {len(checked)} bytes, limit {CONSUMER_NAME_BYTES_MAX} bytes")
    return checked


def check_settings(settings: ConsumerSettings) -> None:
    """Return if a consumer can be as it is asked for.

    Raises:
        RequestError: INVALID_CONSUMER; INVALID_PATTERN, INVALID_CHANNEL.
    """
    check_consumer(settings.name)
    if not 1 <= len(settings.filters) <= CONSUMER_FILTERS_MAX:
        raise _invalid(f"filters: got {len(settings.filters)}, expected 1 to {CONSUMER_FILTERS_MAX}")
    filters = [check_pattern(each) for each in settings.filters]
    if settings.mode not in (MODE_EXCLUSIVE, MODE_SHARED):
        raise _invalid(f"mode: got {settings.mode!r:.40}, expected {MODE_EXCLUSIVE!r} or {MODE_SHARED!r}")
    lowest = 0 if settings.exclusive else LEASE_MS_MIN
    if (settings.lease_ms and not LEASE_MS_MIN <= settings.lease_ms <= LEASE_MS_MAX) or settings.lease_ms < lowest:
        none = "0 or " if settings.exclusive else ""
        raise _invalid(
            f"lease_ms: got {settings.lease_ms} ms, expected {none}{LEASE_MS_MIN} to {LEASE_MS_MAX} ms",
            "A job that takes longer is extended while it runs.",
        )
    if not 0 <= settings.attempts_max <= ATTEMPTS_MAX:
        raise _invalid(f"attempts_max: got {settings.attempts_max} attempts, expected 0 to {ATTEMPTS_MAX}")
    first, longest = settings.backoff_ms
    if not 0 <= first <= longest <= DELAY_MS_MAX:
        raise _invalid(
            f"backoff_ms: got {first} and {longest} ms, expected the first up to the longest, 0 to {DELAY_MS_MAX} ms"
        )
    if settings.exclusive and (settings.lanes or settings.by_key):
        raise _invalid(
            f"lanes, by_key: got true with mode {MODE_EXCLUSIVE!r}, expected false: its one holder gets all in order",
            f"Choose mode {MODE_SHARED!r}.",
        )
    if settings.dead_letter is not None:
        _check_dead_letter(check_channel(settings.dead_letter), filters)


def _check_dead_letter(channel: bytes, filters: list[bytes]) -> None:
    """Refuse a consumer that would read its own dead letters."""
    for each in filters:
        if matches(each, channel):
            raise _invalid(
                f"dead_letter {display(channel)}: the filter {display(each)} reads it: dead jobs would come again",
                "Choose a channel that none of the filters reads.",
            )


def _invalid(detail: str, hint: str | None = None) -> BrokerError:
    return error("INVALID_CONSUMER", f"consumer: {detail}", hint)
