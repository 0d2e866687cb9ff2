"""The driver against the servers that it is compared with: all comes once and in order, and refusals are told."""

from __future__ import annotations

import secrets
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from broker.bench.peers import PEERS, QUEUES, peer_of, redis
from broker.bench.peers.work import PeerWork
from broker.model.errors import BrokerError
from broker_native.crew import Members
from broker_native.driver import DIALECTS, Driver
from tests.bench.peer_servers import needs, peer_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.bench.peers.work import Address
    from broker_native.driver import Outcome
    from tests.bench.peer_servers import PeerServer

SERVER_OF = {
    "redis": "redis-server",
    "redis-stream": "redis-server",
    "nats": "nats-server",
    "jetstream": "nats-server",
    "mqtt-0": "mosquitto",
    "mqtt-1": "mosquitto",
}
SPOKEN = [pytest.param(dialect, marks=needs(server)) for dialect, server in SERVER_OF.items()]
STORED = [pytest.param(dialect, marks=needs(SERVER_OF[dialect])) for dialect in ("redis-stream", "jetstream")]
redis_there, nats_there = needs("redis-server"), needs("nats-server")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PeerServer]]:
    """Servers by their names, each started when it is first asked for."""
    with ExitStack() as stack:

        class Started(dict[str, "PeerServer"]):
            def __missing__(self, name: str) -> PeerServer:
                server = stack.enter_context(peer_server(name, tmp_path_factory.mktemp(name)))
                self[name] = server
                return server

        yield Started()


@contextmanager
def loaded(
    address: Address, work: PeerWork, publishers: int = 1, subscribers: int = 1, **options: Any
) -> Iterator[tuple[Driver, list[int]]]:
    """Yield a driver with publishers, and numbers of sockets of readers that it has not been given yet."""
    peer = peer_of(work.dialect)
    peer.prepare(address, work)
    with ExitStack() as stack:
        stack.callback(peer.clean_up, address, work)
        audiences = work.audiences
        driver = Driver(work.names, publishers=publishers, dialect=work.dialect, audiences=audiences, **options)
        for _ in range(publishers):
            driver.add_publisher(stack.enter_context(peer.open_publisher(address, work)).fileno())
        sockets = [peer.open_subscriber(address, work, at % audiences) for at in range(subscribers)]
        yield driver, [stack.enter_context(each).fileno() for each in sockets]


def work_of(dialect: str, **options: Any) -> PeerWork:
    """Return a work with names that nobody has used."""
    return PeerWork(dialect, f"bench.e.{secrets.token_hex(4)}", **options)


def judge(outcome: Outcome, sent: int, readers: int) -> None:
    """Demand that everything came, once, in order and whole."""
    assert outcome.failure is None
    wrong = outcome.lost, outcome.duplicated, outcome.reordered, outcome.corrupt, outcome.misplaced, outcome.acked_twice
    assert (outcome.finished, wrong) == (True, (0, 0, 0, 0, 0, 0))
    assert (outcome.sent, outcome.acked, outcome.deliveries) == (sent, sent, sent * readers)


def test_each_dialect_has_somebody_who_speaks_it() -> None:
    assert ["broker", *PEERS] == list(DIALECTS)
    assert list(PEERS) == list(SERVER_OF)


WORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one to one": ({}, {}),
    "a small window": ({}, {"window": 16}),
    "many to many": ({"channels": 4}, {"publishers": 2, "subscribers": 3, "batch": 5, "window": 100}),
    "by a pattern": ({"channels": 12, "pattern": True}, {"subscribers": 2}),
    "apart": ({"channels": 6, "audiences": 3}, {"publishers": 2, "subscribers": 3}),
    "in RESP3": ({"resp": 3}, {}),
    "of large payloads": ({}, {"payload_bytes": 20_000, "window": 64}),
}


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("dialect", SPOKEN)
def test_everything_comes_once_and_in_order(servers: dict[str, PeerServer], dialect: str, work: str) -> None:
    described, options = WORKS[work]
    readers = options.get("subscribers", 1) // described.get("audiences", 1)
    with loaded(servers[SERVER_OF[dialect]].address, work_of(dialect, **described), **options) as (driver, sockets):
        for each in sockets:
            driver.add_subscriber(each)
        judge(driver.run(messages=600), 600, readers)
        judge(driver.run(messages=150), 150, readers)


