"""`broker history`: print what is stored of a channel, or of what a pattern selects, in the forms of `broker sub`."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from broker.cli.names import complete_channel
from broker.cli.sub import Printer, as_framed, as_json, as_raw, as_text, tell_event

if TYPE_CHECKING:
    from broker.bus import HistorySince, HistoryUntil
    from broker.cli.sub import Form
    from broker_native.messages import Message

_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_AGO_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PLACES = "SEQUENCE, EPOCH:SEQUENCE, a time (ISO 8601) or an age such as 15m, 2h or 3d"
PRINT_BYTES = 64 * 1024
"""What is gathered before it is written."""


def parse_time(text: str) -> int:
    """Return the microseconds since 1970 of a time, local unless it says otherwise, or of an age.

    Raises:
        ValueError: It is neither.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return int((time.time() - timedelta(**{_AGO_UNITS[ago[2]]: int(ago[1])}).total_seconds()) * 1_000_000)
    when = datetime.fromisoformat(text)
    return int((when if when.tzinfo else when.astimezone()).timestamp() * 1_000_000)


def parse_since(text: str | None, last: int | None) -> HistorySince:
    """Return where a read begins.

    Raises:
        click.UsageError: It is no place, or there are two.
    """
    from broker.bus import Last, Since
    from broker.model.errors import BrokerError
    from broker.model.positions import BusPosition, Position

    if last is not None:
        if text is not None:
            raise click.UsageError("--since and --last are two beginnings: give one of them")
        return Last(last)
    if text is None:
        return None
    try:
        if text.isdecimal():
            return Position(0, int(text))
        if re.fullmatch(r"[0-9]+:[0-9]+", text):
            return Position.parse(text)
        return BusPosition.parse(text) if re.fullmatch(r"[0-9a-f]{32}:.*", text) else Since(parse_time(text))
    except (ValueError, OverflowError, BrokerError):
        raise click.BadParameter(
            f"got {text!r}, expected {_PLACES}, or JOURNAL:GROUP:INDEX", param_hint="--since"
        ) from None


def parse_until(text: str | None) -> HistoryUntil:
    """Return where a read ends.

    Raises:
        click.BadParameter: It is no place.
    """
    from broker.bus import Until
    from broker.model.errors import BrokerError
    from broker.model.positions import Position

    if text is None:
        return None
    try:
        if text.isdecimal():
            return Position(0, int(text))
        return Position.parse(text) if re.fullmatch(r"[0-9]+:[0-9]+", text) else Until(parse_time(text))
    except (ValueError, OverflowError, BrokerError):
        raise click.BadParameter(f"got {text!r}, expected {_PLACES}", param_hint="--until") from None


async def print_history(
    url: str,
    channel: str,
    since: HistorySince,
    until: HistoryUntil,
    limit: int | None,
    *,
    reverse: bool,
    printer: Printer,
) -> None:
    """Print a read to its end, and say on stderr where a read of a pattern goes on."""
    from broker import connect

    async with connect(url) as bus:
        history = bus.history(channel, since=since, until=until, limit=limit, reverse=reverse)
        gathered: list[Message] = []
        gathered_bytes = 0
        async for message in history:
            gathered.append(message)
            gathered_bytes += len(message.payload)
            if gathered_bytes >= PRINT_BYTES or len(gathered) >= PRINT_BYTES // 64:
                printer.write(gathered)
                gathered, gathered_bytes = [], 0
        printer.write(gathered)
        for event in history.events:
            tell_event(event)
        if history.bus_position is not None and sys.stderr.isatty():
            click.echo(f"goes on with: --since {history.bus_position}", err=True)


@click.command("history")
@click.argument("channel", shell_complete=complete_channel)
@click.option("--since", metavar="PLACE", help="Behind a SEQUENCE, an EPOCH:SEQUENCE or, for a pattern, a "
              "JOURNAL:GROUP:INDEX; from a time (ISO 8601) on, or an age (15m, 2h, 3d).")  # fmt: skip
@click.option("--until", metavar="PLACE", help="Up to and with a SEQUENCE or EPOCH:SEQUENCE; before a time, or an age.")
@click.option("--last", type=click.IntRange(0), metavar="N", help="The newest so many, oldest first.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End after so many messages.")
@click.option("--reverse", is_flag=True, help="The newest first.")
@click.option("--json", "form", flag_value="json", help="An object a line.")
@click.option("--raw", "form", flag_value="raw", help="The payloads' bytes and nothing else.")
@click.option("--framed", "form", flag_value="framed", help="Each payload behind its length, as `pub --as framed`.")
@click.option("--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]")
def command(
    channel: str,
    since: str | None,
    until: str | None,
    last: int | None,
    limit: int | None,
    reverse: bool,
    form: str | None,
    url: str | None,
) -> None:
    """Print what is stored of a CHANNEL, or of what a pattern selects, and end.

    A pattern is read in the order in which everything was committed; on a terminal, where to go on is told at the end.

    \b
    broker history chat.acme.42 --last 50
    broker history chat.acme.42 --since 2026-01-31T08:00 --until 2h --json | jq .payload
    broker history chat.acme.42 --reverse --limit 10
    broker history 'chat.>' --since 1d --json
    """
    from broker.remote.address import URL_DEFAULT

    named = channel.endswith(">") or "*" in channel
    forms: dict[str | None, Form] = {"json": as_json, "raw": as_raw, "framed": as_framed}
    printer = Printer(forms.get(form) or as_text(named, sys.stdout.isatty()), None)
    reading = print_history(
        url or URL_DEFAULT,
        channel,
        parse_since(since, last),
        parse_until(until),
        limit,
        reverse=reverse,
        printer=printer,
    )
    asyncio.run(reading)
