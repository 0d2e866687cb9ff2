"""Consumers and work queues at the level of frames, against a broker that stands still until it is told to go on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from broker.model.consumers import (
    BACK_OFF,
    Consume,
    ConsumerInfo,
    ConsumerSettings,
    ConsumerStart,
    DoneRun,
    Settle,
    Verdict,
)
from broker.model.limits import Limits
from broker.model.positions import BusPosition
from broker.node import consumers as consumers_module
from broker.node.letters import fields_of
from broker.wire import consuming, control
from broker.wire.kinds import Kind
from tests.golden.annotate import frames
from tests.golden.conversations import publish
from tests.golden.stage import JOURNAL, LIMITS, TIME_US, Stage
from tests.reference.frames import Record
from tests.reference.journal import Fate

if TYPE_CHECKING:
    from broker.wire.consuming import Job

QUEUE = ConsumerSettings("work", ("s.jobs",), backoff_ms=(0, 0))
HOLDER = ConsumerSettings("log", ("s.jobs",), "exclusive")
START = ConsumerStart()


class Peer:
    """A connection that keeps what it is told."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage, self.name = stage, name
        self.jobs: list[Job] = []
        self.acked: dict[int, int] = {}
        self.errors: list[control.Refusal] = []
        self.events: list[str] = []
        self.replies: list[dict[str, Any]] = []
        self.order: list[str] = []
        self.acks: dict[int, int] = {}
        self.published = 0
        stage.connect(name)
        self.send(control.encode_hello(name))

    def send(self, *sent: bytes) -> None:
        self.stage.feed(self.name, b"".join(sent))
        self.stage.settle()
        self.hear()

    def hear(self) -> None:
        for frame in frames(self.stage.clients[self.name].take()):
            kind, body = frame[4], frame[8:]
            self.order.append(Kind(kind).name)
            match kind:
                case Kind.JOBS:
                    self.jobs += consuming.decode_jobs(body).jobs
                case Kind.ACKED:
                    subscription, number = consuming.decode_acked(body)
                    self.acked[subscription] = number
                case Kind.ERROR:
                    self.errors.append(control.decode_error(body))
                case Kind.EVENT:
                    self.events.append(control.decode_event(body).event)
                case Kind.REPLY:
                    self.replies.append(control.decode_reply(body)[1])

    def wait(self, us: int) -> None:
        self.stage.wait(us)
        self.hear()

    def publish(self, channel: str, *records: bytes | Record) -> None:
        self.send(control.encode_channel(0, channel.encode()), publish(0, self.published + 1, *records))
        self.published += len(records)

    def ask(self, op: str, **arguments: object) -> dict[str, Any]:
        self.send(control.encode_request(len(self.replies) + 1, op, arguments))
        return self.replies[-1] if self.replies else {}

    def refused(self, op: str, **arguments: object) -> str:
        errors = len(self.errors)
        self.ask(op, **arguments)
        assert len(self.errors) == errors + 1
        return self.errors[-1].failure.name

    def make(self, settings: ConsumerSettings, start: ConsumerStart = START, **more: Any) -> ConsumerInfo:
        return consuming.decode_info(self.ask("consumer_set", **consuming.pack_consumer_set(settings, start, **more)))

    def info(self, name: str = "work") -> ConsumerInfo:
        return consuming.decode_info(self.ask("consumer", name=name))

    def join(self, subscription: int = 1, name: str = "work", window: int = 256, bytes_max: int = 1 << 20) -> None:
        consume = Consume(name, window, bytes_max)
        self.send(control.encode_subscribe(control.Subscribe(subscription, (), 0, consumer=consume)))

    def settle(self, *entries: Settle, subscription: int = 1) -> None:
        number = self.acks[subscription] = self.acks.get(subscription, 0) + 1
        self.send(consuming.encode_ack(subscription, number, entries))
        self.wait(5_000)

    def say(self, verdict: Verdict, job: Job, ms: int = 0, subscription: int = 1) -> None:
        self.settle(Settle(job.lease, 1, verdict, ms), subscription=subscription)

    def ack(self, job: Job, subscription: int = 1) -> None:
        self.say(Verdict.ACK, job, subscription=subscription)

    def take(self) -> list[Job]:
        jobs, self.jobs = self.jobs, []
        return jobs

    def payloads(self) -> list[bytes]:
        return [fields_of(job.record).payload for job in self.take()]


