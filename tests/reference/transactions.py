"""The twin of `broker_native.transactions`: publishes under a condition and transactions, decided in plain Python."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.reference.frames import FRAME_HEADER, PUBLISH, PUBLISH_HEADER
from tests.reference.tails import (
    COMMIT_UNKNOWN,
    DUPLICATE,
    EARLY,
    INVALID_CHANNEL,
    INVALID_RECORD,
    LEVEL_EPHEMERAL,
    LIMIT,
    NUMBER_GAP,
    NUMBER_OVERLAP,
    Refused,
    split_records,
)

if TYPE_CHECKING:
    from tests.reference.tails import Channel, Publisher

TURN_OPEN, HAS_ACKS = 2, 3
MALFORMED_FRAME, CONFLICT, NOT_STORED, TRANSACTION_TOO_LARGE = 3001, 3024, 3025, 3033
APPLIED, OPEN, IN_COMMIT = 0, 1, 2
EXPECT = 1

Decided = tuple[int, int, int, int, int, int, int]


@dataclass
class One:
    """One PUBLISH of a frame."""

    slot: int
    count: int
    number: int
    expect: tuple[int, int] | None
    data: bytes


@dataclass
class Verdict:
    """What a decision comes to; `index` is the publish that is looked at."""

    number: int = 0
    count: int = 0
    index: int = 0
    rests_on: int = APPLIED
    head: tuple[int, int] = (0, 0)

    def told(self, code: int) -> Decided:
        return code, self.number, self.count, self.index, self.rests_on, *self.head


def read_one(body: bytes, *, expects: bool) -> One:
    """Take a PUBLISH body apart.

    Raises:
        Refused: its fixed part is not there.
    """
    fixed = PUBLISH_HEADER.size + 16 * expects
    if len(body) < fixed:
        raise Refused(MALFORMED_FRAME)
    slot, count, number = PUBLISH_HEADER.unpack_from(body)
    expect = struct.unpack_from("<QQ", body, PUBLISH_HEADER.size) if expects else None
    return One(slot, count, number, expect, body[fixed:])


def read_all(body: bytes) -> list[One]:
    """Take a TRANSACTION body apart.

    Raises:
        Refused: it is not whole frames in a row, or has acks.
    """
    if len(body) < 8:
        raise Refused(MALFORMED_FRAME)
    publishes, acks = struct.unpack_from("<II", body)
    if acks:
        raise Refused(HAS_ACKS)
    found: list[One] = []
    at = 8
    while at < len(body):
        if len(body) - at < FRAME_HEADER.size:
            raise Refused(MALFORMED_FRAME)
        size, kind, flags, reserved = FRAME_HEADER.unpack_from(body, at)
        end = at + FRAME_HEADER.size + size
        if end > len(body) or kind != PUBLISH or flags not in (0, EXPECT) or reserved:
            raise Refused(MALFORMED_FRAME)
        found.append(read_one(body[at + FRAME_HEADER.size : end], expects=flags == EXPECT))
        at = end
    follow = all(after.number == before.number + before.count for before, after in itertools.pairwise(found))
    if not found or len(found) != publishes or not follow:
        raise Refused(MALFORMED_FRAME)
    return found


def head_of(channel: Channel) -> tuple[int, int]:
    """Return the newest position, pending or not."""
    newest = channel.next - 1
    begun = [epoch for epoch, first in [*channel.epochs, *channel.pending_epochs] if first <= newest]
    return (begun[-1], newest) if newest else (0, 0)


def judge_line(publisher: Publisher, verdict: Verdict, *, stored: bool) -> None:
    line, tails = publisher.line, publisher.tails
    if verdict.number >= line.next and stored and tails.refuse_code:
        raise Refused(COMMIT_UNKNOWN if verdict.number < line.closed_next else tails.refuse_code)
    if verdict.number == 0 or verdict.number > line.next:
        raise Refused(NUMBER_GAP)
    if verdict.number < line.next:
        raise Refused(NUMBER_OVERLAP if verdict.number + verdict.count > line.next else DUPLICATE)


def judge(publisher: Publisher, ones: list[One], verdict: Verdict) -> None:
    """Look at the channels and records of all publishes, then at what they expect."""
    channels = [publisher.slots[one.slot] for one in ones]
    for verdict.index, (one, channel) in enumerate(zip(ones, channels, strict=True)):
        assert channel is not None
        if channel.level == LEVEL_EPHEMERAL:
            raise Refused(NOT_STORED)
        if channel.refused:
            raise Refused(LIMIT)
        split_records(one.data, one.count, channel.payload_bytes_max, publisher.headers_bytes_max)
    for verdict.index, (one, channel) in enumerate(zip(ones, channels, strict=True)):
        assert channel is not None
        if one.expect is None:
            continue
        verdict.head = head_of(channel)
        if one.expect != verdict.head:
            if channel.next > channel.closed_next:
                verdict.rests_on = OPEN
            elif channel.next > channel.applied_next:
                verdict.rests_on = IN_COMMIT
            raise Refused(CONFLICT)
    verdict.index = 0


def find_channels(publisher: Publisher, ones: list[One], verdict: Verdict) -> None:
    for verdict.index, one in enumerate(ones):
        if publisher.slots.get(one.slot) is None:
            raise Refused(INVALID_CHANNEL)
        if not 1 <= one.count <= 65535:
            raise Refused(INVALID_RECORD)
    verdict.index = 0


def take(publisher: Publisher, ones: list[One]) -> None:
    """Give all of it its place; nothing of it can be refused any more."""
    for one in ones:
        body = PUBLISH_HEADER.pack(one.slot, one.count, one.number) + one.data
        assert publisher.publish_frame(body) == 0


def decide_expecting(publisher: Publisher, body: bytes) -> Decided:
    verdict = Verdict()
    try:
        one = read_one(body, expects=True)
        verdict.number, verdict.count = one.number, one.count
        find_channels(publisher, [one], verdict)
        channel = publisher.slots[one.slot]
        assert channel is not None
        judge_line(publisher, verdict, stored=channel.level != LEVEL_EPHEMERAL)
        judge(publisher, [one], verdict)
        take(publisher, [one])
    except Refused as refused:
        return verdict.told(refused.code)
    return verdict.told(0)


def decide_transaction(publisher: Publisher, body: bytes, bytes_max: int) -> Decided:
    verdict, tails = Verdict(), publisher.tails
    try:
        ones = read_all(body)
        verdict.number, verdict.count = ones[0].number, sum(one.count for one in ones)
        find_channels(publisher, ones, verdict)
        judge_line(publisher, verdict, stored=True)
        if len(body) > bytes_max:
            raise Refused(TRANSACTION_TOO_LARGE)
        judge(publisher, ones, verdict)
        if any(channel.chunk_class == EARLY for one in ones if (channel := publisher.slots[one.slot]) is not None):
            raise Refused(TURN_OPEN)
    except Refused as refused:
        return verdict.told(refused.code)
    waits, tails.accepted_waits = tails.accepted_waits, True
    take(publisher, ones)
    tails.accepted_waits = waits
    return verdict.told(0)
