"""The sequencer per turn and per group: what leaves when, who is answered what, and what a failed commit undoes."""

from __future__ import annotations

import pytest

from broker.core.sequencer import ACCEPTED_WAIT_US
from broker.model.errors import BY_CODE, BrokerError, error
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker_native.lines import Line
from broker_native.publisher import CODES
from tests.reference import groups as reference
from tests.reference.frames import DELIVER_EARLY, PUBLISHED, Published, frames_of, records_of
from tests.reference.journal import Fate
from tests.reference.pipeline import PRODUCER, Connection, Pipeline, parse

ALL_SYNCED = Profiles()


def stored(pipeline: Pipeline) -> list[reference.Group]:
    """Return what the journal holds."""
    return [reference.parse_group(value) for value in pipeline.journal.good]


# --- Runs ----------------------------------------------------------------------------------------------------------


def test_a_run_begins_with_a_fence() -> None:
    pipeline = Pipeline()
    (fence,) = stored(pipeline)
    assert fence == reference.Group(
        1, 0, entries=(reference.run_entry(1, clean=True),), term=1, writer=0, run=1, flags=reference.FLAG_FENCE
    )
    pipeline.start()
    fence = stored(pipeline)[-1]
    assert fence.entries == (reference.run_entry(2, clean=False),)
    assert (fence.number, fence.predecessor, fence.term) == (2, 1, 2)
    pipeline.close()
    pipeline.start()
    assert stored(pipeline)[-1].entries == (reference.run_entry(3, clean=True),)


def test_groups_are_a_chain() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    for _ in range(3):
        connection.publish(b"s.x", b"x")
        pipeline.commit()
    parsed = stored(pipeline)
    assert [group.number for group in parsed] == [1, 2, 3, 4]
    assert [group.predecessor for group in parsed] == [0, 1, 2, 3]
    assert [group.previous_chain for group in parsed] == [0, *[group.chain for group in parsed[:-1]]]


def test_close_says_that_the_run_ended_in_good_order() -> None:
    pipeline = Pipeline()
    pipeline.close()
    assert stored(pipeline)[-1].entries == (reference.close_entry(1),)


def test_a_run_with_a_failed_commit_did_not_end_in_good_order() -> None:
    """A reader may have seen a record that was lost, in a channel that has had none, and so no new epoch, since."""
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"a.x", b"stored")
    old = parse(pipeline.commit()).chunks[0]
    connection.publish(b"a.x", b"seen and lost")
    pipeline.close_group()
    pipeline.fail(Fate.LOST)
    pipeline.recover()
    pipeline.close()
    assert stored(pipeline)[-1].entries == ()
    pipeline.start()
    connection = Connection(pipeline.core)
    connection.publish(b"a.x", b"another")
    new = parse(pipeline.commit()).chunks[0]
    assert new.first == old.last + 1
    assert new.epoch > old.epoch
    assert pipeline.core.resume(b"a.x", old.epoch, old.last + 1).name == "diverged"


@pytest.mark.parametrize(("clean", "name", "renewed"), [
    (False, b"a.x", True), (True, b"a.x", False), (False, b"s.x", False),
])  # fmt: skip
def test_after_a_crash_accepted_channels_begin_a_new_epoch(clean: bool, name: bytes, renewed: bool) -> None:
    pipeline = Pipeline()
    Connection(pipeline.core).publish(name, b"x")
    old = parse(pipeline.commit()).chunks[0].epoch
    if clean:
        pipeline.close()
    pipeline.start()
    Connection(pipeline.core).publish(name, b"y")
    assert (parse(pipeline.commit()).chunks[0].epoch != old) is renewed


def test_a_crash_is_remembered_until_the_channel_has_a_record() -> None:
    """Nothing is written for a channel at start, so a good run in between must not make the crash forgotten."""
    pipeline = Pipeline()
    Connection(pipeline.core).publish(b"a.x", b"x")
    old = parse(pipeline.commit()).chunks[0].epoch
    pipeline.start()
    pipeline.close()
    pipeline.start()
    pipeline.close()
    pipeline.start()
    Connection(pipeline.core).publish(b"a.x", b"y")
    new = parse(pipeline.commit()).chunks[0].epoch
    assert new >> 40 == 4
    pipeline.close()
    pipeline.start()
    Connection(pipeline.core).publish(b"a.x", b"z")
    assert parse(pipeline.commit()).chunks[0].epoch == new != old, "and no longer"


