"""Live groups in the fan-out: each message goes to one member of a group, in turn, and past those that have no room."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.fanout import Subscription
from tests.native.test_fanout import PLENTY, House, Transport
from tests.reference.frames import DELIVER, Record, build_record, delivery_of, frames_of, publish_body, records_of
from tests.reference.groups import CHUNK_HEADER

NAMES = [b"a.b", b"a.c", b"b"]
FILTERS = [*NAMES, b"a.*", b">"]
GROUPS = ["red", "blue", None]
RECORD_HEADER_BYTES = 12


class Owner:
    """Hears what a session would tell its peer."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, object]]] = []

    def on_exhausted(self) -> None:
        self.told.append(("exhausted", {}))

    def tell(self, subscription: Subscription, event: str, more: dict[str, object]) -> None:
        self.told.append((event, more))


class Reader:
    """One connection with one subscription, of a group or of none."""

    def __init__(self, house: House, group: str | None, credit: int = PLENTY, number: int = 1) -> None:
        self.group = group
        self.filters: list[bytes] = []
        self.outbox, self.transport = house.connect()
        self.outbox.owner = self.owner = Owner()
        self.subscription = Subscription(self.outbox, number, credit, 0, True)
        self.subscription.group = group
        self.fanout = house.fanout
        self.missed = 0

    def join(self, wanted: bytes) -> None:
        if wanted not in self.filters:
            (self.fanout.attach if wanted in NAMES else self.fanout.attach_pattern)(self.subscription, wanted)
            self.filters.append(wanted)

    def leave(self, wanted: bytes) -> None:
        if wanted in self.filters:
            detach = self.fanout.detach if wanted in NAMES else self.fanout.detach_pattern
            assert detach(self.subscription, wanted)
            self.filters.remove(wanted)

    def reads(self, name: bytes) -> bool:
        return any(wanted in (name, b">") or (wanted == b"a.*" and name.startswith(b"a.")) for wanted in self.filters)

    def take(self) -> list[bytes]:
        """Return the payloads that it was sent; their sequences must go upwards within each channel."""
        return take_from(self.transport)


def take_from(transport: Transport) -> list[bytes]:
    payloads: list[bytes] = []
    ends: dict[int, int] = {}
    for frame in frames_of(transport.take()):
        assert frame.kind == DELIVER
        chunk = delivery_of(frame).chunk
        assert chunk.first > ends.get(chunk.channel, 0)
        ends[chunk.channel] = chunk.first + chunk.count - 1
        records = records_of(chunk)
        assert len(records) == chunk.count
        payloads += [record.payload for record in records]
    return payloads


def publish(house: House, name: bytes, payloads: list[bytes]) -> None:
    """Publish to one channel, as one chunk, and deliver it."""
    records = [build_record(Record(payload)) for payload in payloads]
    assert house.publisher.publish_frame(publish_body(house.slots[name], house.publisher.line.next, records)) == 0
    value, _ = house.tails.close_turn()
    assert value is not None
    house.fanout.deliver(value, 0, 0, 0, 0)


def numbered(count: int, size: int = 0) -> list[bytes]:
    return [b"%d." % number + bytes(size) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 64, 1000])
@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_each_message_goes_to_one_member_and_shares_are_even(members: int, count: int) -> None:
    house = House(*NAMES)
    readers = [Reader(house, "red") for _ in range(members)]
    witness = Reader(house, None)
    for reader in [*readers, witness]:
        reader.join(b"b")
    shares: Counter[int] = Counter()
    for _ in range(7):
        publish(house, b"b", numbered(count))
        house.fanout.flush()
        taken = [reader.take() for reader in readers]
        assert sorted(chain.from_iterable(taken)) == sorted(numbered(count))
        assert witness.take() == numbered(count)
        shares.update({index: len(got) for index, got in enumerate(taken)})
        assert max(shares.values()) - min(shares[index] for index in range(members)) <= 1
    assert house.fanout.records_missed == 0


def test_a_chunk_goes_as_a_few_runs_and_not_message_by_message() -> None:
    house = House(*NAMES)
    readers = [Reader(house, "red") for _ in range(2)]
    for reader in readers:
        reader.join(b"b")
    publish(house, b"b", numbered(1000))
    house.fanout.flush()
    assert [len(frames_of(reader.transport.take())) for reader in readers] == [1, 1]


def test_members_of_many_channels_share_their_first_messages() -> None:
    names = [b"n.%d" % number for number in range(100)]
    house = House(*names)
    readers = [Reader(house, "red") for _ in range(4)]
    for reader in readers:
        house.fanout.attach_pattern(reader.subscription, b"n.*")
    for name in names:
        publish(house, name, [name])
    house.fanout.flush()
    assert [len(reader.take()) for reader in readers] == [25] * 4


