"""What carries retention out: plans from the archive become trims in the journal, a few at a time.

A round asks the archiver for a step of its plan, has the channels brought into memory that are not there, and puts
their trims into open groups, whatever else these hold. Trims are low in rank: none is decided while a group is large,
and a few in a turn. When all trims of a step are committed, its cursors go back with the next request, and the archiver
stores them; a step that fails or is lost is planned again.

What retention promises: a channel's first sequence is right in the same group as the trim, for every reader. A bound is
enforced on what is archived, when it is archived; so the active segment is sealed early when its oldest group has lived
a quarter of the shortest age (at least a second, at most an hour). Until then a channel may hold, beyond its bound,
what came since.

Everything here runs on the loop's thread. It removes nothing itself, and plans nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from broker.events import emit
from broker.log.retention import Policies, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.model.errors import BrokerError

__all__ = ["Retained", "Retention"]

TRIMS_PER_TURN = 256
"""Trims that are decided at once: 32 bytes each in the group, and 8 KiB together."""
BATCH = 1_024
"""Channels that are brought into memory together."""
ROUND_S = 60
"""Seconds between two rounds when nothing was archived meanwhile."""


class Retained(Protocol):
    """What retention needs of the broker that it is part of."""

    def plan(
        self, policies: Policies, cursors: Mapping[bytes, int], now_us: int, done: Callable[[Step | BrokerError], None]
    ) -> None:
        """Store cursors and plan the next step; `done` hears of it on the loop, later."""

    def need(self, names: list[bytes], done: Callable[[BrokerError | None], None]) -> None:
        """Have channels in memory, or known not to be stored, within `done`; it may be called at once."""

    def trim(self, name: bytes, first: int, done: Callable[[BrokerError | None], None]) -> None:
        """Trim a channel if it is in memory; `done` hears when that is committed, in this call if there is no need."""

    def rotate(self) -> None:
        """Seal the active segment early."""

    def ages_us(self) -> int:
        """The time by which ages are judged."""

    def steady_us(self) -> int:
        """Time that runs on."""

    @property
    def newest_group(self) -> int:
        """Number of the newest committed group."""

    @property
    def archived_group(self) -> int:
        """Number of the newest group in the archive."""

    @property
    def room(self) -> bool:
        """Whether the open group has room for what can wait."""

    def later(self, do: Callable[[], None]) -> None:
        """Do something a few milliseconds later."""


class Retention:
    """Runs rounds of retention. Call `tick` once a second.

    Args:
        broker: What it acts on.
        policies: Of the channels; `reload` changes them.
    """

    def __init__(self, broker: Retained, policies: Policies) -> None:
        self._broker = broker
        self._policies = policies
        self._cursors: dict[bytes, int] = {}
        self._step: Step | None = None
        # What is undecided of the step, last first, and what of it is being decided.
        self._names: list[tuple[bytes, int]] = []
        self._batch: list[tuple[bytes, int]] = []
        self._pending = 0
        self._busy = False
        self._stopped = False
        self._failed = False
        self._due_us = 0
        self._archived_group = -1
        self._sealed_group = -1
        # What the last run left in the active segment is taken for as young as this one.
        self._unsealed_since_us = broker.steady_us()
        self.trims = 0
        self.steps = 0

    def reload(self, policies: Policies) -> None:
        """Take new policies; a round that is under way ends under the old ones."""
        if policies != self._policies:
            self._policies = policies
            self._due_us = 0

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True

    def tick(self) -> None:
        """See whether a round, or an early seal, is due."""
        if self._stopped or not self._policies.active:
            return
        now_us = self._broker.steady_us()
        self._rotate_if_due(now_us)
        # What a new slice brought may be over its bounds.
        if not self._busy and (now_us >= self._due_us or self._broker.archived_group != self._archived_group):
            self._begin(now_us)

    def _rotate_if_due(self, now_us: int) -> None:
        """Seal the active segment when its oldest group is old enough, and it has any."""
        newest = self._broker.newest_group
        if newest == self._sealed_group:
            self._unsealed_since_us = now_us
        elif now_us - self._unsealed_since_us >= self._policies.rotate_us:
            self._sealed_group = newest
            self._unsealed_since_us = now_us
            self._broker.rotate()

    # -- a step --------------------------------------------------------------------------------------------------------

    def _begin(self, now_us: int) -> None:
        self._busy = True
        self._failed = False
        shortest_us = self._policies.rotate_us
        self._due_us = now_us + min(ROUND_S * 1_000_000, shortest_us)
        self._archived_group = self._broker.archived_group
        self._broker.plan(self._policies, self._cursors, self._broker.ages_us(), self._planned)

    def _planned(self, step: Step | BrokerError) -> None:
        if self._stopped:
            return
        if not isinstance(step, Step):
            emit("retention_failed", code=step.name, detail=step.detail)
            self._end()
            return
        self.steps += 1
        self._step = step
        self._names = sorted(step.proposals.items(), reverse=True)
        self._load()

    def _load(self) -> None:
        """Bring the next channels of the step into memory, or end it when there are none."""
        if self._stopped:
            return
        if not self._batch:
            self._batch, self._names = self._names[-BATCH:], self._names[:-BATCH]
        if self._batch:
            self._broker.need([name for name, _ in self._batch], self._loaded)
        else:
            self._settle()

    def _loaded(self, failure: BrokerError | None) -> None:
        if self._stopped:
            return
        if failure is not None:
            emit("retention_failed", code=failure.name, detail=failure.detail)
            self._failed = True
            self._names = []
            self._batch = []
            self._settle()
            return
        self._trim()

    def _trim(self) -> None:
        """Decide a few trims now, and the others in later turns: a channel may be evicted between two."""
        taken = 0
        while self._batch and taken < TRIMS_PER_TURN and self._broker.room:
            name, first = self._batch.pop()
            self._pending += 1
            taken += 1
            self._broker.trim(name, first, self._trimmed)
        if self._batch or self._names:
            self._broker.later(self._load)
        else:
            self._settle()

    def _trimmed(self, failure: BrokerError | None) -> None:
        """A trim is committed, or was not needed, or is not committed."""
        self._pending -= 1
        if failure is not None:
            self._failed = True
        else:
            self.trims += 1
        self._settle()

    def _settle(self) -> None:
        """End the step when all of it is committed; a step of which anything failed is planned again."""
        if self._pending or self._batch or self._names or self._step is None:
            return
        step, self._step = self._step, None
        if not self._failed:
            self._cursors = dict(step.cursors)
            if step.more or step.proposals:
                self._due_us = 0
            if step.more:
                # A step a second would fall behind what comes.
                self._broker.later(self.tick)
        self._end()

    def _end(self) -> None:
        self._busy = False
