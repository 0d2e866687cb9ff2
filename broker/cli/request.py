"""`broker request`: ask whoever listens to a channel, and print the reply."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from broker.cli.pub import parse_headers
from broker.cli.sub import as_json, as_raw, as_text

if TYPE_CHECKING:
    from broker.cli.sub import Form
    from broker_native.messages import Message


async def ask(url: str, channel: str, payload: bytes, headers: dict[str, object] | None, timeout_s: float) -> Message:
    """Ask once; returns the reply."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.request(channel, payload, headers=headers, timeout_s=timeout_s)


@click.command("request")
@click.argument("channel")
@click.argument("text", required=False)
@click.option("--header", "headers", multiple=True, metavar="KEY=VALUE", help="Header of the request; repeatable.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True,
              metavar="SECONDS", help="How long to wait for the reply.")  # fmt: skip
@click.option("--json", "form", flag_value="json", help="The reply as an object.")
@click.option("--raw", "form", flag_value="raw", help="The payload's bytes and nothing else.")
@click.option("--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]")
def command(
    channel: str, text: str | None, headers: tuple[str, ...], timeout_s: float, form: str | None, url: str | None
) -> None:
    """Ask CHANNEL with TEXT, or all of stdin, and print the first reply.

    On an ephemeral channel to which nobody subscribes it fails at once.

    \b
    broker request live.add '1 2'
    broker request live.thumbnail --raw --timeout 30 < photo.jpg > small.jpg
    """
    from broker.remote.address import URL_DEFAULT

    payload = sys.stdin.buffer.read() if text is None else text.encode()
    reply = asyncio.run(ask(url or URL_DEFAULT, channel, payload, parse_headers(headers), timeout_s))
    forms: dict[str | None, Form] = {"json": as_json, "raw": as_raw}
    sys.stdout.buffer.write((forms.get(form) or as_text(False, sys.stdout.isatty()))(reply))
