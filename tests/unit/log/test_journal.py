"""Appending: the chain, rotation, and giving a segment up after a failed commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lmdb
import pytest

from broker.log import AppendError, AppendFull, journal, sealer
from broker.log.errors import append_full
from broker.log.segment import Segment, group_key
from tests.reference.chains import Chain
from tests.unit.log.support import KIB, SEGMENT_BYTES, opened, segment_files

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.log.support import Opened

Append = "Callable[[Segment, int, bytes], None]"


def handed_over() -> AppendError:
    failure = AppendError(4005, "the disk failed")
    failure.handed_over = True
    return failure


def fail_append(one: Opened, chain: Chain, monkeypatch: pytest.MonkeyPatch, *, stored: bool) -> bytes:
    """Let the next append fail after hand-over, its group stored nevertheless or not; returns the group."""
    real = Segment.append

    def append(self: Segment, number: int, value: bytes) -> None:
        if stored:
            real(self, number, value)
        raise handed_over()

    value = chain.build([(1, [b"void"])])
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "append", append)
        with pytest.raises(AppendError) as caught:
            one.log.append(chain.number, value)
    assert caught.value.handed_over
    return value


def check(one: Opened, chain: Chain) -> None:
    """Everything that counts is read, in both ways, and nothing else."""
    assert one.all_groups() == chain.bus()
    for channel in range(1, 8):
        assert one.all_of_channel(channel) == chain.channel(channel)


def test_a_full_segment_is_left_and_the_crossing_group_goes_whole(tmp_path: Path) -> None:
    chain = Chain()
    with opened(tmp_path) as one:
        one.append(chain, [(1, [bytes(SEGMENT_BYTES - 1 - 96 - 56 - 12)])])
        one.append(chain, [(1, [bytes(30 * KIB)])])  # one byte is left, it crosses
        assert one.log.stats()["segments"] == 1
        one.append(chain, [(1, [b"x"])])
        assert one.log.stats()["segments"] == 2
        check(one, chain)


def test_many_small_groups_fill_a_segment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "GROUPS_MAX", 10)
    chain = Chain()
    with opened(tmp_path) as one:
        for _ in range(35):
            one.append(chain, [(1, [b"x"])])
        assert one.log.stats()["segments"] == 4
        check(one, chain)


@pytest.mark.parametrize("field", ["number", "predecessor", "previous_chain"])
def test_groups_that_do_not_follow_are_mistakes(tmp_path: Path, field: str) -> None:
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 3)
        if field == "number":
            value, number = chain.build(), chain.number + 1
        else:
            if field == "predecessor":
                chain.last -= 1
            else:
                chain.last_chain ^= 1
            value, number = chain.build(), chain.number
        with pytest.raises(ValueError, match="group"):
            one.log.append(number, value)
        assert one.log.last_group == 3


def test_without_room_nothing_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 3)
        value = chain.build([(1, [b"x"])])
        with monkeypatch.context() as patch:
            patch.setattr(one.log._space, "take", lambda _: (_ for _ in ()).throw(append_full("full")))
            for _ in range(2):
                with pytest.raises(AppendFull) as caught:
                    one.log.append(chain.number, value)
                assert not caught.value.handed_over
        # The same group is taken as soon as there is room.
        one.log.append(chain.number, value)
        chain.commit(value)
        check(one, chain)


def test_a_put_that_fails_has_not_handed_over(tmp_path: Path) -> None:
    """The address space is used up: LMDB refuses before it writes anything."""
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 3)
        with one.log._journal.segments[-1].file.writing() as environment:  # type: ignore[union-attr]
            environment.set_mapsize(64 * KIB)
            value = chain.build([(1, [bytes(100 * KIB)])])
            with pytest.raises(AppendFull) as caught:
                one.log.append(chain.number, value)
            assert not caught.value.handed_over
            environment.set_mapsize(16 * 1024 * KIB)
        one.log.append(chain.number, value)
        chain.commit(value)
        check(one, chain)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("before", [0, 5])
def test_a_given_up_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool, before: int) -> None:
    """The failed group is void whether it was stored or not, now and after a restart; nothing else is lost."""
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, before)
        fail_append(one, chain, monkeypatch, stored=stored)
        check(one, chain)
        with pytest.raises(ValueError, match="failed is True"):
            one.log.append(chain.number + 1, chain.build())
        one.log.abandon()
        one.log.abandon()
        check(one, chain)
        one.append(chain)  # the fence
        one.fill(chain, 5)
        check(one, chain)
        assert one.log.wait_sealed(10)
        stats = one.log.stats()
        assert (stats["sealed"], stats["segments"]) == ((1, 2) if before else (0, 1))
        check(one, chain)
    with opened(tmp_path) as one:
        assert one.recovery.group == chain.last
        assert one.tables == chain.tables()
        check(one, chain)


def test_two_failures_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fence fails, too, and both failed groups were stored."""
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 5)
        for _ in range(2):
            fail_append(one, chain, monkeypatch, stored=True)
            one.log.abandon()
        one.append(chain)
        one.fill(chain, 3)
        check(one, chain)
        assert one.log.wait_sealed(10)
        assert len(segment_files(tmp_path)) == 3  # sealed, active, ready
    with opened(tmp_path) as one:
        check(one, chain)
        assert one.tables == chain.tables()


