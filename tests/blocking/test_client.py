"""The blocking client with a real server: threads that share it, windows, timeouts, signals, and the end."""

from __future__ import annotations

import inspect
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

import broker.bus
from broker import BackoffPolicy, BrokerError, Last, Level, Position, blocking
from broker.blocking import connect
from broker.model.errors import Remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker import SubscriptionEvent
    from broker.blocking import Client
    from broker_native.messages import Batch
    from tests.contract.homes import Server

SOON_S = 0.05
QUICK = BackoffPolicy(first_s=0.01, longest_s=0.05)


def numbered(count: int, begin: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(begin, begin + count)]


def in_threads(count: int, function: Callable[[int], object]) -> None:
    """Call a function in so many threads at once; raise what one of them raises."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            function(number)
        except BaseException as failure:
            failures.append(failure)

    crowd = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    if failures:
        raise failures[0]


def bus_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("broker ")]


# -- the same interface ------------------------------------------------------------------------------------------------


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default) for one in found]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (broker.bus.Bus, blocking.Client),
        (broker.bus.Subscription, blocking.Subscription),
        (broker.bus.History, blocking.History),
    ],
)
def test_names_and_arguments_are_those_of_the_bus(theirs: type, ours: type) -> None:
    names = [name for name in vars(theirs) if not name.startswith("_")]
    assert names
    for name in names:
        method = getattr(ours, name)
        if not inspect.isfunction(getattr(theirs, name)):
            continue
        more = [one for one in parameters(method) if one not in parameters(getattr(theirs, name))]
        assert {one[0] for one in more} <= {"timeout_s", "on_batch" if name == "subscribe" else "timeout_s"}, name
        assert parameters(method)[: -len(more) or None] == parameters(getattr(theirs, name)), name


def test_nothing_of_asyncio_is_imported(running: Server) -> None:
    program = "import sys\nimport broker.blocking\nassert not {'asyncio', 'gevent', 'lmdb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], env=running.environment(), check=True)


# -- many threads ------------------------------------------------------------------------------------------------------


def test_threads_share_a_bus_and_each_keeps_its_order(threads: Client, room: str) -> None:
    writers, each = 8, 150

    def write(number: int) -> None:
        for index in range(each):
            payload = b"%d %d" % (number, index)
            if index % 3 == 0:
                threads.post(f"s.{room}", payload)
            elif index % 3 == 1:
                threads.submit(f"s.{room}", payload)
            else:
                threads.publish(f"s.{room}", payload)
        threads.flush()

    with threads.subscribe(f"s.{room}") as subscription:
        in_threads(writers, write)
        messages = list(subscription.messages(timeout_s=0.2))
    assert [message.sequence for message in messages] == list(range(1, writers * each + 1))
    for writer in range(writers):
        mine = [message.payload for message in messages if message.payload.startswith(b"%d " % writer)]
        assert mine == [b"%d %d" % (writer, index) for index in range(each)]


def test_threads_share_a_subscription_and_each_message_goes_to_one(threads: Client, room: str) -> None:
    taken: list[list[int]] = [[] for _ in range(6)]
    with threads.subscribe(f"s.{room}") as subscription:
        threads.publish_many(f"s.{room}", numbered(3000))

        def read(number: int) -> None:
            if number % 2:
                taken[number] += [message.sequence for message in subscription.messages(timeout_s=0.2)]
            else:
                while batches := subscription.next_batches(0.2):
                    taken[number] += [message.sequence for batch in batches for message in batch]

        in_threads(6, read)
    assert sorted(sequence for one in taken for sequence in one) == list(range(1, 3001))
    assert all(one == sorted(one) for one in taken)


def test_threads_ask_at_once_and_get_their_own_answers(threads: Client, room: str) -> None:
    for number in range(8):
        threads.publish_many(f"s.{room}.{number}", numbered(number + 1))

    def ask(number: int) -> None:
        for _ in range(20):
            assert threads.channel(f"s.{room}.{number}").head == number + 1
            assert len(threads.history(f"s.{room}.{number}").messages()) == number + 1
            assert 0 < threads.ping() < 10

    in_threads(8, ask)
    assert [one.name for one in threads.channels(f"s.{room}.")] == [f"s.{room}.{number}" for number in range(8)]


# -- windows -----------------------------------------------------------------------------------------------------------


def test_a_window_is_published_at_once_and_tells_when_it_was_answered(threads: Client, room: str) -> None:
    names = [f"{'sae'[index % 3]}.{room}.{index % 7}" for index in range(1000)]
    with threads.subscribe(*set(names)) as subscription:
        began_s = time.perf_counter()
        window = threads.post_window((name, b"%d" % index) for index, name in enumerate(names))
        assert len(window) == 1000
        assert window.wait() is window
        took_s = time.perf_counter() - began_s
        assert window.done()
        receipts = window.receipts()
        assert {name: sum(one.count for one in found) for name, found in receipts.items()} == {
            name: names.count(name) for name in names
        }
        assert {found[0].level for name, found in receipts.items() if name[0] == "e"} == {Level.EPHEMERAL}
        latencies = window.latencies()
        assert [(one.channel, one.messages) for one in latencies] == [
            (name, names.count(name)) for name in dict.fromkeys(names)
        ]
        assert all(0 < one.latency_s <= took_s for one in latencies)
        seen: dict[str, list[bytes]] = {}
        for _ in range(1000):
            message = subscription.next()
            assert message is not None
            seen.setdefault(message.channel, []).append(message.payload)
    for name in set(names):
        assert seen[name] == [b"%d" % index for index, one in enumerate(names) if one == name]


def test_a_window_of_which_a_part_is_refused_says_so_and_keeps_the_rest(threads: Client, room: str) -> None:
    window = threads.post_window([(f"s.{room}", b"1"), (f"none.{room}", b"2"), (f"s.{room}", b"3")])
    with pytest.raises(BrokerError, match="NO_PROFILE"):
        window.wait()
    assert list(window.receipts()) == [f"s.{room}"]
    assert window.receipts()[f"s.{room}"][0].count == 2
    with pytest.raises(BrokerError, match="INVALID_CHANNEL"):
        threads.post_window([(f"s.{room}", b"4"), ("", b"")])
    threads.flush()
    assert threads.channel(f"s.{room}").head == 3
    assert threads.post_window([]).wait().receipts() == {}


def test_outcomes_can_be_asked_for_by_anybody_and_again(threads: Client, room: str) -> None:
    pending = threads.submit(f"s.{room}", b"1")
    in_threads(4, lambda _: pending.result())
    assert pending.result().sequence == 1
    assert pending.done()
    assert pending.failure() is None
    refused = threads.submit(f"none.{room}", b"")
    for _ in range(2):
        with pytest.raises(BrokerError, match="NO_PROFILE"):
            refused.result()
    assert threads.submit_many(f"s.{room}", iter([])).result() == []


# -- reading -----------------------------------------------------------------------------------------------------------


def test_reads_end_in_time(threads: Client, room: str) -> None:
    with threads.subscribe(f"s.{room}") as subscription:
        assert subscription.next(0) is None
        assert subscription.next_batch(SOON_S) is None
        assert subscription.next_batches(SOON_S) == []
        assert list(subscription.messages(SOON_S)) == []
        assert list(subscription.batches(SOON_S)) == []
        threads.publish_many(f"s.{room}", numbered(10))
        first = subscription.next()
        assert first is not None
        assert first.payload == b"0"
        # They share one place, however it is read.
        batch = subscription.next_batch()
        assert batch is not None
        assert batch.first == 2
    with pytest.raises(BrokerError, match="CLOSED"):
        subscription.next()
    assert list(subscription) == []


def test_a_subscription_that_is_refused_is_not_there(threads: Client, room: str) -> None:
    with pytest.raises(BrokerError, match="NO_PROFILE"):
        threads.subscribe(f"none.{room}")
    with pytest.raises(BrokerError, match="INVALID_POSITION"):
        threads.subscribe("s.>", start=Last(1))
    assert "0 messages unanswered" in repr(threads)
    assert not threads._subscriptions


def test_events_are_told_on_the_bus_own_thread_and_may_fail(
    threads: Client, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    heard = threading.Event()
    complaints: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)

    def on_event(event: SubscriptionEvent) -> None:
        told.append((event.name, threading.current_thread().name))
        heard.set()
        raise ZeroDivisionError

    receipt = threads.publish(f"s.{room}", b"")
    with threads.subscribe(f"s.{room}", start=Position(receipt.epoch, 7), on_event=on_event) as subscription:
        assert heard.wait(5)
        threads.publish(f"s.{room}", b"goes on")
        message = subscription.next()
        assert message is not None
        assert message.payload == b"goes on"
    assert told == [("diverged", "broker reader")]
    assert [complaint.exc_type for complaint in complaints] == [ZeroDivisionError]


def test_that_a_subscription_goes_on_is_told_though_nothing_comes(own_server: Server) -> None:
    heard: list[str] = []
    resumed = threading.Event()

    def on_event(event: SubscriptionEvent) -> None:
        heard.append(event.name)
        resumed.set()

    with connect(own_server.tcp_url, backoff=QUICK) as bus:
        bus.publish("s.x", b"")
        with bus.subscribe("s.x", start="start", on_event=on_event) as subscription:
            assert subscription.next() is not None
            own_server.kill()
            own_server.start()
            assert resumed.wait(10)
    assert heard == ["resumed"]


def test_batches_are_handed_to_a_function_instead(threads: Client, room: str) -> None:
    taken: list[tuple[int, int, str]] = []
    complete = threading.Event()

    def take(batch: Batch) -> None:
        taken.append((batch.first, batch.last, threading.current_thread().name))
        if batch.last == 5000:
            complete.set()

    # Less credit than comes: what was handed over is granted again.
    with threads.subscribe(f"s.{room}", credit_bytes=65536, on_batch=take) as subscription:
        for _ in range(50):
            threads.publish_many(f"s.{room}", [bytes(100)] * 100)
        assert complete.wait(10)
        assert subscription.next(0) is None
    assert [first for first, _, _ in taken] == [1, *(last + 1 for _, last, _ in taken[:-1])]
    assert {name for _, _, name in taken} == {"broker reader"}


# -- timeouts ----------------------------------------------------------------------------------------------------------


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """A server that takes bytes and does nothing with them."""
    assert server._process is not None
    server._process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server._process.send_signal(signal.SIGCONT)


def test_each_call_comes_back_in_time_and_says_what_is_known(own_server: Server) -> None:
    with connect(own_server.tcp_url, timeout_s=SOON_S) as bus:
        bus.publish("s.x", b"0", timeout_s=5)
        subscription = bus.subscribe("s.x", timeout_s=5)
        with stopped(own_server):
            pending = bus.submit("s.x", b"1")
            window = bus.post_window([("s.x", b"2")])
            unknown: list[Callable[[], object]] = [
                lambda: bus.publish("s.x", b"3"),
                lambda: bus.publish_many("s.x", [b"4"]),
                pending.result,
                window.wait,
                lambda: bus.trim("s.x", 1),
                lambda: bus.remove("s.y"),
                bus.compact,
            ]
            late: list[Callable[[], object]] = [
                bus.flush,
                bus.stats,
                bus.ping,
                lambda: bus.channel("s.x"),
                lambda: list(bus.channels()),
                lambda: bus.history("s.x").messages(),
                lambda: bus.subscribe("s.y"),
            ]
            for calls, name in (unknown, "COMMIT_UNKNOWN"), (late, "TIMEOUT"):
                for call in calls:
                    began_s = time.monotonic()
                    with pytest.raises(BrokerError, match=name) as raised:
                        call()
                    assert time.monotonic() - began_s < 5
                    assert raised.value.hint
                    assert f"{SOON_S:g} s" in raised.value.detail
            assert raised.value.remedy is Remedy.RETRY
            assert not pending.done()
            for _ in range(90):
                bus.post("s.x", bytes(100_000))
            with pytest.raises(BrokerError, match="TIMEOUT"):
                bus.drain()
        assert pending.result(10).sequence == 2
        assert window.wait(math.inf).receipts()["s.x"][0].first == 3
        bus.flush(timeout_s=10)
        assert bus.channel("s.x", timeout_s=5).head == 95
        assert sum(1 for _ in subscription.messages(0.5)) == 94
        assert not bus._requests
        assert not bus._pings


def test_connecting_comes_back_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"broker://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BrokerError, match=r"TIMEOUT.*no answer within 0.05 s"):
            connect(url, connect_timeout_s=SOON_S)
    with pytest.raises(BrokerError, match="CONNECTION_LOST") as raised:
        connect(url)
    assert raised.value.hint == "is the broker running?"
    with pytest.raises(BrokerError, match="ADDRESS"):
        connect("http://127.0.0.1")
    assert bus_threads() == []


# -- signals -----------------------------------------------------------------------------------------------------------


@contextmanager
def interruptions(every_s: float) -> Iterator[list[bool]]:
    """Raise KeyboardInterrupt in this thread again and again, for as long as what is yielded is not empty."""
    armed: list[bool] = []
    ended = threading.Event()
    main = threading.get_ident()

    def interrupt(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    def send() -> None:
        while not ended.wait(every_s):
            if armed:
                signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield armed
    finally:
        armed.clear()
        ended.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def test_an_interrupted_wait_loses_nothing(threads: Client, room: str) -> None:
    with threads.subscribe(f"s.{room}") as subscription, interruptions(SOON_S) as armed:
        for wait in (subscription.next, subscription.next_batches, lambda: next(iter(subscription))):
            armed.append(True)
            with pytest.raises(KeyboardInterrupt):
                wait()
            armed.clear()
        threads.publish_many(f"s.{room}", numbered(5))
        assert [message.payload for message in subscription.messages(0.2)] == numbered(5)


def test_interrupted_calls_leave_the_bus_whole(threads: Client, room: str) -> None:
    """Publishing under a hail of interrupts: whatever a call has returned is there once, and nothing is there twice."""
    returned: list[bytes] = []
    with threads.subscribe(f"s.{room}") as subscription:
        with interruptions(0.002) as armed:
            number = 0
            begun_s = time.monotonic()
            # Half a second, or on a busy machine as long as it takes to get something done between interrupts.
            while (passed_s := time.monotonic() - begun_s) < 0.5 or (len(returned) <= 50 and passed_s < 10):
                number += 1
                payload = b"%d" % number
                try:
                    armed.append(True)
                    if number % 3 == 0:
                        threads.publish(f"s.{room}", payload)
                    elif number % 3 == 1:
                        threads.post(f"s.{room}", payload)
                    else:
                        threads.post_window([(f"s.{room}", payload)]).wait()
                    armed.clear()
                    returned.append(payload)
                except KeyboardInterrupt:
                    armed.clear()
        threads.flush()
        found = [message.payload for message in subscription.messages(0.3)]
    assert number > len(returned) > 50, "nothing was interrupted"
    assert len(found) == len(set(found))
    assert set(returned) <= set(found)
    assert found == sorted(found, key=int)
    assert not threads.lock.locked()


@pytest.mark.parametrize("moment", ["before", "within", "behind"])
@pytest.mark.parametrize("call", ["publish", "ping"])
def test_an_interrupted_send_costs_the_connection_and_nothing_else(
    running: Server, room: str, call: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(running.tcp_url, backoff=QUICK) as bus, bus.subscribe(f"s.{room}") as subscription:
        bus.publish(f"s.{room}", b"0")
        connection = bus._connection
        assert connection is not None

        def send(sock: socket.socket, data: bytes) -> int:
            monkeypatch.undo()
            sock.sendall(data[: {"before": 0, "within": len(data) // 2, "behind": len(data)}[moment]])
            raise KeyboardInterrupt

        monkeypatch.setattr(connection, "_try", send)
        with pytest.raises(KeyboardInterrupt):
            bus.publish(f"s.{room}", b"1") if call == "publish" else bus.ping()
        bus.publish(f"s.{room}", b"2")
        found = [message.payload for message in subscription.messages(0.2)]
        assert found == ([b"0", b"1", b"2"] if call == "publish" else [b"0", b"2"])
        assert bus._connection is not connection


def test_what_was_taken_to_be_sent_and_was_not_is_sent_on_the_next_connection(
    running: Server, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(running.tcp_url, backoff=QUICK) as bus:

        def send(_: bytes) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(bus._connection, "send", send)
        with pytest.raises(KeyboardInterrupt):
            bus.publish(f"s.{room}", b"1")
        bus.flush()
        assert bus.channel(f"s.{room}").head == 1


# -- mistakes of our own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thread", ["reader", "writer"])
def test_a_thread_that_fails_leaves_nobody_waiting(
    running: Server, room: str, thread: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bus = connect(running.tcp_url)
    subscription = bus.subscribe(f"s.{room}")
    ended: list[str] = []

    def read() -> None:
        try:
            list(subscription)
        except BrokerError as failure:
            ended.append(failure.name)

    reader = threading.Thread(target=read)
    reader.start()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(
        subscription if thread == "reader" else bus, "on_batch" if thread == "reader" else "_pump", fail
    )
    bus.post(f"s.{room}", b"")
    reader.join(5)
    assert not reader.is_alive()
    with pytest.raises(BrokerError, match=r"CLOSED.*ZeroDivisionError"):
        bus.ping()
    with suppress(BrokerError):
        bus.close()  # what was posted may be answered, or unknown
    assert ended in ([], ["CLOSED"])
    assert "client_failed" in caplog.text
    assert bus_threads() == []


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_closed_bus_says_so_and_leaves_nothing_behind(running: Server, room: str) -> None:
    descriptors = len(os.listdir("/dev/fd"))
    bus = connect(running.tcp_url)
    subscription = bus.subscribe(f"s.{room}")
    ended: list[object] = []
    reader = threading.Thread(target=lambda: ended.extend(message.payload for message in subscription))
    reader.start()
    for payload in numbered(100):
        bus.post(f"s.{room}", payload)
    bus.flush()
    in_threads(3, lambda _: bus.close())
    bus.close()
    reader.join(5)
    assert not reader.is_alive()
    assert ended == numbered(len(ended))
    assert bus_threads() == []
    assert len(os.listdir("/dev/fd")) == descriptors
    calls: list[Callable[[], object]] = [
        lambda: bus.post(f"s.{room}", b""),
        lambda: bus.publish(f"s.{room}", b""),
        lambda: bus.post_window([(f"s.{room}", b"")]),
        lambda: bus.channel(f"s.{room}"),
        lambda: bus.subscribe(f"s.{room}"),
        bus.ping,
        subscription.next,
    ]
    for call in calls:
        with pytest.raises(BrokerError, match="CLOSED"):
            call()
    subscription.close()
    bus.flush()
    assert repr(bus) == "<Client closed, 0 messages unanswered>"


def test_closing_waits_for_what_was_posted_and_tells_what_was_refused(running: Server, room: str) -> None:
    with connect(running.unix_url) as bus:
        for payload in numbered(5000):
            bus.post(f"s.{room}", payload)
    bus = connect(running.unix_url)
    assert bus.channel(f"s.{room}").head == 5000
    bus.post(f"none.{room}", b"")
    with pytest.raises(BrokerError, match="NO_PROFILE"):
        bus.close()
    bus.close()


def test_closing_does_not_wait_for_ever(own_server: Server) -> None:
    bus = connect(own_server.tcp_url)
    bus.publish("s.x", b"")
    with stopped(own_server):
        pending = bus.submit("s.x", b"")
        bus.post("s.x", b"")
        with pytest.raises(BrokerError, match="COMMIT_UNKNOWN"):
            bus.close(timeout_s=SOON_S)
        with pytest.raises(BrokerError, match="COMMIT_UNKNOWN"):
            pending.result()
    assert bus_threads() == []


def test_a_bus_can_be_closed_by_what_it_calls(threads: Client, room: str) -> None:
    closed = threading.Event()

    def on_event(_: SubscriptionEvent) -> None:
        threads.close()
        closed.set()

    receipt = threads.publish(f"s.{room}", b"")
    threads.subscribe(f"s.{room}", start=Position(receipt.epoch, 7), on_event=on_event)
    assert closed.wait(5)
    with pytest.raises(BrokerError, match="CLOSED"):
        threads.publish(f"s.{room}", b"")
