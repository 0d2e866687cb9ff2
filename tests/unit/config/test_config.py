"""Configuration: the last source wins, every refusal names key, value, range and source, and addresses are loopback."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from broker.config import (
    UNIX_PATH_BYTES_MAX,
    Config,
    Listeners,
    ServerConfig,
    StorageConfig,
    check_listen_address,
    check_listeners,
)
from broker.config.listeners import Guard
from broker.model.errors import ConfigError
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.model.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1024 * 1024


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a configuration file and return its path."""
    path = tmp_path / "broker.toml"

    def write(text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path: Path | None = None, environ: dict[str, str] | None = None, **flags: object) -> ConfigError:
    """Return the error of a configuration that must not load."""
    with pytest.raises(ConfigError) as caught:
        Config.load(path, environ or {}, {key.replace("__", "."): value for key, value in flags.items()})
    assert caught.value.name == "INVALID_CONFIG"
    return caught.value


def test_defaults() -> None:
    config = Config.load(environ={})
    assert config == Config()
    assert config.server.tcp == "127.0.0.1:4770"
    assert config.server.unix == ""
    assert config.storage.segment_bytes == 64 * MIB
    assert config.storage.reserve_bytes == 256 * MIB
    assert config.limits == Limits()
    assert config.profiles == Profiles()


def test_last_source_wins(write: Callable[[str], Path]) -> None:
    path = write("[limits]\npayload_bytes_max = 1000\nheaders_bytes_max = 1000\nchannels_max = 1000\n")
    environ = {"BROKER_LIMITS_HEADERS_BYTES_MAX": "2000", "BROKER_LIMITS_CHANNELS_MAX": "2000"}
    limits = Config.load(path, environ, {"limits.channels_max": 3000}).limits
    assert (limits.payload_bytes_max, limits.headers_bytes_max, limits.channels_max) == (1000, 2000, 3000)
    assert limits.filters_per_subscription_max == Limits().filters_per_subscription_max


def test_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_SERVER_TCP", "127.0.0.1:1")
    assert Config.load().server.tcp == "127.0.0.1:1"


def test_flag_of_none_was_not_given() -> None:
    assert Config.load(environ={}, flags={"server.tcp": None}) == Config()


@pytest.mark.parametrize("section", [ServerConfig, Limits, StorageConfig])
def test_every_setting_can_be_set_by_environment_and_file(section: Any, write: Callable[[str], Path]) -> None:
    """Each default, written out, is read back as itself from both: no field without a working converter."""
    for name, described in settings_of(section).items():
        default = getattr(section(), name)
        assert described.doc.endswith("."), name
        key = f"{section.SECTION}_{name}".upper()
        assert Config.load(environ={f"BROKER_{key}": str(default)}) == Config()
        text = f'"{default}"' if isinstance(default, str) else default
        assert Config.load(write(f"[{section.SECTION}]\n{name} = {text}\n"), {}) == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("1", 1), ("1024", 1024), ("3KiB", 3 * 1024), ("7 MiB", 7 * MIB), ("2GiB", 2048 * MIB)],
)
def test_sizes_as_text(text: str, expected: int, write: Callable[[str], Path]) -> None:
    assert Config.load(environ={"BROKER_STORAGE_RESERVE_BYTES": text}).storage.reserve_bytes == expected
    if text[-1] == "B":
        path = write(f'[storage]\nreserve_bytes = "{text}"\n')
        assert Config.load(path, {}).storage.reserve_bytes == expected


@pytest.mark.parametrize("text", ["", " ", "1.5", "1e3", "0x10", "1_000", "1 MB", "MiB", "one", "1 MiB ", "9" * 5_000])
def test_other_text_is_no_size(text: str) -> None:
    failure = refused(environ={"BROKER_STORAGE_RESERVE_BYTES": text})
    assert failure.detail.startswith("storage.reserve_bytes: got text ")
    assert failure.detail.endswith("(environment BROKER_STORAGE_RESERVE_BYTES)")
    assert len(failure.detail) < 250


def test_size_units_are_for_bytes_only() -> None:
    assert "expected an integer" in refused(limits__channels_max="1KiB").detail


@pytest.mark.parametrize(("text", "expected"), [("0", 0.0), ("0.25", 0.25), ("3600", 3600.0)])
def test_seconds_as_text(text: str, expected: float) -> None:
    assert Config.load(environ={"BROKER_SERVER_DRAIN_S": text}).server.drain_s == expected


