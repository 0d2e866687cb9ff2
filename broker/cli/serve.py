"""`broker serve`: build the configuration and hand it to the running broker."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.options import config_option, overrides, set_option


@click.command("serve")
@click.option("--data", metavar="DIRECTORY", help="Directory of the journal.  [default: broker-data]")
@click.option("--tcp", metavar="HOST:PORT", help='TCP listener; "" for none.  [default: 127.0.0.1:4770]')
@click.option("--unix", metavar="PATH", help="Unix socket's listener.  [default: none]")
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
@set_option("Any other setting, such as limits.payload_bytes_max=65536; repeatable.")
def command(
    data: str | None,
    tcp: str | None,
    unix: str | None,
    config_path: Path | None,
    loop: str | None,
    ready_file: Path | None,
    log_level: str | None,
    log_format: str | None,
    drain_s: float | None,
    segment_bytes: str | None,
    settings: tuple[str, ...],
) -> None:
    """Run the server until SIGTERM or Ctrl-C.

    Settings come from defaults, then the file of --config, then the environment (BROKER_SERVER_TCP,
    BROKER_LIMITS_PAYLOAD_BYTES_MAX, ...), then these options; the last one wins. SIGHUP reads the file again and
    takes profiles, limits and the log level from it. It listens on loopback and Unix sockets only.

    `broker config` checks and shows the settings, `broker events` explains the log on stderr.

    \b
    broker serve --data /var/lib/broker --unix /run/broker/broker.sock
    broker serve --config broker.toml --log-format json
    broker serve --tcp 127.0.0.1:0 --ready-file ready.json --set limits.channels_max=5000
    """
    from broker.config import Config, check_listeners

    flags = overrides(settings) | {
        key: value
        for key, value in {
            "server.data": data,
            "server.tcp": tcp,
            "server.unix": unix,
            "server.loop": loop,
            "server.drain_s": drain_s,
            "server.log_level": log_level,
            "server.log_format": log_format,
            "storage.segment_bytes": segment_bytes,
        }.items()
        if value is not None
    }
    config = Config.load(config_path, flags=flags)
    check_listeners(config.server)
    # Imported when everything that can be refused without them has been: these load the native modules and LMDB.
    from broker.edge.serve import run

    run(config, ready_file=ready_file)
