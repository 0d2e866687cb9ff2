"""`broker top` as a program, against a server with a reader that has fallen behind: in pipes and on a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from broker import connect
from broker.cli import ExitCode
from tests.contract.homes import ROOT, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from broker import Bus, SubscriptionEvent

MESSAGES = 600
PAYLOAD = bytes(1_000)
SECONDS_MAX = 30


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server().start()
    yield server
    server.stop()


@asynccontextmanager
async def lagging(server: Server, channel: str) -> AsyncIterator[Bus]:
    """Have somebody read nothing of a channel until the server has noticed; yields a publisher."""
    noticed = asyncio.Event()

    def hear(event: SubscriptionEvent) -> None:
        if event.name == "lagging":
            noticed.set()

    async with (
        connect(server.unix_url, name="phone \x1b[2J") as phone,
        connect(server.unix_url, name="writer") as bus,
        phone.subscribe(channel, credit_bytes=64 * 1024, on_event=hear),
    ):
        for _ in range(MESSAGES // 100):
            await bus.publish_many(channel, [PAYLOAD] * 100)
        async with asyncio.timeout(SECONDS_MAX):
            await noticed.wait()
        yield bus


async def top(server: Server, *arguments: str) -> asyncio.subprocess.Process:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "broker", "top", "--url", server.unix_url, "--interval", "0.1", *arguments]
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=ROOT, env=Server.environment())


async def line(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    async with asyncio.timeout(SECONDS_MAX):
        return (await stream.readline()).decode()


async def test_an_object_says_who_is_behind_and_by_how_much(server: Server) -> None:
    async with lagging(server, "s.json.x"):
        process = await top(server, "--once", "--json")
        printed, complaints = await process.communicate()
    assert (process.returncode, complaints) == (0, b"")
    found = json.loads(printed)
    (reader,) = found["readers"]
    assert reader["behind_bytes"] is None
    assert (reader["name"], reader["filters"], reader["policy"]) == ("phone \x1b[2J", ["s.json.x"], "catchup")
    assert 0 < reader["behind_messages"] < MESSAGES
    assert reader["behind_groups"] >= 1
    assert found["stats"]["subscriptions_lagging"] == 1
    assert found["stats"]["connections"] == 3
    assert found["stats"]["kept_bytes"] > 0
    assert found["rates"]["records_in_per_s"] == 0
    assert found["elapsed_s"] >= 0.1


def rate_in(heading: list[str], row: str) -> str:
    """Return what stands in a row under in/s."""
    return dict(zip(heading, row.split(), strict=False))["in/s"]


async def test_rows_go_on_when_the_server_restarts(server: Server) -> None:
    async with lagging(server, "s.rows.x"):
        process = await top(server)
        heading = (await line(process.stdout)).split()
        row = await line(process.stdout)
        assert dict(zip(heading, row.split(), strict=False))["lagging"] == "1"
        assert r"s.rows.x (phone \x1b[2J unix, connection " in row
        server.kill()
        assert "waiting for the server" in await line(process.stderr)
        server.start()
        assert await line(process.stderr) == "the server answers again\n"
        assert "the server has restarted: run 2, process " in await line(process.stderr)
        for has_rates in (False, True):
            while (rate_in(heading, row) != "-") is not has_rates:
                row = await line(process.stdout)
        process.send_signal(signal.SIGINT)
        await process.communicate()
        assert process.returncode == ExitCode.INTERRUPTED


class Terminal:
    """A terminal of our own, and what was drawn on it."""

    def __init__(self, width: int, height: int) -> None:
        self._ours, self.theirs = pty.openpty()
        self.drawn = b""
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.drawn = b""

    def read_until(self, *wanted: bytes) -> None:
        """Read until all of it was drawn since the last change of size."""
        deadline = time.monotonic() + SECONDS_MAX
        while not all(each in self.drawn for each in wanted):
            left_s = deadline - time.monotonic()
            assert left_s > 0, self.drawn
            if select.select([self._ours], [], [], left_s)[0]:
                self.drawn += os.read(self._ours, 65_536)

    def close(self) -> None:
        os.close(self._ours)
        os.close(self.theirs)


async def test_a_terminal_is_drawn_on_and_given_back(server: Server) -> None:
    terminal = Terminal(110, 30)
    command = [sys.executable, "-m", "broker", "top", "--url", server.unix_url, "--interval", "0.1"]
    environment = {**Server.environment(), "TERM": "xterm"}
    theirs = terminal.theirs
    async with lagging(server, "s.seen.x"):
        process = await asyncio.create_subprocess_exec(
            *command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment
        )
        try:
            words = (b"messages", b"memory", b"Ctrl-C ends", b"s.seen.x", b"phone \\x1b[2J", b"queued")
            await asyncio.to_thread(terminal.read_until, b"\x1b[?1049h", *words)
            terminal.resize(45, 12)
            await asyncio.to_thread(terminal.read_until, b"late", b"reads")
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(terminal.read_until, b"\x1b[?1049l", b"\x1b[?25h")
            assert b"Traceback" not in terminal.drawn
            assert await asyncio.wait_for(process.wait(), SECONDS_MAX) == -signal.SIGTERM
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    terminal.close()


async def test_who_may_not_ask_is_told_what_it_takes() -> None:
    server = Server(program="tests.contract.denying")
    try:
        process = await top(server.start(), "--once")
        printed, complaints = await process.communicate()
    finally:
        server.stop()
    assert process.returncode == ExitCode.STOP
    assert printed == b""
    assert b"DENIED" in complaints
    assert b"manage '>': asked by unix" in complaints
    assert b"whoever may manage `>`" in complaints
    assert b"Traceback" not in complaints


async def test_nobody_there_is_an_error_at_once(server: Server) -> None:
    process = await top(server, "--once", "--url", "broker+unix:///nowhere/socket")
    _, complaints = await process.communicate()
    assert process.returncode == ExitCode.RESUME
    assert b"is the broker running?" in complaints
