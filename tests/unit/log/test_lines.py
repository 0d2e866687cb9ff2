"""Lines merged over segments: what a reader of all the groups knows, however they are cut, and again when repeated."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log.lines import merge_lines
from tests.reference.groups import SNAPSHOT, Entry, Line, build_entry, line_entry, parse_entries

PRODUCER = b"line-of-sixteen!"


def history(seed: int) -> list[Entry]:
    """Entries of one producer as segments have them: going on, beginning anew, knowing only the last places."""
    pick = random.Random(seed)
    entries: list[Entry] = []
    number, first = 1, 1
    for _ in range(pick.randint(1, 8)):
        count = pick.choice((1, 2, 30, 700, 1024, 1500))
        kind = pick.randrange(8)
        flags = SNAPSHOT if kind < 2 or not entries else 0
        if kind == 0:
            number = 1
        covered = count if kind != 2 else count // 2
        runs = []
        while covered:
            length = min(covered, pick.choice((1, 7, 500, 4000)))
            runs.append((pick.randint(1, 2), first, length))
            first += length
            covered -= length
        entries.append(line_entry(PRODUCER, number, count, runs, flags))
        number += count
    return entries


def known(entries: list[Entry]) -> tuple[int, dict[int, tuple[int, int]]]:
    """Return what a reader knows after some entries."""
    line = Line()
    for entry in entries:
        line.apply(entry)
    return line.highest, line.places


def parsed(merged: bytes) -> list[Entry]:
    """Return a merged line as entries."""
    (entry,) = parse_entries(merged)
    assert entry.flags == SNAPSHOT
    assert entry.body[:16] == PRODUCER
    return [entry]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 32), st.integers(0, 8))
def test_merged_in_two_parts_and_repeated(seed: int, cut: int) -> None:
    entries = history(seed)
    packed = [build_entry(entry) for entry in entries]
    before = merge_lines(None, packed[:cut]) if packed[:cut] else None
    merged = merge_lines(before, packed[cut:]) if packed[cut:] else before
    assert merged is not None
    assert known(parsed(merged)) == known(entries)
    # A slice that was cut short is repeated over what it has left.
    assert merge_lines(merged, packed[cut:] or packed) == merged