@pytest.mark.parametrize("dialect", SPOKEN)
def test_a_rate_is_kept_and_latencies_are_measured(servers: dict[str, PeerServer], dialect: str) -> None:
    with loaded(servers[SERVER_OF[dialect]].address, work_of(dialect)) as (driver, sockets):
        driver.add_subscriber(sockets[0])
        outcome = driver.run(messages=400, rate=4_000)
        judge(outcome, 400, 1)
        assert outcome.seconds > 0.09
        assert driver.latency.count == 400


@pytest.mark.parametrize("dialect", STORED)
def test_what_was_stored_before_is_read_from_its_start(servers: dict[str, PeerServer], dialect: str) -> None:
    address, work = servers[SERVER_OF[dialect]].address, work_of(dialect, channels=3)
    with loaded(address, work, subscribers=0, publishers=2) as (driver, _):
        judge(driver.run(messages=3_000), 3_000, 0)
        for count in (7, 4096):
            with peer_of(dialect).open_subscriber(address, work) as reader:
                driver.add_subscriber(reader.fileno(), count=count)
                outcome = driver.run()
                assert (outcome.finished, outcome.deliveries, outcome.failure) == (True, 3_000, None)
                driver.halt(0)
        assert outcome.lost == 0


@contextmanager
def queued(address: Address, work: PeerWork, messages: int, batch: int) -> Iterator[Members]:
    """Yield three members of a queue that has been filled."""
    peer = QUEUES[work.dialect]
    with loaded(address, work, subscribers=0) as (driver, _), ExitStack() as stack:
        judge(driver.run(messages=messages), messages, 0)
        words = peer.make_queue(address, work)
        members = Members(messages=messages, batch=batch, words=words, protocol=work.dialect)
        for number in range(3):
            seat = peer.open_member(address, work, number, batch)
            stack.enter_context(seat.socket)
            members.add_member(seat.socket.fileno(), ask=seat.ask, inbox=seat.inbox)
        assert peer.count_undone(address, work) == messages
        yield members


@pytest.mark.parametrize("batch", [1, 2, 40, 1000])
@pytest.mark.parametrize("dialect", STORED)
def test_a_queue_is_worked_off(servers: dict[str, PeerServer], dialect: str, batch: int) -> None:
    address, work = servers[SERVER_OF[dialect]].address, work_of(dialect)
    with queued(address, work, 500, batch) as members:
        done = members.run()
        wrong = done.lost, done.duplicated, done.corrupt, done.unacked
        assert (done.finished, done.failure, wrong) == (True, None, (0, 0, 0, 0))
        assert (done.taken, done.acked) == (500, 500)
        assert members.latency.count > 0
        assert QUEUES[dialect].count_undone(address, work) == 0


@redis_there
def test_entries_that_somebody_else_acknowledges_are_seen(servers: dict[str, PeerServer]) -> None:
    address, work = servers["redis-server"].address, work_of("redis-stream")
    with queued(address, work, 30, 40) as members, redis.Conversation(address, work) as other:
        (name,) = work.names
        # One entry goes to a member who is none of ours.
        other.ask(b"XREADGROUP", b"GROUP", redis.GROUP, b"other", b"COUNT", b"1", b"STREAMS", name, b">")
        done = members.run(patience_s=0.3)
        assert (done.finished, done.lost) == (False, 1)
        assert redis.count_undone(address, work) == 1


