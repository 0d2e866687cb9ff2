"""One bound for the memory of all queues, whoever fills them, and who gives way when it is near."""

from __future__ import annotations

import asyncio
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from broker.edge.native import shares_pieces
from broker.node.budget import Budget
from broker.node.node import WATCH_TURNS
from broker.wire import control
from broker.wire.kinds import Kind
from tests.golden.stage import LIMITS, Client, Stage
from tests.reference.frames import (
    DELIVER,
    Frame,
    Record,
    build_frame,
    build_record,
    delivery_of,
    frames_of,
    publish_body,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
MEMORY = 16 * MIB
READERS = 4
BOUNDS = replace(
    LIMITS,
    payload_bytes_max=60_000,
    subscription_bytes_max=1 << 30,
    memory_bytes_max=MEMORY,
    partial_bytes_max=MIB,
    group_bytes_max=256 << 10,
)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(limits=BOUNDS)
    stage.connect("writer")
    stage.feed("writer", control.encode_hello("writer", bytes(16)) + build_frame(Kind.CHANNEL, bytes(4) + b"s.x"))
    stage.settle()
    stage.clients["writer"].take()
    yield stage
    stage.end()


def reader(stage: Stage, name: str, *filters: str, credit: int = 1 << 40) -> None:
    stage.connect(name)
    stage.feed(name, control.encode_hello(name) + control.encode_subscribe(control.Subscribe(1, filters, credit)))
    stage.settle()
    stage.clients[name].take()


def publish(stage: Stage, number: int, size: int = 50_000) -> list[Frame]:
    """Publish one record; return what the writer is answered."""
    stage.feed("writer", build_frame(Kind.PUBLISH, publish_body(0, number, [build_record(Record(bytes(size)))])))
    stage.settle()
    return frames_of(stage.clients["writer"].take())


def told(stage: Stage, name: str) -> list[str | int]:
    """What a reader has got: the sequences of deliveries, and the names of events."""
    return [
        delivery_of(frame).chunk.first if frame.kind == DELIVER else control.decode_event(frame.body).event
        for frame in frames_of(stage.clients[name].take())
        if frame.kind in (DELIVER, Kind.EVENT)
    ]


@pytest.mark.parametrize("size", [3_000, 50_000])
def test_readers_who_take_nothing_share_half_of_it_and_get_all_in_the_end(stage: Stage, size: int) -> None:
    names = [f"reader{number}" for number in range(READERS)]
    count = 18 * MIB // size // (READERS if size < 4_096 else 1)
    reader(stage, "healthy", "s.x")
    for number, name in enumerate(names):
        reader(stage, name, "s.x" if number % 2 else "s.>")
        stage.clients[name].session.outbox.pause()
    for number in range(1, count + 1):
        (answer,) = publish(stage, number, size)
        assert answer.kind == Kind.PUBLISHED
        assert told(stage, "healthy") == [number]
        assert stage.node.budget.used_bytes <= MEMORY * 1.1
    assert not stage.node.budget.holds
    stats = stage.node.stats()
    assert stats["subscriptions_lagging"] == READERS
    assert stage.clients["healthy"].session.outbox.queued == 0
    for name in names:
        stage.clients[name].session.writing_resumed()
    stage.settle()
    for name in names:
        seen = told(stage, name)
        assert [one for one in seen if isinstance(one, int)] == list(range(1, count + 1))
        assert [one for one in seen if isinstance(one, str)] == ["lagging", "live"]
    fanout = stage.node.fanout
    assert (fanout.copied_bytes, fanout.shared_bytes, fanout.paused_count) == (0, 0, 0)
    assert stage.node.unsent.bytes == 0


def test_a_value_that_many_have_queued_counts_once(stage: Stage) -> None:
    for number in range(10):
        reader(stage, f"reader{number}", "s.x")
        stage.clients[f"reader{number}"].session.outbox.pause()
    publish(stage, 1)
    fanout = stage.node.fanout
    assert 50_000 <= fanout.shared_bytes < 51_000
    assert fanout.copied_bytes < 1_000
    stage.disconnect("reader0")
    assert 50_000 <= fanout.shared_bytes < 51_000
    for number in range(1, 10):
        stage.disconnect(f"reader{number}")
    assert (fanout.copied_bytes, fanout.shared_bytes, fanout.paused_count) == (0, 0, 0)


class Stopped(Client):
    """A socket whose peer reads no more: the transport keeps what it is handed, and asks for a pause."""

    shares = True
    stopped = False

    def writelines(self, pieces: list[Any]) -> None:
        super().writelines(pieces)
        if self.stopped:
            self.session.outbox.pause()

    def get_write_buffer_size(self) -> int:
        return len(self.received)


def test_a_value_that_a_thousand_transports_hold_counts_once(stage: Stage) -> None:
    clients = []
    subscribe = control.encode_subscribe(control.Subscribe(1, ("s.x",), 1 << 40))
    for number in range(1_000):
        client = Stopped(stage.node)
        clients.append(client)
        client.session.feed(control.encode_hello(f"reader{number}") + subscribe)
        stage.settle()
        client.take()
        client.stopped = True
    publish(stage, 1)
    assert all(len(client.received) > 50_000 for client in clients)
    budget = stage.node.budget
    assert 50_000 <= budget.queued_bytes < 50_000 + 1_000 * 200
    look(stage)
    assert budget.used_bytes < budget.limit_bytes // 10
    for client in clients[1:]:
        client.session.writing_resumed()
    assert 50_000 <= budget.queued_bytes < 51_000
    clients[0].close()
    assert budget.queued_bytes == 0


async def test_which_transports_keep_the_pieces_themselves(loop_kind: str) -> None:
    near, far = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=near)
    value = bytes(8 * MIB)
    before = sys.getrefcount(value)
    transport.writelines([b"prefix", memoryview(value)[1:]])
    try:
        assert (sys.getrefcount(value) > before) == shares_pieces(transport), loop_kind
    finally:
        transport.abort()
        far.close()


