"""Processes that publish and subscribe on one shared directory, may be killed at any instant, and note what they see.

`python -m tests.shared.workers DIRECTORY NOTES` has imported everything and forks a worker for each line that it reads,
`{"worker": name, "values": first value, "seed": n, "stub": […]}`, which it answers with `{"pid": n}`. It ends with its
input, and its workers with it.

A worker notes an event before it acts on it, in one write, so what it has done is known when it is killed. Events of
all workers have one clock, the system's monotonic one, and are put in order by it. SIGUSR1 tells a worker to publish
nothing more; SIGTERM that everybody has stopped: it reads on to the heads that it finds in `NOTES/heads`, and ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from broker import Broker, BrokerError
from broker.shared import bus as _everything_imported  # noqa: F401
from broker.shared import starting
from tests.checker.history import Finished, History, Subscribed
from tests.fault.harness import BATCH_MAX, Recorder, payload_of

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import NoReturn

    from broker.bus import Bus, Subscription
    from broker_native.outcomes import Receipt
    from tests.checker.history import Event

CHANNELS = ("kill.one", "kill.two", "kill.three", "kill.four")
FILTERS = (("kill.>",), ("kill.one", "kill.three"), ("kill.two",), ("kill.four", "kill.one"))
"""What the workers subscribe, in turn."""
SELECTED = {filters: [name for name in CHANNELS if name in filters or "kill.>" in filters] for filters in FILTERS}
UNANSWERED_MAX = 4
PAUSE_S_MAX = 0.03
IDLE_S = 1.0
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Notes(Recorder):
    """Events that go to a file at once.

    Args:
        path: of the file.
        values: the first value to publish; no other life has those that follow.
    """

    def __init__(self, path: Path, values: int) -> None:
        super().__init__(History(), values)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, event: Event) -> None:
        os.write(self._file, (json.dumps([type(event).__name__, *event]) + "\n").encode())


class Worker:
    """One life of a worker.

    Args:
        data: the shared directory.
        folder: of the notes.
        request: what it is to be.
    """

    def __init__(self, data: Path, folder: Path, request: dict[str, Any]) -> None:
        self.name: str = request["worker"]
        self._data = data
        self._folder = folder
        self._filters = FILTERS[request["seed"] % len(FILTERS)]
        self._chance = random.Random(request["seed"])
        self._notes = Notes(folder / self.name, request["values"])
        self._stopping = asyncio.Event()
        self._ending = asyncio.Event()
        self._places: dict[str, tuple[int, int]] = {}
        self._moved = asyncio.Event()

    async def live(self) -> None:
        """Publish and read until told to stop, then catch up."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._stopping.set)
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        async with await self._open() as bus:
            for channel in SELECTED[self._filters]:
                self._notes.add(Subscribed(time.monotonic(), self.name, channel, True))
            async with bus.subscribe(*self._filters, start="start") as subscription:
                reading = asyncio.create_task(self._read(subscription))
                await self._publish(bus)
                (self._folder / f"{self.name}.stopped").touch()
                await self._ending.wait()
                heads = json.loads((self._folder / "heads").read_text())
                async with asyncio.timeout(30):
                    while any(self._places.get(name, (0, 0)) < tuple(heads[name]) for name in SELECTED[self._filters]):
                        self._moved.clear()
                        await self._moved.wait()
                for channel in SELECTED[self._filters]:
                    self._notes.add(Finished(time.monotonic(), self.name, channel))
                reading.cancel()
                await asyncio.wait([reading])

    async def _open(self) -> Bus:
        while True:
            try:
                return await Broker.open(self._data, shared=True, idle_s=IDLE_S, connect_timeout_s=30)
            except BrokerError as failure:
                # The servers that were started were killed before they were ready, one after the other.
                if failure.name != "SERVER_FAILED":
                    raise

    async def _publish(self, bus: Bus) -> None:
        waiting: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            channel, count = self._chance.choice(CHANNELS), self._chance.randint(1, BATCH_MAX)
            number, values = self._notes.invoke(self.name, channel, count)
            answer = bus.publish_many(channel, [payload_of(value) for value in values])
            waiting.add(asyncio.create_task(self._note_answer(number, count, answer)))
            if len(waiting) >= UNANSWERED_MAX:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(self._chance.uniform(0, PAUSE_S_MAX))
        await asyncio.gather(*waiting)

    async def _note_answer(self, number: int, count: int, answer: Awaitable[list[Receipt]]) -> None:
        try:
            self._notes.answer(self.name, number, count, await answer)
        except BrokerError as failure:
            self._notes.answer(self.name, number, count, failure)

    async def _read(self, subscription: Subscription) -> None:
        async for batch in subscription.batches():
            self._notes.deliver(self.name, batch)
            self._places[batch.channel] = batch.epoch, batch.last
            self._moved.set()


def live(data: Path, folder: Path, request: dict[str, Any]) -> NoReturn:
    """Be a worker, and end with a status."""
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        if request["stub"]:
            starting.interpreter = lambda: request["stub"]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Worker(data, folder, request).live())
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(data: Path, folder: Path) -> None:
    """Answer requests until the input ends."""
    # They wait until a worker is there to take them.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            child = os.fork()
            if not child:
                live(data, folder, request)
            answer = {"pid": child}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
