"""`broker dump`: write stored messages as JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from broker.cli import ExitCode
from broker.cli.watch import watched


@click.command("dump")
@click.argument("path", metavar="DATA", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--channel", "patterns", multiple=True, metavar="PATTERN", help="Only these channels; repeatable.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(path: Path, patterns: tuple[str, ...], quiet: bool) -> int:
    """Write the messages of DATA to stdout, one JSON object a line, in the order in which they were committed.

    DATA is a data directory that nobody serves, or a backup; of a running broker, take a backup and dump that. Nothing
    is written to it. What is damaged is left out and counted on stderr: `broker verify` names it. What the broker keeps
    for itself (consumers, delayed messages) is in backups only.

    A line has channel, sequence, epoch, time_us and payload, and where the message has them key, headers, publisher,
    priority and expiry_s. Bytes that are not UTF-8 stand in base64 under the name with _base64 behind it.

    \b
    broker dump /var/lib/broker > all.jsonl
    broker dump backup --channel 'chat.acme.>' | gzip > acme.jsonl.gz
    broker load all.jsonl --url broker://127.0.0.1:4771

    \b
    Exit status: 0 everything is there, 1 damaged messages were left out, 6 it
    could not be read.
    """
    from broker.cli.jsonl import encode_line
    from broker.log.dump import Message, dump
    from broker.model.names import check_pattern, matches

    checked = [check_pattern(pattern) for pattern in patterns or (">",)]
    messages = 0
    write = sys.stdout.write

    def wanted(name: bytes) -> bool:
        return any(matches(pattern, name) for pattern in checked)

    def give(message: Message) -> None:
        nonlocal messages
        write(encode_line(message) + "\n")
        messages += 1

    with watched("dumping", quiet=quiet) as tell:
        report = dump(path, wanted, give, tell)
    if not report.sound:
        click.echo(f"{messages:,} messages; {len(report.faults):,} faults: broker verify {path} names them", err=True)
        return ExitCode.WRONG
    if sys.stderr.isatty() and not quiet:
        click.echo(f"{messages:,} messages", err=True)
    return ExitCode.OK
