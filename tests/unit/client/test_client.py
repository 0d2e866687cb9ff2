"""The client against a server whose every frame is scripted: handshake, splits, retries, resume, keep-alive."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError, BusPosition, Position
from broker.model.errors import error
from broker.wire import control
from broker.wire.kinds import Kind
from tests.reference import frames as twin
from tests.reference.groups import Chunk, build_chunk
from tests.unit.client.scripted import AT_ONCE, JOURNAL, LIMITS, Scripted, chunk, deliver, published

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from broker import Client
    from tests.unit.client.scripted import Connect, Peer

pytestmark = pytest.mark.usefixtures("loop_kind")


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with Scripted().listening() as scripted:
        yield scripted


@pytest.fixture
async def bus(server: Scripted, connect: Connect) -> AsyncIterator[Client]:
    client = await connect(server.url, backoff=AT_ONCE)
    yield client
    await client.close(timeout_s=0.01)


async def read(subscription: Any, count: int) -> list[bytes]:
    payloads: list[bytes] = []
    async with asyncio.timeout(5):
        async for message in subscription:
            payloads.append(message.payload)
            if len(payloads) == count:
                break
    return payloads


async def answer_one(peer: Peer, bus: Client) -> None:
    """Publish over a connection, to show that it works."""
    publication = bus.publish("shows.that.it.works", b"")
    _, number, _ = await peer.publish()
    peer.send(published(number, 1))
    assert (await publication).sequence == 1


# -- handshake ---------------------------------------------------------------------------------------------------------


async def test_hello_names_one_producer_for_the_life_of_the_bus(server: Scripted, connect: Connect) -> None:
    async with connect(server.url, backoff=AT_ONCE, token="secret", name="me") as one, connect(server.url) as other:
        (await server.peer()).drop()
        await server.peer()
        await server.peer()
        await other.close()
        await one.close()
    mine = [hello for hello in server.hellos if hello.client == "me"]
    assert {hello.token for hello in mine} == {"secret"}
    assert len({hello.producer for hello in mine}) == 1
    assert len({hello.producer for hello in server.hellos}) == 2


@pytest.mark.parametrize("name", ["VERSION", "DENIED", "TOO_MANY_CONNECTIONS", "GOING_AWAY"])
async def test_a_refused_hello_is_what_connecting_raises(server: Scripted, name: str, connect: Connect) -> None:
    server.refusal = control.encode_error(error(name, "because"))
    with pytest.raises(BrokerError, match="because") as raised:
        await connect(server.url)
    assert raised.value.name == name


async def test_a_server_that_says_nothing_is_given_up(server: Scripted, connect: Connect) -> None:
    server.is_silent = True
    with pytest.raises(BrokerError, match="TIMEOUT"):
        await connect(server.url, connect_timeout_s=0.05)


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        control.encode_going_away(1),
        control.frame(Kind.WELCOME, b"\x80"),
        control.frame(Kind.WELCOME, b"\xc1"),
        control.frame(Kind.HELLO, b""),
    ],
)
async def test_what_is_no_welcome_is_refused(server: Scripted, first: bytes, connect: Connect) -> None:
    server.refusal = first
    with pytest.raises(BrokerError, match="CONNECTION_LOST"):
        await connect(server.url)


async def test_a_bus_that_is_refused_when_it_comes_back_fails_for_good(server: Scripted, bus: Client) -> None:
    subscription = bus.subscribe("a")
    reading = asyncio.ensure_future(read(subscription, 1))
    peer = await server.peer()
    await peer.subscribe()
    publication = bus.publish("a", b"")
    server.refusal = control.encode_error(error("DENIED", "not any more"))
    peer.drop()
    with pytest.raises(BrokerError, match="DENIED"):
        await reading
    with pytest.raises(BrokerError, match=r"DENIED|COMMIT_UNKNOWN"):
        await publication
    with pytest.raises(BrokerError, match="DENIED"):
        bus.post("a", b"")


# -- publishing --------------------------------------------------------------------------------------------------------


async def test_publishes_of_a_turn_leave_together_and_answers_come_in_any_order(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    a = [bus.publish("a", b"%d" % number) for number in range(3)]
    b = bus.publish("b", b"x")
    assert await peer.publish() == ("a", 1, [b"0", b"1", b"2"])
    assert await peer.publish() == ("b", 4, [b"x"])
    peer.send(published(4, 7), published(2, 11, 2, epoch=2), published(1, 10))
    assert (await b).position == Position(1, 7)
    assert [(await publication).position for publication in a] == [Position(1, 10), Position(2, 11), Position(2, 12)]


async def test_what_was_not_answered_is_sent_again_under_its_number(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    publications = [bus.publish("a", b"1")]
    assert await peer.publish() == ("a", 1, [b"1"])
    publications.append(bus.publish("b", b"2"))
    publications.append(bus.publish("b", b"3"))
    assert await peer.publish() == ("b", 2, [b"2", b"3"])
    server.welcome |= {"highest": 2}  # the server has the first of them, and half of the second frame
    peer.drop()
    peer = await server.peer()
    assert await peer.publish() == ("a", 1, [b"1"])
    assert await peer.publish() == ("b", 2, [b"2"])
    assert await peer.publish() == ("b", 3, [b"3"])
    peer.send(published(1, 5, flags=1), published(2, 0, epoch=0, flags=1), published(3, 9))
    first, second, third = [await publication for publication in publications]
    assert (first.position, first.duplicate) == (Position(1, 5), True)
    assert (second.epoch, second.duplicate) == (0, True)
    assert (third.position, third.duplicate) == (Position(1, 9), False)


async def test_a_gap_is_filled_under_new_numbers(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    publications = []
    for channel in ("a", "b", "c"):
        publications.append(bus.publish(channel, channel.encode()))
        await peer.publish()
    refusal = error("LIMIT", "too much")
    peer.send(control.encode_error(refusal, number=2, count=1))
    with pytest.raises(BrokerError, match="LIMIT"):
        await publications[1]
    late = bus.publish("d", b"d")
    await asyncio.sleep(0.01)
    # Nothing is sent before everything that is in flight is answered: every answer stays unambiguous.
    peer.send(control.encode_error(error("NUMBER_GAP", ""), number=3, count=1))
    await asyncio.sleep(0.01)
    peer.send(published(1, 1))
    assert await peer.publish() == ("c", 2, [b"c"])
    assert await peer.publish() == ("d", 3, [b"d"])
    peer.send(published(2, 1), published(3, 1))
    assert (await publications[0]).sequence == (await publications[2]).sequence == (await late).sequence == 1


async def test_an_unknown_commit_is_cleared_up_by_a_new_handshake(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    publication = bus.publish("a", b"x")
    await peer.publish()
    server.welcome |= {"highest": 1}
    peer.send(control.encode_error(error("COMMIT_UNKNOWN", "the disk"), number=1, count=1))
    peer = await server.peer()
    assert await peer.publish() == ("a", 1, [b"x"])
    peer.send(published(1, 4, flags=1))
    assert (await publication).position == Position(1, 4)


@pytest.mark.parametrize(
    ("level", "welcome", "is_known"),
    [
        (3, {"highest": 0}, False),
        (3, {"highest": 0, "run": 2}, False),
        (3, {"highest": 1, "run": 2}, True),
        (2, {"highest": 0}, True),
        (2, {"highest": 0, "run": 2}, True),
        (3, {"highest": 1, "journal": b"k" * 16}, False),
    ],
)
async def test_a_line_that_was_lost_is_told_and_not_guessed(
    server: Scripted, bus: Client, level: int, welcome: dict[str, Any], is_known: bool
) -> None:
    peer = await server.peer()
    answered = bus.publish("a", b"1")
    await peer.publish()
    peer.send(published(1, 1, level=level))
    await answered
    sent = bus.publish("a", b"2")
    await peer.publish()
    server.welcome |= welcome
    peer.drop()
    peer = await server.peer()
    if not is_known:
        with pytest.raises(BrokerError, match="COMMIT_UNKNOWN"):
            await sent
        sent = bus.publish("a", b"3")
    number = welcome["highest"] + 1
    assert await peer.publish() == ("a", number, [b"2" if is_known else b"3"])
    peer.send(published(number, 9))
    assert (await sent).sequence == 9


async def test_answers_that_make_no_sense_end_the_connection_and_not_the_bus(server: Scripted, bus: Client) -> None:
    for nonsense in (
        published(5, 1),
        control.frame(Kind.PUBLISHED, b"\0"),
        control.frame(99, b""),
        control.frame(Kind.ERROR, b"\x80"),
        control.frame(Kind.PING, b""),
        twin.build_frame(Kind.PONG, bytes(8), reserved=1),
        deliver(77, chunk([b""], first=1)),
    ):
        peer = await server.peer()
        peer.send(nonsense)
        assert await peer.ended()
    await answer_one(await server.peer(), bus)


async def test_going_away_is_followed_when_all_is_answered(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    publication = bus.publish("a", b"1")
    await peer.publish()
    peer.send(control.encode_going_away(10))
    await asyncio.sleep(0.01)
    late = bus.publish("a", b"2")  # not on this connection any more
    peer.send(published(1, 1))
    assert (await publication).sequence == 1
    server.welcome |= {"highest": 1}
    assert await peer.ended()
    peer = await server.peer()
    assert await peer.publish() == ("a", 2, [b"2"])
    peer.send(published(2, 2))
    assert (await late).sequence == 2


# -- subscribing -------------------------------------------------------------------------------------------------------


async def test_every_split_of_a_conversation_reads_the_same(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    subscription = bus.subscribe("a.*")
    opening = asyncio.ensure_future(subscription._open())
    wanted = await peer.subscribe()
    peer.accept(wanted)
    await opening
    epoch = 0

    def conversation() -> bytes:
        frames = [
            deliver(wanted.subscription, chunk([b"1", b"22"], first=1, epoch=epoch), group=5, name="a.b"),
            control.encode_ping(7),
            deliver(wanted.subscription, chunk([b"333"], first=3, epoch=epoch), group=6),
        ]
        return b"".join(frames)

    for at in range(len(conversation()) + 1):
        epoch += 1
        await peer.send_in_pieces(conversation(), at)
        assert await read(subscription, 3) == [b"1", b"22", b"333"]
        assert control.decode_token(await peer.expect(Kind.PONG)) == 7


async def test_literals_resume_by_position_and_drop_what_comes_twice(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    subscription = bus.subscribe("a", "b", start="start")
    opening = asyncio.ensure_future(subscription._open())
    wanted = await peer.subscribe()
    assert (wanted.filters, wanted.start) == (("a", "b"), control.FromStart())
    peer.accept(wanted, control.Outcome("a", "resumed", 1, 0), control.Outcome("b", "new", 4, 7))
    await opening
    number = wanted.subscription
    peer.send(deliver(number, chunk([b"1", b"2"], first=1), group=3, name="a"))
    assert await read(subscription, 2) == [b"1", b"2"]
    peer.drop()

    peer = await server.peer()
    wanted = await peer.subscribe()
    assert wanted.start == control.FromPositions((("a", 1, 2), ("b", 4, 7)))
    assert wanted.subscription != number
    peer.accept(wanted, control.Outcome("a", "resumed", 1, 2), control.Outcome("b", "trimmed", 4, 10))
    peer.send(deliver(wanted.subscription, chunk([b"2", b"3"], first=2), group=3, name="a"))
    peer.send(deliver(wanted.subscription, chunk([b"10"], first=10, epoch=4, channel=2), group=3, name="b"))
    assert await read(subscription, 2) == [b"3", b"10"]
    assert subscription.positions == {"a": Position(1, 3), "b": Position(4, 10)}
    assert [(event.name, event.channel, event.at) for event in subscription.events] == [
        ("resumed", "a", 2),
        ("trimmed", "b", 10),
    ]
    peer.drop()

    peer = await server.peer()
    wanted = await peer.subscribe()
    assert wanted.start == control.FromPositions((("a", 1, 3), ("b", 4, 10)))
    peer.accept(wanted, control.Outcome("a", "diverged", 2, 1), control.Outcome("b", "resumed", 4, 10))
    peer.send(deliver(wanted.subscription, chunk([b"2'"], first=2, epoch=2), group=9, name="a"))
    assert await read(subscription, 1) == [b"2'"]
    assert subscription.events[-2] == ("diverged", "a", 2, 1, 0, 0)


async def test_patterns_resume_by_bus_position_and_follow_the_early_rule(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    subscription = bus.subscribe("a.>")
    opening = asyncio.ensure_future(subscription._open())
    wanted = await peer.subscribe()
    assert wanted.start == control.FromNew()
    peer.accept(wanted, group=10, index=2)
    await opening
    assert subscription.bus_position == BusPosition(JOURNAL, 10, 2)
    number = wanted.subscription
    peer.send(
        deliver(number, chunk([b"1"], first=1, channel=1), group=11, index=0, name="a.x"),
        # Group 12 is in commit and 13 open: this one came early, and vouches for 11 as a whole.
        deliver(number, chunk([b"2", b"3"], first=2, channel=1), group=13, index=0, early=True),
        # Not stored: says nothing of the place.
        deliver(number, chunk([b"e"], first=1, channel=3, epoch=9), name="a.e"),
    )
    assert await read(subscription, 4) == [b"1", b"2", b"3", b"e"]
    assert subscription.bus_position == BusPosition(JOURNAL, 11, 2**32 - 1)
    peer.drop()

    peer = await server.peer()
    wanted = await peer.subscribe()
    number = wanted.subscription
    assert wanted.start == control.FromBus(JOURNAL, 11, 2**32 - 1)
    peer.accept(wanted, control.Outcome("", "resumed", 0, 11), group=11, index=2**32 - 1)
    peer.send(
        deliver(number, chunk([b"y"], first=1, channel=2), group=12, index=0, name="a.y"),
        # What came early comes again with one more behind it, and is dropped.
        deliver(number, chunk([b"2", b"3", b"4"], first=2, channel=1), group=13, index=0, name="a.x"),
        # The same sequence in another epoch is another message.
        deliver(number, chunk([b"3'"], first=3, channel=1, epoch=2), group=14, index=0),
    )
    assert await read(subscription, 3) == [b"y", b"4", b"3'"]
    assert subscription.bus_position == BusPosition(JOURNAL, 14, 0)
    assert [event.name for event in subscription.events] == ["resumed"]


async def test_credit_is_what_has_been_read_and_a_full_reader_waits_to_resume(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    credit = 64 * 1024
    subscription = bus.subscribe("a", credit_bytes=credit)
    opening = asyncio.ensure_future(subscription._open())
    wanted = await peer.subscribe()
    assert wanted.credit == credit
    peer.accept(wanted, control.Outcome("a", "new", 1, 0))
    await opening
    payload = bytes(10_000)
    for sequence in range(1, 6):
        peer.send(deliver(wanted.subscription, chunk([payload], first=sequence), group=sequence))
    await asyncio.sleep(0.02)
    peer.send(control.encode_error(error("SLOW_CONSUMER", "cut")))
    peer.drop()
    peer = await server.peer()
    bus.post("b", b"meanwhile")
    assert (await peer.publish())[0] == "b"  # and no SUBSCRIBE before it: most of its credit is waiting to be read
    peer.send(published(1, 1))
    await read(subscription, 4)
    wanted = await peer.subscribe()
    assert wanted.start == control.FromPositions((("a", 1, 5),))
    assert credit // 2 <= wanted.credit < credit - 10_000
    peer.accept(wanted, control.Outcome("a", "resumed", 1, 5))
    peer.send(deliver(wanted.subscription, chunk([b"six"], first=6), group=6))
    assert (await read(subscription, 2))[1] == b"six"


async def test_a_subscription_that_is_cut_begins_again_under_another_number(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    subscription = bus.subscribe("a")
    opening = asyncio.ensure_future(subscription._open())
    first = await peer.subscribe()
    peer.accept(first, control.Outcome("a", "new", 1, 0))
    await opening
    peer.send(deliver(first.subscription, chunk([b"1"], first=1), group=1))
    await read(subscription, 1)
    peer.send(control.encode_error(error("SLOW_CONSUMER", "cut"), subscription=first.subscription))
    again = await peer.subscribe()
    assert again.subscription != first.subscription
    assert again.start == control.FromPositions((("a", 1, 1),))
    peer.accept(again, control.Outcome("a", "resumed", 1, 1))
    peer.send(
        deliver(first.subscription, chunk([b"2"], first=2), group=2),  # of the one that was cut, and late
        deliver(again.subscription, chunk([b"2"], first=2), group=2),
    )
    assert await read(subscription, 1) == [b"2"]
    assert [event.name for event in subscription.events] == ["slow", "resumed"]


async def test_a_refused_subscription_says_why_to_who_waits_and_who_reads(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    for ask in (lambda one: one._open(), lambda one: read(one, 1)):
        subscription = bus.subscribe("a")
        asking = asyncio.ensure_future(ask(subscription))
        wanted = await peer.subscribe()
        peer.send(control.encode_error(error("DENIED", "not yours"), subscription=wanted.subscription))
        with pytest.raises(BrokerError, match="DENIED"):
            await asking


async def test_what_was_stored_under_a_higher_limit_is_read(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    subscription = bus.subscribe("a", start="start")
    opening = asyncio.ensure_future(subscription._open())
    wanted = await peer.subscribe()
    peer.accept(wanted, control.Outcome("a", "resumed", 1, 0))
    await opening
    larger = bytes(2 * LIMITS.frame_bytes_max)
    peer.send(deliver(wanted.subscription, chunk([larger], first=1), group=3))
    assert await read(subscription, 1) == [larger]


async def test_deliveries_after_unsubscribing_are_dropped(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    subscription = bus.subscribe("a")
    opening = asyncio.ensure_future(subscription._open())
    wanted = await peer.subscribe()
    peer.accept(wanted, control.Outcome("a", "new", 1, 0))
    await opening
    await subscription.close()
    assert control.decode_unsubscribe(await peer.expect(Kind.UNSUBSCRIBE)) == wanted.subscription
    peer.send(deliver(wanted.subscription, chunk([b"late"], first=1), group=1))
    peer.send(control.encode_unsubscribed(wanted.subscription), control.encode_ping(1))
    await peer.expect(Kind.PONG)
    assert [message async for message in subscription] == []


async def test_events_reach_the_subscription(server: Scripted, bus: Client) -> None:
    heard: list[Any] = []
    loop, all_heard = asyncio.get_running_loop(), asyncio.Event()

    def hear(event: Any) -> None:
        heard.append(event)
        if len(heard) == 2:
            # A bus with a thread of its own tells of events there, when it has let go of what it keeps.
            loop.call_soon_threadsafe(all_heard.set)

    peer = await server.peer()
    subscription = bus.subscribe("a", on_event=hear)
    opening = asyncio.ensure_future(subscription._open())
    wanted = await peer.subscribe()
    peer.accept(wanted, control.Outcome("a", "new", 1, 0))
    await opening
    gone = twin.build_record(twin.Record(gone=(2, 3)))
    body = gone + twin.build_record(twin.Record(b"x"))
    mixed = build_chunk(Chunk(1, 1, 1, 4, body))
    peer.send(control.encode_event(wanted.subscription, "later", "a", {"epoch": 1, "at": 9}))
    peer.send(deliver(wanted.subscription, mixed, group=1))
    assert await read(subscription, 1) == [b"x"]
    await asyncio.wait_for(all_heard.wait(), 10)
    assert heard == list(subscription.events)
    assert heard == [("later", "a", 1, 9, 0, 0), ("gone", "a", 1, 1, 3, 2)]


@pytest.mark.parametrize("told", [True, False], ids=["told", "seen"])
async def test_what_retention_took_is_told_once(server: Scripted, bus: Client, *, told: bool) -> None:
    peer = await server.peer()
    subscription = bus.subscribe("a")
    opening = asyncio.ensure_future(subscription._open())
    wanted = await peer.subscribe()
    peer.accept(wanted, control.Outcome("a", "new", 1, 0))
    await opening
    for first in (9, 20):
        if told:
            peer.send(control.encode_event(wanted.subscription, "trimmed", "a", {"first": first}))
        chunk = build_chunk(Chunk(1, 1, first, 1, twin.build_record(twin.Record(b"x"))))
        peer.send(deliver(wanted.subscription, chunk, group=first))
        assert await read(subscription, 1) == [b"x"]
    assert list(subscription.events) == [("trimmed", "a", 1, 9, 0, 0), ("trimmed", "a", 1, 20, 0, 0)]


# -- requests and keep-alive -------------------------------------------------------------------------------------------


async def test_requests_are_answered_in_any_order_and_refused_one_by_one(server: Scripted, bus: Client) -> None:
    peer = await server.peer()
    asking = [asyncio.ensure_future(bus.channel("a")), asyncio.ensure_future(bus.stats())]
    refused = asyncio.ensure_future(bus.channel("b"))
    channel, stats, other = [control.decode_request(await peer.expect(Kind.REQUEST)) for _ in range(3)]
    assert (channel.op, channel.more) == ("channel", {"name": "a"})
    peer.send(control.encode_reply(stats.request, {"stats": {"run": 3}}))
    peer.send(control.encode_error(error("NO_PROFILE", "none"), request=other.request))
    peer.send(control.encode_reply(channel.request, {"epoch": 1, "first": 2, "head": 3, "level": 3}))
    assert await asking[0] == (1, 2, 3, 3)
    assert await asking[1] == {"run": 3}
    with pytest.raises(BrokerError, match="NO_PROFILE"):
        await refused
    lost = asyncio.ensure_future(bus.stats())
    await peer.expect(Kind.REQUEST)
    peer.drop()
    with pytest.raises(BrokerError, match="CONNECTION_LOST"):
        await lost


async def test_a_quiet_server_is_pinged_and_a_silent_one_is_left(server: Scripted, connect: Connect) -> None:
    server.welcome |= {"ping_s": 0.03}
    async with connect(server.url, backoff=AT_ONCE) as bus:
        peer = await server.peer()
        for _ in range(3):
            token = control.decode_token(await peer.expect(Kind.PING))
            peer.send(control.encode_pong(token))
        assert await peer.ended()
        server.welcome |= {"ping_s": 15.0}
        await answer_one(await server.peer(), bus)


async def test_a_bus_that_is_closed_has_no_socket_left(server: Scripted, connect: Connect) -> None:
    """The server sees it leave at once, though the loop is never run again."""
    bus = await connect(server.url)
    await server.peer()
    connection = bus._connection
    assert connection is not None
    assert len(connection.descriptors()) == 1
    await bus.close()
    assert connection.descriptors() == []


async def test_a_child_has_neither_the_bus_nor_its_socket(server: Scripted, connect: Connect) -> None:
    """Every call raises FORKED, and the number of the socket leads nowhere, so that nobody closes a stranger's file."""
    bus = await connect(server.url)
    peer = await server.peer()
    connection = bus._connection
    assert connection is not None
    (descriptor,) = connection.descriptors()
    assert in_a_child(lambda: used_in_a_child(bus, descriptor)) == 0
    await answer_one(peer, bus)
    await bus.close()


def in_a_child(work: Callable[[], None]) -> int:
    """Run work in a forked process; returns its status, 0 when nothing was raised."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def used_in_a_child(bus: Client, descriptor: int) -> None:
    assert os.fstat(descriptor).st_rdev == os.stat(os.devnull).st_rdev
    for call in (bus.post, bus.publish):
        with pytest.raises(BrokerError, match="FORKED"):
            call("a.b", b"")
    for work in (bus.stats(), bus.channel("a.b"), anext(aiter(bus.subscribe("a.b")))):
        with pytest.raises(BrokerError, match="FORKED"):
            next(work.__await__())
