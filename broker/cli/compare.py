"""`broker bench compare`: the same works on this broker and on others, in one run."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from broker.cli import ExitCode

if TYPE_CHECKING:
    from broker.bench.compare.demands import Demand
    from broker.bench.compare.outcome import Comparison
    from broker.bench.compare.rounds import Homes, Plan
    from broker.bench.peers.work import Address

WITH = ("redis", "nats", "mosquitto", "rabbitmq", "embedded")
WORKS = (
    "ephemeral", "fanout-10", "fanout-100", "fanout-1000", "synced", "everysec", "replay", "latency", "queue",
    "queue-everysec", "queue-single", "python", "python-synced", "embedded",
)  # fmt: skip
FILE = click.Path(dir_okay=False)


def names(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Take names with commas between them, each of them known; each counts once."""
    if value is None:
        return None
    known = WITH if param.name == "peers" else WORKS
    given = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    strange = [name for name in given if name not in known]
    if strange or not given:
        raise click.BadParameter(f"got {', '.join(strange) or 'nothing'}, expected some of {', '.join(known)}")
    return given


def addresses(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, Address]:
    """Take PEER=HOST:PORT."""
    found = {}
    for value in values:
        peer, _, place = value.partition("=")
        host, _, port = place.rpartition(":")
        if peer not in WITH[:-1] or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise click.BadParameter(f"got {value!r}, expected PEER=HOST:PORT with one of {', '.join(WITH[:-1])}")
        found[peer] = (host, int(port))
    return found


