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
