"""The lines of a shard, by producer."""

from __future__ import annotations

from broker.core.lines import Lines

ADA, BOB = b"a" * 16, b"b" * 16


def test_a_producer_has_one_line() -> None:
    lines = Lines()
    assert len(lines) == 0
    assert lines.known(ADA) is None
    line = lines.line(ADA)
    assert line.producer == ADA
    assert lines.line(ADA) is lines.known(ADA) is line
    assert lines.line(BOB) is not line
    assert len(lines) == 2


def test_highest_is_what_the_line_has_taken() -> None:
    lines = Lines()
    assert lines.highest(ADA) == 0
    assert lines.known(ADA) is None, "asking creates nothing"
    line = lines.line(ADA)
    assert lines.highest(ADA) == 0
    line.next = 8
    assert lines.highest(ADA) == 7


def test_highest_counts_numbers_that_may_be_stored() -> None:
    """After a failed commit the line goes back, but a client must not give those numbers to other records yet."""
    lines = Lines()
    line = lines.line(ADA)
    line.next, line.closed_next = 3, 6
    assert lines.highest(ADA) == 5


def test_line_is_forgotten_only_while_it_has_taken_no_number() -> None:
    lines = Lines()
    unused, used, lost, stored = (bytes([number]) * 16 for number in range(4))
    for producer in (unused, used, lost, stored):
        lines.line(producer)
    lines.line(used).next = 2  # pending
    lines.line(lost).closed_next = 2  # its group may be on the disk all the same
    lines.line(stored).applied_next = 2
    for producer in (unused, used, lost, stored, b"n" * 16):
        lines.forget_unused(producer)
    assert [lines.known(producer) is not None for producer in (unused, used, lost, stored)] == [False, True, True, True]
