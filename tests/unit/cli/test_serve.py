"""`broker serve`: options become a configuration, and what cannot be served is refused before anything is loaded."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from broker.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from broker.config import Config


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Path | None]]:
    """Stand in for the running broker: collect what it was started with."""
    calls: list[tuple[Config, Path | None]] = []
    stand_in = ModuleType("broker.edge.serve")

    def run(config: Config, ready_file: Path | None, starter: object, open_bus: object) -> None:
        assert starter is None
        assert open_bus is not None
        calls.append((config, ready_file))

    stand_in.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "broker.edge.serve", stand_in)
    for variable in ("BROKER_CONFIG", "BROKER_SERVER_TCP", "BROKER_LIMITS_CHANNELS_MAX"):
        monkeypatch.delenv(variable, raising=False)
    return calls


def test_defaults(started: list[tuple[Config, Path | None]]) -> None:
    assert main(["serve"]) == 0
    ((config, ready_file),) = started
    assert config.server.tcp == "127.0.0.1:4770"
    assert ready_file is None


def test_every_option_reaches_the_configuration(started: list[tuple[Config, Path | None]], tmp_path: Path) -> None:
    options = {
        "--data": "d",
        "--tcp": "127.0.0.1:0",
        "--unix": "u",
        "--loop": "asyncio",
        "--ready-file": str(tmp_path / "ready"),
        "--log-level": "debug",
        "--log-format": "json",
        "--drain-s": "1.5",
        "--segment-bytes": "32MiB",
        "--exit-when-idle": "2.5",
        "--set": "limits.channels_max=7",
    }
    arguments = [part for option in options.items() for part in option]
    assert main(["serve", *arguments, "--set", "limits.payload_bytes_max = 9"]) == 0
    ((config, ready_file),) = started
    server = config.server
    assert (server.data, server.tcp, server.unix, server.loop) == ("d", "127.0.0.1:0", "u", "asyncio")
    assert (server.log_level, server.log_format, server.drain_s) == ("debug", "json", 1.5)
    assert config.storage.segment_bytes == 32 * 1024 * 1024
    assert config.server.exit_when_idle_s == 2.5
    assert (config.limits.channels_max, config.limits.payload_bytes_max) == (7, 9)
    assert ready_file == tmp_path / "ready"


@pytest.mark.parametrize("by_environment", [False, True])
def test_file_then_environment_then_options(
    by_environment: bool,
    started: list[tuple[Config, Path | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "broker.toml"
    path.write_text("[server]\ntcp = '127.0.0.1:1'\ndata = 'file'\n[limits]\nchannels_max = 1\n", encoding="utf-8")
    monkeypatch.setenv("BROKER_SERVER_TCP", "127.0.0.1:2")
    monkeypatch.setenv("BROKER_LIMITS_CHANNELS_MAX", "2")
    if by_environment:
        monkeypatch.setenv("BROKER_CONFIG", str(path))
    assert main(["serve", *([] if by_environment else ["--config", str(path)]), "--tcp", "127.0.0.1:3"]) == 0
    ((config, _),) = started
    assert (config.server.data, config.limits.channels_max, config.server.tcp) == ("file", 2, "127.0.0.1:3")
    path.write_text("[limits]\npayload_bytes_max = 5\n", encoding="utf-8")
    taken, waiting = config.reload()
    assert (taken.limits.payload_bytes_max, taken.server.tcp, waiting) == (5, "127.0.0.1:3", ("server.data",))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--tcp", "0.0.0.0:4770"], 5, "error ADDRESS (3022): TCP address: got '0.0.0.0:4770', which is not loopback"),
        (["--tcp", ""], 5, "at least one listener"),
        (["--segment-bytes", "1"], 5, "storage.segment_bytes: got 1, expected 1048576 to 4294967296 bytes"),
        (["--set", "limits.nope=1"], 5, "limits.nope: unknown setting (command line)"),
        (["--set", "nope"], 2, "expected KEY=VALUE"),
        (["--config", "/absent/broker.toml"], 2, "does not exist"),
        (["--drain-s", "x"], 2, "not a valid float"),
        (["--exit-when-idle", "-1"], 2, "is not in the range x>=0"),
        (["--starter", "3"], 2, "expected two descriptors with a comma between"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments: list[str],
    status: int,
    words: str,
    started: list[tuple[Config, Path | None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", *arguments]) == status
    assert words in capsys.readouterr().err
    assert started == []