def test_a_channel_that_was_accepted_is_renewed_whatever_it_is_now() -> None:
    pipeline = Pipeline()
    Connection(pipeline.core).publish(b"a.x", b"x")
    old = parse(pipeline.commit()).chunks[0].epoch
    pipeline.profiles = ALL_SYNCED
    pipeline.start()
    Connection(pipeline.core).publish(b"a.x", b"y")
    assert parse(pipeline.commit()).chunks[0].epoch != old


# --- Turns and groups ----------------------------------------------------------------------------------------------


def test_a_turn_delivers_and_answers_what_does_not_wait() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    for name in (b"e.x", b"a.x", b"s.x"):
        connection.publish(name, name)
    reader = Connection(pipeline.core, None)
    reader.subscribe(b">")
    pipeline.end_turn()
    assert [(entry.number, entry.level) for entry in connection.answers()] == [(1, 1), (2, 2)]
    deliveries = reader.deliveries()
    assert [(delivery.name, delivery.group, delivery.flags & DELIVER_EARLY) for delivery in deliveries] == [
        (b"e.x", 0, 0),
        (b"a.x", 2, DELIVER_EARLY),
    ]
    pipeline.commit()
    assert [(entry.number, entry.level) for entry in connection.answers()] == [(3, 3)]
    (last,) = reader.deliveries()
    assert (last.name, last.group, last.index, last.flags & DELIVER_EARLY) == (b"s.x", 2, 1, 0)


@pytest.mark.parametrize(("late_us", "gone"), [(1_999_999, False), (2_000_000, True), (90_000_000, True)])
def test_what_expires_while_its_commit_takes_long_is_not_delivered(late_us: int, gone: bool) -> None:
    pipeline = Pipeline()
    reader, connection = Connection(pipeline.core, None), Connection(pipeline.core)
    reader.subscribe(b"s.x", b"s.y")
    connection.publish(b"s.x", b"for ever")
    connection.publish(b"s.y", b"before")
    connection.publish(b"s.y", b"for two seconds", expiry_s=2)
    connection.publish(b"s.y", b"behind")
    pipeline.close_group()
    pipeline.append()
    pipeline.wait(late_us)
    pipeline.done()
    deliveries = reader.deliveries()
    assert [delivery.chunk.count for delivery in deliveries] == [1, 3]
    records = [record.gone or record.payload for delivery in deliveries for record in records_of(delivery.chunk)]
    assert records == [b"for ever", b"before", (1, 1) if gone else b"for two seconds", b"behind"]
    assert [(answer.first, answer.count) for answer in connection.answers()] == [(1, 1), (1, 3)]


def test_early_chunks_count_on_over_the_turns_of_a_group() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    reader = Connection(pipeline.core, None)
    reader.subscribe(b">")
    for name in (b"a.x", b"a.y", b"a.x"):
        connection.publish(name, b"x")
        pipeline.end_turn()
    assert [delivery.index for delivery in reader.deliveries()] == [0, 1, 2]


def test_one_group_is_in_commit_and_an_empty_one_is_none() -> None:
    pipeline = Pipeline()
    assert pipeline.core.close_group(0) is None
    assert pipeline.core.idle
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1")
    assert pipeline.core.close_group(0) is not None
    connection.publish(b"s.x", b"2")
    assert pipeline.core.close_group(0) is None
    assert not pipeline.core.idle
    pipeline.append()
    pipeline.done()
    assert [record.payload for record in records_of(parse(pipeline.commit()).chunks[0])] == [b"2"]


def test_nothing_stored_is_seen_or_answered_before_its_commit() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.subscribe(b"s.x")
    connection.publish(b"s.x", b"x")
    pipeline.close_group()
    assert connection.take() == b""
    pipeline.append()
    pipeline.done()
    frames = frames_of(connection.take())
    assert frames[0].kind == PUBLISHED, "answers go ahead of deliveries"
    assert len(frames) == 2