@click.command(
    "compare",
    epilog="The exit status is 1 if a message was lost, a peer failed or is missing, or a demand is not met.",
)
@click.option(
    "--with", "peers", callback=names, required=True, metavar="PEER[,PEER...]", help=f"Some of {', '.join(WITH)}."
)
@click.option("--works", callback=names, metavar="WORK[,...]", help="Which works.  [default: all of those peers]")
@click.option("--rounds", type=click.IntRange(1, 99), default=3, show_default=True, metavar="N", help="A B, A B, ...")
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 600),
    default=5.0,
    show_default=True,
    metavar="S",
    help="How long each measurement publishes.",
)
@click.option(
    "--payload", type=click.IntRange(24, 1 << 20), default=128, show_default=True, metavar="BYTES", help="Of a message."
)
@click.option(
    "--patience",
    type=click.FloatRange(0.1),
    default=20.0,
    show_default=True,
    metavar="S",
    help="How long nothing may come before the rest counts as lost.",
)
@click.option(
    "--address",
    callback=addresses,
    multiple=True,
    metavar="PEER=HOST:PORT",
    help="A peer that runs already, for works that store nothing.  [default: start each]",
)
@click.option("--allow-missing", is_flag=True, help="Compare with those who are installed, and name the others.")
@click.option("--pin", is_flag=True, help="Keep servers and driver on cores of their own (Linux).")
@click.option("--require", multiple=True, metavar="DEMAND[,...]", help="What must hold; see below.")
@click.option("--promised", is_flag=True, help="Require the ratios that this broker promises of itself.")
@click.option("--baseline", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Earlier --json FILE.")
@click.option(
    "--slower-percent",
    type=click.FloatRange(0, 100, max_open=True),
    default=10.0,
    show_default=True,
    metavar="P",
    help="How much worse than the baseline ours may be.",
)
@click.option("--case", is_flag=True, help="Add the two priced rows of the chat case study, of ours.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="All of it for programs; - prints it instead.",
)
@click.option("--markdown", "markdown_path", type=FILE, metavar="FILE", help="For a repository or a pull request.")
@click.option("--html", "html_path", type=FILE, metavar="FILE", help="One page with pictures, for anybody.")
def command(
    peers: tuple[str, ...],
    works: tuple[str, ...] | None,
    rounds: int,
    seconds: float,
    payload: int,
    patience: float,
    address: dict[str, Address],
    allow_missing: bool,
    pin: bool,
    require: tuple[str, ...],
    promised: bool,
    baseline: str | None,
    slower_percent: float,
    case: bool,
    json_path: str | None,
    markdown_path: str | None,
    html_path: str | None,
) -> ExitCode:
    """Do the same works on this broker and on others, and tell who is how much better.

    \b
    ephemeral      1 → 1, never stored
    fanout-N       1 → 10, 100, 1,000, never stored
    synced         1 → 1, on the disk before it is acknowledged or seen
    everysec       1 → 1, on the disk a little later
    replay         read what is stored
    latency        at 100,000 messages/s, from when each was due
    python         the Python clients, never stored
    python-synced  the Python clients, synced
    embedded       put and get inside a process, against queues on SQLite

    Each server is started for each measurement, on a free port of the loopback, with its files in a temporary folder
    (TMPDIR chooses whose disk is measured), and ended with it; its configuration is printed. One driver speaks all of
    their protocols, publishes one message a frame, and checks every one. Contenders take turns, so that what happens to
    the machine happens to all.

    A demand compares ours with a peer, with the `best` of them, with `each` of them, or with a number:

    \b
      ephemeral>=2*nats          at least twice NATS's rate
      latency.p99<=1.05*best     within 5 % of the better peer
      embedded>=20*each          one demand for each peer
      latency.p99<=5000          microseconds
    \b
    Figures: rate, p50, p99, server-cpu, driver-cpu, memory, resident.

    With --baseline ours may not have become worse by more than --slower-percent, beside how the peers of the same row
    have changed meanwhile: that is how another day on the machine is told from another commit.

    \b
    broker bench compare --with redis,nats --promised --html compare.html
    broker bench compare --with redis --works ephemeral,synced --require 'ephemeral>=2*redis'
    broker bench compare --with nats --address nats=127.0.0.1:4222 --works latency
    broker bench compare --with embedded --json now.json --baseline last.json
    """
    from broker.bench.compare.demands import compare_with, judge
    from broker.bench.compare.rounds import Rounds, check_addresses
    from broker.bench.compare.table import print_comparison, progress

    plan = plan_of(peers, works, rounds, seconds, payload, patience, address, pin)
    earlier = read(baseline) if baseline is not None else None
    absent = absent_peers(plan, allow_missing=allow_missing)
    runs = Rounds(plan, homes(), absent)
    demands = demands_of(require, runs.parties, promised=promised)
    check_addresses(plan)
    with progress(sys.stderr) as tell:
        comparison = runs.run(tell)
        if case:
            from broker.bench.compare.case import run_cases

            comparison.case = run_cases(seconds, tell)
    comparison.verdicts = judge(demands, comparison)
    if earlier is not None:
        comparison.verdicts += compare_with(earlier, comparison, slower_percent)
    if json_path != "-":
        print_comparison(comparison, sys.stdout)
    write(comparison, json_path, markdown_path, html_path)
    return ExitCode.OK if comparison.right else ExitCode.WRONG


def plan_of(
    peers: tuple[str, ...],
    works: tuple[str, ...] | None,
    rounds: int,
    seconds: float,
    payload: int,
    patience_s: float,
    given: dict[str, Address],
    pin: bool,
) -> Plan:
    """Put the options together.

    Raises:
        UsageError: they make no sense together.
    """
    import os

    from broker.bench.compare.rounds import Plan, libraries
    from broker.bench.compare.works import WORKS as known
    from broker.bench.works import split_cores

    if pin and not hasattr(os, "sched_setaffinity"):
        raise click.UsageError("--pin: this system does not bind processes to cores")
    strangers = [peer for peer in given if peer not in peers]
    if strangers:
        raise click.UsageError(f"--address: got {', '.join(strangers)}, which --with does not name")
    cores = split_cores() if pin else None
    plan = Plan(peers, WORKS, rounds, seconds, payload, patience_s, given, cores)
    possible = [name for name in WORKS if any(who in known[name].modes for who in (*peers, *libraries(plan)))]
    if given and works is None:
        # Of a server that somebody else runs nobody knows what its acknowledgements are worth.
        possible = [name for name in possible if not known[name].stored]
    alone = [name for name in works or () if name not in possible]
    if alone:
        raise click.UsageError(
            f"--works: got {', '.join(alone)}, in which nobody of --with {','.join(peers)} takes part"
        )
    return Plan(peers, works or tuple(possible), rounds, seconds, payload, patience_s, given, cores)


def absent_peers(plan: Plan, *, allow_missing: bool) -> dict[str, str]:
    """Return who is not installed, with what installs it.

    Raises:
        BrokerError: UNAVAILABLE; somebody is not, and that is not allowed.
    """
    from broker.bench.compare.rounds import missing, parties
    from broker.model.errors import error

    absent = missing(plan)
    told = "; ".join(f"{name}: {how}" for name, how in absent.items())
    if absent and not allow_missing:
        raise error(
            "UNAVAILABLE", f"not installed: {', '.join(absent)}", f"{told}; or leave them out by --allow-missing"
        )
    if not parties(plan, absent):
        raise error("UNAVAILABLE", "peers: none is installed", told)
    return absent


def demands_of(require: tuple[str, ...], parties: dict[str, list[str]], *, promised: bool) -> list[Demand]:
    """Take what is demanded.

    Raises:
        UsageError: it is no demand, or nothing can meet it.
    """
    from broker.bench.compare import demands
    from broker.model.errors import ConfigError

    try:
        found = demands.parse_all(require, parties)
    except ConfigError as failure:
        raise click.UsageError(failure.detail) from failure
    return found + (demands.promised(parties) if promised else [])


def homes() -> Homes:
    """Return what opens the homes of the Python API."""
    from broker.bench.compare.rounds import Homes
    from broker.cli.bench import homes as opened

    given = opened()
    return Homes(given["connect"], given["open_embedded"])


def read(path: str) -> Comparison:
    """Read an earlier comparison.

    Raises:
        UsageError: the file holds something else.
    """
    from broker.bench.compare.outcome import comparison_of

    try:
        with open(path, encoding="utf-8") as file:
            return comparison_of(json.load(file))
    except (OSError, ValueError) as failure:
        raise click.UsageError(f"--baseline {path}: {failure}") from failure


def write(comparison: Comparison, json_path: str | None, markdown_path: str | None, html_path: str | None) -> None:
    """Write the files that were asked for."""
    from broker.bench.compare.markdown import markdown
    from broker.bench.compare.page import page

    if json_path is not None:
        write_text(json_path, json.dumps(comparison.as_json(), indent=1) + "\n")
    if markdown_path is not None:
        write_text(markdown_path, markdown(comparison))
    if html_path is not None:
        write_text(html_path, page(comparison))


def write_text(path: str, text: str) -> None:
    """Write a file; - is standard output."""
    with click.open_file(path, "w", encoding="utf-8") as file:
        file.write(text)
