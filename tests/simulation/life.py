"""One life of a broker and its users, from one seed: server, clients, network and disk in one virtual time.

    Life(seed).run()

The server is the product's node and listener, the users are the product's client; what carries, stores and times them
is simulated. While publishers are at work the seed's troubles come; then everything heals, everybody must get to the
end within bounded time, and the checker judges what was seen against what the log holds.

A server that dies keeps nothing but its disk. The next one starts when what the old one had sent has been read, so
that each answer belongs to one life of the server, as the checker wants it.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from broker.access.gate import Identity
from broker.edge.native import NativeConnection
from broker.model.errors import StorageError
from broker.node.catchup import Following
from broker.node.node import Node
from tests.checker.check import check
from tests.checker.history import Committed, Crashed, Finished, Started
from tests.checker.verdict import Anomaly, Kind
from tests.simulation.crowd import Publisher, Reader, Recorder, User, Witness
from tests.simulation.disk import Disk, chunks_in_group
from tests.simulation.errands import Asker, Book, Errand, Member, Repeater, Scheduler
from tests.simulation.kernel import Kernel, LifeFailed
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import Network
from tests.simulation.policy import DELAYS_US, LEVELS, draw_policy
from tests.simulation.sealed import Voided, sealed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.edge.session import Session
    from broker.model.errors import BrokerError

SETTLE_US_MAX = 30_000_000
"""After the last trouble everybody is done within so much."""
DRAIN_S = 0.5
RESTART_US_MAX = 120_000
ERRANDS_EVERY = 4
"""One of so many lives has users with errands, beside the others."""
WALL_JUMPS_US = [900, 500_000, 5_000_000, 5 * 24 * 3600 * 1_000_000]
CHUNK_BYTES_MAX = 128 * 1024
"""What one delivery may take beyond any bound: a bound is looked at before the last chunk goes."""

FILTERS = [["s.x"], ["a.x", "s.y"], ["a.x", "a.y", "s.x", "s.y"], [">"], ["s.*"], ["*.x", "e.x"]]
"""What readers read."""


class Server:
    """One process of the server."""

    def __init__(self, life: Life, number: int) -> None:
        self.life = life
        self.loop = SimulatedLoop(life.kernel, life.network, f"server{number}")
        self.node: Node | None = None
        self.draining = False
        self.found_groups = len(life.disk.good)
        self._stop: asyncio.Future[None] | None = None
        self.loop.spawn(self.serve())

    async def serve(self) -> None:
        """Start, serve, drain, end."""
        life = self.life
        self._stop = self.loop.create_future()
        self.node = node = await Node.open(
            "disk", profiles=life.policy.profiles, limits=life.policy.limits, segment_bytes=1 << 20, reserve_bytes=0
        )
        node.fatal = self._fail
        # The listener itself accepts real sockets; what it makes of each is all that a life needs.
        door = await self.loop.create_server(lambda: NativeConnection(node, Identity(peer="tcp")), "server", 4770)
        life.kernel.note("ready", node.run)
        await self._stop
        door.close()
        await node.drain(DRAIN_S)
        try:
            await node.close()
        except StorageError as failure:
            # Its last group did not get to the disk: the process ends with that error, and the next run knows.
            life.kernel.note("unclean", failure)
        life.kernel.note("ended", node.run)
        life.ended(self)

    def _fail(self, failure: BrokerError) -> None:
        """The node cannot go on: the process ends, and whoever watches it starts another."""
        self.life.kernel.note("fatal", failure)
        self._end()

    def stop(self) -> None:
        """Ask it to end in good order, as a signal does."""
        self.loop.interrupt(self._end)

    def _end(self) -> None:
        self.draining = True
        if self._stop is not None and not self._stop.done():
            self._stop.set_result(None)

    def kill(self) -> None:
        """It is gone at this instant."""
        self.loop.kill()
        if self.node is not None:
            # What a channel knows of its readers no garbage collector sees.
            self.node.fanout.close()


class Life:
    """Everything that a seed drives.

    Args:
        seed: The seed.

    Attributes:
        verdict: What the checker said, once it is over.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.kernel = Kernel(seed)
        self.random = self.kernel.random
        self.policy = draw_policy(self.random)
        self.network = Network(self.kernel, self.policy)
        self.disk = Disk(self.kernel, self.policy, self.random.randbytes(16))
        self.disk.on_written, self.disk.on_good = self._written, self._committed
        self.recorder = Recorder(self.kernel, self.policy.accepted_window_us / 1e6)
        self.voided: Voided = set()
        self.servers: list[Server] = []
        self.publishers: list[Publisher] = []
        self.readers: list[Reader] = []
        self.errands: list[Errand] = []
        self.book = Book()
        self.witness: Witness | None = None
        self.verdict: Any = None
        self._muted: list[Any] = []
        self._names: dict[int, str] = {}
        self._healed = False

    def run(self) -> None:
        """Live.

        Raises:
            AssertionError: Something was wrong; `LifeFailed` when it was seen at once.
        """
        try:
            with sealed(self.kernel, self.disk, self.policy, self.voided):
                self._live()
            self._judge()
        except BaseException as failure:
            failure.add_note(f"replay it: python -m tests.simulation --seed {self.seed} --trace")
            raise
        finally:
            self._bury()

    # -- the life ------------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        self._start_server()
        for number in range(self.policy.publishers):
            self.publishers.append(Publisher(self.recorder, self.network, self.policy, f"publisher{number}"))
        host: Publisher | None
        for number, filters in enumerate(self.random.sample(FILTERS, self.random.choice([1, 2, 3]))):
            host = self.random.choice(self.publishers) if self.random.random() < 0.3 else None
            # A place of the bus says nothing of what was seen early beyond it: an application that leaves with such a
            # place may see that again.
            leaving = self.random.random() < 0.5 and (filters == ["s.*"] or not set("*>") & set("".join(filters)))
            fresh = self.random.random() < 0.25
            self.readers.append(
                Reader(
                    self.recorder,
                    self.network,
                    self.policy,
                    f"reader{number}",
                    filters,
                    slow=self.random.random() < 0.4,
                    leaving=leaving and not fresh,
                    fresh=fresh,
                    host=host,
                )
            )
        if self.seed % ERRANDS_EVERY == ERRANDS_EVERY - 1:
            self._add_errands()
        for trouble in self.policy.troubles:
            self.kernel.after(int(self.policy.active_us * self.random.random()), self._trouble, trouble)
        self.kernel.run(lambda: False, self.kernel.now_us + self.policy.active_us)
        self._heal()
        self._reach(lambda: all(user.finished for user in [*self.publishers, *self.errands]), self._unfinished)
        book = self.book if self.errands else None
        witness = self.witness = Witness(self.recorder, self.network, self.policy, self.readers, book)
        self._reach(lambda: witness.finished, lambda: f"behind: {witness.behind()}")
        for reader in self.readers:
            for channel in reader.channels:
                self.recorder.add(Finished(self.kernel.now_s, reader.name, channel))

    def _reach(self, until: Callable[[], bool], why: Callable[[], str]) -> None:
        if not self.kernel.run(until, self.kernel.now_us + SETTLE_US_MAX):
            raise LifeFailed(f"does not come to rest in {SETTLE_US_MAX / 1e6:g} s: {why()}")

    def _unfinished(self) -> str:
        return f"unfinished {[user.name for user in [*self.publishers, *self.errands] if not user.finished]}"

    def _add_errands(self) -> None:
        """Have users with errands; the window of ids is shorter than what a wall clock jumps."""
        kinds: list[type[Errand]] = self.random.choice([[Scheduler], [Member, Member, Asker], []])
        if "wall" not in self.policy.troubles:
            kinds = [*kinds, Repeater, Repeater]
        for number, kind in enumerate(kinds):
            name = f"{kind.__name__.lower()}{number}"
            self.errands.append(kind(self.recorder, self.network, self.policy, name, self.book))

    def _heal(self) -> None:
        """No more troubles."""
        self.kernel.note("heal")
        self._healed = True
        self.disk.healthy = True
        self.policy.spike_share = self.policy.dribble_share = 0
        for user in [*self.publishers, *self.errands]:
            user.finishing = True
        for reader in self.readers:
            reader.hurrying = True

    # -- the server's lives --------------------------------------------------------------------------------------------

    @property
    def server(self) -> Server | None:
        """The process that is there."""
        return self.servers[-1] if self.servers and not self.servers[-1].loop.dead else None

    def _start_server(self) -> None:
        if any(not user.loop.is_idle for user in self._users()):
            # What the old one sent is still being read.
            self.kernel.after(200, self._start_server)
            return
        for end in self._muted:
            end.muted = False
        self._muted.clear()
        self.recorder.add(Started(self.kernel.now_s))
        self.kernel.note("start")
        self.servers.append(Server(self, len(self.servers)))
        if len(self.servers) == 1:
            self.kernel.at(self.kernel.now_us + 1_000, self._inspect)

    def _users(self) -> list[User]:
        return [*self.publishers, *self.readers, *self.errands, *([self.witness] if self.witness is not None else [])]

    def _kill_server(self, *, silent: bool) -> None:
        server = self.server
        if server is None:
            return
        self.kernel.note("kill", server.loop.name, "silent" if silent else "")
        ends = [end for end in self.network.ends if end.loop is server.loop]
        self.network.kill(server.loop, silent=silent)
        server.kill()
        if len(self.disk.good) > server.found_groups:
            # One that has not begun its run has done nothing, and nobody will ever know of it.
            self.recorder.add(Crashed(self.kernel.now_s))
        self._muted += ends if silent else []
        self._restart_when_read(ends)

    def ended(self, server: Server) -> None:
        """A server's process ends by itself."""
        ends = [end for end in self.network.ends if end.loop is server.loop]
        self.network.kill(server.loop, silent=False)
        self.kernel.after(0, self._ended, server, ends)

    def _ended(self, server: Server, ends: list[Any]) -> None:
        server.kill()
        self._restart_when_read(ends)

    def _restart_when_read(self, ends: list[Any]) -> None:
        """Start the next server when nothing that the last one sent is on its way any more."""
        arrived_us = max([end.arrives_us() for end in ends], default=0)
        delay_us = self.random.randint(0, RESTART_US_MAX)
        self.kernel.at(max(self.kernel.now_us + delay_us, arrived_us + 1), self._start_server)

    # -- troubles ------------------------------------------------------------------------------------------------------

    def _trouble(self, kind: str) -> None:
        if self._healed:
            return
        random, kernel = self.random, self.kernel
        kernel.note("trouble", kind)
        server = self.server
        match kind:
            case "crash" | "power":
                self._kill_server(silent=kind == "power")
            case "restart" if server is not None:
                server.stop()
            case "reset" | "late" | "eof" | "silent":
                pairs = self.network.pairs()
                if pairs:
                    self.network.cut(random.choice(pairs), kind)
            case "part":
                self.network.held_until_us = kernel.now_us + random.randint(1_000, DELAYS_US["part"])
            case "stall" if server is not None:
                server.loop.stall(random.randint(1_000, DELAYS_US["stall"]))
            case "stall_client":
                random.choice(self._users()).loop.stall(random.randint(1_000, DELAYS_US["stall_client"]))
            case "full":
                self.disk.full_until_us = kernel.now_us + random.randint(1_000, 300_000)
            case "slow":
                self.disk.slow_until_us = kernel.now_us + random.randint(1_000, 400_000)
            case "failing":
                self.disk.failing_until_us = kernel.now_us + random.randint(1_000, 400_000)
            case "dying":
                # The disk fails and takes the server with it, before anybody knows what became of the last group.
                self.disk.failing_until_us = kernel.now_us + random.randint(1_000, 400_000)
                delay_us = random.randint(0, self.disk.failing_until_us - kernel.now_us)
                kernel.after(delay_us, self._trouble, random.choice(["crash", "power"]))
            case "wall":
                kernel.wall_offset_us += random.choice([-1, 1]) * random.choice(
                    [900, 500_000, 5_000_000, 432_000_000_000]
                )

    # -- what must be so at every moment -------------------------------------------------------------------------------

    def _inspect(self) -> None:
        """Look at what the server holds, every few milliseconds."""
        server = self.server
        if server is not None and server.node is not None:
            self._inspect_node(server.node)
        self.kernel.after(3_000, self._inspect)

    def _inspect_node(self, node: Node) -> None:
        limits = node.limits
        if node.tails.group_bytes > limits.group_bytes_max + CHUNK_BYTES_MAX * (len(node.connections) + 1):
            self.kernel.fail(f"open group: {node.tails.group_bytes} bytes")
        lines = []
        for connection in node.connections:
            session: Session = connection  # type: ignore[assignment]
            if session.publisher is not None and not session.closed:
                lines.append(session.publisher.line)
            if session.outbox.queued > limits.connection_bytes_max + CHUNK_BYTES_MAX and not session.closed:
                self.kernel.fail(f"queued for a connection: {session.outbox.queued} bytes")
            for subscription in (session.subscriptions or {}).values():
                low, high = -subscription.overdraft - CHUNK_BYTES_MAX, self.policy.credit_bytes
                if subscription.credit < low or (subscription.credit > high and self.witness is None):
                    self.kernel.fail(f"subscription {subscription.number} has a credit of {subscription.credit}")
                following = subscription.state
                if isinstance(following, Following) and following.live and (following.busy or following.after):
                    self.kernel.fail(f"subscription {subscription.number} is live and reads the log")
        if len(set(lines)) < len(lines):
            self.kernel.fail("two connections publish on one line")

    # -- the judgement -------------------------------------------------------------------------------------------------

    def _written(self, value: bytes) -> None:
        """A group is in the file: learn the names of its channels while somebody knows them."""
        node = self.servers[-1].node if self.servers else None
        if node is not None:
            for channel, _, _, _ in chunks_in_group(value):
                name = node.tails.name_of(channel)
                assert name is not None
                self._names[channel] = name.decode()

    def _committed(self, value: bytes) -> None:
        """A group counts: nobody may have been told before."""
        for channel, epoch, first, count in chunks_in_group(value):
            if self._names[channel] in LEVELS:
                self.recorder.add(Committed(self.kernel.now_s, self._names[channel], epoch, first, count))

    def _judge(self) -> None:
        if self.errands and (broken := self.book.judge()):
            raise LifeFailed("\n".join(broken))
        self.verdict = check(self.recorder.history)
        wrong = [anomaly for anomaly in self.verdict.anomalies if not self._excused(anomaly)]
        if wrong:
            raise LifeFailed("\n".join([str(self.verdict), *map(str, wrong[:10])]))

    def _excused(self, anomaly: Anomaly) -> bool:
        """What the checker, which knows of crashes only, cannot know of failed commits.

        They take accepted records that were acknowledged, as a crash does. What they took was refused if its publisher
        never got that answer, sends it again, and finds the journal still recovering; readers may have seen it. And a
        reader who was told `diverged` while the outcome was unknown gets again what a crash before the fence has
        brought back.
        """
        if LEVELS[anomaly.channel] > 2:
            return False
        if anomaly.kind in (Kind.LOST, Kind.FROM_NOWHERE):
            return (anomaly.channel, anomaly.epoch, anomaly.sequence) in self.voided
        if anomaly.kind is Kind.DUPLICATE:
            told = self.recorder.diverged.get((anomaly.who, anomaly.channel))
            return told is not None and anomaly.sequence > told
        return False

    def _bury(self) -> None:
        """Free what the life held: the cycles of its loops and sessions are many."""
        for server in self.servers:
            if not server.loop.dead:
                server.kill()
        for user in self._users():
            if not user.loop.dead:
                user.loop.kill()
        gc.collect(1)
