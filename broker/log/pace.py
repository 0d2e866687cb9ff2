"""How fast the archiver may go: it shares the disk with the commits, whose latency people feel.

After each transaction the archiver rests for a multiple of the time that the transaction took. The multiple grows while
commits take longer beside it than they did while it rested, and shrinks again when they do not, or as the backlog grows
from where a slice begins to where commits are slowed down: there falling behind is the greater harm. Pure arithmetic
over what it is told; times are arguments.
"""

from __future__ import annotations

from broker.log.backlog import FREE_SHARE
from broker.log.begin import BEGIN_SHARE

MIB = 1024 * 1024
REST_MAX = 8.0
"""At most so many times as long as it works does the archiver rest."""
PAUSE_S_MAX = 2.0
SLOWER_MAX = 2.0
"""Commits may take so many times as long as on a quiet disk before the archiver yields."""
HARMLESS_S = 0.005
"""Commits that take no longer than this harm nobody, whatever they took before."""
_FAST = 0.1
_SLOW = 0.01
_REST_BEGIN = 0.25


class Pace:
    """Decides the pauses of one archiver.

    `committed` belongs to the commit thread, the rest to the archiver's; each number is written by one of them.

    Args:
        backlog_bytes_max: the bound of the backlog.
    """

    def __init__(self, backlog_bytes_max: int) -> None:
        self._backlog_bytes_max = backlog_bytes_max
        self._working = False
        self.commit_s = 0.0
        self.quiet_s = 0.0
        self.rest = 0.0

    def committed(self, commit_s: float) -> None:
        """Take in how long a commit took."""
        self.commit_s += (commit_s - self.commit_s) * _FAST if self.commit_s else commit_s
        if not self._working:
            self.quiet_s += (commit_s - self.quiet_s) * _SLOW if self.quiet_s else commit_s

    def begin(self) -> None:
        """Note that the archiver begins: what commits take from here on is no measure of a quiet disk."""
        self._working = True

    def end(self) -> None:
        """Note that the archiver has come to rest."""
        self._working = False

    def pause_s(self, worked_s: float, backlog_bytes: int) -> float:
        """Return how long to rest now.

        Args:
            worked_s: how long the last transaction took, seconds.
            backlog_bytes: sealed and not archived.
        """
        if self.commit_s > max(SLOWER_MAX * self.quiet_s, HARMLESS_S):
            self.rest = min(max(self.rest * 2, _REST_BEGIN), REST_MAX)
        else:
            self.rest = self.rest / 2 if self.rest > _REST_BEGIN / 4 else 0.0
        left = (FREE_SHARE - backlog_bytes / self._backlog_bytes_max) / (FREE_SHARE - BEGIN_SHARE)
        return min(worked_s * self.rest * min(max(left, 0.0), 1.0), PAUSE_S_MAX)
