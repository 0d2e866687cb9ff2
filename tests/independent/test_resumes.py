"""The client that was written from the document alone, and a server that is killed, drained or replaced under it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from broker import connect
from tests.contract.homes import take
from tests.independent.client import Client, Diverged, Message, Placed, Subscription
from tests.independent.conftest import LOOPS, LoopServer
from tests.independent.conversation import Conversation, Ended
from tests.independent.line import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.independent.line import Receipt

    Dial = Callable[..., Client]
    Talk = Callable[..., Conversation]


class View:
    """What an application has of one channel: messages, and what is taken back when the channel diverges."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.payloads: list[bytes] = []
        self.diverged = 0
        self.early = False

    def take(self) -> None:
        """The next item."""
        item = self.subscription.next()
        assert item is not None, f"nothing comes behind {len(self.payloads)} messages"
        if isinstance(item, Diverged):
            self.diverged += 1
            del self.payloads[item.at :]
            return
        assert isinstance(item, Message), item
        assert item.sequence == len(self.payloads) + 1
        self.payloads.append(item.payload)
        self.early = item.early

    def read(self, count: int) -> None:
        """Until it has `count` messages, and all that came with them."""
        while len(self.payloads) < count or self.subscription.ready:
            self.take()


def sequences(*receipts: Receipt) -> list[int]:
    return [result.sequence for receipt in receipts for result in receipt.results if isinstance(result, Placed)]


def test_synced_records_survive_kills_once_and_in_order(own_server: LoopServer, dial: Dial) -> None:
    """Frames are in flight at each kill; readers stand by positions and by the bus."""
    client, readers = dial(own_server.tcp), dial(own_server.unix)
    literal, pattern = View(readers.subscribe("s.one")), View(readers.subscribe("s.>"))
    receipts: list[Receipt] = []
    for turn in range(3):
        client.ping()
        for part in range(40):
            receipts.append(client.publish("s.one", *(b"%d.%d.%d" % (turn, part, index) for index in range(10))))
            client.serve(0.0)
        readers.serve(0.005)
        own_server.kill()
        own_server.start()
    client.wait(*receipts)
    assert client.connections >= 3
    assert sequences(*receipts) == list(range(1, 1201))
    expected = [b"%d.%d.%d" % (turn, part, index) for turn in range(3) for part in range(40) for index in range(10)]
    for view in (literal, pattern):
        view.read(1200)
        assert (view.payloads, view.diverged) == (expected, 0)
        assert view.subscription.next(0.05) is None


def test_accepted_records_that_a_crash_takes_are_taken_back(own_server: LoopServer, dial: Dial) -> None:
    """What was seen EARLY and lost is told, and the readers end with what a reader from the start gets.

    A kill loses nothing that was written. So the folder goes back, as after a power cut, to a copy that was taken just
    before the records that are to be lost, when all before them was known to be committed.
    """
    client, readers = dial(own_server.unix), dial(own_server.tcp)
    literal, pattern = View(readers.subscribe("a.one")), View(readers.subscribe("a.>"))
    data, copy = own_server.folder / "data", own_server.folder / "copy"
    kept: list[bytes] = []
    for turn in range(3):
        kept += [b"%d.%d" % (turn, number) for number in range(3)]
        client.wait(client.publish("a.one", *kept[-3:]), client.publish("s.behind", b""))
        for view in (literal, pattern):
            view.read(len(kept))
            assert (view.payloads, view.diverged) == (kept, turn)
        shutil.copytree(data, copy)
        client.wait(client.publish("a.one", b"lost", b"lost"))
        for view in (literal, pattern):
            view.read(len(kept) + 2)
            assert view.early
        own_server.kill()
        shutil.rmtree(data)
        copy.rename(data)
        own_server.start()
        readers.serve(0.0)
    kept.append(b"end")
    client.wait(client.publish("a.one", b"end"))
    fresh = View(client.subscribe("a.one", start={"from": "start"}))
    for view in (fresh, literal, pattern):
        while view.payloads[-1:] != [b"end"]:
            view.take()
        assert view.payloads == kept
    assert (literal.diverged, pattern.diverged) == (3, 3)
    count = len(kept)
    # Several epochs now, and chunks of three: a start in the middle of one is exact, and nothing is told.
    for length in range(count + 1):
        subscription = client.subscribe("a.one", start={"last": length})
        items = [subscription.next() for _ in range(length)]
        assert [item.payload for item in items if isinstance(item, Message)] == fresh.payloads[count - length :], items
        subscription.close()


