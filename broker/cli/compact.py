"""`broker compact`: give the disk back what was trimmed, expired or removed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli.watch import watched

if TYPE_CHECKING:
    from broker.cli.watch import Tell


async def compact_online(url: str, tell: Tell) -> str:
    """Have a running broker compact itself; returns what came of it."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.compact(tell)


@click.command("compact")
@click.argument("source", metavar="[DATA|URL]", required=False)
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def command(source: str | None, quiet: bool) -> None:
    """Take what was trimmed, has expired or was removed out of every file, and give the disk the room back.

    Of a running broker name the URL, or nothing for the local one: it goes on serving. Otherwise name its data
    directory. Everything that is stored goes into the archive first, which is then rebuilt beside itself: that needs as
    much free room as the archive will have in the end.

    \b
    broker compact
    broker compact broker://127.0.0.1:4770
    broker compact /var/lib/broker
    """
    from broker.remote.address import URL_DEFAULT

    source = source or URL_DEFAULT
    with watched("compacting", quiet=quiet) as tell:
        if "://" in source:
            done = asyncio.run(compact_online(source, tell))
        else:
            from broker.log.care import compact

            result = compact(Path(source), tell)
            done = f"the archive had {result.bytes_before} bytes and has {result.bytes_after}"
    if not quiet:
        click.echo(done, err=True)
