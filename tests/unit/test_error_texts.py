"""Every error's words: what it is about, what was got and what would have been right, in units, and the next step.

The first half reads each place in the package that makes an error; the second provokes what a user can meet, from the
outside, and looks at what arrives.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

import broker
from broker import Broker, connect
from broker.cli import main as cli
from broker.cli import sub
from broker.config import Config, check_listen_address
from broker.edge.native import NativeListener
from broker.model.errors import BY_NAME, BrokerError, error, from_wire
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.positions import Position
from broker.model.profiles import Profile, Profiles
from broker.node.node import Node
from broker.shared import starting
from broker.wire import control
from broker.wire.kinds import Kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PACKAGE = Path(broker.__file__).parent

# -- where errors are made ---------------------------------------------------------------------------------------------

GOT = re.compile(r"\bgot (?!no )[^:;]*\{\}")
RIGHT = re.compile(r"\b(limit|expected|supported|known|knows|which|needed|that is not shown|needs?)\b")
QUANTITY = re.compile(r"\b(?:limit|at least|at most) \{\}(?! ?[a-z(])")
COUNTED = re.compile(r"^[^:]*(s|number)\b[^:]*: ")


def template(node: ast.expr) -> str | None:
    """Return a text with {} for each value in it, or None for an expression that is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def complaints(source: str) -> list[str]:
    """Return what is wrong with the words of a module's errors."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "error"):
            continue
        texts = [template(argument) for argument in node.args]
        if texts and texts[0] in BY_NAME and len(texts) > 1 and texts[1]:
            found += [f"{node.lineno}: {complaint}: {texts[1]}" for complaint in complaints_of(texts[1])]
    return found


def complaints_of(detail: str) -> list[str]:
    """Return what is wrong with one detail."""
    found = []
    if not re.match(r".{1,120}?: |(the|subscription) ", detail) and " are " not in detail:
        found.append("does not begin with the thing that it is about")
    if detail.endswith(".") or "\n" in detail:
        found.append("is a clause on one line, without a full stop")
    if GOT.search(detail) and not RIGHT.search(detail):
        found.append("says what it got, and not what is right")
    # A count needs no unit of its own when the thing before the colon is what is counted, nor does a number.
    if QUANTITY.search(detail) and not COUNTED.match(detail) and not re.search(r"got \{\} ?[a-z]", detail):
        found.append("a quantity has no unit")
    return found


def test_every_text_in_the_package() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    texts = [
        f"{path.relative_to(PACKAGE)}:{complaint}"
        for path in modules
        for complaint in complaints(path.read_text(encoding="utf-8"))
    ]
    assert texts == []


@pytest.mark.parametrize(
    ("detail", "words"),
    [
        ("too large", "the thing"),
        ("frame: too large.", "full stop"),
        ("frame: got {} bytes", "what is right"),
        ("frame: got {}, limit {}", "no unit"),
        ("frame: has {}, limit {}", "no unit"),
    ],
)
def test_a_bad_text_is_caught(detail: str, words: str) -> None:
    source = f"error('LIMIT', f{detail!r})".replace("{}", "{x}")
    assert words in complaints(source)[0]


@pytest.mark.parametrize(
    "detail", ["frame: got {} bytes, limit {}", "channels: got {}, limit {}", "frame: has {}, limit {} s", "{}: gone"]
)
def test_a_good_text_is_left_alone(detail: str) -> None:
    assert complaints_of(detail) == []


# -- what a user meets -------------------------------------------------------------------------------------------------

NOT_PROVOKED = {
    "STORAGE_FULL": "takes a full disk: tests/fault",
    "NUMBER_GAP": "clients send again by themselves",
    "COMMIT_REFUSED": "takes a failing disk: tests/simulation",
    "COMMIT_UNKNOWN": "takes a failing disk: tests/simulation",
    "UNAVAILABLE": "takes a failing disk: tests/simulation",
    "SLOW_CONSUMER": "clients resume by themselves",
    "PRODUCER_TAKEN": "clients have lines of their own",
    "PING_TIMEOUT": "clients answer by themselves",
    "GOING_AWAY": "clients connect again by themselves",
    "UNKNOWN_SUBSCRIPTION": "clients know their subscriptions",
    "SUBSCRIPTION_IN_USE": "clients choose free numbers",
    "NUMBER_OVERLAP": "clients repeat with the same bounds",
    "CROSS_SHARD": "there are no transactions yet",
    "CONSUMER_TAKEN": "takes a second holder: tests/unit/edge/test_consuming.py, as the next ones",
    "UNKNOWN_CONSUMER": "takes a consumer that there is not",
    "INVALID_CONSUMER": "takes a consumer's settings",
    "CONSUMER_EXISTS": "takes a consumer's settings, twice",
    "LEASE_UNKNOWN": "takes a lease of somebody else",
    "LEASE_EXPIRED": "takes a lease that is over",
    "STORAGE_CORRUPT": "takes a damaged file: tests/fault",
    "STORAGE_FAILED": "takes a failing disk: tests/fault",
    "RATE_LIMITED": "takes a limit: tests/gate",
    "UNAUTHENTICATED": "takes an access file: tests/unit/access",
    "TOKEN_EXPIRED": "takes an access file: tests/unit/access",
    "UNKNOWN_OPERATION": "clients ask for operations that there are",
}
"""Codes that no call of a user ends with while the machine is well, and why."""

PROFILES = (
    Profile(b"e.>", durability=Level.EPHEMERAL),
    Profile(b"few.>", channels_max=1),
    Profile(b"slow.>", new_channels_per_s=1),
    Profile(b"s.>"),
    Profile(b"live.>", durability=Level.EPHEMERAL),
)
LIMITS = Limits(payload_bytes_max=1024, headers_bytes_max=128, connections_max=8, hello_timeout_s=0.2)


class World:
    """A broker in this process that listens on TCP and has a bus.

    Args:
        folder: of the test.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bus: Any
        self.address: tuple[str, int]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        """Run it."""
        node = await Node.open(
            self.folder / "data", profiles=Profiles(PROFILES), limits=LIMITS, segment_bytes=8 << 20, reserve_bytes=0
        )
        listener = NativeListener(node)
        try:
            host, port = (await listener.listen_tcp("127.0.0.1", 0)).rsplit(":", 1)
            self.address = (host, int(port))
            async with connect(f"broker://{host}:{port}") as self.bus:
                yield self
        finally:
            listener.stop_accepting()
            await node.drain(0)
            await node.close()

    async def answer(self, *pieces: bytes) -> None:
        """Send bytes on a new connection, and raise the error that comes back."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(b"".join(pieces))
            while True:
                header = await asyncio.wait_for(reader.readexactly(8), 30)
                body = await reader.readexactly(int.from_bytes(header[:4], "little"))
                if header[4] == Kind.ERROR:
                    raise from_wire(control.decode(body))
        finally:
            writer.close()
            await writer.wait_closed()


HELLO = control.encode_hello("test")


async def more_connections_than_there_may_be(world: World) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(LIMITS.connections_max):
            await stack.enter_async_context(connect("broker://{}:{}".format(*world.address)))


async def second_owner(world: World) -> None:
    async with Broker.open(world.folder / "data"):
        pass


async def foreign_folder(world: World) -> None:
    (world.folder / "else").mkdir()
    (world.folder / "else" / "diary").write_text("dear", encoding="utf-8")
    async with Broker.open(world.folder / "else"):
        pass


async def server_that_cannot_run(world: World) -> None:
    with patch.object(starting, "PROGRAM", "broker.no_such_module"):
        async with Broker.open(world.folder / "shared", shared=True):
            pass


async def after_closing(world: World) -> None:
    bus = await connect("broker://{}:{}".format(*world.address))
    await bus.close()
    await bus.publish("s.x", b"")


async def in_a_child(world: World) -> None:
    """Use a handle in a child, and raise here what it met there."""
    async with Broker.open(world.folder / "own", reserve_bytes=0) as bus:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                bus.post("s.x", b"")
            except BrokerError as failure:
                os.write(write, f"{failure.detail}\0{failure.hint}".encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as said:
            detail, hint = said.read().decode().split("\0")
        await asyncio.to_thread(os.waitpid, child, 0)
        raise error("FORKED", detail, hint)


async def more_than_it_holds(world: World) -> None:
    async with connect("broker://{}:{}".format(*world.address), unanswered_bytes_max=1 << 20) as bus:
        for _ in range(2_000):
            bus.post("s.x", bytes(1_000))


async def nobody_there(world: World) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        async with connect(f"broker://127.0.0.1:{free.getsockname()[1]}"):
            pass


async def in_vain(world: World) -> None:
    """Run `broker sub` in a thread, since it has a loop of its own."""
    url = "broker://{}:{}".format(*world.address)
    arguments = ["s.x", "--count", "1", "--timeout", "0.05", "--url", url]
    await asyncio.to_thread(sub.command.main, arguments, standalone_mode=False)


async def publish_two(world: World, names: str) -> None:
    for number in (1, 2):
        await world.bus.publish(names.format(number), b"")


async def config(world: World) -> None:
    Config.load(None, {}, {"limits.channels_max": 0})


async def listen(world: World) -> None:
    check_listen_address("0.0.0.0:1")


def frame(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    return len(body).to_bytes(4, "little") + bytes([kind, flags, 0, 0]) + body


async def too_much_together(world: World) -> None:
    async with world.bus.transaction() as tx:
        for _ in range(1_000):
            tx.publish("s.x", bytes(1_000))


MET: list[tuple[str, Callable[[World], Awaitable[object]]]] = [
    ("INVALID_CHANNEL", lambda world: world.bus.publish("a..b", b"")),
    ("INVALID_CHANNEL", lambda world: world.bus.publish("", b"")),
    ("INVALID_CHANNEL", lambda world: world.bus.publish("x" * 300, b"")),
    ("INVALID_PATTERN", lambda world: world.bus.subscribe("a.>.b")),
    ("INVALID_PATTERN", lambda world: world.bus.subscribe()),
    ("INVALID_POSITION", lambda world: world.bus.subscribe("s.*", start=Position(1, 1))),
    ("INVALID_POSITION", lambda world: world.bus.subscribe("s.x", start=7)),
    ("TOO_MANY_SUBSCRIPTIONS", lambda world: world.bus.subscribe(*(f"s.{n}" for n in range(1_001)))),
    ("LIMIT", lambda world: world.bus.subscribe("s.x", credit_bytes=1)),
    ("PAYLOAD_TOO_LARGE", lambda world: world.bus.publish("s.x", bytes(1_025))),
    ("INVALID_ID", lambda world: world.bus.publish("s.x", b"", id="")),
    ("NOT_STORED", lambda world: world.bus.publish("e.x", b"", id="one")),
    ("HEADERS_TOO_LARGE", lambda world: world.bus.publish("s.x", b"", headers={"h": bytes(200)})),
    ("INVALID_RECORD", lambda world: world.bus.publish("s.x", b"", priority=9)),
    ("INVALID_TIME", lambda world: world.bus.schedule("s.x", b"", delay_s=100 * 366 * 86_400)),
    ("INVALID_TIME", lambda world: world.bus.schedule("s.x", b"", deliver_at=-1)),
    ("INVALID_ID", lambda world: world.bus.schedule("s.x", b"", delay_s=1, id="")),
    ("UNKNOWN_MESSAGE", lambda world: world.bus.cancel("s.x", "none")),
    ("INVALID_RECORD", lambda world: world.bus.publish("s.x", b"", key=bytes(256))),
    ("CONFLICT", lambda world: world.bus.publish("s.x", b"", expect=Position(1, 1))),
    ("TRANSACTION_TOO_LARGE", too_much_together),
    ("NO_PROFILE", lambda world: world.bus.publish("none.x", b"")),
    ("TOO_MANY_CHANNELS", lambda world: publish_two(world, "few.{}")),
    ("LIMIT", lambda world: publish_two(world, "slow.{}")),
    ("BUSY", more_than_it_holds),
    ("NO_RESPONDERS", lambda world: world.bus.request("live.x", b"")),
    ("CLOSED", after_closing),
    ("FORKED", in_a_child),
    ("CONNECTION_LOST", nobody_there),
    ("ADDRESS", lambda world: connect("http://x")),
    ("ADDRESS", listen),
    ("INVALID_CONFIG", config),
    ("TIMEOUT", in_vain),
    ("TIMEOUT", lambda world: world.answer()),
    ("STORAGE_IN_USE", second_owner),
    ("STORAGE_FORMAT", foreign_folder),
    ("SERVER_FAILED", server_that_cannot_run),
    ("TOO_MANY_CONNECTIONS", more_connections_than_there_may_be),
    ("BAD_STATE", lambda world: world.answer(frame(Kind.PING, bytes(8)))),
    ("VERSION", lambda world: world.answer(HELLO.replace(b"\x91\x01", b"\x91\x7f"))),
    ("FRAME_TOO_LARGE", lambda world: world.answer(HELLO, b"\xff\xff\xff\x7f\x10\0\0\0")),
    ("MALFORMED_FRAME", lambda world: world.answer(HELLO, frame(99))),
    ("MALFORMED_FRAME", lambda world: world.answer(frame(1, b"nonsense"))),
    ("DENIED", lambda world: world.answer(HELLO, control.encode_channel(0, b"$secret.x"))),
]


def test_every_code_is_met_or_excused() -> None:
    assert {name for name, _ in MET} | set(NOT_PROVOKED) == set(BY_NAME)
    assert {name for name, _ in MET}.isdisjoint(NOT_PROVOKED)


async def met(provoke: Callable[[World], Awaitable[object]], world: World) -> BrokerError:
    """Return the error that a provocation ends with."""
    try:
        await provoke(world)
    except BrokerError as failure:
        return failure
    raise AssertionError("nothing was refused")


async def test_what_a_user_meets(tmp_path: Path) -> None:
    async with World(tmp_path).running() as world:
        for name, provoke in MET:
            failure = await met(provoke, world)
            assert failure.name == name, str(failure)
            assert failure.hint, name
            assert failure.detail.isprintable(), name
            detail = failure.detail.removeprefix("{}:{}: ".format(*world.address))  # which a client puts before it
            assert not complaints_of(re.sub(r"\b\d[\d.]*\b", "{}", detail)), str(failure)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_command_line_prints_each_in_one_form(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error(name, "thing: got 2 bytes, limit 1 bytes")

    monkeypatch.setattr(cli.command, "main", fail)
    status = cli.main([])
    assert status == 2 + BY_NAME[name].code // 1000
    assert capsys.readouterr().err == (
        f"error {name} ({BY_NAME[name].code}): thing: got 2 bytes, limit 1 bytes\nhint: {BY_NAME[name].advice}\n"
    )
