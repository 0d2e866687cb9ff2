"""The JSON dialect on a real server, by a client that is not ours: what each operation becomes, and is answered."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import websockets

from broker import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.contract.homes import Server

SPECIFICATION = Path("broker/wire/json.md")
SECONDS = 10.0


class Talk:
    """A conversation: what is said, and what comes, in order."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self.socket = socket

    async def say(self, **members: Any) -> None:
        await self.socket.send(json.dumps({name.rstrip("_"): value for name, value in members.items()}))

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(SECONDS):
            message = json.loads(await self.socket.recv())
        assert isinstance(message, dict)
        return message

    async def hear_of(self, *ops: str) -> list[dict[str, Any]]:
        """The next messages, which are these in any order; in the order of their ops."""
        heard = [await self.hear() for _ in ops]
        assert sorted(message["op"] for message in heard) == sorted(ops), heard
        return [heard.pop(next(at for at, m in enumerate(heard) if m["op"] == op)) for op in ops]

    async def asks(self, **members: Any) -> dict[str, Any]:
        """Say something and hear what comes next."""
        await self.say(**members)
        return await self.hear()

    async def refused(self, name: str, **members: Any) -> dict[str, Any]:
        told = await self.asks(**members)
        assert (told["op"], told["name"]) == ("error", name), told
        assert told["hint"]
        return told


@asynccontextmanager
async def talk(server: Server, protocols: Sequence[str] = ("broker.json.v1",)) -> AsyncIterator[Talk]:
    """A conversation that has begun."""
    subprotocols = [websockets.Subprotocol(name) for name in protocols]
    async with websockets.connect(f"ws://{server.web}/v1/socket", subprotocols=subprotocols or None) as socket:
        yield Talk(socket)


@asynccontextmanager
async def greeted(server: Server) -> AsyncIterator[Talk]:
    """One that has had its welcome."""
    async with talk(server) as conversation:
        assert (await conversation.asks(op="hello", name="test"))["op"] == "welcome"
        yield conversation


async def test_welcome(server: Server) -> None:
    """It comes whether hello was said or not, with or without a subprotocol."""
    async with talk(server) as one, talk(server, ()) as other:
        assert other.socket.subprotocol is None
        welcome = await one.asks(op="hello", name="me", producer="00" * 16)
        assert (welcome["op"], welcome["version"], welcome["highest"]) == ("welcome", 1, 0)
        assert re.fullmatch(r"[0-9a-f]{32}", welcome["journal"])
        assert welcome["limits"]["text_bytes_max"] == 2 * welcome["limits"]["frame_bytes_max"]
        assert (await other.asks(op="ping", id="p"))["op"] == "welcome"
        assert await other.hear() == {"op": "pong", "id": "p"}


async def test_messages_keep_all_that_they_have(server: Server) -> None:
    async with greeted(server) as one:
        subscribed = await one.asks(op="subscribe", sub=3, filters=["s.json.all"], from_="all")
        assert subscribed["channels"] == [{"channel": "s.json.all", "outcome": "resumed", "position": "0:0"}]
        messages: list[dict[str, Any]] = [
            {"text": 'zwölf 😀\n"\\'},
            {"base64": base64.b64encode(b"\xff\0").decode(), "key_base64": "/w==", "priority": 0, "expires_s": 60},
            {"json": {"a": [1, 2.5, None, "x"]}, "key": "k", "headers": {"h": 1, "b": {"base64": "/w=="}}},
            {},
            {"text": "i", "message_id": "one"},
        ]
        await one.say(op="publish", id="all", channel="s.json.all", messages=messages)
        stored, told = await one.hear_of("published", "deliver")
        assert (stored["id"], stored["first"], stored["count"], stored["level"]) == ("all", 1, 5, 3)
        assert stored["position"] == told["position"] == f"{told['epoch']}:5"
        heard = [{name: value for name, value in each.items() if name != "time"} for each in told["messages"]]
        assert heard == [
            {"seq": 1, "text": 'zwölf 😀\n"\\'},
            {"seq": 2, "base64": "/wA=", "key_base64": "/w==", "priority": 0, "expires_s": 60},
            {"seq": 3, "text": '{"a":[1,2.5,null,"x"]}', "key": "k", "headers": {"h": 1, "b": {"base64": "/w=="}}},
            {"seq": 4, "text": ""},
            {"seq": 5, "text": "i", "message_id": "one"},
        ]
        assert (told["sub"], told["channel"], told["bus"].count(":")) == (3, "s.json.all", 2)
        # The same id once more is where it was.
        again = await one.asks(op="publish", id=2, channel="s.json.all", text="other", message_id="one")
        assert (again["duplicate"], again["position"]) == (True, stored["position"])
        assert await one.asks(op="unsubscribe", sub=3) == {"op": "unsubscribed", "sub": 3}


