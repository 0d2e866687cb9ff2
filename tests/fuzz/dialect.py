"""Whole conversations in the JSON dialect: texts, one a line, over the product's session and a node that is stepped.

Whatever is sent, each answer is a JSON object of a known kind, an error without `refused` is the last word of a
connection and never comes else, and nothing is left behind.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from broker.access.gate import Identity
from tests.fuzz import seeds
from tests.fuzz.decoders import PLAN_BYTES
from tests.fuzz.stepped import Peer, SteppedNode
from tests.reference.journal import Fate
from tests.reference.json_text import texts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.decoders import Seen

ANSWERS = frozenset(["welcome", "token", "published", "acked", "reply", "answer", "pong", "error"])
TOLD = frozenset(["subscribed", "unsubscribed", "deliver", "jobs", "event", "going_away"])
PING = b"\x89\x00"


def conversation(seen: Seen) -> Callable[[memoryview], None]:
    """A conversation, from the first text on. The plan's state says what becomes of commits, and of time."""
    # Not before it is asked for: it takes the packages of the web listener.
    from broker.edge.web.dialect import Dialect
    from broker_native.json_chunks import Renderer

    def connect(broker: SteppedNode) -> tuple[Any, Peer]:
        node, peer = broker.node, Peer()
        renderer = Renderer(node.fanout, node.core.journal, node.name_of)
        web: Any = SimpleNamespace(node=node, renderer=renderer, listener=SimpleNamespace(greeting={}))
        session = Dialect(web, Identity(peer="test"))
        transport: Any = peer
        session.open(transport, shares=False)
        return session, peer

    def execute(data: memoryview) -> None:
        state = data[5]
        broker = SteppedNode()
        session, peer = connect(broker)
        for index, text in enumerate(bytes(data[PLAN_BYTES:]).split(b"\n")):
            try:
                text.decode()
            except UnicodeDecodeError:
                continue
            session.text(text)
            if state & 1 or index % 4 == 0:
                broker.settle()
        broker.settle()
        broker.commit(Fate.LOST if state & 4 else Fate.REFUSED if state & 8 else Fate.STORED)
        if state & 16:
            broker.wait(60_000_000)
        broker.commit_all()
        judge(seen, peer.take(), session.closed)
        if session.closed and not peer.closed:
            raise AssertionError("the conversation is over, and its transport stays open")
        session.stopped()
        broker.commit_all()
        if broker.node.connections:
            raise AssertionError("a connection is left behind")
        broker.node.fanout.close()

    return execute


def judge(seen: Seen, answers: bytes, closed: bool) -> None:
    """What the server says is as the dialect says."""
    farewells = 0
    for text in texts_of(answers.replace(PING, b"")):
        message = json.loads(text)
        if message["op"] not in ANSWERS | TOLD:
            raise AssertionError(f"got {text!r}")
        seen.text("json", *message)
        if message["op"] == "error":
            farewells += "refused" not in message
            seen.text(message["name"], message["detail"])
    if farewells != closed:
        raise AssertionError(f"the conversation is {'' if closed else 'not '}over, and {farewells} errors say so")


def seeds_of_texts() -> list[bytes]:
    """Conversations of every operation."""
    said: list[list[dict[str, Any]]] = [
        [
            {"op": "hello", "name": "me", "producer": "00" * 16},
            {"op": "subscribe", "sub": 1, "filters": ["a.x", "a.>"], "from": "all"},
            {"op": "publish", "id": 1, "channel": "a.x", "text": "x", "key": "k", "headers": {"a": [1, {"b": None}]}},
            {"op": "publish", "id": "two", "channel": "s.x", "messages": [{"base64": "AAE="}, {"json": {"a": 1.5}}]},
            {"op": "publish", "id": 3, "number": 4, "channel": "e.x", "message_id": "m", "priority": 0, "expires_s": 9},
            {"op": "unsubscribe", "sub": 1},
        ],
        [
            {"op": "subscribe", "sub": 1, "filters": ["s.x"], "from": {"after": {"s.x": "1:1"}}, "credit": 9},
            {"op": "credit", "sub": 1, "bytes": "100"},
            {"op": "publish", "id": 1, "channel": "s.x", "text": "x", "expect": "0:0"},
            {"op": "publish", "id": 2, "channel": "s.x", "text": "y", "message_id": "m", "delay_ms": 5},
            {"op": "transaction", "id": 3, "publishes": [{"channel": "s.x", "text": "1"}, {"channel": "s.y"}]},
            {"op": "ping", "id": 4},
            {"op": "token", "id": 5, "token": "t"},
        ],
        [
            {"op": "request", "id": 1, "what": "consumer_set", "name": "work", "filters": ["s.x"], "start": "new"},
            {"op": "subscribe", "sub": 2, "consumer": {"name": "work", "window": 4, "bytes": 1000}},
            {"op": "publish", "channel": "s.x", "messages": [{"text": "1"}, {"text": "2"}]},
            {"op": "ack", "id": 2, "sub": 2, "lease": "1", "count": 2, "verb": "nack", "ms": 1},
            {"op": "ack", "id": 3, "sub": 2, "entries": [{"lease": 1, "verb": "through"}]},
            {"op": "request", "id": 4, "what": "consumer_done", "name": "work", "done": []},
        ],
        [
            {"op": "subscribe", "sub": 1, "filters": ["e.x"], "group": "g"},
            {"op": "ask", "id": 1, "channel": "e.x", "text": "?"},
            {"op": "answer", "to": "$reply.00000000000000000000000000000000.1", "text": "!"},
            {"op": "ask", "id": 1, "cancel": True},
            *({"op": "request", "id": what, "what": what} for what in ("stats", "channels", "delayed", "lagging")),
            {"op": "request", "id": 9, "what": "history", "channel": "s.x", "last": 5, "reverse": True},
            {"op": "request", "id": 9, "what": "history", "pattern": ">", "bus": "00" * 16 + ":1:2"},
        ],
    ]
    return [
        seeds.plan(seed=index, state=state) + b"\n".join(json.dumps(message).encode() for message in messages)
        for index, messages in enumerate(said)
        for state in (0, 1, 5, 9, 17)
    ]
