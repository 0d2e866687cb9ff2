"""`broker serve`: build the configuration and hand it to the running broker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli.options import config_option, overrides, set_option
from broker.model.errors import BrokerError

if TYPE_CHECKING:
    from broker.edge.starter import Starter


def inherited(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Take the two descriptors of --starter."""
    if value is None:
        return None
    try:
        ready, lock = map(int, value.split(","))
    except ValueError:
        raise click.BadParameter(f"got {value!r}, expected two descriptors with a comma between") from None
    return ready, lock


@click.command("serve")
@click.option("--data", metavar="DIRECTORY", help="Directory of the journal.  [default: broker-data]")
@click.option("--tcp", metavar="HOST:PORT", help='TCP listener; "" for none.  [default: 127.0.0.1:4770]')
@click.option("--unix", metavar="PATH", help="Unix socket's listener.  [default: none]")
@click.option("--web", metavar="HOST:PORT", help="Listener for browsers and HTTP.  [default: none; usually port 4780]")
@config_option("TOML file; SIGHUP reads it again.")
@click.option(
    "--loop", type=click.Choice(["auto", "uvloop", "asyncio"]), help="Event loop; auto takes uvloop if it is there."
)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write when the server takes connections.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe message.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Lines for people, or JSON objects.")
@click.option("--drain-s", type=float, metavar="SECONDS", help="What SIGTERM gives connections to finish.")
@click.option("--segment-bytes", metavar="SIZE", help='Size of a journal segment, such as "64MiB".')
@click.option(
    "--exit-when-idle",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="End when no connection has been open for so long; 0 is never.",
)
@click.option("--starter", callback=inherited, hidden=True, help="Descriptors of who waits: detach, and tell it.")
@set_option("Any other setting, such as limits.payload_bytes_max=65536; repeatable.")
def command(
    data: str | None,
    tcp: str | None,
    unix: str | None,
    web: str | None,
    config_path: Path | None,
    loop: str | None,
    ready_file: Path | None,
    log_level: str | None,
    log_format: str | None,
    drain_s: float | None,
    segment_bytes: str | None,
    exit_when_idle: float | None,
    starter: tuple[int, int] | None,
    settings: tuple[str, ...],
) -> None:
    """Run the server until SIGTERM or Ctrl-C.

    Settings come from defaults, then the file of --config, then the environment (BROKER_SERVER_TCP,
    BROKER_LIMITS_PAYLOAD_BYTES_MAX, ...), then these options; the last one wins. SIGHUP reads the file again and
    takes profiles, limits and the log level from it. With tls.certificate all TCP addresses speak TLS; one that is not
    loopback needs that and an access file, or what server.exposed names.

    `broker config` checks and shows the settings, `broker events` explains the log on stderr.

    \b
    broker serve --data /var/lib/broker --unix /run/broker/broker.sock
    broker serve --config broker.toml --log-format json
    broker serve --web 127.0.0.1:4780    # http://127.0.0.1:4780 in a browser
    broker serve --set tls.certificate=server.pem --set tls.key=server-key.pem    # broker+tls://
    broker serve --tcp 127.0.0.1:0 --ready-file ready.json --set limits.channels_max=5000
    broker serve --tcp "" --data bus --unix bus/broker.sock    # serves Broker.open("bus", shared=True)
    """
    waiting: Starter | None = None
    if starter is not None:
        from broker.edge.starter import Starter

        waiting = Starter.detach(*starter)
    flags = overrides(settings) | {
        key: value
        for key, value in {
            "server.data": data,
            "server.tcp": tcp,
            "server.unix": unix,
            "server.web": web,
            "server.loop": loop,
            "server.drain_s": drain_s,
            "server.log_level": log_level,
            "server.log_format": log_format,
            "storage.segment_bytes": segment_bytes,
            "server.exit_when_idle_s": exit_when_idle,
        }.items()
        if value is not None
    }
    try:
        serve(config_path, flags, ready_file, waiting)
    except BrokerError as failure:
        if waiting is not None:
            waiting.failed(failure)
        raise


def serve(config_path: Path | None, flags: dict[str, object], ready_file: Path | None, starter: Starter | None) -> None:
    """Judge the configuration, and run the server."""
    from broker.config import Config, check_listeners

    config = Config.load(config_path, flags=flags)
    check_listeners(config.server, config.guard)
    # Imported when everything that can be refused without them has been: these load the native modules and LMDB.
    from broker.edge.serve import run
    from broker.embedded import open_bus

    run(config, ready_file=ready_file, starter=starter, open_bus=open_bus)