async def test_a_publish_that_is_refused_leaves_those_behind_it_alone(server: Server) -> None:
    """Numbers of the line are the server's concern."""
    async with greeted(server) as one:
        await one.say(op="publish", id=1, channel="small.json", text="x" * 101)
        await one.say(op="publish", id=2, channel="small.json", text="y")
        await one.say(op="publish", id=3, channel="no such name", text="z")
        await one.say(op="publish", id=4, channel="s.json.behind", text="z")
        heard = {(message["op"], message["id"]): message for message in [await one.hear() for _ in range(4)]}
        assert heard["error", 1]["name"] == "PAYLOAD_TOO_LARGE"
        assert heard["error", 1]["refused"] == "publish"
        assert heard["published", 2]["first"] == 1
        assert heard["error", 3]["name"] == "INVALID_CHANNEL"
        assert "no such name" in heard["error", 3]["detail"]
        assert heard["published", 4]["first"] == 1


async def test_a_line_is_repeated_without_storing_twice(server: Server) -> None:
    producer = "0123456789abcdef" * 2
    for highest in (0, 2):
        async with talk(server) as one:
            welcome = await one.asks(op="hello", producer=producer)
            assert welcome["highest"] == highest
            for number in (1, 2):
                told = await one.asks(op="publish", id=number, number=number, channel="s.json.line", text="x")
                assert (told["first"], told.get("duplicate", False)) == (number, highest == 2)


async def test_what_is_expected_of_a_head(server: Server) -> None:
    async with greeted(server) as one:
        first = await one.asks(op="publish", id=1, channel="s.json.head", text="1", expect="0:0")
        conflict = await one.refused("CONFLICT", op="publish", id=2, channel="s.json.head", text="2", expect="0:0")
        assert (conflict["id"], conflict["head"]) == (2, first["position"])
        second = await one.asks(op="publish", id=3, channel="s.json.head", text="2", expect=conflict["head"])
        assert second["first"] == 2


async def test_later(server: Server) -> None:
    async with greeted(server) as one:
        told = await one.asks(op="publish", id=1, channel="s.json.later", text="x", message_id="a", delay_ms=3_600_000)
        assert (told["op"], told["count"], "epoch" in told) == ("published", 1, False)
        waiting = await one.asks(op="request", id=2, what="delayed", prefix="s.json.later")
        assert [(each["message_id"], each["due"]) for each in waiting["delayed"]] == [("a", told["due"])]
        gone = await one.asks(op="request", id=3, what="delayed_cancel", channel="s.json.later", message_id="a")
        assert gone == {"op": "reply", "id": 3}
        await one.refused("MALFORMED_FRAME", op="publish", channel="s.json.later", text="x", at=1)


async def test_transactions(server: Server) -> None:
    async with greeted(server) as one:
        single, double = {"channel": "s.json.t1", "text": "1"}, {"channel": "s.json.t2", "messages": [{}, {}]}
        parts: list[dict[str, Any]] = [single, double]
        await one.say(op="transaction", id="t", publishes=parts)
        first, second = sorted([await one.hear(), await one.hear()], key=lambda told: told["index"])
        assert (first["channel"], first["id"], first["count"]) == ("s.json.t1", "t", 1)
        assert (second["channel"], second["count"]) == ("s.json.t2", 2)
        parts = [parts[0], {**parts[1], "expect": "0:0"}]
        refused = await one.refused("CONFLICT", op="transaction", id="u", publishes=parts)
        assert (refused["id"], refused["index"], refused["head"]) == ("u", 1, second["position"])
        assert (await one.asks(op="ping", id=1))["op"] == "pong"


