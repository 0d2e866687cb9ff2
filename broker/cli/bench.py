"""`broker bench`: load a broker, verify every message, and report what it cost."""

from __future__ import annotations

import sys
from itertools import product
from typing import TYPE_CHECKING, Any

import click

from broker.cli import ExitCode

if TYPE_CHECKING:
    from broker.bench.options import Options
    from broker.bench.result import Result

WORKS = (
    "pubsub", "fanout", "many", "latency", "replay", "client", "idle", "channels", "cold", "restart", "storm", "shared",
    "slow", "catchup", "requests", "transactions", "queue", "delayed",
)  # fmt: skip


def counts(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Take one whole number, or several with commas between: the work runs once for each."""
    try:
        return None if value is None else tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"got {value!r}, expected a whole number or several with commas between") from None


class BenchCommand(click.Command):
    """`broker bench`, of which one work has a command line of its own: `compare` runs other brokers as well."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] != ["compare"]:
            return super().make_context(info_name, args, parent, **extra)
        from broker.cli.compare import command as compare

        return compare.make_context(f"{info_name} compare", args[1:], parent, **extra)


@click.command(
    "bench", cls=BenchCommand, epilog="The exit status is 1 if a message was lost, duplicated, reordered or changed."
)
@click.argument("work", type=click.Choice(WORKS))
@click.option(
    "--durability",
    type=click.Choice(["ephemeral", "accepted", "synced"]),
    default="synced",
    show_default=True,
    help="What every acknowledgement must promise.",
)
@click.option("--publishers", type=click.IntRange(0), metavar="N", help="Connections that publish.")
@click.option(
    "--subscribers", callback=counts, metavar="N[,N...]", help="Connections that read; with commas, one run for each."
)
@click.option(
    "--channels",
    callback=counts,
    metavar="N[,N...]",
    help="Channels that are published to in turn; with commas, one run for each.",
)
@click.option(
    "--payload", type=int, default=128, show_default=True, metavar="BYTES", help="Bytes of a message, from 24."
)
@click.option(
    "--batch",
    type=int,
    metavar="N",
    help="Records in a PUBLISH frame, or messages in a transaction.  [default: 1; `restart`: 100; `transactions`: 10]",
)
@click.option("--rate", type=click.IntRange(0), metavar="N", help="Messages a second; 0 is as fast as it goes.")
@click.option("--seconds", type=click.FloatRange(0), metavar="S", help="How long to publish, or for `idle` to wait.")
@click.option("--messages", type=click.IntRange(0), metavar="N", help="How many to publish, instead of --seconds.")
@click.option("--url", metavar="URL", help="A running server.  [default: start one]")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write a line of JSON for each result; - prints them instead.",
)
@click.option("--pattern", is_flag=True, help="Subscribe by one pattern instead of by names.")
@click.option("--web", is_flag=True, help="Subscribers read over WebSockets, of a server that is started.")
@click.option("--crc", is_flag=True, help="Check every chunk's CRC-32C as well.")
@click.option("--ids", is_flag=True, help="Publish by message id; the window is 1,000,000 messages of a channel.")
@click.option("--pin", is_flag=True, help="Keep server and driver on cores of their own (Linux).")
@click.option("--embedded", is_flag=True, help="`client`: the broker in this process instead of a server.")
@click.option("--archived", is_flag=True, help="`replay`: read when all of it is in the archive.")
@click.option("--stored-bytes", type=click.IntRange(1), metavar="BYTES", help="`restart`: what the files hold.")
@click.option("--unarchived-bytes", type=click.IntRange(0), metavar="BYTES", help="`restart`: how much not archived.")
@click.option("--clients", type=click.IntRange(1), metavar="N", help="`storm`: those who come back.  [default: 5000]")
@click.option("--slow", type=click.IntRange(1), metavar="N", help="`slow`: those who stop reading.  [default: 900]")
@click.option("--members", type=click.IntRange(1), metavar="N", help="`queue`, --acks: who works it off.  [default: 4]")
@click.option("--acks", is_flag=True, help="`transactions`: each acknowledges a message too, by the native driver.")
@click.option("--keys", type=click.IntRange(1), metavar="N", help="`queue`: keys of its messages, each in order.")
@click.option("--one-at-a-time", is_flag=True, help="`queue`: a member has one message at a time.")
@click.option("--no-read-back", "read_back", flag_value=False, default=True, help="`channels`: leave out the reading.")
@click.option(
    "--window",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Records under way to the slowest reader.  [default: what credit allows]",
)
def command(
    work: str,
    subscribers: tuple[int, ...] | None,
    channels: tuple[int, ...] | None,
    json_path: str | None,
    **given: Any,
) -> ExitCode:
    """Load a broker and verify content, order and count of every message.

    \b
    pubsub   publishers to subscribers, as fast as the slowest reads
    fanout   one publisher to 10, then 100, then 1,000 subscribers
    many     50 publishers to 1,000 channels to 50 subscribers
    latency  at a steady --rate, timed from when each was due
    replay   publish first, then read it all from the start
    client   the Python client: post, batches, messages, publish
    idle     what 10,000 subscribed connections cost in memory
    channels 1,000,000 channels at random for 60 s, then all of it is read back; the latency is that of answers
    cold     the first publish to each of 1,000,000 stored channels after a start with nothing cached
    restart  a start after SIGKILL, with nothing cached and half of what is stored not archived
    storm    --clients with --channels each are cut off at once and come back; the latency is that of others
    shared   8 processes (--publishers), each publishing and reading: a server, then a shared directory, killed at last
    slow     --slow of the --subscribers stop reading, then read it all; the latency is that of the others
    transactions  256 tasks (--publishers) of the Python client, each with a transaction of --batch messages at a time;
             with --acks as many of the native driver, each of which acknowledges a message of a queue as well
    catchup  --subscribers read --messages from the start; the latency is that of others, who are live at --rate
    requests one task that asks, then 1,000; --subscribers respond; --durability ephemeral is what requests are for
    delayed  --messages wait for tomorrow, then --rate are due each second; the latency is how late they come
    queue    --messages are published, then 4 --members lease and acknowledge each; the latency is that of answers

    `broker bench compare` does works on other brokers as well, and tells who is how much better; its options are its
    own: `broker bench compare --help`.

    Without --url a server is started for the occasion, with its journal in a temporary directory: TMPDIR chooses
    whose disk is measured. A server at --url needs profiles for bench.e.> (ephemeral), bench.a.> (accepted) and
    bench.s.> (synced); channels stay behind there.

    \b
    broker bench pubsub --durability ephemeral
    broker bench latency --rate 100000 --json latency.json
    broker bench fanout --subscribers 1000 --url broker://127.0.0.1:4770
    broker bench channels --channels 1000,1000000
    """
    from broker.bench.report import print_results
    from broker.bench.works import run_work

    results: list[Result] = []
    for options in options_of(work, subscribers, channels, given):
        found = run_work(options, **(homes() if work in ("client", "requests", "shared", "transactions") else {}))
        results += found
        if json_path != "-":
            print_results(found, sys.stdout)
    if json_path is not None:
        write_json(results, json_path)
    return ExitCode.OK if all(result.right for result in results) else ExitCode.WRONG


