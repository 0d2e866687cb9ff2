"""Publishing over HTTP: what is stored, what is refused, and how each is said."""

from __future__ import annotations

import base64
import select
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.http_api.client import Http


def stored(http: Http, channel: str) -> list[dict[str, Any]]:
    """Return the messages of a channel as history has them."""
    page = http.get("/v1/history", channel=channel, limit=1000)
    assert page.status == 200
    return [message for chunk in page.body["chunks"] for message in chunk["messages"]]


def test_message_is_stored_with_all_that_it_has(http: Http) -> None:
    members = {"text": "héllo", "key": "k", "headers": {"a": 1, "b": {"base64": "AP8="}}, "priority": 0}
    answer = http.ask("POST", "/v1/publish", {"channel": "s.all", **members, "expires_s": 900, "message_id": "m-1"})
    assert answer.status == 200
    epoch = answer.body["epoch"]
    assert answer.body == {
        "channel": "s.all",
        "epoch": epoch,
        "first": 1,
        "count": 1,
        "position": f"{epoch}:1",
        "level": 3,
    }
    (message,) = stored(http, "s.all")
    assert abs(message.pop("time") / 1e6 - time.time()) < 60
    assert message == {"seq": 1, **members, "expires_s": 900, "message_id": "m-1"}


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ({"text": ""}, {"text": ""}),
        ({}, {"text": ""}),
        ({"base64": base64.b64encode(b"\xff\x00").decode()}, {"base64": "/wA="}),
        ({"json": {"a": [1, "ä"]}}, {"text": '{"a":[1,"ä"]}'}),
        ({"text": 'a\n\r\t\0"\\'}, {"text": 'a\n\r\t\0"\\'}),
    ],
    ids=["empty", "none", "bytes", "json", "escapes"],
)
def test_payload_comes_back(http: Http, members: dict[str, object], found: dict[str, str]) -> None:
    channel = f"s.payload.{abs(hash(str(members)))}"
    assert http.ask("POST", "/v1/publish", {"channel": channel, **members}).status == 200
    (message,) = stored(http, channel)
    assert {name: message[name] for name in found} == found


def test_many_messages_stand_one_behind_the_other(http: Http) -> None:
    answer = http.publish("s.many", "a", "b", "c")
    assert (answer.body["first"], answer.body["count"]) == (1, 3)
    assert "runs" not in answer.body
    assert [message["text"] for message in stored(http, "s.many")] == ["a", "b", "c"]


def test_body_of_any_other_kind_is_the_payload(http: Http) -> None:
    payload = bytes(range(256))
    answer = http.ask("POST", "/v1/publish", payload, channel="s.raw", key="k", priority=3)
    assert answer.status == 200
    (message,) = stored(http, "s.raw")
    assert base64.b64decode(message["base64"]) == payload
    assert (message["key"], message["priority"]) == ("k", 3)


def test_same_id_is_stored_once(http: Http) -> None:
    first = http.publish("s.once", "x", message_id="order-42").body
    again = http.publish("s.once", "x", message_id="order-42").body
    assert again == {**first, "duplicate": True}
    assert len(stored(http, "s.once")) == 1


def test_duplicates_among_many_are_told_apart(http: Http) -> None:
    http.publish("s.runs", "a", message_id="1")
    body = {"channel": "s.runs", "messages": [{"message_id": "1"}, {"message_id": "2"}, {"message_id": "3"}]}
    answer = http.ask("POST", "/v1/publish", body).body
    assert [(run["first"], run["count"], run.get("duplicate")) for run in answer["runs"]] == [
        (1, 1, True),
        (2, 2, None),
    ]
    assert (answer["count"], answer.get("duplicate")) == (3, None)


def test_expectation_decides(http: Http) -> None:
    first = http.publish("s.expect", "a", expect="0:0")
    assert first.status == 200
    lost = http.publish("s.expect", "b", expect="0:0")
    assert (lost.status, lost.body["name"], lost.body["head"]) == (409, "CONFLICT", first.body["position"])
    assert http.publish("s.expect", "b", expect=first.body["position"]).status == 200


def test_message_for_later_comes_later(http: Http) -> None:
    answer = http.publish("s.later", "x", delay_ms=150, message_id="r-1")
    assert (answer.status, answer.body["message_ids"]) == (202, ["r-1"])
    assert stored(http, "s.later") == []
    polled = http.get("/v1/subscribe", channel="s.later", **{"from": "start"}, wait=10)
    assert polled.body["deliveries"][0]["messages"][0]["text"] == "x"
    assert http.publish("s.later", "x", at=int(time.time() * 1e6) + 10**9).status == 202