async def test_a_client_resumes_without_a_gap(server: Server) -> None:
    """By position and by the bus, after a cut."""
    async with connect(server.tcp_url) as bus:
        async with greeted(server) as one:
            await one.say(op="subscribe", sub=1, filters=["s.json.resume"])
            await one.say(op="subscribe", sub=2, filters=["s.json.resume", "s.json.resume.>"])
            subscribed = await one.hear_of("subscribed", "subscribed")
            await bus.publish("s.json.resume", b"1")
            told = {message["sub"]: message for message in await one.hear_of("deliver", "deliver")}
        assert subscribed[0]["channels"][0]["outcome"] == "new"
        for number in range(2, 30):
            await bus.publish("s.json.resume", b"%d" % number)
        async with greeted(server) as other:
            await other.say(
                op="subscribe",
                sub=1,
                filters=["s.json.resume"],
                from_={"after": {"s.json.resume": told[1]["position"]}},
            )
            resumed = await other.hear()
            assert resumed["channels"] == [
                {"channel": "s.json.resume", "outcome": "resumed", "position": told[1]["position"]}
            ]
            await texts_until(other, 1, "29", [str(number) for number in range(2, 30)])
            await other.say(
                op="subscribe", sub=2, filters=["s.json.resume", "s.json.resume.>"], from_={"bus": told[2]["bus"]}
            )
            assert (await other.hear())["channels"][0]["outcome"] == "resumed"
            await texts_until(other, 2, "29", [str(number) for number in range(2, 30)])


async def texts_until(one: Talk, subscription: int, last: str, expected: list[str]) -> None:
    heard: list[str] = []
    while last not in heard:
        message = await one.hear()
        assert (message["op"], message["sub"]) == ("deliver", subscription)
        heard.extend(each["text"] for each in message["messages"])
    assert heard == expected


async def test_credit_that_the_client_grants(server: Server) -> None:
    async with greeted(server) as one, connect(server.tcp_url) as bus:
        for number in range(3):
            await bus.publish("s.json.credit", b"%d" % number + bytes(1_000))
        await one.asks(op="subscribe", sub=1, filters=["s.json.credit"], from_="all", credit=1)
        first = await one.hear()
        assert first["bytes"] > 1_000
        assert (await one.asks(op="ping", id=1))["op"] == "pong"
        await one.say(op="credit", sub=1, bytes=100_000)
        seqs = [each["seq"] for each in first["messages"]]
        while seqs[-1] < 3:
            seqs.extend(each["seq"] for each in (await one.hear())["messages"])
        assert seqs == [1, 2, 3]


async def test_credit_that_the_server_renews(server: Server) -> None:
    """More than it grants at once, to a client that says nothing."""
    count, size = 40, 100_000
    async with greeted(server) as one, connect(server.tcp_url) as bus:
        await one.asks(op="subscribe", sub=1, filters=["s.json.more"])
        sends = [asyncio.ensure_future(bus.publish("s.json.more", b"%03d" % n + bytes(size))) for n in range(count)]
        seqs: list[int] = []
        while len(seqs) < count:
            message = await one.hear()
            if message["op"] == "deliver":
                seqs.extend(each["seq"] for each in message["messages"])
        await asyncio.gather(*sends)
        assert seqs == list(range(1, count + 1))


async def test_history_and_names(server: Server) -> None:
    async with greeted(server) as one:
        await one.say(op="publish", id=0, channel="s.json.past.a", messages=[{"text": "1"}, {"text": "2"}])
        stored = await one.hear()
        page = await one.asks(op="request", id=1, what="history", channel="s.json.past.a", last=1)
        assert [each["text"] for chunk in page["chunks"] for each in chunk["messages"]] == ["2"]
        assert (page["head"], page["epoch"], page["more"]) == (2, stored["epoch"], False)
        whole = await one.asks(op="request", id=2, what="history", pattern="s.json.past.>")
        assert [(chunk["channel"], len(chunk["messages"])) for chunk in whole["chunks"]] == [("s.json.past.a", 2)]
        assert whole["chunks"][0]["bus"].partition(":")[0] == whole["bus"].partition(":")[0]
        names = await one.asks(op="request", id=3, what="channels", prefix="s.json.past", details=True)
        row = {"name": "s.json.past.a", "epoch": stored["epoch"], "first": 1, "head": 2, "level": 3}
        assert names["channels"] == [row]
        info = await one.asks(op="request", id=4, what="channel", name="s.json.past.a")
        assert (info["epoch"], info["head"]) == (stored["epoch"], 2)
        refused = await one.refused("MALFORMED_FRAME", op="request", id=5, what="history", channel=7)
        assert (refused["id"], refused["refused"]) == (5, "request")
        assert "`channel`" in refused["detail"]
        await one.refused("UNKNOWN_OPERATION", op="request", id=6, what="nonsense")
        assert (await one.asks(op="request", id=7, what="trim", name="s.json.past.a", first="2"))["first"] == 2


