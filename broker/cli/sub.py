"""`broker sub`: print what arrives on channels, as text, JSON lines, raw or length-prefixed bytes."""

from __future__ import annotations

import asyncio
import base64
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.bus import Start, SubscriptionEvent
    from broker_native.messages import Message

    Form = Callable[[Message], bytes]


def parse_start(text: str) -> Start:
    """Return the start that a text names.

    Raises:
        BadParameter: It names none.
    """
    from broker.bus import Last, Since
    from broker.model.errors import BrokerError
    from broker.model.positions import BusPosition, Position

    if text == "new":
        return "new"
    if text == "start":
        return "start"
    try:
        if text.startswith("last:"):
            return Last(int(text.removeprefix("last:")))
        if text.startswith("since:"):
            when = datetime.fromisoformat(text.removeprefix("since:"))
            return Since(int((when if when.tzinfo else when.astimezone()).timestamp() * 1_000_000))
        return BusPosition.parse(text) if text.count(":") == 2 else Position.parse(text)
    except (ValueError, BrokerError):
        raise click.BadParameter(
            f"got {text!r}, expected new, start, last:N, since:TIME, EPOCH:SEQUENCE or JOURNAL:GROUP:INDEX",
            param_hint="--start",
        ) from None


def as_text(named: bool, for_people: bool) -> Form:
    """Return the form of lines: the payload as text, behind the channel's name when there are several.

    On a terminal, what a terminal would act on is escaped.
    """

    def line(message: Message) -> bytes:
        text = message.payload.decode("utf-8", "backslashreplace")
        if for_people:
            text = "".join(each if each.isprintable() or each == "\t" else ascii(each)[1:-1] for each in text)
        return (f"{message.channel}\t{text}\n" if named else f"{text}\n").encode()

    return line


def as_json(message: Message) -> bytes:
    """Return an object a line; a payload that is no text stands in `payload_base64`."""
    import json

    body: dict[str, object] = {
        "channel": message.channel,
        "epoch": message.epoch,
        "sequence": message.sequence,
        "time": datetime.fromtimestamp(message.time / 1e6, UTC).isoformat(),
    }
    try:
        body["payload"] = message.payload.decode()
    except UnicodeDecodeError:
        body["payload_base64"] = base64.b64encode(message.payload).decode()
    if message.key is not None:
        body["key"] = message.key.decode("utf-8", "backslashreplace")
    if message.id is not None:
        body["id"] = message.id.decode("utf-8", "backslashreplace")
    if message.publisher is not None:
        body["publisher"] = message.publisher
    try:
        headers = message.headers
    except ValueError as failure:
        body["headers_error"] = str(failure)
    else:
        if headers:
            body["headers"] = headers
    return json.dumps(body, default=printable).encode() + b"\n"


def printable(value: object) -> str:
    """Stand in for what JSON has no form for: bytes, and whatever else msgpack can hold."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def as_raw(message: Message) -> bytes:
    """Return the payload and nothing else."""
    return message.payload


def as_framed(message: Message) -> bytes:
    """Return the payload behind its length, a u32 in little-endian."""
    return len(message.payload).to_bytes(4, "little") + message.payload


def tell_event(event: SubscriptionEvent) -> None:
    """Say on stderr what a reader of the output cannot see in it."""
    if event.name != "resumed":
        run = f", {event.run} messages" if event.run else ""
        click.echo(f"{event.name}: {event.channel or 'subscription'} at {event.at}{run}", err=True)


class Printer:
    """Writes messages until there have been enough of them."""

    def __init__(self, form: Form, count: int | None) -> None:
        self._form = form
        self._count = count
        self.printed = 0

    @property
    def is_done(self) -> bool:
        return self._count is not None and self.printed >= self._count

    async def run(
        self, url: str, filters: tuple[str, ...], start: Start, timeout_s: float | None, group: str | None
    ) -> None:
        """Print what arrives, until it is enough, or nothing has come for `timeout_s`."""
        from broker import connect

        async with (
            connect(url) as bus,
            bus.subscribe(*filters, start=start, on_event=tell_event, group=group) as subscription,
        ):
            batches = subscription.batches()
            while not self.is_done:
                try:
                    async with asyncio.timeout(timeout_s):
                        batch = await anext(batches)
                except TimeoutError:
                    return
                self.write(list(batch))

    def write(self, messages: list[Message]) -> None:
        if self._count is not None:
            del messages[self._count - self.printed :]
        sys.stdout.buffer.write(b"".join(map(self._form, messages)))
        sys.stdout.buffer.flush()
        self.printed += len(messages)


@click.command("sub")
@click.argument("filters", metavar="PATTERN...", nargs=-1, required=True)
@click.option(
    "--start",
    default="new",
    metavar="PLACE",
    show_default=True,
    help="new, start, last:N, since:TIME (ISO 8601), EPOCH:SEQUENCE, or JOURNAL:GROUP:INDEX.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many messages.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
              help="End when nothing has come for so long; with --count that is a failure.")  # fmt: skip
@click.option("--group", metavar="NAME", help="Share what comes with the other members of a live group.")
@click.option("--json", "form", flag_value="json", help="An object a line.")
@click.option("--raw", "form", flag_value="raw", help="The payloads' bytes and nothing else.")
@click.option("--framed", "form", flag_value="framed", help="Each payload behind its length, as `pub --as framed`.")
@click.option("--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]")
def command(
    filters: tuple[str, ...],
    start: str,
    count: int | None,
    timeout_s: float | None,
    group: str | None,
    form: str | None,
    url: str | None,
) -> None:
    """Print what arrives on channels that the PATTERNs select.

    A pattern is a channel's name in which * stands for one token and a final > for the rest. Text comes as one line a
    message, behind its channel when more than one can be meant.

    \b
    broker sub chat.acme.42
    broker sub 'chat.>' --json --start start | jq .payload
    broker sub 'orders.*' --count 10 --timeout 5
    """
    from broker.remote.address import URL_DEFAULT

    named = len(filters) > 1 or filters[0].endswith(">") or "*" in filters[0]
    forms: dict[str | None, Form] = {"json": as_json, "raw": as_raw, "framed": as_framed}
    printer = Printer(forms.get(form) or as_text(named, sys.stdout.isatty()), count)
    asyncio.run(printer.run(url or URL_DEFAULT, filters, parse_start(start), timeout_s, group))
    if count is not None and not printer.is_done:
        raise error(
            "TIMEOUT",
            f"messages: got {printer.printed}, expected {count}, none within {timeout_s:g} s",
            "Wait longer with --timeout, or begin earlier with --start.",
        )
