"""Integers at their ends, producers' lines that are abused, and positions that are not ours.

Each number has a legal answer at each of its extremes, an error with a code or a result, and none of them wraps.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from broker.wire.kinds import Kind
from tests.hostile import attackers
from tests.hostile.attackers import (
    CREDIT,
    DELIVER,
    ERROR,
    PONG,
    PUBLISHED,
    SUBSCRIBED,
    U32_MAX,
    U64_MAX,
    UNSUBSCRIBE,
    UNSUBSCRIBED,
    channel,
    credit,
    frame,
    packed,
    publish,
    record,
    subscribe,
)

if TYPE_CHECKING:
    from tests.hostile.attackers import Peer
    from tests.hostile.service import Service

CREDIT_MAX = 1 << 40
INTEGERS = (
    0,
    1,
    2,
    (1 << 31) - 1,
    1 << 31,
    U32_MAX - 1,
    U32_MAX,
    U32_MAX + 1,
    (1 << 63) - 1,
    1 << 63,
    U64_MAX - 1,
    U64_MAX,
)


def entries(peer: Peer) -> list[tuple[int, ...]]:
    """Return the entries of the next PUBLISHED."""
    return list(attackers.ENTRY.iter_unpack(peer.until(PUBLISHED).body))


def refusal(peer: Peer) -> str:
    """Return the name of the next ERROR."""
    return str(peer.until(ERROR).fields()["name"])


# --- Publish -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [value for value in INTEGERS if value > 1])
def test_number_beyond_the_line(service: Service, number: int) -> None:
    with service.publisher() as peer:
        peer.send(publish(0, number, record(b"x")))
        told = peer.until(ERROR).fields()
        assert (told["name"], told["number"], told["count"]) == ("NUMBER_GAP", number, 1)
        peer.send(publish(0, 1, record(b"x")))
        assert entries(peer)[0][0] == 1


@pytest.mark.parametrize("count", [1, 2, 3, 65_535])
@pytest.mark.parametrize("back", [0, 1, 2])
def test_number_and_count_that_wrap(service: Service, count: int, back: int) -> None:
    """number + count is 2^64 and more: it is beyond the line, and nothing wraps to its beginning."""
    with service.publisher() as peer:
        peer.send(publish(0, 1, record(b"x")))
        entries(peer)
        peer.send(publish(0, U64_MAX - back, *[record()] * count))
        assert refusal(peer) in ("NUMBER_GAP", "NUMBER_OVERLAP")
        peer.send(publish(0, 2, record(b"x")))
        assert entries(peer)[0][0] == 2


def test_number_0_is_none(service: Service) -> None:
    with service.publisher() as peer:
        peer.send(publish(0, 0, record(b"x")))
        first = peer.answer()
        assert first is not None
        assert first.kind in (ERROR, PUBLISHED)
        if first.kind == PUBLISHED:  # a duplicate of which nothing is known
            assert attackers.ENTRY.unpack(first.body)[1] == 0
        peer.send(publish(0, 1, record(b"x")))
        assert entries(peer)[0][0] == 1


@pytest.mark.parametrize("slot", [1, 2, 63, 64, 65_535, 65_536, 1 << 31, U32_MAX])
def test_channel_number_that_has_no_channel(service: Service, slot: int) -> None:
    with service.publisher() as peer:
        peer.send(publish(slot, 1, record(b"x")))
        assert refusal(peer) == "INVALID_CHANNEL"
        assert peer.alive()


@pytest.mark.parametrize("number", [1, 65_535, 65_536, U32_MAX])
def test_channel_numbers_are_dense(service: Service, number: int) -> None:
    """An array as large as the largest number is nothing to ask of a server with one small frame."""
    with service.opened() as peer:
        peer.send(channel(number, b"a.b"))
        assert peer.ended() == "MALFORMED_FRAME"


# --- Lines ---------------------------------------------------------------------------------------------------------


def producer(number: int) -> bytes:
    return struct.pack("<QQ", 0xC0FFEE, number)


def test_gap_overlap_and_repetition(service: Service) -> None:
    with service.publisher(producer=producer(1)) as peer:
        peer.send(publish(0, 1, record(b"1"), record(b"2"), record(b"3")))
        first = entries(peer)[0][2]
        peer.send(publish(0, 3, record(b"3"), record(b"4")))
        assert refusal(peer) == "NUMBER_OVERLAP"
        peer.send(publish(0, 5, record(b"5")))
        assert refusal(peer) == "NUMBER_GAP"
        for _ in range(50):
            peer.send(publish(0, 2, record(b"not the same")))
        repeated = [entry for _ in range(50) for entry in entries(peer)]
        assert {(entry[0], entry[6]) for entry in repeated} == {(2, 1)}
        peer.send(publish(0, 4, record(b"4")))
        assert entries(peer)[0][2] == first + 3


def test_two_connections_of_one_producer(service: Service) -> None:
    """The newer takes the line; the older is told, and what it sends then is nothing."""
    older = service.publisher(producer=producer(2))
    older.send(publish(0, 1, record(b"x")))
    entries(older)
    newer = service.peer()
    assert newer.open(producer=producer(2))["highest"] == 1
    assert older.ended() == "PRODUCER_TAKEN"
    older.send(publish(0, 2, record(b"too late")))
    newer.send(channel(0, b"ephemeral.attacked") + publish(0, 2, record(b"x")))
    assert entries(newer)[0][:1] == (2,)


def test_two_connections_that_take_turns(service: Service) -> None:
    """Each takes the line from the other, a hundred times: one number each, and none twice."""
    for turn in range(100):
        peer = service.peer()
        assert peer.open(producer=producer(3))["highest"] == turn
        peer.send(channel(0, b"stored.turns") + publish(0, turn + 1, record(b"x")))
        assert entries(peer)[0][2] == turn + 1


def test_a_thousand_producers(service: Service) -> None:
    """Each with a gap, a repetition and an overlap, over few connections at once."""
    before = service.stats()["producers"]
    for number in range(1_000):
        with service.publisher(producer=producer(10_000 + number)) as peer:
            peer.send(publish(0, 1, record(b"1"), record(b"2")) + publish(0, 2, record(b"2"), record(b"3")))
            peer.send(publish(0, 9, record(b"9")) + publish(0, 1, record(b"1")))
            assert {refusal(peer), refusal(peer)} == {"NUMBER_OVERLAP", "NUMBER_GAP"}
    assert service.stats()["producers"] == before + 1_000


def test_line_that_took_no_number_is_not_kept(service: Service) -> None:
    before = service.stats()["producers"]
    peers = [service.publisher(producer=producer(20_000 + number)) for number in range(200)]
    assert all(peer.alive() for peer in peers)
    assert service.stats()["producers"] == before + 200
    service.hang_up()
    attackers.wait_until(lambda: service.stats()["producers"] == before)


# --- Subscriptions and credit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 1 << 31, U32_MAX])
def test_subscription_number_at_its_ends(service: Service, number: int) -> None:
    with service.opened() as peer:
        peer.send(subscribe(number, "ephemeral.ends"))
        assert peer.until(SUBSCRIBED).fields()["subscription"] == number
        peer.send(subscribe(number, "ephemeral.ends"))
        assert refusal(peer) == "SUBSCRIPTION_IN_USE"
        peer.send(packed(UNSUBSCRIBE, subscription=number))
        assert peer.until(UNSUBSCRIBED)
        peer.send(packed(UNSUBSCRIBE, subscription=number))
        assert refusal(peer) == "UNKNOWN_SUBSCRIPTION"


@pytest.mark.parametrize("more", [value for value in INTEGERS if value > CREDIT_MAX])
def test_credit_that_nobody_can_mean(service: Service, more: int) -> None:
    with service.opened() as peer:
        peer.send(subscribe(1, "ephemeral.credit", credit=0) + credit(1, more))
        assert peer.ended() == "MALFORMED_FRAME"


def test_credits_that_sum_up_beyond_their_range(service: Service) -> None:
    with service.opened() as peer:
        peer.send(subscribe(1, "ephemeral.credit", credit=U64_MAX) + credit(1, CREDIT_MAX))
        assert peer.alive()
        peer.send(credit(1, 1))
        assert peer.ended() == "MALFORMED_FRAME"


@pytest.mark.parametrize("number", [0, 2, U32_MAX])
def test_credit_of_a_subscription_that_is_not_there(service: Service, number: int) -> None:
    with service.opened() as peer:
        peer.send(subscribe(1, "ephemeral.credit") + credit(number, U64_MAX) + credit(number, 1))
        assert peer.alive()
        assert peer.errors == []


@pytest.mark.parametrize("size", [0, 15, 17, 24])
def test_credit_of_a_wrong_size(service: Service, size: int) -> None:
    with service.opened() as peer:
        peer.send(subscribe(1, "ephemeral.credit") + frame(CREDIT, bytes(size)))
        assert peer.ended() == "MALFORMED_FRAME"


def test_no_credit_at_all(service: Service) -> None:
    """Who grants nothing gets its overdraft, and then nothing more until it does; nobody waits for it."""
    with service.opened() as peer, service.publisher(b"ephemeral.nothing") as publisher:
        peer.send(subscribe(1, "ephemeral.nothing", credit=0))
        peer.until(SUBSCRIBED)
        for number in range(1, 40):
            publisher.send(publish(0, number, record(bytes(10_000))))
        assert peer.until(Kind.EVENT).fields()["event"] == "lagging"
        assert publisher.alive()
        assert peer.alive()


# --- Positions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(service: Service) -> dict[str, Any]:
    """A stored channel with ten records, and what SUBSCRIBED says of it."""
    with service.publisher(b"stored.places") as peer:
        peer.send(publish(0, 1, *[record(b"%d" % at) for at in range(10)]))
        _, epoch, first, count, _, _, _ = entries(peer)[0]
        peer.send(subscribe(1, "stored.places"))
        journal, group, _ = peer.until(SUBSCRIBED).fields()["bus"]
    return {"epoch": epoch, "head": first + count - 1, "journal": journal, "group": group}


def start(service: Service, *filters: str, **where: object) -> tuple[Peer, dict[str, Any]]:
    """Subscribe from somewhere; answers SUBSCRIBED, or the ERROR."""
    peer = service.opened()
    peer.send(subscribe(1, *filters, start=where))
    answer = peer.answer()
    assert answer is not None, peer.errors
    assert answer.kind in (SUBSCRIBED, ERROR)
    return peer, answer.fields()


def test_positions_at_their_ends(service: Service, stored: dict[str, Any]) -> None:
    """Epochs that never were, that are to come, sequences beyond all: each has its outcome."""
    for epoch in (
        0,
        1,
        stored["epoch"] - 1,
        stored["epoch"],
        stored["epoch"] + 1,
        stored["epoch"] + (1 << 32),
        U64_MAX,
    ):
        for sequence in INTEGERS:
            peer, told = start(service, "stored.places", positions=[["stored.places", epoch, sequence]])
            (name, outcome, _, at), *rest = told["outcomes"]
            assert (name, rest) == ("stored.places", [])
            assert outcome in ("resumed", "trimmed", "diverged")
            if outcome == "resumed":
                assert at == sequence <= stored["head"]
                assert sequence == 0 or epoch == stored["epoch"], "of a foreign epoch nothing is known"
            else:
                assert at <= stored["head"], "no place that is not there"
            assert peer.alive()
            peer.socket.close()


@pytest.mark.parametrize("group", INTEGERS)
@pytest.mark.parametrize("index", [0, 1, U32_MAX - 1, U32_MAX])
def test_bus_positions_at_their_ends(service: Service, stored: dict[str, Any], group: int, index: int) -> None:
    """A group that is to come is nobody's place; an index beyond every chunk is the end of its group."""
    peer, told = start(service, "stored.>", bus=[stored["journal"], group, index])
    if group > stored["group"] + 10_000:
        assert told["outcomes"][0][1] == "diverged"
    else:
        assert told["outcomes"][0][1] in ("resumed", "diverged")
    assert peer.alive()


