"""The n-th call fails, for every n: a short workload on a server under the injector, and a judge of what came of it.

A server is started on a directory that holds a few segments, or on none, and a client publishes on channels of each
level while another reads. Some call of one class fails in it, once or for a while. Then the server is told to stop, a
second one starts on what the first left behind, without any failure, and all is read back. What is demanded:

- no process ends by a signal, hangs, or prints a traceback;
- one that ends says a named error, and its status is that of the error's kind; one that does not end serves on: the
  workload comes to its end once calls succeed again;
- the checker finds nothing acknowledged missing, nothing twice, out of order, or from nowhere;
- the second server starts at once, and stops in good order.

`python -m tests.fault.nth` runs all n of all classes and prints a table; `--class write` those of one.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from broker import BackoffPolicy, connect
from broker.cli import ExitCode
from broker.model.errors import BrokerError
from tests.checker.check import check
from tests.checker.history import ACCEPTED, SYNCED, Acked, Crashed, History, Started, Subscribed
from tests.checker.verdict import Kind
from tests.fault.harness import LAST_WORDS_S, PROFILES, ROOT, Recorder, head_of, payload_of, read_log
from tests.fault.inject import ERRORS, FOREVER, SHORT, Class, Control, Forge, Served, build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from broker.bus import Bus, Subscription

PARTS = max(2, min(os.cpu_count() or 2, 8))
SEED = 20_261_122
LEVELS = {"nth.synced.one": SYNCED, "nth.synced.two": SYNCED, "nth.accepted.one": ACCEPTED}
EPHEMERAL_CHANNEL = "ephemeral.nth"
CONFIG = (
    """\
[storage]
reserve_bytes = 0

[limits]
hello_timeout_s = 0.5
"""
    + PROFILES
)
SEGMENT_BYTES = 24 * 1024
ROUNDS = 9
BATCH = 8
"""Nine rounds of three batches of so many records fill a few segments."""
BACKOFF = BackoffPolicy(first_s=0.005, longest_s=0.02)
LASTING_S = 0.15
"""How long a failure lasts that does not go away with one call."""
ACCEPTED_WINDOW_S = 0.2
"""How long before a crash, or a failed commit, an accepted record may have been acknowledged that it takes. The server
keeps to 50 ms, which other tests measure; here acknowledgements are written down when a busy loop gets to them."""
READY_S_MAX = 10.0
WORK_S_MAX = 10.0
STOP_S_MAX = 10.0
NAMED = re.compile(r"^error [A-Z_]+ \(\d{4}\): ", re.MULTILINE)
FAILED = re.compile(r"^(\d{4}-.*) ERROR commit_failed ", re.MULTILINE)
ENDS = {ExitCode.RETRY, ExitCode.STORAGE, ExitCode.STOP}


@dataclass(frozen=True, slots=True)
class Case:
    """What fails.

    Attributes:
        klass: the class of calls.
        how: the errno, or SHORT.
        lasting: whether everything fails from there on, for a while.
        fresh: whether the directory is new; else it holds segments.
        loop: the server's event loop.
    """

    klass: Class
    how: int
    lasting: bool
    fresh: bool
    loop: str

    def __str__(self) -> str:
        how = "short" if self.how == SHORT else errno.errorcode[self.how]
        parts = [self.klass.name.lower(), how, "lasting" if self.lasting else "once", "new" if self.fresh else "old"]
        return " ".join([*parts, self.loop])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run.

    Attributes:
        case: what failed.
        at: which call, from 1.
        seen: how many calls of the class there were, the failed ones too.
        call: the function that failed first; empty when none did.
        end: `went on`, or the name of the error with which the server ended.
        problem: what is wrong with it; empty when nothing is.
    """

    case: str
    at: int
    seen: int
    call: str
    end: str
    problem: str


class Wrong(Exception):  # what it names is the server's error, not ours
    """The server did what it must not."""


def cases(klass: Class | None = None) -> list[Case]:
    """Return the cases of a class, or of all."""
    found = []
    for each in Class if klass is None else [klass]:
        for how in ERRORS.get(each, ()):
            loops = ("asyncio", "uvloop") if each is Class.SOCKET else ("uvloop",)
            # Without a single new object for a while not even Python's own error can be made.
            lastings = (False,) if how in (SHORT, errno.EINTR) or each is Class.OBJECT else (False, True)
            fresh = each not in (Class.SOCKET, Class.OBJECT, Class.MEMORY)
            found += [
                Case(each, how, lasting, new, loop)
                for loop in loops
                for lasting in lastings
                for new in ((False, True) if fresh and how == ERRORS[each][0] else (False,))
            ]
    return found


