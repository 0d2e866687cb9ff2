"""A network in memory: connections that are slow, cut bytes anywhere, push back, break, and lose what was under way.

Each connection is two `End`s, one in each process, which behave as asyncio's transports of a socket do. Bytes go from
an end's own buffer to the wire, as many as the peer's window takes, and arrive in order after a latency of their own;
connections overtake each other freely. The peer's loop reads them in pieces that the seed cuts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.simulation.kernel import Kernel
    from tests.simulation.loop import SimulatedLoop

Address = tuple[Any, Any]

READ_BYTES_MAX = 256 * 1024
HELD_MAX = 10_000
"""More pieces than a connection has on the wire at once."""
DRIBBLES_MAX = 60
"""A connection is read byte by byte at most so often: it finds what there is to find, and takes its time."""


class Habits(Protocol):
    """How a network behaves; see `Policy`."""

    latency_us: int
    spike_share: float
    spike_us: int
    window_bytes: int
    cut_share: float
    dribble_share: float


class End(asyncio.Transport):
    """One end of a connection.

    Args:
        network: What it is part of.
        loop: The process it belongs to.
        name: Says in the trace which connection and which end it is.
    """

    def __init__(self, network: Network, loop: SimulatedLoop, name: str) -> None:
        super().__init__()
        self.network = network
        self.loop = loop
        self.name = name
        self.peer: End = self
        self.protocol: Any = None
        self.dribbles = 0
        self.muted = False  # what it sends gets nowhere
        self._kernel = network.kernel
        self._inbox = bytearray()
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._under_way = 0  # bytes on the wire, or not read by the peer yet
        self._high, self._low = 64 * 1024, 16 * 1024
        self._is_full = False
        self._is_reading = True
        self._is_closing = False
        self._is_lost = False
        self._has_eof = False
        self._said_eof = False
        self._failure: Exception | None = None
        self._is_woken = False
        self._arrives_us = 0
        self._held_until_us = 0

    # -- asyncio's transport --

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self._backlog_bytes

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or self._is_lost or not data:
            return
        self._backlog.append(bytes(data))
        self._backlog_bytes += len(data)
        self._push()
        if self._backlog_bytes > self._high and not self._is_full:
            self._is_full = True
            self._kernel.note("full", self.name, self._backlog_bytes)
            self.protocol.pause_writing()

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        if self._inbox or self._has_eof:
            self._wake()

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._is_reading = False
            if not self._backlog:
                self._finish()

    def abort(self) -> None:
        self._force_close(None)

    # -- how bytes leave --

    def _push(self) -> None:
        """Put on the wire what the peer's window takes."""
        window = self.network.habits.window_bytes
        while self._backlog and self._under_way < window:
            data = self._backlog.popleft()
            if len(data) > window - self._under_way:
                self._backlog.appendleft(data[window - self._under_way :])
                data = data[: window - self._under_way]
            self._backlog_bytes -= len(data)
            self._under_way += len(data)
            self._carry(self.peer.arrive, data)

    def _carry(self, arrive: Callable[..., None], *args: Any) -> None:
        """Have the wire bring something to the peer, behind all that went before."""
        if not self.muted:
            self._arrives_us = max(self._arrives_us + 1, self.network.arrival_us())
            self._kernel.at(self._arrives_us, self._arrive, arrive, args)

    def _arrive(self, arrive: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.muted:
            return
        if self._kernel.now_us < self._held_until_us:
            # One behind the other, and all of them before what is sent later.
            self._held_until_us += 1
            self._arrives_us = max(self._arrives_us, self._held_until_us)
            self._kernel.at(self._held_until_us, arrive, *args)
            return
        arrive(*args)

    def hold(self, hold_us: int) -> None:
        """Let what is on the wire come so much later."""
        self._held_until_us = self._kernel.now_us + hold_us
        self._arrives_us = max(self._arrives_us, self._held_until_us) + HELD_MAX

    def arrives_us(self) -> int:
        """When the last of what is on the wire arrives."""
        return self._arrives_us

    def _was_read(self, size: int) -> None:
        """The peer has taken bytes: its window is open again."""
        self._under_way -= size
        if self._is_lost or not self._backlog:
            return
        self._push()
        if not self._backlog and self._is_closing:
            self.loop.interrupt(self._finish)
        elif self._is_full and self._backlog_bytes <= self._low:
            self._wake()

    # -- how they arrive --

    def arrive(self, data: bytes) -> None:
        """Bytes have come over the wire."""
        if self._is_lost or self.loop.dead:
            self._carry(self.peer.arrive_reset)
            return
        self._inbox += data
        if self._is_reading:
            self._wake()

    def arrive_eof(self) -> None:
        """The peer sends nothing more."""
        self._has_eof = True
        self._wake()

    def arrive_reset(self) -> None:
        """The peer is gone."""
        self._failure = ConnectionResetError("connection reset by peer")
        self._wake()

    def _wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self.loop.interrupt(self._on_ready)

    def _on_ready(self) -> None:
        """The loop has found the socket ready: read once, and see whether writing may go on."""
        self._is_woken = False
        if self._is_lost or self.protocol is None:
            return
        if self._failure is not None:
            self._force_close(self._failure)
            return
        if self._is_reading and self._inbox:
            self._read()
        elif self._is_reading and self._has_eof and not self.protocol.eof_received():
            self.close()
        if self._is_full and self._backlog_bytes <= self._low and not self._is_lost:
            self._is_full = False
            self._kernel.note("writable", self.name)
            self.protocol.resume_writing()
        if self._is_reading and (self._inbox or self._has_eof) and not self._is_closing:
            self._wake()

    def _read(self) -> None:
        size = self.network.read_size(self, len(self._inbox))
        buffer = self.protocol.get_buffer(-1)
        size = min(size, len(buffer))
        data = self._inbox[:size]
        buffer[:size] = data
        del self._inbox[:size]
        self._kernel.note("read", self.name, size, crc32(data))
        self._carry_window(size)
        self.protocol.buffer_updated(size)

    def _carry_window(self, size: int) -> None:
        peer = self.peer
        if peer._backlog:
            self._kernel.at(self.network.arrival_us(), peer._was_read, size)
        else:
            peer._under_way -= size

    # -- how it ends --

    def _finish(self) -> None:
        """Everything is on the wire: say that nothing follows, and end."""
        if not self._is_lost and not self._said_eof:
            self._said_eof = True
            self._carry(self.peer.arrive_eof)
            self.loop.call_soon(self._lose, None)

    def _force_close(self, failure: Exception | None) -> None:
        if self._said_eof or self._is_lost:
            return
        self._said_eof = self._is_closing = True
        self._is_reading = False
        self._backlog.clear()
        self._backlog_bytes = 0
        self._carry(self.peer.arrive_reset)
        self.loop.call_soon(self._lose, failure)

    def _lose(self, failure: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._kernel.note("lost", self.name, failure)
            self.network.ends.pop(self, None)
            self._inbox.clear()
            protocol, self.protocol = self.protocol, None
            if protocol is not None:
                protocol.connection_lost(failure)

    # -- what befalls it --

    def die(self, *, silent: bool) -> None:
        """Its process is gone: the peer gets what is on the wire and then the end, or nothing at all any more."""
        self._is_lost = True
        self._backlog.clear()
        self.network.ends.pop(self, None)
        if silent:
            self.muted = True
        else:
            self._carry(self.peer.arrive_eof if not self._inbox else self.peer.arrive_reset)


class Server:
    """What `create_server` returns."""

    def __init__(self, network: Network, address: Address) -> None:
        self._network = network
        self._address = address
        self.sockets = [self]

    def getsockname(self) -> Address:
        return self._address

    def close(self) -> None:
        self._network.listeners.pop(self._address, None)


class Network:
    """All connections of a life.

    Args:
        kernel: Its time and chance.
        habits: How it behaves.

    Attributes:
        ends: The ends that are not lost, in the order of their coming.
        listeners: Who takes connections, by address.
        held_until_us: Nothing arrives before this: the network is parted.
    """

    def __init__(self, kernel: Kernel, habits: Habits) -> None:
        self.kernel = kernel
        self.habits = habits
        self.ends: dict[End, None] = {}
        self.listeners: dict[Address, tuple[SimulatedLoop, Callable[[], Any]]] = {}
        self.held_until_us = 0
        self._made = 0

    def arrival_us(self) -> int:
        """Draw when something that leaves now arrives."""
        habits, random = self.habits, self.kernel.random
        latency_us = 1 + int(habits.latency_us * random.random())
        if random.random() < habits.spike_share:
            latency_us += int(habits.spike_us * random.random())
        return max(self.kernel.now_us, self.held_until_us) + latency_us

    def read_size(self, end: End, size: int) -> int:
        """Draw how much of what has come is read at once."""
        habits, random = self.habits, self.kernel.random
        if end.dribbles < DRIBBLES_MAX and random.random() < habits.dribble_share:
            end.dribbles += 1
            return 1
        if random.random() < habits.cut_share:
            return random.randint(1, size)
        return min(size, READ_BYTES_MAX)

    # -- making connections --

    def listen(self, loop: SimulatedLoop, factory: Callable[[], Any], address: Address) -> Server:
        """Take connections for a process."""
        self.listeners[address] = (loop, factory)
        return Server(self, address)

    async def connect(self, loop: SimulatedLoop, factory: Callable[[], Any], address: Address) -> tuple[End, Any]:
        """Connect a process to whoever listens at an address.

        Raises:
            ConnectionRefusedError: Nobody does.
        """
        answer: asyncio.Future[End] = loop.create_future()
        self.kernel.at(self.arrival_us(), self._knock, loop, address, answer)
        end = await answer
        end.protocol = factory()
        end.protocol.connection_made(end)
        end._wake()
        return end, end.protocol

    def _knock(self, loop: SimulatedLoop, address: Address, answer: asyncio.Future[End]) -> None:
        if loop.dead:
            return
        found = self.listeners.get(address)
        near: End | None = None
        if found is not None:
            listener, factory = found
            self._made += 1
            near, far = End(self, loop, f"c{self._made}<"), End(self, listener, f"c{self._made}>")
            near.peer, far.peer = far, near
            self.ends[near] = self.ends[far] = None
            listener.interrupt(self._accept, far, factory)
            self.kernel.note("connect", loop.name, near.name)
        self.kernel.at(self.arrival_us(), self._answer, loop, answer, near)

    def _accept(self, end: End, factory: Callable[[], Any]) -> None:
        end.protocol = factory()
        end.protocol.connection_made(end)
        end._wake()

    def _answer(self, loop: SimulatedLoop, answer: asyncio.Future[End], end: End | None) -> None:
        if not loop.dead:
            loop.call_soon_threadsafe(self._answered, answer, end)

    def _answered(self, answer: asyncio.Future[End], end: End | None) -> None:
        if answer.done():
            # Whoever asked has given up.
            if end is not None:
                end._force_close(None)
        elif end is None:
            answer.set_exception(ConnectionRefusedError("connection refused"))
        else:
            answer.set_result(end)

    # -- faults --

    def pairs(self) -> list[End]:
        """Return the client's end of each connection that both processes still have."""
        return [end for end in self.ends if end.name.endswith("<") and end.peer in self.ends]

    def kill(self, loop: SimulatedLoop, *, silent: bool) -> None:
        """A process is gone, and with it its ends of connections; or the machine with its network, `silent`ly."""
        for address, (listener, _) in list(self.listeners.items()):
            if listener is loop:
                del self.listeners[address]
        for end in list(self.ends):
            if end.loop is loop:
                end.die(silent=silent)

    def cut(self, end: End, how: str) -> None:
        """Break a connection.

        Args:
            end: The client's end.
            how: `reset` loses what is under way and tells both; `late` tells the client at once, and what is on its way
                to the server arrives there later, perhaps behind what a new connection brings; `eof` ends one direction
                after what is under way; `silent` tells nobody.
        """
        self.kernel.note("cut", end.name, how)
        if how == "eof":
            one = self.kernel.random.choice([end, end.peer])
            one._carry(one.peer.arrive_eof)
            return
        end.peer.muted = True
        if how == "late":
            end.hold(self.kernel.random.randint(0, 400_000))
            end._carry(end.peer.arrive_reset)
            end.arrive_reset()
            return
        end.muted = True
        if how == "reset":
            end.arrive_reset()
            end.peer.arrive_reset()
