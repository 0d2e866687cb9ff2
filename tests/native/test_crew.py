"""The crew itself: its arguments, its end, and what it says of a server that is gone."""

from __future__ import annotations

import os
import resource
import socket
from typing import Any

import pytest

from broker_native import crew
from broker_native.crew import Members
from tests.native.crew_rig import crew_rig, good
from tests.native.test_crew_broker import acked, job, jobs

MEMBERS = 70


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"protocol": "mqtt-1"}, "protocol: got mqtt-1"),
        ({"payload_bytes": 23}, "payload: got 23"),
        ({"publishers": 0}, "publishers: got 0"),
        ({"publishers": 65_537}, "publishers: got 65537"),
        ({"keys": 100_000_001}, "keys: got 100000001"),
        ({"batch": 0}, "batch: got 0"),
    ],
)
def test_arguments_out_of_their_range(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Members(messages=1, **options)


def test_a_crew_is_prepared_once_runs_once_and_has_its_members_before() -> None:
    with crew_rig("broker", 1) as rig:
        with pytest.raises(ValueError, match="prepared once"):
            rig.members.__init__(messages=1)
        for words in ({"ask": bytes(513)}, {"inbox": bytes(33)}):
            with pytest.raises(ValueError, match="ask, inbox"):
                rig.members.add_member(0, **words)
        assert good(rig.run(jobs(1, [job(0)]) + acked(1)))
        with pytest.raises(ValueError, match="before the run"):
            rig.members.add_member(0)
        with pytest.raises(ValueError, match="runs once"):
            rig.run()


def test_a_socket_that_is_none_is_refused() -> None:
    members = Members(messages=1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        members.add_member(9_999)
    assert members.run(patience_s=0.01).lost == 1


def test_nothing_to_do_is_done() -> None:
    with crew_rig("broker", 0) as rig:
        assert good(rig.run())


def test_many_members_in_turn() -> None:
    with crew_rig("broker", MEMBERS, seats=[{}] * MEMBERS) as rig:
        done = rig.run(*(jobs(1 + at, [job(at)]) + acked(1) for at in range(MEMBERS)))
        assert good(done), done
        assert done.acked == MEMBERS


def test_somebody_looks_meanwhile() -> None:
    seen: list[int] = []
    with crew_rig("broker", 1) as rig:
        done = rig.members.run(patience_s=0.05, on_slice=lambda: seen.append(1))
    assert not done.finished
    assert seen
    assert crew.PROTOCOLS == ("broker", "redis-stream", "jetstream")


def test_only_the_first_thing_that_goes_wrong_is_told() -> None:
    with crew_rig("broker", 1, seats=[{}, {}]) as rig:
        done = rig.run(b"\xff" * 8, b"\xff" * 8)
    assert done.failure is not None
    assert (done.failure.reason, done.failure.connection) == ("protocol", 0)


def test_a_server_that_is_gone_ends_the_run() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    members = Members(messages=1)
    members.add_member(ours.fileno())
    theirs.close()
    done = members.run(patience_s=5)
    ours.close()
    assert done.failure is not None
    assert done.failure.reason == "closed"


def test_who_answers_no_ack_at_all_is_told() -> None:
    count = 16_385
    with crew_rig("broker", count, bounded=False) as rig:
        frames = b"".join(jobs(1 + at, [job(at)]) for at in range(count))
        sent = 0

        def feed() -> None:
            nonlocal sent
            rig.said()
            try:
                while sent < len(frames):
                    sent += rig.theirs[0].send(frames[sent : sent + 100_000])
            except BlockingIOError:
                return

        feed()
        done = rig.members.run(patience_s=10, on_slice=feed)
    assert done.failure is not None
    assert done.failure.detail == "16384 acks of one member are not answered"


def test_without_descriptors_there_is_no_crew() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Members(messages=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