class Bench:
    """One injector, one process that forks servers, and a directory that holds segments, to begin with.

    Args:
        folder: room for all of it; in memory if there is such a place.
        library: the injector.
        plant: a mistake for the servers to make.
    """

    def __init__(self, folder: Path, library: Path, plant: str = "") -> None:
        self._plant = plant
        self._root = folder / "root"
        self._root.mkdir()
        self._config = folder / "broker.toml"
        self._config.write_text(CONFIG)
        self.control = Control(folder / "control")
        self._forge = Forge(library, self.control, self._root)
        self._old = self._root / "old"
        self._failed_s: list[float] = []

    def close(self) -> None:
        """Give everything back."""
        self._forge.close()
        self.control.close()

    async def prepare(self) -> None:
        """Fill the directory that later runs begin with."""
        recorder = Recorder(History(levels=LEVELS, accepted_window_s=ACCEPTED_WINDOW_S))
        served = self._serve(self._old, "uvloop")
        await self._forge.until_ready(served, READY_S_MAX)
        await work(url_of(served), recorder)
        # Killed, so that the next start has a run to recover that did not end in good order.
        os.kill(served.pid, signal.SIGKILL)
        self._forge.wait(served, STOP_S_MAX)
        self._events, self._recorded = recorder.history.events, recorder

    def _serve(self, data: Path, loop: str) -> Served:
        options = ("--config", str(self._config), "--loop", loop)
        return self._forge.serve(data, *options, segment_bytes=SEGMENT_BYTES, plant=self._plant)

    async def run(self, case: Case, at: int) -> Outcome:
        """Let call `at` fail, and judge."""
        data = self._root / "data"
        recorder = Recorder(History(levels=LEVELS, accepted_window_s=ACCEPTED_WINDOW_S))
        if not case.fresh:
            shutil.copytree(self._old, data)
            recorder.history.events += [*self._events, Crashed(0.0), Started(0.0)]
            recorder.values, recorder.sent = self._recorded.values, dict(self._recorded.sent)
        self.control.arm(case.klass, case.how, at, FOREVER if case.lasting else 1)
        end = problem = ""
        try:
            end = await self._live(case, data, recorder)
            seen, call = self.control.seen, self.control.name
            self.control.disarm()
            await self._judge(data, recorder)
        except Wrong as wrong:
            seen, call, problem = self.control.seen, self.control.name, str(wrong)
        finally:
            self.control.disarm()
            shutil.rmtree(data, ignore_errors=True)
        return Outcome(str(case), at, seen, call, end, problem)

    async def _live(self, case: Case, data: Path, recorder: Recorder) -> str:
        """Start, work, stop; returns how it ended."""
        served = self._serve(data, case.loop)
        relief = asyncio.create_task(self._relieve(case.lasting))
        try:
            status = await self._until_ready(served)
            if status is None:
                status = await self._work(served, recorder)
            if status is None:
                os.kill(served.pid, signal.SIGTERM)
                status = await asyncio.to_thread(self._forge.wait, served, STOP_S_MAX)
        finally:
            relief.cancel()
            await asyncio.wait([relief])
            if self._forge.wait(served, 0) is None:
                with suppress(ProcessLookupError):
                    os.kill(served.pid, signal.SIGKILL)
                self._forge.wait(served, STOP_S_MAX)
        end = judge_end(served, status)
        recorder.add(Crashed(time.monotonic()) if end != "went on" else Started(time.monotonic()))
        self._failed_s = failed_commits(served)
        return end

    async def _relieve(self, lasting: bool) -> None:
        """End a lasting failure after its time."""
        while lasting:
            await asyncio.sleep(0.005)
            if self.control.struck:
                await asyncio.sleep(LASTING_S)
                self.control.disarm()
                return

    async def _until_ready(self, served: Served) -> int | None:
        try:
            return await self._forge.until_ready(served, READY_S_MAX)
        except TimeoutError:
            raise Wrong(f"neither ready nor ended after {READY_S_MAX:g} s: {served.said()[-800:]}") from None

    async def _work(self, served: Served, recorder: Recorder) -> int | None:
        """Work until it is done or the server has ended; returns the status with which it ended."""
        working = asyncio.create_task(work(url_of(served), recorder))
        until_s = time.monotonic() + WORK_S_MAX
        status: int | None = None
        while not working.done() and status is None and time.monotonic() < until_s:
            await asyncio.wait([working], timeout=0.02)
            status = None if working.done() else self._forge.wait(served, 0)
        if not working.done():
            working.cancel()
            await asyncio.wait([working])
            if status is None:
                raise Wrong(f"the work does not come to its end: {served.said()[-800:]}")
        elif working.exception() is not None and (status := self._forge.wait(served, STOP_S_MAX)) is None:
            raise Wrong(f"a client was told to stop: {working.exception()!r}: {served.said()[-800:]}")
        return status

    async def _judge(self, data: Path, recorder: Recorder) -> None:
        """Start once more, without failures, and compare what is there with what was seen."""
        served = self._serve(data, "uvloop")
        try:
            if await self._until_ready(served) is not None:
                raise Wrong(f"does not start again: {served.said()[-800:]}")
            async with asyncio.timeout(WORK_S_MAX), connect(url_of(served)) as bus:
                heads = {channel: await head_of(bus, channel) for channel in LEVELS}
                recorder.history.log = await read_log(bus, heads)
                await bus.publish("nth.synced.after", b"it serves")
            os.kill(served.pid, signal.SIGTERM)
            status = await asyncio.to_thread(self._forge.wait, served, STOP_S_MAX)
            if status != ExitCode.OK:
                raise Wrong(f"after the restart: status {status}: {served.said()[-800:]}")
        except TimeoutError:
            raise Wrong(f"what was stored cannot be read: {served.said()[-800:]}") from None
        finally:
            if self._forge.wait(served, 0) is None:
                with suppress(ProcessLookupError):
                    os.kill(served.pid, signal.SIGKILL)
                self._forge.wait(served, STOP_S_MAX)
        if wrong := unexcused(recorder, self._failed_s):
            raise Wrong(wrong)


