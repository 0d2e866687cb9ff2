"""What carries retention out: plans from the archive become trims in the journal, a few at a time.

A round asks the archiver for a step of its plan, has the channels brought into memory that are not there, and puts
their trims into open groups, whatever else these hold. Trims are low in rank: none is decided while a group is large,
and a few in a turn. When all trims of a step are committed, its cursors go back with the next request, and the archiver
stores them; a step that fails or is lost is planned again.

What retention promises: a channel's first sequence is right in the same group as the trim, for every reader. A bound is
enforced on what is archived, when it is archived; so the active segment is sealed early when its oldest group has lived
a quarter of the shortest age (at least a second, at most an hour). Until then a channel may hold, beyond its bound,
what came since.

With `hold = "consumers"` a trim goes only as far as the channel's consumers have done. What they hold back is kept in
mind (`broker.node.holds`) and tried again once a second, and the cursors that are stored stay before it.

Everything here runs on the loop's thread. It removes nothing itself, and plans nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from broker.events import emit
from broker.log.retention import Held, Policies, Step
from broker.node.holds import Holds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.log.retention import ChannelState
    from broker.model.errors import BrokerError
    from broker.node.holds import Holding

__all__ = ["Retained", "Retention"]

TRIMS_PER_TURN = 256
"""Trims that are decided at once: 32 bytes each in the group, and 8 KiB together."""
BATCH = 1_024
"""Channels that are brought into memory together."""
ROUND_S = 60
"""Seconds between two rounds when nothing was archived meanwhile,"""
HELD_ROUND_S = 1
"""and when consumers hold something back."""


class Retained(Protocol):
    """What retention needs of the broker that it is part of."""

    def plan(
        self,
        policies: Policies,
        cursors: Mapping[bytes, int],
        now_us: int,
        held: Held,
        done: Callable[[Step | BrokerError], None],
    ) -> None:
        """Store cursors and plan the next step; `done` hears of it on the loop, later."""

    def holding(
        self, proposals: list[tuple[bytes, int]], done: Callable[[dict[bytes, Holding] | BrokerError], None]
    ) -> None:
        """Find which of the channels, in memory, consumers hold, and since where; `done` may be called at once."""

    def channel_id(self, name: bytes) -> int:
        """Return the stored id of a channel in memory, 0 when it is not."""

    def refuse(self, name: bytes, refused: bool) -> None:
        """Refuse a channel's publishers, or take them again."""

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
        # How far the walks have come, and how far of that may be stored.
        self._walked: dict[bytes, int] = {}
        self._cursors: dict[bytes, int] = {}
        self._states: dict[bytes, ChannelState] = {}
        self._step: Step | None = None
        # What is undecided of the step, last first, and what of it is being decided.
        self._names: list[tuple[bytes, int]] = []
        self._batch: list[tuple[bytes, int]] = []
        self._again: dict[bytes, int] = {}
        self._judged = False
        self._pending = 0
        self._busy = False
        self._stopped = False
        self._failed = False
        self._due_us = 0
        self._archived_group = -1
        self._sealed_group = -1
        # What the last run left in the active segment is taken for as young as this one.
        self._unsealed_since_us = broker.steady_us()
        self._outdated = False
        self.holds = Holds(broker.refuse)
        self.trims = 0
        self.steps = 0

    def reload(self, policies: Policies) -> None:
        """Take new policies; a round that is under way ends under the old ones."""
        if policies != self._policies:
            self._policies = policies
            self._due_us = 0
            self._outdated = True
            if not self._busy:
                self._forget()

    def _forget(self) -> None:
        """Under new policies the walks begin anew, and find anew what is held."""
        self._outdated = False
        self._walked, self._cursors = {}, {}
        self.holds.clear()

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
        round_s = HELD_ROUND_S if len(self.holds) else ROUND_S
        self._due_us = now_us + min(round_s * 1_000_000, shortest_us)
        self._archived_group = self._broker.archived_group
        self._again = self.holds.next(BATCH)
        held = Held(self._walked, self.holds.ids(self._again))
        self._broker.plan(self._policies, self._cursors, self._broker.ages_us(), held, self._planned)

    def _planned(self, step: Step | BrokerError) -> None:
        if self._stopped:
            return
        if not isinstance(step, Step):
            emit("retention_failed", code=step.name, detail=step.detail)
            self._end()
            return
        self.steps += 1
        self._step = step
        self._states = {state.name: state for state in step.states}
        proposals = {**self._again, **step.proposals}
        for name, first in self._again.items():
            proposals[name] = max(first, proposals[name])
        self._names = sorted(proposals.items(), reverse=True)
        self._load()

    def _load(self) -> None:
        """Bring the next channels of the step into memory, or end it when there are none."""
        if self._stopped:
            return
        if not self._batch:
            self._batch, self._names = self._names[-BATCH:], self._names[:-BATCH]
            self._judged = not self._policies.holds
        self._load_batch()

    def _load_batch(self) -> None:
        if self._batch:
            self._broker.need([name for name, _ in self._batch], self._loaded)
        else:
            self._settle()

    def _loaded(self, failure: BrokerError | None) -> None:
        if self._stopped:
            return
        if failure is not None:
            self._give_up(failure)
        elif self._judged:
            self._trim()
        else:
            held = [each for each in self._batch if self._hold_bytes(each[0])]
            self._broker.holding(held, self._judge)

    def _give_up(self, failure: BrokerError) -> None:
        """End the step; it is planned again."""
        emit("retention_failed", code=failure.name, detail=failure.detail)
        self._failed = True
        self._names = []
        self._batch = []
        self._settle()

    def _hold_bytes(self, name: bytes) -> int:
        """Return how much of a channel consumers may hold, 0 when they hold nothing."""
        policy = self._policies(name)
        return policy.hold_bytes if policy is not None else 0

    def _judge(self, holding: dict[bytes, Holding] | BrokerError) -> None:
        """Propose no more of this batch than consumers have done."""
        if self._stopped:
            return
        if not isinstance(holding, dict):
            self._give_up(holding)
            return
        batch, self._batch, self._judged = self._batch, [], True
        for name, first in batch:
            found, channel = holding.get(name), self._broker.channel_id(name)
            if found is None or not channel:
                self.holds.release(name)
                self._batch.append((name, first))
            elif self.holds.hold(name, first, found, channel, self._walked):
                self.holds.measure(name, found.stays, self._states.get(name), self._hold_bytes(name))
                self._batch.append((name, found.stays))
            else:
                self._failed = True
        # They may have left memory meanwhile.
        self._load_batch()

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
        self.holds.settle()
        if not self._failed and not self._outdated:
            self._walked = dict(step.cursors)
            self._cursors = self.holds.safe(step.cursors)
            if step.more or step.proposals:
                self._due_us = 0
            if step.more:
                # A step a second would fall behind what comes.
                self._broker.later(self.tick)
        self._end()

    def _end(self) -> None:
        self._busy = False
        if self._outdated:
            self._forget()
