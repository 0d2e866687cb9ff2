"""Finding a shared directory's server, starting it, and what happens when it is gone, stuck, or somebody else's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from broker import Broker, BrokerError, Level
from broker.edge.shared import LOG_BYTES_MAX
from broker.model.limits import Limits
from broker.model.profiles import Profile
from broker.shared import starting
from broker.shared.place import Place
from tests.contract.homes import take
from tests.shared.conftest import environment
from tests.shared.processes import kill, server_of, serving, wait_until_dead, wait_until_nobody_serves
from tests.sizes import size

if TYPE_CHECKING:
    from broker.shared.bus import SharedBus

ROOT = Path(__file__).parents[2]
STARTERS = size("BROKER_STARTERS", 6, 50)


async def refused(path: Path, **options: Any) -> BrokerError:
    """Return why a directory cannot be shared."""
    with pytest.raises(BrokerError) as caught:
        await Broker.open(path, shared=True, **options)
    assert caught.value.hint
    return caught.value


async def pid_of(bus: SharedBus) -> int:
    pid: int = (await bus.stats())["pid"]
    return pid


# -- start, find, end --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real_start")
async def test_the_first_starts_a_server_that_others_find_and_that_ends_by_itself(data: Path) -> None:
    async with Broker.open(data, shared=True, idle_s=0.3) as first, Broker.open(data, shared=True) as second:
        server = server_of(data)
        assert await pid_of(first) == await pid_of(second) == server.pid
        async with first.subscribe("chat.*") as subscription:
            await second.publish("chat.one", b"hello")
            assert [message.payload for message in await take(subscription, 1)] == [b"hello"]
        # Nobody's child, without a terminal, in a session of its own, closed to others.
        assert server.ppid() != os.getpid()
        assert os.getsid(server.pid) not in (os.getsid(0), server.pid)
        assert server.terminal() is None
        found = modes(data)
        assert {found.pop(name) for name in ("data", "journal", "archive")} == {0o700}
        assert found.keys() > {"broker.sock", "starting", "server.log", "server.json"}
        assert set(found.values()) == {0o600}, found
    await asyncio.to_thread(wait_until_nobody_serves, data)
    assert not (data / "broker.sock").exists()
    async with Broker.open(data) as embedded:
        assert (await embedded.channel("chat.one")).head == 1


def test_a_crowd_of_starters_starts_one_server(data: Path) -> None:
    command = [sys.executable, "-m", "tests.shared.crowd", str(data), str(STARTERS)]
    said = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True, timeout=100)
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert not [line for line in lines if "error" in line]
    assert sorted(line["sequence"] for line in lines) == list(range(1, STARTERS + 1))
    assert len({line["server"] for line in lines}) == 1
    assert (data / "server.log").read_text().count(" ready ") == 1
    wait_until_nobody_serves(data)


def make(path: Path) -> None:
    """Make a directory as a user would who is careful."""
    path.mkdir(mode=0o700)


def is_there(path: Path) -> bool:
    return os.path.lexists(path)


def modes(path: Path) -> dict[str, int]:
    """Return the modes of a directory and all that is in it, by name."""
    return {entry.name: stat.S_IMODE(entry.lstat().st_mode) for entry in [path, *path.rglob("*")]}


@pytest.mark.parametrize("how", ["killed", "told to end"])
async def test_when_the_server_dies_the_next_call_starts_another(data: Path, how: str) -> None:
    """What was unanswered is stored once, and a subscription goes on where it was."""
    async with (
        Broker.open(data, shared=True, idle_s=1) as bus,
        Broker.open(data, shared=True) as reader,
        reader.subscribe("s.>") as subscription,
    ):
        await bus.publish("s.one", b"0")
        server = server_of(data)
        if how == "told to end":
            server.terminate()
        else:
            server.kill()
        begun = time.monotonic()
        for number in range(1, 20):
            bus.post("s.one", b"%d" % number)
        await bus.flush()
        print(f"first answer after {time.monotonic() - begun:.3f} s")
        messages = await take(subscription, 20)
        assert [message.payload for message in messages] == [b"%d" % number for number in range(20)]
        assert [message.sequence for message in messages] == list(range(1, 21))
        # One that was told to end may have taken all of that before it heard of it.
        await asyncio.to_thread(wait_until_dead, server)
        assert await pid_of(bus) == await pid_of(reader) == server_of(data).pid != server.pid


async def test_a_server_that_is_ending_is_waited_for(data: Path) -> None:
    """Its socket is gone and the data still its own: who opens then gets the next one."""
    bus = await Broker.open(data, shared=True, idle_s=1)
    server = server_of(data)
    (data / "broker.sock").unlink()
    server.suspend()  # between the two, for as long as we like
    await bus.close(timeout_s=0.1)
    opening = asyncio.ensure_future(Broker.open(data, shared=True, connect_timeout_s=30)._open())
    await asyncio.sleep(1.0)
    assert not opening.done()
    kill(server)
    async with await opening as after:
        assert await pid_of(after) != server.pid


# -- somebody is in the way --------------------------------------------------------------------------------------------


async def test_a_stopped_server_is_named_and_left_alone(data: Path) -> None:
    async with Broker.open(data, shared=True, idle_s=1) as bus:
        server = server_of(data)
        server.suspend()
        failure = await refused(data, connect_timeout_s=0.3)
        assert failure.name == "TIMEOUT"
        assert f"process {server.pid}, is stopped and does not answer: waited 0.3 s" in failure.detail
        assert f"kill -CONT {server.pid}" in failure.hint
        assert server_of(data) == server, "nobody else is started, and nothing of it is removed"
        server.resume()
        assert (await bus.publish("s.one", b"")).sequence == 1
        async with Broker.open(data, shared=True) as other:
            assert await pid_of(other) == server.pid


async def test_an_embedded_owner_is_named(data: Path) -> None:
    async with Broker.open(data):
        begun = time.monotonic()
        first, second = await asyncio.gather(refused(data), refused(data))
        assert {first.name, second.name} == {"STORAGE_IN_USE"}
        assert first.detail == second.detail == f"{data}: held by process {os.getpid()} on {socket.gethostname()}"
        # One server was started in vain, and both were told, which it does before it says so in its log.
        await asyncio.to_thread(wait_until_nobody_serves, data)
        assert (data / "server.log").read_text().count("STORAGE_IN_USE (4004)") == 1
        print(f"told after {time.monotonic() - begun:.3f} s")
    async with Broker.open(data, shared=True, idle_s=0.2) as bus:
        await bus.publish("s.one", b"")


async def test_a_server_keeps_an_embedded_opener_out(data: Path) -> None:
    async with Broker.open(data, shared=True, idle_s=0.2):
        with pytest.raises(BrokerError, match=r"STORAGE_IN_USE .* held by process \d+ on .*, a shared server"):
            await Broker.open(data)


async def test_a_server_that_was_started_by_hand_is_found(data: Path) -> None:
    """Whoever listens at the directory's socket serves it."""
    command = [sys.executable, "-m", "broker", "serve", "--data", str(data), "--tcp", "127.0.0.1:0"]
    make(data)
    process = await asyncio.create_subprocess_exec(
        *command, "--unix", str(data / "broker.sock"), env=environment(), cwd=data, stderr=subprocess.DEVNULL
    )
    try:
        while not is_there(data / "broker.sock"):
            assert process.returncode is None
            await asyncio.sleep(0.01)
        async with Broker.open(data, shared=True) as bus:
            assert await pid_of(bus) == process.pid
    finally:
        process.kill()
        await process.wait()


