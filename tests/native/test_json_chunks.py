"""`broker_native.json_chunks` against its twin in Python: texts, and who shares them."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker_native import json_chunks
from broker_native.fanout import Fanout
from broker_native.tails import Tails
from tests.reference import json_text as twin
from tests.reference.frames import (
    CHANNEL,
    DELIVER,
    DELIVER_EARLY,
    DELIVER_HEADER,
    DELIVER_NAME,
    PING,
    Record,
    build_frame,
    build_record,
    delivery_of,
    frames_of,
)
from tests.reference.groups import Chunk, build_chunk
from tests.reference.jobs import Told, build_jobs

JOURNAL = bytes(range(16))
NAME = b"chat.room"
U64 = st.integers(0, 2**64 - 1)
SMALL = st.binary(max_size=20)
PACKED = st.dictionaries(
    st.text(max_size=4), st.none() | st.integers(-9, 2**60) | SMALL | st.text(max_size=9), max_size=3
)
RECORDS = st.builds(
    Record,
    payload=SMALL | st.text(max_size=20).map(str.encode),
    time_us=st.integers(0, 2**32 - 1),
    publisher=st.none() | SMALL,
    number=st.none() | U64,
    priority=st.none() | st.integers(0, 3),
    expiry_s=st.none() | st.integers(1, 2**32 - 1),
    key=st.none() | SMALL,
    headers=st.none() | PACKED.map(msgpack.packb) | SMALL,
    id=st.none() | SMALL,
)
GONE = st.builds(lambda reason, run: Record(gone=(reason, run)), st.integers(0, 255), st.integers(1, 2**31))


def chunk_of(records: list[Record], epoch: int = 1, first: int = 1, time_us: int = 0) -> Chunk:
    count = sum(record.run for record in records) & 0xFFFFFFFF
    return Chunk(7, epoch, first, count, b"".join(map(build_record, records)), time_us)


def deliver_frame(
    chunk: Chunk, subscription: int = 1, name: bytes | None = NAME, flags: int = 0, group: int = 5
) -> bytes:
    told = b"" if name is None else bytes([len(name)]) + name
    body = DELIVER_HEADER.pack(subscription, 3, group) + told + build_chunk(chunk)
    return build_frame(DELIVER, body, flags | (DELIVER_NAME if name is not None else 0))


class Connection:
    """What the renderer calls, and what it was told."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, bytes]] = []
        self.spent: list[tuple[int, int]] = []

    def on_answer(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        self.frames.append((kind, flags, body))
        return [b"{}"] * (kind == PING)

    def on_spent(self, subscription: int, size: int) -> None:
        self.spent.append((subscription, size))


class Rig:
    """A renderer, and names that only the log knows."""

    def __init__(self) -> None:
        self.fanout = Fanout(Tails(1, 7))
        self.asked: list[int] = []
        self.renderer = json_chunks.Renderer(self.fanout, JOURNAL, self.find)

    def find(self, channel: int) -> bytes:
        self.asked.append(channel)
        return b"from.the.log"

    def texts(self, pieces: list[Any], connection: Connection | None = None) -> list[dict[str, Any]]:
        out = self.renderer.translate(pieces, connection or Connection())
        return [json.loads(text) for text in twin.texts_of(b"".join(out))]


@given(
    st.lists(RECORDS | GONE, min_size=1, max_size=4),
    U64,
    st.integers(1, 2**63),
    st.integers(0, 2**63),
    st.sampled_from([0, DELIVER_EARLY]),
    st.integers(0, 4),
)
@example([Record(b"plain")], 2**64 - 1, 2**53 - 1, 2**53, 0, 1)
@example([Record(b"x" * 65_536)], 1, 1, 0, 0, 1)
def test_a_delivery(records: list[Record], epoch: int, first: int, time_us: int, flags: int, group: int) -> None:
    chunk = chunk_of(records, epoch, first, time_us)
    frame = deliver_frame(chunk, flags=flags, group=group)
    size = len(build_chunk(chunk))
    (said,) = Rig().texts([frame])
    assert said == twin.deliver(delivery_of(frames_of(frame)[0]), NAME, JOURNAL, size)
    members = json.loads(b"{" + json_chunks.chunk_members(build_chunk(chunk), NAME, b"somewhere") + b"}")
    assert members.pop("bus") == "somewhere"
    assert members == {name: said[name] for name in ("channel", "epoch", "position", "messages")}
    there = [(int(each["seq"]), each) for each in said["messages"] if "gone" not in each]
    for (sequence, text), (expected, each) in zip(json_chunks.messages(build_chunk(chunk)), there, strict=True):
        assert sequence == expected
        assert {"seq": each["seq"], **json.loads(text)} == each


@given(st.lists(RECORDS, min_size=1, max_size=3), st.data())
def test_a_damaged_chunk_is_refused_or_rendered(records: list[Record], data: st.DataObject) -> None:
    """It never reads past what is there: every text is JSON all the same."""
    whole = bytearray(build_chunk(chunk_of(records)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(56, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for damaged in (bytes(whole), cut):
        try:
            text = json_chunks.chunk_members(damaged, NAME)
        except ValueError:
            with pytest.raises(ValueError, match="not well formed"):
                json_chunks.messages(damaged)
        else:
            json.loads(b"{" + text + b"}")
            json_chunks.messages(damaged)


JOBS = st.lists(
    st.builds(
        Told,
        name=st.just(NAME),
        channel=st.integers(0, 2),
        epoch=U64,
        sequence=U64,
        record=RECORDS,
        time_us=U64,
        attempt=st.integers(0, 2**16 - 1),
        redelivered=st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@given(JOBS, st.integers(1, 2**63), U64)
def test_jobs(told: list[Told], lease: int, lease_ms: int) -> None:
    body = build_jobs(9, lease, lease_ms, told)
    names: dict[int, bytes] = {}
    assert json.loads(json_chunks.jobs(body, names)) == twin.jobs(9, lease, lease_ms, told)
    assert names == {job.channel: NAME for job in told}
    for end in range(len(body)):
        if end != 32:
            try:
                json_chunks.jobs(body[:end], dict(names))
            except ValueError:
                continue
            assert end in ends_of(body)


def ends_of(body: bytes) -> set[int]:
    """Where a job ends."""
    ends, at = set(), 32
    while at < len(body):
        at += struct.unpack_from("<I", body, at)[0]
        ends.add(at)
    return ends


def test_a_job_of_a_channel_that_nobody_named_is_refused() -> None:
    body = build_jobs(9, 1, 0, [Told(None, 0, 1, 1, Record(b""))])
    with pytest.raises(ValueError, match="not well formed"):
        json_chunks.jobs(body, {})
    assert json.loads(json_chunks.jobs(body, {0: b"a.b"}))["jobs"][0]["channel"] == "a.b"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 65_537])
def test_a_message_of_a_websocket(size: int) -> None:
    assert twin.texts_of(json_chunks.framed(b"x" * size)) == [b"x" * size]


def test_who_is_handed_the_same_gets_the_same_object() -> None:
    """Byte for byte the same frames, or the same shared chunk behind the same prefix."""
    rig = Rig()
    small = deliver_frame(chunk_of([Record(b"x")]))
    first, second = Connection(), Connection()
    (one,) = rig.renderer.translate([bytes(bytearray(small))], first)
    (other,) = rig.renderer.translate([bytes(bytearray(small))], second)
    assert one is other
    assert first.spent == second.spent == [(1, len(small) - 24 - 1 - len(NAME))]
    large = deliver_frame(chunk_of([Record(b"y" * 9_000)]))
    head = 24 + 1 + len(NAME)
    value = b"before" + large[head:]
    shared = memoryview(value)[6:]
    (one,) = rig.renderer.translate([large[:head], shared], first)
    (other,) = rig.renderer.translate([large[:head], memoryview(value)[6:]], second)
    assert one is other
    assert (rig.renderer.rendered, rig.renderer.shared) == (2, 2)
    # Behind another prefix, or of another value, it is another text.
    copy = bytes(bytearray(large[head:]))
    (fresh,) = rig.renderer.translate([large[:head], copy], first)
    assert fresh == one
    assert fresh is not one
    (third,) = rig.renderer.translate([deliver_frame(chunk_of([Record(b"y" * 9_000)]), 2)[:head], shared], first)
    assert json.loads(twin.texts_of(third)[0])["sub"] == 2


def test_nothing_is_kept_beyond_the_turn() -> None:
    rig = Rig()
    frame = deliver_frame(chunk_of([Record(b"x")]))
    (one,) = rig.renderer.translate([frame], Connection())
    rig.renderer.forgets = True
    rig.renderer.forget()
    assert not rig.renderer.forgets
    (other,) = rig.renderer.translate([frame], Connection())
    assert one == other
    assert one is not other


def test_units_are_kept_to_a_bound() -> None:
    rig = Rig()
    frames = [deliver_frame(chunk_of([Record(b"%d" % at)])) for at in range(40)]
    for frame in frames * 2:
        rig.texts([frame])
    assert rig.renderer.rendered == 80
    huge = deliver_frame(chunk_of([Record(b"z" * (9 << 20))]))
    rig.texts([huge])
    rig.texts([huge])
    assert rig.renderer.shared == 0


def test_other_frames_go_to_their_connection_and_are_not_shared() -> None:
    rig, connection = Rig(), Connection()
    delivery = deliver_frame(chunk_of([Record(b"x")]))
    reply = deliver_frame(chunk_of([Record(b"r")]), 0, None, group=0)
    piece = build_frame(PING, bytes(8)) + delivery + build_frame(CHANNEL, b"abc") + reply
    for _ in range(2):
        texts = rig.texts([piece], connection)
        assert [text.get("op") for text in texts] == [None, "deliver"]
    assert connection.frames[:3] == [(PING, 0, bytes(8)), (CHANNEL, 0, b"abc"), (DELIVER, 0, reply[8:])]
    assert rig.renderer.shared == 0
    # One that is cut by a shared chunk reaches it whole.
    rig.texts([reply[:24], memoryview(reply)[24:]], connection)
    assert connection.frames[-1] == (DELIVER, 0, reply[8:])


def test_credit_of_many_subscriptions_is_told_of_each() -> None:
    rig, connection = Rig(), Connection()
    chunk = chunk_of([Record(b"x")])
    piece = b"".join(deliver_frame(chunk, number) for number in range(1, 12)) + deliver_frame(chunk, 1)
    rig.texts([piece], connection)
    size = len(build_chunk(chunk))
    assert sorted(connection.spent) == [(1, 2 * size), *((number, size) for number in range(2, 12))]


def test_names_are_remembered_and_asked_for() -> None:
    rig = Rig()
    chunk = chunk_of([Record(b"x")])
    assert rig.texts([deliver_frame(chunk, name=None)])[0]["channel"] == "from.the.log"
    assert rig.texts([deliver_frame(chunk)])[0]["channel"] == NAME.decode()
    assert rig.texts([deliver_frame(chunk, 2, None)])[0]["channel"] == NAME.decode()
    assert rig.asked == [7]


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\0"],
        [build_frame(DELIVER, bytes(80))[:-1]],
        [build_frame(DELIVER, bytes(80))[:-1], b""],
        [build_frame(DELIVER, bytes(80))[:-1], b"xx"],
        [deliver_frame(chunk_of([Record(b"x" * 60)]))[:30], deliver_frame(chunk_of([Record(b"x" * 60)]))[30:]],
        [build_frame(DELIVER, DELIVER_HEADER.pack(1, 0, 0) + bytes(10))],
        [build_frame(DELIVER, DELIVER_HEADER.pack(1, 0, 0), DELIVER_NAME)],
        [build_frame(DELIVER, DELIVER_HEADER.pack(1, 0, 0) + b"\xff", DELIVER_NAME)],
    ],
)
def test_what_is_no_whole_frame_is_refused(pieces: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"pieces|chunk"):
        Rig().texts(pieces)