def test_accepted_records_wait_while_the_disk_is_far_behind() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    core = pipeline.core
    connection.publish(b"s.x", b"old")
    core.end_turn(1_000)
    core.close_group(1_000)
    core.tails.begin_read(1_000 + ACCEPTED_WAIT_US)
    assert not core.tails.accepted_waits
    core.tails.begin_read(1_001 + ACCEPTED_WAIT_US)
    assert core.tails.accepted_waits
    connection.publish(b"a.x", b"waits")
    core.end_turn(1_002 + ACCEPTED_WAIT_US)
    assert connection.answers() == []
    core.tails.now_us = 1_002 + ACCEPTED_WAIT_US
    pipeline.append()
    pipeline.done()
    assert not core.tails.accepted_waits, "the oldest one is young now"
    pipeline.commit()
    assert [entry.level for entry in connection.answers()] == [3, 2]


@pytest.mark.parametrize("late", [False, True])
def test_accepted_records_wait_when_their_turn_ends_too_late(late: bool) -> None:
    """Between the read and the end of its turn the loop may have been held up, with the commit under way."""
    pipeline = Pipeline()
    connection, reader = Connection(pipeline.core), Connection(pipeline.core, producer=None)
    reader.subscribe(b"a.x", b"e.x")
    connection.publish(b"a.x", b"in commit")
    pipeline.wait(1_000)
    pipeline.close_group()
    connection.answers()
    reader.take()
    pipeline.wait(ACCEPTED_WAIT_US - 1)
    connection.publish(b"a.x", b"in time?")
    connection.publish(b"e.x", b"waits for nothing")
    assert not pipeline.core.tails.accepted_waits
    pipeline.core.end_turn(pipeline.now_us + 1 + late)
    assert [entry.level for entry in connection.answers()] == ([1] if late else [2, 1])
    assert [delivery.flags & DELIVER_EARLY for delivery in reader.deliveries()] == ([0] if late else [0, DELIVER_EARLY])
    pipeline.append()
    pipeline.done(close_next=True)
    pipeline.append()
    pipeline.done()
    assert [entry.level for entry in connection.answers()] == ([2] if late else [])
    seen = [record.payload for delivery in reader.deliveries() for record in records_of(delivery.chunk)]
    assert seen == ([b"in time?"] if late else [])


def test_how_old_the_oldest_uncommitted_record_is_counts_from_group_to_group() -> None:
    """A record that came while a long commit was under way is as old as that when its own commit begins."""
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    pipeline.wait(1_000)
    connection.publish(b"a.x", b"first")
    pipeline.close_group()
    pipeline.wait(40_000)
    connection.publish(b"a.x", b"second")
    pipeline.end_turn()
    pipeline.wait(20_000)
    assert pipeline.core.tails.accepted_waits
    pipeline.append()
    pipeline.done(close_next=True)
    assert not pipeline.core.tails.accepted_waits
    assert pipeline.core.tails.early_until_us == 41_000 + ACCEPTED_WAIT_US
    pipeline.append()
    pipeline.done()
    pipeline.wait(1 << 40)
    assert not pipeline.core.tails.accepted_waits, "nothing is uncommitted"


# --- Failed commits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handed_over", "why", "expected"),
    [
        (True, "STORAGE_FAILED", ["COMMIT_UNKNOWN", "COMMIT_REFUSED"]),
        (False, "STORAGE_FAILED", ["COMMIT_REFUSED", "COMMIT_REFUSED"]),
        (True, "STORAGE_FULL", ["COMMIT_UNKNOWN", "STORAGE_FULL"]),
        (False, "STORAGE_FULL", ["STORAGE_FULL", "STORAGE_FULL"]),
    ],
)
def test_who_is_told_what_when_a_commit_fails(handed_over: bool, why: str, expected: list[str]) -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1", b"2")
    pipeline.close_group()
    connection.publish(b"s.x", b"3")
    connection.publish(b"s.x", b"1", b"2", number=1)
    connection.publish(b"s.x", b"3", number=3)
    pipeline.fail(Fate.SURVIVES if handed_over else Fate.REFUSED, error(why, "as the test wants it"))
    unknown, refused = expected
    assert connection.refused == [(unknown, 1, 2), (refused, 3, 1), (unknown, 1, 2), (refused, 3, 1)]
    assert connection.answers() == []
    assert pipeline.recover()
    fence = pipeline.journal.last
    assert fence is not None
    assert (fence.predecessor, fence.flags, fence.chunks) == (1, reference.FLAG_FENCE, ())
    assert connection.publish(b"s.x", b"1", b"2") == 0
    pipeline.commit()
    assert [(entry.number, entry.first) for entry in connection.answers()] == [(1, 1)]


