"""Keeps what waits for the archive bounded: commits slow down as it nears the bound, and are refused at it.

Below three quarters of the bound nothing is delayed. Above, what is left of the bound has to last until the slice that
is being written is in, since all that it frees it frees at its end: commits get so many bytes a second as that allows,
and publishers come down to the pace of the archive by themselves, long before anybody is refused. When nobody can tell
when that will be, a group waits for longer the nearer the bound is. A disk that is slow for both, or an archive that
cannot be written, ends at the bound and not at the disk's end.

It waits on the commit thread, where a slow disk would have it wait as well; the commit thread only.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from broker.events import emit
from broker.log.errors import append_full

if TYPE_CHECKING:
    from collections.abc import Callable

FREE_SHARE = 0.75
FILE_BYTES_PER_BYTE = 2
"""A sealed segment is so much larger than its groups, at most about: the rest are its index and tables."""
RELIEF_LATER = 1.5
RELIEF_LATER_S = 1.0
"""How much later than foretold a slice may end, in parts of that time and besides."""
BYTES_PER_S = 256 * 1024 * 1024
"""Where nobody knows the archive's pace, a group at half way between the free share and the bound waits as long as a
disk of this pace would take for it."""
WAIT_S_MAX = 1.0
STILL_S_MAX = 2.0
"""An archive that has written nothing for so long is no reason to wait at the bound."""
BOUND_S_MAX = 10.0
"""Nobody waits at the bound for longer than this."""
POLL_S = 0.02
TOLD_EVERY_S = 60.0
_HINT = (
    "Look for archiving_delayed and archiving_blocked in the log; raise storage.backlog_bytes_max if the disk has room "
    "for the peak."
)


class Backlog:
    """Delays groups by what waits for the archive.

    Args:
        waiting_bytes: how much waits now.
        steps: how many transactions the archive has written.
        relief_s: in how many seconds the archive will have taken in what it is at; None when nobody can tell.
        bytes_max: the bound, > 0.

    Attributes:
        bytes_max: the bound.
        delays: how many groups were delayed.
        delay_s: for how long, all together.
        refusals: how many were refused.
    """

    def __init__(
        self,
        waiting_bytes: Callable[[], int],
        steps: Callable[[], int],
        relief_s: Callable[[], float | None],
        bytes_max: int,
    ) -> None:
        self._waiting_bytes = waiting_bytes
        self._steps = steps
        self._relief_s = relief_s
        self._free_s = 0.0
        self.bytes_max = bytes_max
        self._told_s = float("-inf")
        self.delays = 0
        self.delay_s = 0.0
        self.refusals = 0

    def take(self, size_bytes: int) -> None:
        """Let a group in, maybe later.

        Args:
            size_bytes: of the group.

        Raises:
            AppendFull: the bound is reached, and the archive stands still or frees nothing for long.
        """
        waiting = self._waiting_bytes()
        began_s = time.monotonic()
        delay_s = self._delay_s(waiting, size_bytes, began_s)
        if delay_s == 0.0:
            return
        self._tell(waiting)
        if waiting < self.bytes_max:
            time.sleep(delay_s)
        else:
            self._wait_at_bound(began_s)
        self.delays += 1
        self.delay_s += time.monotonic() - began_s
        waiting = self._waiting_bytes()
        if waiting >= self.bytes_max:
            self.refusals += 1
            raise append_full(
                f"archive: {waiting} bytes wait for it, limit {self.bytes_max}; the group has {size_bytes} bytes",
                _HINT,
            )

    def _wait_at_bound(self, began_s: float) -> None:
        """Wait until the slice that is being written has made room, as long as it gets on."""
        steps, step_s = self._steps(), began_s
        while self._waiting_bytes() >= self.bytes_max:
            now_s = time.monotonic()
            if now_s - step_s >= STILL_S_MAX or now_s - began_s >= BOUND_S_MAX:
                return
            time.sleep(POLL_S)
            if self._steps() != steps:
                steps, step_s = self._steps(), time.monotonic()

    def _delay_s(self, waiting: int, size_bytes: int, now_s: float) -> float:
        """Return how long a group waits, `WAIT_S_MAX` at most; nothing below the free share."""
        above = (waiting / self.bytes_max - FREE_SHARE) / (1 - FREE_SHARE)
        if above <= 0.0:
            return 0.0
        if above >= 1.0:
            return WAIT_S_MAX
        relief_s = self._relief_s()
        if relief_s is None:
            return min(size_bytes / BYTES_PER_S * above / (1 - above), WAIT_S_MAX)
        # It goes when those before it have used up their time; whoever comes slowly enough waits for nothing.
        goes_s = min(max(self._free_s, now_s), now_s + WAIT_S_MAX)
        lasts_s = RELIEF_LATER * relief_s + RELIEF_LATER_S
        self._free_s = goes_s + FILE_BYTES_PER_BYTE * size_bytes / (self.bytes_max - waiting) * lasts_s
        return goes_s - now_s

    def _tell(self, waiting: int) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= TOLD_EVERY_S:
            self._told_s = now_s
            emit("commits_delayed", waiting_bytes=waiting, limit_bytes=self.bytes_max)
