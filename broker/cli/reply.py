"""`broker reply`: answer what is asked of channels, with a text or by a program."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING

import click

from broker.cli.sub import tell_event
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from broker_native.messages import Message

    Responder = Callable[[Message], Awaitable[bytes]]


def say(text: str) -> Responder:
    """Answer everything with a text."""

    async def respond(message: Message) -> bytes:
        return text.encode()

    return respond


async def echo(message: Message) -> bytes:
    """Answer with what was asked."""
    return message.payload


def run(words: list[str]) -> Responder:
    """Answer with what a program prints that reads what was asked."""

    async def respond(message: Message) -> bytes:
        pipe = asyncio.subprocess.PIPE
        program = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
        printed, _ = await program.communicate(message.payload)
        if program.returncode:
            click.echo(f"{words[0]}: status {program.returncode}, for message {message.sequence}", err=True)
        return printed

    return respond


class Answering:
    """Answers one request after the other, until there have been enough of them."""

    def __init__(self, respond: Responder, count: int | None) -> None:
        self._respond = respond
        self._count = count
        self.answered = 0

    async def run(self, url: str, filters: tuple[str, ...], group: str | None) -> None:
        """Answer what comes; what asks for no reply is passed over."""
        from broker import BrokerError, connect

        async with connect(url) as bus, bus.subscribe(*filters, group=group, on_event=tell_event) as subscription:
            click.echo("ready", err=True)
            async for message in subscription:
                try:
                    bus.respond(message, await self._respond(message))
                except BrokerError as failure:
                    if failure.name != "INVALID_CHANNEL":
                        raise
                    continue
                self.answered += 1
                if self.answered == self._count:
                    return


@click.command("reply")
@click.argument("filters", metavar="PATTERN...", nargs=-1, required=True)
@click.option("--text", help="Answer everything with this.")
@click.option("--command", "program", metavar="WORDS", help="Answer with what a program prints; it reads the request.")
@click.option("--group", metavar="NAME", help="Share the requests with the other members of a live group.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many replies.")
@click.option("--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]")
def command(
    filters: tuple[str, ...],
    text: str | None,
    program: str | None,
    group: str | None,
    count: int | None,
    url: str | None,
) -> None:
    """Answer the requests of channels that the PATTERNs select; with neither --text nor --command by what was asked.

    \b
    broker reply live.ping --text pong
    broker reply 'live.count.*' --command 'wc -w' --group counters
    """
    from broker.remote.address import URL_DEFAULT

    if text is not None and program is not None:
        raise click.UsageError("--text and --command are two answers; give one of them")
    respond: Responder = echo
    if text is not None:
        respond = say(text)
    elif program is not None:
        words = shlex.split(program)
        if not words:
            raise error("INVALID_CONFIG", "command: got no words, expected a program's name")
        respond = run(words)
    asyncio.run(Answering(respond, count).run(url or URL_DEFAULT, filters, group))