@pytest.fixture
def stage() -> Stage:
    return Stage(limits=replace(LIMITS, payload_bytes_max=1_000, headers_bytes_max=1_000))


@pytest.fixture
def peer(stage: Stage) -> Peer:
    return Peer(stage, "peer")


def payload(job: Job) -> bytes:
    return fields_of(job.record).payload


# -- taking and settling -----------------------------------------------------------------------------------------------


def test_each_job_goes_to_one_member_and_is_done_when_acked(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", *[b"%d" % at for at in range(10)])
    peer.make(QUEUE)
    other = Peer(stage, "other")
    stage.hold()
    peer.join(window=4)
    other.join(window=4)
    stage.holding = False
    mine, theirs = peer.take(), other.take()
    assert len(mine) == len(theirs) == 4
    assert not {job.lease for job in mine} & {job.lease for job in theirs}
    peer.settle(Settle(mine[0].lease, 4, Verdict.ACK))
    assert sorted(map(payload, mine + theirs + peer.jobs)) == [b"%d" % at for at in range(10)]
    assert peer.acked == {1: 1}
    info = peer.info()
    assert (info.acked, info.leased, info.ready, info.members, info.lag) == (4, 6, 0, 2, 0)
    for job in theirs:
        other.ack(job)
    for job in peer.take():
        peer.ack(job)
    assert peer.info().positions == (("s.jobs", info.positions[0][1], 10),)


def test_few_jobs_are_spread_over_members(stage: Stage, peer: Peer) -> None:
    peer.make(QUEUE)
    peers = [peer, Peer(stage, "a"), Peer(stage, "b"), Peer(stage, "c")]
    for each in peers:
        each.join()
    peer.publish("s.jobs", *[b"x"] * 8)
    for each in peers:
        each.hear()
        assert len(each.take()) == 2


def test_what_is_published_later_comes_at_once_and_the_next_does_not_wait_for_the_commit(
    stage: Stage, peer: Peer
) -> None:
    peer.make(QUEUE)
    peer.join(window=1)
    peer.publish("s.jobs", b"one", b"two", b"three")
    [one] = peer.take()
    stage.hold()
    peer.ack(one)
    [two] = peer.take()
    assert not peer.acked
    stage.release()
    peer.hear()
    assert not peer.acked, "it has a job under way and there are more: it hears of it with the next or soon"
    peer.wait(2_000)
    assert peer.acked == {1: 1}
    stage.hold()
    peer.ack(two)
    assert peer.payloads() == [b"three"]
    assert peer.acked == {1: 1}
    stage.release()
    peer.hear()
    assert peer.acked == {1: 2}, "no job is left that could bring it"


def test_bytes_under_way_are_bounded_but_for_one_job(peer: Peer) -> None:
    peer.publish("s.jobs", bytes(900), bytes(900), bytes(900))
    peer.make(QUEUE)
    peer.join(bytes_max=1_000)
    [job] = peer.take()
    peer.ack(job)
    assert len(peer.take()) == 1


def test_a_lease_that_is_over_is_given_to_another_and_a_late_ack_counts_until_then(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", b"one", b"two")
    peer.make(replace(QUEUE, lease_ms=1_000))
    peer.join(window=2)
    one, two = peer.take()
    peer.say(Verdict.EXTEND, two, 5_000)
    peer.ask("consumer_pause", name="work", paused=True)
    peer.wait(1_500_000)
    peer.ack(one)
    assert not peer.errors
    peer.ask("consumer_pause", name="work", paused=False)
    assert peer.take() == []
    other = Peer(stage, "other")
    other.join()
    peer.wait(3_600_000)
    other.hear()
    [again] = [*other.take(), *peer.take()]
    assert (payload(again), again.attempt, again.redelivered) == (b"two", 2, True)
    peer.ack(two)
    assert peer.errors[-1].failure.name == "LEASE_EXPIRED"
    assert (peer.errors[-1].ack, peer.errors[-1].lease, peer.errors[-1].leases) == (3, two.lease, 1)
    assert peer.order[-2:] == ["ERROR", "ACKED"]


def test_a_member_that_goes_gives_its_leases_back_at_once(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", b"one", b"two", b"three")
    peer.make(QUEUE)
    other = Peer(stage, "other")
    other.join(window=3)
    assert len(other.take()) == 3
    peer.join()
    stage.disconnect("other")
    peer.hear()
    jobs = peer.take()
    assert [(payload(job), job.attempt, job.redelivered) for job in jobs] == [
        (b"one", 2, True), (b"two", 2, True), (b"three", 2, True)
    ]  # fmt: skip
    peer.send(control.encode_unsubscribe(1))
    assert peer.info().ready == 3
    assert peer.order[-2] == "UNSUBSCRIBED"


def test_nack_waits_and_dead_jobs_leave_a_letter(peer: Peer) -> None:
    headers = msgpack.packb({"type": "mail"})
    peer.publish("s.jobs", Record(b"one", key=b"k", headers=headers, priority=1, expiry_s=600))
    peer.make(replace(QUEUE, attempts_max=2, backoff_ms=(1_000, 1_000), dead_letter="s.dead"))
    peer.join()
    [job] = peer.take()
    peer.say(Verdict.NACK, job, BACK_OFF)
    peer.wait(400_000)
    assert not peer.jobs
    assert peer.info().delayed == 1
    peer.wait(1_600_000)
    [again] = peer.take()
    assert again.attempt == 2
    peer.say(Verdict.NACK, again)
    assert peer.info().dead == 1
    peer.make(ConsumerSettings("dead", ("s.dead",), dead_letter="s.more"))
    peer.join(2, "dead")
    [letter] = peer.take()
    fields = fields_of(letter.record)
    epoch = job.epoch
    assert (fields.payload, fields.key, fields.priority) == (b"one", b"k", b"\1")
    assert msgpack.unpackb(fields.headers) == {
        "type": "mail", "broker-source": "s.jobs", "broker-epoch": epoch, "broker-sequence": 1,
        "broker-consumer": "work", "broker-attempts": 2, "broker-reason": "attempts",
    }  # fmt: skip
    peer.say(Verdict.REJECT, letter, subscription=2)
    peer.make(ConsumerSettings("more", ("s.more",)))
    peer.join(3, "more")
    [letter] = peer.take()
    said = msgpack.unpackb(fields_of(letter.record).headers)
    assert (said["broker-source"], said["broker-sequence"], said["broker-reason"]) == ("s.jobs", 1, "rejected")
    assert (said["broker-consumer"], said["type"]) == ("dead", "mail")


def test_redrive_publishes_each_letter_once(peer: Peer) -> None:
    peer.publish("s.jobs", b"one", Record(b"two", headers=msgpack.packb({"a": 1})), b"three")
    peer.make(replace(QUEUE, dead_letter="s.dead"))
    peer.join()
    for job in peer.take():
        peer.say(Verdict.REJECT, job)
    peer.publish("s.dead", b"somebody's own")
    assert peer.ask("consumer_redrive", name="work", limit=1)["count"] == 1
    assert peer.ask("consumer_redrive", name="work")["count"] == 2
    assert peer.ask("consumer_redrive", name="work")["count"] == 0
    jobs = peer.take()
    assert [(job.sequence, payload(job), job.attempt) for job in jobs] == [
        (4, b"one", 1), (5, b"two", 1), (6, b"three", 1)
    ]  # fmt: skip
    assert fields_of(jobs[1].record).headers == msgpack.packb({"a": 1})
    assert not fields_of(jobs[0].record).headers
    peer.stage.crash()
    back = Peer(peer.stage, "back")
    assert back.ask("consumer_redrive", name="work")["count"] == 0
    back.make(QUEUE, update=True)
    assert back.refused("consumer_redrive", name="work") == "INVALID_CONSUMER"


def test_by_key_one_at_a_time_and_in_order(peer: Peer) -> None:
    records = [Record(b"a1", key=b"a"), Record(b"a2", key=b"a"), Record(b"b1", key=b"b"), Record(b"a3", key=b"a")]
    peer.publish("s.jobs", *records)
    peer.make(replace(QUEUE, by_key=True))
    peer.join()
    first, other = peer.take()
    assert (payload(first), payload(other)) == (b"a1", b"b1")
    peer.say(Verdict.NACK, first)
    [first] = peer.take()
    assert payload(first) == b"a1"
    peer.ack(first)
    assert peer.payloads() == [b"a2"]


def test_critical_goes_first_with_lanes(peer: Peer) -> None:
    peer.publish("s.jobs", *[Record(b"low", priority=3)] * 20, Record(b"critical", priority=0))
    peer.make(replace(QUEUE, lanes=True))
    peer.join(window=1)
    [job] = peer.take()
    assert payload(job) == b"critical"


# -- exclusive ---------------------------------------------------------------------------------------------------------


def test_a_newer_holder_takes_over_and_everything_undone_comes_again_in_order(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", *[b"%d" % at for at in range(5)])
    peer.make(HOLDER)
    peer.join(name="log", window=3)
    jobs = peer.take()
    peer.say(Verdict.ACK_THROUGH, jobs[1])
    other = Peer(stage, "other")
    other.join(name="log")
    peer.hear()
    assert [each.failure.name for each in peer.errors] == ["CONSUMER_TAKEN"]
    assert peer.errors[0].subscription == 1
    assert peer.errors[0].ack is None
    assert other.payloads() == [b"2", b"3", b"4"]
    peer.ack(jobs[2])
    assert len(peer.errors) == 1
    peer.take()
    peer.join(name="log")
    assert [job.redelivered for job in peer.take()] == [True, True, True]


def test_a_lease_of_an_exclusive_consumer_brings_all_behind_it_back(peer: Peer) -> None:
    peer.publish("s.jobs", *[b"%d" % at for at in range(3)])
    peer.make(replace(HOLDER, lease_ms=100))
    peer.join(name="log")
    jobs = peer.take()
    peer.ack(jobs[0])
    peer.wait(150_000)
    assert peer.payloads() == [b"1", b"2"]


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_what_was_acked_stays_done_through_a_crash(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", *[b"%d" % at for at in range(6)])
    peer.make(replace(QUEUE, attempts_max=9))
    peer.join()
    jobs = peer.take()
    for job in (jobs[0], jobs[3], jobs[1]):
        peer.ack(job)
    peer.say(Verdict.NACK, jobs[4])
    [again] = peer.take()
    assert again.attempt == 2
    stage.crash()
    back = Peer(stage, "back")
    info = back.info()
    assert (info.acked, info.settings.attempts_max) == (3, 9)
    back.join()
    came = back.take()
    assert sorted((payload(job), job.attempt) for job in came) == [(b"2", 1), (b"4", 3), (b"5", 1)]
    assert all(job.redelivered for job in came)
    assert min(job.lease for job in came) > max(job.lease for job in [*jobs, again])
    back.settle(Settle(jobs[2].lease, 1, Verdict.ACK))
    assert back.errors[-1].failure.name == "LEASE_UNKNOWN"


def test_done_by_position_after_a_crash(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", *[b"%d" % at for at in range(6)])
    peer.make(QUEUE)
    peer.join(window=3)
    jobs = peer.take()
    stage.crash()
    back = Peer(stage, "back")
    runs = [DoneRun("s.jobs", jobs[0].epoch, 2, 2), DoneRun("s.none", 1, 1, 1)]
    done = control.encode_request(1, "consumer_done", consuming.pack_done("work", runs))
    consume = control.encode_subscribe(control.Subscribe(1, (), 0, consumer=Consume("work")))
    back.send(done, consume)
    assert consuming.decode_done(back.replies[0], "left") == ()
    assert back.payloads() == [b"0", b"3", b"4", b"5"]
    left = back.ask("consumer_done", **consuming.pack_done("work", [DoneRun("s.jobs", jobs[0].epoch, 1, 3)]))
    assert consuming.decode_done(left, "left") == (DoneRun("s.jobs", jobs[0].epoch, 1, 1),)


@pytest.mark.parametrize("fate", [Fate.REFUSED, Fate.SURVIVES, Fate.LOST])
def test_a_failed_commit_makes_acks_void_and_their_jobs_come_again(stage: Stage, peer: Peer, fate: Fate) -> None:
    peer.publish("s.jobs", *[b"%d" % at for at in range(4)])
    peer.make(replace(QUEUE, dead_letter="s.dead"))
    peer.join(window=2)
    jobs = peer.take()
    peer.ack(jobs[0])
    stage.hold()
    peer.ack(jobs[1])
    peer.say(Verdict.REJECT, peer.jobs[0])
    stage.release(fate)
    peer.hear()
    refusal = next(each for each in peer.errors if each.ack is not None)
    assert (refusal.failure.name, refusal.ack, refusal.lease, refusal.subscription) == ("COMMIT_UNKNOWN", 3, None, 1)
    assert peer.acked == {1: 3}
    peer.stage.settle()
    peer.hear()
    came = peer.take()
    again = [job for job in came if job.redelivered]
    assert {b"1", b"2"} <= {payload(job) for job in again}
    assert b"0" not in {payload(job) for job in again}
    for _ in range(4):
        for job in again:
            peer.ack(job)
        again = peer.take()
    info = peer.info()
    assert (info.acked, info.dead, info.leased, info.ready) == (4, 0, 0, 0)
    dead = peer.ask("channel", name="s.dead")
    assert dead["head"] == 0


def test_a_consumer_that_nobody_uses_leaves_memory_and_comes_back_as_it_was(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", b"one", b"two", b"three")
    peer.make(QUEUE)
    peer.join()
    jobs = peer.take()
    peer.ack(jobs[1])
    peer.send(control.encode_unsubscribe(1))
    stats = stage.node.consumers.stats()
    assert (stats["consumers"], stats["consumers_in_memory"]) == (1, 1)
    peer.wait(15_000_000)
    assert stage.node.consumers.stats()["consumers_in_memory"] == 0
    peer.join()
    again = peer.take()
    assert [(payload(job), job.redelivered) for job in again] == [(b"one", True), (b"three", True)]
    assert min(job.lease for job in again) > max(job.lease for job in jobs)


def test_a_stop_in_good_order_flags_only_what_was_seen(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", b"one", b"two")
    peer.make(QUEUE)
    peer.join(window=1)
    peer.take()
    stage.node.consumers.stop()
    stage.node.kick()
    stage.settle()
    stage.node.core.ended_well = True
    stage.crash()
    stage.node.consumers.flagged = (0, 0)
    back = Peer(stage, "back")
    back.publish("s.jobs", b"three")
    back.join()
    assert [(payload(job), job.redelivered) for job in back.take()][-1] == (b"three", False)


# -- patterns and starts -----------------------------------------------------------------------------------------------


def test_a_pattern_is_read_in_the_order_of_the_bus_through_a_crash(stage: Stage, peer: Peer) -> None:
    for at in range(6):
        peer.publish(f"s.jobs.{at % 3}", b"%d" % at)
    peer.publish("e.jobs", b"ephemeral")
    peer.make(ConsumerSettings("all", ("s.jobs.*", "a.>", "e.*"), "exclusive"))
    peer.join(name="all", window=4)
    jobs = peer.take()
    assert [payload(job) for job in jobs] == [b"0", b"1", b"2", b"3"]
    assert [job.name for job in jobs] == [b"s.jobs.0", b"s.jobs.1", b"s.jobs.2", None]
    peer.say(Verdict.ACK_THROUGH, jobs[1])
    peer.take()
    stage.crash()
    back = Peer(stage, "back")
    back.publish("a.jobs", b"accepted")
    back.join(name="all")
    assert back.payloads() == [b"2", b"3", b"4", b"5", b"accepted"]
    info = back.info("all")
    assert info.bus is not None
    assert info.bus.journal == JOURNAL
    assert info.lag == 0


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (ConsumerStart(), [b"0", b"1", b"2", b"3"]),
        (ConsumerStart(new=True), []),
        (ConsumerStart(last=1), [b"3"]),
        (ConsumerStart(time_us=TIME_US + 1_000_000), [b"2", b"3"]),
    ],
)
def test_where_a_consumer_starts(peer: Peer, start: ConsumerStart, expected: list[bytes]) -> None:
    peer.publish("s.jobs", b"0", b"1")
    peer.wait(2_000_000)
    peer.publish("s.jobs", b"2", b"3")
    peer.make(QUEUE, start)
    peer.join()
    assert peer.payloads() == expected
    peer.publish("s.jobs", b"later")
    assert peer.payloads() == [b"later"]
    peer.ask("consumer_reset", **consuming.pack_reset("work", start))
    assert peer.payloads()[: len(expected)] == expected if start.last is None else [b"later"]


def test_where_a_consumer_of_a_pattern_starts(peer: Peer) -> None:
    peer.publish("s.jobs", b"0")
    peer.wait(2_000_000)
    peer.publish("s.jobs", b"1")
    settings = ConsumerSettings("all", ("s.>",))
    group = peer.make(settings, ConsumerStart(new=True)).bus
    assert group is not None
    peer.join(name="all")
    assert peer.payloads() == []
    for start, expected in (
        (ConsumerStart(time_us=TIME_US + 1_000_000), [b"1"]),
        (ConsumerStart(), [b"0", b"1"]),
        (ConsumerStart(bus=BusPosition(JOURNAL, 2, 5)), [b"1"]),
        (ConsumerStart(new=True), []),
    ):
        peer.ask("consumer_reset", **consuming.pack_reset("all", start))
        assert peer.payloads() == expected
    assert peer.refused("consumer_reset", name="all", start={"last": 1}) == "INVALID_POSITION"
    assert peer.refused("consumer_reset", name="all", start={"bus": [bytes(16), 1, 0]}) == "INVALID_POSITION"


def test_purge_and_peek(peer: Peer) -> None:
    peer.publish("s.jobs", b"0", b"1", b"2")
    peer.make(QUEUE)
    jobs = consuming.decode_waiting(peer.ask("consumer_peek", name="work", limit=2))
    assert [(job.channel, job.sequence, job.attempt, job.member) for job in jobs] == [
        ("s.jobs", 1, 0, 0), ("s.jobs", 2, 0, 0)
    ]  # fmt: skip
    peer.join(window=1)
    [job] = peer.take()
    assert consuming.decode_waiting(peer.ask("consumer_peek", name="work"))[0].member == 1
    assert peer.ask("consumer_purge", name="work")["count"] == 3
    peer.ack(job)
    assert peer.errors[-1].failure.name in ("LEASE_UNKNOWN", "LEASE_EXPIRED")
    peer.publish("s.jobs", b"3")
    assert peer.payloads() == [b"3"]


def test_a_paused_consumer_gives_out_nothing_also_after_a_crash(stage: Stage, peer: Peer) -> None:
    peer.make(QUEUE)
    peer.join()
    peer.ask("consumer_pause", name="work")
    peer.publish("s.jobs", b"one")
    assert peer.events == ["paused"]
    assert not peer.jobs
    stage.crash()
    back = Peer(stage, "back")
    back.join()
    assert not back.jobs
    assert consuming.decode_info(back.ask("consumer_pause", name="work", paused=False)).settings.paused is False
    assert back.events == ["resumed"]
    assert back.payloads() == [b"one"]


def test_more_than_fits_into_memory_is_read_as_there_is_room(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers_module, "WINDOW_BYTES", 20_000)
    monkeypatch.setattr(consumers_module, "WINDOW_BYTES_MIN", 20_000)
    for at in range(100):
        peer.publish("s.jobs", *[b"%04d" % (at * 10 + each) + bytes(200) for each in range(10)])
    peer.make(QUEUE)
    peer.join(window=7)
    seen = []
    kept = 0
    while jobs := peer.take():
        seen += [payload(job)[:4] for job in jobs]
        kept = max(kept, peer.stage.node.consumers.kept_bytes)
        peer.settle(Settle(jobs[0].lease, len(jobs), Verdict.ACK))
        peer.wait(100_000)
    assert seen == [b"%04d" % at for at in range(1_000)]
    assert kept < 400_000


def test_retention_is_told_and_passed(peer: Peer) -> None:
    peer.publish("s.jobs", b"0", b"1", b"2", b"3")
    peer.make(QUEUE)
    peer.ask("trim", name="s.jobs", first=3)
    peer.join()
    assert peer.payloads() == [b"2", b"3"]
    assert peer.events == ["trimmed"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_settings_are_judged(peer: Peer) -> None:
    def refused(**more: object) -> str:
        return peer.refused("consumer_set", **{"name": "x", "filters": ["s.x"], **more})

    assert refused(name="") == "INVALID_CONSUMER"
    assert refused(name="a" * 100 + "." + "b" * 100) == "INVALID_CONSUMER"
    assert refused(name="$x") == "DENIED"
    assert refused(filters=["$consumer.x"]) == "DENIED"
    assert refused(dead_letter="$x") == "DENIED"
    assert refused(filters=[]) == "INVALID_CONSUMER"
    assert refused(filters=["a..b"]) == "INVALID_PATTERN"
    assert refused(mode="both") == "INVALID_CONSUMER"
    assert refused(lease_ms=0) == "INVALID_CONSUMER"
    assert refused(lease_ms=100 * 366 * 86_400_000) == "INVALID_CONSUMER"
    assert refused(attempts_max=65_536) == "INVALID_CONSUMER"
    assert refused(backoff_ms=[5, 1]) == "INVALID_CONSUMER"
    assert refused(mode="exclusive", lanes=True) == "INVALID_CONSUMER"
    assert refused(filters=["s.>"], dead_letter="s.dead") == "INVALID_CONSUMER"
    assert refused(filters=["e.x"]) == "NOT_STORED"
    assert refused(dead_letter="e.x") == "NOT_STORED"
    assert refused(filters=["no.profile"]) == "NO_PROFILE"
    assert refused(start={"positions": [["s.y", 1, 1]]}) == "INVALID_POSITION"
    assert peer.ask("consumers")["consumers"] == []
    assert peer.refused("consumer", name="x") == "UNKNOWN_CONSUMER"


def test_the_same_settings_again_change_nothing_and_others_need_an_update(peer: Peer) -> None:
    peer.publish("s.jobs", b"one", b"two")
    peer.make(QUEUE)
    peer.join(window=1)
    [job] = peer.take()
    assert peer.make(QUEUE, ConsumerStart(new=True)).leased == 1
    changed = replace(QUEUE, lease_ms=99_000)
    packed = consuming.pack_consumer_set(changed, ConsumerStart())
    assert peer.refused("consumer_set", **packed) == "CONSUMER_EXISTS"
    assert peer.refused("consumer_set", **{**packed, "filters": ["s.y"], "update": True}) == "CONSUMER_EXISTS"
    assert peer.make(changed, update=True).settings == changed
    assert peer.take() == [], "what is under way stays so"
    peer.ack(job)
    [following] = peer.take()
    assert payload(following) == b"two"
    # In another order there are other leases.
    assert peer.make(replace(changed, by_key=True), update=True).leased == 0
    [again] = peer.take()
    assert (payload(again), again.redelivered) == (b"two", True)
    peer.ack(following)
    assert peer.errors[-1].failure.name == "LEASE_UNKNOWN"


def test_bounds_on_consumers_members_and_subscriptions() -> None:
    stage = Stage(limits=replace(Limits.small(), channels_max=100, subscriptions_per_connection_max=6))
    peer = Peer(stage, "peer")
    for at in range(4):
        peer.make(ConsumerSettings(f"c.{at}", ("s.x",)))
    assert peer.refused("consumer_set", name="c.4", filters=["s.x"]) == "LIMIT"
    for at in range(1, 5):
        peer.join(at, "c.0")
    peer.join(5, "c.0")
    assert (peer.errors[-1].failure.name, peer.errors[-1].subscription) == ("LIMIT", 5)
    peer.join(1, "c.1")
    assert peer.errors[-1].failure.name == "SUBSCRIPTION_IN_USE"
    peer.join(5, "c.1")
    peer.join(6, "c.1")
    peer.join(7, "c.1")
    assert peer.errors[-1].failure.name == "TOO_MANY_SUBSCRIPTIONS"
    part = consuming.decode_infos(peer.ask("consumers", limit=3, prefix="c", after="c.0"))
    assert ([info.settings.name for info in part.consumers], part.more) == (["c.1", "c.2", "c.3"], False)
    assert consuming.decode_infos(peer.ask("consumers", limit=3)).more


def test_a_removed_consumer_is_unknown_and_its_name_is_free(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", b"one")
    peer.make(QUEUE)
    peer.join()
    [job] = peer.take()
    peer.ack(job)
    peer.ask("consumer_remove", name="work")
    assert (peer.errors[-1].failure.name, peer.errors[-1].subscription) == ("UNKNOWN_CONSUMER", 1)
    assert peer.refused("consumer", name="work") == "UNKNOWN_CONSUMER"
    peer.join()
    assert peer.errors[-1].failure.name == "UNKNOWN_CONSUMER"
    assert peer.make(QUEUE).acked == 0
    peer.join(2)
    assert peer.payloads() == [b"one"]
    stage.crash()
    back = Peer(stage, "back")
    assert back.info().acked == 0


@pytest.mark.parametrize(
    "frame",
    [
        consuming.encode_ack(1, 2, [Settle(1, 1, Verdict.ACK)]),
        control.frame(Kind.ACK, bytes(8)),
        control.frame(Kind.ACK, consuming.ACK_HEADER.pack(1, 0, 1)),
        control.frame(Kind.ACK, consuming.ACK_HEADER.pack(1, 2, 1) + consuming.ACK_ENTRY.pack(1, 1, 1, 0)),
        control.frame(Kind.ACK, consuming.ACK_HEADER.pack(1, 1, 1) + consuming.ACK_ENTRY.pack(1, 0, 1, 0)),
        control.frame(Kind.ACK, consuming.ACK_HEADER.pack(1, 1, 1) + consuming.ACK_ENTRY.pack(1, 1, 7, 0)),
        control.frame(Kind.ACK, consuming.ACK_HEADER.pack(7, 1, 1) + bytes(23)),
    ],
)
def test_an_ack_that_is_not_as_drawn_ends_the_connection(stage: Stage, peer: Peer, frame: bytes) -> None:
    peer.make(QUEUE)
    peer.join()
    peer.send(frame)
    assert peer.errors[-1].failure.name == "MALFORMED_FRAME"
    assert stage.clients["peer"].closed


def test_an_ack_of_somebody_elses_lease_is_refused(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", b"one")
    peer.make(QUEUE)
    peer.join()
    [job] = peer.take()
    other = Peer(stage, "other")
    other.join()
    other.ack(job)
    assert other.errors[-1].failure.name == "LEASE_UNKNOWN"
    peer.say(Verdict.NACK, job, 100 * 366 * 86_400_000)
    assert peer.errors[-1].failure.name == "INVALID_TIME"
    assert peer.info().leased == 1


def test_a_page_of_consumers_is_told_whether_they_are_in_memory_or_not(stage: Stage, peer: Peer) -> None:
    for at in range(120):
        peer.make(ConsumerSettings(f"c.{at:03}", ("s.x",)))
    for again in (peer, None):
        if again is None:
            stage.crash()
            again = Peer(stage, "again")
        part = consuming.decode_infos(again.ask("consumers"))
        assert ([info.settings.name for info in part.consumers], part.more) == (
            [f"c.{at:03}" for at in range(100)],
            True,
        )
        part = consuming.decode_infos(again.ask("consumers", after="c.099"))
        assert (len(part.consumers), part.more) == (20, False)


def test_what_is_asked_while_a_consumer_is_restored_is_refused_or_waits(stage: Stage, peer: Peer) -> None:
    peer.publish("s.jobs", b"one")
    peer.make(QUEUE)
    peer.join()
    [job] = peer.take()
    stage.hold()
    peer.ack(job)
    peer.ask("consumer_pause", name="work", paused=True)
    stage.fail(Fate.LOST)
    stage.feed("peer", control.encode_request(9, "consumer", {"name": "work"}))
    peer.ack(job)
    stage.release()
    peer.wait(5_000)
    names = [each.failure.name for each in peer.errors]
    assert names.count("COMMIT_UNKNOWN") == 2
    info = consuming.decode_info(peer.replies[-1])
    assert (info.settings.paused, info.members, info.acked) == (False, 1, 0)
    assert peer.acked == {1: 2}
    assert peer.payloads() == [b"one"]
