"""The judge of a crowd: what it takes for lost, doubled and live, by frames that a test writes itself."""

from __future__ import annotations

import msgpack
import pytest

from broker.bench.crowd import Client, Crowd, Plan
from broker.wire import control
from broker.wire.kinds import Kind
from tests.unit.client.scripted import JOURNAL, chunk, deliver

NAMES = [f"c.{number}" for number in range(6)]


def crowd() -> tuple[Crowd, Client]:
    """Return a crowd of one with two channels."""
    made = Crowd(Plan("broker://127.0.0.1:1", NAMES, 1, 2, 10, 24))
    return made, made._clients[0]


def subscribed(client: Client, outcome: str, *sequences: int) -> bytes:
    """Return the server's answer for the channels of a client."""
    outcomes = tuple(
        control.Outcome(NAMES[channel], outcome, 1, at) for channel, at in zip(client.channels, sequences, strict=True)
    )
    return control.encode_subscribed(control.Subscribed(1, outcomes, control.FromBus(JOURNAL, 1, 0)))


def message(client: Client, at: int, first: int, count: int = 1, *, named: bool = False) -> bytes:
    name = NAMES[client.channels[at]] if named else None
    return deliver(1, chunk([b"x"] * count, first=first, channel=10 + at), name=name)


def test_what_follows_is_neither_lost_nor_doubled() -> None:
    made, client = crowd()
    made._take(client, subscribed(client, "new", 3, 0))
    assert client.live
    made._take(client, message(client, 0, 4, 2, named=True) + message(client, 1, 1, named=True) + message(client, 0, 6))
    assert (client.lasts, made.count.delivered) == ([6, 1], 4)
    assert (made.count.lost, made.count.duplicated) == (0, 0)


@pytest.mark.parametrize(
    ("first", "count", "lost", "duplicated"), [(5, 1, 1, 0), (9, 2, 5, 0), (3, 1, 0, 1), (2, 4, 0, 2), (1, 3, 0, 3)]
)
def test_gaps_and_repetitions_are_seen(first: int, count: int, lost: int, duplicated: int) -> None:
    made, client = crowd()
    made._take(client, subscribed(client, "new", 3, 0) + message(client, 0, first, count, named=True))
    assert (made.count.lost, made.count.duplicated) == (lost, duplicated)


def test_a_frame_may_come_in_pieces() -> None:
    made, client = crowd()
    data = subscribed(client, "new", 3, 0) + message(client, 0, 4, named=True)
    for at in range(len(data)):
        made._take(client, client.rest + data[at : at + 1])
    assert (client.live, client.lasts, client.rest) == (True, [4, 0], b"")


def test_it_is_live_when_it_has_what_was_published_meanwhile() -> None:
    made, client = crowd()
    made._take(client, subscribed(client, "new", 3, 0))
    client.live = False
    client.ids.clear()
    made._alive = 0
    made._heads[client.channels[0]] = 5
    made._take(client, subscribed(client, "resumed", 3, 0))
    assert not client.live
    made._take(client, message(client, 0, 4, named=True))
    assert not client.live
    made._take(client, message(client, 0, 5))
    assert (client.live, made._alive, made.count.restarted) == (True, 1, 0)
    made._take(client, subscribed(client, "diverged", 5, 0))
    assert made.count.restarted == 2


def test_it_asks_to_go_on_where_it_is() -> None:
    made, client = crowd()
    assert "start" not in msgpack.unpackb(made._subscribe(client)[8:])
    made._take(client, subscribed(client, "new", 3, 0) + message(client, 0, 4, named=True))
    frame = made._subscribe(client)
    assert frame[4] == Kind.SUBSCRIBE
    wanted = control.decode_subscribe(frame[8:])
    assert wanted.start == control.FromPositions(
        tuple((NAMES[channel], 1, at) for channel, at in zip(client.channels, (4, 0), strict=True))
    )


def test_what_never_came_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.bench.crowd.PATIENCE_S", 0.0)
    made, client = crowd()
    made._take(client, subscribed(client, "new", 3, 0))
    made._heads[client.channels[0]] = 5
    made._heads[client.channels[1]] = 0
    made.finish()
    assert made.count.lost == 2
