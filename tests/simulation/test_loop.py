"""The simulated loop and network keep asyncio's promises: the product must not be able to tell the difference."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.simulation.kernel import Kernel, LifeFailed
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import End, Network

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator


@dataclass
class Plain:
    """A network without surprises, but for reads that are cut."""

    latency_us: int = 100
    spike_share: float = 0
    spike_us: int = 0
    window_bytes: int = 1_000
    cut_share: float = 0.5
    dribble_share: float = 0.1


class World:
    """Two processes."""

    def __init__(self, seed: int = 1) -> None:
        self.kernel = Kernel(seed)
        self.network = Network(self.kernel, Plain())
        self.here = SimulatedLoop(self.kernel, self.network, "here")
        self.there = SimulatedLoop(self.kernel, self.network, "there")

    def run(self, *work: Coroutine[Any, Any, object], seconds: float = 60) -> None:
        """Run coroutines in the first process for so long."""
        for each in work:
            self.here.spawn(each)
        self.kernel.run(lambda: False, self.kernel.now_us + int(seconds * 1e6))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for loop in (world.here, world.there):
        if not loop.dead:
            loop.kill()


def test_callbacks_run_in_order_and_timers_when_they_are_due(world: World) -> None:
    order: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert loop is world.here
        begun_s = loop.time()
        loop.call_later(0.5, lambda: order.append(round(loop.time() - begun_s, 3)))
        loop.call_at(begun_s + 0.25, order.append, "earlier")
        cancelled = loop.call_later(0.1, order.append, "never")
        cancelled.cancel()
        for number in range(5):
            loop.call_soon(order.append, number)
        await asyncio.sleep(0)
        order.append("awake")
        async with asyncio.timeout(1):
            await asyncio.sleep(0.3)
        order.append("late")

    world.run(main())
    assert order == [0, 1, 2, 3, 4, "awake", "earlier", "late", 0.5]


def test_what_a_callback_schedules_waits_for_the_next_iteration(world: World) -> None:
    times: list[int] = []

    def again() -> None:
        times.append(world.kernel.now_us)
        if len(times) < 3:
            world.here.call_soon(again)

    async def main() -> None:
        again()

    world.run(main())
    assert len(set(times)) == 3


def test_threads_work_beside_the_loop(world: World) -> None:
    found: list[object] = []

    def work(number: int) -> int:
        assert world.kernel.running is None
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        world.here.call_soon_threadsafe(found.append, "said")
        return number + 1

    def refuse() -> None:
        raise OSError("no")

    async def main() -> None:
        found.append(await asyncio.get_running_loop().run_in_executor(None, work, 1))
        with pytest.raises(OSError, match="no"):
            await asyncio.to_thread(refuse)

    world.run(main())
    assert found == ["said", 2]


def test_a_stalled_process_misses_nothing(world: World) -> None:
    found: list[float] = []

    async def main() -> None:
        begun_s = world.here.time()
        world.here.stall(500_000)
        await asyncio.sleep(0.1)
        found.append(world.here.time() - begun_s)

    world.run(main())
    assert found[0] > 0.5


def test_a_task_that_fails_ends_the_life(world: World) -> None:
    async def main() -> None:
        raise KeyError("mistake")

    with pytest.raises(LifeFailed, match="mistake"):
        world.run(main())


def test_a_killed_process_says_nothing_more(world: World) -> None:
    found: list[int] = []

    async def main() -> None:
        await asyncio.sleep(1)
        found.append(1)

    world.here.spawn(main())
    world.kernel.after(500_000, world.here.kill)
    world.run()
    assert found == []
    with pytest.raises(RuntimeError, match="closed"):
        world.here.call_soon_threadsafe(print)


# -- the network -------------------------------------------------------------------------------------------------------


class Heard(asyncio.BufferedProtocol):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.buffer = bytearray(64)
        self.data = b""
        self.calls: list[str] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.calls.append("made")

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]

    def eof_received(self) -> None:
        self.calls.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append(f"lost {type(exc).__name__}")

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")


def connected(world: World) -> tuple[Heard, Heard]:
    """Connect the two processes."""
    near, far = Heard(), Heard()

    async def listen() -> None:
        await world.there.create_server(lambda: far, "there", 1)

    async def connect() -> None:
        await world.here.create_connection(lambda: near, "there", 1)

    world.there.spawn(listen())
    world.run(seconds=1)
    world.run(connect(), seconds=1)
    assert near.calls == far.calls == ["made"]
    return near, far


DATA = bytes(range(256)) * 100


@pytest.mark.parametrize("seed", range(5))
def test_bytes_arrive_whole_and_in_order_however_they_are_cut(world: World, seed: int) -> None:
    world.kernel.random.seed(seed)
    near, far = connected(world)

    async def send() -> None:
        near.transport.set_write_buffer_limits(high=5_000)
        near.transport.writelines([DATA[:10], DATA[10:500]])
        near.transport.write(DATA[500:])
        near.transport.close()

    world.run(send())
    assert far.data == DATA
    assert near.calls == ["made", "pause", "resume", "lost NoneType"]
    assert far.calls == ["made", "eof", "lost NoneType"]


def test_who_does_not_read_is_not_sent_more_than_its_window(world: World) -> None:
    near, far = connected(world)
    end: End = near.transport

    async def stop_reading() -> None:
        far.transport.pause_reading()

    async def send() -> None:
        end.set_write_buffer_limits(high=5_000)
        end.write(DATA)

    async def read_again() -> None:
        far.transport.resume_reading()

    world.there.spawn(stop_reading())
    world.run(send(), seconds=1)
    assert far.data == b""
    assert end.get_write_buffer_size() == len(DATA) - 1_000
    assert near.calls == ["made", "pause"]
    world.there.spawn(read_again())
    world.run()
    assert far.data == DATA
    assert near.calls == ["made", "pause", "resume"]


@pytest.mark.parametrize(
    ("how", "near_lost", "far_lost"),
    [("reset", True, True), ("late", True, True), ("silent", False, False), ("eof", True, True)],
)
def test_cuts(world: World, how: str, near_lost: bool, far_lost: bool) -> None:
    near, far = connected(world)

    async def send() -> None:
        near.transport.write(DATA[:900])
        far.transport.network.cut(near.transport, how)

    world.run(send())
    assert near.calls[-1].startswith("lost") == near_lost
    assert far.calls[-1].startswith("lost") == far_lost
    assert len(far.data) == {"reset": 0, "silent": 0, "late": 900, "eof": 900}[how] or how == "eof"


def test_nobody_listens(world: World) -> None:
    async def connect() -> None:
        with pytest.raises(ConnectionRefusedError):
            await world.here.create_connection(Heard, "there", 1)

    world.run(connect())


def test_a_process_that_dies_ends_its_connections(world: World) -> None:
    near, _ = connected(world)
    world.network.kill(world.there, silent=False)
    world.there.kill()
    world.run()
    assert near.calls == ["made", "eof", "lost NoneType"]
