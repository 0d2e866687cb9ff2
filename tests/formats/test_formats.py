"""Every format that was ever written still opens, says what it said, and goes on; a newer one is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from broker import Broker
from broker.log.backup import restore
from broker.log.care import backup, judge
from broker.log.directory import Directory
from broker.model.errors import BrokerError
from tests.formats.make import DATA, PRODUCER, PROFILES, SEGMENT_BYTES, messages, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMATS = sorted(file.name.removesuffix(".tar.gz") for file in DATA.glob("*.tar.gz"))
CHANNELS = ("s.0", "s.1", "s.2", "a.one", "s.run.1", "s.run.2")


@pytest.fixture(params=FORMATS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with `data`, a directory of an old format, and `expected.jsonl`."""
    unpack(DATA / f"{request.param}.tar.gz", tmp_path)
    for folder in (tmp_path / "data", tmp_path / "data" / "journal"):
        folder.chmod(0o700)
    return tmp_path


def expected(golden: Path) -> list[str]:
    return (golden / "expected.jsonl").read_text(encoding="utf-8").splitlines()


def ignore(done: int, total: int) -> None:
    """Nobody watches."""


def test_there_are_files_of_formats() -> None:
    assert "format1" in FORMATS


def test_an_old_format_is_good_and_says_what_it_said(golden: Path) -> None:
    assert judge(golden / "data", ignore).faults == []
    assert messages(golden / "data") == expected(golden)


def lines_of(golden: Path, channel: str) -> Iterator[str]:
    return (line for line in expected(golden) if f'"channel": "{channel}"' in line)


def test_an_old_format_is_served_and_goes_on(golden: Path) -> None:
    async def live() -> None:
        async with Broker.open(
            golden / "data", profiles=PROFILES, segment_bytes=SEGMENT_BYTES, reserve_bytes=0, producer=PRODUCER
        ) as bus:
            # Numbers of ephemeral messages behind the last stored one are not stored.
            assert 2 * 12 * 4 - 2 <= bus.highest <= 2 * 12 * 4
            for channel in CHANNELS:
                known = list(lines_of(golden, channel))
                assert (await bus.channel(channel)).head == len(known) > 0
                async with bus.subscribe(channel, start="start") as subscription:
                    for line in known:
                        message = await anext(aiter(subscription))
                        assert f'"sequence": {message.sequence}, "epoch": {message.epoch}' in line
                receipt = await bus.publish(channel, b"new")
                assert receipt.position.sequence == len(known) + 1

    asyncio.run(live())
    assert judge(golden / "data", ignore).faults == []


def test_a_backup_of_an_old_format_is_restored(golden: Path) -> None:
    backup(golden / "data", golden / "backup", ignore)
    restore(golden / "backup", golden / "restored", ignore)
    assert messages(golden / "restored") == expected(golden)


def test_a_newer_format_is_refused(golden: Path) -> None:
    path = golden / "data" / "format"
    path.write_text("broker data 99\n" + path.read_text().partition("\n")[2])
    with pytest.raises(BrokerError, match="got data format 99"):
        Directory.acquire(golden / "data")
    assert [fault.file for fault in judge(golden / "data", ignore).faults] == ["format"]