def test_an_answer_that_was_given_early_is_not_taken_back() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"a.x", b"early")
    pipeline.end_turn()
    assert [entry.level for entry in connection.answers()] == [Level.ACCEPTED]
    pipeline.core.close_group(0)
    pipeline.fail(Fate.LOST)
    assert connection.refused == []
    assert connection.publisher.line.next == 1


def test_highest_does_not_sink_before_the_fate_of_its_numbers_is_known() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1", b"2", b"3")
    pipeline.close_group()
    pipeline.fail(Fate.LOST)
    assert pipeline.core.lines.highest(PRODUCER) == 3
    pipeline.recover()
    assert pipeline.core.lines.highest(PRODUCER) == 0


# --- Duplicates ----------------------------------------------------------------------------------------------------


def test_a_retry_gets_the_first_position() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1", b"2", b"3")
    (stored,) = parse(pipeline.commit()).chunks
    connection.answers()
    again = Connection(pipeline.core)
    assert again.publish(b"s.x", b"2", b"3", number=2) == CODES["DUPLICATE"]
    assert again.answers() == [Published(2, stored.epoch, 2, 2, 0, Level.SYNCED, 1)]


def test_a_retry_across_channels_and_epochs_is_answered_piece_by_piece() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1")
    connection.publish(b"s.y", b"2", b"3")
    connection.publish(b"s.x", b"4")
    pipeline.commit()
    connection.answers()
    connection.publish(b"s.x", b"1", b"2", b"3", b"4", number=1)
    assert [(entry.number, entry.first, entry.count) for entry in connection.answers()] == [
        (1, 1, 1),
        (2, 1, 2),
        (4, 2, 1),
    ]


@pytest.mark.parametrize("where", ["open", "in commit", "both"])
def test_a_retry_of_pending_numbers_waits_for_their_group(where: str) -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1")
    if where != "open":
        pipeline.core.close_group(0)
    if where == "both":
        connection.publish(b"s.x", b"2")
    again = Connection(pipeline.core)
    again.publish(b"s.x", *[b"x"] * (2 if where == "both" else 1), number=1)
    pipeline.end_turn()
    assert again.answers() == []
    if where != "open":
        pipeline.append()
        pipeline.done()
        assert len(again.answers()) == (0 if where == "both" else 1)
    if where != "in commit":
        pipeline.commit()
        numbers = [entry.number for entry in again.answers()]
        assert numbers == ([1, 2] if where == "both" else [1])


def test_a_retry_whose_position_is_not_known_claims_no_more_than_its_channel_promises() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"e.x", b"1")
    connection.publish(b"s.x", b"2")
    pipeline.commit()
    connection.answers()
    connection.publish(b"e.x", b"1", number=1)
    assert connection.answers() == [Published(1, 0, 0, 1, 0, Level.EPHEMERAL, 1)]
    own = Connection(pipeline.core, None)
    own.publish(b"s.x", b"a line without a producer")
    pipeline.commit()
    own.answers()
    own.publish(b"s.x", b"again", number=1)
    assert own.answers() == [Published(1, 0, 0, 1, 0, Level.SYNCED, 1)]


# --- Readers' positions --------------------------------------------------------------------------------------------


def test_a_position_in_an_epoch_that_is_on_its_way_to_the_disk() -> None:
    """And one in the epoch before it: what a crash took of that one is not what readers see now."""
    pipeline = Pipeline()
    Connection(pipeline.core).publish(b"a.x", *[b"x"] * 5)
    old = parse(pipeline.commit()).chunks[0].epoch
    pipeline.start()  # a reader has seen sequences 6 to 8 of the old epoch
    connection = Connection(pipeline.core)
    connection.publish(b"a.x", b"6", b"7", b"8", b"9")
    pipeline.end_turn()
    (entry,) = connection.answers()
    for _ in range(2):
        assert pipeline.core.resume(b"a.x", old, 5) == ("resumed", 5, 5)
        assert pipeline.core.resume(b"a.x", old, 6) == ("diverged", 5, 5)
        assert pipeline.core.resume(b"a.x", old, 8) == ("diverged", 5, 5)
        assert pipeline.core.resume(b"a.x", entry.epoch, 7) == ("resumed", 7, 7)
        assert pipeline.core.resume(b"a.x", entry.epoch, 10) == ("diverged", 9, 9)
        pipeline.core.close_group(0)
    pipeline.append()
    pipeline.done()
    assert pipeline.core.resume(b"a.x", old, 8) == ("diverged", 5, 5)
    assert pipeline.core.resume(b"a.x", entry.epoch, 7) == ("resumed", 7, 7)