def url_of(served: Served) -> str:
    """Return where a server that is ready listens."""
    told = served.told()
    assert told is not None
    return f"broker://{told['tcp']}"


def judge_end(served: Served, status: int | None) -> str:
    """Return `went on`, or the name of the error that a server ended with.

    Raises:
        Wrong: a signal, a hang, a traceback, or an end without a name.
    """
    said = served.said()
    # asyncio, not the server, watches its sockets; when the system lets it watch no more of them, it says so at length.
    if "Traceback" in said and "selectors.py" not in said:
        raise Wrong(f"a traceback: {said[said.index('Traceback') :][-1500:]}")
    if status is None:
        raise Wrong(f"does not stop: {said[-800:]}")
    if status < 0:
        raise Wrong(f"ended by {signal.Signals(-status).name}: {said[-800:]}")
    if status == ExitCode.OK:
        return "went on"
    if status not in ENDS or not (named := NAMED.search(said)):
        raise Wrong(f"ended with status {status} without a name: {said[-800:]}")
    return named[0].split()[1]


def failed_commits(served: Served) -> list[float]:
    """Return when commits failed, in the time of the recorder."""
    wall_s = time.time() - time.monotonic()
    times = FAILED.findall(served.said())
    return [datetime.fromisoformat(told).timestamp() - wall_s for told in times]


def unexcused(recorder: Recorder, failed_s: list[float]) -> str:
    """Return what the checker finds, but for accepted records that a failed commit took: as many as a crash may."""
    acked_s = {
        (event.epoch, sequence): event.at_s
        for event in recorder.history.events
        if isinstance(event, Acked) and event.level == ACCEPTED
        for sequence in range(event.first, event.first + event.records)
    }
    verdict = check(recorder.history)
    left = [
        str(anomaly)
        for anomaly in verdict.anomalies
        if anomaly.kind is not Kind.LOST
        or not any(
            at_s - ACCEPTED_WINDOW_S <= acked_s.get((anomaly.epoch, anomaly.sequence), 0.0) <= at_s + LAST_WORDS_S
            for at_s in failed_s
        )
    ]
    return "; ".join(left[:3]) + (f"; {len(left)} anomalies" if len(left) > 3 else "")


