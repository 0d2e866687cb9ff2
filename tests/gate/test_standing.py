"""What becomes of open connections: rights that are taken back, tokens that end or are renewed, lines of one's own."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest

import broker.blocking
from broker import BrokerError
from broker.client.client import Client
from broker.model.limits import Limits
from broker.model.profiles import Profile
from tests.gate.rig import Guarded, token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

EVERYTHING = {verb: [">"] for verb in ("subscribe", "publish", "history", "consume", "manage")}
TAKEN_BACK_S = 1.0
PROFILES = (Profile(b"signed.>", publisher="user"), Profile(b">"))
SOON_S = 5.0


@pytest.fixture
def rig(tmp_path: Path) -> Guarded:
    made = Guarded(tmp_path)
    made.write({"ada": EVERYTHING, "bob": EVERYTHING})
    return made


@pytest.fixture
async def guarded(rig: Guarded) -> AsyncIterator[Guarded]:
    async with rig.open(PROFILES):
        yield rig


async def ends_with(stream: Any) -> str:
    """Return the name of the error that a subscription ends with."""
    try:
        async with asyncio.timeout(SOON_S):
            async for _ in stream:
                pass
    except BrokerError as failure:
        return failure.name
    return ""


async def publish_until_refused(bus: Client) -> None:
    async with asyncio.timeout(SOON_S):
        while True:
            await bus.publish("b.x", b"x")
            await asyncio.sleep(0.01)


async def test_what_is_not_granted_any_more_ends_and_the_rest_goes_on(guarded: Guarded) -> None:
    async with guarded.bus("ada") as ada, guarded.bus("bob") as bob:
        await bob.create_consumer("c.kept", "kept.jobs")
        await bob.create_consumer("c.lost", "lost.jobs")
        kept, lost = ada.subscribe("kept.>"), ada.subscribe("lost.>")
        grouped, old = ada.subscribe("lost.a", group="g"), ada.subscribe("lost.a", start="start")
        kept_jobs, lost_jobs = ada.consume("c.kept"), ada.consume("c.lost")
        for each in (kept, lost, grouped, old, kept_jobs, lost_jobs):
            await each
        await ada.publish("kept.a", b"1")
        await ada.publish("lost.a", b"1")
        with suppress(BrokerError):
            await ada.request("lost.asked", b"?", timeout_s=0.01)
        part = {verb: ["kept.>", "c.kept"] for verb in EVERYTHING}
        begun = time.monotonic()
        await guarded.change({"ada": part, "bob": EVERYTHING})
        for each in (lost, grouped, old, lost_jobs):
            assert await ends_with(each) == "DENIED"
        assert time.monotonic() - begun < TAKEN_BACK_S
        for publishing in (ada.publish("lost.a", b"2"), ada.request("lost.asked", b"?", timeout_s=1)):
            with pytest.raises(BrokerError) as caught:
                await publishing
            assert caught.value.name == "DENIED"
        await ada.publish("kept.a", b"2")
        await bob.publish("lost.a", b"3")
        await bob.publish("kept.jobs", b"3")
        payloads = []
        async with asyncio.timeout(SOON_S):
            async for message in kept:
                payloads.append(message.payload)
                if message.payload == b"3":
                    break
            async for job in kept_jobs:
                await job.ack()
                break
        assert payloads == [b"1", b"2", b"3"]


async def test_a_user_that_is_taken_back_is_out_within_a_second(guarded: Guarded) -> None:
    async with guarded.bus("ada", token=token("ada", id="t-1")) as ada, guarded.bus("bob") as bob:
        stream = ada.subscribe("a.>")
        await stream
        begun = time.monotonic()
        await guarded.change({"ada": EVERYTHING, "bob": EVERYTHING}, '[revoked]\ntokens = ["t-1"]\n')
        assert await ends_with(stream) in ("TOKEN_EXPIRED", "UNAUTHENTICATED")
        assert time.monotonic() - begun < TAKEN_BACK_S
        await bob.publish("a.b", b"x")


@pytest.mark.parametrize("home", ["tcp", "unix", "ws"])
async def test_every_home_asks_who_one_is(guarded: Guarded, home: str, loop_kind: str) -> None:
    with pytest.raises(BrokerError) as caught:
        await guarded.home_bus(home).__aenter__()
    assert caught.value.name == "UNAUTHENTICATED"
    async with guarded.home_bus(home, token=token("ada")) as ada, guarded.bus("bob") as bob:
        await ada.publish("signed.a", b"x")
        assert [each.publisher async for each in ada.history("signed.a")] == ["ada"]
        stream = ada.subscribe("a.>")
        await stream
        await guarded.change({"bob": EVERYTHING, "ada": {"publish": ["b.>"]}})
        assert await ends_with(stream) == "DENIED"
        await ada.publish("b.x", b"x")
        with pytest.raises(BrokerError) as caught:
            await ada.channel("b.x")
        assert caught.value.name == "DENIED"
        stream = bob.subscribe("a.>")
        await stream
        users = {"bob": EVERYTHING, "ada": EVERYTHING}
        await guarded.change(users, '[revoked]\nusers = ["ada"]\n')
        with pytest.raises(BrokerError) as caught:
            await publish_until_refused(ada)
        assert caught.value.name in ("TOKEN_EXPIRED", "UNAUTHENTICATED", "COMMIT_UNKNOWN")


async def test_a_token_ends_with_its_time(guarded: Guarded) -> None:
    async with guarded.bus("ada", token=token("ada", seconds=1.0)) as ada:
        stream = ada.subscribe("a.>")
        await stream
        assert await ends_with(stream) == "TOKEN_EXPIRED"


async def test_who_can_get_fresh_tokens_stays_connected(guarded: Guarded) -> None:
    given: list[str] = []

    async def fresh() -> str:
        given.append(token("ada", seconds=1.0))
        return given[-1]

    async with guarded.bus("ada", token=fresh) as ada:
        stream = ada.subscribe("a.>")
        await stream
        connection = ada._connection
        await asyncio.sleep(1.5)
        assert ada._connection is connection, "the connection was replaced"
        assert len(given) >= 2
        await ada.publish("a.b", b"x")


async def test_who_gets_them_too_late_connects_anew_without_a_gap(guarded: Guarded) -> None:
    seconds = iter([1.0, 0.0, 3600.0])
    async with guarded.bus("ada", token=lambda: token("ada", seconds=next(seconds, 3600.0))) as ada:
        stream = ada.subscribe("a.>")
        await stream
        await ada.publish("a.b", b"1")
        connection = ada._connection
        async with asyncio.timeout(SOON_S):
            await asyncio.shield(ada._lost)
            await ada.publish("a.b", b"2")
            got = []
            async for message in stream:
                got.append(message.payload)
                if len(got) == 2:
                    break
        assert got == [b"1", b"2"]
        assert ada._connection is not connection


async def test_a_connection_keeps_its_user(guarded: Guarded) -> None:
    async with guarded.bus("ada") as ada:
        with pytest.raises(BrokerError) as caught:
            await ada.ask("sign_in", {"token": token("bob")})
        assert caught.value.name == "DENIED"
        with pytest.raises(BrokerError) as caught:
            await ada.ask("sign_in", {"token": "a.b.c"})
        assert caught.value.name == "UNAUTHENTICATED"
        assert (await ada.ask("sign_in", {"token": token("ada")}))["user"] == "ada"
        await ada.publish("a.b", b"x")


async def test_nobody_takes_over_the_line_of_another_user(guarded: Guarded) -> None:
    producer = os.urandom(16)
    async with guarded.bus("ada", producer=producer) as ada:
        await ada.publish("a.b", b"x")
        connection = ada._connection
        async with guarded.bus("bob", producer=producer) as bob:
            assert bob.highest == 0, "it is told how far another user's line is"
            await bob.publish("a.b", b"y")
            await ada.publish("a.b", b"z")
            assert ada._connection is connection
        async with guarded.bus("ada", producer=producer) as again:
            assert again.highest == 2


async def test_the_server_says_who_has_published(guarded: Guarded) -> None:
    async with guarded.bus("ada") as ada, guarded.bus("bob") as bob:
        stream = bob.subscribe(">", start="start")
        await stream
        await ada.publish("signed.plain", b"0")
        await ada.publish("signed.full", b"1", headers={"a": 1}, key=b"k", priority=0, expiry_s=60, id="one")
        await ada.publish_many("signed.full", [b"2", b"3"], ids=["one", "three"])
        async with ada.transaction() as transaction:
            transaction.publish("signed.tx", b"4")
        await ada.schedule("signed.later", b"5", delay_s=0.05, expiry_s=60, id="five")
        await bob.publish("signed.bob", b"6")
        await ada.publish("unsigned", b"7")
        found = {}
        async with asyncio.timeout(SOON_S):
            async for message in stream:
                found[message.payload] = message.publisher
                if len(found) == 7:
                    break
        assert found == {b"0": "ada", b"1": "ada", b"3": "ada", b"4": "ada", b"5": "ada", b"6": "bob", b"7": None}
        (full,) = [each async for each in bob.history("signed.full", limit=1)]
        assert (full.publisher, full.headers, full.key, full.priority) == ("ada", {"a": 1}, b"k", 0)


async def test_a_dead_letter_keeps_its_publisher(guarded: Guarded) -> None:
    async with guarded.bus("ada") as ada, guarded.bus("bob") as bob:
        await bob.create_queue("c.q", "signed.q", dead_letter="dead.q")
        await ada.publish("signed.q", b"x")
        async with bob.consume("c.q") as queue, asyncio.timeout(SOON_S):
            async for job in queue:
                await job.reject()
                break
        (letter,) = [each async for each in bob.history("dead.q")]
        assert letter.publisher == "ada"
        assert await bob.redrive("c.q") == 1
        assert [each.publisher async for each in bob.history("signed.q")] == ["ada", "ada"]


async def test_a_unix_peer_and_nobody_in_particular(rig: Guarded, loop_kind: str) -> None:
    more = f'[[peers]]\nuid = {os.geteuid()}\nuser = "ada"\nroles = ["ada"]\n'
    rig.write({"ada": EVERYTHING, "guest": {"subscribe": ["public.>"]}}, more + '[anonymous]\nroles = ["guest"]\n')
    async with rig.open(PROFILES):
        async with rig.unix_bus() as ada:
            await ada.publish("signed.a", b"x")
            assert [each.publisher async for each in ada.history("signed.a")] == ["ada"]
        async with rig.bus("", token=None) as guest:
            await guest.subscribe("public.a")
            with pytest.raises(BrokerError) as caught:
                await guest.publish("public.a", b"x")
            assert caught.value.name == "DENIED"


async def test_the_blocking_client_renews_its_token(guarded: Guarded) -> None:
    given: list[str] = []

    def fresh() -> str:
        given.append(token("ada", seconds=1.0))
        return given[-1]

    def talk() -> bool:
        with broker.blocking.connect(f"broker://{guarded.address}", token=fresh) as bus:
            connection = bus._connection
            time.sleep(1.5)
            bus.publish("a.b", b"x")
            return bus._connection is connection

    assert await asyncio.to_thread(talk)
    assert len(given) >= 2


@pytest.mark.parametrize("client", [Client, broker.blocking.Client])
async def test_a_token_shows_nowhere(guarded: Guarded, client: type) -> None:
    secret = token("ada")
    async with guarded.bus("ada", token=secret) as ada:
        assert secret not in repr(ada)
    assert client.__name__ not in secret


class TestRates:
    async def test_who_publishes_too_much_is_told_when_to_come_back(self, rig: Guarded) -> None:
        async with (
            rig.open(limits=Limits(publishes_per_s=5)),
            rig.bus("ada") as ada,
            rig.bus("ada") as too,
            rig.bus("ada") as third,
            rig.bus("bob") as bob,
        ):
            refused = []
            for _ in range(8):
                try:
                    await ada.publish("a.b", b"x")
                except BrokerError as failure:
                    refused.append(failure)
            assert {each.name for each in refused} == {"RATE_LIMITED"}
            assert 5 <= 8 - len(refused) < 8
            assert all(each.retry_after_ms for each in refused)
            with pytest.raises(BrokerError) as caught:  # her connections are counted together
                await too.publish("a.b", b"x")
            assert caught.value.name == "RATE_LIMITED"
            with pytest.raises(BrokerError) as caught:
                async with third.transaction() as transaction:
                    transaction.publish("a.b", b"x")
            assert caught.value.name == "RATE_LIMITED"
            await bob.publish("a.b", b"x")
            assert (await bob.channel("a.b")).head == 8 - len(refused) + 1
            await asyncio.sleep(max(each.retry_after_ms or 0 for each in refused) / 1000)
            await ada.publish("a.b", b"x")

    async def test_a_reload_bounds_who_is_connected_already(self, rig: Guarded) -> None:
        async with rig.open(limits=Limits()), rig.bus("ada") as ada, rig.bus("bob") as bob:
            for bounded in (True, False):
                rig.node.reload(rig.node.core.profiles, Limits(publishes_per_s=5 if bounded else 0))
                await bob.publish("a.c", b"x")  # connections come to know it by turns
                with pytest.raises(BrokerError, match="RATE_LIMITED") if bounded else nullcontext():
                    for _ in range(8):
                        await ada.publish("a.b", b"x")

    async def test_bytes_are_counted_too(self, rig: Guarded) -> None:
        async with rig.open(limits=Limits(publish_bytes_per_s=10_000)), rig.bus("ada") as ada:
            await ada.publish("a.b", bytes(50_000))  # larger than the bucket, and taken
            with pytest.raises(BrokerError) as caught:
                await ada.publish("a.b", b"x")
            assert (caught.value.name, caught.value.retry_after_ms > 3_000) == ("RATE_LIMITED", True)  # type: ignore[operator]

    async def test_who_subscribes_too_often_waits(self, rig: Guarded) -> None:
        async with rig.open(limits=Limits(subscribes_per_s=5)), rig.bus("ada") as ada, rig.bus("bob") as bob:
            outcomes = await asyncio.gather(
                *(ada.subscribe(f"a.{number}") for number in range(10)), return_exceptions=True
            )
            names = [getattr(each, "name", "") for each in outcomes]
            assert names.count("RATE_LIMITED") == 5
            await bob.subscribe("a.1")

    async def test_who_guesses_tokens_is_not_heard_for_a_while(self, rig: Guarded) -> None:
        async with rig.open(limits=Limits(failed_sign_ins_per_s=2)):
            names = []
            for _ in range(4):
                with pytest.raises(BrokerError) as caught:
                    await rig.bus("ada", token="a.b.c").__aenter__()
                names.append(caught.value.name)
            assert names == ["UNAUTHENTICATED", "UNAUTHENTICATED", "RATE_LIMITED", "RATE_LIMITED"]
            assert caught.value.retry_after_ms

    async def test_who_connects_too_often_is_told(self, rig: Guarded) -> None:
        async with rig.open(limits=Limits(connects_per_s=3)):
            names = []
            for _ in range(5):
                try:
                    async with rig.bus("ada"):
                        names.append("")
                except BrokerError as failure:
                    names.append(failure.name)
            assert names == ["", "", "", "TOO_MANY_CONNECTIONS", "TOO_MANY_CONNECTIONS"]
