"""`broker trace` as a program: a message's way, told to people and to programs."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import pytest

from broker import connect
from broker.cli import ExitCode
from tests.contract.homes import ROOT, Server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server().start()
    yield server
    server.stop()


async def run(server: Server, *arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker", "trace", "--url", server.unix_url, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=Server.environment(),
    )
    printed, complained = await process.communicate()
    return process.returncode, printed.decode(), complained.decode()


async def test_a_message_is_followed_to_its_readers(server: Server) -> None:
    async with (
        connect(server.unix_url, name="phone \x1b[2J") as phone,
        connect(server.unix_url, name="writer") as bus,
        phone.subscribe("s.trace.x") as reader,
    ):
        await bus.create_consumer("trace-work", "s.trace.x")
        await bus.publish("s.trace.x", b"one", key=b"k\xff")
        await bus.publish("s.trace.x", b"three")
        message = await anext(aiter(reader))
        status, printed, complaints = await run(server, "s.trace.x", "1")
        assert (status, complaints) == (0, "")
        assert printed.startswith("s.trace.x 1: stored\n")
        assert "payload    3 bytes" in printed
        assert "committed" in printed
        assert "where      the journal" in printed
        assert "readers    1 passed" in printed
        assert "consumer trace-work: not done" in printed
        assert "\x1b" not in printed
        assert "(phone " in printed
        status, printed, _ = await run(server, "s.trace.x", "2", "--json")
        told = json.loads(printed)
        assert (status, told["state"], told["bytes"], told["counts"]) == (0, "stored", 5, {"passed": 1})
        assert message.time <= told["time_us"] <= told["closed_us"] <= told["committed_us"] <= told["delivered_us"]
        assert told["consumers"] == [["trace-work", "open"]]


async def test_what_is_not_there_is_an_error(server: Server) -> None:
    status, _, complaints = await run(server, "s.trace.none", "1")
    assert status == ExitCode.STOP
    assert "INVALID_POSITION" in complaints
