"""The handshakes with peers against servers of a few lines: what is asked, and each answer that must not pass."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from broker.bench.peers import mqtt, nats, peer_of, redis
from broker.bench.peers.blocking import LINE_BYTES_MAX, Blocking
from broker.bench.peers.work import PeerWork
from broker.model.errors import BrokerError, ConnectionLost, MalformedFrame, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker.bench.peers.work import Address

INFO = b'INFO {"server_id":"x","jetstream":true}\r\n'
ROOM = "bench.e.7f"


@contextmanager
def answering(*answers: bytes, greeting: bytes = b"", wait: bool = True) -> Iterator[tuple[Address, list[bytes]]]:
    """Yield the address of a server that says these one by one, each when it has heard something, and what it heard."""
    heard: list[bytes] = []

    def serve() -> None:
        taken, _ = listener.accept()
        # Whoever understands nothing leaves at once.
        with taken, suppress(OSError):
            taken.sendall(greeting)
            for answer in answers:
                heard.append(taken.recv(1 << 16))
                if not heard[-1]:
                    return
                taken.sendall(answer)
            if wait:
                taken.shutdown(socket.SHUT_WR)
                while data := taken.recv(1 << 16):
                    heard.append(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname(), heard
        finally:
            # A handshake that failed before it connected leaves nobody to wait for.
            thread.join()


def work_of(dialect: str, **options: Any) -> PeerWork:
    return PeerWork(dialect, ROOM, **options)


# --- Names --------------------------------------------------------------------------------------------------------


def test_names_end_with_their_index_behind_their_audience() -> None:
    work = work_of("nats", channels=3, audiences=2)
    assert work.names == [b"bench.e.7f.0.0", b"bench.e.7f.1.1", b"bench.e.7f.0.2"]
    assert work.filters(0) == [b"bench.e.7f.0.0", b"bench.e.7f.0.2"]
    assert work_of("redis", channels=3, pattern=True).filters(0) == [b"bench.e.7f.0.*"]


def test_mqtt_has_other_names() -> None:
    assert work_of("mqtt-1").names == [b"bench/e/7f/0/0"]
    assert work_of("mqtt-0", pattern=True).filters(0) == [b"bench/e/7f/0/+"]


# --- Redis --------------------------------------------------------------------------------------------------------

PONG = b"+PONG\r\n"
SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$14\r\nbench.e.7f.0.0\r\n:1\r\n"


def test_a_subscription_of_redis_holds_before_the_socket_is_handed_over() -> None:
    """What comes behind its confirmation stays in the socket."""
    with (
        answering(PONG, SUBSCRIBED + b"*3\r\n$7\r\nmessage") as (address, heard),
        redis.open_subscriber(address, work_of("redis")) as opened,
    ):
        assert opened.getblocking() is False
        opened.setblocking(True)
        assert opened.recv(100) == b"*3\r\n$7\r\nmessage"
    assert heard == [redis.command(b"PING"), redis.command(b"SUBSCRIBE", b"bench.e.7f.0.0")]


def test_redis_is_asked_for_its_newer_protocol() -> None:
    with answering(b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n") as (address, heard):
        redis.open_publisher(address, work_of("redis", resp=3)).close()
    assert heard == [redis.command(b"HELLO", b"3")]


def test_values_of_redis() -> None:
    with (
        answering(PONG, b"$-1\r\n", b"*2\r\n_\r\n$2\r\nab\r\n", b">1\r\n:-7\r\n") as (address, _),
        redis.Conversation(address, work_of("redis")) as conversation,
    ):
        assert conversation.ask(b"GET") is None
        assert conversation.ask(b"GET") == [None, b"ab"]
        assert conversation.ask(b"GET") == [-7]


# --- NATS ---------------------------------------------------------------------------------------------------------

READY = b"PONG\r\n"
NOBODY = b"HMSG i 9 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"


def told(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return b"MSG _INBOX.x 9 %d\r\n%b\r\n" % (len(data), data)


def test_nats_is_told_who_comes() -> None:
    with answering(b"+OK\r\nINFO {}\r\n" + READY, READY, greeting=INFO) as (address, heard):
        nats.open_subscriber(address, work_of("nats", channels=2)).close()
    connect, _, rest = heard[0].partition(b"\r\n")
    assert json.loads(connect.removeprefix(b"CONNECT "))["no_responders"] is True
    assert rest == b"PING\r\n"
    assert heard[1] == b"SUB bench.e.7f.0.0 1\r\nSUB bench.e.7f.0.1 2\r\nPING\r\n"


def test_nats_that_asks_is_answered() -> None:
    with answering(b"PING\r\n", READY, greeting=INFO) as (address, heard):
        nats.open_publisher(address, work_of("nats")).close()
    assert heard[1] == READY


def test_a_stream_has_all_channels_of_a_work() -> None:
    with answering(READY, told({"config": {}}), greeting=INFO) as (address, heard):
        nats.prepare(address, work_of("jetstream", storage="memory"))
    subscribe, forget, publish, body, _ = heard[1].split(b"\r\n")
    inbox = subscribe.split(b" ")[1]
    assert (subscribe, forget) == (b"SUB " + inbox + b" 9", b"UNSUB 9 1")
    assert publish == b"PUB $JS.API.STREAM.CREATE.bench_e_7f %b %d" % (inbox, len(body))
    configuration = json.loads(body)
    assert (configuration["name"], configuration["subjects"]) == ("bench_e_7f", ["bench.e.7f.>"])
    assert (configuration["storage"], configuration["num_replicas"]) == ("memory", 1)


def test_a_consumer_reads_its_audience_with_flow_control() -> None:
    alone = nats.consumer_configuration(work_of("jetstream"), 0, "_INBOX.a")
    assert (alone["deliver_subject"], alone["flow_control"], alone["ack_policy"]) == ("_INBOX.a", True, "none")
    assert alone["idle_heartbeat"] > 0
    assert "filter_subject" not in alone
    apart = nats.consumer_configuration(work_of("jetstream", channels=4, audiences=2), 1, "_INBOX.a")
    assert apart["filter_subject"] == "bench.e.7f.1.*"


# --- MQTT ---------------------------------------------------------------------------------------------------------

CONNACK = b"\x20\x02\x00\x00"


def test_mqtt_grants_what_is_asked_for() -> None:
    with answering(CONNACK, b"\x90\x04\x00\x01\x01\x01") as (address, heard):
        mqtt.open_subscriber(address, work_of("mqtt-1", channels=2)).close()
    assert heard[0][:14] == b"\x10\x22\x00\x04MQTT\x04\x02\x00\x00\x00\x16"
    topics = b"\x00\x0ebench/e/7f/0/0\x01\x00\x0ebench/e/7f/0/1\x01"
    assert heard[1] == b"\x82\x24\x00\x01" + topics


@pytest.mark.parametrize(("size", "data"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (16384, b"\x80\x80\x01")])
def test_sizes_of_mqtt(size: int, data: bytes) -> None:
    assert mqtt.size_of(size) == data


def test_a_long_packet_of_mqtt_is_read_whole() -> None:
    with answering(CONNACK, b"\x90\xca\x01\x00\x01" + bytes(200)) as (address, _):
        mqtt.open_subscriber(address, work_of("mqtt-0", channels=200)).close()


# --- Answers that must not pass -----------------------------------------------------------------------------------

Opening = tuple[str, str, "Sequence[bytes]", bytes, type[BrokerError], str]

REFUSALS: dict[str, Opening] = {
    "redis demands a password": ("redis", "publisher", [b"-NOAUTH needed\r\n"], b"", Unavailable, "NOAUTH needed"),
    "redis says something else": ("redis", "publisher", [b"+HELLO\r\n"], b"", MalformedFrame, "PING"),
    "redis says nothing that is known": ("redis", "publisher", [b"(x\r\n"], b"", MalformedFrame, "x"),
    "redis says no number": ("redis", "publisher", [b":x\r\n"], b"", MalformedFrame, ":x"),
    "redis does not know RESP3": ("redis3", "publisher", [b"-ERR unknown\r\n"], b"", Unavailable, "unknown"),
    "redis refuses a subscription": ("redis", "subscriber", [PONG, b"-NOPERM\r\n"], b"", Unavailable, "NOPERM"),
    "nats greets otherwise": ("nats", "publisher", [], b"220 ready\r\n", MalformedFrame, "220 ready"),
    "nats demands a password": (
        "nats", "publisher", [b"-ERR 'Authorization Violation'\r\n"], INFO, Unavailable, "Authorization Violation"
    ),
    "nats says something else": ("nats", "publisher", [b"PANG\r\n"], INFO, MalformedFrame, "PANG"),
    "nats has no jetstream": ("jetstream", "publisher", [READY], b"INFO {}\r\n", Unavailable, "without JetStream"),
    "nats has nobody who makes a stream": (
        "jetstream", "prepare", [READY, NOBODY], INFO, Unavailable, "without JetStream"
    ),
    "nats refuses a stream": (
        "jetstream", "prepare", [READY, told({"error": {"description": "no room"}})], INFO, Unavailable, "no room"
    ),
    "nats refuses without a reason": (
        "jetstream", "prepare", [READY, told({"error": {"code": 500}})], INFO, Unavailable, "500"
    ),
    "nats answers otherwise": ("jetstream", "prepare", [READY, b"PONG\r\n"], INFO, MalformedFrame, "PONG"),
    "mqtt demands a password": ("mqtt-0", "publisher", [b"\x20\x02\x00\x04"], b"", Unavailable, "a user"),
    "mqtt refuses with what is not known": ("mqtt-0", "publisher", [b"\x20\x02\x00\x63"], b"", Unavailable, "99"),
    "mqtt says more": ("mqtt-0", "publisher", [b"\x20\x03\x00\x00\x00"], b"", MalformedFrame, "x00"),
    "mqtt says something else": ("mqtt-0", "publisher", [b"HTTP/1.1 400\r\n"], b"", MalformedFrame, "HT"),
    "mqtt says too much": ("mqtt-0", "publisher", [b"\x20\xff\xff\xff\x7f"], b"", MalformedFrame, "xff"),
    "mqtt refuses a filter": (
        "mqtt-1", "subscriber", [CONNACK, b"\x90\x03\x00\x01\x80"], b"", Unavailable, "granted refused"
    ),
    "mqtt grants less": ("mqtt-1", "subscriber", [CONNACK, b"\x90\x03\x00\x01\x00"], b"", Unavailable, "granted 0"),
    "mqtt grants nothing": ("mqtt-1", "subscriber", [CONNACK, b"\x90\x02\x00\x01"], b"", Unavailable, "nothing"),
    "redis closes": ("redis", "publisher", [b""], b"", ConnectionLost, "closed"),
    "nats closes": ("nats", "publisher", [b""], INFO, ConnectionLost, "closed"),
    "mqtt closes": ("mqtt-1", "publisher", [b"\x20"], b"", ConnectionLost, "closed"),
    "a line without an end": ("nats", "publisher", [], b"x" * (LINE_BYTES_MAX + 1), MalformedFrame, "xxx"),
    "a line that ends otherwise": ("nats", "publisher", [], b"INFO {}\n", MalformedFrame, "INFO"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_what_a_peer_must_not_say_is_told(what: str) -> None:
    name, step, answers, greeting, kind, detail = REFUSALS[what]
    dialect = name.removesuffix("3")
    work = work_of(dialect, resp=3 if name == "redis3" else 2)
    peer = peer_of(dialect)
    steps: dict[str, Callable[[Address, PeerWork], object]] = {
        "publisher": peer.open_publisher,
        "subscriber": peer.open_subscriber,
        "prepare": peer.prepare,
    }
    with answering(*answers, greeting=greeting) as (address, _), pytest.raises(kind, match=detail) as caught:
        steps[step](address, work)
    assert str(address[1]) in str(caught.value)


@pytest.mark.parametrize("dialect", ["redis", "nats", "mqtt-0"])
def test_nobody_there_is_told(dialect: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(ConnectionLost, match="refused"):
        peer_of(dialect).open_publisher(address, work_of(dialect))


def test_a_peer_that_is_silent_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.bench.peers.blocking.TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ConnectionLost, match="timed out"):
        redis.open_publisher(listener.getsockname(), work_of("redis"))


def test_what_cannot_be_sent_is_told() -> None:
    def send_on() -> None:
        while True:
            connection.send(bytes(1 << 16))

    with (
        answering(wait=False) as (address, _),
        Blocking("somebody", address) as connection,
        pytest.raises(ConnectionLost, match="somebody at"),
    ):
        send_on()