@pytest.mark.parametrize("stored", [False, True])
def test_a_restart_before_the_fence_settles_the_unknown_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Until a later group is durable the failed one may still count; from the restart on it is known."""
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 5)
        value = fail_append(one, chain, monkeypatch, stored=stored)
        one.log.abandon()
    with opened(tmp_path) as one:
        if stored:
            chain.commit(value)
        assert one.recovery.group == chain.last
        check(one, chain)
        one.fill(chain, 5)
    with opened(tmp_path) as one:
        check(one, chain)
        assert one.tables == chain.tables()


def test_a_restart_after_two_failures_before_the_fence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first failed group is void by the second one, which is the fence that failed but was stored."""
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 5)
        fail_append(one, chain, monkeypatch, stored=True)
        one.log.abandon()
        fence = fail_append(one, chain, monkeypatch, stored=True)
        one.log.abandon()
    chain.commit(fence)
    with opened(tmp_path) as one:
        check(one, chain)
        one.fill(chain, 100)
        check(one, chain)


@pytest.mark.parametrize("stored", [False, True])
def test_a_fence_that_failed_is_tried_again_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Whoever recovers has one fence and repeats it until it is stored, each time in a fresh segment."""
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 5)
        fail_append(one, chain, monkeypatch, stored=True)
        one.log.abandon()
        fence = fail_append(one, chain, monkeypatch, stored=stored)
        with pytest.raises(ValueError, match="numbers up to"):
            one.log.append(chain.number, fence)
        one.log.abandon()
        one.log.append(chain.number, fence)
        chain.commit(fence)
        one.append(chain)
        check(one, chain)
    with opened(tmp_path) as one:
        check(one, chain)
        one.fill(chain, 10)
        check(one, chain)


def test_abandon_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 5)
        fail_append(one, chain, monkeypatch, stored=False)
        with monkeypatch.context() as patch:
            patch.setattr(one.log._space, "take", lambda _: (_ for _ in ()).throw(append_full("full")))
            for _ in range(2):
                with pytest.raises(AppendFull):
                    one.log.abandon()
        with monkeypatch.context() as patch:
            taken = one.log._sealer.take_next()  # so that there is none ready
            patch.setattr(sealer, "create_file", lambda *_: (_ for _ in ()).throw(lmdb.DiskError("mdb_env_open")))
            if one.log._sealer._ready is None:
                with pytest.raises(AppendFull):
                    one.log.abandon()
            taken.file.close()
        one.log.abandon()
        one.append(chain)
        check(one, chain)


def test_reads_go_on_in_a_segment_that_lmdb_gave_up(tmp_path: Path) -> None:
    """LMDB refuses even readers once it could not write a meta page; the file is opened again."""
    chain = Chain()
    with opened(tmp_path) as one:
        one.fill(chain, 5)
        assert one.log._journal is not None
        segment = one.log._journal.segments[-1]
        value = chain.build([(1, [b"void"])])
        with segment.file.writing() as environment, environment.begin(write=True) as transaction:
            transaction.put(group_key(chain.number), value, append=True)
        one.log._journal._failed = True
        one.log._journal._attempted = chain.number
        one.log.abandon()
        check(one, chain)
        one.append(chain)
        check(one, chain)
