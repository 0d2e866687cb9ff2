"""A work queue by a client that was written from the document alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from . import frames
from .frames import Acked, Error, Jobs, Kind, Reply, Subscribed

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Place
    from .conversation import Conversation

    Talk = Callable[..., Conversation]

Expected = TypeVar("Expected")

ACK, NACK, REJECT = 1, 2, 3


def expect(conversation: Conversation, kind: type[Expected]) -> Expected:
    """Return the next answer of a kind, whatever else comes before it."""
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s:
        answer = conversation.receive(10)
        if isinstance(answer, kind):
            return answer
    raise AssertionError(f"no {kind.__name__} came")


def ask(conversation: Conversation, op: str, **fields: object) -> dict[str, object]:
    conversation.send(frames.control(Kind.REQUEST, request=1, op=op, **fields))
    return dict(expect(conversation, Reply).fields)


def test_a_job_is_done_failed_and_given_up(place: Place, talk: Talk, room: str) -> None:
    one = talk(place.address)
    name, channel, dead = f"queue.{room}", f"s.{room}.jobs", f"s.{room}.dead"
    one.send(frames.channel(0, channel))
    one.send(frames.publish(0, 1, [frames.record(b"first", key=b"k"), frames.record(b"second")]))
    settings = {"name": name, "filters": [channel], "dead_letter": dead, "backoff_ms": [0, 0], "attempts_max": 2}
    told = ask(one, "consumer_set", **settings)
    assert (told["mode"], told["lag"], told["members"]) == ("shared", 2, 0)
    one.send(frames.control(Kind.SUBSCRIBE, subscription=1, consumer={"name": name, "window": 1}))
    assert expect(one, Subscribed).subscription == 1
    [job] = expect(one, Jobs).jobs
    assert (job.name, job.sequence, job.attempt, job.redelivered, job.record.payload) == (
        channel,
        1,
        1,
        False,
        b"first",
    )
    one.send(frames.ack(1, 1, (job.lease, 1, ACK, 0)))
    [job] = expect(one, Jobs).jobs
    assert (job.name, job.record.payload) == (None, b"second")
    one.send(frames.ack(1, 2, (job.lease, 1, NACK, 0)))
    [again] = expect(one, Jobs).jobs
    assert (again.sequence, again.attempt, again.redelivered) == (2, 2, True)
    one.send(frames.ack(1, 3, (again.lease, 1, REJECT, 0), (again.lease + 7, 1, ACK, 0)))
    refused = expect(one, Error)
    assert (refused.code, refused.concerns, refused.ack, refused.lease, refused.leases) == (
        3029, "subscription", 3, again.lease + 7, 1
    )  # fmt: skip
    while expect(one, Acked).number < 3:
        pass
    told = ask(one, "consumer", name=name)
    assert (told["acked"], told["dead"], told["redelivered"], told["leased"], told["ready"]) == (1, 1, 1, 0, 0)
    [letter] = frames.chunks(ask(one, "history", channel=dead)["chunks"])
    assert letter.records[0].payload == b"second"
    assert ask(one, "consumer_redrive", name=name)["count"] == 1
    [job] = expect(one, Jobs).jobs
    assert (job.sequence, job.record.payload) == (3, b"second")
    one.close()
    other = talk(place.address)
    other.send(frames.control(Kind.SUBSCRIBE, subscription=9, consumer={"name": name}))
    [job] = expect(other, Jobs).jobs
    assert (job.sequence, job.attempt, job.redelivered) == (3, 2, True)
    assert ask(other, "consumer_remove", name=name) == {"request": 1}
