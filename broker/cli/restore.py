"""`broker restore`: make a data directory of a backup."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.watch import watched


@click.command("restore")
@click.argument("backup", metavar="BACKUP", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("path", metavar="DATA", type=click.Path(path_type=Path))
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def command(backup: Path, path: Path, quiet: bool) -> None:
    """Make DATA, a folder that is missing or empty, of BACKUP, taken by this version of the broker or an older one.

    Each file is proved against the manifest while it is copied. What was published after the backup is not there, so
    each channel begins a new epoch with its next message, whatever its durability: a reader that has seen more is told
    `diverged` and where, and no position ever names two messages. The journal has an identity of its own from then on.

    \b
    broker restore /backups/monday /var/lib/broker
    broker serve --data /var/lib/broker
    """
    from broker.log.backup import restore

    with watched("restoring", quiet=quiet) as tell:
        manifest = restore(backup, path, tell)
    if not quiet:
        click.echo(f"{path}: restored to group {manifest.group} of run {manifest.run}", err=True)
