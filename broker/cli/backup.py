"""`broker backup`: copy a broker's data, running or not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli.watch import watched

if TYPE_CHECKING:
    from broker.cli.watch import Tell


async def backup_online(url: str, target: Path, tell: Tell) -> str:
    """Have a running broker back itself up; returns what came of it."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.backup(str(target), tell)


@click.command("backup")
@click.argument("source", metavar="DATA|URL")
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path))
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def command(source: str, target: Path, quiet: bool) -> None:
    """Copy everything that is stored at this moment into TARGET, a folder that is missing or empty.

    Of a running broker name the URL: it goes on serving, and TARGET is a path on its machine. Otherwise name its data
    directory. A backup is whole or it is none: its manifest is written last, with the size and SHA-256 of each file,
    and `broker verify TARGET` proves all of it. It cannot be served as it is; `broker restore` makes data of it.

    \b
    broker backup broker://127.0.0.1:4770 /backups/monday
    broker backup broker+unix:///run/broker.sock /backups/monday
    broker backup /var/lib/broker /backups/monday
    broker verify /backups/monday
    """
    target = target.absolute()
    with watched("backing up", quiet=quiet) as tell:
        if "://" in source:
            done = asyncio.run(backup_online(source, target, tell))
        else:
            from broker.log.care import backup

            manifest = backup(Path(source), target, tell)
            done = f"{target}: backed up to group {manifest.group}"
    if not quiet:
        click.echo(done, err=True)
