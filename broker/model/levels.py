"""Durability levels: what a profile promises and what an acknowledgement says was kept."""

from __future__ import annotations

from enum import IntEnum


class Level(IntEnum):
    """How far a record has come; a higher level keeps every promise of the lower ones.

    The values are those of the wire and of the journal. They compare as numbers.
    """

    EPHEMERAL = 1
    """Delivered to whoever listens, never stored."""

    ACCEPTED = 2
    """In memory, on disk with the next commit; a crash loses at most the last 50 ms."""

    SYNCED = 3
    """On disk and synced before it is acknowledged and before anyone sees it."""

    REPLICATED = 4
    """On a majority of a distributed log; no home of this build offers it."""

    @property
    def label(self) -> str:
        """The name in configuration and on the command line, for instance `synced`."""
        return _LABELS[self]


_LABELS = {level: level.name.lower() for level in Level}
_LEVELS = {label: level for level, label in _LABELS.items()}


def parse_level(label: str) -> Level:
    """Return the level of a label.

    Raises:
        ValueError: no level has that label; the caller knows which setting to name.
    """
    level = _LEVELS.get(label)
    if level is None:
        raise ValueError(f"no durability level is called {label!r}")
    return level