def test_groups_are_apart_from_one_another_and_from_other_readers() -> None:
    house = House(*NAMES)
    readers = [Reader(house, group) for group in ["red", "red", "blue", "blue", None, None]]
    for reader in readers:
        reader.join(b"a.*")
    publish(house, b"a.b", numbered(10))
    house.fanout.flush()
    taken = [reader.take() for reader in readers]
    assert sorted(taken[0] + taken[1]) == sorted(taken[2] + taken[3]) == sorted(numbered(10))
    assert taken[4] == taken[5] == numbered(10)


def test_a_member_with_several_filters_of_a_channel_is_one_member() -> None:
    house = House(*NAMES)
    both, one = Reader(house, "red"), Reader(house, "red")
    both.join(b"a.*")
    both.join(b"a.b")
    one.join(b"a.b")
    publish(house, b"a.b", numbered(10))
    house.fanout.flush()
    assert (len(both.take()), len(one.take())) == (5, 5)


def test_a_member_that_lags_is_passed_over_and_shares_again_with_new_credit() -> None:
    house = House(*NAMES)
    lags, goes_on = Reader(house, "red", credit=200), Reader(house, "red")
    for reader in (lags, goes_on):
        reader.join(b"b")
    for _ in range(10):
        publish(house, b"b", numbered(1, 20))
    house.fanout.flush()
    assert (len(lags.take()), len(goes_on.take())) == (2, 8)
    assert house.fanout.slow == []
    lags.subscription.credit += 10_000
    for _ in range(10):
        publish(house, b"b", numbered(1, 20))
    house.fanout.flush()
    assert (len(lags.take()), len(goes_on.take())) == (5, 5)


def test_a_member_takes_what_of_a_run_it_has_room_for() -> None:
    house = House(*NAMES)
    room = CHUNK_HEADER.size + 3 * (RECORD_HEADER_BYTES + 2)
    alone = Reader(house, "red", credit=room)
    alone.join(b"b")
    publish(house, b"b", numbered(9))
    house.fanout.flush()
    assert alone.take() == numbered(3)
    assert (house.fanout.records_missed, alone.subscription.credit) == (6, 0)


def test_what_nobody_had_room_for_is_told_to_each_of_them() -> None:
    house = House(*NAMES)
    readers = [Reader(house, "red", credit=0) for _ in range(2)]
    for reader in readers:
        reader.join(b"b")
    publish(house, b"b", numbered(3))
    publish(house, b"b", numbered(2))
    assert house.fanout.records_missed == 5
    assert [reader.owner.told for reader in readers] == [[], []]
    for reader in readers:
        reader.subscription.credit += 1_000
    publish(house, b"b", numbered(2))
    assert [reader.owner.told for reader in readers] == [[("dropped", {"count": 5})]] * 2
    publish(house, b"b", numbered(2))
    assert [len(reader.owner.told) for reader in readers] == [1, 1]


def test_a_member_whose_transport_takes_nothing_comes_last_and_gets_no_more_than_its_bound() -> None:
    house = House(*NAMES)
    house.fanout.crowded_bytes_max = 1_000
    paused, other = Reader(house, "red"), Reader(house, "red")
    for reader in (paused, other):
        reader.join(b"b")
    paused.outbox.pause()
    publish(house, b"b", numbered(10, 100))
    house.fanout.flush()
    assert (paused.outbox.queued, len(other.take())) == (0, 10)
    other.outbox.pause()
    publish(house, b"b", numbered(100, 100))
    assert 0 < paused.outbox.queued <= 1_100
    assert 0 < other.outbox.queued <= 1_100
    assert house.fanout.records_missed > 80


def test_large_runs_are_a_piece_of_their_own_and_counted_while_they_wait() -> None:
    house = House(*NAMES)
    readers = [Reader(house, "red") for _ in range(2)]
    for reader in readers:
        reader.join(b"b")
    publish(house, b"b", numbered(6, 4_000))
    assert house.fanout.shared_bytes > 20_000
    house.fanout.flush()
    assert house.fanout.shared_bytes == 0
    assert list(chain.from_iterable(reader.take() for reader in readers)) == numbered(6, 4_000)