async def test_a_server_of_another_protocol_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Broker.open(data, shared=True, idle_s=0.2):
        monkeypatch.setattr("broker.wire.control.VERSION", 127)
        failure = await refused(data)
    assert failure.name == "VERSION"
    assert f"{data}: its server, process {server_of(data).pid}, broker " in failure.detail
    assert "got versions [127], supported [1]" in failure.detail
    assert "kill " in failure.hint


# -- settings ----------------------------------------------------------------------------------------------------------

TYPING = Profile(b"typing.>", durability=Level.EPHEMERAL)
SMALL = Limits(payload_bytes_max=1024)


async def test_the_settings_are_whose_who_starts_and_others_are_told(data: Path) -> None:
    async with Broker.open(data, shared=True, profiles=[TYPING, Profile(b">")], limits=SMALL, idle_s=1) as bus:
        assert (await bus.publish("typing.a", b"")).level is Level.EPHEMERAL
        async with Broker.open(data, shared=True) as whatever:
            assert (await whatever.publish("typing.a", b"")).level is Level.EPHEMERAL
        async with Broker.open(data, shared=True, limits=SMALL) as same:
            with pytest.raises(BrokerError, match="PAYLOAD_TOO_LARGE"):
                await same.publish("x", bytes(1025))
        failure = await refused(data, limits=Limits(payload_bytes_max=2048))
        assert failure.name == "INVALID_CONFIG"
        assert "limits.payload_bytes_max: got 1024 of the server, expected 2048" in failure.detail
        failure = await refused(data, profiles=[Profile(b"typing.>"), Profile(b">")])
        assert "profiles[0].durability: got 'ephemeral' of the server, expected 'synced'" in failure.detail
        failure = await refused(data, profiles=[Profile(b">")])
        assert "profiles: got 2 of the server, expected 1" in failure.detail
        failure = await refused(data, segment_bytes=8 << 20)
        assert f"storage.segment_bytes: got {64 << 20} of the server, expected {8 << 20}" in failure.detail
        # Who asked for nothing restarts it as it was, and who asked for something is served as before.
        async with Broker.open(data, shared=True) as restarter:
            server_of(data).kill()
            assert (await restarter.publish("typing.a", b"")).level is Level.EPHEMERAL
            assert (await bus.publish("typing.a", b"")).level is Level.EPHEMERAL


