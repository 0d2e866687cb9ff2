"""`broker pub`: publish a text, lines, a file or length-prefixed bytes.

Input is read as it comes: a pipe's lines are published when they are written, not when the pipe ends. Everything is
posted and drained, so the memory stays bounded whatever the input's size, and the command ends when all is answered.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from broker.model.positions import Position

READ_BYTES = 256 * 1024
LENGTH_BYTES = 4
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
"""The largest payload that any server takes; input that has no end of a message within it is refused."""


class Cutter(Protocol):
    """Cuts input into messages, however it is split."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take more input; return the messages that are complete."""

    def finish(self) -> list[bytes]:
        """The input has ended; return what is left."""


class Lines:
    """One message a line, without its end; the last line needs none."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        check_size(len(self._rest))
        return [line.removesuffix(b"\r") for line in lines]

    def finish(self) -> list[bytes]:
        return [self._rest] if self._rest else []


class Framed:
    """Each message behind its length, a u32 in little-endian."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        rest, messages, at = self._rest, [], 0
        rest += data
        while len(rest) - at >= LENGTH_BYTES:
            size = int.from_bytes(rest[at : at + LENGTH_BYTES], "little")
            check_size(size)
            if len(rest) - at - LENGTH_BYTES < size:
                break
            messages.append(bytes(rest[at + LENGTH_BYTES : at + LENGTH_BYTES + size]))
            at += LENGTH_BYTES + size
        del rest[:at]
        return messages

    def finish(self) -> list[bytes]:
        if self._rest:
            raise error(
                "INVALID_RECORD",
                f"input: ends {len(self._rest)} bytes into a message",
                "Put the length of each payload, a u32 in little-endian, before it; the last one may be cut.",
            )
        return []


