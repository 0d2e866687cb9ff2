"""`broker load`: publish what `broker dump` wrote."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.watch import watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from broker.cli.jsonl import Loaded
    from broker.client.client import Client

LINE_BYTES_MAX = 64 << 20
BATCH = 1000
"""Lines between two waits for all answers, so that an error is near the line that it is about."""
PIECE_BYTES = 1 << 20


def producer_of(source: BinaryIO, name: str) -> bytes:
    """Return the producer whose line the lines of a file are: the same for the same bytes.

    Args:
        source: the file at its beginning, where it is left.
        name: stands for the content if it is not empty.
    """
    digest = hashlib.sha256(b"broker load\0")
    if name:
        digest.update(name.encode())
    else:
        while piece := source.read(PIECE_BYTES):
            digest.update(piece)
        source.seek(0)
    return digest.digest()[:16]


class Loading:
    """Publishes lines and counts what became of them.

    Each line of the file takes exactly one number of the producer's line, so the highest number that the broker knows
    is the last line that it has, and whoever loads the same file again goes on behind it.
    """

    def __init__(self, bus: Client, time_header: str | None, tell: Callable[[int, int], None], total: int) -> None:
        self._bus = bus
        self._time_header = time_header
        self._tell = tell
        self._total = total
        self.counts: Counter[str] = Counter()

    async def run(self, source: BinaryIO) -> None:
        """Publish every line that was not published before.

        Raises:
            BrokerError: a line is none of ours, or the broker refuses a message; the detail names the line.
        """
        from broker.cli.jsonl import decode_line
        from broker.model.errors import error

        skip = self._bus.highest
        done = number = 0
        while line := source.readline(LINE_BYTES_MAX + 1):
            number += 1
            done += len(line)
            if len(line) > LINE_BYTES_MAX:
                raise error("INVALID_RECORD", f"line {number}: got more bytes than the limit, {LINE_BYTES_MAX} bytes")
            if number <= skip:
                self.counts["before"] += 1
                continue
            self._post(decode_line(line.decode("utf-8", "replace"), number), number)
            await self._bus.drain()
            if number % BATCH == 0:
                await self._settle(number)
                self._tell(done, self._total)
        await self._settle(number)

    def _post(self, message: Loaded, number: int) -> None:
        from broker.model.errors import BrokerError

        headers = dict(message.headers or {})
        if self._time_header and message.time_us is not None:
            headers[self._time_header] = message.time_us
        options: dict[str, Any] = {"headers": headers or None, "key": message.key, "priority": message.priority}
        try:
            self._bus.post(message.channel, message.payload, expiry_s=message.expiry_s, **options)
        except BrokerError as failure:
            raise at_line(failure, f"line {number}") from None
        self.counts["published"] += 1

    async def _settle(self, number: int) -> None:
        from broker.model.errors import BrokerError

        try:
            await self._bus.flush()
        except BrokerError as failure:
            begun = (number - 1) // BATCH * BATCH + 1
            raise at_line(failure, f"among lines {begun} to {number}") from None


def at_line(failure: Any, where: str) -> Any:
    """Return an error that also says at which line it came up."""
    return type(failure)(failure.code, f"{where}: {failure.detail}", failure.hint, failure.name)


async def load(url: str, source: BinaryIO, producer: bytes, time_header: str | None, tell: Any, total: int) -> Loading:
    """Publish a file; returns what became of its lines."""
    from broker import connect

    async with connect(url, producer=producer) as bus:
        loading = Loading(bus, time_header, tell, total)
        await loading.run(source)
    return loading


@click.command("load")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]")
@click.option("--as", "name", default="", metavar="NAME", help="What the load is known by, instead of its bytes.")
@click.option("--time-header", metavar="NAME", help="Keep the original time (µs since 1970) in a header of this name.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
def command(path: Path, url: str | None, name: str, time_header: str | None, quiet: bool) -> None:
    """Publish the messages of FILE, the lines that `broker dump` wrote; - is stdin.

    The broker stamps them anew: sequence, epoch, time and publisher are those of now, and an expiry counts from now on.
    The order within each channel is that of the file.

    A load that was cut short is simply repeated: the broker knows a file by its bytes (or by --as) and what it has of
    it, and goes on behind that. Stdin has to be named by --as to be known again. When the broker refuses a message the
    load stops there; up to 1,000 lines behind it may be stored already, and are stored twice when it is repeated.

    \b
    broker load all.jsonl
    broker load all.jsonl --time-header published_us
    zcat acme.jsonl.gz | broker load - --as acme-2026-11
    """
    from broker.remote.address import URL_DEFAULT

    standard = str(path) == "-"
    if standard and not name:
        name = f"stdin {time.time_ns()}"
    begun = time.monotonic()
    opened = nullcontext(sys.stdin.buffer) if standard else path.open("rb")
    with opened as source, watched("loading", quiet=quiet) as tell:
        total = 0 if standard else path.stat().st_size
        producer = producer_of(source, name)
        loading = asyncio.run(load(url or URL_DEFAULT, source, producer, time_header, tell, total))
    if not quiet:
        counts = loading.counts
        known = f", {counts['before']:,} were there before" if counts["before"] else ""
        click.echo(
            f"published {counts['published']:,} messages in {time.monotonic() - begun:.2f} s{known}; "
            "times and sequences are new",
            err=True,
        )