@pytest.mark.parametrize("index", [U32_MAX + 1, 1 << 63, U64_MAX])
def test_bus_index_past_its_range(service: Service, stored: dict[str, Any], index: int) -> None:
    with service.opened() as peer:
        peer.send(subscribe(1, "stored.>", start={"bus": [stored["journal"], 1, index]}))
        assert peer.ended() == "MALFORMED_FRAME"


@pytest.mark.parametrize("journal", [bytes(16), b"\xff" * 16])
def test_position_of_another_journal(service: Service, journal: bytes) -> None:
    peer, told = start(service, "stored.>", bus=[journal, 1, 0])
    assert told["outcomes"][0][1] == "diverged"
    assert peer.alive()


def test_position_is_good_again_and_again(service: Service, stored: dict[str, Any]) -> None:
    """A resume token that is replayed gives the same records each time, to whoever has it."""
    for _ in range(20):
        peer, told = start(service, "stored.places", positions=[["stored.places", stored["epoch"], stored["head"] - 4]])
        assert told["outcomes"][0][1] == "resumed"
        delivered = peer.until(DELIVER)
        _, first, payloads = attackers.records_of(delivered.body, delivered.flags)
        assert (first, len(payloads)) == (stored["head"] - 3, 4)


@pytest.mark.parametrize(
    "positions",
    [
        [["stored.other", 1, 1]],
        [["stored.places", 1, 1], ["stored.other", 1, 1]],
    ],
)
def test_position_of_a_channel_that_is_no_filter(service: Service, positions: list[Any]) -> None:
    peer, told = start(service, "stored.places", positions=positions)
    assert told["name"] == "INVALID_POSITION"
    assert peer.alive()