@pytest.mark.parametrize("dialect", SPOKEN)
def test_a_server_that_dies_ends_the_run(tmp_path: Path, dialect: str) -> None:
    with peer_server(SERVER_OF[dialect], tmp_path) as server, ExitStack() as stack:
        work = work_of(dialect)
        peer = peer_of(dialect)
        peer.prepare(server.address, work)
        driver = Driver(work.names, publishers=1, dialect=dialect)
        driver.add_publisher(stack.enter_context(peer.open_publisher(server.address, work)).fileno())
        driver.add_subscriber(stack.enter_context(peer.open_subscriber(server.address, work)).fileno())
        killer = threading.Timer(0.15, server.kill)
        killer.start()
        outcome = driver.run(seconds=20, rate=1_000, patience_s=20)
        killer.join()
        assert outcome.failure is not None
        assert outcome.failure.reason in ("closed", "socket")
        with pytest.raises(BrokerError, match=r"127\.0\.0\.1"):
            peer.open_publisher(server.address, work)


@redis_there
def test_redis_without_memory_is_told_in_its_words(tmp_path: Path) -> None:
    with (
        peer_server("redis-server", tmp_path, "--maxmemory", "1mb") as server,
        loaded(server.address, work_of("redis-stream")) as (driver, sockets),
    ):
        driver.add_subscriber(sockets[0])
        outcome = driver.run(messages=100_000)
    assert outcome.failure is not None
    assert outcome.failure.reason == "refused"
    assert outcome.failure.detail.startswith("redis: -OOM command not allowed")


@nats_there
def test_nats_says_why_it_closes(tmp_path: Path) -> None:
    with (
        peer_server("nats-server", tmp_path, "max_payload: 100") as server,
        loaded(server.address, work_of("nats")) as (driver, sockets),
    ):
        driver.add_subscriber(sockets[0])
        outcome = driver.run(messages=10)
    assert outcome.failure is not None
    assert outcome.failure.detail == "nats: -ERR 'Maximum Payload Violation'"


@nats_there
def test_a_stream_that_is_not_there_is_told(servers: dict[str, PeerServer]) -> None:
    work = work_of("jetstream")
    address = servers["nats-server"].address
    with peer_of("jetstream").open_publisher(address, work) as publisher:
        driver = Driver(work.names, publishers=1, dialect="jetstream")
        driver.add_publisher(publisher.fileno())
        outcome = driver.run(messages=10)
    assert outcome.failure is not None
    assert outcome.failure.detail == "nats: NATS/1.0 503"
    with pytest.raises(BrokerError, match="stream not found"):
        peer_of("jetstream").open_subscriber(address, work)


@redis_there
def test_streams_that_are_there_already_are_told(servers: dict[str, PeerServer]) -> None:
    work = work_of("redis-stream")
    with loaded(servers["redis-server"].address, work, subscribers=0) as (driver, _):
        judge(driver.run(messages=1), 1, 0)
        with pytest.raises(BrokerError, match="there already"):
            peer_of("redis-stream").prepare(servers["redis-server"].address, work)


@nats_there
def test_nats_without_jetstream_is_told(tmp_path: Path) -> None:
    with peer_server("nats-server", tmp_path, "jetstream: false") as server:
        peer, work = peer_of("jetstream"), work_of("jetstream")
        for ask in (peer.prepare, peer.open_publisher, peer.open_subscriber):
            with pytest.raises(BrokerError, match="without JetStream"):
                ask(server.address, work)


PAIRS = [
    pytest.param(dialect, server, marks=[needs(server), needs(SERVER_OF[dialect])])
    for dialect, server in (("redis", "nats-server"), ("nats", "redis-server"), ("mqtt-0", "nats-server"),
                            ("redis", "mosquitto"), ("mqtt-1", "redis-server"))
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "server"), PAIRS)
def test_a_server_of_another_kind_is_told(
    servers: dict[str, PeerServer], monkeypatch: pytest.MonkeyPatch, dialect: str, server: str
) -> None:
    monkeypatch.setattr("broker.bench.peers.blocking.TIMEOUT_S", 1.0)
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1"):
        peer_of(dialect).prepare(servers[server].address, work_of(dialect))
