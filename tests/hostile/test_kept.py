"""Floods of what a server keeps: subscriptions, filters, channels, names, producers, and what a match may cost.

Each has a bound with a code. Whoever reaches it is told, goes on with what it has, and gets room back for what it
gives back.
"""

from __future__ import annotations

import itertools
import struct
import time
from typing import TYPE_CHECKING

from broker_native.trie import PatternTrie
from tests.hostile import attackers
from tests.hostile.attackers import (
    ERROR,
    PUBLISHED,
    REPLY,
    REQUEST,
    SUBSCRIBED,
    UNSUBSCRIBE,
    UNSUBSCRIBED,
    channel,
    packed,
    publish,
    record,
    subscribe,
)
from tests.hostile.conftest import FEW

if TYPE_CHECKING:
    from tests.hostile.attackers import Answer, Peer
    from tests.hostile.service import Service

MIB = 1 << 20
FILTERS_PER_CONNECTION = 32_768
MATCH_S_MAX = 0.001


def subscribed(peer: Peer, number: int, *filters: str) -> str:
    """Subscribe; answers nothing, or the error's name."""
    peer.send(subscribe(number, *filters, credit=1))
    while True:
        answer = peer.answer()
        assert answer is not None, peer.errors
        if answer.kind == ERROR:
            return str(answer.fields()["name"])
        if answer.kind == SUBSCRIBED:
            return ""


# --- Subscriptions -------------------------------------------------------------------------------------------------


def test_subscriptions_of_a_connection(few: Service) -> None:
    most = FEW["subscriptions_per_connection_max"]
    with few.opened() as peer:
        assert [subscribed(peer, number + 1, "a.*") for number in range(most + 1)] == [""] * most + [
            "TOO_MANY_SUBSCRIPTIONS"
        ]
        peer.send(packed(UNSUBSCRIBE, subscription=1))
        peer.until(UNSUBSCRIBED)
        assert subscribed(peer, 99, "a.*") == ""


def test_subscriptions_whose_time_is_being_looked_up_count(few: Service) -> None:
    """They wait for another thread, and would be without a bound if they counted only afterwards."""
    most = FEW["subscriptions_per_connection_max"]
    with few.opened() as peer:
        peer.send(b"".join(subscribe(n + 1, "a.*", start={"time_us": 0}) for n in range(10 * most)))
        peer.send(subscribe(1, "a.*", start={"time_us": 0}))
        answers: list[Answer | None] = [peer.answer() for _ in range(10 * most + 1)]
        told = [answer.kind for answer in answers if answer is not None]
        assert told.count(SUBSCRIBED) == most
        assert {error["name"] for error in peer.errors} == {"TOO_MANY_SUBSCRIPTIONS", "SUBSCRIPTION_IN_USE"}
        assert peer.alive()


def test_filters_of_a_subscription(few: Service) -> None:
    most = FEW["filters_per_subscription_max"]
    with few.opened() as peer:
        assert subscribed(peer, 1, *[f"a.{at}.*" for at in range(most + 1)]) == "TOO_MANY_SUBSCRIPTIONS"
        assert subscribed(peer, 1, *[f"a.{at}.*" for at in range(most)]) == ""


def test_filters_of_a_connection(few: Service) -> None:
    most, each = FEW["filters_per_connection_max"], FEW["filters_per_subscription_max"]
    with few.opened() as peer:
        assert subscribed(peer, 1, *[f"a.{at}.*" for at in range(each)]) == ""
        assert subscribed(peer, 2, *[f"b.{at}.*" for at in range(most - each + 1)]) == "TOO_MANY_SUBSCRIPTIONS"
        assert "filters of this connection" in peer.errors[-1]["detail"]
        assert subscribed(peer, 2, *[f"b.{at}.*" for at in range(most - each)]) == ""
        assert subscribed(peer, 3, "c") == "TOO_MANY_SUBSCRIPTIONS"
        peer.send(packed(UNSUBSCRIBE, subscription=1))
        peer.until(UNSUBSCRIBED)
        assert subscribed(peer, 3, *[f"a.{at}.*" for at in range(each)]) == ""