async def test_work(server: Server) -> None:
    async with greeted(server) as one:
        await one.asks(op="publish", id=0, channel="s.json.work", messages=[{"text": str(n)} for n in range(4)])
        made = await one.asks(op="request", id=1, what="consumer_set", name="json-work", filters=["s.json.work"])
        assert (made["name"], made["mode"]) == ("json-work", "shared")
        await one.asks(op="subscribe", sub=1, consumer={"name": "json-work", "window": 4})
        jobs: list[dict[str, Any]] = []
        while len(jobs) < 4:
            jobs.extend((await one.hear())["jobs"])
        assert [job["text"] for job in jobs] == ["0", "1", "2", "3"]
        assert {(job["channel"], job["attempt"]) for job in jobs} == {("s.json.work", 1)}
        acked = await one.asks(op="ack", id="a", sub=1, lease=jobs[0]["lease"], count=2)
        assert acked == {"op": "acked", "id": "a", "sub": 1}
        entries = [{"lease": jobs[2]["lease"], "verb": "nack", "ms": 0}, {"lease": jobs[3]["lease"], "verb": "reject"}]
        await one.say(op="ack", id="b", sub=1, entries=entries)
        told, again = await one.hear_of("acked", "jobs")
        assert told["id"] == "b"
        assert (again["jobs"][0]["text"], again["jobs"][0]["attempt"], again["jobs"][0]["redelivered"]) == (
            "2",
            2,
            True,
        )
        await one.say(op="ack", id="c", sub=1, lease=jobs[0]["lease"])
        late, settled = await one.hear_of("error", "acked")
        assert (late["name"], late["refused"], late["id"]) == ("LEASE_EXPIRED", "ack", "c")
        assert (late["lease"], late["count"], settled["id"]) == (jobs[0]["lease"], 1, "c")
        await one.refused("UNKNOWN_SUBSCRIPTION", op="ack", id="d", sub=9, lease=1)
        parts = [{"channel": "s.json.done", "text": "x"}]
        acks = [{"sub": 1, "lease": again["jobs"][0]["lease"]}]
        assert (await one.asks(op="transaction", id="t", publishes=parts, acks=acks))["op"] == "published"
        page = await one.asks(op="request", id=2, what="consumers", prefix="json-work")
        assert [(each["name"], each["dead"]) for each in page["consumers"]] == [("json-work", 1)]
        await one.say(op="request", id=3, what="consumer_remove", name="json-work")
        ended, removed = await one.hear_of("error", "reply")
        assert removed == {"op": "reply", "id": 3}
        assert (ended["name"], ended["refused"], ended["sub"]) == ("UNKNOWN_CONSUMER", "subscribe", 1)


async def test_asking(server: Server) -> None:
    async with greeted(server) as asker, greeted(server) as helper:
        refused = await asker.refused("NO_RESPONDERS", op="ask", id="q", channel="e.json.ask", text="?")
        assert (refused["refused"], refused["id"]) == ("ask", "q")
        await helper.asks(op="subscribe", sub=1, filters=["e.json.ask"])
        await asker.say(op="ask", id="q", channel="e.json.ask", text="?", headers={"a": 1})
        question = (await helper.hear())["messages"][0]
        assert (question["text"], question["headers"]["a"]) == ("?", 1)
        to = question["headers"]["reply-to"]
        await helper.say(op="answer", to=to, text="!", key="k")
        answer = await asker.hear()
        assert (answer["op"], answer["id"], answer["text"], answer["key"]) == ("answer", "q", "!", "k")
        # The second answer is nobody's; whoever has gone is told of.
        await helper.say(op="answer", to=to, text="!!")
        assert (await asker.asks(op="ping", id=1))["op"] == "pong"
        gone = "$reply." + "0" * 32 + ".1"
        refused = await helper.refused("NO_RESPONDERS", op="answer", to=gone, text="!")
        assert (refused["refused"], refused["to"]) == ("answer", gone)