@pytest.mark.parametrize("text", ["", "nan", "inf", "1e1", "-", "1s", "3600.1", "-0.1"])
def test_other_text_is_no_time(text: str) -> None:
    assert refused(environ={"BROKER_SERVER_DRAIN_S": text}).detail.startswith("server.drain_s: got ")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[limits]\npayload_bytes_max = 0", ["limits.payload_bytes_max: got 0, expected 1 to 67108864 bytes"]),
        ("[limits]\npayload_bytes_max = 67108865", ["got 67108865, expected 1 to 67108864 bytes"]),
        ("[limits]\npayload_bytes_max = '12'", ["limits.payload_bytes_max: got text '12', expected an integer"]),
        ("[limits]\nchannels_max = true", ["limits.channels_max: got a boolean True"]),
        ("[limits]\nchannels_max = 1.0", ["limits.channels_max: got float 1.0"]),
        (f"[limits]\nchannels_max = 0x{'f' * 9_000}", ["limits.channels_max: got an integer of more than 64 bits"]),
        (f"[limits]\nhello_timeout_s = 0x{'f' * 9_000}", ["an integer of more than 64 bits"]),
        ("[limits]\nhello_timeout_s = nan", ["limits.hello_timeout_s: got nan, expected 0.05 to 60 seconds"]),
        ("[limits]\nhello_timeout_s = 'x'", ["limits.hello_timeout_s: got text 'x', expected a number"]),
        ("[server]\ntcp = 4770", ["server.tcp: got int 4770, expected text"]),
        ("[server]\nloop = 'tokio'", ["server.loop: got 'tokio', expected one of auto, uvloop, asyncio"]),
        ("[server]\ndata = ''", ["server.data: got empty text"]),
        ("[server]\ntpc = ''", ["server.tpc: unknown setting", "did you mean tcp?"]),
        ("[sever]\ntcp = ''", ["sever: unknown section", "did you mean server?"]),
        ("tcp = ''", ["tcp: unknown section"]),
        ("server = 5", ["server: got int, expected a table"]),
        ("profiles = 5", ["profiles: got int, expected tables [[profiles]]"]),
        ("profiles = [5]", ["profiles: got an array, expected tables [[profiles]]"]),
        ("[[profiles]]\ndurability = 'synced'", ["profiles[0].pattern: missing"]),
        ("[[profiles]]\npattern = 'a..b'", ["profiles[0].pattern: pattern 'a..b': token 2 is empty"]),
        ("[[profiles]]\npattern = 'é'", ["profiles[0].pattern: pattern", "byte 0xc3"]),
        ("[[profiles]]\npattern = 5", ["profiles[0].pattern: got int 5"]),
        ("[[profiles]]\npattern = 'a'\ndurability = 'sync'", ["profiles[0].durability: got text 'sync'", "accepted"]),
        ("[[profiles]]\npattern = 'a'\ndurability = 'replicated'", ["profiles[0].durability: got 'replicated'"]),
        (
            "[[profiles]]\npattern = 'a'\nshard_tokens = 0",
            ["profiles[0].shard_tokens: got 0, expected 1 to 128 tokens"],
        ),
        (
            "[[profiles]]\npattern = 'a'\nretention_s = '1 week'",
            ["profiles[0].retention_s: got text '1 week', expected an integer", "seconds"],
        ),
        (
            "[[profiles]]\npattern = 'a'\nretention_s = '30'",
            ["profiles[0].retention_s: got text '30', expected an integer"],
        ),
        (
            "[[profiles]]\npattern = 'a'\nretention_bytes = '63 KiB'",
            ["profiles[0].retention_bytes: got 64512 bytes, expected 0 or at least 65536 bytes"],
        ),
        (
            "[[profiles]]\npattern = 'a'\nretention_s = 5\ndurability = 'ephemeral'",
            ["profiles[0].retention_s: got 5, expected 0: an ephemeral profile"],
        ),
        (
            "[[profiles]]\npattern = 'a'\nhold = 'consumers'\nkeep = 'latest_per_key'",
            ["profiles[0].hold: got 'consumers', expected 'none': with keep"],
        ),
        ("[[profiles]]\npattern = 'a'\ndurable = 1", ["profiles[0].durable: unknown setting", "durability"]),
        ("[[profiles]", ["not valid TOML"]),
    ],
)
def test_bad_file_is_refused_by_key_value_range_and_file(
    text: str, parts: list[str], write: Callable[[str], Path]
) -> None:
    path = write(text)
    failure = refused(path)
    for part in parts:
        assert part in f"{failure.detail} {failure.hint}"
    if "server.data" not in parts[0]:  # what a section says of itself once its parts are together has no one source
        assert str(path) in failure.detail


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent.toml").detail
    assert "directory" in refused(tmp_path).detail
    (tmp_path / "latin").write_bytes(b"a = '\xff'")
    assert "not valid TOML" in refused(tmp_path / "latin").detail


