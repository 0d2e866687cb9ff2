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


def test_lines_that_nobody_uses_are_evicted_and_still_counted() -> None:
    lines = Lines()
    makers = [bytes([number]) * 16 for number in range(6)]
    _, held, pending, young, recent, old = (lines.line(producer) for producer in makers)
    for line in (held, pending, young, recent, old):
        line.next = line.closed_next = line.applied_next = 5
    lines.hold(makers[1])
    pending.next = 6
    young.used_s = 9
    recent.group = 8
    assert lines.evict(7, 9, 100) == 2
    assert [lines.known(producer) for producer in makers] == [None, held, pending, young, recent, None]
    assert len(lines) == 5, "one of the two is stored"
    assert (lines.stored_elsewhere, lines.evicted) == (1, 1)
    lines.release(makers[1])
    assert lines.known(makers[1]) is held
    assert lines.evict(8, 10, 100) == 3
    assert lines.known(makers[2]) is pending


def test_an_eviction_of_lines_goes_on_where_it_stopped() -> None:
    lines = Lines()
    for number in range(10):
        lines.line(bytes([number]) * 16)
    assert [lines.evict(0, 1, 4) for _ in range(3)] == [4, 4, 2]
    assert len(lines) == 0


def test_a_line_goes_with_its_last_hold_unless_it_was_used() -> None:
    lines = Lines()
    lines.hold(ADA)
    lines.hold(ADA)
    lines.release(ADA)
    assert lines.known(ADA) is not None
    lines.release(ADA)
    assert lines.known(ADA) is None


def test_a_line_may_go_while_the_others_are_looked_at() -> None:
    lines = Lines()
    for number in range(4):
        lines.line(bytes([number]) * 16)
    assert lines.evict(0, 1, 1) == 1
    for number in range(3):
        lines.forget_unused(bytes([number]) * 16)
    assert lines.evict(0, 1, 9) == 0