@pytest.mark.parametrize(
    ("members", "name", "said"),
    [
        ({"op": "nonsense", "id": 1}, "UNKNOWN_OPERATION", "nonsense"),
        ({"op": 7}, "UNKNOWN_OPERATION", "int"),
        ({"op": "publish", "channel": "a.b", "text": "x", "colour": 1}, "MALFORMED_FRAME", "colour"),
        ({"op": "publish", "text": "x"}, "MALFORMED_FRAME", "`channel`"),
        ({"op": "publish", "channel": "a.b", "text": "x", "json": 1}, "MALFORMED_FRAME", "`json`"),
        ({"op": "publish", "channel": "a.b", "text": "\ud800"}, "MALFORMED_FRAME", "surrogate"),
        ({"op": "publish", "channel": "a.b", "base64": "x"}, "MALFORMED_FRAME", "base64"),
        ({"op": "publish", "channel": "a.b", "messages": []}, "MALFORMED_FRAME", "`messages`"),
        ({"op": "publish", "channel": "a.b", "messages": [1]}, "MALFORMED_FRAME", "messages[0]"),
        ({"op": "publish", "channel": "a.b", "messages": [{"x": 1}]}, "MALFORMED_FRAME", "x"),
        ({"op": "publish", "channel": "a.b", "headers": {"a": 2**70}}, "INVALID_RECORD", "headers"),
        ({"op": "publish", "channel": "a.b", "headers": {"a": "x" * 70_000}}, "HEADERS_TOO_LARGE", "headers"),
        ({"op": "publish", "channel": "a.b", "key": "k" * 256}, "INVALID_RECORD", "key"),
        ({"op": "publish", "channel": "a.b", "message_id": ""}, "INVALID_ID", "message_id"),
        ({"op": "publish", "channel": "a.b", "priority": 4}, "MALFORMED_FRAME", "`priority`"),
        ({"op": "publish", "channel": "a.b", "priority": True}, "MALFORMED_FRAME", "`priority`"),
        ({"op": "publish", "channel": "a.b", "id": []}, "MALFORMED_FRAME", "`id`"),
        ({"op": "publish", "channel": "a." + "b" * 300}, "INVALID_CHANNEL", "302"),
        ({"op": "publish", "channel": "s.b", "number": 9}, "NUMBER_GAP", "9"),
        ({"op": "publish", "channel": "s.b", "expect": "1"}, "MALFORMED_FRAME", "`expect`"),
        ({"op": "publish", "channel": "s.b", "expect": "1:1", "at": 1}, "MALFORMED_FRAME", "`at`"),
        ({"op": "subscribe", "sub": 0, "filters": ["a"]}, "MALFORMED_FRAME", "`sub`"),
        ({"op": "subscribe", "sub": 1, "filters": []}, "MALFORMED_FRAME", "`filters`"),
        ({"op": "subscribe", "sub": 1, "filters": ["a..b"]}, "INVALID_PATTERN", "a..b"),
        ({"op": "subscribe", "sub": 1, "filters": ["a.b"], "from": "old"}, "MALFORMED_FRAME", "`from`"),
        ({"op": "subscribe", "sub": 1, "filters": ["a.b"], "from": {"bus": "x"}}, "MALFORMED_FRAME", "`bus`"),
        ({"op": "subscribe", "sub": 1, "filters": ["a.b"], "group": ""}, "MALFORMED_FRAME", "group"),
        ({"op": "subscribe", "sub": 1, "consumer": {"name": "none"}}, "UNKNOWN_CONSUMER", "none"),
        ({"op": "subscribe", "sub": 1, "consumer": {"nam": "none"}}, "MALFORMED_FRAME", "`name`"),
        ({"op": "unsubscribe", "sub": 5}, "UNKNOWN_SUBSCRIPTION", "5"),
        ({"op": "transaction", "publishes": [{"channel": "s.b", "at": 1}]}, "MALFORMED_FRAME", "`at`"),
        ({"op": "ask", "channel": "a.b"}, "MALFORMED_FRAME", "`id`"),
        ({"op": "answer", "to": "x"}, "MALFORMED_FRAME", "`to`"),
        ({"op": "request", "what": "task", "task": {}}, "UNKNOWN_OPERATION", "task"),
    ],
)
async def test_a_mistake_refuses_one_operation(server: Server, members: dict[str, Any], name: str, said: str) -> None:
    async with greeted(server) as one:
        told = await one.asks(**members)
        assert (told["op"], told["name"]) == ("error", name), told
        assert "refused" in told
        assert said in told["detail"]
        assert await one.asks(op="ping", id=1) == {"op": "pong", "id": 1}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "MALFORMED_FRAME"),
        ("[]", "MALFORMED_FRAME"),
        ('{"op":"ping","op":"ping"}', "MALFORMED_FRAME"),
        ('{"op":"publish","json":NaN}', "MALFORMED_FRAME"),
        ('{"op":"publish","json":1e999}', "MALFORMED_FRAME"),
        ('{"op":"publish","json":%s}' % ("9" * 5_000), "MALFORMED_FRAME"),
        ('{"a":' * 17 + "1" + "}" * 17, "MALFORMED_FRAME"),
        ("[" * 100_000, "MALFORMED_FRAME"),
        ('{"a":[' + ",".join(["1"] * 1_025) + "]}", "MALFORMED_FRAME"),
        ("{" + " " * 3_000_000, "FRAME_TOO_LARGE"),
        ('{"op":"hello"}', "BAD_STATE"),
    ],
)
async def test_what_is_no_message_ends_the_connection(server: Server, text: str, name: str) -> None:
    async with greeted(server) as one:
        await one.socket.send(text)
        if name != "FRAME_TOO_LARGE":
            told = await one.hear()
            assert (told["op"], told["name"], "refused" in told) == ("error", name, False)
        with pytest.raises(websockets.ConnectionClosed):
            await one.hear()
        assert one.socket.close_code == {"FRAME_TOO_LARGE": 1009}.get(name, one.socket.close_code)
        if name != "FRAME_TOO_LARGE":
            assert one.socket.close_reason == name


