"""Readers that fall behind, in every home: they miss nothing, are told, and hold nobody up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker import Since
from tests.contract.homes import nothing_comes, take

if TYPE_CHECKING:
    from broker import Bus
    from tests.contract.homes import Home

pytestmark = pytest.mark.usefixtures("loop_kind")

LITTLE = 64 * 1024
PAYLOAD = bytes(1_000)


async def fill(bus: Bus, channel: str, messages: int) -> None:
    """Publish in steps that the broker cannot take for one."""
    for _ in range(messages // 100):
        await bus.publish_many(channel, [PAYLOAD] * 100)


@pytest.mark.parametrize("profile", ["s", "a"])
async def test_who_falls_behind_misses_nothing_and_is_told(home: Home, room: str, profile: str) -> None:
    channel = f"{profile}.{room}.x"
    async with (
        home.bus() as bus,
        bus.subscribe(channel, credit_bytes=LITTLE) as literal,
        bus.subscribe(f"{profile}.{room}.>", credit_bytes=LITTLE) as pattern,
        bus.subscribe(channel, f"{profile}.{room}.y", credit_bytes=LITTLE) as several,
        bus.subscribe(channel, start=Since(1 << 60), credit_bytes=LITTLE) as by_time,
    ):
        await fill(bus, channel, 1_000)
        readers = (literal, pattern, several, by_time)
        for reader in readers:
            messages = await take(reader, 1_000, timeout_s=20)
            assert [message.sequence for message in messages] == list(range(1, 1_001))
        await bus.publish(channel, b"end")
        for reader in readers:
            assert [message.payload for message in await take(reader, 1)] == [b"end"]
            assert await nothing_comes(reader, 0.01)
            names = [event.name for event in reader.events if event.name != "resumed"]
            assert names[:2] == ["lagging", "live"]
            assert names == ["lagging", "live"] * (len(names) // 2)


async def test_who_reads_on_hears_nothing_of_who_does_not(home: Home, room: str) -> None:
    """Both are subscriptions of one connection, and the connection stays."""
    channel = f"s.{room}"
    async with (
        home.bus() as bus,
        bus.subscribe(channel, credit_bytes=LITTLE) as idle,
        bus.subscribe(channel) as busy,
    ):
        for begin in range(1, 1_001, 100):
            await bus.publish_many(channel, [PAYLOAD] * 100)
            messages = await take(busy, 100)
            assert [message.sequence for message in messages] == list(range(begin, begin + 100))
        assert not busy.events
        assert [event.name for event in idle.events] == ["lagging"]
        messages = await take(idle, 1_000)
        assert [message.sequence for message in messages] == list(range(1, 1_001))


async def test_a_reader_that_lags_can_leave(home: Home, room: str) -> None:
    channel = f"s.{room}"
    async with home.bus() as bus:
        async with bus.subscribe(channel, credit_bytes=LITTLE):
            await fill(bus, channel, 1_000)
        async with bus.subscribe(channel, start="start") as again:
            messages = await take(again, 1_000)
            assert [message.sequence for message in messages] == list(range(1, 1_001))


# -- what profiles want ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["latest.{}", "latest.{}.>"])
async def test_the_latest_message_of_each_channel(home: Home, room: str, wanted: str) -> None:
    channel = f"latest.{room}" if wanted.endswith("{}") else f"latest.{room}.x"
    async with home.bus() as bus, bus.subscribe(wanted.format(room), credit_bytes=LITTLE) as reader:
        await fill(bus, channel, 3_000)
        await bus.publish(channel, b"newest")
        seen = []
        async for message in reader:
            seen.append(message)
            if message.payload == b"newest":
                break
        sequences = [message.sequence for message in seen]
        assert sequences == sorted(set(sequences))
        assert sequences[-1] == 3_001
        assert len(sequences) < 2_000
        gone = [event for event in reader.events if event.name == "gone"]
        assert {event.reason for event in gone} == {7}
        assert len(sequences) + sum(event.run for event in gone) == 3_001


async def test_ephemeral_messages_are_dropped_and_that_is_told(home: Home, room: str) -> None:
    channel = f"e.{room}"
    async with home.bus() as bus, bus.subscribe(channel, credit_bytes=LITTLE) as reader:
        await fill(bus, channel, 3_000)
        first = await take(reader, 1)
        assert first[0].sequence == 1
        count, sequence = 1, 1
        while sequence < 3_000:
            (message,) = await take(reader, 1)
            assert message.sequence > sequence
            count, sequence = count + 1, message.sequence
        names = [event.name for event in reader.events]
        assert names[:4] == ["lagging", "live", "dropped", "gone"]
        gone = [event for event in reader.events if event.name == "gone"]
        assert {event.reason for event in gone} == {5}
        assert count + sum(event.run for event in gone) == 3_000


async def test_who_may_not_fall_behind_is_cut_and_resumes(home: Home, room: str) -> None:
    channel = f"cut.{room}"
    async with home.bus() as bus, bus.subscribe(channel, credit_bytes=LITTLE) as reader:
        await fill(bus, channel, 1_000)
        messages = await take(reader, 1_000, timeout_s=20)
        assert [message.sequence for message in messages] == list(range(1, 1_001))
        assert "lagging" not in [event.name for event in reader.events]