# --- Policies ------------------------------------------------------------------------------------------------------


def test_bounds_on_new_channels() -> None:
    profiles = Profiles([Profile(b"few.>", channels_max=2), Profile(b"slow.>", new_channels_per_s=2), Profile(b"b.*")])
    pipeline = Pipeline(profiles, Limits(channels_max=6))
    core = pipeline.core

    def code(name: bytes) -> str:
        try:
            core.load(name)
        except BrokerError as failure:
            return BY_CODE[failure.code].name
        return ""

    core.tails.now_us = 5_000_000
    assert [code(b"few.%d" % n) for n in (1, 2, 3, 1)] == ["", "", "TOO_MANY_CHANNELS", ""]
    assert [code(b"slow.%d" % n) for n in (1, 2, 3)] == ["", "", "LIMIT"]
    core.tails.now_us = 6_000_000
    assert code(b"slow.3") == ""
    assert code(b"nobody.s") == "NO_PROFILE"
    assert [code(b"b.1"), code(b"b.2")] == ["", "TOO_MANY_CHANNELS"]


def test_new_profiles_concern_channels_in_memory() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"a.x", b"x")
    pipeline.commit()
    connection.answers()
    pipeline.core.reload(ALL_SYNCED)
    connection.publish(b"a.x", b"y")
    pipeline.end_turn()
    assert connection.answers() == []
    pipeline.commit()
    assert [entry.level for entry in connection.answers()] == [Level.SYNCED]


def test_a_reload_leaves_channels_without_a_policy_alone() -> None:
    """What only replay knows of has none until somebody asks for it, and then it gets the new one."""
    pipeline = Pipeline(Profiles([Profile(b">", durability=Level.ACCEPTED)]))
    pipeline.core.tails.apply_entries(reference.build_entry(reference.channel_entry(9, "a.replayed")), Line)
    pipeline.core.reload(ALL_SYNCED)
    assert not pipeline.core.tails.ready(b"a.replayed")
    connection = Connection(pipeline.core)
    connection.publish(b"a.replayed", b"x")
    pipeline.end_turn()
    pipeline.commit()
    assert [entry.level for entry in connection.answers()] == [Level.SYNCED]


def test_payloads_are_bounded_by_the_smaller_limit() -> None:
    profiles = Profiles([Profile(b"tight.>", payload_bytes_max=10), Profile(b">", payload_bytes_max=1 << 20)])
    pipeline = Pipeline(profiles, Limits(payload_bytes_max=100))
    connection = Connection(pipeline.core)
    assert connection.publish(b"tight.x", bytes(10)) == 0
    assert connection.publish(b"tight.x", bytes(11)) == CODES["PAYLOAD_TOO_LARGE"]
    assert connection.publish(b"wide.x", bytes(100)) == 0
    assert connection.publish(b"wide.x", bytes(101)) == CODES["PAYLOAD_TOO_LARGE"]


def woken(clean: bool, each: bool) -> tuple[object, ...]:
    """Wake stored channels and name new ones, under other profiles than before; returns all that can be seen of it."""
    names = [b"a.1", b"a.2", b"s.1", b"s.2", b"few.1", b"e.1"]
    pipeline = Pipeline(Profiles([Profile(b"a.>", Level.ACCEPTED), Profile(b"e.>", Level.EPHEMERAL), Profile(b">")]))
    connection = Connection(pipeline.core)
    for name in names:
        connection.publish(name, b"x")
    pipeline.commit()
    if clean:
        pipeline.close()
    pipeline.profiles = Profiles(
        [
            Profile(b"a.2"),
            Profile(b"s.2", Level.EPHEMERAL),
            Profile(b"few.*", channels_max=2, payload_bytes_max=10),
            *(Profile(first + b".>", shard_tokens=1) for first in (b"a", b"s", b"e")),
        ]
    )
    pipeline.start(cold=True)
    core = pipeline.core
    names = [*names[::-1], b"few.2", b"nobodys", b"few.3", b"a.1", b"few.4", b"few.2"]
    assert not core.install_each(core.resolver.resolve(core.missing(names)))
    refused: dict[int, BrokerError] = {}
    if each:
        refused = core.load_each(names)
    else:
        for at, name in enumerate(names):
            try:
                core.load(name)
            except BrokerError as failure:
                refused[at] = failure
    ready = [name for name in names if core.tails.ready(name)]
    seen = [core.tails.info(name) for name in names]
    connection = Connection(core)
    codes = [connection.publish(name, bytes(20)) for name in ready]
    chunks = [(chunk.epoch, chunk.first) for chunk in parse(pipeline.commit()).chunks]
    counts = [core.tails.count(index) for index in range(8)]
    return {at: repr(why) for at, why in refused.items()}, ready, seen, codes, chunks, counts, core.channels


