"""Figures of the last minutes, one row a second: what a console plots before it has looked on for as long.

Counters stand as they are, and who shows them makes rates; a row costs some 50 µs a second and a few hundred bytes.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import NamedTuple

__all__ = ["SECONDS_MAX", "Second", "Seconds"]

SECONDS_MAX = 300


class Second(NamedTuple):
    """One row: counters of this run, gauges, and percentiles of the last minute, µs; named as in `Node.stats`."""

    time_us: int
    records_in: int
    record_bytes_in: int
    records_out: int
    bytes_out: int
    groups: int
    connections: int
    lagging: int
    memory_bytes: int
    commit_p50_us: int
    commit_p99_us: int
    delivery_p50_us: int
    delivery_p99_us: int
    loop_lag_p99_us: int


class Seconds:
    """The rows of one run, the newest SECONDS_MAX of them."""

    def __init__(self) -> None:
        self._rows: deque[Second] = deque(maxlen=SECONDS_MAX)

    def note(self, second: Second) -> None:
        """Keep one; the oldest makes room."""
        self._rows.append(second)

    def last(self, count: int) -> list[Second]:
        """Return the newest ones, oldest first."""
        return list(islice(self._rows, max(len(self._rows) - count, 0), None))
