"""JOBS and ACK as the protocol's specification draws them, built and read in plain Python."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from tests.reference.frames import Record, build_record

if TYPE_CHECKING:
    from collections.abc import Sequence

JOBS_HEADER = struct.Struct("<IIQQQ")
JOB_HEADER = struct.Struct("<IIQQQHBBI")
ACK_HEADER = struct.Struct("<IIQ")
ACK_ENTRY = struct.Struct("<QIB3xQ")
REDELIVERED, NAME = 1, 2


class Told(NamedTuple):
    """A job as a frame brings it; `name` when it is told."""

    name: bytes | None
    channel: int
    epoch: int
    sequence: int
    record: Record
    time_us: int = 0
    attempt: int = 1
    redelivered: bool = False


def build_job(job: Told) -> bytes:
    """Return the bytes of one job."""
    record, name = build_record(job.record), job.name or b""
    flags = (REDELIVERED if job.redelivered else 0) | (NAME if job.name is not None else 0)
    size = JOB_HEADER.size + len(name) + len(record)
    header = JOB_HEADER.pack(size, job.channel, job.epoch, job.sequence, job.time_us, job.attempt, flags, len(name), 0)
    return header + name + record


def build_jobs(subscription: int, first_lease: int, lease_ms: int, jobs: Sequence[Told]) -> bytes:
    """Return the body of JOBS."""
    header = JOBS_HEADER.pack(subscription, len(jobs), first_lease, lease_ms, 0)
    return header + b"".join(map(build_job, jobs))


def parse_ack(body: bytes) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """Return what an ACK says: subscription, number, and (first lease, leases, verb, ms) of each entry."""
    subscription, count, number = ACK_HEADER.unpack_from(body)
    assert len(body) == ACK_HEADER.size + count * ACK_ENTRY.size
    return subscription, number, list(ACK_ENTRY.iter_unpack(body[ACK_HEADER.size :]))
