"""Messages that are published again under their ids, over every home."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import broker
from broker import BackoffPolicy, BrokerError
from tests.contract import threaded
from tests.contract.homes import take

if TYPE_CHECKING:
    from tests.contract.homes import Home, Server

pytestmark = pytest.mark.usefixtures("loop_kind")

QUICK = BackoffPolicy(first_s=0.01, longest_s=0.05)


async def test_a_message_is_stored_once(home: Home, room: str) -> None:
    name = f"s.{room}"
    async with home.bus() as bus:
        first = await bus.publish(name, b"paid", id="order-1")
        again = await bus.publish(name, b"paid again", id=b"order-1")
        theirs = await bus.publish(name, b"theirs", id="order-1", key=b"k")
        new = await bus.publish(name, b"new", id="order-2")
        plain = await bus.publish(name, b"plain")
        assert (first.duplicate, again.duplicate, theirs.duplicate, new.duplicate) == (False, True, True, False)
        assert first.position == again.position == theirs.position
        assert (new.first, plain.first, plain.duplicate) == (first.first + 1, first.first + 2, False)
        async with bus.subscribe(name, start="start") as subscription:
            messages = await take(subscription, 3)
        assert [(message.payload, message.id) for message in messages] == [
            (b"paid", b"order-1"),
            (b"new", b"order-2"),
            (b"plain", None),
        ]


async def test_many_at_once(home: Home, room: str) -> None:
    name = f"s.{room}"
    async with home.bus() as bus:
        ids: list[str | bytes | None] = ["a", "b", None, b"a", "c", b"c"]
        receipts = await bus.publish_many(name, [b"%d" % number for number in range(6)], ids=ids)
        assert [(receipt.first, receipt.count, receipt.duplicate) for receipt in receipts] == [
            (1, 3, False),
            (1, 1, True),
            (4, 1, False),
            (4, 1, True),
        ]
        again = await bus.publish_many(name, [b"%d" % number for number in range(6)], ids=iter(ids[:2] + ids[4:] * 2))
        assert [(receipt.first, receipt.count, receipt.duplicate) for receipt in again] == [
            (1, 2, True),
            (4, 1, True),
            (4, 1, True),
            (4, 1, True),
            (4, 1, True),
        ]
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            await bus.publish_many(name, [b"1", b"2"], ids=["x"])
        for number in range(100):
            bus.post(name, b"posted", id=b"posted-%d" % (number % 10))
        await bus.flush()
        assert (await bus.publish(name, b"last")).first == 4 + 1 + 10 + 1


async def test_accepted_channels_remember_as_well(home: Home, room: str) -> None:
    name = f"a.{room}"
    async with home.bus() as bus:
        first, again = await asyncio.gather(bus.publish(name, b"1", id="one"), bus.publish(name, b"1", id="one"))
        assert (first.position, first.duplicate, again.duplicate) == (again.position, False, True)
        assert first.level == again.level == broker.Level.ACCEPTED


@pytest.mark.parametrize(
    ("level", "id", "code"),
    [
        ("s", "", "INVALID_ID"),
        ("s", b"i" * 65, "INVALID_ID"),
        ("s", "ä" * 33, "INVALID_ID"),
        ("e", "one", "NOT_STORED"),
    ],
)
async def test_what_is_refused(home: Home, room: str, level: str, id: str | bytes, code: str) -> None:
    name = f"{level}.{room}"
    async with home.bus() as bus:
        with pytest.raises(BrokerError) as refused:
            await bus.publish(name, b"x", id=id)
        assert refused.value.name == code
        assert (await bus.publish(name, b"y")).first == 1, "the connection goes on"


async def test_ids_of_any_bytes(home: Home, room: str) -> None:
    name = f"s.{room}"
    async with home.bus() as bus:
        ids: list[str | bytes] = [b"\0", b"\xff" * 64, "ä" * 32, b"0"]
        for id in ids:
            assert not (await bus.publish(name, b"x", id=id)).duplicate
            assert (await bus.publish(name, b"x", id=id)).duplicate


async def test_they_survive_a_reopening(home: Home, room: str) -> None:
    """Of those homes that are a broker of their own it is another run."""
    name = f"s.{room}"
    async with home.bus() as bus:
        receipts = await bus.publish_many(name, [b"x"] * 500, ids=[b"%d" % number for number in range(500)])
    async with home.bus() as bus:
        again = await bus.publish_many(name, [b"x"] * 501, ids=[b"%d" % number for number in range(501)])
        assert [(receipt.first, receipt.count, receipt.duplicate) for receipt in again] == [
            (receipts[0].first, 500, True),
            (501, 1, False),
        ]
        assert again[0].epoch == receipts[0].epoch


@pytest.mark.parametrize("connect", [broker.connect, threaded.connect], ids=["asyncio", "blocking"])
async def test_whoever_repeats_after_a_kill_stores_nothing_twice(own_server: Server, connect: Any) -> None:
    """A publisher that forgets everything but the ids publishes its messages again with each new connection."""
    ids = [b"job-%d" % number for number in range(200)]
    for life in range(3):
        async with connect(own_server.tcp_url, backoff=QUICK) as bus:
            publishing = asyncio.create_task(_publish_each(bus, ids[: 80 + 60 * life]))
            await asyncio.sleep(0.02)
            own_server.kill()
            await asyncio.to_thread(own_server.start)
            async with asyncio.timeout(20):
                assert sorted(await publishing) == list(range(1, 80 + 60 * life + 1))
    async with connect(own_server.tcp_url) as bus, bus.subscribe("s.jobs", start="start") as subscription:
        messages = await take(subscription, 200)
        assert sorted(message.id for message in messages) == sorted(ids)
        assert (await bus.publish("s.jobs", b"end")).first == 201


async def _publish_each(bus: Any, ids: list[bytes]) -> list[int]:
    return [(await bus.publish("s.jobs", id, id=id)).first for id in ids]
