"""What consumers hold back of what retention would take: which channels, since where, and how much of them that is.

A channel is held while a consumer that reads it has not done all that retention has proposed to take. The proposal is
kept here and tried again, since the walk that made it has passed on; until then the walk's stored cursor stays where it
was before, so that a restart finds the proposal anew. What is held has a bound a channel; past it the channel's
publishers are refused: retention would else be a promise that the slowest consumer may break for the whole disk.

Bytes are an estimate, by the mean size of what the archive has of the channel. No I/O; the loop's thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from broker.events import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from broker.log.retention import ChannelState

__all__ = ["HELD_MAX", "Holding", "Holds"]

HELD_MAX = 65_536
"""Channels that are kept in mind; when there are more, retention goes no further until some are released."""


class Holding(NamedTuple):
    """Who holds a channel.

    Attributes:
        stays: The oldest sequence that it has not done.
        consumer: Its name; of several that of the one that is furthest behind.
    """

    stays: int
    consumer: str


@dataclass(slots=True)
class _Held:
    """A channel that is held.

    Attributes:
        first: What retention has proposed: the oldest sequence that would stay.
        consumer: Who holds it.
        channel: The stored channel's id.
        held_bytes: What is held of it, about.
        full: It is more than may be.
        cursors: Where the walks were before the proposal was made.
    """

    first: int
    consumer: str
    channel: int
    held_bytes: int
    full: bool
    cursors: Mapping[bytes, int]


class Holds:
    """The channels that are held.

    Args:
        refuse: Has a channel's publishers refused, or taken again.

    Attributes:
        by_consumer: How many channels each consumer holds, and how many bytes of them; of those that hold any.
    """

    def __init__(self, refuse: Callable[[bytes, bool], None]) -> None:
        self._refuse = refuse
        self._held: dict[bytes, _Held] = {}
        self._told = False
        self.by_consumer: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """What is held of all of them together, about."""
        return sum(held.held_bytes for held in self._held.values())

    @property
    def full(self) -> int:
        """How many channels take nothing from publishers."""
        return sum(held.full for held in self._held.values())

    def next(self, count: int) -> dict[bytes, int]:
        """Return proposals that are to be tried again, at most so many: in turn, those not tried for longest."""
        names = [name for name, _ in zip(self._held, range(count), strict=False)]
        for name in names:
            self._held[name] = self._held.pop(name)
        return {name: self._held[name].first for name in names}

    def ids(self, names: Iterable[bytes]) -> list[int]:
        """Return the ids of channels, of those that are held; ascending."""
        return sorted(self._held[name].channel for name in names if name in self._held)

    def hold(self, name: bytes, first: int, holding: Holding, channel: int, cursors: Mapping[bytes, int]) -> bool:
        """Note that a channel is held.

        Args:
            name: The channel.
            first: What is proposed.
            holding: Who holds it.
            channel: Its id.
            cursors: Where the walks were before that was proposed.

        Returns:
            Whether there is room to note it.
        """
        held = self._held.get(name)
        if held is not None:
            held.first, held.consumer, held.channel = max(held.first, first), holding.consumer, channel
            return True
        if len(self._held) >= HELD_MAX:
            return False
        self._held[name] = _Held(first, holding.consumer, channel, 0, full=False, cursors=cursors)
        return True

    def measure(self, name: bytes, stays: int, state: ChannelState | None, bytes_max: int) -> None:
        """Hold a channel that is held against its bound.

        Args:
            name: The channel.
            stays: Its first sequence when all is taken that is not held.
            state: What the archive has of it; None when nobody has looked, and it is as before.
            bytes_max: How much of it may be held.
        """
        held = self._held[name]
        if state is None:
            return
        held.held_bytes = state.bytes * max(held.first - max(stays, state.first), 0) // max(state.next - state.first, 1)
        full = held.held_bytes > bytes_max
        if full and not held.full:
            emit(
                "hold_full",
                channel=name.decode(),
                consumer=held.consumer,
                held_bytes=held.held_bytes,
                limit_bytes=bytes_max,
            )
        held.full = full
        # A failed commit, or a removal that was undone, may have forgotten it.
        self._refuse(name, full)

    def release(self, name: bytes) -> None:
        """A channel is not held, or there is none any more."""
        held = self._held.pop(name, None)
        if held is not None and held.full:
            self._refuse(name, False)

    def clear(self) -> None:
        """Forget all of it: under other policies it is found anew."""
        for name in list(self._held):
            self.release(name)
        self.settle()

    def settle(self) -> None:
        """Sum up, and say so when retention begins to be held, or is not any more."""
        found: dict[str, tuple[int, int]] = {}
        for held in self._held.values():
            channels, size = found.get(held.consumer, (0, 0))
            found[held.consumer] = channels + 1, size + held.held_bytes
        self.by_consumer = found
        if bool(found) is not self._told:
            self._told = bool(found)
            if found:
                consumer = max(found, key=lambda name: found[name])
                emit("retention_held", channels=len(self._held), held_bytes=self.held_bytes, consumer=consumer)
            else:
                emit("retention_released")

    def safe(self, cursors: Mapping[bytes, int]) -> dict[bytes, int]:
        """Return how far cursors may be stored: behind nothing that is held; one that must stay is left out."""
        marks = {id(held.cursors): held.cursors for held in self._held.values()}.values()
        return {
            name: min(at, *(mark[name] for mark in marks)) if marks else at
            for name, at in cursors.items()
            if all(name in mark for mark in marks)
        }
