"""The client that was written from the document alone, and a real server: each on TCP and a Unix socket, both loops.

It mirrors the contract suite (tests/contract), which asks the same of the product's own clients. When a test here
fails and its twin there does not, then the document says something that the product does not do.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from broker import Position, connect
from tests.contract.homes import take as take_real
from tests.independent import frames
from tests.independent.client import Client, Message, Placed, Refused, Subscription
from tests.independent.conversation import Conversation, Ended
from tests.independent.frames import Answer, Deliver, Entry, Error, Kind, Pong, Published, Subscribed, Unsubscribed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.independent.conftest import Place
    from tests.independent.line import Receipt

    Dial = Callable[..., Client]
    Talk = Callable[..., Conversation]

LEVELS = {"e": 1, "a": 2, "s": 3}


def numbered(count: int, begin: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(begin, begin + count)]


def take(subscription: Subscription, count: int) -> list[Message]:
    """The next `count` messages, and nothing else may come between them."""
    messages = []
    for _ in range(count):
        item = subscription.next()
        assert isinstance(item, Message), item
        messages.append(item)
    return messages


def nothing_comes(subscription: Subscription) -> bool:
    return subscription.next(0.05) is None


def placed(receipt: Receipt) -> list[Placed]:
    """The places of a receipt of which nothing was refused."""
    found = [result for result in receipt.results if isinstance(result, Placed)]
    assert len(found) == len(receipt.results), receipt
    return found


def codes(receipt: Receipt) -> list[int]:
    """0 for a record that was placed, else the code that refused it."""
    return [result.code if isinstance(result, Error) else 0 for result in receipt.results]


def until(conversation: Conversation, kind: type[Answer], count: int = 1) -> list[Answer]:
    """Receive until `count` answers of a kind have come, and return all that came."""
    answers: list[Answer] = []
    while sum(isinstance(answer, kind) for answer in answers) < count:
        answer = conversation.receive(10)
        assert answer is not None, answers
        answers.append(answer)
    return answers


def entries(conversation: Conversation, count: int) -> dict[int, Entry]:
    """Receive PUBLISHED entries until they cover `count` numbers; by their first number."""
    found: dict[int, Entry] = {}
    while sum(entry.count for entry in found.values()) < count:
        answer = conversation.receive(10)
        assert isinstance(answer, Published), answer
        found |= {entry.number: entry for entry in answer.entries}
    return found


def position(client: Client, channel: str) -> tuple[object, object]:
    reply = client.request("channel", name=channel)
    return reply["epoch"], reply["head"]


# -- publish and subscribe ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", LEVELS)
def test_records_are_placed_and_delivered_in_order_and_once(place: Place, dial: Dial, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    client = dial(place.address)
    subscription = client.subscribe(channel)
    receipts = [client.publish(channel, *numbered(10, begin)) for begin in range(0, 1000, 10)]
    client.wait(*receipts)
    places = [place for receipt in receipts for place in placed(receipt)]
    assert [place.sequence for place in places] == list(range(1, 1001))
    assert {(place.level, place.duplicate) for place in places} == {(LEVELS[profile], False)}
    messages = take(subscription, 1000)
    assert [message.payload for message in messages] == numbered(1000)
    assert [message.sequence for message in messages] == list(range(1, 1001))
    assert {message.epoch for message in messages} == {places[0].epoch}
    assert nothing_comes(subscription)
    reply = client.request("channel", name=channel)
    assert (reply["epoch"], reply["head"], reply["level"]) == (places[0].epoch, 1000, LEVELS[profile])


def test_everything_about_a_record_comes_through(place: Place, dial: Dial, room: str) -> None:
    channel = f"s.{room}"
    headers = {"content-type": "text/plain", "depth": 3, "blob": b"\0\xff", "list": [1, None, True, -7, 1.5]}
    begun_us = time.time_ns() // 1000
    client = dial(place.address)
    subscription = client.subscribe(channel)
    client.publish(channel, b"", headers=headers, key=b"\0key\xff", priority=0, expiry_s=3600)
    client.publish(channel, bytes(range(256)))
    full, plain = take(subscription, 2)
    assert (full.channel, full.payload, full.headers, full.record.key) == (channel, b"", headers, b"\0key\xff")
    assert (full.record.priority, full.record.expiry_s) == (0, 3600)
    assert (plain.payload, plain.headers, plain.record.key) == (bytes(range(256)), None, None)
    assert (plain.record.priority, plain.record.expiry_s, plain.record.publisher) == (2, None, None)
    assert abs(full.time_us - begun_us) < 60_000_000
    assert plain.time_us >= full.time_us


def test_payloads_of_many_sizes_come_through(place: Place, dial: Dial, room: str) -> None:
    channel = f"s.{room}"
    sizes = [0, 1, 127, 4083, 4084, 4085, 65_467, 65_468, 65_469, 65_536, 262_144]
    client = dial(place.address)
    subscription = client.subscribe(channel)
    for size in sizes:
        client.publish(channel, (b"%08d" % size * (size // 8 + 1))[:size])
    for size, message in zip(sizes, take(subscription, len(sizes)), strict=True):
        assert message.payload == (b"%08d" % size * (size // 8 + 1))[:size]


def test_patterns_select_by_token_and_name_their_channels(place: Place, dial: Dial, room: str) -> None:
    client = dial(place.address)
    one = client.subscribe(f"s.{room}.*.done")
    rest = client.subscribe(f"s.{room}.>")
    literals = client.subscribe(f"s.{room}.b.done", f"s.{room}.c")
    several = client.subscribe(f"s.{room}.c", f"s.{room}.*", f"s.{room}.>")
    names = ["a.done", "b.done", "b.done.not", "c"]
    for name in names:
        client.publish(f"s.{room}.{name}", name.encode())
    for subscription, expected in (
        (one, ["a.done", "b.done"]),
        (rest, names),
        (several, names),
        (literals, ["b.done", "c"]),
    ):
        found = take(subscription, len(expected))
        assert [message.channel for message in found] == [f"s.{room}.{name}" for name in expected]
        assert [message.payload for message in found] == [name.encode() for name in expected]
        assert nothing_comes(subscription)


def test_nothing_comes_after_unsubscribed(place: Place, dial: Dial, room: str) -> None:
    channel = f"s.{room}"
    client = dial(place.address)
    closed, other = client.subscribe(channel), client.subscribe(channel)
    client.publish(channel, b"1")
    closed.close()
    client.publish(channel, b"2")
    assert [message.payload for message in take(other, 2)] == numbered(2, 1)
    assert closed.ended
    assert client.connections == 1


@pytest.mark.parametrize("profile", ["a", "s"])
def test_starts(place: Place, dial: Dial, room: str, profile: str) -> None:
    """Each start, over single records and a chunk of several that starts fall into the middle of."""
    channel = f"{profile}.{room}.x"
    client = dial(place.address)
    receipts = [client.publish(channel, payload) for payload in numbered(5)]
    receipts.append(client.publish(channel, *numbered(5, 5)))
    client.wait(*receipts)
    epoch = placed(receipts[0])[0].epoch
    journal = client.conversation.welcome.journal
    whole = client.subscribe(channel, start={"from": "start"})
    assert whole.answer is not None
    assert [(one.outcome, one.epoch, one.at) for one in whole.answer.outcomes] == [("resumed", epoch, 0)]
    assert [message.payload for message in take(whole, 10)] == numbered(10)
    cases: list[tuple[dict[str, object], int]] = [
        ({"positions": [[channel, epoch, 0]]}, 0),
        ({"positions": [[channel, 0, 0]]}, 0),
        ({"positions": [[channel, epoch, 4]]}, 4),
        ({"positions": [[channel, epoch, 8]]}, 8),
        ({"last": 3}, 7),
        ({"last": 100}, 0),
        ({"time_us": 0}, 0),
        ({"bus": [journal, 0, 0]}, 0),
        ({"from": "new"}, 10),
    ]
    for start, first in cases:
        subscription = client.subscribe(channel, start=start)
        assert [message.payload for message in take(subscription, 10 - first)] == numbered(10 - first, first), start
        assert nothing_comes(subscription), start
        subscription.close()


def test_what_is_stored_is_read_back(place: Place, dial: Dial, room: str) -> None:
    """Whole, by bounds, in answers of every size, both ways; and names are listed."""
    client = dial(place.address)
    channel = f"s.{room}"
    for begin in (0, 3, 4):
        client.wait(*(client.publish(channel, payload) for payload in numbered(3, begin * 3)))
    payloads = [*numbered(3), *numbered(3, 9), *numbered(3, 12)]

    def read(**bounds: object) -> list[tuple[int, bytes]]:
        found = [
            (chunk.first + at, record.payload)
            for chunk in client.history(channel, **bounds)
            for at, record in enumerate(chunk.records)
        ]
        return sorted(found)

    stored = list(enumerate(payloads, 1))
    for size in (1, 200, 1 << 20):
        for limit in (1, 4, 100):
            assert read(bytes=size, limit=limit) == stored
            assert read(bytes=size, limit=limit, reverse=True) == stored
    assert read(after=2, before=6) == stored[2:5]
    assert read(last=4, before=8) == stored[3:7]
    fields = client.request("channels", prefix=f"s.{room}", details=True)
    assert fields["channels"] == [[channel, client.request("channel", name=channel)["epoch"], 1, 9, 3]]
    assert fields["more"] is False


def test_a_start_goes_on_with_what_is_new(place: Place, dial: Dial, room: str) -> None:
    channel = f"s.{room}"
    client = dial(place.address)
    client.wait(client.publish(channel, *numbered(2000)))
    subscription = client.subscribe(channel, start={"from": "start"})
    client.publish(channel, *numbered(2000, 2000))
    assert [message.payload for message in take(subscription, 4000)] == numbered(4000)


# -- the line ----------------------------------------------------------------------------------------------------------


def test_a_frame_that_is_sent_again_is_answered_by_its_old_place(place: Place, talk: Talk, room: str) -> None:
    producer = os.urandom(16)
    record = frames.record(b"once")
    first = talk(place.address, producer=producer)
    assert first.welcome.highest == 0
    first.send(frames.channel(0, f"s.{room}") + frames.channel(1, f"e.{room}") + frames.channel(2, f"a.{room}"))
    first.send(frames.publish(0, 1, [record] * 3) + frames.publish(1, 4, [record]) + frames.publish(2, 5, [record]))
    before = entries(first, 5)
    assert [(before[number].count, before[number].level) for number in (1, 4, 5)] == [(3, 3), (1, 1), (1, 2)]
    first.close()

    second = talk(place.address, producer=producer)
    assert second.welcome.highest == 5
    # The channels' numbers went with the connection, and frames may be cut otherwise than at first.
    second.send(frames.channel(0, f"a.{room}") + frames.channel(1, f"s.{room}") + frames.channel(2, f"e.{room}"))
    second.send(frames.publish(1, 2, [frames.record(b"not looked at")] * 2))
    second.send(frames.publish(2, 4, [record]) + frames.publish(0, 5, [record]) + frames.publish(1, 6, [record]))
    again = entries(second, 5)
    assert (again[2].epoch, again[2].first, again[2].count) == (before[1].epoch, 2, 2)
    assert (again[2].channel, again[2].level, again[2].duplicate) == (1, 3, True)
    assert (again[4].epoch, again[4].first, again[4].level, again[4].duplicate) == (0, 0, 1, True)
    assert (again[5].epoch, again[5].first, again[5].level, again[5].duplicate) == (before[5].epoch, 1, 2, True)
    assert (again[6].first, again[6].duplicate) == (4, False)


def test_places_of_the_last_1024_numbers_are_known(place: Place, talk: Talk, room: str) -> None:
    conversation = talk(place.address, producer=os.urandom(16))
    record = frames.record(b"")
    conversation.send(frames.channel(0, f"s.{room}.x") + frames.channel(1, f"s.{room}.y"))
    conversation.send(frames.publish(0, 1, [record] * 3))
    for number in range(4, 1504, 300):
        conversation.send(frames.publish(1, number, [record] * 300))
    entries(conversation, 1503)
    for channel, number, first, known in (
        (1, 1503, 1500, True),
        (1, 480, 477, True),
        (0, 3, 3, False),
        (0, 1, 1, False),
    ):
        conversation.send(frames.publish(channel, number, [record]))
        again = entries(conversation, 1)[number]
        assert (again.level, again.duplicate) == (3, True)
        # Older ones may be known still: how long depends on what was decided together.
        assert (again.first, again.epoch > 0) == (first, True) or (not known and (again.first, again.epoch) == (0, 0))


def test_what_the_line_refuses(place: Place, talk: Talk, room: str) -> None:
    conversation = talk(place.address)
    record = frames.record(b"")
    conversation.send(frames.channel(0, f"s.{room}") + frames.publish(0, 1, [record] * 3))
    until(conversation, Published)
    for number, count, name in ((5, 1, "NUMBER_GAP"), (0, 1, "NUMBER_GAP"), (3, 2, "NUMBER_OVERLAP")):
        conversation.send(frames.publish(0, number, [record] * count))
        (error,) = until(conversation, Error)
        assert isinstance(error, Error)
        assert (error.name, error.concerns, error.number, error.count) == (name, "number", number, count)
    conversation.send(frames.publish(0, 4, []))
    (error,) = until(conversation, Error)
    assert isinstance(error, Error)
    assert (error.name, error.number, error.count) == ("INVALID_RECORD", 4, 0)


def test_refusals_among_frames_in_flight_cost_only_what_is_wrong(place: Place, dial: Dial, room: str) -> None:
    """All is sent at once: behind each refusal comes NUMBER_GAP, and the client numbers the rest anew."""
    channel, small = f"s.{room}", f"small.{room}"
    client = dial(place.address)
    subscription = client.subscribe(channel, small)
    good, bad = frames.record(b"good"), frames.record(b"bad", priority=9)
    receipts = [
        client.publish_records(channel, [good]),
        client.publish_records(channel, [bad]),
        client.publish_records(f"none.{room}", [good]),
        client.publish_records(small, [good, good, frames.record(bytes(101)), good]),
        client.publish_records(channel, [good]),
        client.publish_records("$broker", [good]),
        client.publish_records(channel, [frames.record(b"", headers={"h": bytes(20_000)}), good]),
        client.publish_records(channel, [good] * 3),
    ]
    client.wait(*receipts)
    assert [codes(receipt) for receipt in receipts] == [
        [0],
        [3011],
        [3007],
        [0, 0, 3009, 0],
        [0],
        [3008],
        [3010, 0],
        [0, 0, 0],
    ]
    messages = take(subscription, 9)
    assert [message.sequence for message in messages if message.channel == channel] == list(range(1, 7))
    assert [message.sequence for message in messages if message.channel == small] == [1, 2, 3]
    assert nothing_comes(subscription)


def test_a_lost_connection_costs_no_record_and_doubles_none(place: Place, dial: Dial, room: str) -> None:
    """Records of all levels in flight when the connection goes, five times over."""
    client, reader = dial(place.address), dial(place.address)
    subscriptions = {profile: reader.subscribe(f"{profile}.{room}") for profile in LEVELS}
    receipts = []
    for turn in range(5):
        for number in range(30):
            payloads = numbered(3, 90 * turn + 3 * number)
            receipts += [client.publish(f"{profile}.{room}", *payloads) for profile in LEVELS]
        client.cut()
        client.ping()
    client.wait(*receipts)
    assert client.connections == 6
    assert all(isinstance(result, Placed) for receipt in receipts for result in receipt.results)
    for subscription in subscriptions.values():
        assert [message.payload for message in take(subscription, 450)] == numbered(450)
    for profile, subscription in subscriptions.items():
        assert nothing_comes(subscription)
        assert position(client, f"{profile}.{room}")[1] == 450


def test_a_producer_has_one_connection(place: Place, talk: Talk, dial: Dial, room: str) -> None:
    producer = os.urandom(16)
    first = talk(place.address, producer=producer)
    first.send(frames.channel(0, f"s.{room}") + frames.publish(0, 1, [frames.record(b"")]))
    until(first, Published)
    second = talk(place.address, producer=producer)
    assert second.welcome.highest == 1
    with pytest.raises(Ended, match="PRODUCER_TAKEN"):
        first.receive(10)


# -- resuming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["a", "s"])
@pytest.mark.parametrize("kind", ["literals", "pattern"])
def test_subscriptions_resume_without_gap_or_duplicate(
    place: Place, dial: Dial, room: str, profile: str, kind: str
) -> None:
    """Connections go while records are on their way; by positions, and by the bus with its rule for EARLY."""
    channels = [f"{profile}.{room}.{name}" for name in "xyz"]
    filters = channels if kind == "literals" else [f"{profile}.{room}.*"]
    publisher, reader = dial(place.address), dial(place.address)
    subscription = reader.subscribe(*filters, start={"from": "start"})
    found: dict[str, list[tuple[int, bytes]]] = {channel: [] for channel in channels}
    early = published = 0
    for turn in range(12):
        for _ in range(20):
            publisher.publish(channels[published % 3], b"%d" % (published // 3))
            published += 1
        publisher.serve(0.0)
        for message in take(subscription, 7 + turn):
            found[message.channel].append((message.sequence, message.payload))
            early += message.early
        reader.cut()
    received = sum(map(len, found.values()))
    for message in take(subscription, published - received):
        found[message.channel].append((message.sequence, message.payload))
    assert nothing_comes(subscription)
    # A turn that found all that it took in the queue has made no connection.
    assert 7 <= reader.connections <= 13
    # How many are ahead of the disk depends on the disk; a synced record never is.
    assert profile == "a" or not early
    for channel in channels:
        assert found[channel] == [(number + 1, b"%d" % number) for number in range(published // 3)]


def test_a_pattern_goes_on_behind_a_place_of_the_bus(place: Place, talk: Talk, dial: Dial, room: str) -> None:
    client = dial(place.address)
    for number in range(20):
        client.wait(client.publish(f"s.{room}.{number % 4}", b"%d" % number))
    conversation = talk(place.address)
    subscribe = {"subscription": 9, "filters": [f"s.{room}.>"], "credit": 1 << 20}
    conversation.send(frames.control(Kind.SUBSCRIBE, **subscribe, start={"from": "start"}))
    answers = until(conversation, Deliver, 20)
    assert isinstance(answers[0], Subscribed)
    assert answers[0].outcomes == ()
    chunks = [answer for answer in answers[1:] if isinstance(answer, Deliver)]
    places = [(chunk.group, chunk.index) for chunk in chunks]
    assert places == sorted(places)
    conversation.close()
    bus = [client.conversation.welcome.journal, chunks[11].group, chunks[11].index]
    subscription = client.subscribe(f"s.{room}.>", start={"bus": bus})
    assert subscription.answer is not None
    assert [(one.channel, one.outcome, one.epoch, one.at) for one in subscription.answer.outcomes] == [
        ("", "resumed", 0, chunks[11].group)
    ]
    assert [message.payload for message in take(subscription, 8)] == numbered(8, 12)


def test_positions_that_are_not_there_are_told(place: Place, dial: Dial, room: str) -> None:
    stored, ephemeral = f"s.{room}", f"e.{room}"
    client = dial(place.address)
    receipts = [client.publish(channel, *numbered(3)) for channel in (stored, ephemeral)]
    client.wait(*receipts)
    (epoch, brief) = (placed(receipt)[0].epoch for receipt in receipts)
    cases: list[tuple[str, int, int, tuple[str, int, int]]] = [
        (stored, epoch, 7, ("diverged", epoch, 3)),
        (stored, 1, 2, ("diverged", epoch, 0)),
        (ephemeral, brief, 3, ("resumed", brief, 3)),
        (ephemeral, brief, 1, ("trimmed", brief, 4)),
        (ephemeral, brief, 9, ("diverged", brief, 3)),
        (ephemeral, epoch, 2, ("diverged", brief, 3)),
        (ephemeral, 0, 0, ("new", brief, 3)),
    ]
    for channel, of, sequence, expected in cases:
        subscription = client.subscribe(channel, start={"positions": [[channel, of, sequence]]})
        assert subscription.answer is not None
        (outcome,) = subscription.answer.outcomes
        assert (outcome.outcome, outcome.epoch, outcome.at) == expected, (channel, of, sequence)
        subscription.close()
    for bus in ([os.urandom(16), 1, 0], [client.conversation.welcome.journal, 2**63, 0]):
        subscription = client.subscribe(f"s.{room}", start={"bus": bus})
        assert subscription.answer is not None
        assert [(one.channel, one.outcome) for one in subscription.answer.outcomes] == [("", "diverged")]
        subscription.close()


# -- credit ------------------------------------------------------------------------------------------------------------


def test_credit_is_what_the_server_may_send(place: Place, talk: Talk, dial: Dial, room: str) -> None:
    """While a subscription catches up the last chunk may take its credit below 0, and no other one follows."""
    channel, payload, credit = f"s.{room}", bytes(1000), 100_000
    client = dial(place.address)
    client.wait(*(client.publish(channel, *[payload] * 50) for _ in range(40)))
    conversation = talk(place.address)
    subscribe = {"subscription": 1, "filters": [channel], "credit": credit, "start": {"from": "start"}}
    conversation.send(frames.control(Kind.SUBSCRIBE, **subscribe))
    until(conversation, Subscribed)
    granted, received, last = credit, 0, 0
    for _ in range(5):
        while granted > 0:
            answer = conversation.receive(10)
            assert isinstance(answer, Deliver)
            assert answer.chunk.first == last + 1
            last = answer.chunk.last
            granted -= answer.chunk.size
            received += answer.chunk.size
        assert conversation.receive(0.05) is None
        # Less than the debt changes nothing; the rest of it and a byte more brings one chunk.
        conversation.send(frames.credit(1, -granted))
        granted = 0
        assert conversation.receive(0.02) is None
        conversation.send(frames.credit(1, 1))
        granted = 1
    assert received > credit


def test_a_slow_reader_reads_on_by_its_credit(place: Place, dial: Dial, room: str) -> None:
    """Live, more than `limits.subscription_bytes_max` of 262,144 goes unread by an application that takes nothing."""
    publisher, reader = dial(place.address), dial(place.address)
    subscription = reader.subscribe(f"s.{room}.>", credit=20_000)
    for _ in range(20):
        publisher.wait(publisher.publish(f"s.{room}.x", *[bytes(1000)] * 30))
    messages = take(subscription, 600)
    assert [message.sequence for message in messages] == list(range(1, 601))
    assert reader.connections == 1


# -- errors, requests, the end -----------------------------------------------------------------------------------------


def test_what_is_refused_leaves_the_connection_alone(place: Place, dial: Dial, room: str) -> None:
    client = dial(place.address)
    refused: list[tuple[list[str], dict[str, object] | None, str]] = [
        (["a..b"], None, "INVALID_PATTERN"),
        (["s.>.x"], None, "INVALID_PATTERN"),
        ([f"none.{room}"], None, "NO_PROFILE"),
        (["$broker"], None, "DENIED"),
        (["s.>"], {"positions": [["s.x", 1, 1]]}, "INVALID_POSITION"),
        (["s.>"], {"last": 1}, "INVALID_POSITION"),
        ([f"s.{room}"], {"positions": [["s.other", 1, 1]]}, "INVALID_POSITION"),
        ([f"s.{number}" for number in range(1001)], None, "TOO_MANY_SUBSCRIPTIONS"),
    ]
    for filters, start, name in refused:
        with pytest.raises(Refused, match=name):
            client.subscribe(*filters, start=start)
    for op, fields, name in (
        ("sing", {}, "UNKNOWN_OPERATION"),
        ("channel", {"name": "a..b"}, "INVALID_CHANNEL"),
        ("channel", {"name": f"none.{room}"}, "NO_PROFILE"),
        ("channel", {"name": "$broker"}, "DENIED"),
    ):
        with pytest.raises(Refused, match=name):
            client.request(op, **fields)
    assert client.request("channel", name=f"s.{room}") | {"request": 0} == {
        "request": 0,
        "epoch": 0,
        "first": 1,
        "head": 0,
        "level": 3,
    }
    assert isinstance(client.request("stats")["stats"], dict)
    client.ping()
    assert client.connections == 1


def test_a_number_in_use_is_refused(place: Place, talk: Talk, room: str) -> None:
    conversation = talk(place.address)
    subscribe = frames.control(Kind.SUBSCRIBE, subscription=1, filters=[f"s.{room}"], credit=100)
    conversation.send(subscribe + subscribe)
    first, second = until(conversation, Error)
    assert isinstance(first, Subscribed)
    assert isinstance(second, Error)
    assert (second.name, second.concerns, second.number) == ("SUBSCRIPTION_IN_USE", "subscription", 1)
    conversation.send(frames.credit(77, 1) + frames.control(Kind.UNSUBSCRIBE, subscription=1))
    assert until(conversation, Unsubscribed) == [Unsubscribed(1)]
    conversation.send(subscribe)
    until(conversation, Subscribed)
    conversation.send(frames.control(Kind.UNSUBSCRIBE, subscription=2))
    (unknown,) = until(conversation, Error)
    assert isinstance(unknown, Error)
    assert (unknown.name, unknown.concerns, unknown.number) == ("UNKNOWN_SUBSCRIPTION", "subscription", 2)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (frames.frame(Kind.PING, b""), "MALFORMED_FRAME"),
        (frames.frame(Kind.DELIVER, b""), "MALFORMED_FRAME"),
        (frames.frame(Kind.SUBSCRIBE, b"\x81\xa1x"), "MALFORMED_FRAME"),
        (frames.control(Kind.SUBSCRIBE, subscription=0, filters=["s.x"], credit=1), "MALFORMED_FRAME"),
        (frames.control(Kind.SUBSCRIBE, subscription=1, filters=[], credit=1), "MALFORMED_FRAME"),
        (frames.hello([1], "", None, None), "BAD_STATE"),
        (b"\xff\xff\xff\x7f\x04\x00\x00\x00", "FRAME_TOO_LARGE"),
        (frames.frame(Kind.PUBLISH, bytes(15)), "MALFORMED_FRAME"),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection_and_says_why(
    place: Place, talk: Talk, data: bytes, name: str
) -> None:
    conversation = talk(place.address)
    conversation.send(data)
    with pytest.raises(Ended, match=name) as raised:
        conversation.receive(10)
    assert raised.value.error is not None


def test_versions(place: Place, talk: Talk) -> None:
    talk(place.address, versions=(7, 1, 2)).close()
    with pytest.raises(Ended, match="VERSION"):
        talk(place.address, versions=(2, 3))


def test_further_frames_may_follow_hello_at_once(place: Place, room: str) -> None:
    family = socket.AF_UNIX if isinstance(place.address, str) else socket.AF_INET
    with socket.socket(family) as raw:
        raw.connect(place.address)
        raw.sendall(
            frames.hello([1], "", None, None)
            + frames.channel(0, f"s.{room}")
            + frames.publish(0, 1, [frames.record(b"x")])
            + frames.token(Kind.PING, 5)
        )
        splitter = frames.Splitter()
        kinds: set[int] = set()
        raw.settimeout(10)
        while not {Kind.WELCOME, Kind.PUBLISHED, Kind.PONG} <= kinds:
            splitter.feed(raw.recv(4096))
            while (found := splitter.next()) is not None:
                kinds.add(found[0])


def test_pings_go_both_ways(place: Place, talk: Talk) -> None:
    conversation = talk(place.address)
    conversation.send(frames.token(Kind.PING, 2**64 - 1))
    assert conversation.receive(10) == Pong(2**64 - 1)


# -- the two clients ---------------------------------------------------------------------------------------------------


async def test_each_client_reads_what_the_other_publishes(place: Place, room: str) -> None:
    """Headers, keys, priorities and expiry, in both directions and in one channel."""
    channel = f"s.{room}.x"
    headers = {"type": "text", "n": [1, -2, 2**63, 1.25, None, True], "b": b"\x00", "map": {"k": "é"}}
    async with connect(place.url) as bus, bus.subscribe(f"s.{room}.>") as real:
        client = await asyncio.to_thread(Client, place.address)
        try:
            own = await asyncio.to_thread(client.subscribe, channel)
            for turn in range(10):
                receipt = await bus.publish(channel, b"real %d" % turn, headers=headers, key=b"r", priority=1)
                answer = await asyncio.to_thread(
                    client.publish, channel, b"own %d" % turn, headers=headers, key=b"o", priority=3, expiry_s=60
                )
                await asyncio.to_thread(client.wait, answer)
                assert placed(answer)[0].sequence == receipt.sequence + 1
                assert Position(placed(answer)[0].epoch, receipt.sequence) == receipt.position
            messages = await asyncio.to_thread(take, own, 20)
            others = await take_real(real, 20)
        finally:
            client.close()
    expected = [b"%s %d" % (who, turn) for turn in range(10) for who in (b"real", b"own")]
    assert [message.payload for message in messages] == expected
    assert [message.payload for message in others] == expected
    for message, other in zip(messages, others, strict=True):
        assert (message.headers, message.record.key) == (headers, other.key)
        assert (message.sequence, message.epoch, message.time_us) == (other.sequence, other.epoch, other.time)
        assert (message.record.priority, message.record.expiry_s) == (other.priority, other.expiry_s)
        assert other.headers == headers
