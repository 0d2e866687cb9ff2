"""The ids of a channel's newest records in plain Python: the twin of `broker_native.ids`."""

from __future__ import annotations

from typing import NamedTuple


class Kept(NamedTuple):
    """A record whose id is remembered."""

    id: bytes
    sequence: int
    time_s: int


class Ids:
    """A list, oldest first."""

    def __init__(self) -> None:
        self.kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self.kept)

    def find(self, id: bytes) -> int:
        return next((kept.sequence for kept in reversed(self.kept) if kept.id == id), 0)

    def add(self, id: bytes, sequence: int, time_s: int) -> None:
        self.kept.append(Kept(id, sequence, time_s))

    def take_back(self, count: int) -> None:
        del self.kept[len(self.kept) - count :]

    def expire(self, since_s: int, first: int) -> None:
        while self.kept and (self.kept[0].time_s < since_s or self.kept[0].sequence < first):
            del self.kept[0]
