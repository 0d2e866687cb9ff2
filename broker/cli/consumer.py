"""`broker consumer`: make durable consumers, list them, say how far one is, take its next jobs, set it back."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from broker.cli.consumers import (
    ask_info,
    confirm,
    fields_of,
    json_option,
    name_argument,
    print_consumers,
    settings_options,
    tell,
    url_of,
    url_option,
    yes_option,
)
from broker.cli.sub import as_json as message_json
from broker.cli.sub import as_raw, as_text, parse_start
from broker.model.errors import error

if TYPE_CHECKING:
    from typing import Any

    from broker.bus import Start
    from broker.model.consumers import ConsumerInfo
    from broker_native.work import Job


@click.group("consumer", no_args_is_help=True)
def command() -> None:
    """Durable consumers: readers with a name, whose place the broker keeps.

    A consumer reads channels or patterns from where it began; what its holder acknowledges is done, also after
    restarts. One program holds it at a time: who comes later takes over. For work that many share see `broker queue`.

    \b
    broker consumer create billing 'orders.>' --start new
    broker consumer next billing --count 10
    broker consumer info billing
    broker consumer reset billing since:2026-01-31T08:00
    """


@command.command("create")
@click.argument("name")
@click.argument("filters", nargs=-1, required=True, metavar="PATTERN...")
@settings_options("How long its holder may take over a job; 0: for ever.")
@url_option
def create(name: str, filters: tuple[str, ...], start: str, lease_s: float, url: str | None, **settings: Any) -> None:
    """Make a consumer of some channels.

    It is called NAME and reads what the PATTERNs select. Made again with the same settings, nothing changes.

    \b
    broker consumer create billing 'orders.>'
    broker consumer create audit a b --start new --attempts 5 --dead-letter dead.audit
    """
    tell(asyncio.run(ask_create(url_of(url), name, filters, parse_start(start), lease_s or None, settings)))


async def ask_create(
    url: str, name: str, filters: tuple[str, ...], start: Start, lease_s: float | None, settings: dict[str, Any]
) -> ConsumerInfo:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.create_consumer(name, *filters, start=start, lease_s=lease_s, **settings)


@command.command("ls")
@click.argument("prefix", default="")
@json_option
@url_option
def list_consumers(prefix: str, as_json: bool, url: str | None) -> None:
    """Print consumers and work queues.

    In order, those whose names begin with PREFIX. Columns: name, mode (or paused), members, jobs that wait (+: and
    some that nobody has counted), jobs under way, jobs given up, what it reads.

    \b
    broker consumer ls
    broker consumer ls orders. --json | jq 'select(.lag > 1000).name'
    """
    asyncio.run(print_consumers(url_of(url), prefix, as_json=as_json, mode=None))


@command.command("info")
@name_argument
@json_option
@url_option
def info(name: str, as_json: bool, url: str | None) -> None:
    """Say how far a consumer or a work queue is, and how it is set.

    \b
    broker consumer info billing --json | jq .lag
    """
    found = asyncio.run(ask_info(url_of(url), name))
    if as_json:
        click.echo(json.dumps(fields_of(found)))
    else:
        tell(found)


@command.command("next")
@name_argument
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="So many jobs.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), default=5.0, show_default=True, metavar="SECONDS",
              help="End when none has come for so long.")  # fmt: skip
@click.option("--no-ack", is_flag=True, help="Give them back instead of acknowledging them.")
@click.option("--json", "form", flag_value="json", help="An object a line.")
@click.option("--raw", "form", flag_value="raw", help="The payloads' bytes and nothing else.")
@url_option
def take_next(name: str, count: int, timeout_s: float, no_ack: bool, form: str | None, url: str | None) -> None:
    """Print the next jobs, and acknowledge them.

    Of a consumer or a queue. It becomes its member for as long as that takes; of a consumer it becomes the holder,
    and whoever held it is told.

    \b
    broker consumer next billing
    broker consumer next billing --count 100 --timeout 1 --json | jq .payload
    broker consumer next billing --no-ack
    """
    taken = asyncio.run(print_next(url_of(url), name, count, timeout_s, form, no_ack=no_ack))
    if not taken:
        raise error(
            "TIMEOUT",
            f"{name}: no job within {timeout_s:g} s",
            "`broker consumer info` says what waits, whether it is paused, and who has what is under way.",
        )


async def print_next(url: str, name: str, count: int, timeout_s: float, form: str | None, *, no_ack: bool) -> int:
    """Print jobs as they come; returns how many there were."""
    from broker import connect

    taken = 0
    async with connect(url) as bus, bus.consume(name, window=min(count, 256)) as consumer:
        stream = aiter(consumer)
        with suppress(TimeoutError, StopAsyncIteration):
            while taken < count:
                async with asyncio.timeout(timeout_s):
                    job = await anext(stream)
                sys.stdout.buffer.write(line_of(job, form))
                sys.stdout.buffer.flush()
                taken += 1
                if not no_ack:
                    job.ack()
    return taken


def line_of(job: Job, form: str | None) -> bytes:
    """Return a job as `broker sub` has messages, with its attempt in JSON."""
    message: Any = job  # a job has what a message has
    if form == "raw":
        return as_raw(message)
    if form == "json":
        fields = json.loads(message_json(message))
        return json.dumps({**fields, "attempt": job.attempt, "redelivered": job.redelivered}).encode() + b"\n"
    return as_text(True, sys.stdout.isatty())(message)


@command.command("reset")
@name_argument
@click.argument("start")
@yes_option
@url_option
def reset(name: str, start: str, yes: bool, url: str | None) -> None:
    """Have a consumer go on somewhere else.

    What is before START is done, what is behind it comes (again). START is new, start, last:N, since:TIME,
    EPOCH:SEQUENCE of its one channel, or JOURNAL:GROUP:INDEX.

    \b
    broker consumer reset billing start --yes
    broker consumer reset billing since:2026-01-31T08:00 --yes
    """
    place = parse_start(start)
    confirm(f"reset {name} to {start}", yes)
    tell(asyncio.run(ask_reset(url_of(url), name, place)))


async def ask_reset(url: str, name: str, start: Start) -> ConsumerInfo:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.reset_consumer(name, start)


@command.command("pause")
@name_argument
@url_option
def pause(name: str, url: str | None) -> None:
    """Have nothing given out until it is resumed.

    Of a consumer or a queue; it stays so over restarts, and what is under way can be settled.

    \b
    broker consumer pause billing
    """
    asyncio.run(ask_pause(url_of(url), name, paused=True))


@command.command("resume")
@name_argument
@url_option
def resume(name: str, url: str | None) -> None:
    """Have jobs given out again.

    Of a consumer or a queue that was paused.

    \b
    broker consumer resume billing
    """
    asyncio.run(ask_pause(url_of(url), name, paused=False))


async def ask_pause(url: str, name: str, *, paused: bool) -> None:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        await (bus.pause_consumer(name) if paused else bus.resume_consumer(name))


@command.command("rm")
@name_argument
@yes_option
@url_option
def remove(name: str, yes: bool, url: str | None) -> None:
    """Remove a consumer or a queue, for good.

    What it remembers goes with it. The messages stay.

    \b
    broker consumer rm billing --yes
    """
    confirm(f"remove {name} and what it remembers", yes)
    asyncio.run(ask_remove(url_of(url), name))


async def ask_remove(url: str, name: str) -> None:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        await bus.remove_consumer(name)