@pytest.mark.parametrize("name", ["", "$a", "a b", "*", "x" * 300])
def test_position_of_no_channel(service: Service, name: str) -> None:
    peer, told = start(service, "stored.places", positions=[[name, 1, 1]])
    assert told["name"] == "INVALID_CHANNEL"
    assert peer.alive()


def test_thousand_positions_of_one_channel(service: Service, stored: dict[str, Any]) -> None:
    peer, told = start(
        service, "stored.places", positions=[["stored.places", stored["epoch"], at] for at in range(1_000)]
    )
    assert len(told["outcomes"]) == 1
    assert peer.alive()


@pytest.mark.parametrize("last", INTEGERS)
def test_last_at_its_ends(service: Service, stored: dict[str, Any], last: int) -> None:
    peer, told = start(service, "stored.places", last=last)
    assert told["outcomes"][0][3] == max(0, stored["head"] - last)
    assert peer.alive()


@pytest.mark.parametrize("time_us", INTEGERS)
def test_time_at_its_ends(service: Service, stored: dict[str, Any], time_us: int) -> None:
    peer, told = start(service, "stored.>", time_us=time_us)
    assert told["outcomes"][0][1] == "resumed"
    if time_us < time.time() * 1e6:
        assert peer.until(DELIVER)
    assert peer.alive()


@pytest.mark.parametrize("where", [{"positions": [["a.b", 1, 1]]}, {"last": 5}])
def test_start_that_a_pattern_cannot_have(service: Service, where: dict[str, Any]) -> None:
    peer, told = start(service, "stored.>", **where)
    assert told["name"] == "INVALID_POSITION"
    assert peer.alive()


def test_ping_of_every_length_of_silence(service: Service) -> None:
    """A PONG that nobody asked for is no offence."""
    with service.opened() as peer:
        for token in INTEGERS:
            peer.send(frame(PONG, struct.pack("<Q", token)))
        assert peer.alive()
