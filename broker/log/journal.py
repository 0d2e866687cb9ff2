"""The chain of segments: appending groups, going from one segment to the next, giving one up after a failed commit.

Every group names its predecessor and carries the chain checksum up to it, across segments. A failed commit leaves it
unknown whether its group is stored, and LMDB would let the next commit succeed on top of pages that may never have
reached the disk; so the segment is given up, and what follows goes to a fresh one whose first group names the last good
group as its predecessor. That name makes everything greater in earlier segments void, now and at every start: the
numbers of void groups are not used again.

Invariants: `segments` holds every segment with good groups that the archive has not, in their order, the active one
last, and is replaced whole, never changed, so a reader takes it once and walks on in peace. A given-up segment is
sealed or removed only after a group in a later one is durable, since until then its unknown group may still count at
the next start.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from broker.events import emit
from broker.log.environment import remove_file
from broker.log.errors import AppendError, append_error
from broker.log.space import OVERHEAD_BYTES, Space
from broker_native.index import read_header

if TYPE_CHECKING:
    from broker.log.sealer import Sealer
    from broker.log.segment import Link, Segment
    from broker_native.crc32c import Buffer

GROUPS_MAX = 65536
"""A segment of so many groups is full, whatever their size, which bounds what a start has to replay one by one."""


class Journal:
    """Appends to the chain of segments. `append` and `abandon` belong to the commit thread, the rest is for any.

    Args:
        segments: what recovery found, oldest first, the active one last; never empty.
        last: the place in the chain after the last good group.
        sealer: makes fresh segments ready, and takes the full ones.
        space: guards the reserve.
        segment_bytes: a segment that holds this much is full.

    Attributes:
        segments: every segment with good groups in order, then the active one.
        last: the place in the chain after the last good group.
        commits: groups appended by this process.
        bytes: the sum of their sizes.
    """

    def __init__(self, segments: list[Segment], last: Link, sealer: Sealer, space: Space, segment_bytes: int) -> None:
        self.segments = tuple(segments)
        self.last = last
        self.commits = 0
        self.bytes = 0
        self._sealer = sealer
        self._space = space
        self._segment_bytes = segment_bytes
        self._failed = False
        self._given_up: list[Segment] = []
        self._attempted = last.number
        # Held for a commit: no segment may be left while a group is on its way into it.
        self._appending = threading.Lock()
        self._replacing = threading.Lock()

    def append(self, number: int, value: Buffer) -> None:
        """Store a group, durable on return.

        Args:
            number: the group's number, greater than any that was attempted before.
            value: the group; borrowed for the call. Its predecessor and previous chain are those of `last`.

        Raises:
            AppendFull: there is no room. AppendError: it failed otherwise. `handed_over` says whether the group may
                be stored nevertheless; then `abandon` comes next.
            StorageError: the segment's file cannot be opened.
        """
        with self._appending:
            self._append(number, value)

    def _append(self, number: int, value: Buffer) -> None:
        header = read_header(value)
        if (header.number, header.predecessor, header.previous_chain) != (number, self.last.number, self.last.chain):
            raise ValueError(
                f"group {header.number} after {header.predecessor}: expected group {number} after {self.last.number}"
            )
        # The very group that failed may be tried again: it is the same in whichever segment it is found.
        if number < self._attempted or self._failed:
            raise ValueError(f"group {number}: numbers up to {self._attempted} are used, failed is {self._failed}")
        self._space.take(header.size)
        active = self._active()
        try:
            active.append(number, value)
        except AppendError as failure:
            if failure.handed_over:
                self._attempted = number
                self._failed = True
                # LMDB answers PANIC, to readers too, once a meta page could not be written; opened again it reads well.
                # Not left to `abandon`, which has to wait for room.
                active.file.close()
            raise
        self._attempted = number
        try:
            active.extend(self.last, header, value)
        except BaseException as failure:
            # It is stored, and nobody can find it. Giving the segment up makes it void, like one whose fate is unknown.
            self._failed = True
            raise append_error(failure, active.path, 0, handed_over=True) from failure
        self.last = active.last
        self.commits += 1
        self.bytes += len(value)
        if self._given_up:
            self._let_go()

    def abandon(self) -> None:
        """Give the active segment up after a failed commit and go on in a fresh one; does nothing without a failure.

        Raises:
            AppendError: there is no room for a fresh segment (`AppendFull`), or it cannot be created. Nothing has
                changed; call it again later.
        """
        with self._appending:
            if not self._failed:
                return
            self._space.take(OVERHEAD_BYTES)
            fresh = self._sealer.take_next()
            given_up = self.segments[-1]
            self._given_up.append(given_up)
            with self._replacing:
                kept = self.segments[:-1] if given_up.empty else self.segments
                self.segments = (*kept, fresh)
            self._failed = False

    def rotate(self) -> None:
        """Leave the active segment now, so that it is sealed, unless it is empty or a commit in it has failed.

        Waits for the commit that is on its way, and for a fresh segment.

        Raises:
            AppendError: no fresh segment can be created; nothing has changed.
        """
        with self._appending:
            active = self.segments[-1]
            if not active.empty and not self._failed:
                self._leave(active)

    def remove_archived(self, ordinal: int) -> None:
        """Forget the segments up to one, which the archive has durably, and remove their files.

        Whoever reads one now is waited for; who took it and has not begun is told by `Segment.gone` to look again.
        """
        with self._replacing:
            archived = [segment for segment in self.segments[:-1] if segment.ordinal <= ordinal]
            self.segments = tuple(segment for segment in self.segments if segment not in archived)
        for segment in archived:
            segment.gone = True
            try:
                remove_file(segment.path)
            except OSError as cause:
                # The next start removes it.
                emit("segment_removal_delayed", segment=segment.path, error=cause)
            # Closed after the name is gone, so that nobody opens it once more.
            segment.file.close()

    def _active(self) -> Segment:
        """Return the segment to append to, a fresh one if the last is full."""
        active = self.segments[-1]
        if active.bytes < self._segment_bytes and active.groups < GROUPS_MAX:
            return active
        return self._leave(active)

    def _leave(self, active: Segment) -> Segment:
        """Go on in a fresh segment, and have the active one sealed."""
        fresh = self._sealer.take_next()
        if fresh.index is not None and active.index is not None:
            # It will hold about as many channels as this one.
            fresh.index.reserve(active.index.channels + active.index.channels // 8)
        with self._replacing:
            self.segments = (*self.segments, fresh)
        self._sealer.queue(active)
        return fresh

    def _let_go(self) -> None:
        """Seal or remove the segments that were given up, now that a later group makes their unknown ones void."""
        for segment in self._given_up:
            if not segment.empty:
                self._sealer.queue(segment)
                continue
            segment.file.close()
            try:
                remove_file(segment.path)
            except OSError as cause:
                # It holds void groups only and is removed at the next start.
                emit("segment_removal_delayed", segment=segment.path, error=cause)
        self._given_up.clear()