def look(stage: Stage) -> None:
    for _ in range(WATCH_TURNS):
        stage.node.kick()
        stage.settle()


def fill(monkeypatch: pytest.MonkeyPatch, percent: int) -> None:
    monkeypatch.setattr(Budget, "queued_bytes", MEMORY * percent // 100)


def test_publishers_wait_from_80_percent_to_75(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    reader(stage, "reader", "s.x", credit=100)
    assert publish(stage, 1)[0].kind == Kind.PUBLISHED
    fill(monkeypatch, 81)
    look(stage)
    publish(stage, 2, 10)  # what it had sent already is read
    answers = publish(stage, 3, 10) + publish(stage, 4, 10)
    assert stage.node.stats()["publishers_held"] == 1
    stage.feed("reader", control.encode_credit(1, 100_000))
    stage.settle()
    assert told(stage, "reader")[:1] == [1], "a consumer goes on"
    fill(monkeypatch, 77)
    look(stage)
    assert stage.node.stats()["publishers_held"] == 1
    fill(monkeypatch, 70)
    look(stage)
    answers += frames_of(stage.clients["writer"].take()) + publish(stage, 5, 10)
    assert {frame.kind for frame in answers} == {Kind.PUBLISHED}
    assert stage.node.stats()["publishers_held"] == 0


def test_publishes_are_refused_at_95_percent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(monkeypatch, 96)
    look(stage)
    (answer,) = publish(stage, 1)
    refusal = control.decode_error(answer.body)
    assert (refusal.failure.name, refusal.number) == ("BUSY", 1)
    assert f"limit {MEMORY} bytes" in refusal.failure.detail
    assert stage.node.stats()["publishes_refused_memory"] == 1
    fill(monkeypatch, 10)
    look(stage)
    (answer,) = publish(stage, 1)
    assert answer.kind == Kind.PUBLISHED


def fall_behind(stage: Stage, name: str) -> None:
    stage.clients[name].session.outbox.pause()
    stage.clients[name].session.fall_behind()


def test_who_lags_is_told_most_behind_first(stage: Stage) -> None:
    reader(stage, "far", "s.x", "s.y", credit=0)
    fall_behind(stage, "far")
    for number in range(1, 4):
        publish(stage, number, 10)
    reader(stage, "near", "s.>", credit=5)
    fall_behind(stage, "near")
    publish(stage, 4, 10)
    stage.wait(2_000_000)
    for limit, names in ((10, ["far", "near"]), (1, ["far"])):
        stage.feed("writer", control.encode_request(limit, "lagging", {"limit": limit}))
        stage.settle()
        (frame,) = frames_of(stage.clients["writer"].take())
        _, reply = control.decode_reply(frame.body)
        readers = reply["readers"]
        assert [one["name"] for one in readers] == names
        assert reply["more"] is (limit == 1)
        assert readers[0]["filters"] == ["s.x", "s.y"]
        assert readers[0]["behind_groups"] == 4
        assert readers[0]["policy"] == "catchup"
        if limit > 1:
            assert "behind_messages" not in readers[1], "only the log knows what a pattern has to come"
        assert readers[0]["since_s"] >= 2
        assert sorted(readers[0]) == sorted(
            (
                "connection",
                "peer",
                "name",
                "subscription",
                "filters",
                "behind_groups",
                "behind_messages",
                "behind_s",
                "since_s",
                "credit",
                "policy",
                "queued_bytes",
            )
        )
