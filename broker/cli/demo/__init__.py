"""`broker demo`: the broker's main job on real input, with a SIGKILL in the middle, and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from broker.cli import ExitCode
    from broker.cli.demo.play import Account
    from broker.cli.demo.screen import Screen
    from broker_native.histogram import Histogram

MESSAGES_DEFAULT = 300_000
PERCENTILES = (("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9))


@click.command("demo")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="FILE",
    show_envvar=True,
    help="A text to publish line by line.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Data directory, which is kept.  [default: a temporary one]",
)
@click.option(
    "--messages",
    type=click.IntRange(min=1),
    default=MESSAGES_DEFAULT,
    show_default=True,
    help="Lines to publish at most.",
)
def command(file: Path | None, data: Path | None, messages: int) -> ExitCode:
    """Publish a corpus, kill the broker, resume, and judge.

    It starts `broker serve` on a free port, publishes the source of Python's standard library (or FILE) line by line
    over TCP, kills the broker with SIGKILL when half of it is acknowledged, starts it again, and compares what every
    subscriber received with what was published. Exit status 0 says that nothing was lost, duplicated, reordered or
    altered; 1 says that something was.
    """
    import asyncio
    import tempfile

    from broker.cli.demo.screen import Screen

    screen = Screen()
    # Removed even when the demo fails or is interrupted; a directory that was named is the caller's to keep.
    with tempfile.TemporaryDirectory(prefix="broker-demo-") as folder:
        return asyncio.run(_demo(screen, file, data or Path(folder, "data"), Path(folder), messages))


async def _demo(screen: Screen, file: Path | None, data: Path, folder: Path, messages: int) -> ExitCode:
    from broker.cli import ExitCode
    from broker.cli.demo.corpus import count_lines, file_sources, library_sources
    from broker.cli.demo.play import Play
    from broker.cli.demo.server import Server

    sources = library_sources() if file is None else file_sources(file)
    lines = count_lines(sources, messages)
    messages = min(messages, sum(lines.values()))
    what = f"the file {file}" if file else "Python's own standard library"
    screen.step("Corpus", f"{what}: {messages:,} lines of text in {len(lines)} channels, {_some(lines)}.")
    server = Server(data, folder)
    try:
        ready_s = await server.start()
        screen.step(
            "Start",
            f"`broker serve`, process {server.pid}, on {server.address} with its data in {data}: ready after "
            f"{ready_s * 1e3:.0f} ms.",
        )
        account = await Play(server, sources, lines, messages, screen).run()
    finally:
        await server.stop()
    screen.verdict(_rows(account), account.total.passed)
    return ExitCode.OK if account.total.passed else ExitCode.WRONG


def _some(lines: dict[str, int]) -> str:
    """Name the first channels of many."""
    names = sorted(lines, key=lambda channel: -lines[channel])[:3]
    return ", ".join(sorted(names)) + (", …" if len(lines) > len(names) else "")


def _rows(account: Account) -> list[tuple[str, str]]:
    """Return the verdict's lines."""
    total, outage = account.total, account.outage
    rows = [
        ("messages in", f"{account.published:,}"),
        ("messages out", f"{total.received:,} of {total.expected:,}"),
    ]
    for name, tally in account.tallies.items():
        rows.append((f"  {name}", f"{tally.received:,} {'as published' if tally.passed else 'WRONG'}"))
    rows += [
        ("lost", f"{total.lost:,}"),
        ("duplicated", f"{total.duplicated:,}"),
        ("reordered", f"{total.reordered:,}"),
        ("channels altered", f"{total.altered:,}"),
        ("rate", f"{account.per_s[0]:,.0f} messages/s in, {account.per_s[1]:,.0f} out, one process at the other end"),
        ("latency", _latency(account.latency_us)),
        ("fsyncs", f"{account.fsyncs:,}, {account.published / max(1, account.fsyncs):,.0f} messages in each"),
        ("from kill to ready", f"{outage.ready_s * 1e3:,.0f} ms, the start of Python included"),
        ("from kill to resumed", f"{outage.resumed_s * 1e3:,.0f} ms, {outage.under_way:,} messages were on their way"),
    ]
    return rows


def _latency(latency_us: Histogram) -> str:
    if latency_us.count == 0:
        return "too few messages to say"
    return "  ".join(f"{name} {latency_us.percentile(percent) / 1e3:.2f} ms" for name, percent in PERCENTILES)
