"""Fan-out against a list of filters: who gets what, what leaves on each connection, and how much of it is copied."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.fanout import Fanout, Outbox, Replay, Subscription
from broker_native.groups import chunk_offset
from broker_native.lines import Line
from broker_native.publisher import Publisher
from broker_native.tails import Tails
from tests.reference import fanout as twin
from tests.reference import groups
from tests.reference.frames import (
    DELIVER,
    DELIVER_EARLY,
    DELIVER_NAME,
    PING,
    PUBLISHED,
    PUBLISHED_ENTRY,
    Delivery,
    Frame,
    Record,
    build_frame,
    build_record,
    chunks_of,
    deliveries_of,
    delivery_of,
    frames_of,
    publish_body,
    records_of,
)

EPHEMERAL, ACCEPTED, SYNCED = 1, 2, 3
COPY_BYTES_MAX = 4096
CHUNK_AND_RECORD = 56 + 12
PLENTY = 1 << 30


class Transport:
    """Keeps the pieces of each `writelines`."""

    def __init__(self) -> None:
        self.writes: list[list[Any]] = []

    def writelines(self, pieces: list[Any]) -> None:
        self.writes.append(pieces)

    def take(self) -> bytes:
        """Return everything that was sent, and forget it."""
        sent = b"".join(bytes(piece) for pieces in self.writes for piece in pieces)
        self.writes.clear()
        return sent


class House:
    """Ephemeral channels, a fan-out, and as many connections as are asked for."""

    def __init__(self, *names: bytes) -> None:
        self.tails = Tails(1, 4770)
        self.fanout = Fanout(self.tails)
        self.publisher = Publisher(self.tails, Line(), None, 0)
        self.slots: dict[bytes, int] = {}
        for name in names:
            self.load(name)

    def load(self, name: bytes) -> None:
        self.tails.load(name, EPHEMERAL, 2, 1 << 20)
        self.slots[name] = len(self.slots)
        self.publisher.bind(self.slots[name], name)

    def connect(self) -> tuple[Outbox, Transport]:
        outbox = Outbox(self.fanout, None)
        outbox.transport = transport = Transport()
        return outbox, transport

    def subscribe(self, outbox: Outbox, *filters: bytes, number: int = 1, credit: int = PLENTY, overdraft: int = 0,
                  tells_names: bool = False) -> Subscription:  # fmt: skip
        subscription = Subscription(outbox, number, credit, overdraft, tells_names)
        for wanted in filters:
            if b"*" in wanted or b">" in wanted:
                self.fanout.attach_pattern(subscription, wanted)
            else:
                self.fanout.attach(subscription, wanted)
        return subscription

    def value(self, *published: tuple[bytes, bytes]) -> bytes:
        """Publish (name, payload) each and return the turn's value."""
        for name, payload in published:
            body = publish_body(self.slots[name], self.publisher.line.next, [build_record(Record(payload))])
            assert self.publisher.publish_frame(body) == 0
        ephemeral, _ = self.tails.close_turn()
        assert ephemeral is not None
        return ephemeral

    def deliver(self, *published: tuple[bytes, bytes]) -> bytes:
        value = self.value(*published)
        self.fanout.deliver(value, 0, 0, 0, 0)
        self.fanout.flush()
        return value


def payloads_of(deliveries: list[Delivery]) -> list[bytes]:
    return [record.payload for delivery in deliveries for record in records_of(delivery.chunk)]


# --- Against the twin ----------------------------------------------------------------------------------------------

NAMES = [b"a", b"a.b", b"a.c", b"b.b", b"b.b.c", b"n" * 255]
SUBSCRIPTIONS = 8
FILTERS = [*NAMES, b">", b"a.*", b"*.b", b"*", b"b.>", b"a.>"]
attachments = st.tuples(
    st.sampled_from(["attach", "detach"]), st.integers(0, SUBSCRIPTIONS - 1), st.sampled_from(FILTERS)
)
crowds = st.tuples(st.just("crowd"), st.sampled_from([b">", b"a.*", b"a"]))
sizes = st.sampled_from([0, 1, COPY_BYTES_MAX - CHUNK_AND_RECORD, COPY_BYTES_MAX - CHUNK_AND_RECORD + 1, 10_000])
publishes = st.tuples(st.just("publish"), st.lists(st.tuples(st.sampled_from(NAMES), sizes), min_size=1, max_size=6))
others = st.tuples(
    st.sampled_from(["flush", "answer", "ordered", "shared", "pause", "resume", "credit"]), st.integers(0, 1)
)
steps = st.lists(attachments | crowds | publishes | others, max_size=40)