class Whole:
    """All input is one message."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        self._parts.append(data)
        self._size += len(data)
        check_size(self._size)
        return []

    def finish(self) -> list[bytes]:
        return [b"".join(self._parts)]


CUTTERS: dict[str, type[Lines] | type[Framed] | type[Whole]] = {"lines": Lines, "framed": Framed, "whole": Whole}


def check_size(size: int) -> None:
    if size > MESSAGE_BYTES_MAX:
        raise error(
            "PAYLOAD_TOO_LARGE", f"input: got a message of {size} bytes or more, limit {MESSAGE_BYTES_MAX} bytes"
        )


async def read_pieces(descriptor: int) -> AsyncIterator[bytes]:
    """Yield what a descriptor has as it comes, without keeping the loop from its work while there is nothing."""
    loop = asyncio.get_running_loop()
    # A file is always ready, and no loop can wait for one; nor for some devices.
    waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)
    while True:
        if waits:
            try:
                await wait_readable(loop, descriptor)
            except PermissionError:
                waits = False
        data = os.read(descriptor, READ_BYTES)
        if not data:
            return
        yield data


async def wait_readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


@contextmanager
def progress_bar(size: int | None) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr; yields what is told (bytes, messages) that are done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), DownloadColumn(), TextColumn("{task.fields[messages]:,} messages"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("publishing", total=size, messages=0)
        yield lambda done, messages: progress.update(task, completed=done, messages=messages)


def ignore_progress(done: int, messages: int) -> None:
    """Nobody watches."""


def parse_headers(pairs: tuple[str, ...]) -> dict[str, object] | None:
    """Return the headers that `KEY=VALUE` texts name, None for none.

    Raises:
        BadParameter: One is not of that form.
    """
    headers: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"got {pair!r}, expected KEY=VALUE", param_hint="--header")
        headers[key] = value
    return headers or None


def time_options(delay_s: float | None, deliver_at: str | None) -> dict[str, object]:
    """Return when `schedule` is told to publish; nothing for a message that is published now."""
    if delay_s is not None and deliver_at is not None:
        raise click.UsageError("--delay and --at are two times; give one of them")
    if deliver_at is None:
        return {} if delay_s is None else {"delay_s": delay_s}
    try:
        return {"deliver_at": datetime.fromisoformat(deliver_at)}
    except ValueError as cause:
        raise click.BadParameter(f"got {deliver_at!r}, expected ISO 8601", param_hint="--at") from cause


def parse_expect(text: str) -> Position:
    """Return the position that `--expect` names.

    Raises:
        BadParameter: It is none.
    """
    from broker.model.errors import BrokerError
    from broker.model.positions import Position

    try:
        return Position(0, 0) if text == "none" else Position.parse(text)
    except BrokerError as cause:
        raise click.BadParameter(f"got {text!r}, expected EPOCH:SEQUENCE or none", param_hint="--expect") from cause


def single_options(
    text: str | None,
    delay_s: float | None,
    deliver_at: str | None,
    message_id: str | None,
    expect: str | None,
    *,
    receipt: bool,
) -> dict[str, object]:
    """Return what is told of a single message, TEXT, beside what every message has."""
    options = time_options(delay_s, deliver_at)
    if options and (expect is not None or receipt):
        raise click.UsageError("--expect and --receipt are for a message that is stored now, without --delay and --at")
    if message_id is not None:
        options["id"] = message_id
    if expect is not None:
        options["expect"] = parse_expect(expect)
    if text is None and (options or receipt):
        raise click.UsageError("--id, --expect, --receipt, --delay and --at are for one message, TEXT")
    return options


async def publish_text(url: str, channel: str, payload: bytes, options: Any, *, receipt: bool, quiet: bool) -> None:
    """Publish one message, now or later, and print what the caller goes on with."""
    from broker import connect

    async with connect(url) as bus:
        if options.keys() & {"delay_s", "deliver_at"}:
            click.echo((await bus.schedule(channel, payload, **options)).id)
            return
        stored = await bus.publish(channel, payload, **options)
    if receipt:
        click.echo(str(stored.position))
    if not quiet and (stored.duplicate or sys.stderr.isatty()):
        click.echo(f"{channel}: stored {'before, ' if stored.duplicate else ''}at {stored.position}", err=True)


async def publish_input(url: str, channel: str, source: int, cutter: Cutter, options: Any) -> int:
    """Publish all input; returns how many messages."""
    from broker import connect

    async with connect(url) as bus:
        size = os.fstat(source).st_size if stat.S_ISREG(os.fstat(source).st_mode) else None
        watched = sys.stderr.isatty() and not os.isatty(source)
        bar: AbstractContextManager[Callable[[int, int], None]]
        bar = progress_bar(size) if watched else nullcontext(ignore_progress)
        with bar as tell:
            done = messages = 0
            async for data in read_pieces(source):
                for payload in cutter.feed(data):
                    bus.post(channel, payload, **options)
                    messages += 1
                done += len(data)
                await bus.drain()
                tell(done, messages)
            for payload in cutter.finish():
                bus.post(channel, payload, **options)
                messages += 1
            await bus.flush()
    return messages


@click.command("pub")
@click.argument("channel")
@click.argument("text", required=False)
@click.option("--file", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Instead of stdin.")
@click.option(
    "--as",
    "form",
    type=click.Choice(list(CUTTERS)),
    default="lines",
    show_default=True,
    help="One message a line; each behind its length (u32, little-endian); or all input as one.",
)
@click.option("--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]")
@click.option("--key", help="Key of every message.")
@click.option("--header", "headers", multiple=True, metavar="KEY=VALUE", help="Header of every message; repeatable.")
@click.option("--priority", type=click.IntRange(0, 3), default=2, help="0 critical, 1 high, 2 normal, 3 low.")
@click.option("--expiry-s", type=click.IntRange(1), metavar="SECONDS", help="No longer delivered after that.")
@click.option("--delay", "delay_s", type=click.FloatRange(0), metavar="SECONDS", help="Publish TEXT so much later.")
@click.option("--at", "deliver_at", metavar="TIME", help="Publish TEXT at that time: ISO 8601 with a zone.")
@click.option(
    "--id",
    "message_id",
    metavar="ID",
    help="Of TEXT: published again under it, it is stored once. A later one is cancelled by it, and it is printed.",
)
@click.option(
    "--expect",
    metavar="POSITION",
    help="Store TEXT only if this, EPOCH:SEQUENCE, is the channel's newest; none: only if it never had a message.",
)
@click.option("--receipt", is_flag=True, help="Print where TEXT is stored, EPOCH:SEQUENCE.")
@click.option("--quiet", is_flag=True, help="No summary.")
def command(
    channel: str,
    text: str | None,
    path: Path | None,
    form: str,
    url: str | None,
    key: str | None,
    headers: tuple[str, ...],
    priority: int,
    expiry_s: int | None,
    delay_s: float | None,
    deliver_at: str | None,
    message_id: str | None,
    expect: str | None,
    receipt: bool,
    quiet: bool,
) -> None:
    """Publish TEXT, or what stdin or a file holds, to CHANNEL.

    \b
    broker pub chat.acme.42 hello
    broker pub mail.out reminder --delay 3600 --id reminder-42
    broker pub pay.in '{"order": 42}' --id order-42
    broker pub leader.eu "$HOSTNAME" --expect none --receipt
    tail -f access.log | broker pub logs.web
    broker pub blobs.photos --file photo.jpg --as whole
    broker sub 'a.>' --framed | broker pub b.all --as framed
    """
    if text is not None and path is not None:
        raise click.UsageError("TEXT and --file are two messages; give one of them")
    from broker.remote.address import URL_DEFAULT

    options: dict[str, object] = {"priority": priority, "expiry_s": expiry_s, "headers": parse_headers(headers)}
    if key is not None:
        options["key"] = key.encode()
    options.update(single_options(text, delay_s, deliver_at, message_id, expect, receipt=receipt))
    url = url or URL_DEFAULT
    if text is not None:
        asyncio.run(publish_text(url, channel, text.encode(), options, receipt=receipt, quiet=quiet))
        return
    source = sys.stdin.fileno() if path is None else os.open(path, os.O_RDONLY)
    begun = time.monotonic()
    try:
        messages = asyncio.run(publish_input(url, channel, source, CUTTERS[form](), options))
    finally:
        if path is not None:
            os.close(source)
    if sys.stderr.isatty() and not quiet:
        click.echo(f"published {messages:,} messages in {time.monotonic() - begun:.2f} s", err=True)
