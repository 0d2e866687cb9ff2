"""How much memory the broker's queues hold, against one bound for all of them.

What waits to be sent, what has arrived in part, what is pending and what is kept of the newest groups: each keeper
counts what it adds and takes away, and this adds the counters up, at the end of every turn. A value that many
connections have queued counts once, and one that many of their transports hold once more.

- Connections whose transport takes nothing share half of the bound, or less; one that has more reads on from the log.
  So they cannot keep the publishers waiting for long, however many they are.
- From 80 % on publishers are not read, until less than 75 % are used.
- From 95 % on PUBLISH is refused with BUSY. Consumers, their credits and what they are owed go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.core.sequencer import Sequencer
    from broker.node.catchup import CatchUp
    from broker.node.consumers import Consumers
    from broker_native.intake import ReadBuffer
    from broker_native.unsent import Unsent

__all__ = ["Budget"]

HOLD_PERCENT = 80
RELEASE_PERCENT = 75
REFUSE_PERCENT = 95
PAUSED_PERCENT = 50
"""What connections may have queued together whose transport takes nothing; beyond it they read from the log."""
QUEUED_AND_OTHERS_PERCENT = 65
"""And less than that if what else there is would bring it all beyond this."""


class Budget:
    """The memory of one broker's queues.

    Args:
        core: The sequencer; its limits say the bound.
        buffer: Where frames wait that have not arrived whole, or for their turn.
        catchup: Keeps slices of the log.
        unsent: What transports hold.
        consumers: Keep what they have read until it is done.

    Attributes:
        used_bytes: As of the last `look`.
        arriving_bytes: Of it, frames that have not arrived whole, or wait for their turn.
        pending_bytes: Of it, groups that are not committed.
        kept_bytes: Of it, the newest groups and slices of the log, for those who read on from there, and the jobs of
            consumers.
        holds: Publishers are not to be read.
        refuses: PUBLISH is to be refused.
        share_bytes: What one connection may have queued whose transport takes nothing.
    """

    def __init__(
        self, core: Sequencer, buffer: ReadBuffer, catchup: CatchUp, unsent: Unsent, consumers: Consumers
    ) -> None:
        self._core = core
        self._buffer = buffer
        self._catchup = catchup
        self._unsent = unsent
        self._consumers = consumers
        self.used_bytes = 0
        self.arriving_bytes = 0
        self.pending_bytes = 0
        self.kept_bytes = 0
        self.holds = False
        self.refuses = False
        self.share_bytes = self.limit_bytes * PAUSED_PERCENT // 100

    @property
    def limit_bytes(self) -> int:
        """The bound."""
        return self._core.limits.memory_bytes_max

    @property
    def queued_bytes(self) -> int:
        """What waits to be sent, here and in transports that ask for a pause."""
        fanout = self._core.fanout
        return fanout.copied_bytes + fanout.shared_bytes + self._unsent.bytes

    def look(self) -> None:
        """Add up, and judge."""
        core, buffer = self._core, self._buffer
        in_commit = core.in_commit
        self.pending_bytes = pending = core.tails.group_bytes + (len(in_commit.value) if in_commit is not None else 0)
        self.arriving_bytes = arriving = buffer.early.bytes + buffer.partial.bytes + buffer.backlog.bytes
        kept = core.recent.size_bytes + core.passing.size_bytes + self._catchup.slices_bytes
        self.kept_bytes = kept = kept + self._consumers.kept_bytes
        self.used_bytes = used = self.queued_bytes + pending + arriving + kept
        limit = self.limit_bytes
        self.holds = used * 100 >= limit * (RELEASE_PERCENT if self.holds else HOLD_PERCENT)
        self.refuses = used * 100 >= limit * REFUSE_PERCENT
        others = used - self.queued_bytes
        queued_max = min(limit * PAUSED_PERCENT, limit * QUEUED_AND_OTHERS_PERCENT - others * 100) // 100
        left = 0 if self.holds else queued_max - self._unsent.bytes
        self.share_bytes = max(left, 0) // max(core.fanout.paused_count, 1)
        self._catchup.room_bytes = self.share_bytes
        if self.holds:
            self._catchup.slices.shrink(0)