class Both:
    """The fan-out and its twin: connections with two subscriptions each, most of them of the same numbers."""

    def __init__(self, credit: int, overdraft: int) -> None:
        self.house = House(*NAMES)
        self.twin = twin.Fanout()
        self.outboxes = [self.house.connect() for _ in range(SUBSCRIPTIONS // 2)]
        self.twins = [twin.Outbox() for _ in range(SUBSCRIPTIONS // 2)]
        shapes = [(index % 2 + 7 * (index // 6), credit, overdraft, index % 2 == 0) for index in range(SUBSCRIPTIONS)]
        self.native_subscriptions = [
            Subscription(self.outboxes[index // 2][0], *shape) for index, shape in enumerate(shapes)
        ]
        self.twin_subscriptions = [
            twin.Subscription(self.twins[index // 2], *shape) for index, shape in enumerate(shapes)
        ]
        self.group = 0

    def attach(self, index: int, wanted: bytes) -> None:
        native = self.native_subscriptions[index]
        if wanted in NAMES:
            # A literal is attached once, as a session does; patterns may be.
            if any(entry == (wanted, self.twin_subscriptions[index]) for entry in self.twin.filters):
                return
            self.house.fanout.attach(native, wanted)
        else:
            self.house.fanout.attach_pattern(native, wanted)
        self.twin.attach(self.twin_subscriptions[index], wanted)

    def detach(self, index: int, wanted: bytes) -> None:
        native = self.native_subscriptions[index]
        detach = self.house.fanout.detach if wanted in NAMES else self.house.fanout.detach_pattern
        assert detach(native, wanted) is self.twin.detach(self.twin_subscriptions[index], wanted)

    def publish(self, published: list[tuple[bytes, int]]) -> None:
        value = self.house.value(*[(name, bytes(size)) for name, size in published])
        for name in NAMES:
            info = self.house.tails.info(name)
            assert info is not None
            self.twin.names[info[0]] = name
        self.group += 1
        self.house.fanout.deliver(value, 0, self.group, 5, DELIVER_EARLY)
        self.twin.deliver(value, 0, self.group, 5, DELIVER_EARLY)

    def flush(self) -> None:
        held = self.house.fanout.flush()
        for (outbox, transport), other in zip(self.outboxes, self.twins, strict=True):
            assert outbox not in held or outbox.paused
            assert len(transport.writes) <= 1, "one writelines a connection and turn"
            frames = frames_of(transport.take())
            urgent, ordered = other.flush()
            assert frames[: len(urgent)] == frames_of(b"".join(urgent))
            assert by_stream(frames[len(urgent) :]) == by_stream(frames_of(b"".join(ordered)))

    def check(self) -> None:
        for native, other in zip(self.native_subscriptions, self.twin_subscriptions, strict=True):
            assert (native.credit, native.slow) == (other.credit, other.slow)
        for (outbox, _), other_outbox in zip(self.outboxes, self.twins, strict=True):
            assert outbox.queued == other_outbox.queued
        assert len(self.house.fanout.slow) == len(self.twin.slow)


def by_stream(frames: list[Frame]) -> dict[int, list[Frame]]:
    """Return what each subscription gets, in its order; frames that are no deliveries are a stream of their own."""
    streams: dict[int, list[Frame]] = {}
    for frame in frames:
        stream = delivery_of(frame).subscription if frame.kind == DELIVER else -1
        streams.setdefault(stream, []).append(frame)
    return streams


@settings(max_examples=200, deadline=None)
@given(steps=steps, credit=st.sampled_from([0, 5_000, PLENTY]), overdraft=st.sampled_from([0, 8_000]))
def test_same_as_twin(steps: list[tuple[Any, ...]], credit: int, overdraft: int) -> None:
    both = Both(credit, overdraft)
    for step in [*steps, ("resume", 0), ("resume", 1), ("flush", 0)]:
        match step:
            case "attach", index, wanted:
                both.attach(index, wanted)
            case "detach", index, wanted:
                both.detach(index, wanted)
            case "crowd", wanted:
                for index in range(SUBSCRIPTIONS):
                    both.attach(index, wanted)
            case "publish", published:
                both.publish(published)
            case "flush", _:
                both.flush()
            case "answer", which:
                for outbox in (both.outboxes[which][0], both.twins[which]):
                    outbox.frame(build_frame(PING, b"12345678"))
                    outbox.published(bytes(PUBLISHED_ENTRY.size))
            case "ordered", which:
                for outbox in (both.outboxes[which][0], both.twins[which]):
                    outbox.ordered_frame(build_frame(PING, b"87654321"))
            case "shared", which:
                both.outboxes[which][0].shared_frames(2 * build_frame(PING, b"together"))
                both.twins[which].ordered_frame(2 * build_frame(PING, b"together"))
            case "pause", which:
                both.outboxes[which][0].pause()
                both.twins[which].paused = True
            case "resume", which:
                both.outboxes[which][0].resume()
                both.twins[which].paused = False
            case "credit", which:
                both.native_subscriptions[which].credit += 6_000
                both.twin_subscriptions[which].credit += 6_000
        both.check()


# --- Who gets it ---------------------------------------------------------------------------------------------------


def test_filters_that_overlap_deliver_once() -> None:
    house = House(b"a.b")
    outbox, transport = house.connect()
    house.subscribe(outbox, b"a.b", b"a.*", b">", b"a.>", b"*.b")
    house.deliver((b"a.b", b"once"))
    assert payloads_of(deliveries_of(transport.take())) == [b"once"]


def test_two_subscriptions_are_two_streams() -> None:
    house = House(b"a.b")
    outbox, transport = house.connect()
    house.subscribe(outbox, b"a.b", number=1)
    house.subscribe(outbox, b"a.*", number=2)
    house.deliver((b"a.b", b"each"))
    assert sorted(delivery.subscription for delivery in deliveries_of(transport.take())) == [1, 2]


def test_detached_readers_get_no_more() -> None:
    house = House(b"a.b")
    outbox, transport = house.connect()
    subscription = house.subscribe(outbox, b"a.b", b"a.*")
    house.deliver((b"a.b", b"1"))
    assert house.fanout.detach(subscription, b"a.b") is True
    assert house.fanout.detach(subscription, b"a.b") is False
    house.deliver((b"a.b", b"2"))
    assert house.fanout.detach_pattern(subscription, b"a.*") is True
    assert house.fanout.detach_pattern(subscription, b"a.*") is False
    house.deliver((b"a.b", b"3"))
    assert payloads_of(deliveries_of(transport.take())) == [b"1", b"2"]


def test_reserved_channels_are_reached_by_their_name_only() -> None:
    house = House(b"$reply.1")
    outbox, transport = house.connect()
    house.subscribe(outbox, b">", b"*.*")
    house.deliver((b"$reply.1", b"x"))
    assert transport.writes == []
    house.subscribe(outbox, b"$reply.1")
    house.deliver((b"$reply.1", b"y"))
    assert payloads_of(deliveries_of(transport.take())) == [b"y"]


def test_channels_that_are_not_in_memory_have_no_readers() -> None:
    house = House()
    outbox, _ = house.connect()
    with pytest.raises(KeyError):
        house.fanout.attach(Subscription(outbox, 1, 0, 0, False), b"nobody")
    stranger = groups.build_chunk(groups.chunk_of(77, 1, 1, [b"x"]))
    house.fanout.deliver(stranger, 0, 1, 0, 0)
    assert not house.fanout.pending
    with pytest.raises(KeyError):
        house.fanout.deliver_one(Subscription(outbox, 1, 0, 0, False), stranger, 1, 0)


def test_prefix_names_subscription_group_index_and_flags() -> None:
    house = House(b"a", b"b", b"c")
    outbox, transport = house.connect()
    house.subscribe(outbox, b"a", b"c", number=2**32 - 1)
    value = house.value((b"a", b"x"), (b"b", b"y"), (b"c", b"z"))
    junk = b"entries stand before the chunks"
    house.fanout.deliver(junk + value, len(junk), 2**64 - 1, 2**32 - 3, DELIVER_EARLY)
    house.fanout.flush()
    first, last = deliveries_of(transport.take())
    assert first.prefix == (2**32 - 1, 2**32 - 3, 2**64 - 1, DELIVER_EARLY, None)
    assert last.prefix == (2**32 - 1, 2**32 - 1, 2**64 - 1, DELIVER_EARLY, None)
    assert [build for delivery in (first, last) for build in [groups.build_chunk(delivery.chunk)]] == [
        groups.build_chunk(chunks_of(value)[0]),
        groups.build_chunk(chunks_of(value)[2]),
    ]


@pytest.mark.parametrize("readers", [3, 30])
def test_figures_count_deliveries(readers: int) -> None:
    house = House(b"a")
    for _ in range(readers):
        house.subscribe(house.connect()[0], b"a")
    for turn in range(1, 4):
        value = house.deliver((b"a", b"1"), (b"a", b"2"))
        assert house.fanout.chunks_out == turn * readers
        assert house.fanout.records_out == 2 * turn * readers
        assert house.fanout.bytes_out == turn * readers * len(value)


# --- Runs: chunks in a row with the same readers ---------------------------------------------------------------------


def crowd(house: House, readers: int, *, credit: int = PLENTY) -> tuple[list[Subscription], list[Transport]]:
    """Return so many readers of everything, each with a connection of its own."""
    found = []
    for _ in range(readers):
        outbox, transport = house.connect()
        found.append((house.subscribe(outbox, b">", credit=credit, tells_names=True), transport))
    return [subscription for subscription, _ in found], [transport for _, transport in found]


def test_frames_of_a_run_are_one_object_for_all_its_readers() -> None:
    names = [b"channel.%d" % index for index in range(100)]
    house = House(*names)
    _, transports = crowd(house, 50)
    first = house.deliver(*[(name, b"first") for name in names])
    assert len({id(transport.writes[0][0]) for transport in transports}) == 1
    for transport in transports:
        told = deliveries_of(transport.take())
        assert [delivery.name for delivery in told] == names
        assert b"".join(groups.build_chunk(delivery.chunk) for delivery in told) == first
    second = house.deliver(*[(name, b"second") for name in names])
    assert len({id(transport.writes[0][0]) for transport in transports}) == 1
    assert (house.fanout.copied_bytes, house.fanout.shared_bytes) == (0, 0), "it has left"
    for transport in transports:
        known = deliveries_of(transport.take())
        assert {delivery.name for delivery in known} == {None}
        assert b"".join(groups.build_chunk(delivery.chunk) for delivery in known) == second


def test_frames_of_a_run_are_counted_once_while_they_wait() -> None:
    names = [b"channel.%d" % index for index in range(100)]
    house = House(*names)
    subscriptions, transports = crowd(house, 50)
    house.deliver(*[(name, b"first") for name in names])
    for subscription in subscriptions:
        subscription.outbox.pause()
    house.deliver(*[(name, b"second") for name in names])
    each = subscriptions[0].outbox.queued
    assert each > COPY_BYTES_MAX
    assert (house.fanout.copied_bytes, house.fanout.shared_bytes) == (0, each)
    for subscription in subscriptions:
        subscription.outbox.resume()
    house.fanout.flush()
    assert house.fanout.shared_bytes == 0
    assert {len(deliveries_of(transport.take())) for transport in transports} == {2 * len(names)}


def test_whoever_comes_later_is_told_the_names_that_the_others_know() -> None:
    house = House(b"a", b"b")
    _, transports = crowd(house, 10)
    house.deliver((b"a", b"1"), (b"b", b"2"))
    house.deliver((b"a", b"3"), (b"b", b"4"))
    _, late = crowd(house, 1)
    house.deliver((b"a", b"5"))
    house.deliver((b"a", b"6"), (b"b", b"7"))
    assert [delivery.name for delivery in deliveries_of(late[0].take())] == [b"a", None, b"b"]
    for transport in transports:
        assert [delivery.name for delivery in deliveries_of(transport.take())] == [b"a", b"b", *[None] * 5]


def test_whoever_lacks_credit_for_a_run_gets_what_it_has_credit_for() -> None:
    names = [b"channel.%d" % index for index in range(20)]
    house = House(*names)
    subscriptions, transports = crowd(house, 10)
    house.deliver(*[(name, b"known") for name in names])
    for transport in transports:
        transport.take()
    poor = subscriptions[3]
    value = house.value(*[(name, b"run") for name in names])
    poor.credit = len(value) // len(names) * 7
    house.fanout.deliver(value, 0, 9, 100, 0)
    house.fanout.flush()
    assert house.fanout.slow == [poor]
    assert poor.refused[:2] == (9, 107)
    for transport in transports:
        wanted = 7 if transport is transports[3] else 20
        assert [delivery.index for delivery in deliveries_of(transport.take())] == list(range(100, 100 + wanted))


def test_a_slow_reader_that_was_not_told_keeps_the_others_from_no_name() -> None:
    house = House(b"a", b"b")
    subscriptions, transports = crowd(house, 10)
    subscriptions[0].slow = True
    house.deliver((b"a", b"1"))
    subscriptions[0].slow = False
    house.deliver((b"a", b"2"))
    assert [delivery.name for delivery in deliveries_of(transports[0].take())] == [b"a"]
    assert [delivery.name for delivery in deliveries_of(transports[1].take())] == [b"a", None]


def test_those_who_stay_need_not_be_told_again_when_others_leave() -> None:
    house = House(b"a", b"b")
    subscriptions, transports = crowd(house, 10)
    house.deliver((b"a", b"1"), (b"b", b"1"))
    for subscription in subscriptions[5:]:
        assert house.fanout.detach_pattern(subscription, b">")
    house.deliver((b"a", b"x" * 3_000), (b"b", b"x" * 3_000))
    assert len({id(transport.writes[1][0]) for transport in transports[:5]}) == 1
    assert [len(transport.writes) for transport in transports] == [2] * 5 + [1] * 5


@pytest.mark.parametrize("payload_bytes", [100_000, 300_000])
def test_a_large_chunk_is_copied_once_if_its_readers_are_many(payload_bytes: int) -> None:
    house = House(b"a")
    _, transports = crowd(house, 200)
    house.deliver((b"a", b"name"))
    house.deliver((b"a", bytes(payload_bytes)))
    pieces = {id(piece) for transport in transports for piece in transport.writes[1] if len(piece) > payload_bytes}
    assert len(pieces) == 1
    assert {len(transport.writes[1]) for transport in transports} == {1 if payload_bytes == 100_000 else 2}


def test_channels_with_the_same_readers_share_their_list() -> None:
    names = [b"channel.%d" % index for index in range(1_000)]
    house = House(*names)
    outbox, transport = house.connect()
    readers = [house.subscribe(outbox, b"channel.*", number=number + 1) for number in range(500)]
    for reader in readers[1:]:
        reader.slow = True  # nothing is delivered to it, and it is found all the same
    tracemalloc.start()
    house.deliver(*[(name, b"x") for name in names])
    transport.take()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < len(names) * len(readers) * 8 // 4, "a list of their own would be four times that"
    assert house.fanout.detach_pattern(readers[0], b"channel.*")
    house.subscribe(outbox, names[7], number=900)
    house.deliver(*[(name, b"y") for name in names])
    assert [delivery.subscription for delivery in deliveries_of(transport.take())] == [900]


# --- Names ---------------------------------------------------------------------------------------------------------


def test_names_are_told_once_to_each_that_needs_them() -> None:
    names = [b"channel.%d" % index for index in range(1_000)]
    house = House(*names)
    outbox, transport = house.connect()
    house.subscribe(outbox, b">", number=1, tells_names=True)
    house.subscribe(outbox, names[0], number=2)
    house.subscribe(outbox, b"channel.*", number=3, tells_names=True)
    for _ in range(2):
        house.deliver(*[(name, b"x") for name in names])
    deliveries = deliveries_of(transport.take())
    assert len(deliveries) == 2 * (2 * len(names) + 1)
    for number in (1, 3):
        told = [delivery.name for delivery in deliveries if delivery.subscription == number and delivery.name]
        assert sorted(told) == sorted(names)
    for delivery in deliveries:
        assert (delivery.name is not None) is bool(delivery.flags & DELIVER_NAME)
    untold = [delivery for delivery in deliveries if delivery.subscription != 2 and delivery.name is None]
    assert len(untold) == 2 * len(names), "the second time"
    assert not any(delivery.name for delivery in deliveries if delivery.subscription == 2)


# --- Credit --------------------------------------------------------------------------------------------------------

FIVE = CHUNK_AND_RECORD + 5


@pytest.mark.parametrize(
    ("credit", "overdraft", "passes"),
    [(3 * FIVE, 0, 3), (3 * FIVE - 1, 0, 2), (FIVE, 2 * FIVE, 3), (0, 3 * FIVE - 1, 2), (0, 0, 0), (-1, FIVE + 1, 1)],
)
def test_a_subscription_past_its_credit_and_overdraft_is_slow(credit: int, overdraft: int, passes: int) -> None:
    house = House(b"a")
    outbox, transport = house.connect()
    slow = house.subscribe(outbox, b"a", credit=credit, overdraft=overdraft)
    house.subscribe(outbox, b"a", number=2)
    for index in range(5):
        house.deliver((b"a", b"msg %d" % index))
        assert slow.slow is (index >= passes)
    deliveries = deliveries_of(transport.take())
    assert sum(delivery.subscription == 1 for delivery in deliveries) == min(passes, 5)
    assert sum(delivery.subscription == 2 for delivery in deliveries) == 5, "nobody else is concerned"
    assert house.fanout.slow == ([slow] if passes < 5 else [])
    assert slow.credit == credit - passes * FIVE


def test_a_small_chunk_does_not_overtake_the_one_that_was_too_much() -> None:
    house = House(b"a")
    outbox, transport = house.connect()
    house.subscribe(outbox, b"a", credit=2 * FIVE)
    house.deliver((b"a", bytes(1_000)))
    house.deliver((b"a", b"small"))
    assert transport.writes == []


# --- Copied or shared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "shared"), [(COPY_BYTES_MAX, False), (COPY_BYTES_MAX + 1, True)])
def test_large_chunks_are_shared_and_small_ones_copied(size: int, shared: bool) -> None:
    house = House(b"a")
    transports = []
    for _ in range(3):
        outbox, transport = house.connect()
        house.subscribe(outbox, b"a")
        transports.append(transport)
    value = house.deliver((b"a", bytes(size - CHUNK_AND_RECORD)))
    assert len(value) == size
    for transport in transports:
        ((*prefix, last),) = transport.writes
        assert (last is value) is shared
        assert len(prefix) == (1 if shared else 0)


def test_a_chunk_among_others_is_shared_as_a_view_of_them() -> None:
    house = House(b"a", b"b")
    outbox, transport = house.connect()
    house.subscribe(outbox, b">")
    value = house.deliver((b"a", bytes(10_000)), (b"b", bytes(10_000)))
    ((_, first, _, second),) = transport.writes
    assert first.obj is value
    assert bytes(first) + bytes(second) == value


def test_small_and_large_keep_their_order() -> None:
    house = House(b"a")
    outbox, transport = house.connect()
    house.subscribe(outbox, b"a")
    sizes = [10, 5_000, 20, 30, 6_000, 7_000, 40]
    for size in sizes:
        house.fanout.deliver(house.value((b"a", bytes(size))), 0, 0, 0, 0)
    house.fanout.flush()
    ((*pieces,),) = transport.writes
    assert len(pieces) == 7, "four runs of copied bytes around three shared chunks"
    assert [len(payload) for payload in payloads_of(deliveries_of(transport.take()))] == sizes


# --- The way out ---------------------------------------------------------------------------------------------------


def test_answers_leave_first_and_ordered_frames_behind_deliveries() -> None:
    house = House(b"a")
    outbox, transport = house.connect()
    house.subscribe(outbox, b"a")
    house.fanout.deliver(house.value((b"a", bytes(5_000))), 0, 0, 0, 0)
    outbox.ordered_frame(build_frame(PING, b"behind  "))
    outbox.frame(build_frame(PING, b"answer 1"))
    outbox.published(bytes(2 * PUBLISHED_ENTRY.size))
    house.fanout.deliver(house.value((b"a", b"small")), 0, 0, 0, 0)
    assert house.fanout.pending
    assert house.fanout.flush() == []
    assert not house.fanout.pending
    assert len(transport.writes) == 1
    frames = frames_of(transport.take())
    assert [frame.kind for frame in frames] == [PING, PUBLISHED, DELIVER, PING, DELIVER]
    assert frames[0].body == b"answer 1"
    assert frames[1].body == bytes(2 * PUBLISHED_ENTRY.size)


def test_a_paused_connection_keeps_and_counts_its_bytes() -> None:
    house = House(b"a")
    outbox, transport = house.connect()
    house.subscribe(outbox, b"a")
    outbox.pause()
    house.fanout.deliver(house.value((b"a", bytes(5_000))), 0, 0, 0, 0)
    outbox.frame(build_frame(PING, b"answer 1"))
    outbox.published(bytes(PUBLISHED_ENTRY.size))
    expected = 8 + 16 + CHUNK_AND_RECORD + 5_000 + 16 + 8 + PUBLISHED_ENTRY.size
    assert outbox.queued == expected, "answers count like everything else, or a peer could make them grow for ever"
    assert house.fanout.flush() == [outbox]
    assert house.fanout.flush() == [], "it is told once, when something was added"
    assert transport.writes == []
    outbox.resume()
    assert house.fanout.pending
    assert house.fanout.flush() == []
    assert len(transport.take()) == expected
    assert outbox.queued == 0
    outbox.resume()
    assert not house.fanout.pending


def test_a_transport_may_ask_for_a_pause_inside_writelines() -> None:
    house = House(b"a")
    outbox, _ = house.connect()

    class Eager(Transport):
        def writelines(self, pieces: list[Any]) -> None:
            super().writelines(pieces)
            outbox.pause()

    outbox.transport = transport = Eager()
    house.subscribe(outbox, b"a")
    house.deliver((b"a", b"1"))
    house.deliver((b"a", b"2"))
    outbox.resume()
    house.fanout.flush()
    assert len(transport.writes) == 2
    assert payloads_of(deliveries_of(transport.take())) == [b"1", b"2"]


def test_a_closed_connection_drops_what_it_has() -> None:
    house = House(b"a")
    outbox, transport = house.connect()
    house.subscribe(outbox, b"a")
    outbox.pause()
    house.deliver((b"a", bytes(5_000)))
    outbox.frame(b"12345678")
    outbox.close()
    assert outbox.queued == 0
    assert outbox.transport is None
    outbox.resume()
    house.deliver((b"a", b"more"))
    assert house.fanout.flush() == []
    assert transport.writes == []


def test_one_chunk_to_one_reader() -> None:
    house = House(b"a")
    outbox, transport = house.connect()
    behind = Subscription(outbox, 9, 10, 0, True)
    small, large = house.value((b"a", b"x")), house.value((b"a", bytes(9_000)))
    house.fanout.deliver_one(behind, small, 4, 3)
    house.fanout.deliver_one(behind, large, 4, 4, DELIVER_EARLY)
    house.fanout.flush()
    ((prefix, shared),) = transport.writes
    assert shared is large
    first, second = deliveries_of(transport.take())
    assert first.prefix == (9, 3, 4, DELIVER_NAME, b"a")
    assert second.prefix == (9, 4, 4, DELIVER_EARLY, None)
    assert behind.credit == 10 - len(small) - len(large), "its caller has asked for what the credit allows"
    assert len(prefix) > 0


# --- Ownership -----------------------------------------------------------------------------------------------------


class Owner:
    """Something that a weak reference can watch."""


@pytest.mark.parametrize("wanted", [b"a", b">"])
def test_nobody_is_kept_alive_after_the_end(wanted: bytes) -> None:
    house = House(b"a")
    outbox, _ = house.connect()
    subscription = house.subscribe(outbox, wanted)
    subscription.state = owner = Owner()
    house.deliver((b"a", b"x"))
    house.fanout.close()
    alive = weakref.ref(owner)
    del house, outbox, subscription, owner
    gc.collect()
    assert alive() is None


def test_detached_readers_are_let_go_with_the_next_delivery() -> None:
    house = House(b"a")
    outbox, _ = house.connect()
    subscription = house.subscribe(outbox, b"a", b">")
    subscription.state = owner = Owner()
    house.deliver((b"a", b"x"))
    house.fanout.detach(subscription, b"a")
    house.fanout.detach_pattern(subscription, b">")
    house.value((b"a", b"y"))
    house.deliver((b"a", b"z"))
    alive = weakref.ref(owner)
    del subscription, owner
    assert alive() is None


def test_one_of_two_readers_of_a_channel_leaves() -> None:
    house = House(b"a")
    streams = [house.connect() for _ in range(2)]
    subscriptions = [house.subscribe(outbox, b"a") for outbox, _ in streams]
    assert house.fanout.detach(subscriptions[0], b"a")
    assert not house.fanout.detach(subscriptions[0], b"a")
    house.deliver((b"a", b"to the other"))
    assert [len(deliveries_of(transport.take())) for _, transport in streams] == [0, 1]
    assert house.fanout.detach(subscriptions[1], b"a")
    assert not house.fanout.detach(subscriptions[1], b"a")


def test_a_frame_of_nothing_is_not_written() -> None:
    house = House(b"a")
    outbox, transport = house.connect()
    outbox.frame(b"")
    assert house.fanout.flush() == []
    assert transport.writes == []


def test_a_connection_that_closed_while_it_was_paused_holds_nothing_back() -> None:
    house = House(b"a")
    streams = [house.connect() for _ in range(2)]
    for outbox, _ in streams:
        house.subscribe(outbox, b"a")
        outbox.pause()
    value = house.value((b"a", b"x"))
    house.fanout.deliver(value, 0, 0, 0, 0)
    streams[0][0].close()
    assert house.fanout.flush() == [streams[1][0]]


# --- Channels that were evicted ------------------------------------------------------------------------------------


def evict(house: House) -> int:
    house.publisher.leave()
    return house.tails.evict(1 << 62, 1, 2 * house.tails.slots)


def test_a_channel_that_is_read_by_its_name_stays() -> None:
    house = House(b"a.b", b"a.c")
    outbox, _ = house.connect()
    subscription = house.subscribe(outbox, b"a.b")
    assert evict(house) == 1
    assert house.tails.names() == [b"a.b"]
    house.fanout.detach(subscription, b"a.b")
    assert evict(house) == 1


def test_a_pattern_matches_a_channel_that_came_back() -> None:
    house = House(b"a.b")
    outbox, transport = house.connect()
    house.subscribe(outbox, b"a.*", tells_names=True)
    house.deliver((b"a.b", b"before"))
    assert evict(house) == 1
    assert len(house.tails) == 0
    house.load(b"a.b")
    house.deliver((b"a.b", b"after"))
    deliveries = deliveries_of(transport.take())
    assert payloads_of(deliveries) == [b"before", b"after"]
    assert [delivery.name for delivery in deliveries] == [b"a.b", b"a.b"], "under another id, and told again"


def test_a_chunk_of_an_evicted_channel_is_delivered_under_the_name_that_is_given() -> None:
    house = House(b"a.b")
    outbox, transport = house.connect()
    subscription = Subscription(outbox, 1, PLENTY, 0, True)
    chunk = house.value((b"a.b", b"x"))
    evict(house)
    with pytest.raises(KeyError):
        house.fanout.deliver_one(subscription, chunk, 5, 0)
    with pytest.raises(KeyError):
        house.fanout.deliver_one(subscription, chunk, 5, 0, name=bytes(256))
    house.fanout.deliver_one(subscription, chunk, 5, 0, name=b"a.b")
    house.fanout.flush()
    (delivery,) = deliveries_of(transport.take())
    assert delivery.name == b"a.b"
    assert delivery.chunk == chunks_of(chunk)[0]


# --- Groups -----------------------------------------------------------------------------------------------------------


class Journaled(House):
    """Stored channels, each with a reader of its own, whose groups are closed, applied and delivered one by one."""

    def __init__(self, *names: bytes, level: int = SYNCED) -> None:
        self.level = level
        super().__init__(*names)
        self.outbox, self.transport = self.connect()
        self.subscriptions = [self.subscribe(self.outbox, name, number=self.slots[name]) for name in names]

    def load(self, name: bytes) -> None:
        self.tails.load(name, self.level, 2, 1 << 20)
        self.slots[name] = len(self.slots)
        self.publisher.bind(self.slots[name], name)

    def publish(self, name: bytes, *payloads: bytes) -> None:
        records = [build_record(Record(payload)) for payload in payloads]
        assert self.publisher.publish_frame(publish_body(self.slots[name], self.publisher.line.next, records)) == 0

    def close(self) -> tuple[int, bytes, int]:
        """Close the open group; return (number, value, index of the first chunk that is delivered with it)."""
        number = self.tails.group_number
        value, early = self.tails.close_group(number - 1, 0, 1, 0, 0)
        return number, value, early

    def apply(self, group: tuple[int, bytes, int]) -> None:
        self.tails.apply_group(group[1], Line)

    def nexts(self, name: bytes) -> tuple[int, int, int]:
        """Return a channel's (applied next, next, seen next)."""
        info = self.tails.info(name)
        assert info is not None
        return info[4:7]

    def deliver_group(self, group: tuple[int, bytes, int]) -> list[tuple[int, groups.Chunk]]:
        """Deliver it; return (index, chunk) of each delivery."""
        number, value, early = group
        self.fanout.deliver(value, chunk_offset(value, early), number, early, 0)
        self.fanout.flush()
        found = deliveries_of(self.transport.take())
        assert all(delivery.group == number and not delivery.flags for delivery in found)
        readers = {self.tails.stored_id(name): slot for name, slot in self.slots.items()}
        assert all(readers[delivery.chunk.channel] == delivery.subscription for delivery in found)
        return [(delivery.index, delivery.chunk) for delivery in found]


def own_chunks(group: tuple[int, bytes, int]) -> list[tuple[int, groups.Chunk]]:
    """Return (index, chunk) of what goes with the group, by its bytes alone."""
    return list(enumerate(groups.parse_group(group[1]).chunks))[group[2] :]


FULL = b"f" * 40_000
"""Two of these do not fit into one chunk."""


def test_a_group_goes_to_the_readers_of_each_of_its_channels() -> None:
    """The channels are remembered from the close on; full chunks stand before them, and a channel may have both."""
    house = Journaled(b"a.a", b"a.b", b"a.c")
    for name in house.slots:
        house.publish(name, b"first")
    first = house.close()
    house.apply(first)
    house.publish(b"a.c", FULL, b"c")
    house.publish(b"a.a", b"1", FULL)
    house.publish(b"a.a", FULL, b"2")
    second = house.close()
    assert house.deliver_group(first) == own_chunks(first), "the next group may be closed before it is delivered"
    house.apply(second)
    house.publish(b"a.b", b"third")
    third = house.close()
    assert len(own_chunks(second)) == 3
    assert house.deliver_group(second) == own_chunks(second)
    assert house.deliver_group(first) == own_chunks(first), "an older one is looked up"
    house.apply(third)
    assert house.deliver_group(third) == own_chunks(third)


def test_a_group_that_is_undone_leaves_nothing_behind() -> None:
    house = Journaled(b"a.a", b"a.b")
    house.publish(b"a.a", b"lost")
    house.close()
    house.publish(b"a.b", b"lost as well")
    house.tails.undo(False)
    house.publish(b"a.b", b"kept")
    group = house.close()
    house.apply(group)
    assert [house.nexts(name) for name in (b"a.a", b"a.b")] == [(1, 1, 1), (2, 2, 2)]
    assert [records_of(chunk)[0].payload for _, chunk in own_chunks(group)] == [b"kept"]
    assert house.deliver_group(group) == own_chunks(group)


def test_early_chunks_of_a_group_are_applied_and_not_delivered_again() -> None:
    house = Journaled(b"a.a", b"a.b", level=ACCEPTED)
    house.publish(b"a.a", b"early")
    _, early = house.tails.close_turn()
    house.tails.accepted_waits = True
    house.publish(b"a.b", b"waits")
    house.publish(b"a.a", b"behind")
    group = house.close()
    assert early is not None
    assert group[2] == 1
    assert [house.nexts(name)[0] for name in (b"a.a", b"a.b")] == [1, 1]
    house.apply(group)
    assert [house.nexts(name) for name in (b"a.a", b"a.b")] == [(3, 3, 3), (2, 2, 2)]
    assert house.deliver_group(group) == own_chunks(group)
    assert len(own_chunks(group)) == 2


def test_what_is_evicted_before_a_group_is_delivered_is_not_looked_at_again() -> None:
    """Nobody delivers so late; but a channel that is not there any more must not be taken for one."""
    house = Journaled(*(b"a.%d" % number for number in range(50)))
    for name, subscription in zip(house.slots, house.subscriptions, strict=True):
        house.fanout.detach(subscription, name)
        house.publish(name, b"x")
    group = house.close()
    house.apply(group)
    house.publisher.leave()
    assert house.tails.evict(group[0], 1 << 31, 2 * house.tails.slots) == 50
    house.fanout.attach_pattern(house.subscriptions[0], b">")
    number, value, early = group
    house.fanout.deliver(value, chunk_offset(value, early), number, early, 0)
    assert not house.fanout.pending


# --- Closing ----------------------------------------------------------------------------------------------------------


def test_closing_reaches_the_readers_of_very_many_channels() -> None:
    """They stand in several segments of the table of names."""
    tails = Tails(1, 4770)
    fanout = Fanout(tails)
    outbox = Outbox(fanout, None)
    for number in range(3_000):
        tails.load(b"c.%d" % number, 3, 2, 100)
        fanout.attach(Subscription(outbox, number, PLENTY, 0, True), b"c.%d" % number)
    assert tails.held(b"c.2999")
    fanout.close()
    assert not any(tails.held(b"c.%d" % number) for number in range(3_000))


# --- Falling behind ------------------------------------------------------------------------------------------------


def test_where_a_subscription_was_refused() -> None:
    house = House(b"a", b"b")
    outbox, _ = house.connect()
    slow = house.subscribe(outbox, b"a", b"b", credit=FIVE, tells_names=True)
    fanout = house.fanout
    fanout.delivered, fanout.early_group, fanout.early_index, fanout.turn = 7, 8, 9, 10
    value = house.value((b"a", b"one.."), (b"b", b"two.."))
    value += house.value((b"a", b"three"))
    fanout.deliver(value, 0, 11, 3, DELIVER_EARLY)
    assert slow.refused == (11, 4, True, 7, 8, 9, 10)
    info = house.tails.info(b"b")
    assert info is not None
    assert slow.refused_channel == info[0]
    fanout.delivered = 12
    fanout.deliver(value, 0, 13, 0, 0)
    assert slow.refused == (11, 4, True, 7, 8, 9, 10), "the first time it was"
    assert fanout.slow == [slow]


def run_of(house: House, count: int, size: int = 100) -> list[tuple[int, int, bytes]]:
    return [(5, at, house.value((b"a" if at % 2 else b"b", bytes(size)))) for at in range(count)]


@pytest.mark.parametrize(
    ("credit", "bytes_max", "passes"),
    [
        (PLENTY, PLENTY, 6),
        (1, PLENTY, 1),
        (169, PLENTY, 2),
        (0, PLENTY, 0),
        (PLENTY, 1, 6),
        (PLENTY, 0, 0),
        (PLENTY, -5, 0),
    ],
)
def test_a_run_goes_on_while_there_is_credit_and_room(credit: int, bytes_max: int, passes: int) -> None:
    house = House(b"a", b"b")
    outbox, transport = house.connect()
    reader = house.subscribe(outbox, credit=credit, tells_names=True)
    chunks = run_of(house, 8)
    replay = Replay(house.fanout, chunks, {})
    assert house.fanout.deliver_run(reader, replay, 2, bytes_max, None) == (2 + passes, False)
    house.fanout.flush()
    got = deliveries_of(transport.take())
    assert [(one.group, one.index, one.chunk) for one in got] == [
        (group, at, chunks_of(chunk)[0]) for group, at, chunk in chunks[2 : 2 + passes]
    ]
    assert reader.credit == credit - passes * 168
    assert (house.fanout.chunks_out, house.fanout.records_out) == (passes, passes)


def test_a_run_passes_over_what_is_not_wanted_and_stops_at_what_was_trimmed() -> None:
    house = House(b"a", b"b")
    outbox, transport = house.connect()
    reader = house.subscribe(outbox, tells_names=True)
    chunks = run_of(house, 8)
    ids = {name: (house.tails.info(name) or (0,))[0] for name in (b"a", b"b")}
    replay = Replay(house.fanout, chunks, {})
    run = house.fanout.deliver_run
    assert run(reader, replay, 0, PLENTY, {}) == (8, False)
    assert run(reader, replay, 0, PLENTY, {ids[b"a"]: 1}) == (8, False)
    assert run(reader, replay, 0, PLENTY, {ids[b"a"]: 1, ids[b"b"]: 2}) == (0, True)
    assert run(reader, replay, 1, PLENTY, {ids[b"a"]: 1, ids[b"b"]: 2}) == (8, False)
    with pytest.raises(IndexError):
        run(reader, replay, -1, PLENTY, None)
    house.fanout.flush()
    assert [one.chunk.first for one in deliveries_of(transport.take())] == [1, 2, 3, 4, 1, 2, 2, 3, 3, 4, 4]


def test_a_run_names_channels_that_are_not_in_memory() -> None:
    house, elsewhere = House(b"b"), House(b"z", b"a")
    outbox, transport = house.connect()
    reader = house.subscribe(outbox, tells_names=True)
    chunks = [(5, 0, elsewhere.value((b"a", b"x")))]
    channel = groups.parse_chunk(chunks[0][2]).channel
    with pytest.raises(KeyError):
        house.fanout.deliver_run(reader, Replay(house.fanout, chunks, {}), 0, PLENTY, None)
    house.fanout.deliver_run(reader, Replay(house.fanout, chunks, {channel: b"gone"}), 0, PLENTY, None)
    house.fanout.flush()
    assert [one.name for one in deliveries_of(transport.take())] == [b"gone"]


RUN_BYTES_MAX = 256 * 1024


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 100, 3_000, 4_000, 5_000, 300_000]), min_size=1, max_size=200),
    credits=st.lists(st.sampled_from([50_000, 200_000, PLENTY]), min_size=1, max_size=5),
    wanted=st.sampled_from([None, {b"a"}, {b"a", b"b"}]),
)
def test_readers_of_a_replay_get_what_each_would_get_alone(
    sizes: list[int], credits: list[int], wanted: set[bytes] | None
) -> None:
    house = House(b"a", b"b")
    chunks = [(9, at, house.value((b"ab"[at % 2 : at % 2 + 1], bytes(size)))) for at, size in enumerate(sizes)]
    ids = {name: (house.tails.info(name) or (0,))[0] for name in (b"a", b"b")}
    firsts = None if wanted is None else {ids[name]: 1 for name in wanted}
    due = [at for at in range(len(chunks)) if wanted is None or b"ab"[at % 2 : at % 2 + 1] in wanted]
    replay = Replay(house.fanout, chunks, {})
    readers = []
    for number, credit in enumerate(credits):
        outbox, transport = house.connect()
        readers.append((house.subscribe(outbox, number=number % 2, credit=credit, tells_names=True), transport, credit))
    places = [0] * len(readers)
    got: list[list[Delivery]] = [[] for _ in readers]
    while min(places) < len(chunks):
        for which, (reader, _, _) in enumerate(readers):
            places[which], low = house.fanout.deliver_run(reader, replay, places[which], RUN_BYTES_MAX, firsts)
            assert not low
        house.fanout.flush()
        for which, (reader, transport, credit) in enumerate(readers):
            got[which] += deliveries_of(transport.take())
            reader.credit = credit
    for which, deliveries in enumerate(got):
        assert [one.index for one in deliveries] == due
        assert [groups.build_chunk(one.chunk) for one in deliveries] == [chunks[at][2] for at in due]
        assert {one.subscription for one in deliveries} <= {which % 2}
        named = [one.name for one in deliveries if one.name is not None]
        assert len(named) == len(set(named)) == len({one.chunk.channel for one in deliveries})
    assert (house.fanout.copied_bytes, house.fanout.shared_bytes) == (0, 0)


def test_frames_of_a_replay_are_one_object_for_all_who_read_it() -> None:
    house = House(b"a", b"b")
    chunks = [(9, at, house.value((b"ab"[at % 2 : at % 2 + 1], bytes(1_000)))) for at in range(1_000)]
    replay = Replay(house.fanout, chunks, {})
    readers = []
    for _ in range(10):
        outbox, transport = house.connect()
        readers.append((house.subscribe(outbox, tells_names=True), transport))
    # One of them has come another way, and is at other chunks until the next run begins.
    places = [7] + [0] * 9
    for turn in range(5):
        for which, (reader, _) in enumerate(readers):
            places[which], _ = house.fanout.deliver_run(reader, replay, places[which], 1, None)
        each = readers[0][0].outbox.queued
        assert house.fanout.shared_bytes <= (2 if turn == 0 else 1) * (each + 7 * 1_100)
        house.fanout.flush()
        kinds = {id(transport.writes[0][0]) for _, transport in readers}
        assert len(kinds) == (2 if turn == 0 else 1)
        for _, transport in readers:
            transport.take()
    assert set(places) == {1_000}


# --- What is kept in memory ----------------------------------------------------------------------------------------


def kept(fanout: Fanout) -> tuple[int, int, int]:
    return fanout.copied_bytes, fanout.shared_bytes, fanout.paused_count


@pytest.mark.parametrize("size", [10, 5_000])
def test_what_is_queued_is_counted_and_what_is_shared_once(size: int) -> None:
    house = House(b"a")
    fanout = house.fanout
    outboxes = [house.connect()[0] for _ in range(3)]
    for outbox in outboxes:
        outbox.pause()
        outbox.pause()
        house.subscribe(outbox, b"a")
    value = house.deliver((b"a", bytes(size)))
    prefix = 8 + 16
    whole = size > COPY_BYTES_MAX
    assert kept(fanout) == (3 * (prefix + (0 if whole else len(value))), len(value) if whole else 0, 3)
    assert [outbox.queued for outbox in outboxes] == [prefix + len(value)] * 3
    house.deliver((b"a", bytes(size)))
    assert fanout.shared_bytes == (2 * len(value) if whole else 0)
    outboxes[0].published(bytes(PUBLISHED_ENTRY.size))
    outboxes[0].ordered_frame(b"f" * 100)
    assert outboxes[0].answers_queued == 8 + PUBLISHED_ENTRY.size + 100
    assert fanout.copied_bytes == sum(outbox.queued for outbox in outboxes) - (6 * len(value) if whole else 0)
    outboxes[0].resume()
    fanout.flush()
    assert outboxes[0].answers_queued == 0
    outboxes[1].close()
    assert fanout.shared_bytes == (2 * len(value) if whole else 0), "one of them still has it"
    outboxes[2].close()
    assert kept(fanout) == (0, 0, 0)