async def work(url: str, recorder: Recorder) -> None:
    """Publish at each level and read it all, live and once more from the start."""
    async with AsyncExitStack() as stack:
        bus, other = [await stack.enter_async_context(await connected(url)) for _ in range(2)]
        reader = f"reader {len(recorder.history.events)}"
        for channel in LEVELS:
            recorder.add(Subscribed(time.monotonic(), reader, channel, True))
        subscription = other.subscribe("nth.>", EPHEMERAL_CHANNEL, start="start")
        reading = asyncio.create_task(read(reader, subscription, recorder))
        try:
            for _ in range(ROUNDS):
                await asyncio.gather(*(publish(bus, channel, recorder) for channel in LEVELS))
                await bus.publish(EPHEMERAL_CHANNEL, b"...")
            # Whatever was refused until now: it serves on.
            await publish_until_it_works(bus, recorder)
            async with bus.subscribe(*LEVELS, start="start") as again:
                await anext(aiter(again.batches()))
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            await asyncio.wait([reading])


async def publish_until_it_works(bus: Bus, recorder: Recorder) -> None:
    """Publish until a batch is acknowledged."""
    while True:
        if await publish(bus, "nth.synced.one", recorder):
            return
        await asyncio.sleep(0.01)


async def connected(url: str) -> Bus:
    """Connect, however often it takes: the first attempt of a client is the one that it does not repeat by itself."""
    while True:
        try:
            return await connect(url, backoff=BACKOFF)
        except BrokerError:
            await asyncio.sleep(0.01)


async def read(name: str, subscription: Subscription, recorder: Recorder) -> None:
    """Write down what a subscription is handed; ephemeral messages are nobody's to judge."""
    async for batch in subscription.batches():
        if batch.channel != EPHEMERAL_CHANNEL:
            recorder.deliver(name, batch)


async def publish(bus: Bus, channel: str, recorder: Recorder) -> bool:
    """Publish a batch and write down what came of it; tell whether it was acknowledged."""
    producer = f"producer {id(bus)} {channel}"
    number, values = recorder.invoke(producer, channel, BATCH)
    try:
        recorder.answer(producer, number, BATCH, await bus.publish_many(channel, [payload_of(v) for v in values]))
    except BrokerError as failure:
        recorder.answer(producer, number, BATCH, failure)
        return False
    return True


# --- All of them, or a sample, on every core ---------------------------------------------------------------------


async def walk(bench: Bench, case: Case, part: int, parts: int) -> AsyncIterator[Outcome]:
    """Yield the outcomes of every `parts`-th n, until one is past the last call that the workload makes."""
    at = 1 + part
    while True:
        outcome = await bench.run(case, at)
        if not outcome.call and not outcome.problem:
            return
        yield outcome
        at += parts