@pytest.mark.parametrize(
    ("body", "status", "name", "words"),
    [
        (b"", 400, "MALFORMED_FRAME", "no JSON"),
        (b"[]", 400, "MALFORMED_FRAME", "object"),
        (b'{"channel": "s.x", "channel": "s.y"}', 400, "MALFORMED_FRAME", "channel"),
        (b'{"channel": "s.x", "text": NaN}', 400, "MALFORMED_FRAME", ""),
        (b'{"channel": "s.x", "text": "\\ud800"}', 400, "MALFORMED_FRAME", "text"),
        (b'{"channel": "s.x", "text": "\xff"}', 400, "MALFORMED_FRAME", ""),
        (b'{"text": "x"}', 400, "MALFORMED_FRAME", "channel"),
        (b'{"channel": "s.x", "texts": "x"}', 400, "MALFORMED_FRAME", "texts"),
        (b'{"channel": "s.x", "text": "x", "base64": ""}', 400, "MALFORMED_FRAME", "base64"),
        (b'{"channel": "s.x", "messages": []}', 400, "MALFORMED_FRAME", "messages"),
        (b'{"channel": "s.x", "messages": [{}], "text": "x"}', 400, "MALFORMED_FRAME", "text"),
        (b'{"channel": "s.x", "expect": "1:1", "delay_ms": 1}', 400, "MALFORMED_FRAME", "delay_ms"),
        (b'{"channel": "s.x", "expect": "1:1", "messages": [{}, {}]}', 400, "MALFORMED_FRAME", "expect"),
        (b'{"channel": "s..x"}', 400, "INVALID_CHANNEL", "token 2"),
        (b'{"channel": "s.*"}', 400, "INVALID_CHANNEL", ""),
        (b'{"channel": "$sys"}', 400, "INVALID_CHANNEL", "reserved"),
        (b'{"channel": "e.x", "expect": "0:0"}', 409, "NOT_STORED", ""),
        (b'{"channel": "e.x", "message_id": "1"}', 409, "NOT_STORED", ""),
        (b'{"channel": "small.x", "text": "' + b"x" * 101 + b'"}', 413, "PAYLOAD_TOO_LARGE", ""),
        (b'{"channel": "s.x", "text": "' + b"x" * 400_000 + b'"}', 413, "FRAME_TOO_LARGE", "limit"),
        (b'{"channel": "s.x", "json": ' + b"[" * 17 + b"]" * 17 + b"}", 400, "MALFORMED_FRAME", ""),
        (b'{"channel": "s.x", "json": [' + b"0," * 20_000 + b"0]}", 400, "MALFORMED_FRAME", ""),
        (b'{"channel": "s.x", "key": "' + b"k" * 256 + b'"}', 400, "INVALID_RECORD", ""),
        (b'{"channel": "s.x", "headers": {"a": "' + b"x" * 20_000 + b'"}}', 413, "HEADERS_TOO_LARGE", "limit"),
        (b'{"channel": "s.x", "headers_base64": "AQ=="}', 400, "INVALID_RECORD", "map"),
        (b'{"channel": "s.x", "at": 9007199254740991}', 400, "INVALID_TIME", ""),
    ],
)
def test_what_is_wrong_is_said(http: Http, body: bytes, status: int, name: str, words: str) -> None:
    answer = http.ask("POST", "/v1/publish", body, {"content-type": "application/json"})
    assert (answer.status, answer.body["name"]) == (status, name)
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.body["detail"]
    assert answer.body["code"] // 1000 == 3
    assert http.publish("s.after", "x").status == 200


def test_refusal_of_one_of_many_says_which(http: Http) -> None:
    body = {"channel": "small.many", "messages": [{"text": "a"}, {"text": "x" * 101}, {"text": "b"}]}
    answer = http.ask("POST", "/v1/publish", body)
    assert (answer.status, answer.body["name"]) == (413, "PAYLOAD_TOO_LARGE")
    assert "messages[1]" in answer.body["detail"]
    assert f"{len(stored(http, 'small.many'))} of 3 messages are stored" in answer.body["detail"]


def test_bad_queries_of_a_raw_message(http: Http) -> None:
    for query, words in (
        ({"channel": "s.x", "nothing": 1}, "nothing"),
        ({"key": "k"}, "channel"),
        ({"channel": "s.x", "priority": 4}, "priority"),
        ({"channel": ["s.x", "s.y"]}, "once"),
    ):
        answer = http.ask("POST", "/v1/publish", b"x", **query)
        assert (answer.status, answer.body["name"]) == (400, "MALFORMED_FRAME")
        assert words in answer.body["detail"]


def test_paths_and_methods_that_there_are_not(http: Http) -> None:
    missing = http.get("/v1/nothing")
    assert (missing.status, missing.body["name"]) == (404, "UNKNOWN_OPERATION")
    wrong = http.get("/v1/publish")
    assert (wrong.status, wrong.headers["allow"], wrong.body["name"]) == (405, "POST", "UNKNOWN_OPERATION")


def told_at(sock: socket.socket) -> bytes:
    """Return a whole answer, which is one JSON object; it may come in pieces."""
    answer = b""
    while b"}" not in answer and (part := sock.recv(65536)):
        answer += part
    return answer


def test_what_bodies_take_together_is_bounded(http: Http) -> None:
    # limits.partial_bytes_max is 32 MiB, a body at most about 0.3 MB: 128 that never end are more than that.
    host, _, port = http.address.rpartition(":")
    half = []
    try:
        for _ in range(160):
            sock = socket.create_connection((host, int(port)), timeout=10)
            head = f"POST /v1/publish HTTP/1.1\r\nHost: {http.address}\r\nContent-Type: application/json\r\n"
            sock.sendall(f"{head}Content-Length: 280000\r\n\r\n".encode() + b" " * 270_000)
            half.append(sock)
        # Who is refused is told before its body is whole.
        told = select.select(half, [], [], 5)[0]
        answers = [told_at(sock) for sock in told]
        assert answers
        assert all(answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer for answer in answers)
        assert all(b'"name": "BUSY"' in answer for answer in answers)
        assert http.publish("s.meanwhile", "x").status == 200
    finally:
        for sock in half:
            sock.close()
    deadline_s = time.monotonic() + 10
    while http.ask("POST", "/v1/publish", b"x" * 60_000, channel="s.after").status != 200:
        assert time.monotonic() < deadline_s
