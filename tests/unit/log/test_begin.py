"""A slice begins when it is wide, when a segment has waited for long, or when nobody is disturbed."""

from __future__ import annotations

from broker.log.begin import QUIET_BYTES_PER_S, Begin

BEGIN_BYTES = 1000
QUIET_S = 1.0
WAIT_S = 30.0
BUSY = 50 * QUIET_BYTES_PER_S


class Asking:
    """Asks as the archiving thread does: when told to, while the log is written to at some rate."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.begin = Begin(BEGIN_BYTES, QUIET_S, WAIT_S)
        self.now_s = 100.0
        self.appended_bytes = 0

    def until_due(self, waiting_bytes: int, oldest_s: float) -> float:
        """Return how long it takes until a slice begins."""
        began_s = self.now_s
        while (due_s := self.begin.due_in(self.now_s, oldest_s, waiting_bytes, self.appended_bytes)) > 0.0:
            self.pass_by(due_s)
        return self.now_s - began_s

    def pass_by(self, seconds: float) -> None:
        self.now_s += seconds
        self.appended_bytes += int(self.rate * seconds)


def test_waits_for_a_wide_slice_while_the_log_is_written_to() -> None:
    asking = Asking(BUSY)
    assert asking.begin.due_in(asking.now_s, asking.now_s, BEGIN_BYTES - 1, 0) > 0.0
    assert asking.until_due(BEGIN_BYTES, asking.now_s) == 0.0


def test_no_segment_waits_for_longer_than_the_bound() -> None:
    asking = Asking(BUSY)
    assert asking.until_due(1, asking.now_s) == WAIT_S
    assert asking.until_due(1, asking.now_s - WAIT_S) == 0.0
    assert asking.until_due(1, asking.now_s - WAIT_S / 2) == WAIT_S / 2


def test_begins_at_once_when_nobody_writes_any_more() -> None:
    asking = Asking(BUSY)
    assert asking.begin.due_in(asking.now_s, asking.now_s, 1, 0) == QUIET_S
    asking.rate = QUIET_BYTES_PER_S / 2
    assert asking.until_due(1, asking.now_s) <= 2 * QUIET_S


def test_a_log_that_was_quiet_is_busy_when_it_is_written_to() -> None:
    asking = Asking(0)
    assert asking.until_due(1, asking.now_s) <= 2 * QUIET_S
    # Nothing waits for an hour, and then the first segment of many comes.
    asking.pass_by(3600)
    asking.rate = BUSY
    asking.pass_by(QUIET_S / 2)
    assert asking.until_due(1, asking.now_s) == WAIT_S


def test_waits_for_nothing_when_told_to() -> None:
    assert Begin(1 << 60, 1e6, 0.0).due_in(5.0, 5.0, 1, 0) == 0.0
    assert Begin(1 << 60, 1e6, 1e6).due_in(5.0, 5.0, 1, 0) == 1e6
