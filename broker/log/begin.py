"""When a slice begins: as soon as that costs nobody anything, or when waiting longer would.

A slice writes each page over that holds a channel of it, once, however many groups the channel is in: over a million
channels taken at random, 16 segments at a time cost half as much a message as four at a time. So while the log is
written to, segments wait until there are enough of them for a wide slice, or the oldest has waited for long; when
nobody writes, a slice costs nobody anything, and begins. Pure arithmetic over what it is told; times are arguments.
"""

from __future__ import annotations

MIB = 1024 * 1024
BEGIN_SHARE = 3 / 8
"""So much of the bound of the backlog makes a slice wide enough. As much again may come while it is written, before
commits are slowed down (`backlog.FREE_SHARE`)."""
QUIET_BYTES_PER_S = 2 * MIB
"""A log that takes in less than this is quiet."""
QUIET_S = 1.0
WAIT_S = 30.0


class Begin:
    """Decides when the next slice begins; one thread.

    Args:
        begin_bytes: with so much waiting it begins.
        quiet_s: over how long the log must have been quiet for it to begin with less.
        wait_s: no segment waits for longer than this.
    """

    def __init__(self, begin_bytes: int, quiet_s: float, wait_s: float) -> None:
        self.begin_bytes = begin_bytes
        self.quiet_s = quiet_s
        self.wait_s = wait_s
        self._look_s = float("-inf")
        self._look_bytes = 0
        self._quiet = False

    def due_in(self, now_s: float, oldest_s: float, waiting_bytes: int, appended_bytes: int) -> float:
        """Return the seconds until a slice begins, or until this has to be asked again; 0.0 for now.

        Args:
            now_s: the time.
            oldest_s: when the segment came that has waited for longest.
            waiting_bytes: of all that wait.
            appended_bytes: what the log has taken in so far.
        """
        left_s = oldest_s + self.wait_s - now_s
        if waiting_bytes >= self.begin_bytes or left_s <= 0.0 or self._is_quiet(now_s, appended_bytes):
            return 0.0
        return min(left_s, self._look_s + self.quiet_s - now_s)

    def _is_quiet(self, now_s: float, appended_bytes: int) -> bool:
        """Tell whether little came between the two last looks, which are `quiet_s` apart."""
        passed_s = now_s - self._look_s
        if passed_s < self.quiet_s:
            return self._quiet
        # Nobody asked for a while: what came long ago says nothing of what is coming now.
        recent = passed_s < 2 * self.quiet_s + 1.0
        self._quiet = recent and appended_bytes - self._look_bytes <= QUIET_BYTES_PER_S * passed_s
        self._look_s, self._look_bytes = now_s, appended_bytes
        return self._quiet
