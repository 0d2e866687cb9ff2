"""Messages that wait for their time, as a listing tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["DELAYED_MAX", "DelayedPart", "DelayedQuery", "DelayedRow"]

DELAYED_MAX = 1_000
"""Messages in one part of a listing."""


@dataclass(frozen=True, slots=True)
class DelayedQuery:
    """What waits for channels whose names begin with `prefix`, behind `after` (b"" for the first part).

    At most `limit` are listed, 1 to `DELAYED_MAX`. `after` is what the part before this one has answered.
    """

    prefix: str = ""
    after: bytes = b""
    limit: int = DELAYED_MAX


class DelayedRow(NamedTuple):
    """A message that waits.

    Attributes:
        channel: where it will be published.
        id: its id, as bytes.
        due_us: when, microseconds since 1970.
        record_bytes: how large its record is.
        refusals: how often its channel did not take it at its time, 255 at most.
    """

    channel: str
    id: bytes
    due_us: int
    record_bytes: int
    refusals: int


@dataclass(frozen=True, slots=True)
class DelayedPart:
    """A part of a listing; `after` is where it goes on."""

    messages: tuple[DelayedRow, ...]
    after: bytes
    more: bool
