"""A backup is whole or none, a restored one is what was stored, and its positions never name other messages."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from broker import Broker, Position
from broker.log import backup as backup_module
from broker.log.backup import MANIFEST, Manifest, restore
from broker.log.care import backup, judge
from broker.log.directory import Directory
from broker.model.errors import BrokerError
from broker.model.levels import Level
from broker.model.profiles import Profile
from tests.fault.harness import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from broker.bus import Bus
    from broker.log.segment import Link, Segment

CHANNELS = ("c.one", "c.two", "a.three")
PROFILES = (Profile(b"a.>", durability=Level.ACCEPTED), Profile(b">"))
PIECE_BYTES = 16 * 1024


def ignore(done: int, total: int) -> None:
    """Nobody watches."""


def opening(path: Path) -> Broker:
    return Broker.open(path, profiles=PROFILES, segment_bytes=100_000, reserve_bytes=0)  # type: ignore[return-value]


async def fill(path: Path, count: int = 600) -> None:
    async with opening(path) as bus:
        await publish(bus, 0, count)


async def publish(bus: Bus, first: int, count: int) -> None:
    for number in range(first, first + count):
        bus.post(CHANNELS[number % 3], f"{number} ".encode() * 60)
        if number % 30 == 0:
            await bus.flush()
    await bus.flush()


async def read_all(path: Path) -> dict[str, list[bytes]]:
    """Return what each channel has, in its order."""
    found: dict[str, list[bytes]] = {}
    async with opening(path) as bus:
        for channel in CHANNELS:
            info = await bus.channel(channel)
            messages = found[channel] = []
            async with bus.subscribe(channel, start="start") as subscription:
                while len(messages) < info.head:
                    messages.append((await anext(aiter(subscription))).payload)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    asyncio.run(fill(tmp_path / "data"))
    return tmp_path / "data"


def test_what_was_backed_up_comes_back(data: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    manifest = backup(data, tmp_path / "backup", lambda done, total: told.append((done, total)))
    assert len(manifest.files) >= 2
    assert told[-1][0] == told[-1][1] > 0
    report = judge(tmp_path / "backup", ignore)
    assert report.faults == []
    assert report.last_group == manifest.group
    restore(tmp_path / "backup", tmp_path / "restored", ignore)
    assert judge(tmp_path / "restored", ignore).faults == []
    assert (tmp_path / "restored").stat().st_mode & 0o777 == 0o700
    assert asyncio.run(read_all(tmp_path / "restored")) == asyncio.run(read_all(data))


def test_a_backup_cannot_be_served(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup", ignore)
    with pytest.raises(BrokerError, match="STORAGE_FORMAT"):
        Directory.acquire(tmp_path / "backup")


def test_positions_after_the_backup_never_name_other_messages(data: Path, tmp_path: Path) -> None:
    """Both logs go on from the same place; what readers of the one have seen is `diverged` to the other."""
    backup(data, tmp_path / "backup", ignore)
    restore(tmp_path / "backup", tmp_path / "restored", ignore)

    async def go_on(path: Path) -> tuple[dict[str, Position], bytes]:
        async with opening(path) as bus:
            receipts = [await bus.publish(channel, b"after") for channel in CHANNELS]
            journal = (await bus.subscribe("c.>")).bus_position
            assert journal is not None
            positions = {channel: each.position for channel, each in zip(CHANNELS, receipts, strict=True)}
            return positions, journal.journal

    original, identity = asyncio.run(go_on(data))
    restored, other_identity = asyncio.run(go_on(tmp_path / "restored"))
    assert identity != other_identity
    for channel in CHANNELS:
        assert original[channel].sequence == restored[channel].sequence == 201
        assert original[channel].epoch != restored[channel].epoch

    async def resume() -> list[tuple[str, int]]:
        outcomes = []
        async with opening(tmp_path / "restored") as bus:
            for channel in CHANNELS:
                async with bus.subscribe(channel, start=original[channel]) as subscription:
                    outcomes.append((subscription.events[0].name, subscription.events[0].at))
        return outcomes

    assert asyncio.run(resume()) == [("diverged", 200)] * 3


def test_a_second_run_begins_no_further_epochs(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup", ignore)
    restore(tmp_path / "backup", tmp_path / "restored", ignore)

    async def epoch() -> int:
        async with opening(tmp_path / "restored") as bus:
            position: Position = (await bus.publish("c.one", b"x")).position
            return position.epoch

    assert asyncio.run(epoch()) == asyncio.run(epoch())


def test_a_backup_while_publishing_holds_all_up_to_its_group(tmp_path: Path) -> None:
    async def run() -> dict[str, int]:
        async with opening(tmp_path / "data") as bus:
            await publish(bus, 0, 300)
            publishing = asyncio.ensure_future(publish(bus, 300, 3000))
            await asyncio.sleep(0)
            told: list[int] = []
            await bus.backup(str(tmp_path / "backup"), lambda done, total: told.append(total))
            heads = {channel: (await bus.channel(channel)).head for channel in CHANNELS}
            await publishing
            with pytest.raises(BrokerError, match="not an empty folder"):
                await bus.backup(str(tmp_path / "backup"))
            with pytest.raises(BrokerError, match="expected an absolute one") as caught:
                await bus.backup("relative")
            assert caught.value.hint is not None
            assert "from the root on" in caught.value.hint
            return heads

    heads = asyncio.run(run())
    assert judge(tmp_path / "backup", ignore).faults == []
    restore(tmp_path / "backup", tmp_path / "restored", ignore)
    found, whole = asyncio.run(read_all(tmp_path / "restored")), asyncio.run(read_all(tmp_path / "data"))
    for channel in CHANNELS:
        assert 100 <= len(found[channel]) <= heads[channel]
        assert found[channel] == whole[channel][: len(found[channel])]


@pytest.mark.parametrize("when", ["before it is copied", "after it is copied"])
def test_what_is_archived_and_removed_under_a_backup_is_in_it(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The active segment is sealed, archived and removed while the archive, which may be large, is copied."""
    data, target = tmp_path / "data", tmp_path / "backup"
    copy_groups = backup_module._copy_groups
    removed: list[Path] = []

    async def run() -> None:
        async with opening(data) as bus:
            await publish(bus, 0, 600)
            log = bus._node._log

            def remove() -> None:
                if removed or log._archiving is None:
                    return
                removed.append(log._segments()[-1].path)
                last = log.last_group
                with log._archiving.hurry():
                    log.rotate()
                    while log.archived_group < last or removed[0].exists():
                        time.sleep(0.001)

            def copy(segment: Segment, *rest: Any) -> Link:
                if when == "before it is copied":
                    remove()
                return copy_groups(segment, *rest)

            monkeypatch.setattr(backup_module, "_copy_groups", copy)
            between = remove if when == "after it is copied" else lambda: None
            await asyncio.to_thread(log.backup, target, lambda done, total: between())

    asyncio.run(run())
    assert removed
    assert judge(target, ignore).faults == []
    restore(target, tmp_path / "restored", ignore)
    found = asyncio.run(read_all(tmp_path / "restored"))
    assert {channel: len(messages) for channel, messages in found.items()} == dict.fromkeys(CHANNELS, 200)