def test_a_server_that_drains_is_followed_to_the_next(own_server: LoopServer, dial: Dial) -> None:
    """SIGTERM in the middle of publishing: what was sent is answered, the rest waits for the server to come back."""
    client, readers = dial(own_server.tcp), dial(own_server.unix)
    view = View(readers.subscribe("s.one"))
    statuses: list[int] = []

    def replace() -> None:
        statuses.append(own_server.drain())
        own_server.start()

    replacing = threading.Thread(target=replace)
    receipts = [client.publish("s.one", b"0")]
    client.wait(receipts[0])
    replacing.start()
    while replacing.is_alive() or client.connections < 2:
        receipts.append(client.publish("s.one", b"%d" % len(receipts)))
        client.serve(0.0)
        readers.serve(0.001)
        assert len(receipts) < 100_000
    replacing.join()
    client.wait(*receipts)
    assert statuses == [0]
    assert sequences(*receipts) == list(range(1, len(receipts) + 1))
    assert not any(result.duplicate for receipt in receipts for result in receipt.results if isinstance(result, Placed))
    view.read(len(receipts))
    assert view.payloads == [b"%d" % number for number in range(len(receipts))]
    assert view.diverged == 0


def test_another_journal_is_told_and_nothing_is_sent_twice(own_server: LoopServer, dial: Dial) -> None:
    """A server that comes back without its data: places mean nothing, and what had no answer is unknown."""
    client, readers = dial(own_server.tcp), dial(own_server.unix)
    literal, pattern = readers.subscribe("s.one"), readers.subscribe("s.>")
    client.wait(client.publish("s.one", b"1", b"2"))
    for subscription in (literal, pattern):
        assert [subscription.next() is not None for _ in range(2)] == [True, True]
    own_server.kill()
    in_flight = client.publish("s.one", b"3")
    shutil.rmtree(own_server.folder / "data")
    own_server.start()
    client.serve(0.1)
    behind = client.publish("s.one", b"4")
    client.wait(in_flight, behind)
    assert in_flight.results == [UNKNOWN]
    assert sequences(behind) == [1]
    assert literal.next() == Diverged("s.one", 0)
    assert isinstance(pattern.next(), Diverged)
    client.wait(client.publish("s.one", b"5"))
    # Positions go on from the beginning of what is there now, a place of the bus with what is new.
    for subscription, payloads in ((literal, [b"4", b"5"]), (pattern, [b"5"])):
        items = [subscription.next() for _ in payloads]
        assert [item.payload for item in items if isinstance(item, Message)] == payloads


async def test_the_products_client_takes_another_journal_alike(own_server: LoopServer) -> None:
    """Its first channel has the same epoch as that of the journal before: only the journal's name tells them apart."""
    async with connect(own_server.tcp_url) as bus, bus.subscribe("s.one") as subscription:
        for payload in (b"1", b"2", b"3"):
            await bus.publish("s.one", payload)
        await take(subscription, 3)
        own_server.kill()
        shutil.rmtree(own_server.folder / "data")
        await asyncio.to_thread(own_server.start)
        async with connect(own_server.unix_url) as other:
            await other.publish("s.one", b"4")
            await bus.publish("s.one", b"5")
            messages = await take(subscription, 2)
        assert [(message.payload, message.sequence) for message in messages] == [(b"4", 1), (b"5", 2)]
        assert "diverged" in [event.name for event in subscription.events]


@pytest.mark.parametrize("loop", LOOPS)
def test_keep_alive(loop: str, dial: Dial, talk: Talk) -> None:
    """A client that serves its connection keeps it; one that says nothing is ended and told why."""
    server = LoopServer(loop, LIMITS_PING_INTERVAL_S="0.1", LIMITS_PING_TIMEOUT_S="1")
    try:
        server.start()
        client, mute = dial(server.tcp), talk(server.unix)
        assert client.conversation.welcome.ping_s == pytest.approx(0.1)
        client.serve(1.5)
        client.ping()
        assert client.connections == 1
        # The server's PINGs lie unread and unanswered in the socket, and its reason behind them.
        with pytest.raises(Ended, match="PING_TIMEOUT"):
            mute.receive(5)
    finally:
        server.stop()