def test_unknown_variable_of_a_section_is_refused() -> None:
    failure = refused(environ={"BROKER_LIMITS_PAYLOAD_MAX": "1"})
    assert failure.detail == "limits.payload_max: unknown setting (environment BROKER_LIMITS_PAYLOAD_MAX)"
    assert failure.hint == "did you mean payload_bytes_max?"
    assert "in the file only" in refused(environ={"BROKER_PROFILES_0_PATTERN": "a"}).detail


def test_variables_of_others_are_passed_over() -> None:
    assert (
        Config.load(environ={"BROKER_DEBUG": "1", "BROKER_CONFIG": "x", "PATH": "/", "BROKER_LIMITS": "1"}) == Config()
    )


@pytest.mark.parametrize("key", ["", "server", "server.", "profiles.0", "server.tcp.x", "nope.tcp"])
def test_unknown_flag_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        Config.load(environ={}, flags={key: "1"})


def test_profiles_of_a_file(write: Callable[[str], Path]) -> None:
    path = write(
        """
        [[profiles]]
        pattern = "typing.>"
        durability = "ephemeral"
        shard_tokens = 1
        payload_bytes_max = "1 KiB"

        [[profiles]]
        pattern = ">"
        """
    )
    profiles = Config.load(path, {}).profiles
    assert list(profiles) == [
        Profile(b"typing.>", Level.EPHEMERAL, shard_tokens=1, payload_bytes_max=1024),
        Profile(b">", Level.SYNCED),
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("'5 s'", 5), ("'5s'", 5), ("'90 min'", 5_400), ("'2 h'", 7_200), ("'30 d'", 2_592_000)],
)
def test_durations_of_a_file(write: Callable[[str], Path], text: str, seconds: int) -> None:
    (profile,) = Config.load(write(f"[[profiles]]\npattern = '>'\nretention_s = {text}\n"), {}).profiles
    assert profile.retention_s == seconds


def test_segment_must_take_two_largest_groups() -> None:
    limits = Limits()
    least = 2 * (limits.group_bytes_max + limits.frame_bytes_max)
    assert Config(storage=StorageConfig(segment_bytes=least)).storage.segment_bytes == least
    with pytest.raises(ConfigError, match=rf"storage\.segment_bytes: got {least - 1} bytes, expected at least {least}"):
        Config(storage=StorageConfig(segment_bytes=least - 1))


def test_profile_stays_within_the_limit_of_payloads() -> None:
    Config(profiles=Profiles([Profile(b">", payload_bytes_max=MIB)]))
    with pytest.raises(ConfigError, match=r"profiles\[0\]\.payload_bytes_max: got 1048577 bytes, limit 1048576 bytes"):
        Config(profiles=Profiles([Profile(b">", payload_bytes_max=MIB + 1)]))


def test_small_is_legal_and_small() -> None:
    small = Config.small()
    assert small.limits == Limits.small()
    assert small.storage.segment_bytes < Config().storage.segment_bytes
    assert check_listeners(small.server) == Listeners(("127.0.0.1", 0), None)  # type: ignore[arg-type]


def test_reload_takes_what_it_can_and_names_the_rest(write: Callable[[str], Path]) -> None:
    path = write("[server]\nlog_level = 'info'\n")
    running = Config.load(path, {}, {"limits.channels_max": 5})
    write(
        "[server]\nlog_level = 'debug'\ntcp = '127.0.0.1:1'\n"
        "[limits]\npayload_bytes_max = 7\nchannels_max = 9\n"
        "[storage]\nreserve_bytes = 0\n"
        "[[profiles]]\npattern = 'a'\n"
    )
    taken, waiting = running.reload({})
    assert waiting == ("server.tcp", "storage.reserve_bytes")
    assert taken.server == replace(running.server, log_level="debug")
    assert taken.limits == replace(running.limits, payload_bytes_max=7)
    assert taken.limits.channels_max == 5, "a flag outlives the reload"
    assert taken.storage == running.storage
    assert taken.profiles == Profiles([Profile(b"a")])
    assert taken.reload({}) == (taken, waiting), "reading the same again changes nothing"