def test_a_changed_backup_is_found_and_not_restored(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "backup"
    manifest = backup(data, copy, ignore)
    name = min(manifest.files)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert {fault.file for fault in judge(copy, ignore).faults} == {name}
    with pytest.raises(BrokerError, match="STORAGE_CORRUPT"):
        restore(copy, tmp_path / "restored", ignore)
    assert not (tmp_path / "restored").exists()
    (copy / name).unlink()
    assert any(fault.what == "is missing" for fault in judge(copy, ignore).faults)


def test_a_changed_manifest_is_found(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup", ignore)
    path = tmp_path / "backup" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"run": 1', b'"run": 2'))
    assert [fault.file for fault in judge(tmp_path / "backup", ignore).faults] == [MANIFEST]
    with pytest.raises(BrokerError, match="STORAGE_CORRUPT"):
        restore(tmp_path / "backup", tmp_path / "restored", ignore)


@pytest.mark.parametrize(("key", "value"), [("format", 2), ("data_format", 99)])
def test_an_unknown_format_is_refused(key: str, value: int, data: Path, tmp_path: Path) -> None:
    manifest = backup(data, tmp_path / "backup", ignore)
    fields = {name: getattr(manifest, name) for name in Manifest.__slots__} | {key: value}
    (tmp_path / "backup" / MANIFEST).write_bytes(Manifest(**fields).pack())
    with pytest.raises(BrokerError, match="STORAGE_FORMAT"):
        restore(tmp_path / "backup", tmp_path / "restored", ignore)


def test_a_manifest_cannot_name_files_elsewhere(data: Path, tmp_path: Path) -> None:
    manifest = backup(data, tmp_path / "backup", ignore)
    manifest.files["../escaped"] = (0, "")
    (tmp_path / "backup" / MANIFEST).write_bytes(manifest.pack())
    with pytest.raises(BrokerError, match="which no backup has"):
        restore(tmp_path / "backup", tmp_path / "restored", ignore)


def test_what_is_there_is_not_touched(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup", ignore)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    with pytest.raises(BrokerError, match="not an empty folder"):
        backup(data, full, ignore)
    with pytest.raises(BrokerError, match="not an empty folder"):
        restore(tmp_path / "backup", full, ignore)
    assert [entry.name for entry in full.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(data: Path, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / "backup"
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(BrokerError, match="STORAGE_FULL"):
            backup(data, target, ignore)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not target.exists()
    backup(data, target, ignore)
    assert judge(target, ignore).faults == []


KILLED = """
import os, signal, sys
from pathlib import Path
from broker.log import backup as module
from broker.log.care import backup
module.PIECE_BYTES = {piece}
left = int(sys.argv[4])
def between(done, total):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
work = backup if sys.argv[1] == "backup" else module.restore
work(Path(sys.argv[2]), Path(sys.argv[3]), between)
"""


def run_killed(work: str, source: Path, target: Path, step: int) -> bool:
    """Do some work in a process that is killed at a step; tell whether it was."""
    code = KILLED.format(piece=PIECE_BYTES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "ext")])}
    command = [sys.executable, "-c", code, work, str(source), str(target), str(step)]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


@pytest.mark.parametrize("step", [1, 6])
def test_a_killed_backup_is_none(step: int, data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    assert run_killed("backup", data, target, step)
    with pytest.raises(BrokerError, match="not a whole backup"):
        restore(target, tmp_path / "restored", ignore)
    assert not judge(target, ignore).sound
    with pytest.raises(BrokerError, match="STORAGE_FORMAT"):
        Directory.acquire(target)


@pytest.mark.parametrize("step", [1, 6])
def test_a_killed_restore_does_not_open(step: int, data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup", ignore)
    target = tmp_path / "restored"
    assert run_killed("restore", tmp_path / "backup", target, step)
    with pytest.raises(BrokerError, match="STORAGE_FORMAT"):
        Directory.acquire(target)
    shutil.rmtree(target)
    restore(tmp_path / "backup", target, ignore)
    assert judge(target, ignore).faults == []


def test_a_restore_that_is_cut_short_before_its_first_file_does_not_open(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is there yet but folders: it must not pass for a new, empty broker."""
    backup(data, tmp_path / "backup", ignore)

    def stop(self: object, *rest: object) -> None:
        with pytest.raises(BrokerError, match="STORAGE_FORMAT"):
            Directory.acquire(tmp_path / "restored")
        raise KeyboardInterrupt

    monkeypatch.setattr(backup_module.Copier, "copy", stop)
    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path / "backup", tmp_path / "restored", ignore)
    assert not (tmp_path / "restored").exists()
