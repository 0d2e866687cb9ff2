"""`broker delayed`: list messages that wait for their time, and cancel them."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from broker.cli.names import complete_channel

if TYPE_CHECKING:
    from broker.bus import DelayedMessage

_url = click.option(
    "--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]"
)


def url_of(url: str | None) -> str:
    """Return the broker's address, the default one if none is given."""
    from broker.remote.address import URL_DEFAULT

    return url or URL_DEFAULT


@click.group("delayed", no_args_is_help=True)
def command() -> None:
    """List messages that wait for their time, and cancel them.

    \b
    broker pub mail.out hello --delay 3600 --id welcome-42
    broker delayed ls mail.
    broker delayed cancel mail.out welcome-42
    """


@command.command("ls")
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End after so many.")
@click.option("--json", "as_json", is_flag=True, help="An object a line.")
@_url
def list_delayed(prefix: str, limit: int | None, as_json: bool, url: str | None) -> None:
    """Print what waits for channels that begin with PREFIX, the earliest first, but for a second here or there.

    Time, channel, id, bytes, and how often the channel did not take it at its time.

    \b
    broker delayed ls
    broker delayed ls mail. --limit 20 --json
    """
    asyncio.run(print_delayed(url_of(url), prefix, limit, as_json=as_json))


async def print_delayed(url: str, prefix: str, limit: int | None, *, as_json: bool) -> None:
    """Print a listing as it comes."""
    from broker import connect

    async with connect(url) as bus:
        async for message in bus.delayed(prefix, limit=limit):
            sys.stdout.write(json_line(message) if as_json else text_line(message))


def shown(id: str | bytes) -> str:
    """Return an id as a line can hold it: one that is no plain text in hex, as `cancel --hex` takes it."""
    if isinstance(id, str) and id.isprintable() and " " not in id:
        return id
    return "hex:" + (id.encode() if isinstance(id, str) else id).hex()


def json_line(message: DelayedMessage) -> str:
    """Return a message as an object."""
    return json.dumps({**message._asdict(), "id": shown(message.id)}) + "\n"


def text_line(message: DelayedMessage) -> str:
    """Return a message as columns, its time first."""
    due = datetime.fromtimestamp(message.due_us / 1e6, UTC).isoformat(timespec="milliseconds")
    return f"{due}\t{message.channel}\t{shown(message.id)}\t{message.record_bytes}\t{message.refusals}\n"


@command.command("cancel")
@click.argument("channel", shell_complete=complete_channel)
@click.argument("id")
@_url
def cancel(channel: str, id: str, url: str | None) -> None:
    """Have the message ID of CHANNEL wait no more: it is never published. `hex:…` stands for bytes.

    \b
    broker delayed cancel mail.out welcome-42
    """
    try:
        packed: str | bytes = bytes.fromhex(id[4:]) if id.startswith("hex:") else id
    except ValueError as cause:
        raise click.BadParameter(f"got {id!r}, expected hex digits behind hex:", param_hint="ID") from cause
    asyncio.run(ask_cancel(url_of(url), channel, packed))
    click.echo(f"{channel}: cancelled {id}")


async def ask_cancel(url: str, channel: str, id: str | bytes) -> None:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        await bus.cancel(channel, id)
