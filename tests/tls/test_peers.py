"""Peers of a listener that speaks TLS who take their time, keep silent, say nonsense, come in crowds, or say much."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from broker import connect
from broker.edge import accepting
from broker.model.errors import Unavailable
from broker.wire import control
from broker.wire.secure import REFUSAL, SLICE_BYTES, SecureStream
from tests.tls.places import LIMITS, publish_once, served, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_handshake_byte_by_byte(tmp_path: Path, files: Path, loop_kind: str) -> None:
    async with served(tmp_path, files) as place:
        reader, writer = await place.open()
        client = SecureStream(place.context(), "127.0.0.1")
        while not client.shake_hands():
            for each in client.take():
                writer.write(bytes([each]))
                await asyncio.sleep(0)
            client.feed(await asyncio.wait_for(reader.read(SLICE_BYTES), 5))
        hello = b"".join(client.seal(control.encode_hello("dribbler", bytes(16))))
        for each in client.take() + hello:
            writer.write(bytes([each]))
            await asyncio.sleep(0)
        room, heard = memoryview(bytearray(SLICE_BYTES)), b""
        while len(heard) < 8:
            data = await asyncio.wait_for(reader.read(SLICE_BYTES), 5)
            heard += b"".join(bytes(part) for part in client.unseal(memoryview(data), room))
        assert heard[4] == 2, "WELCOME"
        writer.close()


async def test_who_says_nothing_is_let_go(tmp_path: Path, files: Path, loop_kind: str) -> None:
    """The time for HELLO is that for the handshake as well, wherever in it the peer stops."""
    async with served(tmp_path, files) as place:
        silent = [await place.open() for _ in range(3)]
        silent[1][1].write(b"\x16\x03\x01\x02\x00\x01")
        reader, writer = await place.open(place.context())
        async with asyncio.timeout(10 * LIMITS.hello_timeout_s):
            for each, _ in silent:
                assert await each.read() == b""
            told = await reader.read()
        assert told[4] == 3, "who has shaken hands is told why: ERROR"
        await until(lambda: not place.node.connections and not place.listener.greeting)
        for _, other in [*silent, (reader, writer)]:
            other.close()


@pytest.mark.parametrize("nonsense", [os.urandom(4096), b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x80" + bytes(99)])
async def test_nonsense_harms_nobody_else(tmp_path: Path, files: Path, nonsense: bytes) -> None:
    async with served(tmp_path, files) as place, connect(place.url()) as bus:
        for _ in range(20):
            reader, writer = await place.open()
            writer.write(nonsense)
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()
        assert (await bus.publish("t.one", b"x")).sequence == 1


async def test_nonsense_after_the_handshake_ends_that_connection(tmp_path: Path, files: Path) -> None:
    async with served(tmp_path, files) as place, connect(place.url()) as bus:
        _, writer = await place.open(place.context())
        under: Any = writer.transport.get_extra_info("socket")
        os.write(under.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
        await until(lambda: len(place.node.connections) == 1)
        assert (await bus.publish("t.one", b"x")).sequence == 1
        writer.transport.abort()


async def test_more_than_may_be_silent(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes that do not end keep nobody out: the one that has been silent for longest makes room."""
    monkeypatch.setattr(accepting, "GREETING_MAX", 8)
    async with served(tmp_path, files) as place:
        silent = [await place.open() for _ in range(12)]
        assert await publish_once("asyncio", place.url()) == 1
        assert len(place.listener.greeting) <= 8
        assert await asyncio.wait_for(silent[0][0].read(), 5) == b""
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("client", ["asyncio", "blocking"])
async def test_who_finds_no_room(tmp_path: Path, files: Path, client: str) -> None:
    """It costs no handshake: an alert, and both clients say so."""
    async with served(tmp_path, files) as place:
        place.listener.connections_max = 0
        reader, writer = await place.open()
        assert await asyncio.wait_for(reader.read(), 5) == REFUSAL
        writer.close()
        with pytest.raises(Unavailable, match=r"TLS_FAILED.*internal error"):
            await publish_once(client, place.url())


async def test_much_in_both_directions(tmp_path: Path, files: Path, loop_kind: str) -> None:
    """More than any buffer between, and more than the session reads at once: both sides pause, nothing is lost."""
    count, payload = 600, os.urandom(20_000)
    async with (
        served(tmp_path, files) as place,
        connect(place.url()) as bus,
        bus.subscribe("t.>", credit_bytes=1 << 24) as reader,
    ):
        for number in range(count):
            bus.post("t.one", payload + number.to_bytes(2, "big"))
        await bus.flush()
        async with asyncio.timeout(30):
            expected = 0
            async for message in reader:
                assert message.payload == payload + expected.to_bytes(2, "big")
                expected += 1
                if expected == count:
                    break


async def test_a_peer_that_does_not_read(tmp_path: Path, files: Path) -> None:
    """What it is owed waits in its outbox and not in TLS, and others go on."""
    async with (
        served(tmp_path, files) as place,
        connect(place.url()) as bus,
        connect(place.url()) as stuck,
        stuck.subscribe("t.>", credit_bytes=1 << 26),
    ):
        connection: Any = stuck._connection
        connection._transport.pause_reading()
        for _ in range(40):
            await bus.publish("t.one", os.urandom(1 << 19))
        connections: list[Any] = list(place.node.connections)
        (waiting,) = [size for each in connections if (size := each.transport.get_write_buffer_size())]
        assert waiting < 4 << 20
        connection._transport.resume_reading()


async def test_versions_of_a_context_are_those_of_the_settings(tmp_path: Path, files: Path) -> None:
    async with served(tmp_path, files) as place:
        context = place.certificates.context
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert {each["name"] for each in context.get_ciphers() if "GCM" not in each["name"]} <= {
            "TLS_CHACHA20_POLY1305_SHA256",
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            "ECDHE-RSA-CHACHA20-POLY1305",
        }
