"""The demo's judge: it passes what was published, and finds whatever is done to it on the way."""

from __future__ import annotations

import pytest

from broker.cli.demo.judge import Ledger, Reader, Tally

LINES = [b"import this", b"", b"# three", b"four"]
CHANNEL = "demo.lib.this"


def ledger(before: int = 10) -> Ledger:
    result = Ledger()
    result.open(CHANNEL, before).post(LINES, 1.0)
    return result


def judged(*deliveries: tuple[int, list[bytes]]) -> Tally:
    """Judge a reader who gets these runs; 11 is the first sequence."""
    reader = Reader(lambda channel: channel == CHANNEL)
    for first, payloads in deliveries:
        reader.take(CHANNEL, first, payloads)
    return reader.judge(ledger())


@pytest.mark.parametrize("split", range(len(LINES) + 1))
def test_everything_in_any_batches(split: int) -> None:
    tally = judged((11, LINES[:split]), (11 + split, LINES[split:]))
    assert tally == Tally(expected=4, received=4)
    assert tally.passed


@pytest.mark.parametrize(
    ("deliveries", "expected"),
    [
        ([], Tally(4, 0, lost=4)),
        ([(11, LINES[:3])], Tally(4, 3, lost=1)),
        ([(12, LINES[1:])], Tally(4, 3, lost=1)),
        ([(11, LINES[:1]), (13, LINES[2:])], Tally(4, 3, lost=1)),
        ([(11, LINES[:2]), (11, LINES)], Tally(4, 6, duplicated=2)),
        ([(11, LINES), (11, LINES)], Tally(4, 8, duplicated=4)),
        ([(11, LINES), (14, LINES[3:])], Tally(4, 5, duplicated=1)),
        ([(11, LINES[:1]), (13, LINES[2:]), (12, LINES[1:2])], Tally(4, 4, reordered=1)),
        ([(13, LINES[2:]), (11, LINES[:2])], Tally(4, 4, reordered=2)),
        ([(11, [LINES[1], LINES[0], *LINES[2:]])], Tally(4, 4, altered=1)),
        ([(11, [LINES[0][:-1], *LINES[1:]])], Tally(4, 4, altered=1)),
        ([(11, [LINES[0] + LINES[1][:1], LINES[1][1:], LINES[2] + b"f", b"our"])], Tally(4, 4, altered=1)),
        ([(11, [*LINES, b"five"])], Tally(4, 5, altered=1)),
    ],
)
def test_whatever_is_wrong_is_counted(deliveries: list[tuple[int, list[bytes]]], expected: Tally) -> None:
    tally = judged(*deliveries)
    assert tally == expected
    assert not tally.passed


def test_channel_that_nobody_published_to() -> None:
    reader = Reader(lambda channel: True)
    reader.take(CHANNEL, 11, LINES)
    reader.take("demo.lib.that", 1, [b"?"])
    assert reader.judge(ledger()) == Tally(4, 5, altered=1)


def test_channel_that_the_reader_did_not_want() -> None:
    reader = Reader(lambda channel: False)
    assert reader.is_complete(ledger())
    assert reader.judge(ledger()).passed
    reader.take(CHANNEL, 11, LINES)
    assert reader.judge(ledger()) == Tally(0, 4, altered=1)


def test_complete_when_the_last_message_is_there() -> None:
    reader = Reader(lambda channel: True)
    assert not reader.is_complete(ledger())
    reader.take(CHANNEL, 11, LINES[:3])
    assert not reader.is_complete(ledger())
    reader.take(CHANNEL, 14, LINES[3:])
    assert reader.is_complete(ledger())


def test_tallies_add_up() -> None:
    assert Tally(1, 2, 3, 4, 5, 6) + Tally(1, 1, 1, 1, 1, 1) == Tally(2, 3, 4, 5, 6, 7)
