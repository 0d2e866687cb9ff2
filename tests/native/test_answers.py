"""`broker_native.answers`: whole frames against what `read_stretch` reads, question by question.

The twin goes chunk by chunk through Python; what the kernel leaves out must be what the archive alone cannot answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log.archive import Snapshot
from broker.model.errors import StorageCorrupt
from broker.model.history import HISTORY_BYTES_MAX, HistoryPart, HistoryQuery
from broker.model.levels import Level
from broker.node.stretch import Known, begin_at, read_stretch
from broker.wire import control, requests
from broker.wire.kinds import Kind
from broker_native.answers import StretchReader, stored_channel
from tests.native.starve import refusals
from tests.native.test_archive import reader_of, small_model
from tests.native.test_archive_answers import TIME_US, make_archive
from tests.reference.archive import ArchiveModel
from tests.reference.chunks import Item, items_of
from tests.reference.groups import Group, build_entry, channel_entry, chunk_of, epoch_entry, head_entry, trim_entry
from tests.unit.log.archive_flips import poke

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

NOW_S = TIME_US // 1_000_000
FRAME_HEADER_BYTES = 8
MANY = 600


class Alone:
    """An archive as a `ChannelReader` of its own."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def read_channel(self, channel: int, after: int, bytes_max: int, before: int = 0) -> list[tuple[int, int, bytes]]:
        return [(0, 0, chunk) for chunk in self._snapshot.chunks(channel, after, bytes_max, before)]

    def read_channel_back(self, channel: int, before: int, count: int, bytes_max: int) -> list[tuple[int, int, bytes]]:
        return [(0, 0, chunk) for chunk in self._snapshot.chunks_back(channel, before, count, bytes_max)]

    def sequence_at(self, channel: int, first: int, next_sequence: int, time_us: int) -> int:
        raise AssertionError("the kernel answers no questions about times")


def parted(frames: bytes) -> list[tuple[int, HistoryPart]]:
    """Take frames apart, one behind the other."""
    found = []
    while frames:
        size = FRAME_HEADER_BYTES + int.from_bytes(frames[:4], "little")
        assert frames[4:FRAME_HEADER_BYTES] == bytes([Kind.REPLY, 0, 0, 0])
        number, fields = control.decode_reply(frames[FRAME_HEADER_BYTES:size])
        assert len(fields) == (8 if "outcome" not in fields else 10)
        found.append((number, requests.decode_history_part(fields)))
        frames = frames[size:]
    return found


def said(chunks: bytes) -> list[list[Item]]:
    """Return what chunks say, by chunk. The time of a run that is gone is that of any of its records."""
    found = []
    while chunks:
        size = int.from_bytes(chunks[:4], "little")
        items = items_of(chunks[:size])
        found.append(
            [
                replace(
                    item,
                    time_us=item.time_us if item.record.gone is None else 0,
                    record=replace(item.record, time_us=0),
                )
                for item in items
            ]
        )
        chunks = chunks[size:]
    return found


def ask(stretches: StretchReader, number: int, known: Known, query: HistoryQuery) -> None:
    if query.after is None and number % 2 and known.id:
        head = [channel_entry(known.id, "room", known.level), *(epoch_entry(known.id, *each) for each in known.epochs)]
        entries = [*head, head_entry(known.id, known.epoch, known.next, known.first)]
        stretches.add_stored(number, b"".join(map(build_entry, entries)), query)
        return
    stretches.add(number, known, query, None if query.after is None else begin_at(known, query))


def known_of(model: ArchiveModel, channel: int) -> Known:
    if channel not in model.channels:
        return Known.nothing(Level.SYNCED)
    return Known.from_entries(model.channels[channel].entries(channel))


def make_query(pick: random.Random, known: Known) -> HistoryQuery:
    """Return a question whose bounds are near a channel's, or far off."""
    sequences = [None, 0, 1, known.first, known.next, 1 << 63, (1 << 64) - 1, *range(1, known.next + 2)]
    query = HistoryQuery(
        "room",
        before=pick.choice(sequences),
        last=pick.choice((None, None, 0, 1, 3, 7, (1 << 64) - 1)),
        limit=pick.choice((None, None, 1, 2, 5, (1 << 64) - 1)),
        reverse=pick.random() < 0.5,
        bytes_max=pick.choice((1, 150, 400, HISTORY_BYTES_MAX)),
    )
    if pick.random() < 0.5:
        query = query._replace(after=pick.choice(sequences[1:]), after_epoch=pick.choice((0, 5, 6, 1 << 41)))
    return query


@pytest.fixture(scope="module")
def archive_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers") / "archive.mdb"


