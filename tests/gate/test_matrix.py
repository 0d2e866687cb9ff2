"""Every operation against every grant that it needs: with all of them it passes, without any one it is denied."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from broker import BrokerError, Last, Position, Since
from broker.access.gate import Verb
from broker.wire import control
from broker.wire.kinds import Kind
from tests.gate.rig import Guarded
from tests.reference.frames import Record, build_record, frames_of, publish_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from broker.client.client import Client

EVERYTHING = {str(verb): [">"] for verb in Verb}
S, P, H, C, M = Verb.SUBSCRIBE, Verb.PUBLISH, Verb.HISTORY, Verb.CONSUME, Verb.MANAGE


class Action(NamedTuple):
    """Something that a client does.

    Attributes:
        name: Of it, a name of a user as well.
        needs: What has to be granted for it.
        act: It.
    """

    name: str
    needs: Mapping[Verb, str]
    act: Callable[[Client], Awaitable[Any]]


async def publish_together(bus: Client) -> None:
    async with bus.transaction() as transaction:
        transaction.publish("s.a", b"x")


async def publish_expecting(bus: Client) -> None:
    # Without the right there is no channel to expect anything of.
    await bus.publish("s.fresh", b"x", expect=None)


async def request(bus: Client) -> None:
    try:
        await bus.request("s.asked", b"?", timeout_s=0.05)
    except BrokerError as failure:
        if failure.name not in ("TIMEOUT", "NO_RESPONDERS"):
            raise


async def consume(bus: Client) -> None:
    async with bus.consume("c.a"):
        pass


async def read(history: Any) -> None:
    async for _ in history:
        pass


async def subscribe(bus: Client, *filters: str, **options: Any) -> None:
    async with bus.subscribe(*filters, **options):
        pass


async def positions(bus: Client) -> None:
    info = await (admin_of(bus)).channel("s.a")
    await subscribe(bus, "s.a", start={"s.a": Position(info.epoch, 1)})


def admin_of(bus: Client) -> Client:
    admin: Client = bus.__dict__["admin"]
    return admin


async def redrive(bus: Client) -> None:
    admin = admin_of(bus)
    await admin.publish("s.back", b"x")
    async with admin.consume("c.dead") as consumer:
        async for job in consumer:
            await job.reject()
            break
    assert await bus.redrive("c.dead") > 0


async def remove_consumer(bus: Client) -> None:
    await admin_of(bus).create_consumer("c.gone", "s.a")
    await bus.remove_consumer("c.gone")


ACTIONS = [
    Action("publish", {P: "s.a"}, lambda bus: bus.publish("s.a", b"x")),
    Action("publish_many", {P: "s.a"}, lambda bus: bus.publish_many("s.a", [b"x", b"y"])),
    Action("expecting", {P: "s.fresh"}, publish_expecting),
    Action("transaction", {P: "s.a"}, publish_together),
    Action("schedule", {P: "s.a"}, lambda bus: bus.schedule("s.a", b"x", delay_s=3600)),
    Action("request", {P: "s.asked"}, request),
    Action("cancel", {P: "s.later"}, lambda bus: ignore_unknown(bus.cancel("s.later", "none"))),
    Action("subscribe", {S: "s.a"}, lambda bus: subscribe(bus, "s.a")),
    Action("pattern", {S: "s.>"}, lambda bus: subscribe(bus, "s.*")),
    Action("group", {S: "s.a"}, lambda bus: subscribe(bus, "s.a", group="g")),
    Action("start", {S: "s.a", H: "s.a"}, lambda bus: subscribe(bus, "s.a", start="start")),
    Action("last", {S: "s.a", H: "s.a"}, lambda bus: subscribe(bus, "s.a", start=Last(1))),
    Action("time", {S: "s.a", H: "s.a"}, lambda bus: subscribe(bus, "s.a", start=Since(1))),
    Action("all", {S: "s.>", H: "s.>"}, lambda bus: subscribe(bus, "s.>", start="start")),
    Action("positions", {S: "s.a", H: "s.a"}, positions),
    Action("history", {H: "s.a"}, lambda bus: read(bus.history("s.a"))),
    Action("history_pattern", {H: "s.>"}, lambda bus: read(bus.history("s.>"))),
    Action("trim", {M: "s.a"}, lambda bus: bus.trim("s.a", 1)),
    Action("remove", {M: "s.none"}, lambda bus: bus.remove("s.none")),
    Action("stats", {M: ">"}, lambda bus: bus.stats()),
    Action("create", {M: "c.new", C: "s.a"}, lambda bus: bus.create_consumer("c.new", "s.a")),
    Action(
        "create_dead",
        {M: "c.dead2", C: "s.a", P: "s.dead2"},
        lambda bus: bus.create_queue("c.dead2", "s.a", dead_letter="s.dead2"),
    ),
    Action("consume", {C: "c.a"}, consume),
    Action("consumer_info", {C: "c.a"}, lambda bus: bus.consumer_info("c.a")),
    Action("peek", {C: "c.queue"}, lambda bus: bus.peek("c.queue")),
    Action("pause", {M: "c.queue"}, lambda bus: bus.pause_consumer("c.queue")),
    Action("reset", {M: "c.a", C: "c.a"}, lambda bus: bus.reset_consumer("c.a", "start")),
    Action("purge", {M: "c.queue"}, lambda bus: bus.purge("c.queue")),
    Action("remove_consumer", {M: "c.gone"}, remove_consumer),
    Action("redrive", {M: "c.dead", P: "s.back"}, redrive),
]
CLIENT_KINDS = {
    Kind.HELLO,
    Kind.PING,
    Kind.PONG,
    Kind.CHANNEL,
    Kind.SUBSCRIBE,
    Kind.UNSUBSCRIBE,
    Kind.REQUEST,
    Kind.PUBLISH,
    Kind.ACK,
    Kind.CREDIT,
    Kind.TRANSACTION,
}
EXTRA = {"consume": {C: ["s.a"]}}
"""What a consumer reads is granted beside its name."""


async def ignore_unknown(cancelled: Awaitable[None]) -> None:
    try:
        await cancelled
    except BrokerError as failure:
        if failure.name != "UNKNOWN_MESSAGE":
            raise


def users() -> dict[str, dict[str, list[str]]]:
    """Return a user with just what each action needs, and for each need one who has everything else."""
    made: dict[str, dict[str, list[str]]] = {"admin": EVERYTHING}
    for action in ACTIONS:
        extra = EXTRA.get(action.name, {})
        made[action.name] = {str(verb): [need, *extra.get(verb, [])] for verb, need in action.needs.items()}
        for verb in action.needs:
            # Wide as it is, it does not cover what is asked for.
            made[f"{action.name}.{verb}"] = {**EVERYTHING, str(verb): ["other.>", "s.a.>", "*.b"]}
    return made


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    rig = Guarded(tmp_path)
    rig.write(users())
    async with rig.open():
        yield rig


async def test_each_operation_needs_its_grants(guarded: Guarded) -> None:
    async with guarded.bus("admin") as admin:
        for name in ("s.a", "s.b", "s.back"):
            await admin.publish(name, b"x")
        await admin.create_consumer("c.a", "s.a")
        await admin.create_queue("c.queue", "s.a")
        await admin.create_queue("c.dead", "s.back", dead_letter="s.dead")
        for action in ACTIONS:
            for verb in action.needs:
                async with guarded.bus(f"{action.name}.{verb}") as bus:
                    bus.__dict__["admin"] = admin
                    with pytest.raises(BrokerError) as caught:
                        await action.act(bus)
                    assert caught.value.name == "DENIED", (action.name, verb, caught.value)
            async with guarded.bus(action.name) as bus:
                bus.__dict__["admin"] = admin
                try:
                    await action.act(bus)
                except BrokerError as failure:
                    pytest.fail(f"{action.name}: {failure}")


async def test_who_takes_jobs_may_consume_what_the_consumer_reads(guarded: Guarded) -> None:
    users_now = {"admin": EVERYTHING, "worker": {"consume": ["c.a"]}}
    await guarded.change(users_now)
    async with guarded.bus("admin") as admin, guarded.bus("worker") as worker:
        await admin.create_consumer("c.a", "s.secret")
        with pytest.raises(BrokerError) as caught:
            await consume(worker)
        assert caught.value.name == "DENIED"


async def test_a_letter_that_somebody_wrote_goes_nowhere_where_who_redrives_may_not_publish(guarded: Guarded) -> None:
    operator = {"manage": ["c.dead"], "publish": ["s.back"]}
    await guarded.change({"admin": EVERYTHING, "operator": operator, "forger": {"publish": ["s.dead"]}})
    async with guarded.bus("admin") as admin, guarded.bus("forger") as forger, guarded.bus("operator") as bus:
        await admin.publish("s.back", b"x")
        await admin.create_queue("c.dead", "s.back", dead_letter="s.dead")
        headers = {"broker-consumer": "c.dead", "broker-source": "s.secret"}
        await forger.publish("s.dead", b"forged", headers=headers)
        with pytest.raises(BrokerError) as caught:
            await bus.redrive("c.dead")
        assert caught.value.name == "DENIED"
        assert (await admin.channel("s.secret")).head == 0


async def test_listings_show_what_is_granted(guarded: Guarded) -> None:
    reader = {"history": ["room.ada.>", "hall"], "publish": ["room.ada.>"], "consume": ["c.mine"]}
    await guarded.change({"admin": EVERYTHING, "reader": reader, "writer": {"publish": ["room.ada.x"]}})
    async with guarded.bus("admin") as admin:
        for name in ("room.ada.x", "room.ada.y", "room.bob.x", "hall", "hallway", "room.adam"):
            await admin.publish(name, b"x")
            await admin.schedule(name, b"later", delay_s=3600)
        for name in ("c.mine", "c.theirs"):
            await admin.create_consumer(name, "hall")
        async with guarded.bus("reader") as bus:
            assert [each.name async for each in bus.channels()] == ["hall", "room.ada.x", "room.ada.y"]
            assert [each.name async for each in bus.channels("hall", limit=1)] == ["hall"]
            assert [each.name async for each in bus.channels("room.", details=True)] == ["room.ada.x", "room.ada.y"]
            assert [each.name async for each in bus.channels("room.bob")] == []
            assert {each.channel async for each in bus.delayed()} == {"room.ada.x", "room.ada.y"}
            assert [each.settings.name async for each in bus.consumers()] == ["c.mine"]
        async with guarded.bus("writer") as bus:
            for listing in (bus.channels(), bus.consumers()):
                with pytest.raises(BrokerError) as caught:
                    await read(listing)
                assert caught.value.name == "DENIED"


async def test_nobody_without_a_token_gets_in(guarded: Guarded) -> None:
    for given in (None, "", "nonsense", "a.b.c", "id:secret"):
        with pytest.raises(BrokerError) as caught:
            async with guarded.bus("admin", token=given):
                pass
        assert caught.value.name == "UNAUTHENTICATED"


@pytest.mark.parametrize("kind", sorted(CLIENT_KINDS - {Kind.HELLO}))
async def test_nothing_is_taken_before_it_is_known_who_asks(guarded: Guarded, kind: Kind) -> None:
    """Neither before HELLO nor behind one that is refused; and behind one that is good all of it is."""
    host, port = guarded.address.rsplit(":", 1)
    hellos = [b"", control.encode_hello("x", None, "a.b.c"), control.encode_hello("x")]
    for hello in hellos:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(hello + control.encode_channel(0, b"s.early") + FRAMES.get(kind, control.frame(kind, bytes(16))))
        heard = frames_of(await asyncio.wait_for(reader.read(), 5))
        assert [frame.kind for frame in heard] == [Kind.ERROR]
        refusal = control.decode_error(heard[0].body)
        assert (refusal.ends_connection, refusal.failure.name) == (True, "UNAUTHENTICATED" if hello else "BAD_STATE")
        writer.close()
    assert guarded.node.tails.info(b"s.early") is None


FRAMES = {
    Kind.PUBLISH: control.frame(Kind.PUBLISH, publish_body(0, 1, [build_record(Record(b"x"))])),
    Kind.SUBSCRIBE: control.encode_subscribe(control.Subscribe(1, ("s.early",), 1 << 20, control.FromStart())),
    Kind.REQUEST: control.encode_request(1, "stats"),
}
