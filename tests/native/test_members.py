"""The members of a consumer: what connections say and are told, against the plain-Python twin.

Both are driven by the same steps: jobs come, members say the bytes of ACK frames, a turn ends, a group closes and is
committed. After each step every member has been sent the same bytes, and Python was asked about the same ACKs.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.fanout import Fanout, Outbox
from broker_native.intake import Clock, Intake, ReadBuffer
from broker_native.jobs import Jobs
from broker_native.members import Rotation, RotationMember, tell_all
from broker_native.tails import Tails
from tests.native.plain_jobs import JOBS, PlainJobs
from tests.native.test_jobs import Granted, chunk_of, deliver
from tests.reference.frames import Record, build_frame, frames_of
from tests.reference.members import PlainMember, PlainRotation

ACK, NACK = 1, 2
ACK_KIND, ACKED_KIND = 19, 22
FIRST_LEASE = 1 << 40
NOW_US = 1_000_000
WINDOW, BYTES_MAX = 3, 400

Entry = tuple[int, int, int, int]


class Turn(Rotation):
    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.touches = 0

    def touch(self) -> None:
        self.touched = True
        self.touches += 1


class Transport:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def writelines(self, pieces: list[Any]) -> None:
        self.sent += pieces

    def take(self) -> bytes:
        sent, self.sent = b"".join(map(bytes, self.sent)), []
        return sent


class Connection(Intake):
    """A connection with one member, and what Python was asked of its ACKs."""

    def __init__(self, house: House, number: int) -> None:
        super().__init__(house.fanout, house.buffer, house.clock, 1 << 20)
        self.house = house
        self.asked: list[bytes] = []
        self.reads = 0
        self.outbox.transport = self.transport = Transport()
        self.member = RotationMember(self.outbox, 1, WINDOW, BYTES_MAX)
        self.member.number = number
        self.member.jobs = house.jobs
        self.members = {1: self.member}

    def on_read(self) -> None:
        self.reads += 1

    def on_frame(self, kind: int, flags: int, body: bytes) -> None:
        raise AssertionError(f"frame {kind}")

    def on_ack(self, body: bytes) -> None:
        self.asked.append(body)
        self.house.say(self.member, body)


class House:
    """A consumer and its twin, with a few members of each."""

    def __init__(self, members: int = 3) -> None:
        self.fanout = Fanout(Tails(1, 4770))
        self.buffer = ReadBuffer(1 << 16)
        self.clock = Clock(manual=True)
        options: dict[str, Any] = {"first_lease": FIRST_LEASE, "seed": 1}
        self.turn, self.twin = Turn(Jobs(**options)), PlainRotation(PlainJobs(**options))
        self.connections: list[Connection] = []
        self.plain: list[PlainMember] = []
        self.held: list[list[int]] = []
        self.published = 0
        self.said: list[tuple[list[tuple[RotationMember, int]], list[tuple[PlainMember, int]]]] = []
        self.later: tuple[list[RotationMember], list[PlainMember]] = ([], [])
        for _ in range(members):
            self.join()

    @property
    def jobs(self) -> Jobs:
        assert self.turn.jobs is not None
        return self.turn.jobs

    def join(self) -> None:
        number = len(self.connections) + 1
        for jobs in (self.jobs, self.twin.jobs):
            jobs.join(number, 1, WINDOW, BYTES_MAX)
        self.connections.append(Connection(self, number))
        self.plain.append(PlainMember(number, WINDOW, BYTES_MAX))
        self.held.append([])
        self.turn.enter(self.connections[-1].member)
        self.twin.wait(self.plain[-1])

    def leave(self, at: int) -> None:
        member, plain = self.connections[at].member, self.plain[at]
        if member.gone:
            return
        member.tell_owed()
        member.gone = True
        member.jobs = None
        self.turn.leave_turns(member)
        self.twin.leave(plain)
        assert self.jobs.leave(member.number) == self.twin.jobs.leave(plain.number)
        self.held[at].clear()
        self.look()

    def publish(self, sizes: list[int]) -> None:
        frame = deliver(chunk_of([Record(bytes(size)) for size in sizes], self.published + 1), self.published + 1)
        self.published += len(sizes)
        for jobs in (self.jobs, self.twin.jobs):
            jobs.take(frame)

    def give(self) -> None:
        self.turn.touched = False
        self.turn.give(NOW_US)
        assert self.turn.served == self.twin.give(NOW_US)
        self.look()

    def say(self, member: RotationMember, body: bytes) -> None:
        """What Python does with an ACK."""
        self.jobs.settle(member.number, body, NOW_US)
        member.acks += 1
        self.turn.note_said(member)

    def ack(self, at: int, entries: list[Entry], *, number: int | None = None) -> None:
        """Have a member say something; Python must be asked unless all of it is under way, each job once."""
        connection, plain = self.connections[at], self.plain[at]
        if plain.gone:
            return
        body = struct.pack("<IIQ", 1, len(entries), plain.acks + 1 if number is None else number)
        body += b"".join(struct.pack("<QIB3xQ", *entry) for entry in entries)
        leases = [lease for first, count, _, _ in entries for lease in range(first, first + count)]
        simple = (
            bool(leases)
            and leases == sorted(set(leases))
            and set(leases) <= set(self.held[at])
            and all(verb == ACK and count and not ms for _, count, verb, ms in entries)
        )
        connection.asked.clear()
        connection.feed(build_frame(ACK_KIND, body))
        assert connection.asked == ([] if simple else [body])
        self.twin.jobs.settle(plain.number, body, NOW_US)
        plain.acks += 1
        self.twin.note_said(plain)
        said = {lease for first, count, _, _ in entries for lease in range(first, first + count)}
        self.held[at] = [lease for lease in self.held[at] if lease not in said]

    def close_group(self) -> None:
        self.said.append((self.turn.take_said(), self.twin.take_said()))
        assert not self.turn.unanswered

    def commit(self) -> None:
        if self.said:
            native, twin = self.said.pop(0)
            mine, its = self.turn.confirm(native), self.twin.confirm(twin)
            self.later = self.later[0] + mine, self.later[1] + its
            self.look()

    def tell(self) -> None:
        native, twin = self.later
        told = any(plain.owed and not plain.gone for plain in twin)
        assert tell_all(native) == told
        for plain in twin:
            if not plain.gone:
                plain.tell()
        self.later = [], []
        self.look()

    def look(self) -> None:
        """Everybody has been sent the same, and the two say the same of all."""
        self.fanout.flush()
        assert self.turn.waits == bool(self.twin.turns)
        for at, (connection, plain) in enumerate(zip(self.connections, self.plain, strict=True)):
            member = connection.member
            assert (member.acks, member.told, member.owed) == (plain.acks, plain.told, plain.owed)
            assert member.waits == (plain in self.twin.turns)
            sent = connection.transport.take()
            assert sent == plain.take_sent()
            for frame in frames_of(sent):
                if frame.kind == JOBS:
                    granted = Granted(build_frame(JOBS, frame.body))
                    self.held[at] += range(granted.first, granted.first + len(granted.jobs))


STEPS = st.one_of(
    st.tuples(st.just("publish"), st.lists(st.sampled_from([1, 100, 399, 5_000]), min_size=1, max_size=6)),
    st.tuples(st.just("ack"), st.integers(0, 3), st.integers(1, 3)),
    st.tuples(st.just("odd"), st.integers(0, 3), st.integers(-1, 3), st.integers(1, 3), st.sampled_from([ACK, NACK])),
    st.sampled_from([("give",), ("close",), ("commit",), ("tell",), ("join",)]),
    st.tuples(st.just("leave"), st.integers(0, 3)),
)


@settings(deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_members_are_told_what_the_twin_tells(steps: list[tuple[Any, ...]]) -> None:
    house = House()
    for what, *more in steps:
        if what == "publish":
            house.publish(*more)
        elif what == "ack":
            at, count = more[0] % len(house.plain), more[1]
            house.ack(at, [(lease, 1, ACK, 0) for lease in house.held[at][:count]] or [(1, 1, ACK, 0)])
        elif what == "odd":
            at = more[0] % len(house.plain)
            first = (house.held[at] or [FIRST_LEASE])[0] + more[1]
            house.ack(at, [(first, more[2], more[3], 0), (first, 1, ACK, 0)])
        elif what == "join" and len(house.plain) < 6:
            house.join()
        elif what == "leave":
            house.leave(more[0] % len(house.plain))
        elif what in ("give", "close", "commit", "tell"):
            {"give": house.give, "close": house.close_group, "commit": house.commit, "tell": house.tell}[what]()


def test_a_read_of_nothing_but_acks_is_told_once_a_turn() -> None:
    house = House()
    house.publish([1] * 9)
    house.give()
    for at in range(3):
        connection, first = house.connections[at], house.held[at][0]
        house.ack(at, [(first, 1, ACK, 0)])
        assert connection.reads == (at == 0)
        house.fanout.kicked = True
    assert house.turn.touches == 1
    house.connections[0].feed(b"\0")
    assert house.connections[0].reads == 2


def test_what_is_taken_is_no_more_than_what_is_under_way() -> None:
    house = House(1)
    house.publish([1] * 9)
    house.give()
    first, second, third = house.held[0]
    for entries in (
        [(first, 1, ACK, 0), (first, 1, ACK, 0)],
        [(second, 1, ACK, 0), (first, 1, ACK, 0)],
        [(first, 4, ACK, 0)],
        [(first, 1, ACK, 1)],
        [(first, 1, NACK, 0)],
        [((1 << 64) - 2, 2, ACK, 0)],
    ):
        body = struct.pack("<IIQ", 1, len(entries), 1) + b"".join(struct.pack("<QIB3xQ", *entry) for entry in entries)
        asked: list[bytes] = []
        connection = house.connections[0]
        connection.on_ack = asked.append  # type: ignore[method-assign, assignment]
        connection.feed(build_frame(ACK_KIND, body))
        assert asked == [body]
        assert house.jobs.under_way(1) == (3, house.jobs.under_way(1)[1])
    for body in (b"", bytes(15), struct.pack("<IIQ", 1, 0, 1), struct.pack("<IIQ", 1, 1, 1) + bytes(23)):
        connection.feed(build_frame(ACK_KIND, body))
        assert asked[-1] == body
    connection.feed(build_frame(ACK_KIND, struct.pack("<IIQQIB3xQ", 1, 1, 1, first, 3, ACK, 0)))
    assert house.jobs.done == 3
    assert connection.member.acks == 1
    assert third == first + 2


def test_an_answer_waits_for_the_next_jobs_only_if_there_are_any() -> None:
    house = House(1)
    house.publish([1] * 4)
    house.give()
    house.ack(0, [(house.held[0][0], 1, ACK, 0)])
    house.give()
    house.close_group()
    house.commit()
    assert house.later == ([], []), "none is left: no job will bring the answer"
    house.publish([1])
    house.ack(0, [(house.held[0][0], 1, ACK, 0)])
    house.close_group()
    house.commit()
    assert house.later[0] == [house.connections[0].member]
    house.give()
    assert house.connections[0].member.owed == 0
    house.tell()


def test_an_outbox_is_one_of_a_connection() -> None:
    with pytest.raises(TypeError):
        RotationMember(None, 1, 1, 1)  # type: ignore[arg-type]
    member = RotationMember(Outbox(Fanout(Tails(1, 4770)), None), 7, 8, 9)
    assert (member.subscription, member.window, member.bytes_max) == (7, 8, 9)