def test_reload_of_a_bad_file_leaves_the_running_configuration(write: Callable[[str], Path]) -> None:
    running = Config.load(write(""), {})
    write("[limits]\nchannels_max = 0")
    with pytest.raises(ConfigError):
        running.reload({})
    assert running == Config()


def test_reload_checks_what_is_taken_against_what_is_kept(write: Callable[[str], Path]) -> None:
    running = Config.load(write("[storage]\nsegment_bytes = '8 MiB'"), {})
    write("[storage]\nsegment_bytes = '1 GiB'\n[limits]\ngroup_bytes_max = '8 MiB'")
    with pytest.raises(ConfigError, match=r"storage\.segment_bytes"):
        running.reload({})


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("127.255.255.254:4770", ("127.255.255.254", 4770)),
        ("localhost:4770", ("127.0.0.1", 4770)),
        ("[::1]:4770", ("::1", 4770)),
    ],
)
def test_loopback_address_is_taken(address: str, expected: tuple[str, int]) -> None:
    assert check_listen_address(address) == expected


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "expected HOST:PORT"),
        ("4770", "expected HOST:PORT"),
        (":4770", "expected HOST:PORT"),
        ("127.0.0.1", "expected HOST:PORT"),
        ("127.0.0.1:", "expected HOST:PORT"),
        ("127.0.0.1:65536", "expected HOST:PORT"),
        ("127.0.0.1:-1", "expected HOST:PORT"),
        ("127.0.0.1:٣", "expected HOST:PORT"),
        ("127.0.0.1:1\n", "expected HOST:PORT"),
        ("::1:4770", "expected HOST:PORT"),
        ("[]:4770", "expected HOST:PORT"),
        ("0.0.0.0:4770", "not loopback"),
        ("[::]:4770", "not loopback"),
        ("192.168.1.1:4770", "not loopback"),
        ("128.0.0.1:4770", "not loopback"),
        ("8.8.8.8:4770", "not loopback"),
        ("example.com:4770", "expected a literal IP address"),
        ("127.1:4770", "expected a literal IP address"),
        ("[127.0.0.1.evil]:1", "expected a literal IP address"),
    ],
)
def test_other_address_is_refused(address: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_listen_address(address)
    assert caught.value.name == "ADDRESS"
    assert reason in caught.value.detail


EXPOSED = {
    (tls, access, exposed): (tls or exposed in ("without_tls", "without_both"))
    and (access or exposed in ("without_access", "without_both"))
    for tls in (False, True)
    for access in (False, True)
    for exposed in ("guarded", "without_tls", "without_access", "without_both")
}


@pytest.mark.parametrize(("tls", "access", "exposed"), EXPOSED)
def test_the_network_gets_what_is_guarded_or_named(tls: bool, access: bool, exposed: str) -> None:
    guard = Guard(tls, access)
    assert check_listeners(ServerConfig(exposed=exposed), guard).tcp == ("127.0.0.1", 4770)
    for server in (ServerConfig(tcp="0.0.0.0:1", exposed=exposed), ServerConfig(tcp="[::]:1", exposed=exposed)):
        if EXPOSED[tls, access, exposed]:
            assert check_listeners(server, guard).tcp is not None
            continue
        with pytest.raises(ConfigError, match="not loopback") as caught:
            check_listeners(server, guard)
        assert ("TLS" in caught.value.detail) is (not tls and exposed in ("guarded", "without_access"))
        assert ("access file" in caught.value.detail) is (not access and exposed in ("guarded", "without_tls"))


def test_listeners() -> None:
    assert check_listeners(ServerConfig(unix="/run/broker")) == (("127.0.0.1", 4770), "/run/broker", None)
    assert check_listeners(ServerConfig(tcp="", unix="/run/broker")) == (None, "/run/broker", None)
    with pytest.raises(ConfigError, match="at least one listener"):
        check_listeners(ServerConfig(tcp=""))


def test_unix_path_within_what_a_socket_takes() -> None:
    longest = "/" + "x" * (UNIX_PATH_BYTES_MAX - 1)
    assert check_listeners(ServerConfig(unix=longest)).unix == longest
    for path in (longest + "x", "/a\0b", "/" + "é" * (UNIX_PATH_BYTES_MAX // 2 + 1)):
        assert len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX or "\0" in path
        with pytest.raises(ConfigError, match="ADDRESS"):
            check_listeners(ServerConfig(unix=path))
