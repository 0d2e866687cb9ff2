"""The work `shared`: processes that each publish and read, on one shared directory and through one server.

Each process publishes to a channel of its own and reads the next one's, so every message crosses from one process to
another. The same is done twice, through `broker serve` on TCP and then over the shared directory, and the second result
says what share of the first one's rate it came to. Then the shared server is killed a few times, and what is taken is
the time from SIGKILL to the answer of a publish that was made after it.

Every payload is checked by the ledger of the native driver, inside the time that is measured. What the processes use
of the processor is the driver's share, which here may be more than one core.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from broker.bench.client import Course, Session, new_loop
from broker.bench.result import Result, latency_of
from broker.bench.server import ROOMS, Figures, figures, own_server
from broker.model.errors import BrokerError, error
from broker_native.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from broker.bench.client import Opener
    from broker.bench.options import Options

START_S_MAX: Final = 60.0
KILLS: Final = 5
MESSAGES_A_KILL: Final = 20_000
"""A run with fewer messages has fewer kills, one at least."""
SETTLE_S: Final = 0.5
"""Between kills: a server that is killed as it starts is not what is measured."""
END_S_MAX: Final = 10.0
END_POLL_S: Final = 0.02


@dataclass(slots=True)
class Part:
    """What one process has to say.

    Attributes:
        begun_s, ended_s: by the monotonic clock, which all processes share.
        cpu_s: processor time in between.
        taken, lost, duplicated, reordered, corrupt: of what it read.
        errors: what went wrong besides.
    """

    begun_s: float = 0.0
    ended_s: float = 0.0
    cpu_s: float = 0.0
    taken: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupt: int = 0
    errors: list[str] = field(default_factory=list)


def run_shared(options: Options, connect: Opener, open_shared: Opener) -> list[Result]:
    """Run the work over both homes.

    Args:
        options: the work's; `publishers` is how many processes.
        connect: gives a bus for a URL; the processes are handed it, so it can be pickled.
        open_shared: the same for a directory.

    Raises:
        BrokerError: a home cannot be had.
    """
    with own_server() as server:
        through_server = run_home("server", options, connect, server.start().url)
    with shared_directory() as directory:
        shared = run_home("directory", options, open_shared, directory)
        if not shared.errors:
            shared.extra["first_answer_ms"] = round(
                1e3 * run_on_loop(kill_often(open_shared, directory, kills_of(options))), 1
            )
        end_server(open_shared, directory)
    if through_server.seconds and shared.seconds:
        rates = [result.a_second(result.messages) for result in (shared, through_server)]
        shared.extra["share_of_server"] = round(rates[0] / rates[1], 4)
    return [through_server, shared]


@contextmanager
def shared_directory() -> Iterator[str]:
    """Yield a directory to share; TMPDIR chooses the file system."""
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as folder:
        yield str(Path(folder, "data"))


def run_home(name: str, options: Options, opener: Opener, place: str) -> Result:
    """Let all processes publish and read over one home."""
    room = f"{ROOMS[options.durability]}.{secrets.token_hex(4)}"
    before = run_on_loop(ask_figures(opener, place))
    with ExitStack() as stack:
        processes = [Process(stack, options, opener, place, room, number) for number in range(options.publishers)]
        for process in processes:
            process.hear()
        for process in processes:
            process.begin()
        parts = [process.hear() for process in processes]
    after = run_on_loop(ask_figures(opener, place))
    return result_of(name, options, parts, before, after)


class Process:
    """One process that takes part; it ends with the stack.

    Args:
        stack: ends it.
        options, opener, place, room, number: as of `take_part`.
    """

    def __init__(self, stack: ExitStack, options: Options, opener: Opener, place: str, room: str, number: int) -> None:
        # Spawned, not forked: it is what a web server's workers are, and has nothing of ours.
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=take_part, args=(there, options, opener, place, room, number), daemon=True
        )
        self._process.start()
        there.close()
        stack.callback(self._end)

    def hear(self) -> Part:
        """Return what it says next: that it is there, and then how it went."""
        if not self._connection.poll(START_S_MAX if not self._process.exitcode else 0):
            return Part(errors=[f"a process said nothing for {START_S_MAX:g} s"])
        try:
            part: Part = self._connection.recv()
        except EOFError:
            return Part(errors=["a process ended by itself"])
        return part

    def begin(self) -> None:
        """Tell it that all are there."""
        self._connection.send(True)

    def _end(self) -> None:
        self._connection.close()
        self._process.join(END_S_MAX)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def take_part(connection: Connection, options: Options, opener: Opener, place: str, room: str, number: int) -> None:
    """Be one of the processes: say that it is there, wait for the others, publish and read, say how it went."""
    part = Part()
    try:
        run_on_loop(publish_and_read(part, connection, options, opener, place, room, number))
    except BrokerError as failure:
        part.errors.append(f"process {number}: {failure}")
    connection.send(part)


async def publish_and_read(
    part: Part, connection: Connection, options: Options, opener: Opener, place: str, room: str, number: int
) -> None:
    """Publish to the own channel and read the next process's, both to the end."""
    messages = options.messages // options.publishers
    async with opener(place) as bus:
        own = Course(bus, f"{room}.{number}", messages, options.payload)
        following = Course(bus, f"{room}.{(number + 1) % options.publishers}", messages, options.payload)
        following.verifier.expect(messages)
        async with bus.subscribe(following.channel, start="start") as subscription:
            connection.send(part)
            await asyncio.to_thread(connection.recv)
            verdict = Result("", options)
            cpu_s, part.begun_s = time.process_time(), time.monotonic()

            async def both() -> None:
                await asyncio.gather(own.post(), following.read_batches(subscription))

            await Session(bus, options).finish(following, asyncio.ensure_future(both()), verdict)
            part.ended_s, part.cpu_s = time.monotonic(), time.process_time() - cpu_s
            verifier = following.verifier
            part.taken, part.lost, part.duplicated = verifier.taken, verifier.lost, verifier.duplicated
            part.reordered, part.corrupt = verifier.reordered, verifier.corrupt
            part.errors += [f"process {number}: {each}" for each in verdict.errors]


