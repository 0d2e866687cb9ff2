"""Consumers and work queues on the wire (specification.md §18): bodies, questions and answers, packed and taken
apart.

Both ends use these functions. What is of a wrong form is a `MalformedFrame`; whether names and settings can be is
judged by whoever carries it out. No I/O, no state.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from broker.model.consumers import (
    CONSUMERS_PAGE_MAX,
    JOBS_PAGE_MAX,
    ConsumerInfo,
    ConsumerSettings,
    ConsumersPart,
    ConsumerStart,
    DoneRun,
    Settle,
    Verdict,
    WaitingJob,
)
from broker.model.errors import error
from broker.model.positions import BusPosition
from broker.wire import control
from broker.wire.control import (
    U32_MAX,
    U64_MAX,
    decode_bus,
    decode_start,
    frame,
    is_u64,
    take_int,
    take_list,
    take_optional_int,
    take_optional_str,
    take_str,
    wrong,
)
from broker.wire.kinds import (
    ACK_ENTRY_BYTES,
    ACK_HEADER_BYTES,
    ACKED_BYTES,
    JOB_HEADER_BYTES,
    JOBS_HEADER_BYTES,
    JobFlag,
    Kind,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Job",
    "Jobs",
    "decode_ack",
    "decode_acked",
    "decode_consumer_set",
    "decode_consumers_query",
    "decode_done",
    "decode_info",
    "decode_infos",
    "decode_jobs",
    "decode_reset",
    "decode_waiting",
    "encode_ack",
    "encode_acked",
    "pack_consumer_set",
    "pack_consumers_query",
    "pack_done",
    "pack_info",
    "pack_reset",
    "pack_runs",
    "pack_settings",
    "pack_start",
    "pack_waiting",
]

ACK_HEADER: Final = Struct("<IIQ")
ACK_ENTRY: Final = Struct("<QIB3xQ")
ACKED: Final = Struct("<IIQ")
JOBS_HEADER: Final = Struct("<IIQQQ")
JOB: Final = Struct("<IIQQQHBBI")
FRAME_ACKED: Final = Struct("<IBBHIIQ")


# --- ACK, ACKED, JOBS ---------------------------------------------------------------------------------------------


def encode_ack(subscription: int, number: int, entries: Sequence[Settle]) -> bytes:
    """Encode ACK.

    Args:
        subscription: The member's.
        number: 1 for the first ACK of the subscription, one more for each.
        entries: What is said, in order; at least one.
    """
    body = ACK_HEADER.pack(subscription, len(entries), number)
    return frame(Kind.ACK, body + b"".join(ACK_ENTRY.pack(*entry) for entry in entries))


def decode_ack(body: bytes | memoryview) -> tuple[int, int, list[Settle]]:
    """Decode ACK into (subscription, number, what is said).

    Raises:
        MalformedFrame: It is not as drawn.
    """
    size = len(body)
    if size < ACK_HEADER_BYTES or (size - ACK_HEADER_BYTES) % ACK_ENTRY_BYTES:
        raise error("MALFORMED_FRAME", f"ACK: got {size} bytes, expected {ACK_HEADER_BYTES} and entries")
    subscription, count, number = ACK_HEADER.unpack_from(body)
    if count != (size - ACK_HEADER_BYTES) // ACK_ENTRY_BYTES or not count:
        raise error("MALFORMED_FRAME", f"ACK: got count {count}, expected that of its entries, at least 1")
    entries = []
    for at in range(ACK_HEADER_BYTES, size, ACK_ENTRY_BYTES):
        first, leases, verdict, ms = ACK_ENTRY.unpack_from(body, at)
        if not leases or not 1 <= verdict <= len(Verdict) or any(body[at + 13 : at + 16]):
            raise error("MALFORMED_FRAME", f"ACK {number}: an entry is not as drawn")
        entries.append(Settle(first, leases, Verdict(verdict), ms))
    return subscription, number, entries


def encode_acked(subscription: int, number: int) -> bytes:
    """Encode ACKED: what was said up to ACK `number` is committed, but for what was refused."""
    return FRAME_ACKED.pack(ACKED_BYTES, Kind.ACKED, 0, 0, subscription, 0, number)


def decode_acked(body: bytes | memoryview) -> tuple[int, int]:
    """Decode ACKED into (subscription, number).

    Raises:
        MalformedFrame: It is not as drawn.
    """
    if len(body) != ACKED.size:
        raise error("MALFORMED_FRAME", f"ACKED: got {len(body)} bytes, expected {ACKED.size}")
    subscription, reserved, number = ACKED.unpack(body)
    if reserved:
        raise error("MALFORMED_FRAME", "ACKED: its reserved field is not zero")
    return subscription, number


class Job(NamedTuple):
    """A job as JOBS brings it; `name` is there when it is told."""

    lease: int
    channel: int
    name: bytes | None
    epoch: int
    sequence: int
    time_us: int
    attempt: int
    redelivered: bool
    record: bytes


class Jobs(NamedTuple):
    """A JOBS frame."""

    subscription: int
    lease_ms: int
    jobs: tuple[Job, ...]


def decode_jobs(body: bytes | memoryview) -> Jobs:
    """Decode JOBS. What a record holds is not looked at.

    Raises:
        MalformedFrame: It is not as drawn.
    """
    data = bytes(body)
    if len(data) < JOBS_HEADER_BYTES:
        raise error("MALFORMED_FRAME", f"JOBS: got {len(data)} bytes, at least {JOBS_HEADER_BYTES} needed")
    subscription, count, lease, lease_ms, reserved = JOBS_HEADER.unpack_from(data)
    jobs = []
    at = JOBS_HEADER_BYTES
    for index in range(count):
        if reserved or at + JOB_HEADER_BYTES > len(data):
            break
        size, channel, epoch, sequence, time_us, attempt, flags, name_bytes, zero = JOB.unpack_from(data, at)
        begin = at + JOB_HEADER_BYTES + name_bytes
        if zero or flags & ~int(JobFlag.NAME | JobFlag.REDELIVERED) or at + size > len(data) or begin > at + size:
            break
        name = data[at + JOB_HEADER_BYTES : begin] if flags & JobFlag.NAME else None
        redelivered = bool(flags & JobFlag.REDELIVERED)
        record = data[begin : at + size]
        jobs.append(Job(lease + index, channel, name, epoch, sequence, time_us, attempt, redelivered, record))
        at += size
    if len(jobs) != count or not count or at != len(data):
        raise error("MALFORMED_FRAME", f"JOBS of subscription {subscription}: it is not as drawn")
    return Jobs(subscription, lease_ms, tuple(jobs))


# --- Questions ----------------------------------------------------------------------------------------------------


def pack_start(start: ConsumerStart) -> dict[str, object] | None:
    """Return the value of `start`; None for the oldest message there is."""
    if start.new:
        return {"from": "new"}
    if start.positions:
        return {"positions": [list(position) for position in start.positions]}
    if start.bus is not None:
        return {"bus": list(start.bus)}
    if start.time_us is not None:
        return {"time_us": start.time_us}
    return None if start.last is None else {"last": start.last}


def take_start(more: Mapping[str, Any]) -> ConsumerStart:
    if "start" not in more:
        return ConsumerStart()
    match decode_start(more["start"]):
        case control.FromNew():
            return ConsumerStart(new=True)
        case control.FromPositions(positions):
            return ConsumerStart(positions=positions)
        case control.FromBus(journal, group, index):
            return ConsumerStart(bus=BusPosition(journal, group, index))
        case control.FromTime(time_us):
            return ConsumerStart(time_us=time_us)
        case control.FromLast(count):
            return ConsumerStart(last=count)
    return ConsumerStart()


def pack_settings(settings: ConsumerSettings) -> dict[str, object]:
    """Return the settings as they stand in `consumer_set` and in what is told of a consumer."""
    fields: dict[str, object] = {
        "name": settings.name,
        "filters": list(settings.filters),
        "mode": settings.mode,
        "lease_ms": settings.lease_ms,
        "attempts_max": settings.attempts_max,
        "backoff_ms": list(settings.backoff_ms),
        "lanes": settings.lanes,
        "by_key": settings.by_key,
        "paused": settings.paused,
    }
    if settings.dead_letter is not None:
        fields["dead_letter"] = settings.dead_letter
    return fields


def take_bool(more: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = more.get(key, default)
    if not isinstance(value, bool):
        raise wrong(key, "a boolean")
    return value


def take_settings(more: Mapping[str, Any]) -> ConsumerSettings:
    filters = take_list(more, "filters")
    if not all(isinstance(item, str) for item in filters):
        raise wrong("filters", "an array of strings")
    default = ConsumerSettings("", ())
    mode = take_optional_str(more, "mode")
    lease_ms = take_optional_int(more, "lease_ms")
    return ConsumerSettings(
        name=take_str(more, "name"),
        filters=tuple(filters),
        mode=default.mode if mode is None else mode,
        lease_ms=default.lease_ms if lease_ms is None else lease_ms,
        attempts_max=take_optional_int(more, "attempts_max") or 0,
        backoff_ms=take_backoff(more) if "backoff_ms" in more else default.backoff_ms,
        dead_letter=take_optional_str(more, "dead_letter"),
        lanes=take_bool(more, "lanes"),
        by_key=take_bool(more, "by_key"),
        paused=take_bool(more, "paused"),
    )


def take_backoff(more: Mapping[str, Any]) -> tuple[int, int]:
    backoff = take_list(more, "backoff_ms")
    if len(backoff) != 2 or not all(map(is_u64, backoff)):
        raise wrong("backoff_ms", "[first, longest]")
    return backoff[0], backoff[1]


def pack_consumer_set(settings: ConsumerSettings, start: ConsumerStart, *, update: bool = False) -> dict[str, object]:
    """Return the arguments of `consumer_set`."""
    return {**pack_settings(settings), "start": pack_start(start), "update": update or None}


def decode_consumer_set(more: Mapping[str, Any]) -> tuple[ConsumerSettings, ConsumerStart, bool]:
    """Take the arguments of `consumer_set`: the settings, where it begins, and whether one that is there is changed.

    Raises:
        MalformedFrame: One is missing or wrong.
    """
    return take_settings(more), take_start(more), take_bool(more, "update")


def pack_reset(name: str, start: ConsumerStart) -> dict[str, object]:
    """Return the arguments of `consumer_reset`."""
    return {"name": name, "start": pack_start(start)}


def decode_reset(more: Mapping[str, Any]) -> tuple[str, ConsumerStart]:
    """Take the arguments of `consumer_reset`: which consumer, and where it goes on.

    Raises:
        MalformedFrame: One is missing or wrong.
    """
    return take_str(more, "name"), take_start(more)


def pack_consumers_query(prefix: str, after: str, limit: int) -> dict[str, object]:
    """Return the arguments of `consumers`."""
    return {"prefix": prefix, "after": after, "limit": limit}


def decode_consumers_query(more: Mapping[str, Any]) -> tuple[str, str, int]:
    """Take the arguments of `consumers`: prefix, after, and how many.

    Raises:
        MalformedFrame: One is wrong.
    """
    limit = take_int(more, "limit", U32_MAX, smallest=1) if "limit" in more else CONSUMERS_PAGE_MAX
    return (
        take_optional_str(more, "prefix") or "",
        take_optional_str(more, "after") or "",
        min(limit, CONSUMERS_PAGE_MAX),
    )


def take_page(more: Mapping[str, Any]) -> int:
    """Take `limit` of a question for jobs; more than one answer has counts as that."""
    return min(take_int(more, "limit", smallest=1), JOBS_PAGE_MAX) if "limit" in more else JOBS_PAGE_MAX


def pack_done(name: str, runs: Sequence[DoneRun]) -> dict[str, object]:
    """Return the arguments of `consumer_done`."""
    return {"name": name, "done": pack_runs(runs)}


def pack_runs(runs: Sequence[DoneRun]) -> list[list[object]]:
    """Return runs as they stand in `consumer_done` and its answer."""
    return [list(run) for run in runs]


def decode_done(more: Mapping[str, Any], key: str = "done") -> tuple[DoneRun, ...]:
    """Take the runs of `consumer_done`, or of its answer.

    Raises:
        MalformedFrame: They are wrong.
    """
    runs = take_list(more, key)
    if len(runs) > JOBS_PAGE_MAX:
        raise wrong(key, f"an array of at most {JOBS_PAGE_MAX} runs")
    return tuple(decode_run(run, key) for run in runs)


def decode_run(run: object, key: str) -> DoneRun:
    if isinstance(run, list) and len(run) == 4 and isinstance(run[0], str) and all(map(is_u64, run[1:])):
        _, _, first, count = run
        if first and count and first + count - 1 <= U64_MAX:
            return DoneRun(*run)
    raise wrong(key, "an array of [channel, epoch, first, count]")


# --- Answers ------------------------------------------------------------------------------------------------------


def pack_info(info: ConsumerInfo) -> dict[str, object]:
    """Return what a REPLY tells of a consumer."""
    fields = {
        **pack_settings(info.settings),
        "members": info.members,
        "ready": info.ready,
        "leased": info.leased,
        "delayed": info.delayed,
        "acked": info.acked,
        "redelivered": info.redelivered,
        "dead": info.dead,
    }
    if info.lag >= 0:
        fields["lag"] = info.lag
    if info.held_channels:
        fields["held_channels"], fields["held_bytes"] = info.held_channels, info.held_bytes
    if info.bus is not None:
        fields["bus"] = list(info.bus)
    else:
        fields["positions"] = [list(position) for position in info.positions]
    return fields


def decode_info(fields: Mapping[str, Any]) -> ConsumerInfo:
    """Take what a REPLY tells of a consumer.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    lag = take_optional_int(fields, "lag")
    bus = decode_bus(fields["bus"]) if "bus" in fields else None
    positions = control.decode_positions(take_list(fields, "positions")).positions if "positions" in fields else ()
    return ConsumerInfo(
        take_settings(fields),
        take_int(fields, "members"),
        take_int(fields, "ready"),
        take_int(fields, "leased"),
        take_int(fields, "delayed"),
        take_int(fields, "acked"),
        take_int(fields, "redelivered"),
        take_int(fields, "dead"),
        -1 if lag is None else lag,
        None if bus is None else BusPosition(bus.journal, bus.group, bus.index),
        positions,
        take_optional_int(fields, "held_channels") or 0,
        take_optional_int(fields, "held_bytes") or 0,
    )


def decode_infos(fields: Mapping[str, Any]) -> ConsumersPart:
    """Take the answer to `consumers`: those of the page, and whether there are more.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    items = take_list(fields, "consumers")
    if not all(isinstance(item, dict) for item in items):
        raise wrong("consumers", "an array of maps")
    return ConsumersPart(tuple(decode_info(item) for item in items), take_bool(fields, "more"))


def pack_waiting(jobs: Sequence[WaitingJob]) -> list[list[object]]:
    """Return the jobs of the answer to `consumer_peek`."""
    return [list(job) for job in jobs]


def decode_waiting(fields: Mapping[str, Any]) -> tuple[WaitingJob, ...]:
    """Take the answer to `consumer_peek`.

    Raises:
        MalformedFrame: A field is missing or wrong.
    """
    jobs = []
    for item in take_list(fields, "jobs"):
        is_job = isinstance(item, list) and len(item) == len(WaitingJob._fields) and isinstance(item[0], str)
        if not is_job or not all(map(is_u64, item[1:])):
            raise wrong("jobs", "an array of [channel, epoch, sequence, attempt, due_us, member]")
        jobs.append(WaitingJob(*item))
    return tuple(jobs)
