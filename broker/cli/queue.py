"""`broker queue`: make work queues, look into one, work one off, and deal with what died."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from broker.cli import ExitCode
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
from broker.cli.sub import parse_start
from broker.model.consumers import JOBS_PAGE_MAX, MODE_SHARED

if TYPE_CHECKING:
    from typing import Any

    from broker.bus import Bus, Start
    from broker.model.consumers import ConsumerInfo, WaitingJob
    from broker_native.work import Job

REJECTS: Final = int(ExitCode.STOP)
"""The status by which a program says that its job will never succeed: what `broker` itself says of such requests."""


@click.group("queue", no_args_is_help=True)
def command() -> None:
    """Work queues: each message of some channels is a job for one of many members.

    A member has a job for as long as its lease is, acknowledges it, or lets it fail, and it comes again after a while;
    what fails too often, or is rejected, is a dead letter. `broker consumer` has pause, resume, reset and rm.

    \b
    broker queue create resize 'jobs.resize' --attempts 5 --dead-letter dead.resize
    broker queue work resize --exec './resize.sh' --concurrency 4
    broker queue peek resize
    broker queue redrive resize
    """


@command.command("create")
@click.argument("name")
@click.argument("filters", nargs=-1, required=True, metavar="PATTERN...")
@settings_options("How long a member may take over a job; then another one gets it.")
@click.option("--lanes", is_flag=True, help="By priority; low never starves.")
@click.option("--by-key", is_flag=True, help="One job of a key at a time, so that each key's are done in order.")
@url_option
def create(name: str, filters: tuple[str, ...], start: str, url: str | None, **settings: Any) -> None:
    """Make a work queue of some channels.

    It is called NAME and reads what the PATTERNs select. Made again with the same settings, nothing changes.

    \b
    broker queue create resize jobs.resize
    broker queue create mail 'jobs.mail.*' --by-key --attempts 8 --backoff 5 600 --dead-letter dead.mail
    """
    tell(asyncio.run(ask_create(url_of(url), name, filters, parse_start(start), settings)))


async def ask_create(
    url: str, name: str, filters: tuple[str, ...], start: Start, settings: dict[str, Any]
) -> ConsumerInfo:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.create_queue(name, *filters, start=start, **settings)


@command.command("ls")
@click.argument("prefix", default="")
@json_option
@url_option
def list_queues(prefix: str, as_json: bool, url: str | None) -> None:
    """Print work queues.

    In order, those whose names begin with PREFIX; the columns are those of `broker consumer ls`.

    \b
    broker queue ls
    broker queue ls --json | jq 'select(.dead > 0) | [.name, .dead]'
    """
    asyncio.run(print_consumers(url_of(url), prefix, as_json=as_json, mode=MODE_SHARED))


@command.command("info")
@name_argument
@json_option
@url_option
def info(name: str, as_json: bool, url: str | None) -> None:
    """Say what waits in a queue, and what is under way.

    \b
    broker queue info resize --json | jq '.ready + .delayed + .lag'
    """
    found = asyncio.run(ask_info(url_of(url), name))
    if as_json:
        click.echo(json.dumps(fields_of(found)))
    else:
        tell(found)


# -- looking into one --------------------------------------------------------------------------------------------------


@command.command("peek")
@name_argument
@click.option("--limit", type=click.IntRange(1, JOBS_PAGE_MAX), default=10, show_default=True, metavar="N",
              help="At most so many.")  # fmt: skip
@json_option
@url_option
def peek(name: str, limit: int, as_json: bool, url: str | None) -> None:
    """Print jobs without taking them.

    Those that are not done, the next ones first. Columns: channel, sequence, attempts so far, state, payload. Only
    what the broker has in memory is there; what waits behind it is counted by `info`.

    \b
    broker queue peek resize
    broker queue peek resize --limit 1000 --json | jq 'select(.attempt > 3)'
    """
    asyncio.run(print_peek(url_of(url), name, limit, as_json=as_json))


async def print_peek(url: str, name: str, limit: int, *, as_json: bool) -> None:
    """Print jobs with their payloads, which are read from their channels."""
    from broker import connect

    async with connect(url) as bus:
        for job in await bus.peek(name, limit):
            payload = await payload_of(bus, job)
            text = None if payload is None else payload.decode("utf-8", "backslashreplace")
            if as_json:
                fields = {"channel": job.channel, "epoch": job.epoch, "sequence": job.sequence}
                due = datetime.fromtimestamp(job.due_us / 1e6, UTC).isoformat() if job.due_us else None
                state = {"attempt": job.attempt, "state": state_of(job), "due": due, "payload": text}
                sys.stdout.write(json.dumps({**fields, **state}) + "\n")
            else:
                shown = "(gone)" if text is None else one_line(text)
                sys.stdout.write(f"{job.channel}\t{job.sequence}\t{job.attempt}\t{state_of(job)}\t{shown}\n")


async def payload_of(bus: Bus, job: WaitingJob) -> bytes | None:
    """Return a job's payload; None if its channel has it no more."""
    from broker.model.positions import Position

    read = bus.history(job.channel, since=Position(0, job.sequence - 1), until=Position(0, job.sequence))
    found = await read.messages()
    return found[0].payload if found else None


