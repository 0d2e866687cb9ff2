"""What an opener of a shared directory asks for: as a file, and against what a server has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from broker.config import Config
from broker.edge.shared import settings_in_force
from broker.model.errors import BrokerError
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.profiles import Profile
from broker.shared.settings import Asked, read_server

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = Asked.of((), None, {})
LIMITS = Limits(payload_bytes_max=1000, hello_timeout_s=0.5)
PROFILES = (Profile(b"typing.>", durability=Level.EPHEMERAL), Profile(b">", keep="latest_per_key"))
SOMETHING = Asked.of(PROFILES, LIMITS, {"reserve_bytes": 0})


def loaded(asked: Asked, tmp_path: Path) -> Config:
    path = tmp_path / "shared.toml"
    path.write_text(asked.toml())
    return Config.load(path, environ={})


def test_only_what_is_not_the_default_is_asked_for() -> None:
    assert not NOTHING
    assert not Asked.of((), Limits(), {})
    assert SOMETHING.sections == {
        "limits": {"payload_bytes_max": 1000, "hello_timeout_s": 0.5},
        "storage": {"reserve_bytes": 0},
    }


def test_the_file_reads_back_as_what_was_asked_for(tmp_path: Path) -> None:
    config = loaded(SOMETHING, tmp_path)
    assert config.limits == LIMITS
    assert tuple(config.profiles) == PROFILES
    assert config.storage.reserve_bytes == 0
    assert loaded(NOTHING, tmp_path) == Config()


def test_a_server_that_was_started_so_does_not_differ(tmp_path: Path) -> None:
    has = settings_in_force(loaded(SOMETHING, tmp_path))
    assert SOMETHING.difference(has) is None
    assert NOTHING.difference(has) is None
    assert NOTHING.difference({}) is None


@pytest.mark.parametrize(
    ("asked", "difference"),
    [
        (Asked.of((), Limits(channels_max=5), {}), "limits.channels_max: got 1000000 of the server, expected 5"),
        (Asked.of((), None, {"reserve_bytes": 1}), "storage.reserve_bytes: got 0 of the server, expected 1"),
        (Asked.of(PROFILES[:1], None, {}), "profiles: got 2 of the server, expected 1"),
        (
            Asked.of((PROFILES[0], Profile(b">")), None, {}),
            "profiles[1].keep: got 'latest_per_key' of the server, expected 'all'",
        ),
    ],
)
def test_a_difference_is_told_by_its_key(asked: Asked, difference: str, tmp_path: Path) -> None:
    assert asked.difference(settings_in_force(loaded(SOMETHING, tmp_path))) == difference


def test_a_server_that_lacks_a_setting_differs() -> None:
    """It is of another version, and has no such thing."""
    assert SOMETHING.difference({}) == "limits.payload_bytes_max: got None of the server, expected 1000"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (((), None, {"segment_bytes": 1}), "storage.segment_bytes"),
        (((), None, {"segment_bytes": 2 << 20}), "storage.segment_bytes"),
        (((Profile(b">"), Profile(b"a")), None, {}), r"profiles\[1\]"),
    ],
)
def test_what_no_server_could_have_is_refused_at_once(arguments: Any, key: str) -> None:
    with pytest.raises(BrokerError, match=f"INVALID_CONFIG .*{key}"):
        Asked.of(*arguments)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "\xff"])
def test_what_a_server_wrote_may_be_anything(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "server.json").write_text(text, encoding="latin-1")
    assert read_server(tmp_path) == {}