async def test_text_that_is_no_utf8_and_bytes_close_as_websockets_say(server: Server) -> None:
    for payload, code in ((b"\xff", 1003), ("\ud800".encode("utf-8", "surrogatepass"), 1007)):
        async with talk(server) as one:
            if code == 1003:
                await one.socket.send(payload)
            else:
                await one.socket.send(payload, text=True)
            with pytest.raises(websockets.ConnectionClosed):
                await one.hear()
            assert one.socket.close_code == code


async def test_a_text_in_parts_is_one(server: Server) -> None:
    async with greeted(server) as one:
        await one.socket.send(['{"op":"pi', 'ng","i', 'd":"ä"}'])
        assert await one.hear() == {"op": "pong", "id": "ä"}


async def test_a_burst_is_answered_in_order(server: Server) -> None:
    """More than a turn takes, to many channels, in one write."""
    count = 500
    async with greeted(server) as one:
        for number in range(count):
            await one.socket.send(
                json.dumps(
                    {"op": "publish", "id": number, "channel": f"s.json.burst.{number % 50}", "text": str(number)}
                )
            )
        ids = [(await one.hear())["id"] for _ in range(count)]
        assert sorted(ids) == list(range(count))
        page = await one.asks(op="request", id="p", what="history", channel="s.json.burst.7")
        texts = [each["text"] for chunk in page["chunks"] for each in chunk["messages"]]
        assert texts == [str(number) for number in range(7, count, 50)]


NODE = shutil.which("node")
NODE_MAIN = """
setTimeout(() => process.exit(1), 10000);
const log = console.log;
let seen = 0;
console.log = (...what) => { log(...what); if (++seen == 2) process.exit(0); };
"""


def test_the_lines_of_the_specification_run_in_node(server: Server) -> None:
    """The plain JavaScript that it begins with, as it stands there, but for the port."""
    assert NODE is not None, "node is needed: apt install nodejs"
    found = re.search(r"```js\n(.*?)```", SPECIFICATION.read_text(), re.DOTALL)
    assert found is not None
    program = NODE_MAIN + found[1].replace("127.0.0.1:4780", server.web).replace("chat.room", "s.json.node")
    ran = subprocess.run(
        [NODE, "--no-warnings", "--experimental-websocket", "-e", program],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    lines = sorted(ran.stdout.splitlines())
    assert ran.returncode == 0, ran
    assert lines[0] == "s.json.node 1 hello"
    assert re.fullmatch(r"stored as \d+:1", lines[1])
