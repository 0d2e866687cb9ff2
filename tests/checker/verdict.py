"""What the checker says: the kinds of anomaly, one anomaly, and the verdict over a history."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

SHOWN_PER_KIND_MAX = 5


class Kind(StrEnum):
    """The ways in which a log can fail its users."""

    LOST = "lost"
    """Acknowledged, seen or committed, and then not there; or a hole; or never handed to one who caught up."""

    DUPLICATE = "duplicate"
    """One value in two places, or one position handed twice to one consumer."""

    REORDERED = "reordered"
    """Against the sequence, against the producer's own order, or against real time."""

    SKIPPED = "skipped"
    """A consumer went past a record without it, in a batch, between two, or over a resume."""

    INCONSISTENT = "inconsistent"
    """One position, two values."""

    FROM_NOWHERE = "from nowhere"
    """A value that nobody had published, or whose publish was refused."""

    WRONG_CHANNEL = "wrong channel"
    """A value in a channel to which it was not published."""

    EARLY = "early"
    """Acknowledged, or shown, before it had the durability that was promised."""

    STALE_EPOCH = "stale epoch"
    """An epoch that had ended is written or read again."""

    RESURRECTED = "resurrected"
    """What an acknowledged trim removed is back."""


class Anomaly(NamedTuple):
    """One finding: `records` sequences of `epoch` from `sequence` on. Epoch 0 means that no epoch is known for them.

    `who` is the consumer that suffered it, and empty when the log itself is wrong.
    """

    kind: Kind
    channel: str
    epoch: int
    sequence: int
    records: int
    who: str
    detail: str

    def __str__(self) -> str:
        last = f"…{self.sequence + self.records - 1}" if self.records > 1 else ""
        who = f" for {self.who}" if self.who else ""
        return f"{self.kind}: {self.channel} at {self.epoch}:{self.sequence}{last}{who}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check.

    Attributes:
        anomalies: every finding; the history is good when there is none.
        acknowledged: operations with an acknowledgement.
        unanswered: operations that are neither acknowledged nor refused.
        delivered: records handed to consumers, summed over them.
        stored: records in the log.
        excused: `accepted` operations that a crash took within the window that their level allows.
    """

    anomalies: tuple[Anomaly, ...]
    acknowledged: int
    unanswered: int
    delivered: int
    stored: int
    excused: int

    @property
    def passed(self) -> bool:
        """Say whether nothing was found."""
        return not self.anomalies

    def count(self, kind: Kind) -> int:
        """Return the number of records with an anomaly of this kind."""
        return sum(anomaly.records for anomaly in self.anomalies if anomaly.kind is kind)

    def __str__(self) -> str:
        lines = [
            f"{self.acknowledged} acknowledged, {self.unanswered} unanswered, {self.excused} excused, "
            f"{self.stored} stored, {self.delivered} delivered, {len(self.anomalies)} anomalies"
        ]
        shown: Counter[Kind] = Counter()
        for anomaly in self.anomalies:
            shown[anomaly.kind] += 1
            if shown[anomaly.kind] <= SHOWN_PER_KIND_MAX:
                lines.append(f"  {anomaly}")
        lines += [f"  … {n - SHOWN_PER_KIND_MAX} more {kind}" for kind, n in shown.items() if n > SHOWN_PER_KIND_MAX]
        return "\n".join(lines)