async def test_a_mistake_in_the_file_delays_a_restart_and_ends_no_bus(data: Path) -> None:
    async with Broker.open(data, shared=True, idle_s=1) as bus:
        await bus.publish("x", b"before")
        (data / "broker.toml").write_text("[limits]\nchannels_max = 0\n")
        kill(server_of(data))
        publication = bus.publish("x", b"after")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(publication), 0.5)
        assert "limits.channels_max: got 0" in (data / "server.log").read_text()
        (data / "broker.toml").write_text("[limits]\nchannels_max = 5\n")
        assert (await publication).sequence == 2


async def test_the_file_in_the_directory_goes_before_what_openers_ask_for(data: Path) -> None:
    make(data)
    (data / "broker.toml").write_text('[[profiles]]\npattern = ">"\ndurability = "accepted"\n')
    failure = await refused(data, profiles=[TYPING, Profile(b">")], idle_s=1)
    assert "profiles: got 1 of the server, expected 2" in failure.detail
    async with Broker.open(data, shared=True) as bus:
        assert (await bus.publish("x", b"")).level is Level.ACCEPTED
    assert not (data / "shared.toml").exists()


# -- a start that fails ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real_start")
async def test_a_server_that_dies_is_told_with_its_last_words(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "PROGRAM", "broker.no_such_module")
    failure = await refused(data)
    assert failure.name == "SERVER_FAILED"
    assert failure.detail.endswith("No module named broker.no_such_module")
    monkeypatch.undo()
    (data / "broker.toml").write_text("[limits]\nnonsense = 1\n")
    failure = await refused(data)
    assert failure.name == "INVALID_CONFIG"
    assert f"limits.nonsense: unknown setting (file {data}/broker.toml:2)" in failure.detail
    (data / "broker.toml").unlink()
    (data / "format").mkdir()
    assert (await refused(data)).name in ("STORAGE_FAILED", "STORAGE_FORMAT")


