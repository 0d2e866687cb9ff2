"""`python -m loadtest`: one command from nothing to a verdict.

It starts a server of its own unless it is told of one, has Locust load it without a browser, and ends with the status
that Locust ends with: 0 when every threshold holds, 1 when one does not or the test could not be brought to its end, 2
when what was asked for cannot be. Whatever happens, no process that it started is left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from broker.bench.load import raise_descriptor_limit
from broker.bench.server import ROOMS, running_server
from broker.model.errors import BrokerError
from broker.model.levels import Level
from loadtest.address import complaint_of
from loadtest.cadence import offered
from loadtest.plan import SECONDS_DEFAULT, USERS_DEFAULT, Plan, options, unreachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
PROCESSES_DEFAULT: Final = min(os.cpu_count() or 1, 8)
USERS_A_SECOND: Final = 100
"""For each process; Locust warns of more."""
CLOSING_S_MAX: Final = 60.0
"""How long Locust may take to end when it is asked to."""
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

EPILOG: Final = """
\b
Examples:
  python -m loadtest                                      a server of its own, 60 s of everything, the usual thresholds
  python -m loadtest --url broker://10.0.0.7:4770         a server that runs already
  python -m loadtest --scenario chat --users 2000 --processes 2 --min-rate 200000
  python -m loadtest --shape soak --seconds 3600 --report soak.html
  python -m loadtest --min-rate 0 --seconds 5             only look whether every message comes

\b
A server that runs already needs two profiles, or --stored-prefix and --ephemeral-prefix to say where it has such:
  [[profiles]]
  pattern = "load.e.>"
  durability = "ephemeral"

\b
  [[profiles]]
  pattern = "load.s.>"
  durability = "synced"

Locust's own command does the same and has its web interface: locust -f loadtest/locustfile.py --host broker://...
loadtest/README.md says how to use several machines, and what the figures mean.
"""


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a plan to a command."""
    for each in reversed(options()):
        kind: Any = click.Choice(each.choices) if each.choices else each.kind
        unit = f" [{each.unit}]" if each.unit else ""
        told = f"{each.explained[0].upper()}{each.explained[1:]}{unit}."
        command = click.option(each.flag, type=kind, default=each.default, show_default=True, help=told)(command)
    return command


@click.command(epilog=EPILOG, context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]})
@click.option("--url", help="A server that runs already; without it one is started, in a temporary folder.")
@click.option(
    "--durability",
    type=click.Choice([level.label for level in (Level.ACCEPTED, Level.SYNCED)]),
    default=Level.SYNCED.label,
    show_default=True,
    help="Of the stored channels of a server that is started here.",
)
@click.option("--users", default=USERS_DEFAULT, show_default=True, help="How many users there are at most.")
@click.option("--seconds", default=float(SECONDS_DEFAULT), show_default=True, help="How long they go on.")
@click.option(
    "--processes",
    default=PROCESSES_DEFAULT,
    show_default=True,
    help="Over how many processes the users are spread, with one more to conduct them; 1 is all in one.",
)
@click.option("--locust-report", default="", help="Have Locust write its own report to this file.")
@plan_options
def main(
    url: str | None, durability: str, users: int, seconds: float, processes: int, locust_report: str, **asked: Any
) -> None:
    """Load a broker with users that check every message, and say whether it kept what was asked for.

    Each user has a connection of its own. What is due is sent by the clock, whatever the broker does, and latency is
    counted from when a message was due. Exit status: 0 passed, 1 failed, 2 asked for what cannot be.
    """
    if url is None:
        room = {level.label: ROOMS[level] for level in ROOMS}
        defaults = Plan()
        if asked["stored_prefix"] == defaults.stored_prefix:
            asked["stored_prefix"] = room[durability]
        if asked["ephemeral_prefix"] == defaults.ephemeral_prefix:
            asked["ephemeral_prefix"] = room[Level.EPHEMERAL.label]
    plan = Plan(**asked)
    processes = min(processes, max(users, 1))
    complaints = [*plan.complaints(), *bad_sizes(users, seconds, processes)]
    if not complaints and (short := unreachable(plan, users, offered(plan, users))):
        complaints = [short]
    if complaints:
        end(EXIT_USAGE, *complaints)
    if find_spec("locust") is None:
        end(EXIT_USAGE, "Locust is not installed: pip install 'broker-bus[load]', or `make build` in a checkout")
    if url is not None and (complaint := complaint_of(url, plan)) is not None:
        end(EXIT_FAILED, complaint)
    try:
        raise_descriptor_limit(2 * users)
        with ExitStack() as stack:
            where = url or stack.enter_context(running_server(None)).url
            status = run_locust(command_of(plan, where, users, seconds, processes, locust_report))
    except BrokerError as failure:
        end(EXIT_FAILED, f"{failure}" + (f" ({failure.hint})" if failure.hint else ""))
    sys.exit(status)


def end(status: int, *complaints: str) -> None:
    """Say what is wrong, and exit.

    Raises:
        SystemExit: Always.
    """
    for complaint in complaints:
        click.echo(f"load test: {complaint}", err=True)
    sys.exit(status)


def bad_sizes(users: int, seconds: float, processes: int) -> list[str]:
    """Return what is wrong with what is not in the plan."""
    bounds = (
        ("--users", users, 1, 1_000_000, "users"),
        ("--seconds", seconds, 1, 1_000_000, "s"),
        ("--processes", processes, 1, 256, "processes"),
    )
    found = [
        f"{flag}: got {got:g}, from {least:,} to {most:,} {unit}"
        for flag, got, least, most, unit in bounds
        if not least <= got <= most
    ]
    return found


def command_of(plan: Plan, url: str, users: int, seconds: float, processes: int, locust_report: str) -> list[str]:
    """Return Locust's command line."""
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(LOCUSTFILE),
        "--headless",
        "--only-summary",
        "--skip-log-setup",
    ]
    command += ["--host", url, "--users", str(users), "--spawn-rate", str(USERS_A_SECOND * processes)]
    # Locust takes whole seconds only.
    command += ["--run-time", f"{round(seconds)}s"]
    for each in options():
        if (value := getattr(plan, each.name)) != "":
            command += [f"{each.flag}={value}"]
    if locust_report:
        command += ["--html", locust_report]
    if processes > 1:
        port = str(free_port())
        command += ["--processes", str(processes), "--master-bind-host", "127.0.0.1"]
        command += ["--master-bind-port", port, "--master-port", port]
    return command


def free_port() -> int:
    """Return a port that nobody has at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def run_locust(command: list[str]) -> int:
    """Run Locust to its end, in a process group of its own, of which nobody is left behind.

    Being asked to end (SIGINT, SIGTERM) is passed on, so that the test is closed and judged as far as it came.
    """
    root = LOCUSTFILE.parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    with ExitStack() as stack:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True)
        stack.callback(end_group, process)

        def pass_on(_number: int, _frame: FrameType | None) -> None:
            process.terminate()

        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, pass_on))
        return process.wait()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process, and those of its group that outlived it."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(CLOSING_S_MAX)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main(prog_name="python -m loadtest")