async def sample(bench: Bench, case: Case, part: int, parts: int, size: int) -> AsyncIterator[Outcome]:
    """Yield the outcomes of one n in each of `size` equal stretches of the calls that there are."""
    whole = await bench.run(case, 0)
    if whole.problem:
        yield whole
        return
    chance = random.Random(f"{SEED} {case}")
    for stretch in range(size):
        low, high = (1 + whole.seen * edge // size for edge in (stretch, stretch + 1))
        at = chance.randrange(low, max(high, low + 1))
        if stretch % parts == part:
            yield await bench.run(case, at)


async def run_part(options: argparse.Namespace) -> None:
    """Be one of the processes that share the work: print each outcome as a line of JSON."""
    chosen = cases(Class[options.klass.upper()] if options.klass else None)
    if options.case:
        chosen = [case for case in chosen if options.case in str(case)]
    folder = Path(tempfile.mkdtemp(prefix="broker-nth-", dir=memory_folder()))
    bench = Bench(folder, Path(options.library), options.plant)
    try:
        await bench.prepare()
        for number, case in enumerate(chosen):
            # Neighbours begin with different parts, so that a sample of one keeps every core at work.
            part = (options.part + number) % options.parts
            if options.at:
                outcomes = one(bench, case, options.at)
            elif options.sample:
                outcomes = sample(bench, case, part, options.parts, options.sample)
            else:
                outcomes = walk(bench, case, part, options.parts)
            async for outcome in outcomes:
                print(json.dumps(asdict(outcome)), flush=True)
    finally:
        bench.close()
        shutil.rmtree(folder)


async def one(bench: Bench, case: Case, at: int) -> AsyncIterator[Outcome]:
    """Yield the outcome of one n."""
    yield await bench.run(case, at)


def memory_folder() -> Path | None:
    """Return a file system in memory, where syncs cost nothing; None when there is none."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def run_all(*arguments: str, parts: int = PARTS) -> Iterator[Outcome]:
    """Run the parts side by side, and yield their outcomes as they come."""
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        command = [
            sys.executable,
            "-m",
            "tests.fault.nth",
            "--library",
            str(library),
            "--parts",
            str(parts),
            *arguments,
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ext")])}
        workers = [
            subprocess.Popen([*command, "--part", str(part)], stdout=subprocess.PIPE, cwd=ROOT, env=environment)
            for part in range(parts)
        ]
        # Each has a pipe that holds all that the others say meanwhile only if somebody reads it.
        queue: SimpleQueue[bytes | None] = SimpleQueue()
        for worker in workers:
            Thread(target=_drain, args=(worker, queue), daemon=True).start()
        left = len(workers)
        while left:
            line = queue.get()
            if line is None:
                left -= 1
            else:
                yield Outcome(**json.loads(line))
        if any(_ended(worker) for worker in workers):
            raise AssertionError("a part of the work has failed")


def _drain(worker: subprocess.Popen[bytes], queue: SimpleQueue[bytes | None]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        queue.put(line)
    queue.put(None)


def _ended(worker: subprocess.Popen[bytes]) -> int:
    assert worker.stdout is not None
    worker.stdout.close()
    return worker.wait()


def table(outcomes: list[Outcome]) -> str:
    """Return one line for each case: how many n, how they ended, and what was wrong."""
    lines = [f"{'case':44} {'runs':>5} {'went on':>8} {'ended':>6} {'wrong':>6}  ended with"]
    for case in dict.fromkeys(outcome.case for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.case == case]
        ends = Counter(outcome.end for outcome in mine if not outcome.problem and outcome.end != "went on")
        on = sum(outcome.end == "went on" and not outcome.problem for outcome in mine)
        wrong = sum(bool(outcome.problem) for outcome in mine)
        names = ", ".join(f"{name} {count}" for name, count in ends.most_common())
        lines.append(f"{case:44} {len(mine):5} {on:8} {sum(ends.values()):6} {wrong:6}  {names}")
    wrong = sum(bool(outcome.problem) for outcome in outcomes)
    struck = sum(bool(outcome.call) for outcome in outcomes)
    lines.append(f"all: {len(outcomes)} runs, {struck} with a failure: {wrong} wrong (crashes, hangs or false acks)")
    return "\n".join(lines)


def main() -> int:
    """Run as the module's docstring says; the status is 1 when something is wrong."""
    parser = argparse.ArgumentParser(description="Let the n-th call fail, for every n.")
    parser.add_argument(
        "--class", dest="klass", choices=[each.name.lower() for each in Class if each], help="only this"
    )
    parser.add_argument("--case", default="", help="only cases whose line in the table contains this")
    parser.add_argument("--at", type=int, default=0, help="only this n")
    parser.add_argument("--sample", type=int, default=0, help="so many n of each case instead of all")
    for hidden in ("--part", "--parts"):
        parser.add_argument(hidden, type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    parser.add_argument("--plant", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        asyncio.run(run_part(options))
        return 0
    begun_s = time.monotonic()
    outcomes = []
    arguments = [f"--{name}={value}" for name, value in (("case", options.case), ("sample", options.sample)) if value]
    arguments += [f"--class={options.klass}"] if options.klass else []
    arguments += [f"--at={options.at}"] if options.at else []
    for outcome in run_all(*arguments, parts=1 if options.at else PARTS):
        outcomes.append(outcome)
        if outcome.problem:
            print(f"WRONG {outcome.case} n={outcome.at} {outcome.call}: {outcome.problem}", flush=True)
    print(table(outcomes))
    print(f"{time.monotonic() - begun_s:.0f} s")
    return 1 if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
