"""Keeps what waits for the archive bounded: commits slow down as it nears the bound, and are refused at it.

Below three quarters of the bound nothing is delayed. Above, a group waits for longer the nearer the bound is, so that
publishers come down to the pace of the archive by themselves, long before anybody is refused. A disk that is slow for
both, or an archive that cannot be written, ends at the bound and not at the disk's end.

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
BYTES_PER_S = 256 * 1024 * 1024
"""A group at half way between the free share and the bound waits as long as a disk of this pace would take for it."""
WAIT_S_MAX = 1.0
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
        bytes_max: the bound, > 0.

    Attributes:
        delays: how many groups were delayed.
        delay_s: for how long, all together.
        refusals: how many were refused.
    """

    def __init__(self, waiting_bytes: Callable[[], int], bytes_max: int) -> None:
        self._waiting_bytes = waiting_bytes
        self._bytes_max = bytes_max
        self._told_s = float("-inf")
        self.delays = 0
        self.delay_s = 0.0
        self.refusals = 0

    def take(self, size_bytes: int) -> None:
        """Let a group in, maybe later.

        Args:
            size_bytes: of the group.

        Raises:
            AppendFull: the bound is reached, and the archive took in nothing for `WAIT_S_MAX`.
        """
        waiting = self._waiting_bytes()
        delay_s = self._delay_s(waiting, size_bytes)
        if delay_s == 0.0:
            return
        self._tell(waiting)
        began_s = time.monotonic()
        if delay_s < WAIT_S_MAX:
            time.sleep(delay_s)
        else:
            while time.monotonic() - began_s < WAIT_S_MAX and self._waiting_bytes() >= self._bytes_max:
                time.sleep(POLL_S)
        self.delays += 1
        self.delay_s += time.monotonic() - began_s
        waiting = self._waiting_bytes()
        if waiting >= self._bytes_max:
            self.refusals += 1
            raise append_full(
                f"archive: {waiting} bytes wait for it, limit {self._bytes_max}; the group has {size_bytes} bytes",
                _HINT,
            )

    def _delay_s(self, waiting: int, size_bytes: int) -> float:
        """Return how long a group waits, `WAIT_S_MAX` at most; nothing below the free share."""
        above = (waiting / self._bytes_max - FREE_SHARE) / (1 - FREE_SHARE)
        if above <= 0.0:
            return 0.0
        if above >= 1.0:
            return WAIT_S_MAX
        return min(size_bytes / BYTES_PER_S * above / (1 - above), WAIT_S_MAX)

    def _tell(self, waiting: int) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= TOLD_EVERY_S:
            self._told_s = now_s
            emit("commits_delayed", waiting_bytes=waiting, limit_bytes=self._bytes_max)
