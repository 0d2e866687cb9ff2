"""The members of one consumer in turn, plainly: the twin of `broker_native.members`.

Jobs are the twin of the native ones. What a member is sent is kept as whole frames, answers apart from the rest.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

from tests.reference.frames import build_frame

if TYPE_CHECKING:
    from tests.native.plain_jobs import PlainJobs

__all__ = ["PlainMember", "PlainRotation"]

ACKED = 22


class PlainMember:
    """Who takes jobs."""

    def __init__(self, number: int, window: int, bytes_max: int) -> None:
        self.number = number
        self.window = window
        self.bytes_max = bytes_max
        self.acks = self.told = self.owed = 0
        self.gone = False
        self.answers: list[bytes] = []
        self.ordered: list[bytes] = []

    def tell(self) -> None:
        if self.owed:
            self.answers.append(build_frame(ACKED, struct.pack("<IIQ", 1, 0, self.owed)))
            self.owed = 0

    def take_sent(self) -> bytes:
        """Return what leaves now: answers go ahead."""
        sent = b"".join(self.answers + self.ordered)
        self.answers, self.ordered = [], []
        return sent


class PlainRotation:
    """A consumer's members in turn."""

    def __init__(self, jobs: PlainJobs) -> None:
        self.jobs = jobs
        self.turns: deque[PlainMember] = deque()
        self.said: dict[PlainMember, None] = {}

    def wait(self, member: PlainMember) -> None:
        if member not in self.turns:
            self.turns.append(member)

    def note_said(self, member: PlainMember) -> None:
        self.said[member] = None
        self.wait(member)

    def leave(self, member: PlainMember) -> None:
        member.tell()
        member.gone = True
        if member in self.turns:
            self.turns.remove(member)

    def has_room(self, member: PlainMember) -> bool:
        count, size = self.jobs.under_way(member.number)
        return not self.jobs.is_leaving(member.number) and count < member.window and size < member.bytes_max

    def give(self, now_us: int) -> int:
        """Give out what is ready; answers how many frames that were."""
        served = 0
        while self.turns and self.jobs.ready:
            share = -(-self.jobs.ready // len(self.turns))
            before = served
            for _ in range(len(self.turns)):
                member = self.turns.popleft()
                frame = self.jobs.grant(member.number, now_us, share)
                if frame:
                    served += 1
                    member.tell()
                    member.ordered.append(frame)
                if self.has_room(member):
                    self.turns.append(member)
                    if not frame or not self.jobs.ready:
                        break
            if served == before:
                break
        return served

    def take_said(self) -> list[tuple[PlainMember, int]]:
        said = [(member, member.acks) for member in self.said if not member.gone]
        self.said.clear()
        return said

    def confirm(self, said: list[tuple[PlainMember, int]]) -> list[PlainMember]:
        later = []
        for member, number in said:
            if member.gone:
                continue
            member.told = member.owed = number
            if self.jobs.ready and self.jobs.under_way(member.number)[0]:
                later.append(member)
            else:
                member.tell()
        return later