def test_memory_of_the_most_filters_that_a_connection_may_have(service: Service) -> None:
    """The longest patterns, none of which has a beginning in common: some tens of MB, and then no more."""
    before = service.anonymous_bytes()
    with service.opened() as peer:
        for number in range(FILTERS_PER_CONNECTION // 128):
            tail = ".".join(["x"] * 120)
            assert subscribed(peer, number + 1, *[f"{number:03}-{at:03}.{tail}.>" for at in range(128)]) == ""
        assert subscribed(peer, 5_000, "one.more") == "TOO_MANY_SUBSCRIPTIONS"
        assert service.anonymous_bytes() - before < 48 * MIB


def test_subscribing_again_and_again(few: Service) -> None:
    """What is given back is given back: a thousand rounds leave nothing behind."""
    with few.opened() as peer:
        sizes = []
        for turn in range(600):
            assert subscribed(peer, 1, *[f"p.{turn}.{at}.*" for at in range(50)]) == ""
            peer.send(packed(UNSUBSCRIBE, subscription=1))
            peer.until(UNSUBSCRIBED)
            if turn % 200 == 199:
                sizes.append(few.anonymous_bytes())
        assert sizes[-1] - sizes[0] < MIB


# --- Channels ------------------------------------------------------------------------------------------------------


def test_channels_of_the_broker(few: Service) -> None:
    """Names by SUBSCRIBE and by CHANNEL; those that are there go on, and asking makes none."""
    most = FEW["channels_max"]
    with few.opened() as asker:
        known = few.stats()["channels"]
        for at in range(200):
            asker.send(packed(REQUEST, request=at, op="channel", name=f"asked.{at}"))
            assert asker.until(REPLY).fields() == {"request": at, "epoch": 0, "first": 1, "head": 0, "level": 3}
        assert few.stats()["channels"] == known
    with few.publisher(b"stored.before") as publisher:
        flooders = [few.opened() for _ in range(8)]
        told = [
            subscribed(flooder, 1, *[f"flood.{number}.{at}" for at in range(100)])
            for number, flooder in enumerate(flooders)
        ]
        assert set(told) == {"", "TOO_MANY_CHANNELS"}
        assert few.stats()["channels"] == most
        publisher.send(publish(0, 1, record(b"x")))
        assert publisher.until(PUBLISHED)
        publisher.send(channel(1, b"stored.one.more") + publish(1, 2, record(b"x")))
        assert publisher.until(ERROR).fields()["name"] == "TOO_MANY_CHANNELS"
        assert publisher.until(ERROR).fields()["number"] == 2
        publisher.send(publish(0, 2, record(b"x")))
        assert publisher.until(PUBLISHED)
        assert subscribed(flooders[0], 2, "flood.*.*") == "", "a pattern makes no channel"


def test_channels_of_a_connection(few: Service) -> None:
    most = FEW["channels_per_connection_max"]
    with few.opened() as peer:
        for number in range(most):
            peer.send(channel(number, b"stored.same"))
        assert peer.alive()
        peer.send(channel(most, b"stored.same"))
        assert peer.until(ERROR).fields()["name"] == "TOO_MANY_CHANNELS"
        assert peer.alive()


# --- Producers -----------------------------------------------------------------------------------------------------


def producer(number: int) -> bytes:
    return struct.pack("<QQ", 0xFEED, number)


def test_producers_of_the_broker(few: Service) -> None:
    most = FEW["producers_max"]
    for number in range(most):
        with few.publisher(b"stored.same", producer=producer(number)) as peer:
            peer.send(publish(0, 1, record(b"x")))
            assert peer.until(PUBLISHED)
    with few.opened(producer=producer(most)) as late:
        late.send(channel(0, b"stored.same") + publish(0, 1, record(b"x")))
        told = late.until(ERROR).fields()
        assert (told["name"], told["channel"]) == ("LIMIT", 0)
        assert "limits.producers_max" in told["hint"]
        assert late.until(ERROR).fields()["number"] == 1
        assert subscribed(late, 1, "stored.same") == "", "it may read all the same"
    with few.publisher(b"stored.same", producer=producer(0)) as known:
        known.send(publish(0, 2, record(b"x")))
        assert known.until(PUBLISHED)
    with few.publisher(b"stored.same") as nobody:
        nobody.send(publish(0, 1, record(b"x")))
        assert nobody.until(PUBLISHED), "a line of the connection's own is not kept"


# --- Connections ---------------------------------------------------------------------------------------------------


def test_connections_of_the_server(few: Service) -> None:
    """One more is told so; when some leave there is room again."""
    most = FEW["connections_max"]

    def has_room() -> bool:
        peer = few.peer()
        peer.send(attackers.hello())
        answer = peer.answer()
        assert answer is not None
        return answer.kind == attackers.WELCOME

    taken = sum(itertools.takewhile(bool, (has_room() for _ in range(most + 1))))
    assert most - 20 < taken < most, "the pair has some"
    with few.peer() as late:
        assert late.ended() == "TOO_MANY_CONNECTIONS"
    few.hang_up()
    attackers.wait_until(has_room)


# --- Patterns ------------------------------------------------------------------------------------------------------

PATTERN_TOKENS_MAX = 12


def every_way(tokens: int, tail: list[bytes]) -> list[bytes]:
    """Return all patterns whose first tokens are `a` or `*`, with a tail."""
    return [b".".join([*head, *tail]) for head in itertools.product([b"a", b"*"], repeat=tokens)]


def most_hostile() -> list[bytes]:
    """Return every pattern that may be subscribed to and matches a name of 128 tokens `a`, many more than others do."""
    ways = [pattern for tokens in range(PATTERN_TOKENS_MAX) for pattern in every_way(tokens, [b">"])]
    return ways + [b"a." * tokens + b">" for tokens in range(PATTERN_TOKENS_MAX, 127)]


def match_s(patterns: list[bytes]) -> float:
    """Return the seconds that a match of the longest name takes; the best of some tries, on any machine."""
    name = b".".join([b"a"] * 128)
    assert len(name) == 255
    trie: PatternTrie[object] = PatternTrie()
    reader = object()
    for pattern in patterns:
        trie.insert(pattern, reader)
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        found = trie.match(name)
        times.append(time.perf_counter() - begun)
    assert found == [reader], "once, however many ways"
    return min(times)


def test_worst_case_of_a_match() -> None:
    """However many connections subscribe: these are all the patterns that there are."""
    patterns = most_hostile()
    assert len(patterns) > 4_000
    assert match_s(patterns) < MATCH_S_MAX


def test_worst_case_without_the_bound() -> None:
    """With 17 tokens one connection has what it takes to keep the loop for milliseconds."""
    assert match_s(every_way(15, [b"a", b">"])) > MATCH_S_MAX


def test_pattern_that_has_too_many_ways(service: Service) -> None:
    most = PATTERN_TOKENS_MAX
    with service.opened() as peer:
        assert subscribed(peer, 1, ".".join(["*"] * most)) == ""
        assert subscribed(peer, 2, ".".join(["*"] * (most - 1)) + ".>") == ""
        assert subscribed(peer, 3, "a." * 100 + ">") == "", "no * in it"
        assert subscribed(peer, 4, ".".join(["*"] * (most + 1))) == "INVALID_PATTERN"
        assert subscribed(peer, 4, "good", "a." * most + "*") == "INVALID_PATTERN"
        assert f"got {most + 1} tokens with a *, limit {most}" in peer.errors[-1]["detail"]


def test_pattern_that_comes_and_goes_beside_the_most_hostile(service: Service) -> None:
    """Each change has every channel look for its readers again, the deepest too."""
    with service.opened() as peer, service.publisher(b"ephemeral" + b".a" * 120) as publisher:
        patterns = [
            b".".join([b"ephemeral", *head, b">"]).decode() for head in itertools.product([b"a", b"*"], repeat=10)
        ]
        assert subscribed(peer, 1, *patterns[:1_000]) == ""
        for number in range(1, 101):
            peer.send(subscribe(2, "nobody.*"))
            peer.until(SUBSCRIBED)
            publisher.send(publish(0, number, record(b"x")))
            assert publisher.until(PUBLISHED)
            peer.send(packed(UNSUBSCRIBE, subscription=2))
            peer.until(UNSUBSCRIBED)
