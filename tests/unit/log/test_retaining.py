"""Retention's step in the archiver: what an archive keeps of compacted channels, what it proposes, and its cursors."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log.archive_rows import CHECKPOINT_KEY, Checkpoint
from broker.log.archive_view import ArchiveView, cursor_row
from broker.log.environment import open_lmdb
from broker.log.latest import latest_key
from broker.log.retaining import retain
from broker.log.retention import SECOND_US, ChannelState, Policies, Policy, Step
from broker.model.errors import StorageCorrupt
from broker_native.tree import MappedFile, TreeReader
from tests.reference.archive import MAP_BYTES, big, index_row, sealed
from tests.reference.chunks import Item, chunk_from, items_of, merge
from tests.reference.frames import Record
from tests.reference.groups import Chunk, Group, build_entry, channel_entry, epoch_entry, head_entry, parse_chunk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


TIME_US = 1_700_000_000 * SECOND_US
TOMBSTONE_US = 100 * SECOND_US
POLICIES = Policies(
    [
        (b"state.>", Policy(latest_per_key=True, tombstone_us=TOMBSTONE_US)),
        (b"short.>", Policy(latest_per_key=True, tombstone_us=0)),
        (b"few.>", Policy(messages=4)),
        (b">", Policy()),
    ]
)
NAMES = ["state.a", "state.b", "short.a", "few.a", "all.a"]


@dataclass
class Written:
    """What was ever written to a channel."""

    name: str
    items: list[Item] = field(default_factory=list)
    first: int = 1

    @property
    def next(self) -> int:
        return self.items[-1].next_sequence if self.items else 1


class Store:
    """An archive in a file, and an archiver that appends to it group by group."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self.environment = open_lmdb(path, MAP_BYTES, locks=False)
        self.channels: dict[int, Written] = {}
        self.group = 0
        self.time_us = TIME_US
        self.put({CHECKPOINT_KEY: Checkpoint.empty().pack()})
        self.mapped = MappedFile(str(path), MAP_BYTES)

    def close(self) -> None:
        self.mapped.close()
        self.environment.close()

    def put(self, rows: dict[bytes, bytes]) -> None:
        with self.environment.begin(write=True) as transaction:
            for key, value in rows.items():
                transaction.put(key, value)

    def reader(self) -> TreeReader:
        return TreeReader(self.mapped, self.environment.info()["last_txnid"])

    def rows(self, prefix: bytes) -> dict[bytes, bytes]:
        with self.environment.begin() as transaction:
            return {bytes(key): bytes(value) for key, value in transaction.cursor() if bytes(key).startswith(prefix)}

    def chunks(self, channel: int) -> list[bytes]:
        return list(self.rows(b"\x10" + big(channel)).values())

    def commit(self, content: dict[str, list[Record]], later_us: int = SECOND_US, extend: bool = False) -> None:
        """Archive a group; `extend` puts its records into each channel's last row."""
        self.time_us += later_us
        self.group += 7
        placed: list[Chunk] = []
        rows: dict[bytes, bytes] = {}
        for name, records in content.items():
            channel = NAMES.index(name) + 1
            written = self.channels.setdefault(channel, Written(name))
            items = [Item(written.next + at, 1, self.time_us, record) for at, record in enumerate(records)]
            written.items += items
            chunk = chunk_from(channel, items)
            placed.append(parse_chunk(chunk))
            last = self.chunks(channel)[-1:]
            merged = merge([*last, chunk], 1 << 20) if extend and last else [chunk]
            rows |= {b"\x10" + big(channel) + big(items_of(each)[0].sequence): each for each in merged}
        group = Group(self.group, self.group - 7, time_us=self.time_us, chunks=tuple(placed))
        self.put(rows | index_row([group]))
        self.put(dict(self.state_rows()))

    def state_rows(self) -> Iterator[tuple[bytes, bytes]]:
        total = 0
        for channel, written in self.channels.items():
            chunks = self.chunks(channel)
            total += sum(map(len, chunks))
            counts = sum(map(len, chunks)).to_bytes(8, "little") + len(chunks).to_bytes(8, "little")
            head = head_entry(channel, 1, written.next, written.first)
            entries = [channel_entry(channel, written.name), epoch_entry(channel, 1, 1), head]
            yield from sealed(
                b"\x02" + big(channel), b"\1\0\0\0" + counts + b"".join(map(build_entry, entries))
            ).items()
        yield CHECKPOINT_KEY, Checkpoint(group=self.group, time_us=self.time_us, bytes=total).pack()

    def trim(self, channel: int, first: int) -> None:
        """Apply a trim as an archiver does: rows wholly below the first go."""
        self.channels[channel].first = first
        with self.environment.begin(write=True) as transaction:
            for key, chunk in self.rows(b"\x10" + big(channel)).items():
                if items_of(chunk)[-1].next_sequence <= first:
                    transaction.delete(key)
        self.put(dict(self.state_rows()))

    def step(self, cursors: dict[bytes, int] | None = None, now_us: int = 0, policies: Policies = POLICIES) -> Step:
        with self.environment.begin(write=True) as transaction:
            return retain(self.path, transaction, self.reader(), policies, cursors or {}, now_us or self.time_us)

    def cycle(self, now_us: int = 0, policies: Policies = POLICIES) -> None:
        """Step, and trim as an owner does, until there is nothing more."""
        cursors: dict[bytes, int] = {}
        by_name = {written.name.encode(): channel for channel, written in self.channels.items()}
        for _ in range(100):
            step = self.step(cursors, now_us, policies)
            for name, first in step.proposals.items():
                self.trim(by_name[name], first)
            cursors = step.cursors
            if not step.more:
                self.step(cursors, now_us, policies)
                return
        raise AssertionError("there is no end to it")

    def left(self, channel: int) -> list[Item]:
        """Return the records that a reader finds, each chunk proved and all dense."""
        items = [item for chunk in self.chunks(channel) for item in items_of(chunk)]
        for before, after in itertools.pairwise(items):
            assert before.next_sequence == after.sequence
        return [item for item in items if item.record.gone is None]

    def latest(self) -> dict[tuple[int, bytes], int]:
        found = {}
        for key, value in self.rows(b"\x20").items():
            assert sealed(key, value[4:]) == {key: value}
            found[int.from_bytes(key[1:9], "big"), key[9:]] = int.from_bytes(value[4:], "little")
        return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "archive.mdb")
    yield made
    made.close()


