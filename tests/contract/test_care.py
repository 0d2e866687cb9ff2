"""`broker dump`, `load`, `backup` and `restore` as programs: what was stored comes back as it was, and once."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from broker import Broker
from tests.contract.test_cli import Program

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.contract.homes import Server

MESSAGES = 2500
HEADERS: Mapping[str, object] = {"n": 1, "list": [1.5, None, True], "ключ": "значение"}
ODD_HEADERS: Mapping[str, object] = {"bytes": b"\xff\0", "list": [b""]}


@pytest.fixture
def program(shared_server: Server) -> Program:
    return Program(shared_server)


async def fill(path: Path, room: str) -> None:
    async with Broker.open(path, reserve_bytes=0) as bus:
        for number in range(MESSAGES):
            bus.post(f"s.{room}.{number % 3}", f"número {number}".encode())
        bus.post(f"s.{room}.odd", b"\xff\xfe\0", headers=ODD_HEADERS, key=b"\x80", priority=0)
        bus.post(f"s.{room}.odd", b"", headers=HEADERS, key=b"k", expiry_s=1000, priority=3)
        await bus.flush()


def dumped(program: Program, path: Path, *options: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in program.run("dump", str(path), *options).splitlines()]


async def read(url: str, channels: list[str], count: int) -> list[tuple[object, ...]]:
    from broker import connect

    found: list[tuple[object, ...]] = []
    async with connect(url) as bus, bus.subscribe(*channels, start="start") as subscription:
        async for message in subscription:
            record = (message.payload, message.headers, message.key, message.priority, message.expiry_s)
            found.append((message.channel, message.sequence, *record))
            if len(found) == count:
                return found
    raise AssertionError("the subscription has ended")


def test_dump_and_load_are_each_others_inverse(
    program: Program, shared_server: Server, room: str, tmp_path: Path
) -> None:
    data, file = tmp_path / "data", tmp_path / "all.jsonl"
    asyncio.run(fill(data, room))
    lines = dumped(program, data)
    assert len(lines) == MESSAGES + 2
    assert [line["payload"] for line in lines if line["channel"] == f"s.{room}.1"][:2] == ["número 1", "número 4"]
    assert lines[-2]["payload_base64"] == "//4A"
    assert lines[-1]["headers"] == HEADERS
    assert {line["channel"] for line in dumped(program, data, "--channel", f"s.{room}.odd")} == {f"s.{room}.odd"}

    file.write_bytes(program.run("dump", str(data)))
    # A load that was cut short, then the whole of it, then once more: each message is there once, in its order.
    short = tmp_path / "short.jsonl"
    short.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:1234]))
    program.run("load", str(short), "--as", room)
    program.run("load", str(file), "--as", room, "--time-header", "at")
    program.run("load", str(file), "--as", room)
    channels = [f"s.{room}.{each}" for each in (0, 1, 2, "odd")]
    found = asyncio.run(read(shared_server.unix_url, channels, MESSAGES + 2))
    for channel in channels[:3]:
        payloads = [message[2] for message in found if message[0] == channel]
        expected = [f"número {number}".encode() for number in range(int(channel[-1]), MESSAGES, 3)]
        assert payloads == expected
    odd, last = [message for message in found if message[0] == channels[3]]
    assert odd[2:] == (b"\xff\xfe\0", {**ODD_HEADERS, "at": lines[-2]["time_us"]}, b"\x80", 0, None)
    assert last[2:] == (b"", {**HEADERS, "at": lines[-1]["time_us"]}, b"k", 3, 1000)


def test_load_names_the_line_that_is_wrong(program: Program, room: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.jsonl"
    good = json.dumps({"channel": f"s.{room}", "payload": "x"})
    for bad in ("{", "[]", '{"payload": "x"}', f'{{"channel": "s.{room}", "payload_base64": "*"}}', '{"channel": "*"}'):
        file.write_text(f"{good}\n{bad}\n")
        assert b"line 2: " in program.run("load", str(file), status=5)


def test_a_running_server_is_backed_up_and_restored(program: Program, room: str, tmp_path: Path) -> None:
    program.run("pub", f"s.{room}", given=b"one\ntwo\n")
    url = program.url
    program.run("backup", url, str(tmp_path / "backup"))
    program.run("pub", f"s.{room}", "three")
    assert program.run("verify", str(tmp_path / "backup")).startswith(b"good: ")
    program.run("restore", str(tmp_path / "backup"), str(tmp_path / "data"))
    assert program.run("verify", str(tmp_path / "data")).startswith(b"good: ")
    for path in (tmp_path / "backup", tmp_path / "data"):
        lines = dumped(program, path, "--channel", f"s.{room}")
        assert [line["payload"] for line in lines] == ["one", "two"]
    assert b"not an empty folder" in program.run("backup", url, str(tmp_path / "backup"), status=6)
    assert b"not an empty folder" in program.run("restore", str(tmp_path / "backup"), str(tmp_path / "data"), status=6)
    program.run("backup", str(tmp_path / "data"), str(tmp_path / "offline"))
    assert program.run("verify", str(tmp_path / "offline")).startswith(b"good: ")


def test_what_was_removed_is_in_no_file_after_compacting(program: Program, room: str, tmp_path: Path) -> None:
    """A canary, in a channel that is removed; its neighbour stays."""
    data, canary = tmp_path / "data", b"canary-" + room.encode()

    async def fill() -> None:
        async with Broker.open(data, reserve_bytes=0) as bus:
            await bus.publish("s.gone", canary)
            await bus.publish("s.kept", b"kept")

    async def remove() -> None:
        # By a bus that does not publish to it.
        async with Broker.open(data, reserve_bytes=0) as bus:
            await bus.remove("s.gone")

    asyncio.run(fill())
    asyncio.run(remove())
    assert canary in every_byte(data)
    program.run("compact", str(data))
    assert canary not in every_byte(data)
    assert program.run("verify", str(data)).startswith(b"good: ")
    assert [line["channel"] for line in dumped(program, data)] == ["s.kept"]


def every_byte(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())


def test_a_running_server_compacts_itself(program: Program, room: str) -> None:
    program.run("pub", f"s.{room}", "kept")
    assert b"bytes and has" in program.run_telling("compact", program.url)
    assert program.run("sub", f"s.{room}", "--start", "start", "--count", "1", "--timeout", "10") == b"kept\n"
