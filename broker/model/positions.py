"""Places in a channel and places in a journal, with the text forms that people and files use."""

from __future__ import annotations

import re
from typing import NamedTuple

from broker.model.errors import BrokerError, error

U32_MAX = (1 << 32) - 1
U64_MAX = (1 << 64) - 1
JOURNAL_ID_BYTES = 16

# Canonical decimals only, so that text and value are one to one and equal texts mean equal places.
_DECIMAL = r"(0|[1-9][0-9]{0,19})"
_POSITION = re.compile(rf"{_DECIMAL}:{_DECIMAL}")
_BUS_POSITION = re.compile(rf"([0-9a-f]{{32}}):{_DECIMAL}:{_DECIMAL}")


class Position(NamedTuple):
    """A place in one channel: everything up to and including `sequence` is behind it.

    Attributes:
        epoch: u64, the stretch in which the sequence was assigned, never 0.
        sequence: u64; 0 stands before the channel's first record.
    """

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position of a text `epoch:sequence`, both decimal.

        Raises:
            RequestError: INVALID_POSITION; it is not of that form or out of range.
        """
        found = _POSITION.fullmatch(text)
        if found is None:
            raise _refusal(text, "epoch:sequence in decimal")
        position = cls(int(found[1]), int(found[2]))
        if position.epoch == 0 or max(position) > U64_MAX:
            raise _refusal(text, f"epoch from 1 and sequence from 0, both to {U64_MAX}")
        return position


class BusPosition(NamedTuple):
    """A place in the order in which everything was committed.

    Attributes:
        journal: 16 bytes, the identity of the journal.
        group: u64; 0 stands before the first group.
        index: u32, the chunk in the group.
    """

    journal: bytes
    group: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a position

    def __str__(self) -> str:
        return f"{self.journal.hex()}:{self.group}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> BusPosition:
        """Return the position of a text `journal:group:index`: 32 lower-case hex digits and two decimals.

        Raises:
            RequestError: INVALID_POSITION; it is not of that form or out of range.
        """
        found = _BUS_POSITION.fullmatch(text)
        if found is None:
            raise _refusal(text, "journal:group:index, 32 hex digits and two decimals")
        position = cls(bytes.fromhex(found[1]), int(found[2]), int(found[3]))
        if position.group > U64_MAX or position.index > U32_MAX:
            raise _refusal(text, f"group to {U64_MAX} and index to {U32_MAX}")
        return position


def _refusal(text: str, expected: str) -> BrokerError:
    """Name the text, cut short since it may be anything, and the form that it should have."""
    shown = text if len(text) <= 64 else f"{text[:64]}…"
    return error("INVALID_POSITION", f"position: got {shown!a}, expected {expected}")
