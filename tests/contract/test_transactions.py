"""Conditional publishes and transactions, over every home."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from broker import BrokerError, Conflict, Level, Position
from tests.contract.homes import nothing_comes, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker import Bus, Receipt, Transaction
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")

NEVER = Position(0, 0)
STORED = {"a": Level.ACCEPTED, "s": Level.SYNCED}


@asynccontextmanager
async def buses(home: Home, count: int) -> AsyncIterator[list[Bus]]:
    """So many buses of a home; the same one each time where a folder has one owner."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(home.bus())
        alone = home.kind in ("embedded", "thread")
        others = [first if alone else await stack.enter_async_context(home.bus()) for _ in range(count - 1)]
        yield [first, *others]


async def transacted(bus: Bus, *publishes: tuple[str, bytes, Position | None]) -> list[Receipt]:
    """Publish all of it in one transaction: channel, payload and the head that is expected."""
    async with bus.transaction() as tx:
        for channel, payload, expect in publishes:
            tx.publish(channel, payload, expect=expect)
    return tx.receipts


async def abandoned(tx: Transaction, channel: str) -> None:
    async with tx:
        tx.publish(channel, b"never")
        raise RuntimeError("mine")


# -- conditional publish -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", STORED)
async def test_a_publish_that_expects_the_head_is_stored(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    async with home.bus() as bus:
        first = await bus.publish(channel, b"1", expect=NEVER)
        second = await bus.publish(channel, b"2", expect=first.position)
        assert (first.sequence, second.sequence) == (1, 2)
        assert second.level is STORED[profile]
        info = await bus.channel(channel)
        third = await bus.publish(channel, b"3", expect=Position(info.epoch, info.head))
        assert third.sequence == 3


@pytest.mark.parametrize("profile", STORED)
async def test_a_publish_that_expects_another_head_is_told_the_head(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    async with home.bus() as bus:
        with pytest.raises(Conflict) as none_there:
            await bus.publish(channel, b"x", expect=Position(7, 7))
        assert none_there.value.head == NEVER
        first = await bus.publish(channel, b"1")
        second = await bus.publish(channel, b"2")
        for wrong in (NEVER, first.position, Position(second.epoch, 3), Position(second.epoch + 1, 2)):
            with pytest.raises(Conflict) as lost:
                await bus.publish(channel, b"x", expect=wrong)
            assert lost.value.head == second.position
            assert (lost.value.name, lost.value.code) == ("CONFLICT", 3024)
        assert (await bus.publish(channel, b"3", expect=second.position)).sequence == 3


@pytest.mark.parametrize("profile", STORED)
async def test_of_many_who_expect_the_same_one_wins(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}"
    async with buses(home, 3) as (one, two, three):
        head = NEVER
        for round_number in range(5):
            outcomes = await asyncio.gather(
                *(
                    bus.publish(channel, b"%d %d" % (round_number, at), expect=head)
                    for at, bus in enumerate((one, two, three, one, two))
                ),
                return_exceptions=True,
            )
            won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
            lost = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
            assert (len(won), len(lost)) == (1, 4)
            assert all(failure.head == won[0].position for failure in lost)
            assert won[0].sequence == round_number + 1
            head = won[0].position


async def test_what_is_published_around_a_conflict_keeps_its_order(home: Home, room: str) -> None:
    channel, other = f"s.{room}", f"s.{room}.other"
    async with home.bus() as bus:
        sent = [bus.publish(channel, b"%d" % number) for number in range(20)]
        lost = bus.publish(channel, b"lost", expect=NEVER)
        sent += [bus.publish(channel, b"%d" % number) for number in range(20, 40)]
        apart = [bus.publish(other, b"%d" % number) for number in range(5)]
        receipts = [await publication for publication in sent]
        with pytest.raises(Conflict):
            await lost
        assert [receipt.sequence for receipt in receipts] == list(range(1, 41))
        assert [(await publication).sequence for publication in apart] == [1, 2, 3, 4, 5]
        stored = await bus.history(channel).messages()
        assert [message.payload for message in stored] == [b"%d" % number for number in range(40)]


async def test_an_ephemeral_channel_has_no_head_to_expect(home: Home, room: str) -> None:
    async with home.bus() as bus:
        with pytest.raises(BrokerError) as refused:
            await bus.publish(f"e.{room}", b"x", expect=NEVER)
        assert refused.value.name == "NOT_STORED"
        assert (await bus.publish(f"e.{room}", b"x")).sequence == 1


async def test_an_expectation_that_is_no_position_is_refused_at_once(home: Home, room: str) -> None:
    async with home.bus() as bus:
        for wrong in ((1,), (1, -1), (1, 1 << 64), "ab", 5):
            with pytest.raises(BrokerError, match="INVALID_POSITION"):
                await bus.publish(f"s.{room}", b"x", expect=wrong)  # type: ignore[arg-type]


# -- transactions ------------------------------------------------------------------------------------------------------


async def test_a_transaction_is_stored_whole_and_answered_for_each(home: Home, room: str) -> None:
    names = [f"s.{room}.{at}" for at in range(3)]
    async with home.bus() as bus, bus.subscribe(f"s.{room}.*") as subscription:
        async with bus.transaction() as tx:
            assert tx.publish(names[0], b"a", key=b"k", headers={"h": 1}) == 0
            assert tx.publish(names[1], b"b") == 1
            assert tx.publish(names[0], b"c", priority=0, expiry_s=60) == 2
            assert tx.publish(names[2], b"") == 3
            assert tx.receipts == []
        assert [receipt.sequence for receipt in tx.receipts] == [1, 1, 2, 1]
        assert {receipt.level for receipt in tx.receipts} == {Level.SYNCED}
        messages = await take(subscription, 4)
        assert sorted((message.channel, message.payload) for message in messages) == [
            (names[0], b"a"),
            (names[0], b"c"),
            (names[1], b"b"),
            (names[2], b""),
        ]
        first = next(message for message in messages if message.payload == b"a")
        assert (first.key, first.headers) == (b"k", {"h": 1})


async def test_accepted_channels_of_a_transaction_are_seen_and_answered_with_the_commit(home: Home, room: str) -> None:
    accepted, synced = f"a.{room}", f"s.{room}"
    async with home.bus() as bus, bus.subscribe(accepted, synced) as subscription:
        posted = bus.publish(accepted, b"before")
        async with bus.transaction() as tx:
            tx.publish(accepted, b"1")
            tx.publish(synced, b"2")
            tx.publish(accepted, b"3")
        after = await bus.publish(accepted, b"after")
        assert (await posted).sequence == 1
        assert [receipt.sequence for receipt in tx.receipts] == [2, 1, 3]
        assert [receipt.level for receipt in tx.receipts] == [Level.ACCEPTED, Level.SYNCED, Level.ACCEPTED]
        assert after.sequence == 4
        messages = await take(subscription, 5)
        assert [message.payload for message in messages if message.channel == accepted] == [
            b"before",
            b"1",
            b"3",
            b"after",
        ]


async def test_an_exception_in_the_block_abandons_it(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus, bus.subscribe(channel) as subscription:
        tx = bus.transaction()
        with pytest.raises(RuntimeError, match="mine"):
            await abandoned(tx, channel)
        assert tx.receipts == []
        with pytest.raises(BrokerError, match="CLOSED"):
            tx.publish(channel, b"never")
        assert await nothing_comes(subscription)
        assert (await bus.publish(channel, b"first")).sequence == 1


async def test_a_transaction_that_is_left_takes_no_more(home: Home, room: str) -> None:
    async with home.bus() as bus:
        async with bus.transaction() as tx:
            tx.publish(f"s.{room}", b"1")
        with pytest.raises(BrokerError, match="CLOSED"):
            tx.publish(f"s.{room}", b"2")
        async with bus.transaction() as empty:
            pass
        assert empty.receipts == []


async def test_one_bad_publish_refuses_all_of_them(home: Home, room: str) -> None:
    good, other = f"s.{room}.good", f"s.{room}.other"
    async with home.bus() as bus:
        head = (await bus.publish(good, b"1")).position
        attempts = {
            "NOT_STORED": (f"e.{room}", b"x", None),
            "DENIED": ("$broker.x", b"x", None),
            "PAYLOAD_TOO_LARGE": (f"small.{room}", b"x" * 101, None),
            "CONFLICT": (other, b"x", Position(1, 1)),
        }
        for name, (channel, payload, expect) in attempts.items():
            with pytest.raises(BrokerError) as refused:
                await transacted(bus, (good, b"not", head), (channel, payload, expect), (good, b"neither", None))
            assert refused.value.name in (name, "INVALID_CHANNEL"), name
            if isinstance(refused.value, Conflict):
                assert (refused.value.head, refused.value.index) == (NEVER, 1)
        info = await bus.channel(good)
        assert info.head == 1
        assert (await bus.publish(good, b"2", expect=head)).sequence == 2


async def test_what_a_transaction_expects_are_the_heads_before_it(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        async with bus.transaction() as tx:
            tx.publish(channel, b"1", expect=NEVER)
            tx.publish(channel, b"2", expect=NEVER)
        assert [receipt.sequence for receipt in tx.receipts] == [1, 2]
        first, second = tx.receipts
        with pytest.raises(Conflict) as lost:
            await transacted(bus, (channel, b"3", second.position), (channel, b"4", first.position))
        assert (lost.value.head, lost.value.index) == (second.position, 1)


async def test_a_transaction_that_is_too_large_is_refused_and_the_bus_goes_on(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        for count in (11, 100):
            with pytest.raises(BrokerError, match="TRANSACTION_TOO_LARGE"):
                await transacted(bus, *[(channel, bytes(100_000), None)] * count)
        receipts = await transacted(bus, *[(channel, bytes(100_000), None)] * 10)
        assert [receipt.sequence for receipt in receipts] == list(range(1, 11))


async def test_many_transactions_at_once_are_each_whole(home: Home, room: str) -> None:
    names = [f"s.{room}.{at}" for at in range(4)]

    async def transact(bus: Bus, number: int) -> None:
        async with bus.transaction() as tx:
            for name in names:
                tx.publish(name, b"%d" % number)

    async with buses(home, 2) as (one, two):
        await asyncio.gather(*(transact((one, two)[number % 2], number) for number in range(40)))
        orders = [[message.payload for message in await one.history(name).messages()] for name in names]
        assert all(order == orders[0] for order in orders)
        assert sorted(orders[0], key=int) == [b"%d" % number for number in range(40)]
