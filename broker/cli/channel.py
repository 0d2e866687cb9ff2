"""`broker channel`: list channels, say what one holds, take its oldest messages or all of it away."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import click

from broker.cli.names import complete_channel
from broker.model.errors import error

if TYPE_CHECKING:
    from broker.bus import ChannelInfo, ListedChannel

_url = click.option(
    "--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]"
)
_json = click.option("--json", "as_json", is_flag=True, help="An object a line.")
_name = click.argument("name", shell_complete=complete_channel)


def url_of(url: str | None) -> str:
    """Return the broker's address, the default one if none is given."""
    from broker.remote.address import URL_DEFAULT

    return url or URL_DEFAULT


@click.group("channel", no_args_is_help=True)
def command() -> None:
    """List channels, say what one holds, and take away what it holds.

    \b
    broker channel ls chat.acme. --long
    broker channel info chat.acme.42
    broker channel trim chat.acme.42 --before 1000
    broker channel rm chat.acme.42 --yes
    """


# -- ls ----------------------------------------------------------------------------------------------------------------


@command.command("ls")
@click.argument("prefix", default="")
@click.option("--long", "details", is_flag=True, help="Say of each what it holds.")
@click.option("--after", default="", metavar="NAME", help="Begin behind this name.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End after so many.")
@_json
@_url
def list_channels(prefix: str, details: bool, after: str, limit: int | None, as_json: bool, url: str | None) -> None:
    """Print the names of stored channels that begin with PREFIX, in order.

    With --long: name, oldest and newest sequence, durability, epoch. They come page by page, so that a listing of
    millions begins at once; one that was cut off goes on with --after and the last name.

    \b
    broker channel ls
    broker channel ls chat.acme. --long
    broker channel ls --after chat.acme.42 --limit 100 --json
    """
    asyncio.run(print_channels(url_of(url), prefix, after, limit, details=details, as_json=as_json))


async def print_channels(url: str, prefix: str, after: str, limit: int | None, *, details: bool, as_json: bool) -> None:
    """Print a listing as it comes."""
    from broker import connect

    async with connect(url) as bus:
        async for channel in bus.channels(prefix, after=after, limit=limit, details=details):
            sys.stdout.write(json_line(channel) if as_json else text_line(channel))


def json_line(channel: ListedChannel) -> str:
    """Return a channel as an object."""
    return json.dumps({"name": channel.name, **(fields_of(channel.info) if channel.info else {})}) + "\n"


def text_line(channel: ListedChannel) -> str:
    """Return a channel as columns, the name first."""
    info = channel.info
    if info is None:
        return f"{channel.name}\n"
    return f"{channel.name}\t{info.first}\t{info.head}\t{info.level.label}\t{info.epoch}\n"


def fields_of(info: ChannelInfo) -> dict[str, object]:
    """Return what a channel holds, by the names of `ChannelInfo`."""
    return {"epoch": info.epoch, "first": info.first, "head": info.head, "durability": info.level.label}


# -- info --------------------------------------------------------------------------------------------------------------


@command.command("info")
@_name
@_json
@_url
def info(name: str, as_json: bool, url: str | None) -> None:
    """Say what a channel holds; of one that does not exist, what it would be.

    \b
    broker channel info chat.acme.42 --json | jq .head
    """
    found = asyncio.run(ask_info(url_of(url), name))
    if as_json:
        click.echo(json.dumps({"name": name, **fields_of(found), "messages": found.head - found.first + 1}))
        return
    click.echo(f"{name}: {found.level.label}")
    if not found.epoch:
        click.echo("  it has had no message")
        return
    click.echo(f"  messages  {max(found.head - found.first + 1, 0):,} at most, sequences {found.first} to {found.head}")
    click.echo(f"  epoch     {found.epoch}")


async def ask_info(url: str, name: str) -> ChannelInfo:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.channel(name)


# -- trim and rm -------------------------------------------------------------------------------------------------------


@command.command("trim")
@_name
@click.option("--before", type=click.IntRange(1), required=True, metavar="SEQUENCE", help="The oldest one to keep.")
@_url
def trim(name: str, before: int, url: str | None) -> None:
    """Take the messages before a sequence out of a channel, for good.

    What is gone already stays gone; one behind the newest message empties the channel, which keeps its numbers.

    \b
    broker channel trim chat.acme.42 --before 1000
    """
    first = asyncio.run(ask_trim(url_of(url), name, before))
    click.echo(f"{name}: begins with {first}")


async def ask_trim(url: str, name: str, first: int) -> int:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.trim(name, first)


@command.command("rm")
@_name
@click.option("--yes", is_flag=True, help="Do not ask.")
@_url
def remove(name: str, yes: bool, url: str | None) -> None:
    """Remove a channel and all its messages, for good. One that somebody reads or publishes to is not removed.

    A channel of that name that is made later begins anew with sequence 1, in another epoch.

    \b
    broker channel rm chat.acme.42 --yes
    """
    if not yes:
        if not sys.stdin.isatty():
            raise error("DENIED", f"rm {name}: nobody is there to be asked", "Say --yes to remove it without asking.")
        click.confirm(f"Remove {name} and all its messages?", abort=True, err=True)
    asyncio.run(ask_remove(url_of(url), name))


async def ask_remove(url: str, name: str) -> None:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        await bus.remove(name)
