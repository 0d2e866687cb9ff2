"""The broker's own dialect: what it takes of a buffer. Its conversations are in test_driver.py."""

from __future__ import annotations

import socket
import struct

import pytest

from broker_native import driver_broker
from broker_native.driver import Driver
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
