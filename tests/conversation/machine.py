"""Whole conversations against a model: what Hypothesis does, and what must come back.

The broker is real from the session down to the sequencer (`tests/fuzz/stepped.py`); the loop, the commit thread and the
clock do one thing at a time. After each step everything that arrived is compared with the model. At the end the same
bytes go to another broker in other pieces, and everything that it sends must be the same.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from broker.wire import control
from broker.wire.kinds import Kind
from tests.conversation.client import Client, Reader
from tests.conversation.model import ACCEPTED, EPHEMERAL, LEVELS, Broker, Line
from tests.fuzz.stepped import Peer, SteppedNode
from tests.reference.frames import PUBLISH, Record, build_frame, build_record, publish_body
from tests.reference.journal import Fate

if TYPE_CHECKING:
    from collections.abc import Callable

PRODUCERS = [None, b"p" * 16, b"q" * 16]
NAMES = list(LEVELS)
PLENTY = 1 << 30
CLIENTS_MAX = 3

JUNK = [b"\0\0\0\0\x63\0\0\0", b"\xff\xff\xff\xff\x10\0\0\0", b"\0\0\0\0\x04\0\1\0"]
"""A kind that no client sends, a size that is over the limit, reserved bits."""

Step = tuple[Any, ...]

clients = st.integers(0, CLIENTS_MAX - 1)
names = st.sampled_from(NAMES)
counts = st.integers(1, 3)


class Stage:
    """A broker and the steps that it was put through: the same again, in other pieces.

    Args:
        cut: Splits the bytes of a step.
    """

    def __init__(self, cut: Callable[[bytes], list[bytes]]) -> None:
        self.cut = cut
        self.node = SteppedNode()
        self.ends: dict[int, tuple[Any, Peer]] = {}
        self.sent: dict[int, bytes] = {}

    def do(self, step: Step) -> None:
        """Do one step, and let the loop come to rest."""
        match step:
            case ("connect", int(client)):
                self.ends[client] = self.node.connect()
            case ("send", int(client), bytes(data)):
                for piece in self.cut(data):
                    self.ends[client][0].feed(piece)
            case ("leave", int(client)):
                self.ends.pop(client)[0].stopped()
            case ("commit", Fate() as fate):
                self.node.settle()
                self.node.commit(fate)
                if fate is not Fate.STORED:
                    # The fence behind a failure.
                    self.node.commit()
            case ("wait", int(us)):
                self.node.wait(us)
                # Time has passed without a turn: the first bytes after it would end one at once.
                self.node.node.end_turn()
            case _:
                raise AssertionError(step)
        self.node.settle()
        for client, (_, peer) in self.ends.items():
            self.sent[client] = self.sent.get(client, b"") + peer.take()

    def end(self) -> None:
        for session, _ in self.ends.values():
            session.stopped()
        self.node.node.fanout.close()


class Conversations(RuleBasedStateMachine):
    """The rules. Each is a step that a peer, the disk or time can take."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(lambda data: [data])
        self.steps: list[Step] = []
        self.heard: dict[int, int] = {}
        self.broker = Broker()
        self.clients: dict[int, Client] = {}
        self.made = 0
        self.seed = 0
        self.known: dict[bytes, Line] = {}
        """Lines that have had a publisher: who says HELLO on one takes it from who has it."""

    @initialize(seed=st.integers(0, 2**16), producer=st.sampled_from(PRODUCERS))
    def begin(self, seed: int, producer: bytes | None) -> None:
        """Choose the pieces of the second time, and have somebody who talks."""
        self.seed = seed
        self.connect_as(producer)

    # -- steps --

    def do(self, *step: Any) -> None:
        self.steps.append(step)
        self.stage.do(step)

    def send(self, client: Client, data: bytes) -> None:
        self.do("send", client.number, data)
        self.settle()

    def settle(self) -> None:
        """Compare, for everybody."""
        self.broker.close()
        for client in list(self.clients.values()):
            whole = self.stage.sent.get(client.number, b"")
            fresh = whole[self.heard.get(client.number, 0) :]
            self.heard[client.number] = len(whole)
            client.hear(self.broker, fresh)
            if client.closed:
                assert self.stage.ends[client.number][1].closed, "the server has said farewell and stays"
                self.drop(client)

    def drop(self, client: Client) -> None:
        self.do("leave", client.number)
        del self.clients[client.number]
        self.broker.forget(client.number)

    def client(self, number: int) -> Client | None:
        """A client that talks, if there is one."""
        open_ = [client for client in self.clients.values() if client.opened]
        return open_[number % len(open_)] if open_ else None

    def payloads(self, count: int) -> list[bytes]:
        self.made += count
        return [b"%d" % (self.made - index) for index in range(count)]

    # -- connections --

    @precondition(lambda self: len(self.clients) < CLIENTS_MAX)
    @rule(producer=st.sampled_from(PRODUCERS))
    def connect(self, producer: bytes | None) -> None:
        self.connect_as(producer)

    def connect_as(self, producer: bytes | None) -> None:
        number = max(self.heard, default=-1) + 1
        self.heard[number] = 0
        line = Line(False) if producer is None else self.broker.lines.setdefault(producer, Line(True))
        client = self.clients[number] = Client(number, producer, line)
        self.do("connect", number)
        client.opened = True
        client.expected.append((Kind.WELCOME, line.next - 1))
        if producer in self.known:
            self.take_line(client)
        self.send(client, control.encode_hello("model", producer))

    def take_line(self, taker: Client) -> None:
        """A line has one connection."""
        for other in self.clients.values():
            if other is not taker and other.line is taker.line and other.publishes:
                other.closed = True
                other.opened = False
                other.expected.append((Kind.ERROR, ("PRODUCER_TAKEN", None, None, None)))

    @rule(number=clients)
    def disconnect(self, number: int) -> None:
        client = self.client(number)
        if client is not None:
            self.drop(client)
            self.settle()

    @rule(
        number=clients,
        junk=st.sampled_from([b"\0\0\0\0\x63\0\0\0", b"\xff\xff\xff\xff\x10\0\0\0", b"\0\0\0\0\x04\0\1\0"]),
    )
    def talk_nonsense(self, number: int, junk: bytes) -> None:
        client = self.client(number)
        if client is not None:
            name = "FRAME_TOO_LARGE" if junk[0] else "MALFORMED_FRAME"
            client.expected.append((Kind.ERROR, (name, None, None, None)))
            client.closed, client.opened = True, False
            self.send(client, junk)

    # -- publishing --

    def slot(self, client: Client, name: bytes) -> tuple[int, bytes]:
        """The number of a channel, and the frame that names it if it has none."""
        if name in client.slots:
            return client.slots.index(name), b""
        client.slots.append(name)
        if not client.publishes:
            self.take_line(client)
            client.publishes = True
            if client.producer is not None:
                self.known[client.producer] = client.line
        return len(client.slots) - 1, control.encode_channel(len(client.slots) - 1, name)

    def publish_frame(self, client: Client, name: bytes, number: int, payloads: list[bytes], **wrong: int) -> bytes:
        slot, naming = self.slot(client, name)
        records = [build_record(Record(payload), **wrong) for payload in payloads]
        return naming + build_frame(PUBLISH, publish_body(slot, number, records))

    @rule(number=clients, sizes=st.lists(st.tuples(names, counts), min_size=1, max_size=4))
    def publish(self, number: int, sizes: list[tuple[bytes, int]]) -> None:
        client = self.client(number)
        if client is None:
            return
        data = b""
        for name, count in sizes:
            payloads = self.payloads(count)
            data += self.publish_frame(client, name, client.line.next, payloads)
            self.broker.publish(client.number, client.line, name, payloads)
        self.send(client, data)

    @rule(number=clients, name=names, back=st.integers(1, 6), count=counts)
    def publish_again(self, number: int, name: bytes, back: int, count: int) -> None:
        client = self.client(number)
        if client is None or client.line.next == 1:
            return
        first = max(1, client.line.next - back)
        count = min(count, client.line.next - first)
        data = self.publish_frame(client, name, first, [b"again"] * count)
        self.broker.repeat(client.number, client.line, LEVELS[name], first, count)
        self.send(client, data)

    @rule(number=clients, name=names, wrong=st.sampled_from(["gap", "overlap", "record", "channel"]))
    def publish_wrongly(self, number: int, name: bytes, wrong: str) -> None:
        client = self.client(number)
        if client is None:
            return
        following = client.line.next
        if wrong == "gap":
            data, refused = self.publish_frame(client, name, following + 2, [b"1"]), [(following + 2, "NUMBER_GAP")]
        elif wrong == "overlap" and following > 1:
            data = self.publish_frame(client, name, following - 1, [b"1", b"2"])
            refused = [(following - 1, "NUMBER_OVERLAP"), (following, "NUMBER_OVERLAP")]
        elif wrong == "record":
            data = self.publish_frame(client, name, following, [b"1"], reserved=1)
            refused = [(following, "INVALID_RECORD")]
        else:
            body = publish_body(9, following, [build_record(Record(b"1"))])
            data, refused = build_frame(PUBLISH, body), [(following, "INVALID_CHANNEL")]
        self.broker.tell(client.number, *((at, code, 0, 0) for at, code in refused))
        self.send(client, data)

    # -- the disk and time --

    @precondition(lambda self: self.broker.closed is not None)
    @rule()
    def commit_comes_about(self) -> None:
        self.broker.commit()
        self.do("commit", Fate.STORED)
        self.settle()

    @precondition(lambda self: self.broker.closed is not None)
    @rule(fate=st.sampled_from([Fate.LOST, Fate.SURVIVES, Fate.REFUSED]))
    def commit_fails(self, fate: Fate) -> None:
        for client in self.clients.values():
            for reader in client.readers.values():
                for name in reader.names:
                    # What was seen early is gone, and so the reader goes back with the channel.
                    channel = self.broker.channels[name]
                    if channel.level == ACCEPTED:
                        reader.after[name] = min(reader.after[name], len(channel.committed))
        self.broker.fail(handed_over=fate is not Fate.REFUSED)
        self.do("commit", fate)
        self.settle()

    @rule(us=st.sampled_from([1, 500, 900]))
    def time_passes(self, us: int) -> None:
        self.do("wait", us)
        self.settle()

    # -- subscriptions --

    @rule(
        number=clients,
        subscription=st.integers(1, 2),
        wanted=st.lists(names, min_size=1, max_size=3, unique=True),
        start=st.sampled_from(["new", "start", "last", "position", "time", "pattern", "pattern start"]),
        back=st.integers(0, 3),
        granted=st.booleans(),
    )
    def subscribe(
        self, number: int, subscription: int, wanted: list[bytes], start: str, back: int, granted: bool
    ) -> None:
        client = self.client(number)
        if client is None:
            return
        if subscription in client.readers:
            client.expected.append((Kind.ERROR, ("SUBSCRIPTION_IN_USE", subscription, None, None)))
            request = control.Subscribe(subscription, ("s.x",), 1)
        else:
            request = self.admit(client, subscription, wanted, start, back, granted)
        self.send(client, control.encode_subscribe(request))

    def admit(
        self, client: Client, subscription: int, wanted: list[bytes], start: str, back: int, granted: bool
    ) -> control.Subscribe:
        """Predict a subscription that is good: where it starts, and what it is told."""
        channels = [self.broker.channels[name] for name in wanted]
        outcomes: list[tuple[str, str, int]] = []
        after: dict[bytes, int] = {}
        how: control.Start = control.FromNew()
        filters = tuple(name.decode() for name in wanted)
        # A reader by bus position begins behind what is committed, so it gets again what others have seen early.
        committed = {channel.name: len(channel.committed) for channel in self.broker.channels.values()}
        if start.startswith("pattern"):
            wanted, filters = NAMES, ("*.x",)
            after = dict(committed)
            if start == "pattern start":
                how, after = control.FromStart(), {name: after[name] if self.is_live(name) else 0 for name in wanted}
        elif start == "time":
            how, after = control.FromTime(0), {name: committed[name] if self.is_live(name) else 0 for name in wanted}
            outcomes = [("", "resumed", 0)]
        else:
            if start == "start":
                how = control.FromStart()
            elif start == "last":
                how = control.FromLast(back)
            elif start == "position":
                placed = [
                    channel for channel in channels if channel.epoch is not None and not self.is_live(channel.name)
                ]
                at = {channel.name: max(0, channel.head - back) for channel in placed}
                how = control.FromPositions(tuple((c.name.decode(), c.epoch or 0, at[c.name]) for c in placed))
            for channel in channels:
                outcome, told, begins = "new", channel.head, channel.head
                if start == "start" and not self.is_live(channel.name):
                    outcome, told, begins = "resumed", 0, 0
                elif start == "last" and not self.is_live(channel.name):
                    outcome, told, begins = "resumed", max(0, channel.head - back), max(0, channel.head - back)
                elif start == "position" and channel in placed:
                    outcome, told, begins = "resumed", at[channel.name], at[channel.name]
                outcomes.append((channel.name.decode(), outcome, told))
                after[channel.name] = begins
        by_bus = start == "time" or start.startswith("pattern")
        client.readers[subscription] = Reader(wanted, after, granted, late=by_bus and not granted)
        client.expected.append((Kind.SUBSCRIBED, (subscription, tuple(outcomes))))
        return control.Subscribe(subscription, filters, PLENTY if granted else 0, how)

    @staticmethod
    def is_live(name: bytes) -> bool:
        """Whether a channel is never read back."""
        return LEVELS[name] == EPHEMERAL

    @rule(number=clients, subscription=st.integers(1, 2))
    def grant(self, number: int, subscription: int) -> None:
        client = self.client(number)
        if client is not None:
            if subscription in client.readers:
                client.readers[subscription].granted = True
            self.send(client, control.encode_credit(subscription, PLENTY))

    @rule(number=clients, subscription=st.integers(1, 2))
    def unsubscribe(self, number: int, subscription: int) -> None:
        client = self.client(number)
        if client is None:
            return
        if client.readers.pop(subscription, None) is not None:
            client.expected.append((Kind.UNSUBSCRIBED, subscription))
        else:
            client.expected.append((Kind.ERROR, ("UNKNOWN_SUBSCRIPTION", subscription, None, None)))
        self.send(client, control.encode_unsubscribe(subscription))

    # -- the rest --

    @rule(number=clients, token=st.sampled_from([0, 7, 2**64 - 1]), name=st.sampled_from([*NAMES, b"no.such"]))
    def ask(self, number: int, token: int, name: bytes) -> None:
        client = self.client(number)
        if client is None:
            return
        client.expected.append((Kind.PONG, token))
        if name in LEVELS:
            channel = self.broker.channels[name]
            client.expected.append((Kind.REPLY, (token % 9, 1, channel.head, channel.level)))
        else:
            client.expected.append((Kind.ERROR, ("NO_PROFILE", None, token % 9, None)))
        client.expected.append((Kind.ERROR, ("UNKNOWN_OPERATION", None, 8, None)))
        self.send(
            client,
            control.encode_ping(token)
            + control.encode_request(token % 9, "channel", {"name": name.decode()})
            + control.encode_request(8, "dance"),
        )

    # -- the end --

    def teardown(self) -> None:
        """The same bytes in other pieces: every byte that is sent is the same."""
        self.stage.end()
        random = Random(self.seed)
        again = Stage(lambda data: pieces(random, data))
        for step in self.steps:
            again.do(step)
        again.end()
        assert again.sent == self.stage.sent, "the same bytes in other pieces were answered otherwise"


def pieces(random: Random, data: bytes) -> list[bytes]:
    """Cut bytes: one by one, once, or anywhere."""
    style = random.randrange(4)
    if style == 0:
        return [data[at : at + 1] for at in range(len(data))]
    ends = sorted({random.randrange(len(data) + 1) for _ in range(1 if style == 1 else 6)} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]
