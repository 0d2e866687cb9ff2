"""What the verbs `broker consumer` and `broker queue` share: options, and how a consumer is told of."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from broker.cli.names import complete_consumer
from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.model.consumers import ConsumerInfo

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

url_option = click.option(
    "--url", envvar="BROKER_URL", show_envvar=True, help="The broker.  [default: broker://127.0.0.1:4770]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="An object a line.")
name_argument = click.argument("name", shell_complete=complete_consumer)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def settings_options(lease_help: str) -> Decorator:
    """Return the options that a consumer and a queue are made with."""
    options = (
        click.option(
            "--start",
            default="start",
            show_default=True,
            metavar="START",
            help="Where it begins: new, start, last:N, since:TIME, or a position.",
        ),
        click.option(
            "--lease",
            "lease_s",
            type=click.FloatRange(0),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help=lease_help,
        ),
        click.option(
            "--attempts",
            "attempts_max",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            metavar="N",
            help="Give a job up after so many; 0: never.",
        ),
        click.option(
            "--backoff",
            "backoff_s",
            type=click.FloatRange(0),
            nargs=2,
            default=(1.0, 60.0),
            show_default=True,
            metavar="FIRST LONGEST",
            help="Seconds that a failed job waits, before its second attempt and at most.",
        ),
        click.option("--dead-letter", metavar="CHANNEL", help="Gets a copy of each job that is given up."),
        click.option("--paused", is_flag=True, help="Give nothing out until it is resumed."),
        click.option("--update", is_flag=True, help="Change the settings of one that is there."),
    )

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def url_of(url: str | None) -> str:
    """Return the broker's address, the default one if none is given."""
    from broker.remote.address import URL_DEFAULT

    return url or URL_DEFAULT


def confirm(what: str, yes: bool) -> None:
    """Ask whether it is meant, where somebody is there to be asked.

    Raises:
        Denied: Nobody is, and --yes was not said.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise error("DENIED", f"{what}: nobody is there to be asked", "Say --yes to do it without asking.")
    click.confirm(f"{what}?", abort=True, err=True)


def fields_of(info: ConsumerInfo) -> dict[str, object]:
    """Return all that is told of a consumer, as an object."""
    settings = info.settings
    fields: dict[str, object] = {
        "name": settings.name,
        "filters": list(settings.filters),
        "mode": settings.mode,
        "lease_s": settings.lease_ms / 1000,
        "attempts_max": settings.attempts_max,
        "backoff_s": [each / 1000 for each in settings.backoff_ms],
        "dead_letter": settings.dead_letter,
        "lanes": settings.lanes,
        "by_key": settings.by_key,
        "paused": settings.paused,
        "members": info.members,
        "lag": None if info.lag < 0 else info.lag,
        "ready": info.ready,
        "leased": info.leased,
        "delayed": info.delayed,
        "acked": info.acked,
        "redelivered": info.redelivered,
        "dead": info.dead,
        "held_channels": info.held_channels,
        "held_bytes": info.held_bytes,
    }
    if info.bus is not None:
        fields["done"] = str(info.bus)
    else:
        fields["done"] = {channel: f"{epoch}:{sequence}" for channel, epoch, sequence in info.positions}
    return fields


def json_line(info: ConsumerInfo) -> str:
    """Return a consumer as an object a line."""
    return json.dumps(fields_of(info)) + "\n"


def text_line(info: ConsumerInfo) -> str:
    """Return a consumer as columns: name, mode, members, what waits, what is under way, what is dead, filters."""
    settings = info.settings
    waiting = info.ready + info.delayed + max(info.lag, 0)
    state = "paused" if settings.paused else settings.mode
    figures = f"{info.members}\t{waiting}{'+' if info.lag < 0 else ''}\t{info.leased}\t{info.dead}"
    return f"{settings.name}\t{state}\t{figures}\t{' '.join(settings.filters)}\n"


def tell(info: ConsumerInfo) -> None:
    """Say for people what there is to tell of a consumer."""
    settings = info.settings
    kind = "consumer, one holder at a time" if settings.exclusive else "work queue"
    click.echo(f"{settings.name}: {kind}{', paused' if settings.paused else ''}")
    click.echo(f"  reads     {' '.join(settings.filters)}")
    lag = "not counted yet" if info.lag < 0 else f"{info.lag:,}"
    click.echo(f"  waiting   {info.ready:,} ready, {info.delayed:,} delayed, {lag} not looked at")
    click.echo(f"  under way {info.leased:,}, by {info.members} {'member' if info.members == 1 else 'members'}")
    click.echo(f"  so far    {info.acked:,} done, {info.redelivered:,} given out again, {info.dead:,} given up")
    if info.held_channels:
        channels = f"{info.held_channels:,} {'channel' if info.held_channels == 1 else 'channels'}"
        click.echo(f"  holds     about {info.held_bytes:,} bytes of {channels}, which retention would take")
    lease = f"{settings.lease_ms / 1000:g} s" if settings.lease_ms else "for ever"
    attempts = settings.attempts_max or "no bound of"
    first, longest = (each / 1000 for each in settings.backoff_ms)
    click.echo(f"  settings  lease {lease}, {attempts} attempts, back-off {first:g} to {longest:g} s")
    if settings.dead_letter is not None:
        click.echo(f"            dead letters in {settings.dead_letter}")
    more = [word for word, is_on in (("by priority", settings.lanes), ("by key", settings.by_key)) if is_on]
    if more:
        click.echo(f"            {', '.join(more)}")
    if info.bus is not None:
        click.echo(f"  done to   {info.bus}")
    for channel, epoch, sequence in info.positions:
        click.echo(f"  done to   {channel} {epoch}:{sequence}")


async def print_consumers(url: str, prefix: str, *, as_json: bool, mode: str | None) -> None:
    """Print a listing as it comes; with `mode` of those of one mode."""
    from broker import connect

    async with connect(url) as bus:
        async for info in bus.consumers(prefix):
            if mode in (None, info.settings.mode):
                sys.stdout.write(json_line(info) if as_json else text_line(info))


async def ask_info(url: str, name: str) -> ConsumerInfo:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.consumer_info(name)