@pytest.mark.parametrize("clean", [True, False])
def test_many_are_loaded_as_each_would_be(clean: bool) -> None:
    together = woken(clean, each=True)
    assert together == woken(clean, each=False)
    assert together[0], "some are refused"


# --- Carried and ignored -------------------------------------------------------------------------------------------


def test_term_and_writer_are_carried() -> None:
    pipeline = Pipeline()
    pipeline.core.term, pipeline.core.writer = 2**64 - 1, 77
    Connection(pipeline.core).publish(b"s.x", b"x")
    group = parse(pipeline.commit())
    assert (group.term, group.writer) == (2**64 - 1, 77)
    pipeline.start()
    assert pipeline.core.tails.info(b"s.x") is not None


# -- what is in memory -------------------------------------------------------------------------------------------------


def evict_all(pipeline: Pipeline) -> int:
    return pipeline.core.evict(1 << 62, 1 << 31, 1 << 16)


def test_nothing_is_missing_until_something_was_evicted() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1")
    pipeline.commit()
    assert pipeline.core.complete
    assert pipeline.core.missing([b"s.new"]) == []
    assert pipeline.core.knows_producer(b"n" * 16)
    connection.close()
    assert evict_all(pipeline) == 2, "the channel and the line"
    assert not pipeline.core.complete
    assert pipeline.core.missing([b"s.x", b"s.new", b"s.x"]) == [b"s.x", b"s.new"]
    assert not pipeline.core.knows_producer(PRODUCER)
    assert pipeline.core.channels == 1
    assert len(pipeline.core.lines) == 1


def test_what_was_evicted_goes_on_where_it_was() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1", b"2")
    pipeline.commit()
    connection.close()
    evict_all(pipeline)
    again = Connection(pipeline.core)
    assert again.publisher.line.next == 3
    assert len(pipeline.core.lines) == 1
    again.publish(b"s.x", b"3")
    pipeline.commit()
    (answer,) = again.answers()
    assert (answer.number, answer.first) == (3, 3)
    again.publish(b"s.x", b"2", number=2)
    (answer,) = again.answers()
    assert answer.first == 2, "the place of a number that was published before the eviction"


def test_a_cold_start_counts_what_it_has_not_read() -> None:
    pipeline = Pipeline(limits=Limits(channels_max=3))
    connection = Connection(pipeline.core)
    for name in (b"s.x", b"s.y"):
        connection.publish(name, b"1")
    pipeline.commit()
    pipeline.start(cold=True)
    core = pipeline.core
    assert (core.complete, core.channels, len(core.lines), len(core.tails)) == (False, 2, 1, 0)
    core.load(b"s.x")
    core.load(b"s.z")
    assert core.channels == 3
    with pytest.raises(BrokerError, match="TOO_MANY_CHANNELS"):
        core.load(b"s.w")
    assert core.tails.id_next == 3


def test_profiles_count_what_they_are_told_of() -> None:
    profiles = Profiles([Profile(b"s.>", channels_max=3)])
    pipeline = Pipeline(profiles)
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1")
    pipeline.commit()
    pipeline.start()
    pipeline.core.count_stored([b"s.told", b"nobodys"])
    pipeline.core.load(b"s.new")
    with pytest.raises(BrokerError, match="TOO_MANY_CHANNELS"):
        pipeline.core.load(b"s.one.more")


