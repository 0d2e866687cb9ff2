"""Following channels over HTTP: streams of events and long poll, how they begin, end and go on."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.contract.homes import Server
from tests.http_api.client import Events, Http
from tests.http_api.conftest import WEB_CONFIG, web_address


def test_stream_begins_with_where_it_stands(http: Http) -> None:
    position = http.publish("s.stand", "a").body["position"]
    with Events(http.address, channel="s.stand") as events:
        assert (events.status, events.headers["content-type"]) == (200, "text/event-stream")
        began = next(events)
        assert (began.name, began.id) == ("subscribed", position)
        assert began.data["channels"] == [{"channel": "s.stand", "outcome": "new", "position": position}]
        http.publish("s.stand", "b")
        event = next(events)
        assert (event.name, event.id) == ("message", event.data["position"])
        assert [(each["seq"], each["text"]) for each in event.data["messages"]] == [(2, "b")]


@pytest.mark.parametrize("channels", [["s.resume.0"], ["s.resume.>"], ["s.resume.0", "s.resume.1"]], ids=str)
def test_stream_goes_on_behind_the_last_event(http: Http, channels: list[str]) -> None:
    names = [f"s.resume.{number}" for number in range(2)]
    base = http.get("/v1/channels/s.resume.0").body["head"]
    seen: list[tuple[str, int, str]] = []
    last: str | None = None
    with Events(http.address, channel=channels) as events:
        next(events)
        last = events.last_id
    for turn in range(4):
        for name in names:
            http.publish(name, f"a{turn}", f"b{turn}")
        with Events(http.address, last, channel=channels) as events:
            assert next(events).data["channels"][0]["outcome"] == "resumed"
            seen += events.messages(2 if channels == names[:1] else 4)
            if turn == 3:
                seen += live_part(http, events, names[0])
            last = events.last_id
    mine = [(seq, text) for channel, seq, text in seen if channel == names[0]]
    texts = [f"{letter}{turn}" for turn in range(4) for letter in "ab"] + ["live"]
    assert mine == [(base + at, text) for at, text in enumerate(texts, 1)]


def live_part(http: Http, events: Events, channel: str) -> list[tuple[str, int, str]]:
    """Publish while a stream is read, and return what it gets."""
    http.publish(channel, "live")
    return events.messages(1)


def test_stream_that_never_had_a_message_resumes_from_the_beginning(http: Http) -> None:
    with Events(http.address, channel="s.virgin") as events:
        assert next(events).id == "0:0"
    http.publish("s.virgin", "first")
    with Events(http.address, "0:0", channel="s.virgin") as events:
        next(events)
        assert events.messages(1) == [("s.virgin", 1, "first")]


def test_starts(http: Http) -> None:
    position = http.publish("s.starts", "a", "b", "c").body["position"]
    epoch = position.partition(":")[0]
    starts: tuple[tuple[dict[str, Any], str], ...] = (
        ({"from": "start"}, "abc"),
        ({"last": 2}, "bc"),
        ({"after": f"{epoch}:1"}, "bc"),
        ({"after": "0:0"}, "abc"),
        ({"since": 0}, "abc"),
        ({"channel": ["s.starts", "s.other"], "from": "start"}, "abc"),
    )
    for query, texts in starts:
        with Events(http.address, **{"channel": "s.starts", **query}) as events:
            assert [text for _, _, text in events.messages(len(texts))] == list(texts), query


def test_ephemeral_messages_are_streamed(http: Http) -> None:
    with Events(http.address, channel="e.>") as events:
        began = next(events)
        http.publish("e.x", "a")
        assert events.messages(1) == [("e.x", 1, "a")]
        assert events.last_id == began.id  # they stand nowhere on the bus


def test_many_chunks_at_once_come_in_order(http: Http) -> None:
    with Events(http.address, channel="s.order") as one, Events(http.address, channel="s.order") as other:
        for begin in range(0, 500, 100):
            http.publish("s.order", *map(str, range(begin, begin + 100)))
        expected = [("s.order", at + 1, str(at)) for at in range(500)]
        assert one.messages(500) == expected
        assert other.messages(500) == expected


@pytest.mark.parametrize(
    ("query", "status", "name"),
    [
        ({}, 400, "MALFORMED_FRAME"),
        ({"channel": "s..x"}, 400, "INVALID_PATTERN"),
        ({"channel": "$x"}, 400, "INVALID_PATTERN"),
        ({"channel": [f"s.{at}" for at in range(101)]}, 400, "MALFORMED_FRAME"),
        ({"channel": "s.x", "after": "7"}, 400, "MALFORMED_FRAME"),
        ({"channel": "s.>", "after": "1:7"}, 400, "INVALID_POSITION"),
        ({"channel": "s.>", "last": 7}, 400, "INVALID_POSITION"),
        ({"channel": "s.x", "last": 7, "from": "new"}, 400, "MALFORMED_FRAME"),
        ({"channel": "s.x", "wait": 61}, 400, "MALFORMED_FRAME"),
        ({"channel": "s.x", "wait": "nan"}, 400, "MALFORMED_FRAME"),
        ({"channel": "s.x", "from": "end"}, 400, "MALFORMED_FRAME"),
        ({"channel": "s.*.*.*.*.*.*.*.*.*.*.*.*"}, 400, "INVALID_PATTERN"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_streamed(
    http: Http, query: dict[str, object], status: int, name: str
) -> None:
    answer = http.get("/v1/subscribe", **query)
    assert (answer.status, answer.body["name"]) == (status, name), answer.body


def test_unknown_profile_is_refused(http: Http) -> None:
    position = http.publish("s.gone", "a").body["position"]
    answer = http.get("/v1/subscribe", channel="s.gone", after=f"{position}0", wait=0)
    assert answer.status == 200
    assert answer.body["deliveries"] == []


def test_poll_answers_at_once_what_is_there(http: Http) -> None:
    http.publish("s.poll", "a", "b")
    answer = http.get("/v1/subscribe", channel="s.poll", wait=20, **{"from": "start"}).body
    assert [each["text"] for each in answer["deliveries"][0]["messages"]] == ["a", "b"]
    assert answer["position"] == answer["deliveries"][0]["position"]


def test_polls_in_a_row_leave_no_gap(http: Http) -> None:
    publishing = Http(http.address)
    begun = http.get("/v1/subscribe", channel="s.polls", wait=0).body["position"]

    def publish() -> None:
        for at in range(60):
            publishing.publish("s.polls", str(at))

    thread = threading.Thread(target=publish)
    thread.start()
    texts: list[str] = []
    while len(texts) < 60:
        answer = http.get("/v1/subscribe", channel="s.polls", wait=10, after=begun).body
        texts += [each["text"] for delivery in answer["deliveries"] for each in delivery["messages"]]
        begun = answer["position"]
    thread.join()
    publishing.close()
    assert texts == [str(at) for at in range(60)]


def test_poll_ends_when_its_time_is_over(http: Http) -> None:
    begun = time.monotonic()
    answer = http.get("/v1/subscribe", channel="s.empty.>", wait=0.2)
    assert answer.body["deliveries"] == []
    assert 0.2 <= time.monotonic() - begun < 5


async def test_streams_and_polls_that_leave_are_gone(served: Server, http: Http) -> None:
    before = await connections(served)
    streams = [Events(http.address, channel="s.leaving") for _ in range(5)]
    polls = [Events.__new__(Events) for _ in range(5)]
    for poll in polls:
        ask_and_leave_it(poll, http.address)
    while await connections(served) < before + 10:
        pass
    for each in [*streams, *polls]:
        each.socket.close()
    deadline_s = time.monotonic() + 10
    while await connections(served) > before:
        assert time.monotonic() < deadline_s


def ask_and_leave_it(poll: Events, address: str) -> None:
    """Ask for a poll, and read nothing."""
    import socket

    host, _, port = address.rpartition(":")
    poll.socket = socket.create_connection((host, int(port)), 10)
    poll.socket.sendall(f"GET /v1/subscribe?channel=s.leaving&wait=60 HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())


async def connections(served: Server) -> int:
    """Return how many sessions the server has."""
    from broker import connect

    async with connect(served.tcp_url) as bus:
        return int((await bus.stats())["connections"])


def test_head_of_a_cross_origin_stream_is_plain(http: Http) -> None:
    answer = http.ask("GET", "/v1/subscribe?channel=s.x&wait=0", headers={"Origin": "https://evil.example"})
    assert answer.status == 403


def test_who_speaks_on_a_stream_is_let_go(http: Http) -> None:
    with Events(http.address, channel="s.spoken") as events:
        next(events)
        try:
            for _ in range(64):
                events.socket.sendall(b"x" * 65536)
        except OSError:
            return
        with pytest.raises((EOFError, OSError)):
            events.messages(1)


def test_streams_and_polls_end_with_the_server() -> None:
    own = Server(config=WEB_CONFIG)
    try:
        address = web_address(own.start())
        with Events(address, channel="s.x") as events, Events(address, channel="s.>") as others:
            begun = time.monotonic()
            assert own.drain() == 0
            assert time.monotonic() - begun < 5
            for stream in (events, others):
                assert '"name":"GOING_AWAY"' in stream.rest().decode()
    finally:
        own.stop()
