"""Messages for later, in lives with crashes, failing commits and long waits, against a plain account of what is due."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.model.limits import Limits
from broker.wire import control
from broker.wire.kinds import Kind
from tests.golden.conversations import delayed
from tests.golden.stage import Stage
from tests.reference.frames import Record
from tests.reference.groups import CHANNEL, parse_group, payloads_of
from tests.reference.journal import Fate

S = 1_000_000
TIMER_US = 1_000
FROM_NOW = 1 << 63
PUBLISHED = struct.Struct("<QQQIIBB6x")
DELAYS_S = [0.0, 0.2, 1.0, 1.9, 30.0, 63.0, 64.0, 65.0, 127.0, 128.0, 129.0, 4_000.0, 4_200.0, 9_000.0, 300_000.0]
LIMITS = Limits(ping_interval_s=3_600, ping_timeout_s=10_800)

STEP = st.one_of(
    st.tuples(st.just("schedule"), st.sampled_from(DELAYS_S), st.integers(0, 1)),
    st.tuples(st.just("schedule"), st.sampled_from(DELAYS_S), st.integers(0, 1)),
    st.tuples(st.just("again"), st.integers(0, 30), st.sampled_from(DELAYS_S)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 0.9, 2.0, 40.0, 130.0])),
    st.tuples(st.just("away"), st.sampled_from([0.5, 3.0, 100.0, 5_000.0, 20_000.0])),
    st.tuples(st.just("crash")),
    st.tuples(st.just("fail"), st.sampled_from([Fate.REFUSED, Fate.LOST, Fate.SURVIVES]), st.sampled_from(DELAYS_S)),
)


class Life:
    """A broker, one client, and what is due by the client's account.

    Attributes:
        waiting: (channel, id) to time and payload.
        due: What has to be published, once.
        either: What a failed commit leaves open until the next answer.
    """

    def __init__(self) -> None:
        self.stage = Stage(limits=LIMITS)
        self.waiting: dict[tuple[int, bytes], tuple[int, bytes]] = {}
        self.due: list[tuple[int, int, bytes]] = []
        self.ids: list[tuple[int, bytes]] = []
        self.connections = 0
        self.requests = 0
        self.connect()

    def connect(self) -> None:
        self.connections += 1
        self.name = f"c{self.connections}"
        self.number = 1
        self.stage.connect(self.name)
        self.say(control.encode_hello("test", None, None))
        self.say(control.encode_channel(0, b"s.0") + control.encode_channel(1, b"s.1"))

    def say(self, data: bytes) -> list[tuple[int, bytes]]:
        """Send frames; return what comes back, as (kind, body)."""
        self.stage.feed(self.name, data)
        self.stage.settle()
        return self.heard()

    def heard(self) -> list[tuple[int, bytes]]:
        received = self.stage.clients[self.name].take()
        frames = []
        while received:
            (size,) = struct.unpack_from("<I", received)
            if received[4] != Kind.PING:
                frames.append((received[4], received[8 : 8 + size]))
            received = received[8 + size :]
        return frames

    def schedule(self, delay_s: float, channel: int) -> None:
        id = b"%d" % len(self.ids)
        self.ids.append((channel, id))
        self.ask(channel, id, delay_s)

    def again(self, which: int, delay_s: float) -> None:
        """The id of one that waits, or has waited."""
        if self.ids:
            self.ask(*self.ids[which % len(self.ids)], delay_s)

    def ask(self, channel: int, id: bytes, delay_s: float) -> None:
        self.pass_due()
        payload = b"%d" % (len(self.due) * 1_000_000 + self.number)
        us = round(delay_s * S)
        frame = delayed(channel, self.number, FROM_NOW | us, Record(payload, id=id))
        [(kind, body)] = self.say(frame)
        assert kind == Kind.PUBLISHED
        _, _, due_us, count, _, level, flags = PUBLISHED.unpack(body)
        self.number += 1
        assert (count, level) == (1, 3)
        before = self.waiting.get((channel, id))
        if before is not None:
            assert (due_us, flags) == (before[0], 3)
        else:
            assert flags == 2
            assert due_us == self.stage.now_us + us
            self.waiting[channel, id] = (due_us, payload)

    def cancel(self, which: int) -> None:
        if not self.ids:
            return
        self.pass_due()
        channel, id = self.ids[which % len(self.ids)]
        self.requests += 1
        request = control.encode_request(self.requests, "delayed_cancel", {"channel": f"s.{channel}", "id": id})
        [(kind, _)] = self.say(request)
        assert kind == (Kind.REPLY if (channel, id) in self.waiting else Kind.ERROR)
        self.waiting.pop((channel, id), None)

    def wait(self, seconds: float) -> None:
        self.stage.wait(round(seconds * S))
        self.stage.wait(100_000)
        self.pass_due()
        # What became due in the last step may be waiting for a timer of a millisecond.
        while self.due and self.stage.now_us - max(self.due)[0] <= TIMER_US:
            self.stage.wait(TIMER_US)
            self.pass_due()
        self.check()

    def pass_due(self) -> None:
        """What is due by now is published, or will be."""
        for key, (due_us, payload) in sorted(self.waiting.items(), key=lambda item: item[1]):
            if due_us <= self.stage.now_us:
                del self.waiting[key]
                self.due.append((due_us, key[0], payload))

    def crash(self) -> None:
        self.stage.crash()
        self.connect()
        self.stage.settle()

    def away(self, seconds: float) -> None:
        """The broker is gone for a while."""
        self.stage.clients[self.name].closed = True
        self.stage.now_us += round(seconds * S)
        self.crash()
        self.wait(3.0)

    def fail(self, fate: Fate, delay_s: float) -> None:
        """A commit fails with what is due at this moment, and with a message that is scheduled."""
        self.wait(0.1)
        self.stage.hold()
        channel, id = 0, b"f%d" % self.number
        frame = delayed(channel, self.number, FROM_NOW | round(delay_s * S), Record(b"lost", id=id))
        assert self.say(frame) == []
        self.stage.fail(fate)
        self.stage.release()
        self.stage.wait(100_000)
        [(kind, _)] = self.heard()
        assert kind == Kind.ERROR
        if fate is not Fate.REFUSED:
            self.crash()
        # It was not taken: its id is free.
        self.ids.append((channel, id))
        self.wait(1.0)

    def published(self) -> list[tuple[int, bytes]]:
        """Everything that is stored in the two channels, in the order of the bus."""
        names: dict[int, bytes] = {}
        found = []
        for value in self.stage.journal.good:
            group = parse_group(value)
            for entry in group.entries:
                if entry.kind == CHANNEL:
                    (channel,) = struct.unpack_from("<Q", entry.body)
                    names[channel] = entry.body[12 : 12 + entry.body[10]]
            for chunk in group.chunks:
                name = names[chunk.channel]
                if name.startswith(b"s."):
                    # Behind its id, which is the one field that they have.
                    found += [(int(name[2:]), rest[1 + rest[0] :]) for rest in payloads_of(chunk)]
        return found

    def check(self) -> None:
        """What was due for a tenth of a second is published, once; nothing else is."""
        published = self.published()
        assert sorted(published) == sorted((channel, payload) for _, channel, payload in self.due)
        assert self.stage.node.delayed.wheel.waiting.count == len(self.waiting)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_each_message_is_published_once_whatever_happens(steps: list[tuple[object, ...]]) -> None:
    life = Life()
    for name, *arguments in steps:
        getattr(life, str(name))(*arguments)
    life.wait(2.0)
    life.away(400_000.0)
    life.wait(70.0)
    assert life.waiting == {}