# -- the model ---------------------------------------------------------------------------------------------------------

records = st.builds(
    Record,
    payload=st.sampled_from([b"", b"x", b"some payload that is longer"]),
    key=st.none() | st.sampled_from([b"k", b"l", b"m" * 255]),
    expiry_s=st.none() | st.just(9),
)
steps = st.lists(
    st.one_of(
        st.tuples(
            st.dictionaries(st.sampled_from(NAMES), st.lists(records, min_size=1, max_size=5), min_size=1, max_size=3),
            st.sampled_from([0, SECOND_US, TOMBSTONE_US]),
            st.booleans(),
        ),
        st.just("cycle"),
        st.just("step that is lost"),
        st.integers(1, 6),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(history=steps, wait_us=st.sampled_from([0, TOMBSTONE_US - 1, TOMBSTONE_US, 10 * TOMBSTONE_US]))
def test_of_each_key_the_latest_stays_and_no_more(
    history: list[object], wait_us: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "model.mdb")
    try:
        for event in history:
            if isinstance(event, tuple):
                store.commit(*event)
            elif isinstance(event, int):
                if 3 in store.channels:  # a trim by somebody else
                    store.trim(3, min(max(event, store.channels[3].first), store.channels[3].next))
            elif event == "cycle":
                store.cycle()
            else:
                store.step()
        store.cycle(store.time_us + wait_us)
        check(store, store.time_us + wait_us)
    finally:
        store.close()


def check(store: Store, now_us: int) -> None:
    """Compare an archive after a full cycle with what was ever written to it."""
    expected_rows = {}
    for channel, written in store.channels.items():
        policy = POLICIES(written.name.encode()) or Policy()
        first = max(written.first, written.next - policy.messages if policy.messages else 1)
        assert written.first == first
        newest = {item.record.key: item.sequence for item in written.items if item.record.key}
        expected = []
        for item in written.items:
            key = item.record.key
            if policy.latest_per_key and key is not None:
                deleted = not item.record.payload and item.time_us <= now_us - policy.tombstone_us
                if newest[key] != item.sequence or deleted:
                    continue
                if item.sequence >= first:
                    expected_rows[channel, key] = item.sequence
            if item.sequence >= first:
                expected.append((item.sequence, item.record))
        left = [(item.sequence, replace(item.record, time_us=0)) for item in store.left(channel)]
        assert [found for found in left if found[0] >= first] == expected
    stale = {(channel, key): at for (channel, key), at in store.latest().items() if at < store.channels[channel].first}
    assert {place: at for place, at in store.latest().items() if place not in stale} == expected_rows
    assert store.rows(b"\x02") == {row: value for row, value in store.state_rows() if row != CHECKPOINT_KEY}
    checkpoint = Checkpoint.unpack(store.rows(CHECKPOINT_KEY)[CHECKPOINT_KEY], store.path)
    assert checkpoint.bytes == sum(len(chunk) for channel in store.channels for chunk in store.chunks(channel))


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_snapshot_then_follow(store: Store) -> None:
    put = [Record(b"1", key=b"k"), Record(b"2", key=b"l"), Record(b"3", key=b"k"), Record(b"no key")]
    store.commit({"state.a": put})
    store.commit({"state.a": [Record(b"4", key=b"l")]})
    store.cycle()
    assert [(item.sequence, item.record.payload) for item in store.left(1)] == [(3, b"3"), (4, b"no key"), (5, b"4")]
    assert items_of(store.chunks(1)[0])[0].record.gone == (2, 2)
    assert store.latest() == {(1, b"k"): 3, (1, b"l"): 5}


def test_a_tombstone_stays_for_its_time_and_then_the_key_is_gone(store: Store) -> None:
    store.commit({"state.a": [Record(b"value", key=b"k")]})
    store.commit({"state.a": [Record(b"", key=b"k")]})
    store.cycle(store.time_us + TOMBSTONE_US - 1)
    assert [item.record.payload for item in store.left(1)] == [b""]
    assert store.latest() == {(1, b"k"): 2}
    store.cycle(store.time_us + TOMBSTONE_US)
    assert store.left(1) == []
    assert store.latest() == {}
    store.commit({"state.a": [Record(b"again", key=b"k")]})
    store.cycle(store.time_us + TOMBSTONE_US)
    assert [item.record.payload for item in store.left(1)] == [b"again"]


def test_a_step_that_is_repeated_changes_nothing(store: Store) -> None:
    for number in range(5):
        store.commit({"state.a": [Record(b"%d" % number, key=b"k")], "few.a": [Record(b"x")] * 3})
    first = store.step()
    assert first.proposals == {b"few.a": 12}
    assert first.more
    before = store.rows(b"")
    again = store.step()
    assert (again.proposals, again.cursors) == (first.proposals, first.cursors)
    assert store.rows(b"") == before
    store.step(first.cursors)
    assert set(store.rows(b"\0cursor").items()) > {cursor_row(*pair) for pair in first.cursors.items()}


def test_cursors_of_other_policies_are_forgotten(store: Store) -> None:
    store.commit({"state.a": [Record(b"x", key=b"k")]})
    store.cycle()
    assert store.rows(b"\0cursor")
    store.step(policies=Policies())
    assert store.rows(b"\0cursor") == {}


def test_a_policy_that_comes_later_finds_what_was_kept(store: Store) -> None:
    for number in range(3):
        store.commit({"all.a": [Record(b"%d" % number, key=b"k")]})
    store.cycle()
    assert len(store.left(5)) == 3
    store.cycle(policies=Policies([(b">", Policy(latest_per_key=True))]))
    assert [item.record.payload for item in store.left(5)] == [b"2"]


@pytest.mark.parametrize("prefix", [b"\2", b"\x10", b"\x20", b"\xf0", b"\0checkpoint", b"\0cursor"])
def test_damage_is_found_and_nothing_is_written(store: Store, prefix: bytes) -> None:
    store.commit({"state.a": [Record(b"the value", key=b"k")]})
    store.cycle()
    store.commit({"state.a": [Record(b"the other", key=b"k")]})
    key, value = next(iter(store.rows(prefix).items()))
    store.put({key: value[:-1] + bytes([value[-1] ^ 1])})
    before = store.rows(b"")
    with pytest.raises(StorageCorrupt, match=r"archive\.mdb"):
        store.step()
    assert store.rows(b"") == before


@pytest.mark.parametrize("entries", [b"\0" * 8, b"\x08\0\0\0\1\0\0\0", b"\1"])
def test_a_channel_that_makes_no_sense_is_found(store: Store, entries: bytes) -> None:
    store.commit({"few.a": [Record(b"value")] * 9})
    store.put(sealed(b"\2" + big(4), b"\1\0\0\0" + bytes(16) + entries))
    with pytest.raises(StorageCorrupt):
        store.step()


def test_a_channel_that_is_gone_is_passed_over(store: Store) -> None:
    store.commit({"few.a": [Record(b"value")] * 9, "state.a": [Record(b"value", key=b"k")]})
    with store.environment.begin(write=True) as transaction:
        transaction.delete(b"\2" + big(4))
        transaction.delete(b"\2" + big(1))
    step = store.step()
    assert step.proposals == {}
    assert store.latest() == {}


def test_what_a_view_shows(store: Store) -> None:
    for number in range(70):
        store.commit({"all.a": [Record(b"%d" % number)] * 2, "few.a": [Record(b"x")]})
    view = ArchiveView(store.reader())
    assert [group.group for group in view.index(0, 1 << 30)] == [7 * number for number in range(1, 71)]
    assert [group.group for group in view.index(14, 4)] == [21, 28]
    assert [group.group for group in view.index(15, 1)] == [21]
    assert view.index(490, 1) == []
    (found,) = view.index(483, 9)
    assert (found.time_us, found.chunks) == (store.time_us, [(5, 139, 2), (4, 70, 1)])
    size = sum(map(len, store.chunks(5)))
    assert view.channels([4, 5, 6])[1:] == [ChannelState(b"all.a", 1, 141, size), None]
    assert [span[:2] for span in view.chunk_spans(5)] == [(number, 2) for number in range(1, 141, 2)]
    assert [int.from_bytes(key[9:], "big") for key, _ in view.chunks(5, 4, 8)] == [3, 5, 7]
    assert list(view.chunks(5, 141)) == []
    assert list(view.chunks(9, 1)) == []


def test_the_key_of_a_row() -> None:
    assert latest_key(0x0102, b"key") == b"\x20\0\0\0\0\0\0\1\2key"
