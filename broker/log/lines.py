"""A producer's line as the archive keeps it: one whole LINE entry, made of what segments say of it one after the other.

An entry says up to which number the line goes and, in runs, where its last numbers were published. One that is no
snapshot goes on from what earlier segments left. Applied again, all of them in their order, they end at the same.
"""

from __future__ import annotations

import struct

LINE_WINDOW = 1024
_PRODUCER = slice(8, 24)
_KIND_LINE = 3
_FLAG_SNAPSHOT = 2
_HEADER = struct.Struct("<IHH16sQQII")
_RUN = struct.Struct("<QQI")

Run = tuple[int, int, int]


def merge_lines(stored: bytes | None, entries: list[bytes]) -> bytes:
    """Return the whole line after some entries.

    Args:
        stored: the line so far, as this function returns it; None when there is none.
        entries: LINE entries of one producer, oldest first, at least one; they were checked when they were sealed.
    """
    highest, runs = 0, list[Run]()
    for entry in [stored, *entries] if stored is not None else entries:
        _, _, flags, _, number, count, _, _ = _HEADER.unpack_from(entry)
        last = number + count - 1
        added = list(_RUN.iter_unpack(entry[_HEADER.size :]))
        goes_on = not flags & _FLAG_SNAPSHOT and number == highest + 1
        if not goes_on and not flags & _FLAG_SNAPSHOT and last <= highest:
            continue
        # Runs cover the last numbers without a hole: what an entry does not cover separates it from all before it.
        covered = sum(run[2] for run in added)
        runs = _joined(runs, added) if goes_on and covered == count else added
        highest = last
    return _pack(entries[0][_PRODUCER], highest, _within_window(runs))


def _joined(runs: list[Run], added: list[Run]) -> list[Run]:
    if runs and added and runs[-1][0] == added[0][0] and runs[-1][1] + runs[-1][2] == added[0][1]:
        channel, first, count = runs[-1]
        if count + added[0][2] < 1 << 32:
            return [*runs[:-1], (channel, first, count + added[0][2]), *added[1:]]
    return runs + added


def _within_window(runs: list[Run]) -> list[Run]:
    """Return the runs of the last LINE_WINDOW numbers."""
    surplus = sum(run[2] for run in runs) - LINE_WINDOW
    at = 0
    while surplus > 0 and runs[at][2] <= surplus:
        surplus -= runs[at][2]
        at += 1
    if surplus <= 0:
        return runs[at:]
    channel, first, count = runs[at]
    return [(channel, first + surplus, count - surplus), *runs[at + 1 :]]


def _pack(producer: bytes, highest: int, runs: list[Run]) -> bytes:
    size = _HEADER.size + len(runs) * _RUN.size
    header = _HEADER.pack(size, _KIND_LINE, _FLAG_SNAPSHOT, producer, 1, highest, len(runs), 0)
    return header + b"".join(_RUN.pack(*run) for run in runs)
