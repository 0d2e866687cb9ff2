"""`broker_native.archive`: every answer of a snapshot against a model in dicts, at every size of rows.

The snapshots are of files that nobody writes to, read without LMDB; tests/unit/log/test_archive.py has the others.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log.archive import Snapshot
from broker.log.environment import open_lmdb
from broker.model.errors import StorageCorrupt
from tests.native.test_archive import reader_of
from tests.reference.archive import MAP_BYTES, ArchiveModel, replace_rows_in, sealed
from tests.reference.chunks import Item, items_of
from tests.reference.frames import Record, build_record
from tests.reference.groups import Chunk, Group, build_chunk, chunk_of
from tests.unit.log.archive_flips import build_model, poke, raw_questions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIME_US = 1_767_225_600_000_000
ALL = 1 << 40
PAGE_BYTES = 4096


def make_record(pick: random.Random) -> Record:
    """Return a record, or a run of what is gone."""
    if pick.random() < 0.1:
        return Record(time_us=pick.randrange(4), gone=(pick.choice((1, 2)), pick.randrange(1, 6)))
    return Record(
        payload=pick.randbytes(pick.choice((0, 5, 60))),
        time_us=pick.randrange(4),
        publisher=pick.choice((None, b"me")),
        expiry_s=pick.choice((None, 3)),
        key=pick.choice((None, b"key")),
    )


def make_archive(pick: random.Random) -> ArchiveModel:
    """Return an archive of some channels after some groups, trims and removals."""
    model = ArchiveModel()
    for channel in range(1, pick.randrange(1, 7) + 1):
        model.create(channel * 3, pick.choice(("a", "a.b", "chat", "z.z")) + f".{channel}")
    number, time_us, epoch = 0, TIME_US, 5
    for _ in range(pick.choice((0, 1, 3, 25))):
        number += pick.choice((1, 1, 3))
        time_us += pick.choice((0, 0, 1, 1000, 3_600_000_000))
        epoch += pick.choice((0, 0, 0, 1))
        chunks = []
        for channel in pick.sample(sorted(model.channels), pick.randrange(len(model.channels) + 1)):
            content = [make_record(pick) for _ in range(pick.randrange(1, 6))]
            content.sort(key=lambda record: record.time_us)
            count = sum(record.run for record in content)
            packed = b"".join(map(build_record, content))
            chunks.append(Chunk(channel, epoch, model.channels[channel].next, count, packed, time_us))
        # Times of a channel never go back, and a chunk's records are up to 3 µs later than it.
        time_us += 3
        model.commit(Group(number, number - 1, chunks=tuple(chunks), time_us=time_us))
    for channel in sorted(model.channels):
        end = pick.choice(("none", "none", "trim", "drop"))
        if end == "trim":
            model.trim(channel, pick.randrange(1, model.channels[channel].next + 1))
        elif end == "drop" and len(model.channels) > 1:
            model.drop(channel)
    for _ in range(pick.randrange(3)):
        model.line(pick.randbytes(16), pick.randrange(1, 9), [(3, 1, 2)] * pick.choice((1, 150)))
    return model


@pytest.fixture(scope="module")
def one_folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def written(folder: Path, rows: dict[bytes, bytes]) -> Snapshot:
    """Return a snapshot of an archive of some rows."""
    path = folder / "archive.mdb"
    for file in folder.iterdir():
        file.unlink()
    environment = open_lmdb(path, MAP_BYTES, locks=False)
    replace_rows_in(environment, rows)
    environment.close()
    return Snapshot(path, reader_of(path))


def plain(items: list[Item]) -> list[Item]:
    """Return records by what they say: a record's own time counts from its chunk's, which merging changes."""
    return [replace(item, record=replace(item.record, time_us=0)) for item in items]


def all_items(chunks: list[bytes]) -> list[Item]:
    return plain([item for chunk in chunks for item in items_of(chunk)])


class Choosing(set[int]):
    """Wanted channels that are asked for many at once."""

    def choose(self, channels: list[int]) -> set[int]:
        return self.intersection(channels)


def first_of(chunk: bytes) -> int:
    return items_of(chunk)[0].sequence


def next_of(chunk: bytes) -> int:
    return items_of(chunk)[-1].next_sequence


@given(st.integers(0, 2**32), st.sampled_from([0, 150, 1900, 16368]), st.sampled_from([0, 60, 16368]))
@settings(max_examples=25, deadline=None)
def test_every_answer_is_the_models(one_folder: Path, seed: int, row_bytes: int, index_bytes: int) -> None:
    pick = random.Random(seed)
    model = make_archive(pick)
    snapshot = written(one_folder, model.rows(row_bytes, index_bytes))
    check_tables(snapshot, model)
    check_names(snapshot, model, pick)
    for channel in (*model.channels, 1000):
        check_channel(snapshot, model, channel, pick)
    for wanted in (None, set(), set(list(model.channels)[:2]), set(model.channels) | {77}):
        check_bus(snapshot, model, wanted, pick)
    check_times(snapshot, model)


def check_tables(snapshot: Snapshot, model: ArchiveModel) -> None:
    counted = replace(model.checkpoint, channels=len(model.channels), producers=len(model.lines))
    assert snapshot.checkpoint == counted
    ids = sorted([*model.channels, 1, 1000])
    assert snapshot.channels(ids) == [
        model.channels[channel].entries(channel) if channel in model.channels else b"" for channel in ids
    ]
    producers = sorted([*model.lines, bytes(16), b"\xff" * 16])
    assert snapshot.lines(producers) == [model.lines.get(producer, b"") for producer in producers]
    assert snapshot.producers(b"", 100) == sorted(model.lines.items())
    assert snapshot.producers(b"", 1) == sorted(model.lines.items())[:1]


def check_names(snapshot: Snapshot, model: ArchiveModel, pick: random.Random) -> None:
    by_name = {state.name.encode(): channel for channel, state in model.channels.items()}
    asked = sorted([*by_name, b"", b"a", b"zz", b"a.b.9" * 50, b"x" * 600])
    assert snapshot.ids(asked) == [by_name.get(name, 0) for name in asked]
    prefix = pick.choice([b"", b"a", b"a.", b"a.b.", b"chat", b"zzz"])
    after = pick.choice([b"", b"a.1", b"a.b", b"b", b"z", *by_name])
    count_max = pick.choice([0, 1, 2, 100])
    assert snapshot.names(prefix, after, count_max) == model.names(prefix, after)[:count_max]
    listed: list[tuple[bytes, int]] = []
    while page := snapshot.names(prefix, listed[-1][0] if listed else b"", 2):
        listed += page
    assert listed == model.names(prefix, b"")


def check_channel(snapshot: Snapshot, model: ArchiveModel, channel: int, pick: random.Random) -> None:
    state = model.channels.get(channel)
    items = plain(state.items()) if state is not None else []
    whole = snapshot.chunks(channel, 0, ALL)
    assert all_items(whole) == items
    head = state.next if state is not None else 5
    after, before = pick.randrange(head + 2), pick.randrange(head + 2)
    wanted = [chunk for chunk in whole if next_of(chunk) > after + 1 and (before == 0 or first_of(chunk) < before)]
    if before != 0 and after + 1 >= before:
        wanted = []
    assert snapshot.chunks(channel, after, ALL, before) == wanted
    bytes_max = pick.randrange(2000)
    # Sizes are those of the rows: one that is cut counts whole.
    uncut = state is None or state.first == 1
    if uncut:
        assert snapshot.chunks(channel, after, bytes_max, before) == within(wanted, bytes_max)
    listed: list[bytes] = []
    while page := snapshot.chunks(channel, next_of(listed[-1]) - 1 if listed else 0, bytes_max):
        listed += page
    assert listed == whole
    count = pick.randrange(20)
    end = min(before, head) if before else head
    low = max(end - count, state.first if state is not None else 1)
    back = [chunk for chunk in whole if first_of(chunk) < end and next_of(chunk) > low] if low < end else []
    assert snapshot.chunks_back(channel, before, count, ALL) == back
    if uncut:
        assert snapshot.chunks_back(channel, before, count, bytes_max) == within(back[::-1], bytes_max)[::-1]


def within(chunks: list[bytes], bytes_max: int) -> list[bytes]:
    """Return the chunks that a bound leaves: at least one if there is any."""
    taken: list[bytes] = []
    for chunk in chunks:
        if taken and sum(map(len, taken)) + len(chunk) > bytes_max:
            break
        taken.append(chunk)
    return taken


def check_bus(snapshot: Snapshot, model: ArchiveModel, wanted: set[int] | None, pick: random.Random) -> None:
    expected = [(group, index, channel, plain(items)) for group, index, channel, items in model.bus(wanted)]
    last = model.groups[-1] if model.groups else None
    end = (last.number, max(len(last.chunks) - 1, 0)) if last is not None else (0, 0)
    found, place = snapshot.groups(0, 0, ALL, wanted)
    assert said(found) == expected
    assert place == end
    assert snapshot.groups(*place, ALL, wanted) == ([], place)
    # Asked for many channels at once it says the same.
    at_once = None if wanted is None else Choosing(wanted)
    assert snapshot.groups(0, 0, ALL, at_once) == (found, place)
    number = pick.randrange(end[0] + 2)
    index = pick.randrange(-1, 4)
    found, place = snapshot.groups(number, index, ALL, wanted)
    assert said(found) == [chunk for chunk in expected if chunk[:2] > (number, index)]
    bytes_max = pick.randrange(500)
    place, listed = (0, 0), []
    while True:
        found, after = snapshot.groups(*place, bytes_max, wanted)
        assert snapshot.groups(*place, bytes_max, at_once) == (found, after)
        assert len(found) <= 1 or sum(len(chunk) for _, _, chunk in found) <= bytes_max
        listed += said(found)
        if after == place:
            break
        assert after > place
        place = after
    assert listed == expected
    assert place == end


def said(found: list[tuple[int, int, bytes]]) -> list[tuple[int, int, int, list[Item]]]:
    return [(group, index, int.from_bytes(chunk[8:16], "little"), all_items([chunk])) for group, index, chunk in found]


def check_times(snapshot: Snapshot, model: ArchiveModel) -> None:
    moments = {0, TIME_US, 2**63}
    for group in model.groups:
        moments |= {group.time_us - 1, group.time_us, group.time_us + 1}
    for moment in moments:
        assert snapshot.group_at(moment) == model.group_at(moment)
        for channel in (*model.channels, 1000):
            assert snapshot.sequence_at(channel, moment) == model.sequence_at(channel, moment)


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_one_call_looks_at_so_many_chunks_only(tmp_path: Path) -> None:
    """And says how far it came, so that a reader of rare channels is not held up."""
    model = ArchiveModel()
    for channel in (1, 2):
        model.create(channel, f"c.{channel}")
    group = b"\x01\x01" + b"\xe8\x07" + b"\x02\x01\x01" * 1000
    index = sealed(b"\xf0" + (100).to_bytes(8, "big"), (100).to_bytes(4, "little") + group * 100)
    snapshot = written(tmp_path, model.rows() | index)
    found, place = snapshot.groups(0, 0, ALL, {1})
    assert found == []
    assert place == (66, 535)
    assert snapshot.groups(*place, ALL, {1}) == ([], (100, 999))


def test_a_channel_of_many_chunks(tmp_path: Path) -> None:
    """More than one batch without the lock holds, in bytes and in chunks, both ways."""
    for payload_bytes in (8000, 1):
        model = ArchiveModel()
        model.create(1, "long")
        for number in range(1, 601):
            chunk = chunk_of(1, 1, number, [bytes(payload_bytes)], TIME_US + number)
            model.commit(Group(number, number - 1, chunks=(chunk,)))
        snapshot = written(tmp_path, model.rows(0))
        whole = snapshot.chunks(1, 0, ALL)
        assert [first_of(chunk) for chunk in whole] == list(range(1, 601))
        assert snapshot.chunks_back(1, 0, 10**9, ALL) == whole
        assert [chunk for _, _, chunk in snapshot.groups(0, 0, ALL, None)[0]] == whole


# -- density -----------------------------------------------------------------------------------------------------------


BOTH_WAYS: list[Callable[[Snapshot], object]] = [
    lambda snapshot: snapshot.chunks(1, 0, ALL),
    lambda snapshot: snapshot.chunks_back(1, 0, 10**6, ALL),
]


def in_bus_order(snapshot: Snapshot) -> object:
    return snapshot.groups(0, 0, ALL, {1})


def test_a_missing_chunk_is_named(tmp_path: Path) -> None:
    model = build_model(2)
    rows = model.rows(400, 200)
    of_one = sorted(key for key in rows if key.startswith(b"\x10" + bytes(7) + b"\x01"))
    for gone in (of_one[0], of_one[3], of_one[-1]):
        sequence = int.from_bytes(gone[9:], "big")
        snapshot = written(tmp_path, {key: value for key, value in rows.items() if key != gone})
        for ask in [*BOTH_WAYS, in_bus_order]:
            with pytest.raises(StorageCorrupt, match=r"channel 1: sequence \d+ is missing") as caught:
                ask(snapshot)
            assert model.channels[1].next > int(str(caught.value).split()[-3]) >= sequence


def test_chunks_that_overlap_are_damage(tmp_path: Path) -> None:
    model = build_model(2)
    rows = model.rows(400, 200)
    first, second = sorted(key for key in rows if key.startswith(b"\x10" + bytes(7) + b"\x01"))[:2]
    begin = int.from_bytes(second[9:], "big")
    items = items_of(rows[first])
    again = chunk_of(1, items[0].epoch, begin - 1, [b"again"] * 3, TIME_US)
    overlapping = {second[:9] + (begin - 1).to_bytes(8, "big"): build_chunk(again)}
    snapshot = written(tmp_path, rows | overlapping)
    for ask in BOTH_WAYS:
        with pytest.raises(StorageCorrupt):
            ask(snapshot)


def test_a_page_that_is_spoiled_changes_no_answer(tmp_path: Path) -> None:
    """Every page in turn, in its header, its nodes and its values: each answer is right or an error."""
    model = build_model(2, channels=30, groups=60)
    snapshot = written(tmp_path, model.rows(400, 200))
    questions = raw_questions(model)
    answers = [ask(snapshot) for ask in questions]
    path = tmp_path / "archive.mdb"
    content = path.read_bytes()
    refused = 0
    for page in range(2 * PAGE_BYTES, len(content), PAGE_BYTES):
        for at in (page + 10, page + 200, page + 3500):
            poke(path, at, content[at] ^ 0x10)
            for ask, answer in zip(questions, answers, strict=True):
                try:
                    assert ask(snapshot) == answer, at
                except StorageCorrupt:
                    refused += 1
            poke(path, at, content[at])
    assert refused > 50
