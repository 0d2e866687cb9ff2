"""Where a live subscription stands that was refused a chunk: what it has, and what the log still owes it.

A live subscription gets chunks in the order of delivery: those of each turn that do not wait for their commit, then
each group's others when it is committed. The first one that does not fit is refused, and nothing follows it, so the
refused place and the order tell all. At most three groups are of interest: one that is applied and was not delivered
yet, the one in commit, and the open one; of the last two only chunks that are delivered early.

Pure. It is asked at the end of the turn in which the chunk was refused, when what is applied is delivered, and holds
for that moment alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.core.recent import INDEX_END
from broker.model.levels import Level
from broker_native.groups import chunk_heads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from broker.core.sequencer import Sequencer

    Heads = dict[int, list[tuple[int, int, int, int, int]]]
    Refused = tuple[int, int, bool, int, int, int, int]

__all__ = ["Standing", "Undelivered"]

Place = tuple[int, int]


class Standing:
    """What one subscription has.

    Attributes:
        place: Every chunk up to this bus position; none behind it but the following.
        early_done: Of groups behind it, how many of the first chunks came early.
        passing: (turn, index): the first ephemeral chunk that it has not got.
    """

    __slots__ = ("early_done", "passing", "place")

    def __init__(self, place: Place, early_done: dict[int, int], passing: Place) -> None:
        self.place = place
        self.early_done = early_done
        self.passing = passing

    def has(self, group: int, index: int) -> bool:
        """Whether it has got the chunk at a place."""
        return (group, index) <= self.place or index < self.early_done.get(group, 0)


class Undelivered:
    """What the last turn has left behind, looked at once for all who were refused in it.

    Args:
        core: The sequencer, between two turns.
    """

    def __init__(self, core: Sequencer) -> None:
        self._core = core
        self._pending: list[tuple[int, int, Heads]] | None = None

    def standing(self, refused: Refused | None) -> Standing:
        """Say what a subscription has that was refused this; None for one that has all that was delivered."""
        if refused is None:
            return self._standing((self._core.applied_number, INDEX_END), (1 << 64, 0), (self._core.fanout.turn + 1, 0))
        group, index, early, delivered, early_group, early_index, turn = refused
        passing = (turn + 1, 0) if group else (turn, index)
        if early:
            return self._standing((delivered, INDEX_END), (group, index), passing)
        place = (group, index - 1) if group and index else (delivered, INDEX_END)
        return self._standing(place, (early_group, early_index), passing)

    def _standing(self, place: Place, early_end: Place, passing: Place) -> Standing:
        """Say what it has by its place, and by where its early and its ephemeral chunks end."""
        done: dict[int, int] = {}
        for number, count in self._early_counts(place[0]):
            have = count if number < early_end[0] else early_end[1] if number == early_end[0] else 0
            if have:
                done[number] = have
        return Standing(place, done, passing)

    def _early_counts(self, after: int) -> Iterator[tuple[int, int]]:
        """How many chunks were delivered early of each group past a number."""
        core = self._core
        yield from ((group.number, group.early) for group in core.recent.past(after))
        if core.in_commit is not None:
            yield core.in_commit.number, core.in_commit.early
        yield core.tails.group_number, core.tails.early_chunks

    def after(self, name: bytes, standing: Standing) -> int:
        """Return the last sequence of a channel in memory that the subscription has, of those that can be read back."""
        tails = self._core.tails
        channel = tails.stored_id(name)
        for group in self._core.recent.past(standing.place[0] - 1):
            for index, first, _, _, _ in group.heads.get(channel, ()):
                if not standing.has(group.number, index):
                    return first - 1
        for number, base, heads in self._pending_early():
            for index, first, _, _, _ in heads.get(channel, ()):
                if not standing.has(number, base + index):
                    return first - 1
        info = tails.info(name)
        assert info is not None
        # What a channel has had since it became ephemeral is never read back.
        return (info[4] if info[1] == Level.EPHEMERAL else info[6]) - 1

    def _pending_early(self) -> list[tuple[int, int, Heads]]:
        """The chunks of pending groups that were delivered early: (group, index of the first, heads) of each value."""
        if self._pending is None:
            core = self._core
            groups = [(core.tails.group_number, core.tails.early_values)]
            if core.in_commit is not None:
                groups.insert(0, (core.in_commit.number, core.in_commit.early_values))
            self._pending = []
            for number, values in groups:
                base = 0
                for value in values:
                    heads = chunk_heads(value, 0)
                    self._pending.append((number, base, heads))
                    base += _count(heads)
        return self._pending


def _count(heads: Mapping[int, list[tuple[int, int, int, int, int]]]) -> int:
    return sum(map(len, heads.values()))
