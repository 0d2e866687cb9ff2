"""What one WebSocket can make the server keep or do, and that others do not pay for it."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
import time
from contextlib import suppress

import psutil
from websockets.asyncio.client import connect as connect_outside
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from broker import connect
from tests.contract.homes import Server
from tests.independent import frames
from tests.web.peer import BINARY, PING, Peer, frame

HELLO = frames.hello([1], "a peer", None, None)


def speaking(server: Server) -> Peer:
    """Return a WebSocket that has been welcomed."""
    peer = Peer(server.web)
    peer.upgrade()
    peer.send(frame(BINARY, HELLO))
    assert peer.read_frame() is not None
    return peer


def test_half_frames_of_all_have_a_bound_and_the_oldest_goes(server: Server) -> None:
    # The configuration of this server takes two MiB of them.
    half = frame(BINARY, declared=1 << 20) + bytes(600 << 10)
    peers = [speaking(server) for _ in range(4)]
    try:
        for peer in peers:
            peer.send(half)
            time.sleep(0.05)
        gone = peers[0].read_close()
        assert gone.payload[2:] == b"LIMIT"
        with speaking(server) as other:
            other.send(frame(PING, b"still there"))
            got = other.read_frame()
            assert got is not None
            assert got.payload == b"still there"
    finally:
        for peer in peers:
            peer.socket.close()


def test_who_pings_and_reads_nothing_costs_one_answer(server: Server) -> None:
    process = psutil.Process(server.pid)
    with speaking(server) as peer:
        peer.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        flood = frame(PING, bytes(125)) * 500
        before = process.memory_info().rss
        peer.socket.settimeout(0.5)
        with suppress(TimeoutError):
            for _ in range(400):
                peer.socket.sendall(flood)
        assert process.memory_info().rss - before < 16 << 20


async def test_a_flood_of_tiny_frames_leaves_others_their_turns(server: Server) -> None:
    with speaking(server) as peer:
        peer.socket.setblocking(False)
        loop = asyncio.get_running_loop()
        flood = frame(BINARY) * 20_000

        async def rage() -> None:
            while True:
                await loop.sock_sendall(peer.socket, flood)

        raging = asyncio.create_task(rage())
        try:
            async with connect(server.web_url) as bus:
                waits = []
                for number in range(50):
                    begun = time.perf_counter()
                    await bus.publish("e.flood", b"%d" % number)
                    waits.append(time.perf_counter() - begun)
            assert sorted(waits)[len(waits) // 2] < 0.1
        finally:
            raging.cancel()
            with suppress(asyncio.CancelledError):
                await raging


async def test_an_outside_client_publishes_and_reads(server: Server) -> None:
    subscribe = frames.control(frames.Kind.SUBSCRIBE, subscription=1, filters=["e.outside"], credit=1 << 20)
    publish = frames.channel(0, "e.outside") + frames.publish(0, 1, [frames.record(b"from outside")])
    async with connect_outside(
        f"{server.web_url}/v1/socket", subprotocols=[Subprotocol("broker.v1")], compression="deflate"
    ) as ws:
        assert ws.protocol.extensions == []
        await ws.send(HELLO + subscribe)
        got = b""
        await ws.send([publish[:7], publish[7:]])
        while b"from outside" not in got:
            message = await asyncio.wait_for(ws.recv(), 10)
            assert isinstance(message, bytes)
            got += message
        await ws.send(b"\xff" * 8)
        with suppress(ConnectionClosed):
            async for _ in ws:
                pass
        assert ws.close_code == 4302
        assert ws.close_reason == "FRAME_TOO_LARGE"


async def test_a_large_message_goes_both_ways(server: Server) -> None:
    payload = bytes(range(256)) * 4_000
    async with connect(server.web_url) as bus, bus.subscribe("e.large") as subscription:
        await subscription
        await bus.publish("e.large", payload)
        async with asyncio.timeout(10):
            async for message in subscription:
                assert bytes(message.payload) == payload
                break


def test_the_server_ends_with_sockets_open() -> None:
    home = Server()
    try:
        home.start()
        with speaking(home) as peer, Peer(home.web) as idle:
            idle.send(f"GET /v1/version HTTP/1.1\r\nHost: {home.web}\r\n\r\n".encode())
            assert idle.read_head()[0] == 200
            home.terminate()
            told = peer.read_frame()
            assert told is not None
            assert told.payload[4] == frames.Kind.GOING_AWAY
            peer.socket.close()
            assert home.ended() == 0
    finally:
        home.stop()


def test_the_ready_file_and_the_log_name_the_address(server: Server) -> None:
    told = json.loads((server.folder / "ready").read_text())
    assert told["web"] == server.web
    assert f"web={server.web}" in (server.folder / "log").read_text()
