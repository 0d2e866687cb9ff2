"""The broker's own dialect: what it takes of a buffer. Its conversations are in test_driver.py."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest

from broker_native import driver_broker
from broker_native.driver import Driver, payload_of
from tests.reference.server import HEADER, split_records


@pytest.mark.parametrize("payload_bytes", [24, 128, 1000])
@pytest.mark.parametrize("batch", [1, 7])
def test_a_frame_takes_what_is_said(payload_bytes: int, batch: int) -> None:
    """What the loop keeps free for a frame is what the frame takes: no more is looked at."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        driver = Driver([b"a.b"], publishers=1, payload_bytes=payload_bytes, batch=batch)
        driver.add_publisher(ours.fileno())
        driver.run(messages=batch, patience_s=0)
        data = theirs.recv(1 << 20)
    record_bytes = driver_broker.record_bytes_max(payload_bytes)
    assert len(data) == driver_broker.extra_bytes() + batch * record_bytes
    assert HEADER.unpack_from(data)[:2] == (len(data) - HEADER.size, 16)
    assert struct.unpack_from("<IIQ", data, HEADER.size) == (0, batch, 1)
    assert [len(record) for record in split_records(data[24:])] == [record_bytes] * batch


def test_records_have_the_keys_of_their_counters_in_turn() -> None:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        driver = Driver([b"a.b"], publishers=1, payload_bytes=40, batch=5, keys=12)
        driver.add_publisher(ours.fileno())
        with pytest.raises(ValueError, match="keys: got 12"):
            driver.add_subscriber(theirs.fileno())
        driver.run(messages=25, patience_s=0)
        data = theirs.recv(1 << 20)
    records: list[bytes] = []
    while data:
        size, kind = struct.unpack_from("<IB", data)
        assert (kind, struct.unpack_from("<IIQ", data, 8)) == (16, (0, 5, len(records) + 1))
        records += split_records(data[24 : 8 + size])
        data = data[8 + size :]
    for counter, record in enumerate(records):
        fields = struct.pack("<IHHIH", 62, 0x10, 0, 0, 8) + b"%08d" % (counter % 12)
        stamp, time_ns = struct.unpack_from("<QQ", record, 22)
        assert record == fields + payload_of(0, counter, time_ns, 0, 40)
        assert stamp == counter
    assert len(records) == 25


@pytest.mark.parametrize("options", [{"keys": 100_000_001}, {"keys": 1, "dialect": "redis-stream"}])
def test_keys_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="keys"):
        Driver([b"a.b"], publishers=1, **options)