def options_of(
    work: str, subscribers: tuple[int, ...] | None, channels: tuple[int, ...] | None, given: dict[str, Any]
) -> list[Options]:
    """Put what was given over the work's defaults; one set of options for each count of subscribers and channels.

    Raises:
        UsageError: an option is out of its range, or makes no sense for the work.
    """
    from broker.bench.options import ACKS_MEMBERS, DEFAULTS, Options, Work, complaint
    from broker.model.levels import parse_level
    from broker.model.settings import GIB

    defaults = DEFAULTS[Work(work)]
    chosen = {name: value for name, value in given.items() if value is not None}
    # --messages alone bounds a run by their number, whatever the work's own bound would be. `catchup` needs both.
    alone = chosen.get("messages") and not (defaults.messages and defaults.seconds)
    seconds = chosen.pop("seconds", 0.0 if alone else defaults.seconds)
    durability = parse_level(chosen.pop("durability"))
    merged = {
        "publishers": defaults.publishers,
        "rate": defaults.rate,
        "messages": defaults.messages,
        "batch": defaults.batch,
        "stored_bytes": defaults.stored_bytes,
        "clients": defaults.clients,
        "slow": defaults.slow,
        "members": ACKS_MEMBERS if chosen.get("acks") else defaults.members,
        "unarchived_bytes": min(defaults.unarchived_bytes, chosen.get("stored_bytes", GIB) // 2),
        **chosen,
    }
    every = [
        Options(
            Work(work), durability=durability, seconds=seconds, subscribers=readers, **merged | own(work, names, given)
        )
        for readers, names in product(subscribers or defaults.subscribers, channels or (defaults.channels,))
    ]
    for options in every:
        wrong = complaint(options)
        if wrong is not None:
            raise click.UsageError(wrong)
    return every


def own(work: str, channels: int, given: dict[str, Any]) -> dict[str, int]:
    """Return what follows from the number of channels: `cold` has one message for each."""
    return {"channels": channels} | ({"messages": given.get("messages") or channels} if work == "cold" else {})


def homes() -> dict[str, Any]:
    """Return what opens the homes of the Python API; other processes can be handed it."""
    from functools import partial

    from broker import Broker, connect
    from broker.bench.server import bench_profiles

    return {
        "connect": connect,
        "open_embedded": partial(Broker.open, profiles=bench_profiles()),
        "open_shared": partial(Broker.open, shared=True, profiles=bench_profiles(), connect_timeout_s=60.0),
    }


def write_json(results: list[Result], path: str) -> None:
    """Write one line of JSON for each result; a single one is a JSON document of its own."""
    import json

    with click.open_file(path, "w") as file:
        file.writelines(json.dumps(result.as_json()) + "\n" for result in results)
