"""Records as a client writes them, against records that are built in plain Python."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.reference.frames as twin
from broker.model.errors import error
from broker.model.names import check_channel
from broker_native.draft import Draft
from broker_native.posting import PublishBuffer
from broker_native.publishing import PublishChannels
from broker_native.writing import RecordWriter

NORMAL = 2


class Loop:
    """Stands for an event loop that nobody needs: nothing waits for an outcome."""


def buffer() -> PublishBuffer:
    """Return a buffer that nobody waits for."""
    made = PublishBuffer(
        Loop(),  # type: ignore[arg-type]
        error=error,
        check_channel=check_channel,
        pack_headers=msgpack.packb,
        kick=lambda: None,
        bytes_max=1 << 30,
    )
    made.resume(0)
    return made


def records_in(block: bytes, kind: int) -> bytes:
    """Return the records of the frame of a kind; of a transaction, those of its first publish."""
    body = next(frame.body for frame in twin.frames_of(block) if frame.kind == kind)
    if kind == twin.TRANSACTION:
        return records_in(body[8:], twin.PUBLISH)
    return body[16:]


FIELDS = st.builds(
    twin.Record,
    payload=st.binary(max_size=40),
    priority=st.sampled_from([None, 0, 1, 3]),
    expiry_s=st.sampled_from([None, 1, 0xFFFFFFFF]),
    key=st.none() | st.binary(min_size=1, max_size=255),
    headers=st.none() | st.binary(min_size=1, max_size=600),
)


@given(st.lists(st.tuples(FIELDS, st.none() | st.binary(min_size=1, max_size=64)), min_size=1, max_size=5))
def test_records_are_written_as_plain_python_builds_them(records: list[tuple[twin.Record, bytes | None]]) -> None:
    to, expected = buffer(), b""
    for record, id in records:
        priority = NORMAL if record.priority is None else record.priority
        to.post("a", record.payload, record.headers, record.key, priority, record.expiry_s, id)
        expected += twin.build_record(twin.Record(**{**vars(record), "id": id}))
    assert records_in(to.take(), twin.PUBLISH) == expected


@given(FIELDS, st.sampled_from([bytes, bytearray, memoryview]))
def test_a_draft_writes_the_same(record: twin.Record, kind: type[bytes]) -> None:
    to = buffer()
    draft = Draft(to)
    priority = NORMAL if record.priority is None else record.priority
    draft.publish("a", kind(record.payload), record.headers, record.key, priority, record.expiry_s)
    draft.send()
    assert records_in(to.take(), twin.TRANSACTION) == twin.build_record(record)


def test_what_packs_headers_may_publish() -> None:
    """A mapping is a program's own code: what it publishes meanwhile does not come between fields and payload."""
    to = buffer()

    class Headers(dict[str, int]):
        def __bool__(self) -> bool:
            to.post("a", b"inner", b"inner headers", b"inner key")
            return True

    to.post("a", b"outer", Headers(n=1), b"outer key", 0)
    assert records_in(to.take(), twin.PUBLISH) == b"".join(
        (
            twin.build_record(twin.Record(b"inner", key=b"inner key", headers=b"inner headers")),
            twin.build_record(twin.Record(b"outer", priority=0, key=b"outer key", headers=msgpack.packb({"n": 1}))),
        )
    )


def test_what_is_refused_leaves_nothing() -> None:
    to = buffer()
    to.payload_bytes_max, to.headers_bytes_max = 10, 5
    draft = Draft(to)
    for arguments, code in (
        ((b"x" * 11,), "PAYLOAD_TOO_LARGE"),
        ((b"x", b"h" * 6), "HEADERS_TOO_LARGE"),
        ((b"x", None, b""), "INVALID_RECORD"),
        ((b"x", None, None, 4), "INVALID_RECORD"),
        ((b"x", None, None, NORMAL, 0), "INVALID_RECORD"),
    ):
        for use in (to.post, draft.publish):
            with pytest.raises(Exception, match=code):
                use("a", *arguments)
    assert (len(draft), to.records_posted) == (0, 0)


def test_a_buffer_knows_channels_and_writes_records() -> None:
    assert isinstance(buffer(), PublishChannels)
    assert isinstance(buffer(), RecordWriter)
