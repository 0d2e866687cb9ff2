"""A configuration that is written as TOML reads back as itself, comments and all."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.config import Config, ServerConfig
from broker.config.judge import judge
from broker.config.sources import Source
from broker.config.toml import section_lines, toml_of
from broker.model.errors import ConfigError
from broker.model.levels import Level
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.model.settings import settings_of
from tests.unit.config.test_judge import CANARY, Vault


def read_back(text: str) -> Config:
    """Return the configuration of a file, which the judge takes without a word."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "broker.toml"
        path.write_text(text, encoding="utf-8")
        assert judge(str(path), {}).problems == ()
        return Config.load(path, {})


@pytest.mark.parametrize("config", [Config(), Config.small()])
def test_a_file_reads_back_as_itself(config: Config) -> None:
    assert read_back(toml_of(config, {})) == config


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
patterns = st.lists(st.sampled_from([b"a", b"b.*", b"c.>", b"x.y.z", b"t-1._"]), max_size=4, unique=True)


@settings(max_examples=25, deadline=None)
@given(texts, texts.filter(bool), patterns, st.sampled_from([Level.EPHEMERAL, Level.ACCEPTED, Level.SYNCED]), st.data())
def test_any_configuration_reads_back(
    unix: str, data: str, names: list[bytes], level: Level, choose: st.DataObject
) -> None:
    limits = Limits()
    for name, found in settings_of(Limits).items():
        if found.high is not None and name.startswith(("channels", "hello", "filters")):
            low, high = found.low or 0, found.high
            numbers = st.floats(low, high) if name.endswith("_s") else st.integers(int(low), int(high))
            drawn: dict[str, Any] = {name: choose.draw(numbers)}
            limits = replace(limits, **drawn)
    profiles = Profiles([Profile(name, level, payload_bytes_max=7) for name in names])
    config = Config(ServerConfig(unix=unix, data=data), limits, profiles=profiles)
    origins = {"server.unix": Source("file", unix, 3), "limits.channels_max": Source("flag")}
    assert read_back(toml_of(config, origins)) == config


def test_every_setting_is_there_and_explained() -> None:
    text = toml_of(Config(), {"server.tcp": Source("environment", "BROKER_SERVER_TCP")})
    document = tomllib.loads(text)
    for section in (ServerConfig, Limits):
        assert set(document[section.SECTION]) == set(settings_of(section))
        for found in settings_of(section).values():
            assert found.doc[:60] in text
    assert "# 1 to 67108864 bytes; taken on SIGHUP\npayload_bytes_max = 1048576\n" in text
    assert "# text; needs a restart; set by environment BROKER_SERVER_TCP\ntcp = " in text
    assert max(map(len, text.splitlines())) <= 120


def test_an_origin_cannot_break_out_of_its_comment() -> None:
    text = toml_of(Config(), {"server.tcp": Source("file", "a\n[limits]\nchannels_max = 1\x07")})
    assert read_back(text) == Config()


def test_a_path_that_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"server\.data: got '.*\\udcff', expected text in UTF-8"):
        toml_of(Config(ServerConfig(data="/d/\udcff")), {})


def test_a_secret_is_left_out() -> None:
    text = "\n".join(section_lines(Vault(token=CANARY), "vault", {}, 100))
    assert CANARY not in text
    assert '# token = "(hidden)"' in text
    assert "token" not in tomllib.loads(text)
    assert tomllib.loads("\n".join(section_lines(Vault(), "vault", {}, 100)))["token"] == ""
