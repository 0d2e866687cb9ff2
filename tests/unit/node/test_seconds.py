"""Rows of the last minutes."""

from __future__ import annotations

from broker.node.seconds import SECONDS_MAX, Second, Seconds


def test_the_newest_rows_stay() -> None:
    seconds = Seconds()
    assert seconds.last(10) == []
    rows = [Second(number, *[0] * (len(Second._fields) - 1)) for number in range(SECONDS_MAX + 5)]
    for row in rows:
        seconds.note(row)
    assert seconds.last(0) == []
    assert seconds.last(2) == rows[-2:]
    assert seconds.last(10 * SECONDS_MAX) == rows[5:]