@pytest.mark.parametrize("payload_bytes", [10, 5_000])
def test_whoever_there_is_no_memory_for_ends_and_another_gets_its_share(payload_bytes: int) -> None:
    fault = pytest.importorskip("_testcapi", reason="this Python came without its test module, which fails allocations")
    ended = 0
    for allocation in range(60):
        house = House(*NAMES)
        readers = [Reader(house, "red") for _ in range(3)]
        for reader in readers:
            reader.join(b"b")
        publish(house, b"b", numbered(1))
        house.fanout.flush()
        for reader in readers:
            reader.take()
        records = [build_record(Record(payload)) for payload in numbered(9, payload_bytes)]
        assert house.publisher.publish_frame(publish_body(house.slots[b"b"], 2, records)) == 0
        value, _ = house.tails.close_turn()
        assert value is not None
        fault.set_nomemory(allocation, allocation + 1)
        try:
            house.fanout.deliver(value, 0, 0, 0, 0)
        except MemoryError:
            continue
        finally:
            fault.remove_mem_hooks()
        house.fanout.flush()
        exhausted = [reader for reader in readers if reader.owner.told]
        ended += len(exhausted)
        taken = sorted(chain.from_iterable(reader.take() for reader in readers if reader not in exhausted))
        assert len(exhausted) <= 1
        assert taken == sorted(numbered(9, payload_bytes))
    assert ended


def test_whether_anybody_listens() -> None:
    house = House(*NAMES)
    assert not house.fanout.listens(b"b")
    member = Reader(house, "red", credit=0)
    member.join(b"b")
    assert house.fanout.listens(b"b")
    member.subscription.slow = True  # it is about to leave
    assert not house.fanout.listens(b"b")
    reader = Reader(house, None)
    reader.join(b">")
    assert house.fanout.listens(b"b")
    reader.subscription.slow = True
    assert not house.fanout.listens(b"b")
    with pytest.raises(KeyError):
        house.fanout.listens(b"unheard.of")


def test_nothing_is_dealt_after_the_end() -> None:
    house = House(*NAMES)
    for _ in range(2):
        Reader(house, "red").join(b"b")
    publish(house, b"b", numbered(2))
    house.fanout.close()
    assert not house.fanout.listens(b"b")


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, 5), st.sampled_from(FILTERS)),
        st.tuples(st.just("publish"), st.sampled_from(NAMES), st.integers(1, 40)),
        st.tuples(st.sampled_from(["credit", "pause", "resume"]), st.integers(0, 5), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps, credit=st.sampled_from([0, 150, 1_000, PLENTY]))
def test_model(steps: list[tuple[str, Any, Any]], credit: int) -> None:
    """Of what is published while members come, go and lag, each message goes to one of them unless none has room."""
    house = House(*NAMES)
    house.fanout.crowded_bytes_max = 500
    readers = [Reader(house, GROUPS[index % 3], credit if GROUPS[index % 3] else PLENTY) for index in range(6)]
    published = 0
    for step, what, more in steps:
        match step:
            case "join":
                readers[what].join(more)
            case "leave":
                readers[what].leave(more)
            case "credit":
                readers[what].subscription.credit += 400
            case "pause":
                readers[what].outbox.pause()
            case "resume":
                readers[what].outbox.resume()
            case "publish":
                payloads = [b"%06d" % number for number in range(published, published + more)]
                published += more
                check_publish(house, readers, what, payloads)
    assert house.fanout.slow == []


def check_publish(house: House, readers: list[Reader], name: bytes, payloads: list[bytes]) -> None:
    paused = [reader for reader in readers if reader.outbox.paused]
    before = house.fanout.records_missed
    publish(house, name, payloads)
    chunk_bytes = CHUNK_HEADER.size + RECORD_HEADER_BYTES + len(payloads[0])
    crowded = {reader for reader in paused if reader.outbox.queued + chunk_bytes > house.fanout.crowded_bytes_max}
    # What waits at a paused connection is looked at as well: its pieces are taken, and it stays paused.
    for reader in paused:
        reader.outbox.resume()
    house.fanout.flush()
    taken = {reader: reader.take() for reader in readers}
    queued = {reader: [one for one in taken[reader] if one in set(payloads)] for reader in readers}
    for reader in paused:
        reader.outbox.pause()
    missed = 0
    for group in ("red", "blue"):
        members = [reader for reader in readers if reader.group == group and reader.reads(name)]
        got = sorted(chain.from_iterable(queued[member] for member in members))
        assert all(one != other for one, other in pairwise(got)), "no message goes to two members"
        if members:
            missed += len(payloads) - len(got)
            if len(got) < len(payloads):
                # The rest found no room for a single one with anybody.
                assert all(member in crowded or member.subscription.credit < chunk_bytes for member in members)
    assert house.fanout.records_missed - before == missed
    for reader in readers:
        if reader.group is None:
            assert queued[reader] == (payloads if reader.reads(name) else [])
        elif not reader.reads(name):
            assert queued[reader] == []
