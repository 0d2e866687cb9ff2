"""The acks of a transaction, in plain Python: what `broker_native.membership` must be like."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.native.plain_jobs import PlainJobs

ACK = 19
FRAME_HEADER = struct.Struct("<IBBH")
ACK_HEADER = struct.Struct("<IIQ")


def frames_in(frames: bytes) -> list[bytes] | None:
    """Return the bodies of whole ACK frames in a row; None when it is not these."""
    bodies = []
    while frames:
        if len(frames) < FRAME_HEADER.size:
            return None
        size, kind, flags, reserved = FRAME_HEADER.unpack_from(frames)
        body, frames = frames[FRAME_HEADER.size : FRAME_HEADER.size + size], frames[FRAME_HEADER.size + size :]
        if (kind, flags, reserved) != (ACK, 0, 0) or len(body) != size:
            return None
        bodies.append(body)
    return bodies


def holding(members: Mapping[int, tuple[PlainJobs | None, int]], frames: bytes, count: int) -> list[bytes] | None:
    """Return the bodies of the ACKs, which all hold; None when one does not, or there are not as many."""
    bodies = frames_in(frames)
    if bodies is None or len(bodies) != count:
        return None
    for body in bodies:
        if len(body) < ACK_HEADER.size:
            return None
        subscription, _, number = ACK_HEADER.unpack_from(body)
        jobs, member = members.get(subscription, (None, 0))
        if jobs is None or number:
            return None
        try:
            if jobs.refusal(member, body) is not None:
                return None
        except (ValueError, KeyError):
            return None
    return bodies


def take(members: Mapping[int, tuple[PlainJobs | None, int]], bodies: list[bytes]) -> None:
    """Take ACKs that hold."""
    for body in bodies:
        jobs, member = members[ACK_HEADER.unpack_from(body)[0]]
        assert jobs is not None
        jobs.settle(member, body, 0)