def test_a_trim_is_answered_when_it_is_applied() -> None:
    pipeline = Pipeline()
    Connection(pipeline.core).publish(b"s.x", b"1", b"2", b"3")
    pipeline.commit()
    told: list[object] = []
    pipeline.core.trim(b"s.x", 3, told.append)
    assert told == []
    pipeline.commit()
    assert told == [None]
    info = pipeline.core.tails.info(b"s.x")
    assert info is not None
    assert info[3] == 3
    pipeline.core.trim(b"s.x", 2, told.append)
    assert told == [None, None], "there is nothing to trim"
    assert pipeline.core.idle


def test_a_drop_that_is_refused_says_who_uses_the_channel() -> None:
    pipeline = Pipeline()
    pipeline.core.load(b"s.x")
    for _ in range(2):
        Connection(pipeline.core).publish(b"s.x", b"1")
        Connection(pipeline.core).subscribe(b"s.x")
        pipeline.core.tails.hold(b"s.x")  # as each literal of a subscription does
    pipeline.core.tails.hold(b"s.x")  # of one that catches up
    told: list[BrokerError | None] = []
    pipeline.core.drop(b"s.x", told.append)
    assert "got 2 live subscriptions that name it, 3 publishers and subscriptions that catch up" in str(told[0])
    for _ in range(3):
        pipeline.core.tails.release(b"s.x")


def test_a_drop_of_what_is_not_committed_yet_says_so() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1")
    connection.close()
    told: list[BrokerError | None] = []
    pipeline.core.drop(b"s.x", told.append)
    assert "a record of it is on its way to the disk" in str(told[0])
    pipeline.commit()
    pipeline.core.drop(b"s.x", told.append)
    pipeline.commit()
    assert told[1:] == [None]


def test_a_drop_frees_the_name_for_another_channel() -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1")
    told: list[BrokerError | None] = []
    pipeline.core.drop(b"s.x", told.append)
    pipeline.commit()
    pipeline.core.drop(b"s.x", told.append)
    assert [failure and failure.name for failure in told] == ["BUSY", "BUSY"]
    assert "got 0 live subscriptions that name it, 1 publishers and" in str(told[1])
    connection.close()
    pipeline.core.drop(b"s.x", told.append)
    with pytest.raises(BrokerError, match="BUSY"):
        pipeline.core.load(b"s.x")
    pipeline.commit()
    assert told[2:] == [None]
    assert pipeline.core.channels == 0
    again = Connection(pipeline.core, None)
    again.publish(b"s.x", b"anew")
    pipeline.commit()
    (answer,) = again.answers()
    assert answer.first == 1
    assert pipeline.core.tails.stored_id(b"s.x") == 2
    pipeline.core.drop(b"s.never", told.append)
    pipeline.core.load(b"s.named")
    pipeline.core.drop(b"s.named", told.append)
    assert told[3:] == [None, None]
    assert pipeline.core.tails.info(b"s.named") is None


@pytest.mark.parametrize("fate", [Fate.REFUSED, Fate.LOST])
def test_a_request_whose_commit_fails_has_not_happened(fate: Fate) -> None:
    pipeline = Pipeline()
    connection = Connection(pipeline.core)
    connection.publish(b"s.x", b"1", b"2")
    connection.publish(b"s.y", b"1")
    pipeline.commit()
    connection.close()
    told: list[BrokerError | None] = []
    pipeline.core.trim(b"s.x", 2, told.append)
    pipeline.close_group()
    pipeline.core.drop(b"s.y", told.append)
    pipeline.fail(fate)
    assert [failure and failure.name for failure in told] == [
        "COMMIT_UNKNOWN" if fate is Fate.LOST else "COMMIT_REFUSED",
        "COMMIT_REFUSED",
    ]
    pipeline.core.trim(b"s.x", 2, told.append)
    pipeline.core.drop(b"s.y", told.append)
    assert [failure and failure.name for failure in told[2:]] == ["UNAVAILABLE", "UNAVAILABLE"]
    pipeline.recover()
    info = pipeline.core.tails.info(b"s.x")
    assert info is not None
    assert info[3] == 1
    assert pipeline.core.tails.ready(b"s.y")
    assert pipeline.core.channels == 2


def test_channels_that_are_all_here_are_loaded_at_once() -> None:
    pipeline = Pipeline()
    names = [b"s.x", b"s.y"]
    assert pipeline.core.load_each(names) == {}
    assert pipeline.core.load_each(names) == {}
    assert pipeline.core.tails.unready(names) == []
