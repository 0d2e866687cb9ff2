"""Mending: what is sound stays, what is lost is said, nothing is deleted, and no position is used twice."""

from __future__ import annotations

import asyncio
import random
import shutil
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from broker import Broker
from broker.cli.main import main
from broker.log.archiver import ArchiveWriter, Stopped, archive_path
from broker.log.care import judge, quarantine
from broker.log.directory import read_identity, read_restored
from broker.log.dump import dump
from broker.log.log import ArchiveBy, Log
from broker.log.mend import loses
from broker.log.pages import open_pages
from broker.log.parts import GONE_LOST
from broker.log.segment import SEAL_KEY, group_key, group_number
from broker.model.errors import BrokerError, StorageCorrupt
from tests.fault.flips import flip, pick_bit
from tests.unit.log.support import segment_files
from tests.unit.log.test_verify import change_row, flip_at

if TYPE_CHECKING:
    from pathlib import Path

    from broker.log.dump import Message

CHANNELS = 5


def ignore(done: int, total: int) -> None:
    """Nobody watches."""


async def fill(path: Path) -> None:
    async with Broker.open(path, segment_bytes=30_000, reserve_bytes=0) as bus:
        for number in range(200):
            await bus.publish(f"c.{number % CHANNELS}", f"{number} ".encode() * 60)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose journal is all there: nobody archives it."""
    path, open_log = tmp_path_factory.mktemp("mend") / "data", Log.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "open", lambda path, **options: open_log(path, **options | {"archive_by": ArchiveBy.NOBODY}))
        asyncio.run(fill(path))
        # A second run seals what the first one filled.
        asyncio.run(fill(path))
    return path


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "data")


def messages(path: Path) -> list[tuple[bytes, int, bytes]]:
    found: list[Message] = []
    dump(path, lambda name: True, found.append)
    return [(each.channel, each.record.sequence, each.record.payload) for each in found]


def mended(data: Path) -> Path:
    return quarantine(data, judge(data, ignore), ignore)


def test_what_is_made_from_the_groups_is_made_once_more(data: Path) -> None:
    before, identity = messages(data), read_identity(data / "format")
    damaged = segment_files(data)[0]
    change_row(damaged, SEAL_KEY, flip_at(20))
    content = damaged.read_bytes()
    report = judge(data, ignore)
    assert report.faults
    assert not loses(report)
    aside = quarantine(data, report, ignore)
    assert judge(data, ignore).faults == []
    assert messages(data) == before
    assert (read_identity(data / "format"), read_restored(data)) == (identity, 0)
    assert (aside / "journal" / damaged.name).read_bytes() == content


def test_what_is_lost_is_said_and_its_positions_are_not_used_again(data: Path) -> None:
    before, identity = messages(data), read_identity(data / "format")
    # Group 51 is in the middle: one message of one channel.
    change_row(segment_files(data)[0], group_key(20), flip_at(400))
    aside = mended(data)
    assert aside.parent == data / "quarantine"
    assert judge(data, ignore).faults == []
    after = messages(data)
    (lost,) = set(before) - set(after)
    assert [each for each in before if each != lost] == after
    assert read_identity(data / "format") != identity

    async def live() -> None:
        async with Broker.open(data, segment_bytes=30_000, reserve_bytes=0) as bus:
            channel = lost[0].decode()
            head = (await bus.channel(channel)).head
            async with bus.subscribe(channel, start="start") as subscription:
                seen = [(await anext(aiter(subscription))).sequence for _ in range(head - 1)]
                told = [(each.at, each.run, each.reason) for each in subscription.events if each.name == "gone"]
            assert seen == [number for number in range(1, head + 1) if number != lost[1]]
            assert told == [(lost[1], 1, GONE_LOST)]
            for number in range(CHANNELS):
                epoch = (await bus.channel(f"c.{number}")).epoch
                assert (await bus.publish(f"c.{number}", b"new")).position.epoch > epoch

    asyncio.run(live())
    assert judge(data, ignore).faults == []


def test_the_end_of_the_journal_may_be_lost(data: Path) -> None:
    """Nothing behind it shows what it was; a new epoch keeps its positions from being used again."""
    before = messages(data)
    last = judge(data, ignore).last_group
    active = [path for path in segment_files(data) if path.stat().st_size > 2 * 4096][-1]
    change_row(active, group_key(last - 1), flip_at(200))
    change_row(active, group_key(last), flip_at(80))
    mended(data)
    assert judge(data, ignore).faults == []
    assert messages(data) == before[: len(messages(data))]
    assert read_restored(data) > 0


def test_flips_anywhere_are_mended_without_a_wrong_byte(original: Path, tmp_path: Path) -> None:
    before, expected = set(messages(original)), 0
    for number in range(6):
        chance, data = random.Random(number), tmp_path / str(number)
        shutil.copytree(original, data)
        file = chance.choice([path for path in segment_files(data) if path.stat().st_size > 2 * 4096])
        for _ in range(3):
            flip(file, pick_bit(chance, file.stat().st_size))
        report = judge(data, ignore)
        if report.sound:
            continue
        expected += 1
        quarantine(data, report, ignore)
        assert judge(data, ignore).faults == [], number
        assert set(messages(data)) <= before, number
        asyncio.run(fill_one(data))
        shutil.rmtree(data)
    assert expected > 2


async def fill_one(path: Path) -> None:
    async with Broker.open(path, segment_bytes=30_000, reserve_bytes=0) as bus:
        await bus.publish("c.0", b"x")


def test_nothing_is_given_up_without_a_yes(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(data), "--quarantine"]) == 0
    change_row(segment_files(data)[0], group_key(20), flip_at(400))
    content = segment_files(data)[0].read_bytes()
    assert main(["verify", str(data), "--quarantine"]) == 1
    assert "nothing was done" in capsys.readouterr().err
    assert segment_files(data)[0].read_bytes() == content
    assert not (data / "quarantine").exists()
    assert main(["verify", str(data), "--quarantine", "--yes"]) == 0
    assert "the new one: good" in capsys.readouterr().err
    assert main(["verify", str(data)]) == 0


def test_a_damaged_archive_is_not_mended(data: Path) -> None:
    (data / "archive" / "archive.mdb").write_bytes(bytes(8192))
    with pytest.raises(BrokerError, match="STORAGE_CORRUPT"):
        mended(data)
    assert sorted(entry.name for entry in data.iterdir()) == ["archive", "format", "journal", "lock"]


def archive_some(data: Path, segments: int, transactions: int) -> int:
    """Archive the first segments: whole, or only the first transactions of the slice. Answers the last ordinal."""
    paths = segment_files(data)[:segments]
    with closing(ArchiveWriter(archive_path(data), transaction_bytes=1)) as writer:
        left = transactions

        def between() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Stopped

        with suppress(Stopped):
            writer.archive(paths, between)
    return int(paths[-1].stem, 16)


def archive_rest(data: Path) -> int:
    """Have all that is stored archived; answers the number of the last group in the archive."""
    log = Log.open(data, archive_by=ArchiveBy.THREAD, reserve_bytes=0)
    try:
        log.recover()
        log.compact(ignore)
        return log.archived_group
    finally:
        log.close()


@pytest.mark.parametrize("transactions", [3, 0])
def test_the_archive_goes_on_with_what_was_mended(data: Path, transactions: int) -> None:
    """In the middle of a slice, or with archived segments that were not removed: ordinals mean what they meant."""
    before = set(messages(data))
    last = archive_some(data, 3, transactions)
    damaged = segment_files(data)[3]
    assert int(damaged.stem, 16) == last + 1
    with open_pages(damaged, lambda offset, what: None) as pages:
        numbers = [number for row in pages.rows() if (number := group_number(row.key)) is not None]
    change_row(damaged, group_key(numbers[1]), flip_at(250))
    if transactions:  # else the broker has not been started since, which removes what is archived
        with pytest.raises(StorageCorrupt, match=damaged.name):
            archive_rest(data)
    mended(data)
    assert judge(data, ignore).faults == []
    after = set(messages(data))
    assert len(before - after) == 1
    assert after < before
    assert archive_rest(data) > numbers[-1]
    assert judge(data, ignore).faults == []
    assert set(messages(data)) == after
