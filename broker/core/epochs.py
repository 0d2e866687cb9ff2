"""What a reader's position is still good for.

A position (epoch, sequence) is good while the sequence is at most the last one that was stored under its epoch. Resume
then goes on across the later epochs. Beyond it the reader has seen records that a crash took: it is told the last
sequence that it has in common with the channel.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RUN_SHIFT", "Outcome", "resume"]

RUN_SHIFT = 40
"""An epoch is (run, group that it began in): the run is above these bits."""
EPHEMERAL_BIT = 1 << 39
"""Set in the epochs of ephemeral channels, which count by themselves."""


class Outcome(NamedTuple):
    """The answer to a position: `name` is resumed, trimmed or diverged, and delivery begins after `after`.

    `at` is what the answer tells: the position itself, the first sequence there is, or the last common one.
    """

    name: str
    at: int
    after: int


def resume(epochs: list[tuple[int, int]], first: int, next_sequence: int, epoch: int, sequence: int) -> Outcome:
    """Judge a reader's position.

    Args:
        epochs: The channel's (epoch, first sequence), oldest first.
        first: Oldest sequence that the channel still has.
        next_sequence: The sequence after its newest record that readers may see.
        epoch, sequence: The position; sequence 0 is the very beginning whatever its epoch.

    Returns:
        The outcome.
    """
    if sequence == 0:
        return _after(first, 0)
    end = next_sequence - 1
    for index, (known, _) in enumerate(epochs):
        if known == epoch:
            last = epochs[index + 1][1] - 1 if index + 1 < len(epochs) else end
            if sequence <= last:
                return _after(first, sequence)
            return Outcome("diverged", last, max(last, first - 1))
    # The epoch was lost with its records, or was ephemeral. It began where the newest older epoch had its last
    # committed record, or later, so everything before the first epoch that is newer than it is common.
    common = next((begin - 1 for known, begin in epochs if known > _oldest(epoch)), end)
    common = min(common, sequence)
    return Outcome("diverged", common, max(common, first - 1))


def _oldest(epoch: int) -> int:
    """The epoch itself; for an ephemeral one, which has no place among its run's groups, the beginning of the run."""
    return epoch >> RUN_SHIFT << RUN_SHIFT if epoch & EPHEMERAL_BIT else epoch


def _after(first: int, sequence: int) -> Outcome:
    if sequence + 1 < first:
        return Outcome("trimmed", first, first - 1)
    return Outcome("resumed", sequence, sequence)
