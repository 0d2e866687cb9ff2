"""What the core and the node need of a log and of a clock.

A journal's failures are the errors of `broker.model.errors` with the attribute `handed_over`: whether the group may
have reached the disk. The contract of each method says on which thread it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Container
    from contextlib import AbstractContextManager

    from broker_native.answers import StretchReader


class Applier(Protocol):
    """What committed state is applied to, at start and while running alike."""

    def apply_entries(self, entries: bytes | bytearray | memoryview) -> object:
        """Apply a table delta: a run of entries, borrowed for the call."""

    def apply_group(self, value: bytes) -> object:
        """Apply one committed group, verified, in order."""


class Journal(Protocol):
    """The order in which everything is committed."""

    def append(self, number: int, value: bytes) -> None:
        """Make a group durable; blocks. On the commit thread only.

        Raises:
            StorageError: not stored (`handed_over` False), or nobody knows (`handed_over` True).
        """

    def abandon(self) -> None:
        """After a failed append: leave the active segment and begin a fresh one; blocks. On the commit thread only.

        Raises:
            StorageError: not yet possible; call again.
        """


class ChannelReader(Protocol):
    """Committed records of channels, read back."""

    def read_channel(
        self, channel_id: int, after_sequence: int, bytes_max: int, before_sequence: int = ...
    ) -> list[tuple[int, int, bytes]]:
        """Chunks of a channel that go past a sequence, as (group, index, chunk), at least one if there is one.

        Only those that begin before `before_sequence`, if it is given.
        """

    def read_channel_back(
        self, channel_id: int, before_sequence: int, count: int, bytes_max: int
    ) -> list[tuple[int, int, bytes]]:
        """The newest chunks that begin before a sequence, ascending, back to `count` sequences before it."""

    def sequence_at(self, channel_id: int, first: int, next_sequence: int, time_us: int) -> int:
        """The first sequence from `first` on whose record is of a time or later; `next_sequence` if none is."""


class Reading(ChannelReader, Protocol):
    """What is stored at one instant, for some reads of one thread."""

    @property
    def overtaken(self) -> bool:
        """Whether a failure may only be that something was moved meanwhile: another one finds it."""

    def answer(self, stretches: StretchReader, begin: int, bytes_max: int, now_s: int) -> int:
        """Answer questions from the number `begin` on, in their order, as far as this can be done without Python.

        How many were answered; the one behind them is answered by the other methods.

        Raises:
            StorageError, ValueError: the first of them meets what is damaged.
        """


class Reader(ChannelReader, Protocol):
    """Committed groups, read back. On any thread; each call is bounded and holds nothing after it."""

    def read_groups(
        self, after_group: int, after_index: int, bytes_max: int, wanted: Container[int] | None
    ) -> tuple[list[tuple[int, int, bytes]], tuple[int, int]]:
        """Chunks of the wanted channels after a bus position, and the place up to which it has looked."""

    def time_to_group(self, time_us: int) -> int:
        """Number of the first group whose time is not below `time_us`; past the last one if there is none."""

    def names_of(self, ids: list[int]) -> list[bytes | None]:
        """The names of stored channels, None for an id that no channel has.

        Raises:
            StorageError: one of them cannot be read.
        """


class Stored(Protocol):
    """What is stored of names that memory does not know. On any thread; each call holds nothing after it."""

    @property
    def settled_group(self) -> int:
        """The last group that is found without what memory has: what has not changed since may be evicted."""

    def resolve(self, names: list[bytes]) -> list[bytes]:
        """The entries of each channel, for `install_each`; b"" where there is no such channel. Sorted names cost least.

        Raises:
            StorageError: one of them cannot be read.
        """

    def resolve_lines(self, producers: list[bytes]) -> list[bytes]:
        """The entry of each producer's line; b"" where there is none. `producers` are sorted.

        Raises:
            StorageError: one of them cannot be read.
        """


class StoredReader(Reader, Stored, Protocol):
    """A log that is read, and asked for what memory does not know."""

    def reading(self) -> AbstractContextManager[Reading]:
        """Hold what is stored as it is, for a bounded number of reads; nothing else is read within the block."""

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[bytes]:
        """The smallest names of stored channels with a prefix past another name, ascending, at most so many.

        Raises:
            StorageError: they cannot be read.
        """


class Clock(Protocol):
    """Broker time."""

    def now_us(self) -> int:
        """Microseconds since 1970, never backwards."""
