"""Live groups, over every home: each message goes to one member, and nobody waits for one that lags or has left."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from broker import BrokerError, Last
from tests.contract.homes import happens, nothing_comes, take

if TYPE_CHECKING:
    from broker.bus import Subscription
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")

LEVELS = "eas"


def numbered(count: int, begin: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(begin, begin + count)]


async def take_all(members: list[Subscription], count: int) -> list[list[bytes]]:
    """Return what each of the members got, once they got so many messages together."""
    taken: list[list[bytes]] = [[] for _ in members]

    async def read(at: int) -> None:
        async for message in members[at]:
            taken[at].append(message.payload)

    tasks = [asyncio.create_task(read(at)) for at in range(len(members))]

    async def all_came() -> bool:
        return sum(map(len, taken)) >= count

    assert await happens(all_came)
    await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return taken


@pytest.mark.parametrize("profile", LEVELS)
async def test_each_message_goes_to_one_member_in_turn(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    async with home.bus() as bus:
        members = [await bus.subscribe(channel, group="workers") for _ in range(3)]
        witness = await bus.subscribe(channel)
        for _ in range(10):
            await bus.publish_many(channel, numbered(30))
        taken = await take_all(members, 300)
        assert Counter(chain.from_iterable(taken)) == dict.fromkeys(numbered(30), 10)
        assert all(95 <= len(got) <= 105 for got in taken)
        assert len(await take(witness, 300)) == 300
        assert await nothing_comes(witness)


async def test_members_may_follow_patterns_and_several_channels(home: Home, room: str) -> None:
    async with home.bus() as bus:
        wide = await bus.subscribe(f"e.{room}.>", group="workers")
        narrow = await bus.subscribe(f"e.{room}.a", f"e.{room}.b", group="workers")
        await bus.publish_many(f"e.{room}.a", numbered(10))
        await bus.publish_many(f"e.{room}.c", numbered(10))
        taken = await take_all([wide, narrow], 20)
        assert [len(got) for got in taken] == [15, 5]


async def test_groups_do_not_know_each_other(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus:
        red = await bus.subscribe(channel, group="red")
        blue = await bus.subscribe(channel, group="blue")
        await bus.publish_many(channel, numbered(5))
        assert [message.payload for message in await take(red, 5)] == numbered(5)
        assert [message.payload for message in await take(blue, 5)] == numbered(5)


async def test_whoever_leaves_holds_nothing_back(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus:
        leaves = await bus.subscribe(channel, group="workers")
        stays = await bus.subscribe(channel, group="workers")
        await leaves.close()
        # The broker hears of it on the same connection, before it hears of these.
        await bus.publish_many(channel, numbered(20))
        assert [message.payload for message in await take(stays, 20)] == numbered(20)


async def test_a_member_that_does_not_read_is_passed_over(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus:
        lags = await bus.subscribe(channel, group="workers", credit_bytes=64 * 1024)
        reads = await bus.subscribe(channel, group="workers")
        reading = asyncio.create_task(take(reads, 1500, 30))
        for _ in range(100):
            await bus.publish_many(channel, [bytes(1000)] * 20)
        assert len(await reading) == 1500
        # What it has room for: its credit, and what a live subscription may be past it.
        got = len(await take_until_quiet(lags))
        assert 50 <= got <= 500
        assert not lags.events
        # It has read, so it has its share again.
        await bus.publish_many(channel, numbered(20))
        assert len(await take_until_quiet(lags)) == 10


async def take_until_quiet(subscription: Subscription) -> list[Any]:
    taken: list[Any] = []
    while True:
        try:
            taken += await take(subscription, 1, 0.3)
        except TimeoutError:
            return taken


async def test_what_no_member_has_room_for_is_lost_to_the_group_and_told(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        alone = await bus.subscribe(channel, group="workers", credit_bytes=64 * 1024)
        for _ in range(100):
            await bus.publish_many(channel, [bytes(1000)] * 20)
        got = len(await take_until_quiet(alone))
        await bus.publish(channel, b"once more")
        (last,) = await take(alone, 1)
        assert last.payload == b"once more"
        assert [(event.name, event.run) for event in alone.events] == [("dropped", 2000 - got)]
        # A stored channel has them all the same.
        assert len(await bus.history(channel).messages()) == 2001


async def test_members_begin_with_what_comes(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        await bus.publish(channel, b"before")
        member = await bus.subscribe(channel, group="workers")
        await bus.publish(channel, b"after")
        assert [message.payload for message in await take(member, 1)] == [b"after"]
        assert (member.positions, member.bus_position) == ({}, None)


@pytest.mark.parametrize("group", ["", "x" * 256])
async def test_a_name_that_is_none_is_refused(home: Home, room: str, group: str) -> None:
    async with home.bus() as bus:
        with pytest.raises(BrokerError) as caught:
            bus.subscribe(f"e.{room}", group=group)
        assert caught.value.name == "INVALID_PATTERN"


@pytest.mark.parametrize("start", ["start", Last(3)])
async def test_a_group_has_no_start(home: Home, room: str, start: Any) -> None:
    async with home.bus() as bus:
        with pytest.raises(BrokerError) as caught:
            bus.subscribe(f"s.{room}", start=start, group="workers")
        assert caught.value.name == "INVALID_POSITION"
