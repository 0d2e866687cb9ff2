"""`broker top`: a live view of a running server: how much, how fast, at what price, and who is behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from broker.cli.top.watch import Show

READERS_MAX = 500
CONSUMERS_MAX = 100
"""As many as a server tells in one answer."""


@click.command("top")
@click.option("--interval", "interval_s", type=click.FloatRange(0.1, 3_600), default=1.0, show_default=True,
              metavar="SECONDS", help="Between two looks.")  # fmt: skip
@click.option("--once", is_flag=True, help="One look, over one interval; the same as --count 1.")
@click.option("--count", "looks", type=click.IntRange(1), metavar="N", help="End after so many looks.")
@click.option("--readers", "readers_max", type=click.IntRange(0, READERS_MAX), default=50, show_default=True,
              metavar="N", help="Ask for so many of those who lag, the ones most behind.")  # fmt: skip
@click.option("--consumers", "consumers_max", type=click.IntRange(0, CONSUMERS_MAX), default=20, show_default=True,
              metavar="N", help="Ask for so many consumers and work queues, the first ones by name.")  # fmt: skip
@click.option("--plain", is_flag=True, help="A row a look; without a terminal it is so anyway.")
@click.option("--json", "as_json", is_flag=True, help="An object a line, with all that the server tells.")
@click.option("--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]")
def command(
    interval_s: float,
    once: bool,
    looks: int | None,
    readers_max: int,
    consumers_max: int,
    plain: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Watch a running server: rates, latency, commits, memory, and who is behind.

    On a terminal it is a picture that is drawn anew, until Ctrl-C. Elsewhere, or with --plain, it is a row a look under
    one heading, each for the time since the look before. A server that restarts or hangs is waited for.

    \b
    messages  records and bytes a second that came in, and that went out to
              subscribers; how busy a core the server keeps (100 % is all of it)
    latency   of the last minute: from a commit's start until it is on the disk
              and known; how late the server comes to its work; this question
    commits   groups that went to the disk together, and what waits for the
              archive
    memory    what queues hold, of limits.memory_bytes_max: from 80 % on
              publishers are not read, from 95 % on they are refused
    jobs      of durable consumers and work queues, if there are any: what each
              has done a second, what waits, what is under way and at how many
              members, and what was given up for good
    behind    subscriptions that are read too slowly and get what is stored at
              their own pace. By how much, how old the newest message is that
              they got (late), since when, and who they are. They hurt nobody:
              look at the reader if one stays, at retention if it is far behind

    \b
    broker top
    broker top --url broker+unix:///run/broker.sock --interval 5
    broker top --once --json | jq '.readers[0]'
    broker top --plain --count 60 >> top.log
    broker top --json | jq -c '[.time, .rates.records_in_per_s, .stats.commit_p99_us]'
    """
    from broker.remote.address import URL_DEFAULT

    if once and looks not in (None, 1):
        raise click.UsageError(f"--once and --count {looks} are two ends: give one of them")
    if plain and as_json:
        raise click.UsageError("--plain and --json are two forms: give one of them")
    url = url or URL_DEFAULT
    looks = 1 if once else looks
    watched = sys.stdout.isatty()
    if plain or as_json or not watched or os.environ.get("TERM") in (None, "", "dumb", "unknown"):
        from broker.cli.top.rows import Rows

        shown: AbstractContextManager[Show] = nullcontext(Rows(as_json=as_json, watched=watched))
    elif once:
        from broker.cli.top.screen import Still

        shown = nullcontext(Still(url))
    else:
        from broker.cli.top.screen import Screen

        shown = Screen(url, interval_s)
    try:
        asyncio.run(run(url, shown, interval_s, readers_max, consumers_max, looks))
    except asyncio.CancelledError:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)


async def run(
    url: str,
    shown: AbstractContextManager[Show],
    interval_s: float,
    readers_max: int,
    consumers_max: int,
    looks: int | None,
) -> None:
    """Connect, and look; the terminal is taken when the server is there, and given back in any case."""
    from broker import connect
    from broker.cli.top.watch import Watch

    task = asyncio.current_task()
    assert task is not None
    async with connect(url, name="broker top") as bus:
        with shown as show:
            # Ctrl-C is seen to by asyncio; SIGTERM would leave the terminal as it is.
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
            await Watch(bus, show, interval_s, readers_max, consumers_max).run(looks)