@pytest.mark.usefixtures("real_start")
async def test_servers_that_fail_do_not_fill_the_disk(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(data)
    (data / "server.log").write_bytes(b"old line\n" * (LOG_BYTES_MAX // 9 + 1))
    monkeypatch.setattr(starting, "PROGRAM", "broker.no_such_module")
    failure = await refused(data)
    assert failure.detail.endswith("No module named broker.no_such_module"), "and of what is old nothing is told"
    assert "old line" not in failure.detail
    assert (data / "server.log").stat().st_size < LOG_BYTES_MAX


@pytest.mark.usefixtures("real_start")
async def test_a_server_that_is_killed_while_it_starts_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "PROGRAM", "tests.shared.dying")
    failure = await refused(data)
    assert failure.name == "SERVER_FAILED"
    assert failure.detail.endswith("its server ended while it was starting; the last that it said: about to die")


@pytest.mark.usefixtures("real_start")
async def test_the_environment_of_the_opener_has_no_say(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sys, "executable", "/usr/sbin/some-embedding-program")
    monkeypatch.setattr(sys, "exec_prefix", "/nonexistent")
    failure = await refused(data)
    assert failure.name == "SERVER_FAILED"
    assert "got '/usr/sbin/some-embedding-program' as sys.executable, expected a Python" in failure.detail
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.chdir("/")
    # Settings in the environment may be meant for another server, and differ from one opener to the next.
    monkeypatch.setenv("BROKER_SERVER_TCP", "0.0.0.0:1")
    monkeypatch.setenv("BROKER_LIMITS_PAYLOAD_BYTES_MAX", "7")
    async with Broker.open(data, shared=True, idle_s=0.2) as bus:
        await bus.publish("x", bytes(100))


async def test_what_is_no_shared_directory_is_refused_untouched(data: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "diary"
    foreign.mkdir()
    (foreign / "monday").write_text("dear")
    assert (await refused(foreign)).name == "STORAGE_FORMAT"
    assert [entry.name for entry in foreign.iterdir()] == ["monday"]
    assert (await refused(foreign / "monday")).name == "STORAGE_FORMAT"
    with pytest.raises(BrokerError, match="thread: got True with shared=True"):
        Broker.open(data, shared=True, thread=True)
    with pytest.raises(BrokerError, match="idle_s: got -1, expected at least 0 seconds"):
        Broker.open(data, shared=True, idle_s=-1)


async def test_a_directory_that_cannot_be_written_is_told(data: Path) -> None:
    """As nobody in particular, since root may write anywhere; `/proc` takes files from nobody."""
    failure = await refused(Path("/proc/broker-data"))
    assert failure.name == "STORAGE_FAILED"
    assert "/proc/broker-data" in failure.detail


# -- places ------------------------------------------------------------------------------------------------------------


async def test_a_long_path_has_its_socket_elsewhere(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Openers with other environments, and by other names of the directory, find it too."""
    runtime = data.parent / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    long = data / ("x" * 100) / "data"
    async with Broker.open(long, shared=True, idle_s=0.3) as bus:
        (found,) = runtime.rglob("*.sock")
        assert found.parent == runtime / f"broker-{os.geteuid()}"
        assert os.readlink(long / "broker.sock") == str(found)
        assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(found.stat().st_mode) == 0o600
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        (data / "short").symlink_to(long)
        monkeypatch.chdir(data)
        async with Broker.open("short", shared=True) as other:
            assert await pid_of(other) == await pid_of(bus)
    await asyncio.to_thread(wait_until_nobody_serves, data)
    async with Broker.open(long, shared=True, idle_s=0.3):
        pass


async def test_a_folder_for_sockets_that_others_may_change_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = data.parent / "run"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    long, trap = data / ("x" * 100), runtime / f"broker-{os.geteuid()}"
    trap.symlink_to(tempfile.gettempdir())
    failure = await refused(long)
    assert failure.name == "ADDRESS"
    assert f"{trap}: got a symbolic link, expected a folder of mode 0700" in failure.detail
    trap.unlink()
    trap.mkdir(mode=0o700)
    trap.chmod(0o770)
    assert "got a folder of mode 0770" in (await refused(long)).detail
    trap.rmdir()
    trap.write_text("")
    assert "got no folder" in (await refused(long)).detail
    assert serving(data) == []


async def test_a_link_in_the_place_of_our_files_is_not_followed(data: Path, tmp_path: Path) -> None:
    make(data)
    (data / "server.log").symlink_to(tmp_path / "victim")
    failure = await refused(data)
    assert failure.name == "STORAGE_FAILED"
    assert not (tmp_path / "victim").exists()


async def test_a_strangers_socket_is_not_talked_to(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever could put a socket there runs as somebody else: here, we do."""
    async with Broker.open(data, shared=True, idle_s=0.2):
        place, uid = Place(data), os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        with pytest.raises(BrokerError, match=f"got a server of user {uid}, expected one of this process's user"):
            place.dial()
        with pytest.raises(BrokerError, match=f"got a directory of user {uid}"):
            place.check_owner()
        monkeypatch.undo()


async def test_the_umask_of_the_opener_has_no_say(data: Path) -> None:
    before = os.umask(0o777)
    try:
        async with Broker.open(data, shared=True, idle_s=0.2) as bus:
            await bus.publish("x", b"")
    finally:
        os.umask(before)
    found = modes(data)
    assert {found.pop(name) for name in ("data", "journal", "archive")} == {0o700}
    assert set(found.values()) == {0o600}, found


@pytest.mark.parametrize("stale", ["socket", "file", "everything"])
async def test_what_is_stale_is_in_nobodys_way(data: Path, stale: str) -> None:
    make(data)
    if stale == "file":
        (data / "broker.sock").write_text("")
        failure = await refused(data)
        assert (failure.name, "there is a file that is no socket" in failure.detail) == ("ADDRESS", True)
        (data / "broker.sock").unlink()
    else:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(data / "broker.sock"))
    if stale == "everything":
        for name in ("starting", "server.json", "server.log", "lock"):
            (data / name).write_text('{"pid": 1, "at_ns": 99999999999999999999, "error": {}}')
    async with Broker.open(data, shared=True, idle_s=0.2) as bus:
        await bus.publish("x", b"")


async def test_a_socket_that_was_removed_is_there_again(data: Path) -> None:
    async with Broker.open(data, shared=True, idle_s=0.5) as bus:
        (data / "broker.sock").unlink()
        async with Broker.open(data, shared=True) as other:
            assert await pid_of(other) == await pid_of(bus)
        assert "socket_restored" in (data / "server.log").read_text()


async def test_a_server_ends_when_its_directory_is_removed(data: Path) -> None:
    bus = await Broker.open(data, shared=True)
    server = server_of(data)
    os.rename(data, data.parent / "elsewhere")
    await asyncio.to_thread(wait_until_dead, server)
    await bus.close(timeout_s=0.1)


def test_the_start_of_a_server_leaves_no_zombie(data: Path) -> None:
    async def open_and_close() -> None:
        async with Broker.open(data, shared=True, idle_s=0.2):
            assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []

    handled = signal.getsignal(signal.SIGCHLD)
    asyncio.run(open_and_close())
    assert signal.getsignal(signal.SIGCHLD) is handled