def state_of(job: WaitingJob) -> str:
    """Return what a job waits for, in a word."""
    if job.member:
        return "under-way"
    return "delayed" if job.due_us else "ready"


def one_line(text: str) -> str:
    """Return a text that a terminal takes for one line of plain characters."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


# -- what died ---------------------------------------------------------------------------------------------------------


@command.command("redrive")
@name_argument
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many.")
@url_option
def redrive(name: str, limit: int | None, url: str | None) -> None:
    """Make jobs of a queue's dead letters again.

    They are published to the channels that they came from, and taken from the dead letters.

    \b
    broker queue redrive resize
    broker queue redrive resize --limit 1
    """
    count = asyncio.run(ask_redrive(url_of(url), name, limit))
    click.echo(f"{name}: {count:,} dead letters are jobs again")


async def ask_redrive(url: str, name: str, limit: int | None) -> int:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.redrive(name, limit)


@command.command("purge")
@name_argument
@yes_option
@url_option
def purge(name: str, yes: bool, url: str | None) -> None:
    """Have everything done that a queue has now.

    Under way or not. The messages stay in their channels.

    \b
    broker queue purge resize --yes
    """
    confirm(f"purge {name}", yes)
    count = asyncio.run(ask_purge(url_of(url), name))
    click.echo(f"{name}: {count:,} jobs are done")


async def ask_purge(url: str, name: str) -> int:
    """Ask the broker."""
    from broker import connect

    async with connect(url) as bus:
        return await bus.purge(name)


# -- working one off ---------------------------------------------------------------------------------------------------


@command.command("work")
@name_argument
@click.option("--exec", "program", required=True, metavar="COMMAND", help="Run by the shell for each job.")
@click.option("--concurrency", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="So many jobs at once.")  # fmt: skip
@click.option("--grace", "grace_s", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS",
              help="How long commands may go on after SIGTERM or Ctrl-C.")  # fmt: skip
@url_option
def work(name: str, program: str, concurrency: int, grace_s: float, url: str | None) -> None:
    """Run a command for each job of a queue.

    Until SIGTERM or Ctrl-C. The payload is its standard input; BROKER_CHANNEL, BROKER_SEQUENCE, BROKER_ATTEMPT and,
    if there is one, BROKER_KEY are in its environment. Status 0: the job is done. Status 5: it will never succeed,
    and is a dead letter. Any other: it comes again after the queue's back-off. Its lease is extended while the
    command runs.

    \b
    broker queue work resize --exec 'convert - -resize 50% "out/$BROKER_SEQUENCE.png"' --concurrency 4
    """
    asyncio.run(run_work(url_of(url), name, program, concurrency, grace_s))


async def run_work(url: str, name: str, program: str, concurrency: int, grace_s: float) -> None:
    """Work until a signal comes."""
    from broker import connect

    async with connect(url) as bus:

        @bus.worker(queue=name, concurrency=concurrency)
        async def do(job: Job) -> None:
            await run_program(program, job)

        async def run() -> None:
            await bus.run_workers(grace_s)

        running = asyncio.create_task(run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        await asyncio.wait({running})
        if not running.cancelled():
            running.result()


async def run_program(program: str, job: Job) -> None:
    """Run the command with a job.

    Raises:
        Reject: It says that the job will never succeed.
        Retry: It failed.
    """
    from broker.bus import Reject, Retry

    told = {"BROKER_CHANNEL": job.channel, "BROKER_SEQUENCE": str(job.sequence), "BROKER_ATTEMPT": str(job.attempt)}
    if job.key is not None:
        told["BROKER_KEY"] = job.key.decode("utf-8", "surrogateescape")
    process = await asyncio.create_subprocess_shell(
        program, stdin=asyncio.subprocess.PIPE, env={**os.environ, **told}, start_new_session=True
    )
    try:
        await process.communicate(job.payload)
    except BaseException:
        # The grace is over. The shell's children are of its session, so they end with it.
        os.killpg(process.pid, signal.SIGTERM)
        await process.wait()
        raise
    if process.returncode == REJECTS:
        raise Reject
    if process.returncode:
        click.echo(f"{job.channel} {job.sequence}: attempt {job.attempt}: status {process.returncode}", err=True)
        raise Retry
