"""Where the archive is ahead of its checkpoint, readers cut: nothing comes twice, whichever layer it is read from."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from broker.log import view as view_module
from broker.log.archive_rows import Checkpoint
from broker.log.resolve import Layers
from broker.log.view import View
from tests.reference.groups import SNAPSHOT, build_chunk, build_entry, chunk_of, line_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.log.archive import Archive
    from broker.log.segment import Segment
    from broker.log.tables import SegmentTables

BYTES_MAX = 1 << 20
PRODUCER = b"line-of-sixteen!"


def chunk(first: int, count: int) -> bytes:
    return build_chunk(chunk_of(1, 7, first, [b"%d" % (first + at) for at in range(count)]))


def spans(chunks: list[tuple[int, int, bytes]]) -> list[tuple[int, int]]:
    """Return the first and the last sequence of each chunk."""
    found = []
    for _, _, each in chunks:
        first, count = int.from_bytes(each[24:32], "little"), int.from_bytes(each[32:36], "little")
        found.append((first, first + count - 1))
    return found


class Ahead:
    """An archive and its snapshot, which has some chunks of a slice that is on its way."""

    checkpoint = Checkpoint.empty()

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    @contextmanager
    def snapshot(self) -> Iterator[Ahead]:
        yield self

    def chunks(self, *bounds: int) -> list[bytes]:
        return self._chunks

    def chunks_back(self, *bounds: int) -> list[bytes]:
        return self._chunks


def view_of(archived: list[bytes], live: list[bytes], monkeypatch: pytest.MonkeyPatch) -> View:
    """Return a view over an archive that is ahead, and what its segments answer."""
    placed = [(number, 0, each) for number, each in enumerate(live, 1)]
    view = View(cast("Archive", Ahead(archived)), cast("Any", lambda: cast("tuple[Segment, ...]", ())))
    monkeypatch.setattr(view._channels, "read", lambda *asked: placed)
    monkeypatch.setattr(view_module, "read_back", lambda *asked: placed)
    return view


@pytest.mark.parametrize(
    ("archived", "live", "expected"),
    [
        ([(1, 4)], [(3, 4)], [(1, 4), (5, 6)]),
        ([(1, 4)], [(3, 2), (5, 1)], [(1, 4), (5, 5)]),
        ([(1, 4)], [(5, 2)], [(1, 4), (5, 6)]),
        ([(1, 2), (3, 2)], [(1, 6)], [(1, 2), (3, 4), (5, 6)]),
    ],
)
def test_what_the_archive_told_is_cut_off_what_segments_tell(
    archived: list[tuple[int, int]],
    live: list[tuple[int, int]],
    expected: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = view_of([chunk(*each) for each in archived], [chunk(*each) for each in live], monkeypatch)
    assert spans(view.channel(1, 0, BYTES_MAX, 0)) == expected
    if live[0][0] > 1:
        assert spans(view.channel_back(1, 7, 100, BYTES_MAX)) == expected


def test_what_does_not_go_on_from_the_archive_is_left_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of([chunk(1, 2)], [chunk(4, 2)], monkeypatch)
    assert spans(view.channel(1, 0, BYTES_MAX, 0)) == [(1, 2)]
    # Backwards it is the newest that counts: what the archive has is not next to it.
    assert spans(view.channel_back(1, 6, 5, BYTES_MAX)) == [(4, 5)]


class Lines:
    """A layer, or the archive, that has one entry of the producer's line."""

    def __init__(self, entry: bytes) -> None:
        self._entry = entry

    def lines(self, producers: list[bytes]) -> list[bytes]:
        return [self._entry]

    def find_lines(self, producers: list[bytes], skip: bytearray) -> tuple[list[int], list[bytes]]:
        return ([], []) if skip[0] else ([0], [self._entry])


def line(number: int, count: int, flags: int = 0) -> bytes:
    return build_entry(line_entry(PRODUCER, number, count, [(1, number, count)], flags))


def test_a_line_that_the_archive_is_ahead_of_does_not_go_back() -> None:
    """Numbers 5 to 8 are in the archive's row already; 9 to 12 end past it."""
    archived, within, beyond = line(1, 10, SNAPSHOT), line(5, 4), line(9, 4)
    segments = cast("list[SegmentTables]", [Lines(beyond), Lines(within)])  # the newest first
    layers = Layers(cast("Any", Lines(archived)), segments)
    assert layers.lines([PRODUCER]) == [archived + beyond]
