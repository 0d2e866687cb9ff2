"""Reading back over HTTP: pages, their ends, and what there is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.http_api.client import Http


def messages(page: dict[str, Any]) -> list[tuple[str, int]]:
    """Return the messages of a page, as channel and sequence, in its order."""
    return [(chunk["channel"], message["seq"]) for chunk in page["chunks"] for message in chunk["messages"]]


def pages(http: Http, channel: str, **query: object) -> list[dict[str, Any]]:
    """Follow `next` to the last page."""
    found = []
    more: dict[str, str] = {}
    while True:
        answer = http.get("/v1/history", channel=channel, **{**query, **more})
        assert answer.status == 200, answer.body
        found.append(answer.body)
        if answer.body["next"] is None:
            return found
        more = answer.body["next"]


def test_pages_have_everything_once(http: Http) -> None:
    http.publish("s.pages", *map(str, range(25)))
    found = pages(http, "s.pages", limit=10)
    assert [len(messages(page)) for page in found] == [10, 10, 5]
    assert [seq for page in found for _, seq in messages(page)] == list(range(1, 26))
    assert found[0]["info"] == {**found[0]["info"], "first": 1, "head": 25, "level": 3}


def test_pages_backwards_have_everything_once(http: Http) -> None:
    for begin in range(5):
        http.publish("s.back", *map(str, range(begin * 5, begin * 5 + 5)))
    found = pages(http, "s.back", limit=10, reverse="true")
    assert [min(seq for _, seq in messages(page)) for page in found] == [16, 6, 1]
    assert sorted(seq for page in found for _, seq in messages(page)) == list(range(1, 26))


def test_pages_of_a_pattern_have_everything_once(http: Http) -> None:
    for number in range(30):
        http.publish(f"s.wide.{number % 3}", *map(str, range(7)))
    found = pages(http, "s.wide.>", limit=50)
    assert len(found) > 3
    everything = [each for page in found for each in messages(page)]
    assert sorted(everything) == sorted((f"s.wide.{channel}", seq) for channel in range(3) for seq in range(1, 71))
    for page in found:
        assert all(chunk["bus"].count(":") == 2 for chunk in page["chunks"])


def test_page_is_bounded_in_bytes(http: Http) -> None:
    for _ in range(24):
        assert http.ask("POST", "/v1/publish", b"x" * 65_000, channel="s.heavy").status == 200
    found = pages(http, "s.heavy", limit=1000)
    assert [len(messages(page)) for page in found] == [17, 7]


def test_bounds_hold(http: Http) -> None:
    http.publish("s.bounds", "a", "b")
    before = int(time.time() * 1e6)
    time.sleep(0.002)
    position = http.publish("s.bounds", "c", "d").body["position"]
    epoch = position.partition(":")[0]
    since = datetime.fromtimestamp(before / 1e6, UTC).isoformat()
    for query, sequences in (
        ({"after": 1}, [2, 3, 4]),
        ({"after": f"{epoch}:3"}, [4]),
        ({"before": 3}, [1, 2]),
        ({"last": 3}, [2, 3, 4]),
        ({"since": before}, [3, 4]),
        ({"since": since}, [3, 4]),
        ({"until": before}, [1, 2]),
        ({"after": 1, "before": 4, "limit": 1}, [2]),
    ):
        answer = http.get("/v1/history", channel="s.bounds", **query)
        assert [seq for _, seq in messages(answer.body)] == sequences, query


def test_position_that_never_was_is_told(http: Http) -> None:
    http.publish("s.diverged", "a")
    answer = http.get("/v1/history", channel="s.diverged", after="1:7")
    assert (answer.status, answer.body["outcome"]) == (200, "diverged")


@pytest.mark.parametrize(
    ("query", "name", "words"),
    [
        ({}, "MALFORMED_FRAME", "channel"),
        ({"channel": "s.x", "limit": 0}, "MALFORMED_FRAME", "limit"),
        ({"channel": "s.x", "limit": 1001}, "MALFORMED_FRAME", "1 to 1000"),
        ({"channel": "s.x", "limit": "१"}, "MALFORMED_FRAME", "limit"),
        ({"channel": "s.x", "after": "x"}, "INVALID_POSITION", "epoch:sequence"),
        ({"channel": "s.x", "after": 2**64}, "MALFORMED_FRAME", "after"),
        ({"channel": "s.x", "after": 1, "last": 1}, "MALFORMED_FRAME", "one beginning"),
        ({"channel": "s.x", "before": 1, "until": 1}, "MALFORMED_FRAME", "one end"),
        ({"channel": "s.x", "before": 0}, "MALFORMED_FRAME", "before"),
        ({"channel": "s.x", "since": "yesterday"}, "MALFORMED_FRAME", "since"),
        ({"channel": "s.x", "since": "2026-01-01T00:00:00"}, "MALFORMED_FRAME", "zone"),
        ({"channel": "s.x", "reverse": "yes"}, "MALFORMED_FRAME", "true or false"),
        ({"channel": "s.x", "colour": 1}, "MALFORMED_FRAME", "colour"),
        ({"channel": "s.>", "last": 1}, "INVALID_POSITION", ""),
        ({"channel": "s.>", "reverse": "true"}, "INVALID_POSITION", ""),
        ({"channel": "s.x", "after": f"{'0' * 32}:1:1"}, "INVALID_POSITION", ""),
        ({"channel": "s..x"}, "INVALID_PATTERN", ""),
        ({"channel": "$sys.x"}, "INVALID_PATTERN", "reserved"),
    ],
)
def test_what_is_wrong_is_said(http: Http, query: dict[str, object], name: str, words: str) -> None:
    answer = http.get("/v1/history", **query)
    assert (answer.status, answer.body["name"]) == (400, name), answer.body
    assert words in answer.body["detail"]


def test_query_that_is_no_text_is_refused(http: Http) -> None:
    for query in ("channel=%ff", "channel=s.x&" + "&".join(["limit=1"] * 300), "channel=" + "x" * 40_000):
        answer = http.ask("GET", f"/v1/history?{query}")
        assert answer.status == 400
        http.close()


def test_channels_are_listed_in_pages(http: Http) -> None:
    for number in range(5):
        http.publish(f"s.listed.{number}", "x")
    first = http.get("/v1/channels", prefix="s.listed.", limit=3).body
    assert [row["name"] for row in first["channels"]] == [f"s.listed.{number}" for number in range(3)]
    rest = http.get("/v1/channels", prefix="s.listed.", limit=3, details="true", **first["next"]).body
    assert [(row["name"], row["head"]) for row in rest["channels"]] == [("s.listed.3", 1), ("s.listed.4", 1)]
    assert rest["next"] is None


def test_channel_says_what_it_holds(http: Http) -> None:
    position = http.publish("s.told", "a", "b").body["position"]
    answer = http.get("/v1/channels/s.told").body
    assert answer == {"name": "s.told", "epoch": position.partition(":")[0], "first": 1, "head": 2, "level": 3}
    assert http.get("/v1/channels/s.with/slash").body["head"] == 0
    refused = http.get("/v1/channels/s..x")
    assert (refused.status, refused.body["name"]) == (400, "INVALID_CHANNEL")
    assert http.get("/v1/channels/s.told?x=1").status == 400


def test_consumers_are_none(http: Http) -> None:
    assert http.get("/v1/consumers").body == {"consumers": [], "next": None}
    missing = http.get("/v1/consumers/nobody")
    assert (missing.status, missing.body["name"]) == (404, "UNKNOWN_CONSUMER")
    assert http.get("/v1/consumers/a..b").body["name"] == "INVALID_CONSUMER"
