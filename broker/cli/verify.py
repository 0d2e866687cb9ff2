"""`broker verify`: judge the files of a data directory or of a backup."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli import ExitCode
from broker.cli.watch import watched

if TYPE_CHECKING:
    from broker.log.verify import Fault, Report


@click.command("verify")
@click.argument("path", metavar="DATA", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One object: counts, and a fault each in `faults`.")
@click.option("--quarantine", is_flag=True, help="Move what is damaged aside, so that the rest opens.")
@click.option("--yes", is_flag=True, help="With --quarantine: do it though something that was stored is lost.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(path: Path, as_json: bool, quarantine: bool, yes: bool, quiet: bool) -> int:
    """Prove every page, checksum, chain and index of DATA, a data directory that nobody serves, or a backup.

    Every fault is a row: file, offset, group, channel, the positions concerned, what is wrong, and what it costs. It
    goes on after a fault and names all. Nothing is written, but by --quarantine: then the journal is written anew from
    what is sound, and the old one is kept in DATA/quarantine. What is lost stands in the log as gone, and every channel
    begins a new epoch, so that no position ever names two messages. Without --yes nothing that was stored is given up.

    \b
    broker verify /var/lib/broker
    broker verify /var/lib/broker --quarantine
    broker verify /var/lib/broker --json | jq '.faults[] | select(.mendable | not)'

    \b
    Exit status: 0 all is good, 1 there are faults, 6 it could not look: in use,
    not a data directory, or the system refuses.
    """
    from broker.log.care import judge

    with watched("verifying", quiet=quiet) as tell:
        report = judge(path, tell)
    if as_json:
        _print_json(path, report)
    else:
        _print_faults(report)
        click.echo(summary(report))
    if quarantine and not report.sound:
        return _quarantine(path, report, yes=yes, quiet=quiet)
    return ExitCode.OK if report.sound else ExitCode.WRONG


def _quarantine(path: Path, report: Report, *, yes: bool, quiet: bool) -> ExitCode:
    """Mend what was found, if that loses nothing or may; tell what was done."""
    from broker.log.care import judge, quarantine
    from broker.log.mend import loses

    if loses(report) and not yes:
        click.echo("nothing was done: mending loses what is named above; add --yes to do it all the same", err=True)
        return ExitCode.WRONG
    with watched("mending", quiet=quiet) as tell:
        aside = quarantine(path, report, tell)
    with watched("verifying", quiet=quiet) as tell:
        again = judge(path, tell)
    click.echo(f"the journal as it was is in {aside}; the new one: {summary(again)}", err=True)
    return ExitCode.OK if again.sound else ExitCode.WRONG


def summary(report: Report) -> str:
    """Return the last line: what was looked at, and what came of it."""
    looked = (
        f"{report.files:,} files, {report.bytes:,} bytes, {report.groups:,} groups, {report.chunks:,} chunks, "
        f"{report.records:,} messages up to group {report.last_group}"
    )
    return f"good: {looked}" if report.sound else f"{len(report.faults):,} faults in {looked}"


def _print_json(path: Path, report: Report) -> None:
    import json
    from dataclasses import asdict

    click.echo(json.dumps({"path": str(path), "sound": report.sound, **asdict(report)}, indent=2))


def where(fault: Fault) -> str:
    """Return a fault's place: file, offset, group, channel and positions, as far as it has them."""
    parts = [fault.file]
    if fault.offset is not None:
        parts.append(f"offset {fault.offset}")
    if fault.group:
        parts.append(f"group {fault.group}")
    if fault.channel:
        parts.append(f"channel {fault.channel}")
    if fault.first:
        span = f"{fault.first}" if fault.first == fault.last else f"{fault.first}–{fault.last}"
        parts.append(f"epoch {fault.epoch} sequence {span}")
    return ", ".join(parts)


def _print_faults(report: Report) -> None:
    """Print the faults: a table for people, a line of fields between tabs for scripts."""
    if not report.faults:
        return
    if not sys.stdout.isatty():
        for fault in report.faults:
            click.echo(f"{where(fault)}\t{fault.what}\t{fault.cost}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("where", "what is wrong", "what it costs"):
        table.add_column(heading)
    for fault in report.faults:
        table.add_row(Text(where(fault)), Text(fault.what), Text(fault.cost))
    Console().print(table)