@given(st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_frames_are_those_that_the_twin_packs(archive_path: Path, pick: random.Random) -> None:
    model = make_archive(pick)
    model.write(archive_path, row_bytes=pick.choice((1, 300, 16368)))
    reader = reader_of(archive_path)
    alone = Alone(Snapshot(archive_path, reader))
    stretches = StretchReader()
    now_s = NOW_S + pick.choice((0, 3, 4, 10, 10_000_000))
    asked = []
    for number in range(1, 21):
        known = known_of(model, pick.choice([*model.channels, 1, 1 << 60]))
        if pick.random() < 0.2 and known.next > known.first:
            known = known._replace(first=pick.randrange(known.first, known.next + 1))
        query = make_query(pick, known)
        asked.append((number * 333, known, query))
        ask(stretches, number * 333, known, query)
    assert stretches.read(reader, 0, 1 << 30, now_s) == len(asked)
    answers = parted(stretches.frames_of(0, len(asked)))
    for (number, part), (asked_number, known, query) in zip(answers, asked, strict=True):
        expected = read_stretch(alone, known, query, now_s)
        assert number == asked_number
        assert said(part.chunks) == said(expected.chunks)
        assert part == expected._replace(chunks=part.chunks)
    for at, (number, *_) in enumerate(asked):
        assert parted(stretches.frames_of(at, at + 1))[0][0] == number


@pytest.mark.parametrize("reverse", [False, True])
def test_what_goes_past_the_archive_is_left(archive_path: Path, reverse: bool) -> None:
    model = small_model()
    model.write(archive_path)
    reader = reader_of(archive_path)
    stored = known_of(model, 2)
    longer = stored._replace(next=stored.next + 1)
    query = HistoryQuery("two", reverse=reverse)
    for known, more, count in (
        (stored, query, 2),
        (longer, query, 1),
        (longer, query._replace(before=stored.next + 1), 1),
        (longer, query._replace(before=stored.next), 2),
        (longer, query._replace(limit=3), 1 if reverse else 2),
        (longer, query._replace(last=1), 1),
        (longer, query._replace(last=0), 2),
        (longer._replace(id=77), query, 1),
    ):
        stretches = StretchReader()
        ask(stretches, 1, stored, query)
        ask(stretches, 2, known, more)
        assert stretches.read(reader, 0, 1 << 30, 0) == count, (known, more)


def test_times_and_what_was_skipped_are_left(archive_path: Path) -> None:
    model = small_model()
    model.write(archive_path)
    reader = reader_of(archive_path)
    known = known_of(model, 2)
    for query in (HistoryQuery("two", from_us=0), HistoryQuery("two", until_us=TIME_US)):
        stretches = StretchReader()
        ask(stretches, 1, known, query)
        assert stretches.read(reader, 0, 1 << 30, 0) == 0
    stretches = StretchReader()
    stretches.skip()
    ask(stretches, 2, known, HistoryQuery("two"))
    assert stretches.count == 2
    assert stretches.read(reader, 0, 1 << 30, 0) == 0
    assert stretches.read(reader, 1, 1 << 30, 0) == 1
    for begin, end in ((0, 1), (0, 2), (1, 1), (1, 3), (2, 2)):
        with pytest.raises(ValueError, match="were read"):
            stretches.frames_of(begin, end)
    stretches.clear()
    assert stretches.count == 0
    with pytest.raises(ValueError, match="were read"):
        stretches.frames_of(1, 2)


def test_answers_end_when_there_is_no_room(archive_path: Path) -> None:
    model = small_model()
    model.write(archive_path)
    reader = reader_of(archive_path)
    stretches = StretchReader()
    for number in range(200):
        ask(stretches, number, known_of(model, 2), HistoryQuery("two"))
    assert stretches.read(reader, 0, 1, 0) == 1
    size = len(stretches.frames_of(0, 1))
    assert stretches.read(reader, 50, 3 * size, 0) == 3
    assert [number for number, _ in parted(stretches.frames_of(50, 53))] == [50, 51, 52]
    assert stretches.read(reader, 0, 3 * size + 1, 0) == 4
    assert stretches.read(reader, 198, 1 << 30, 0) == 2


def test_chunks_are_joined_up_to_their_bound(archive_path: Path) -> None:
    """Chunks of 64 KiB at most, however large the answer: and the room of frames grows with them, then shrinks."""
    model = ArchiveModel()
    model.create(1, "one")
    for number in range(1, 101):
        model.commit(Group(number, number - 1, chunks=(chunk_of(1, 1, number, [bytes(9000)], TIME_US + number),)))
    model.write(archive_path, row_bytes=1)
    reader = reader_of(archive_path)
    stretches = StretchReader()
    for number in range(8):
        ask(stretches, number, known_of(model, 1), HistoryQuery("one", reverse=number % 2 == 1, bytes_max=1 << 20))
    assert stretches.read(reader, 0, 1 << 30, 0) == 8
    alone = Alone(Snapshot(archive_path, reader))
    expected = read_stretch(alone, known_of(model, 1), HistoryQuery("one", bytes_max=1 << 20), 0)
    for _, part in parted(stretches.frames_of(0, 8)):
        assert part.chunks == expected.chunks
        assert len(part.chunks) > 900_000
        assert int.from_bytes(part.chunks[:4], "little") <= 65536
    stretches.clear()
    ask(stretches, 1, known_of(model, 1), HistoryQuery("one", last=1))
    assert stretches.read(reader, 0, 1 << 30, 0) == 1
    ((_, part),) = parted(stretches.frames_of(0, 1))
    assert [item.sequence for item in items_of(part.chunks)] == [100]


def test_backwards_through_very_many_chunks_is_left(archive_path: Path) -> None:
    model = ArchiveModel()
    model.create(1, "one")
    for number in range(1, MANY + 1):
        model.commit(Group(number, number - 1, chunks=(chunk_of(1, 1, number, [b""], TIME_US + number),)))
    model.write(archive_path, row_bytes=1)
    reader = reader_of(archive_path)
    stretches = StretchReader()
    ask(stretches, 1, known_of(model, 1), HistoryQuery("one"))
    ask(stretches, 2, known_of(model, 1), HistoryQuery("one", last=20, reverse=True))
    ask(stretches, 3, known_of(model, 1), HistoryQuery("one", reverse=True))
    assert stretches.read(reader, 0, 1 << 30, 0) == 2
    forward, back = parted(stretches.frames_of(0, 2))
    assert items_of(forward[1].chunks)[-1].sequence == MANY
    assert [item.sequence for item in items_of(back[1].chunks)] == list(range(MANY - 19, MANY + 1))


def test_what_is_damaged_stops_only_at_itself(tmp_path: Path) -> None:
    # A file of its own: one that was written before has former copies of the same rows in its free pages.
    archive_path = tmp_path / "archive.mdb"
    model = small_model()
    model.write(archive_path)
    content = archive_path.read_bytes()
    chunk = model.channels[2].rows(16368)[0]
    at = content.index(chunk)
    poke(archive_path, at + 60, content[at + 60] ^ 1)
    reader = reader_of(archive_path)
    snapshot = Snapshot(archive_path, reader)
    stretches = StretchReader()
    for number, channel in enumerate((1, 2, 1)):
        ask(stretches, number, known_of(model, channel), HistoryQuery("room"))
    assert snapshot.answer(stretches, 0, 1 << 30, 0) == 1
    with pytest.raises(StorageCorrupt, match="channel 2"):
        snapshot.answer(stretches, 1, 1 << 30, 0)
    assert snapshot.answer(stretches, 2, 1 << 30, 0) == 1


def test_what_is_stored_of_a_channel() -> None:
    entries = [
        channel_entry(7, "seven", Level.ACCEPTED),
        epoch_entry(7, 5, 1),
        epoch_entry(7, 9, 40),
        head_entry(7, 9, 60, 12),
        trim_entry(7, 33),
    ]
    packed = b"".join(map(build_entry, entries))
    assert stored_channel(packed) == (7, Level.ACCEPTED, 33, 60, [(5, 1), (9, 40)])
    assert stored_channel(b"") == (0, 0, 1, 1, [])
    for cut in (packed[:-1], packed + b"1234567", packed + bytes(8)):
        with pytest.raises(ValueError, match="entries"):
            stored_channel(cut)


def test_questions_that_cannot_be_are_refused() -> None:
    stretches = StretchReader()
    with pytest.raises(ValueError, match="query"):
        stretches.add(1, Known.nothing(Level.SYNCED), HistoryQuery("room")[:9], None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="query"):
        stretches.add_stored(1, b"", list(HistoryQuery("room")))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="entries"):
        stretches.add_stored(1, b"entry", HistoryQuery("room"))
    assert stretches.count == 0


def test_an_outcome_has_one_of_three_names() -> None:
    stretches = StretchReader()
    with pytest.raises(ValueError, match="outcome"):
        stretches.add(1, Known.nothing(Level.SYNCED), HistoryQuery("room"), ("lost", 0, 0))
    assert stretches.count == 0


def test_without_memory(archive_path: Path) -> None:
    model = small_model()
    model.write(archive_path)
    reader = reader_of(archive_path)
    known = known_of(model, 2)

    def prepare() -> Callable[[], None]:
        stretches = StretchReader()

        def call() -> None:
            ask(stretches, 1, known, HistoryQuery("two"))
            assert stretches.read(reader, 0, 1 << 30, 1 << 40) == 1

        return call

    assert refusals(prepare) > 0
