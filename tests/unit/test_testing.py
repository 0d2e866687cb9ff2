"""The broker for users' tests: what it gives them, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from unittest.mock import patch

import pytest

from broker import BrokerError, Level, Position, connect, testing
from broker import blocking as blocking_client
from broker.model.profiles import Profile
from broker.testing import TestBroker
from tests.contract.homes import take

LIVE = Profile(b"live.>", durability=Level.EPHEMERAL)


def folders() -> set[Path]:
    return set((testing.memory_folder() or Path("/tmp")).glob("broker-*"))


async def test_it_stores_delivers_and_leaves_nothing() -> None:
    before = folders()
    async with TestBroker() as bus:
        receipt = await bus.publish("chat.lobby", b"hello")
        assert receipt.level is Level.SYNCED
        async with bus.subscribe("chat.lobby", start="start") as subscription:
            (message,) = await take(subscription, 1)
            assert message.payload == b"hello"
        assert folders() - before
    assert folders() <= before


async def test_profiles_and_limits_are_the_brokers() -> None:
    async with TestBroker(profiles=[LIVE]) as bus:
        assert (await bus.publish("live.x", b"")).level is Level.EPHEMERAL
        with pytest.raises(BrokerError) as caught:
            await bus.publish("stored.x", b"")
        assert caught.value.name == "NO_PROFILE"


async def test_further_buses_are_of_the_same_broker() -> None:
    broker = TestBroker(profiles=[LIVE])
    async with broker as bus:
        other = await broker.connect(name="other")
        async with other.subscribe("live.add") as requests:
            answer = asyncio.ensure_future(bus.request("live.add", b"1 2"))
            (request,) = await take(requests, 1)
            other.respond(request, b"3")
            assert (await answer).payload == b"3"
    with pytest.raises(BrokerError) as caught:
        other.post("live.x", b"")
    assert caught.value.name == "CLOSED"


async def test_what_is_stored_survives_a_restart() -> None:
    broker = TestBroker()
    async with broker as bus:
        first = await bus.publish("chat.lobby", b"before")
        url = await broker.listen()
        async with connect(url) as remote, remote.subscribe("chat.lobby") as subscription:
            again = await broker.restart()
            with pytest.raises(BrokerError):
                bus.post("chat.lobby", b"")
            second = await again.publish("chat.lobby", b"after")
            assert second.position == Position(first.epoch, 2)
            # Whoever connected by the URL has come back.
            (message,) = await take(subscription, 1)
            assert message.payload == b"after"
            assert len(await again.history("chat.lobby").messages()) == 2


async def test_connections_break_and_resume() -> None:
    broker = TestBroker()
    async with broker as bus, bus.subscribe("chat.lobby") as subscription:
        for number in range(5):
            await broker.disconnect()
            await bus.publish("chat.lobby", b"%d" % number)
        assert [message.payload for message in await take(subscription, 5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_others_connect_by_its_url() -> None:
    broker = TestBroker()
    async with broker:
        with pytest.raises(BrokerError):
            assert broker.url
        url = await broker.listen()
        assert url == await broker.listen() == broker.url

        def publish() -> int:
            with blocking_client.connect(url) as bus:
                return bus.publish("chat.lobby", b"hello").sequence

        assert await asyncio.to_thread(publish) == 1


def test_programs_without_a_loop_have_it_too() -> None:
    before, threads = folders(), threading.active_count()
    broker = TestBroker()
    with broker as bus:
        assert bus.publish("chat.lobby", b"hello").sequence == 1
        with blocking_client.connect(broker.url) as other:
            assert [message.payload for message in other.history("chat.lobby").messages()] == [b"hello"]
    assert folders() <= before
    assert threading.active_count() == threads


async def test_it_is_entered_once() -> None:
    broker = TestBroker()
    with pytest.raises(BrokerError) as caught:
        await broker.connect()
    assert caught.value.name == "CLOSED"
    async with broker:
        with pytest.raises(BrokerError) as caught:
            await broker.__aenter__()
        assert caught.value.name == "STORAGE_IN_USE"


async def test_a_broker_that_does_not_open_leaves_nothing() -> None:
    before = folders()
    with patch("broker.testing.Broker.open", side_effect=OSError("no")), pytest.raises(OSError, match="no"):
        await TestBroker().__aenter__()
    assert folders() <= before


def test_without_a_folder_in_memory_it_takes_another(tmp_path: Path) -> None:
    with patch.object(testing, "MEMORY_FOLDER", tmp_path / "none"):
        assert testing.memory_folder() is None
    with patch.object(testing, "MEMORY_BYTES_MIN", 1 << 62):
        assert testing.memory_folder() is None
