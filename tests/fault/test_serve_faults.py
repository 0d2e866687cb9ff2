"""What goes wrong around a server: it is told to stop, its address or its directory is taken, its socket left over."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from broker import connect
from broker.cli import ExitCode
from tests.checker.check import check
from tests.checker.history import SYNCED, Started
from tests.fault.harness import Crowd, Server, kill_and_spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ENDED_S_MAX = 15.0
LEVELS = {"stop.one": SYNCED, "stop.two": SYNCED}
FILTERS = {"literal": ["stop.one"], "pattern": ["stop.>"]}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server that is ready, and is gone after the test."""
    folder = tmp_path / "server"
    folder.mkdir()
    found = Server(folder)
    try:
        await found.start("--unix", str(found.unix))
        yield found
    finally:
        found.kill()


async def ended(server: Server, *options: str) -> tuple[int, str]:
    """Start a server that cannot serve; returns its exit status and what it said."""
    process = server.spawn(*options)
    try:
        status = await asyncio.to_thread(process.wait, ENDED_S_MAX)
    finally:
        server.kill()
    return status, server.said()


async def assert_serves(server: Server) -> None:
    async with connect(server.url) as bus:
        receipt = await bus.publish("still.there", b"?")
        assert receipt.sequence >= 1


async def test_sigterm_under_load_ends_in_good_order(server: Server) -> None:
    """What is under way is answered, the status is 0, and everybody goes on with the next one."""
    async with Crowd(server.url, LEVELS, FILTERS, publishers=3, seed=4) as crowd:
        for _ in range(2):
            await asyncio.sleep(0.3)
            crowd.raise_failures()
            assert await server.stop() == ExitCode.OK, server.said()
            crowd.recorder.add(Started(0.0))
            await server.start("--unix", str(server.unix))
        await asyncio.sleep(0.3)
        history = await crowd.finish()
    verdict = check(history)
    assert verdict.passed, str(verdict)
    assert verdict.unanswered == 0
    assert not crowd.failures
    assert crowd.acknowledged > 100


async def test_sigterm_without_clients_ends_at_once(server: Server) -> None:
    began = asyncio.get_running_loop().time()
    assert await server.stop() == ExitCode.OK
    assert asyncio.get_running_loop().time() - began < 2.0
    assert not server.unix.exists()


async def test_port_in_use(server: Server, tmp_path: Path) -> None:
    status, said = await ended(Server(tmp_path, port=server.port))
    assert status == ExitCode.STOP
    assert "ADDRESS" in said
    assert str(server.port) in said
    assert "Traceback" not in said
    await assert_serves(server)


async def test_port_in_use_by_a_stranger(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        status, said = await ended(Server(tmp_path, port=stranger.getsockname()[1]))
    assert status == ExitCode.STOP
    assert "ADDRESS" in said
    assert "Traceback" not in said


async def test_socket_in_use(server: Server, tmp_path: Path) -> None:
    status, said = await ended(Server(tmp_path), "--unix", str(server.unix))
    assert status == ExitCode.STOP
    assert "ADDRESS" in said
    assert str(server.unix) in said
    assert "Traceback" not in said
    async with connect(f"broker+unix://{server.unix}") as bus:
        assert (await bus.publish("still.there", b"?")).sequence == 1


async def test_socket_that_a_kill_left_over_is_taken(server: Server) -> None:
    server.kill()
    assert server.unix.exists()
    await server.start("--unix", str(server.unix))
    async with connect(f"broker+unix://{server.unix}") as bus:
        assert (await bus.publish("there.again", b"?")).sequence == 1


async def test_file_in_the_socket_s_place_is_left_alone(tmp_path: Path) -> None:
    second = Server(tmp_path)
    second.unix.write_text("not a socket")
    status, said = await ended(second, "--unix", str(second.unix))
    assert status == ExitCode.STOP
    assert "ADDRESS" in said
    assert second.unix.read_text() == "not a socket"


async def test_directory_in_use(server: Server, tmp_path: Path) -> None:
    """The second one is told who has it, and the first one does not notice."""
    status, said = await ended(Server(tmp_path, data=server.data))
    assert status == ExitCode.STORAGE
    assert "STORAGE_IN_USE" in said
    assert server.process is not None
    assert str(server.process.pid) in said
    assert "Traceback" not in said
    await assert_serves(server)


async def test_directory_of_a_killed_server_is_free(server: Server, tmp_path: Path) -> None:
    async with connect(server.url) as bus:
        assert (await bus.publish("left.behind", b"1")).sequence == 1
    server.kill()
    heir = Server(tmp_path, data=server.data)
    try:
        await heir.start()
        async with connect(heir.url) as bus:
            assert (await bus.publish("left.behind", b"2")).sequence == 2
    finally:
        heir.kill()


async def test_one_kill_is_noticed_and_survived(server: Server) -> None:
    """The harness itself: a history with one kill in it, small enough for every run."""
    async with Crowd(server.url, LEVELS, FILTERS, publishers=2, seed=7) as crowd:
        await asyncio.sleep(0.3)
        await server.until_ready(await kill_and_spawn(server, crowd.recorder))
        before = crowd.acknowledged
        await asyncio.sleep(0.5)
        history = await crowd.finish()
        assert crowd.acknowledged > before
    verdict = check(history)
    assert verdict.passed, str(verdict)
    assert not crowd.failures