def result_of(name: str, options: Options, parts: list[Part], before: Figures, after: Figures) -> Result:
    """Put what all processes say into one result."""
    begun = [part.begun_s for part in parts if part.begun_s]
    return Result(
        work=f"{options.work}:{name}",
        options=options,
        messages=options.messages // options.publishers * options.publishers,
        seconds=max(part.ended_s for part in parts) - min(begun) if begun else 0.0,
        deliveries=sum(part.taken for part in parts),
        latency_us=latency_of(Histogram()),
        lost=sum(part.lost for part in parts),
        duplicated=sum(part.duplicated for part in parts),
        reordered=sum(part.reordered for part in parts),
        corrupt=sum(part.corrupt for part in parts),
        server_cpu_s=after.cpu_s - before.cpu_s,
        driver_cpu_s=sum(part.cpu_s for part in parts),
        server_memory_bytes=after.memory_bytes,
        fsyncs=after.fsyncs - before.fsyncs,
        errors=[each for part in parts for each in part.errors],
    )


async def ask_figures(opener: Opener, place: str) -> Figures:
    """Return the broker's own figures."""
    async with opener(place) as bus:
        return figures(await bus.stats())


def kills_of(options: Options) -> int:
    """Return how often the shared server is killed."""
    return max(1, min(KILLS, options.messages // MESSAGES_A_KILL))


async def kill_often(open_shared: Opener, directory: str, kills: int) -> float:
    """Kill the shared server a few times; returns the median time until a publish is answered again, seconds."""
    taken = []
    async with open_shared(directory) as bus:
        for _ in range(kills):
            stats: dict[str, Any] = await bus.stats()
            await asyncio.sleep(SETTLE_S)
            os.kill(stats["pid"], signal.SIGKILL)
            begun = time.monotonic()
            await bus.publish("bench.s.killed", b"")
            taken.append(time.monotonic() - begun)
        head = (await bus.channel("bench.s.killed")).head
    if head != kills:
        raise error("STORAGE_CORRUPT", f"messages around kills: got {head} stored, expected {kills}")
    return statistics.median(taken)


def end_server(open_shared: Opener, directory: str) -> None:
    """End the shared server, so that its directory can go."""

    async def ask_pid() -> int:
        async with open_shared(directory) as bus:
            pid: int = (await bus.stats())["pid"]
            return pid

    pid = run_on_loop(ask_pid())
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + END_S_MAX
    # It takes its socket away first and gives the data back last, and is nobody's child.
    lock = Path(directory, "lock")
    while is_alive(pid) and lock.exists() and time.monotonic() < deadline:
        time.sleep(END_POLL_S)


def is_alive(pid: int) -> bool:
    """Whether a process of ours is there and no zombie that its parent has not looked at yet."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def run_on_loop(work: Any) -> Any:
    """Run a coroutine on the loop that an application would take."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)
