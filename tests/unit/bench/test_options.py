"""Options of works: the window stays within credit and memory, and what makes no sense is said before it is run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.bench.options import (
    AUDIENCES_BYTES_MAX,
    CREDIT_BYTES,
    CREDIT_SHARE,
    DEFAULTS,
    IN_FLIGHT_BYTES_MAX,
    Options,
    Work,
    complaint,
)
from broker.model.levels import Level


@pytest.mark.parametrize("payload", [24, 128, 4096, 1 << 20])
@pytest.mark.parametrize("batch", [1, 100, 65535])
@pytest.mark.parametrize("subscribers", [1, 10, 1000])
def test_window_never_outruns_the_credit(payload: int, batch: int, subscribers: int) -> None:
    options = Options(Work.FANOUT, payload=payload, batch=batch, subscribers=subscribers)
    assert options.window_records >= 4 * batch
    assert options.credit_bytes >= CREDIT_BYTES
    assert options.window_records * options.record_bytes_max <= options.credit_bytes // CREDIT_SHARE


def test_window_of_many_readers_fits_into_memory() -> None:
    options = Options(Work.FANOUT, subscribers=1000)
    assert options.window_records * options.record_bytes_max * 1000 <= IN_FLIGHT_BYTES_MAX


def test_windows_of_many_audiences_share_what_is_under_way() -> None:
    apart = Options(Work.MANY, subscribers=50, channels=1000)
    assert apart.audiences == 50
    assert 0 < 50 * apart.window_records * apart.record_bytes_max <= AUDIENCES_BYTES_MAX
    assert Options(Work.PUBSUB, subscribers=50, channels=1000).audiences == 1


def test_what_waits_for_a_commit_has_a_larger_window() -> None:
    stored, ephemeral = (Options(Work.PUBSUB, durability=level) for level in (Level.SYNCED, Level.EPHEMERAL))
    assert stored.window_records > ephemeral.window_records


def test_a_given_window_is_taken() -> None:
    assert Options(Work.PUBSUB, window=77).window_records == 77


@pytest.mark.parametrize("work", Work)
def test_defaults_make_sense(work: Work) -> None:
    defaults = DEFAULTS[work]
    for subscribers in defaults.subscribers:
        options = Options(
            work,
            publishers=defaults.publishers,
            subscribers=subscribers,
            channels=defaults.channels,
            rate=defaults.rate,
            seconds=defaults.seconds,
            messages=defaults.messages,
            batch=defaults.batch,
            stored_bytes=defaults.stored_bytes,
            unarchived_bytes=defaults.unarchived_bytes,
            clients=defaults.clients,
            slow=defaults.slow,
            members=defaults.members,
        )
        assert complaint(options) is None


RIGHT = {
    Work.PUBSUB: Options(Work.PUBSUB),
    Work.MANY: Options(Work.MANY, channels=10, subscribers=10),
    Work.LATENCY: Options(Work.LATENCY, rate=1000),
    Work.REPLAY: Options(Work.REPLAY, messages=10),
    Work.CLIENT: Options(Work.CLIENT, messages=10),
    Work.IDLE: Options(Work.IDLE, publishers=0),
    Work.RESTART: Options(Work.RESTART, seconds=0, stored_bytes=10, unarchived_bytes=10),
}


@pytest.mark.parametrize("options", RIGHT.values(), ids=str)
def test_has_no_complaint(options: Options) -> None:
    assert complaint(options) is None


@pytest.mark.parametrize(
    ("work", "wrong", "said"),
    [
        (Work.PUBSUB, {"payload": 23}, "--payload"),
        (Work.PUBSUB, {"batch": 0}, "--batch"),
        (Work.PUBSUB, {"batch": 65536}, "--batch"),
        (Work.PUBSUB, {"channels": 0}, "--channels"),
        (Work.PUBSUB, {"channels": 1025}, "--pattern"),
        (Work.PUBSUB, {"subscribers": 0}, "--subscribers"),
        (Work.PUBSUB, {"publishers": 0}, "--publishers"),
        (Work.PUBSUB, {"publishers": 65537}, "--publishers"),
        (Work.PUBSUB, {"rate": -1}, "negative"),
        (Work.PUBSUB, {"seconds": 0}, "--seconds"),
        (Work.PUBSUB, {"durability": Level.REPLICATED}, "--durability"),
        (Work.PUBSUB, {"embedded": True}, "--embedded"),
        (Work.MANY, {"subscribers": 11}, "channel"),
        (Work.LATENCY, {"rate": 0}, "--rate"),
        (Work.REPLAY, {"messages": 0}, "--messages"),
        (Work.REPLAY, {"durability": Level.EPHEMERAL}, "ephemeral"),
        (Work.RESTART, {"unarchived_bytes": 11}, "--unarchived-bytes"),
        (Work.RESTART, {"messages": 1}, "--messages"),
        (Work.RESTART, {"durability": Level.ACCEPTED}, "synced"),
        (Work.RESTART, {"url": "broker://127.0.0.1:1"}, "--url"),
        (Work.PUBSUB, {"archived": True}, "--archived"),
        (Work.PUBSUB, {"stored_bytes": 1}, "--stored-bytes"),
        (Work.CLIENT, {"embedded": True, "url": "broker://127.0.0.1:1"}, "--url"),
    ],
)
def test_says_what_is_wrong(work: Work, wrong: dict[str, object], said: str) -> None:
    assert said in (complaint(replace(RIGHT[work], **wrong)) or "")  # type: ignore[arg-type]
