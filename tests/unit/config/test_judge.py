"""The judge tells everything at once, in agreement with what a start would refuse, and warns only of what is legal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from broker.config import Config, check_listeners, takes_uvloop
from broker.config import sources as sources_module
from broker.config.judge import Judgement, described, judge
from broker.config.sections import SECTIONS
from broker.config.sources import Problem, Source, read_sources
from broker.model.errors import BrokerError
from broker.model.profiles import Profile
from broker.model.settings import HIDDEN, Setting, check_settings, setting, settings_of

if TYPE_CHECKING:
    from pathlib import Path

EVERYTHING_WRONG = """\
[server]
tcp = "0.0.0.0:1"
lop = "x"

[limits]
payload_bytes_max = 0
channels_max = "many"

[storage]
segment_bytes = 1

[[profiles]]
pattern = "a.>"

[[profiles]]
pattern = "a..b"
durability = "sync"

[[profiles]]
durable = 1

[[profiles]]
pattern = "a.b"

[sever]
tcp = ""
"""


def judged(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **flags: object) -> Judgement:
    """Judge a file, an environment and flags, without the limit of open files."""
    path = tmp_path / "broker.toml"
    path.write_text(text, encoding="utf-8")
    return judge(str(path), environ or {}, {key.replace("__", "."): value for key, value in flags.items()})


def test_everything_is_told_at_once(tmp_path: Path) -> None:
    environ = {"BROKER_SERVER_LOOP": "tokio", "BROKER_PROFILES_0": "x"}
    judgement = judged(tmp_path, EVERYTHING_WRONG, environ, storage__nope=1, server__drain_s="x")
    assert judgement.config is None
    found = [(problem.key, problem.source and problem.source.line) for problem in judgement.problems]
    assert found == [
        ("server.lop", 3),
        ("limits.payload_bytes_max", 6),
        ("limits.channels_max", 7),
        ("storage.segment_bytes", 10),
        ("sever", 25),
        ("profiles[1].pattern", 16),
        ("profiles[1].durability", 17),
        ("profiles[2].durable", 20),
        ("profiles[2].pattern", 19),
        ("profiles", None),
        ("server.loop", None),
        ("storage.nope", None),
        ("server.drain_s", None),
        ("profiles[3].pattern", 23),
    ]
    for problem in judgement.problems:
        failure = problem.error()
        assert failure.hint
        assert failure.name == "INVALID_CONFIG"
        assert str(problem.source) in failure.detail


def test_a_problem_says_what_it_got_and_what_is_accepted(tmp_path: Path) -> None:
    (problem,) = judged(tmp_path, "\n[limits]\nhello_timeout_s = 61").problems
    assert (problem.key, problem.got, problem.expected) == ("limits.hello_timeout_s", "61.0", "0.05 to 60 seconds")
    assert problem.source == Source("file", str(tmp_path / "broker.toml"), 3)
    assert Problem("a", "unknown setting").got is None


def test_contradictions_are_told_one_by_one(tmp_path: Path) -> None:
    text = """
        limits.ping_interval_s = 60
        limits.ping_timeout_s = 50
        limits.connection_bytes_max = 65536
        limits.payload_bytes_max = 2000
        storage.segment_bytes = "1 MiB"
        profiles = [{ pattern = "a", payload_bytes_max = 3000 }, { pattern = "b", payload_bytes_max = 3001 }]
    """
    keys = [problem.key for problem in judged(tmp_path, text).problems]
    assert keys[0] == "limits.ping_timeout_s"
    mended = text.replace("ping_timeout_s = 50", "ping_timeout_s = 70").replace("65536", "1000000")
    keys = [problem.key for problem in judged(tmp_path, mended).problems]
    assert keys == ["storage.segment_bytes", "profiles[0].payload_bytes_max", "profiles[1].payload_bytes_max"]


def test_a_contradiction_is_said_where_its_key_was_set(tmp_path: Path) -> None:
    (problem,) = judged(tmp_path, "[limits]\nping_interval_s = 20", {"BROKER_LIMITS_PING_TIMEOUT_S": "10"}).problems
    assert "(environment BROKER_LIMITS_PING_TIMEOUT_S)" in problem.detail
    (problem,) = judged(tmp_path, "[limits]\nping_interval_s = 60").problems
    assert problem.detail.startswith("limits.ping_timeout_s: got 45.0 seconds, expected more than limits.ping_interval")
    text = "[[profiles]]\npattern = '.'\n[[profiles]]\npattern = 'b'\n\npayload_bytes_max = '2 MiB'\n"
    _, problem = judged(tmp_path, text).problems
    assert (problem.key, problem.source and problem.source.line) == ("profiles[1].payload_bytes_max", 6)


def test_every_contradiction_of_a_profile_is_told(tmp_path: Path) -> None:
    text = """
        [[profiles]]
        pattern = "a"
        durability = "ephemeral"
        retention_messages = 3
        keep = "latest_per_key"
        hold = "consumers"
        """
    problems = judged(tmp_path, text).problems
    assert [(problem.key, problem.source and problem.source.line) for problem in problems] == [
        ("profiles[0].hold", 7), ("profiles[0].retention_messages", 5), ("profiles[0].keep", 6),
    ]  # fmt: skip


REFUSED: list[tuple[str, dict[str, str], dict[str, object]]] = [
    (EVERYTHING_WRONG, {}, {}),
    ("nonsense", {}, {}),
    ("[limits]\nping_interval_s = 60", {}, {}),
    ("[storage]\nsegment_bytes = '1 MiB'", {}, {}),
    ("[[profiles]]\npattern = '>'\n[[profiles]]\npattern = 'a'", {}, {}),
    ("[[profiles]]\npattern = '>'\npayload_bytes_max = '2 MiB'", {}, {}),
    ("[server]\ntcp = ''", {}, {}),
    ("[server]\ndata = ''", {}, {}),
    ('[server]\ndata = "a\\u0000"', {}, {}),
    ('[server]\nunix = "a\\u0000"', {}, {}),
    ("", {"BROKER_SERVER_TCP": "nowhere"}, {}),
    ("", {}, {"server.unix": "x" * 200}),
    ("", {}, {"server.tcp": "", "server.unix": "x" * 200}),
    ("", {"BROKER_LIMITS_NOPE": "1"}, {}),
]
TAKEN: list[tuple[str, dict[str, str], dict[str, object]]] = [
    ("", {}, {}),
    ("[server]\ntcp = ''\nunix = 'u'", {}, {}),
    ("[[profiles]]\npattern = 'a'", {"BROKER_SERVER_LOOP": "asyncio"}, {"limits.channels_max": "7"}),
    ("[limits]\nping_interval_s = 60\nping_timeout_s = 61", {"BROKER_DEBUG": "1"}, {}),
]


@pytest.mark.parametrize(("text", "environ", "flags"), [*REFUSED, *TAKEN])
def test_judge_and_start_agree(text: str, environ: dict[str, str], flags: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(text, encoding="utf-8")
    judgement = judge(str(path), environ, flags)

    def start() -> Config:
        config = Config.load(path, environ, flags)
        check_listeners(config.server, config.guard)
        takes_uvloop(config.server.loop)
        return config

    if (text, environ, flags) in TAKEN:
        assert judgement.problems == ()
        assert judgement.config == start()
        return
    with pytest.raises(BrokerError) as caught:
        start()
    first = judgement.problems[0].error()
    assert (first.name, first.hint) == (caught.value.name, caught.value.hint)
    assert caught.value.detail in first.detail
    assert judgement.config is None


def test_both_listeners_are_judged(tmp_path: Path) -> None:
    problems = judged(tmp_path, "", server__tcp="1.2.3.4:5", server__unix="/" + "x" * 200).problems
    assert [(problem.key, problem.code_name) for problem in problems] == [
        ("server.tcp", "ADDRESS"),
        ("server.unix", "ADDRESS"),
    ]


def test_a_loop_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = judged(tmp_path, "[server]\nloop = 'uvloop'").problems
    assert problem.detail.startswith("server.loop: got uvloop, which is not installed (file ")
    assert problem.hint == "pip install uvloop"
    assert judged(tmp_path, "").problems == ()


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        ("[limits]\nping_timeout_s = 29.9", {}, "limits.ping_timeout_s: got 29.9 seconds, expected at least twice"),
        ("[storage]\nreserve_bytes = 0", {}, "storage.reserve_bytes: got 0 bytes"),
        ("[[profiles]]\npattern = '>'\nchannels_max = 1000001", {}, "profiles[0].channels_max: got 1000001 channels"),
        ("[[profiles]]\npattern = 'a.>'", {}, "profiles: none matches every channel"),
        ("[limits]\nconnections_max = 873", {}, "limits.connections_max: got 873 connections, limit 872 connections"),
        ("", {"BROKER_LIMIT_CHANNELS_MAX": "1"}, "environment variable BROKER_LIMIT_CHANNELS_MAX is no setting"),
    ],
)
def test_what_is_legal_and_probably_wrong(text: str, environ: dict[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(text, encoding="utf-8")
    judgement = judge(str(path), environ, descriptors_max=1000)
    assert judgement.config is not None
    (warning,) = judgement.warnings
    assert warning.detail.startswith(words)
    assert warning.hint


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (
            "",
            {"BROKER_DEBUG": "1", "BROKER_URL": "u", "BROKER_CONFIG": "c", "BROKER_PORT_4770_TCP": "tcp", "PATH": "/"},
        ),
        ("[limits]\nping_timeout_s = 30\nconnections_max = 872", {}),
        ("[[profiles]]\npattern = 'a.>'\nchannels_max = 1000000\n[[profiles]]\npattern = '>'", {}),
    ],
)
def test_no_false_alarm(text: str, environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(text, encoding="utf-8")
    assert judge(str(path), environ, descriptors_max=1000).warnings == ()


def test_each_setting_is_described_with_its_origin(tmp_path: Path) -> None:
    text = "[limits]\nchannels_max = 5\n[[profiles]]\npattern = '>'\n"
    judgement = judged(tmp_path, text, {"BROKER_LIMITS_CHANNELS_MAX": "6", "BROKER_SERVER_TCP": ""}, server__unix="u")
    assert judgement.config is not None
    rows = {row["key"]: row for row in described(judgement.config, judgement.origins)}
    assert len(rows) == sum([len(settings_of(kind)) for kind in SECTIONS.values()]) + len(settings_of(Profile))
    tcp, unix, channels, pattern = (
        rows[key] for key in ("server.tcp", "server.unix", "limits.channels_max", "profiles[0].pattern")
    )
    assert tcp["origin"] == {"kind": "environment", "name": "BROKER_SERVER_TCP", "line": None}
    assert unix["origin"] == {"kind": "flag", "name": None, "line": None}
    assert (channels["value"], channels["default"], channels["unit"]) == (6, 1_000_000, "channels")
    assert (channels["low"], channels["high"], channels["reloadable"]) == (1, (1 << 32) - 1, True)
    assert pattern["origin"] == {"kind": "file", "name": str(tmp_path / "broker.toml"), "line": 4}
    assert rows["profiles[0].durability"]["value"] == "synced"
    assert rows["limits.ping_interval_s"]["origin"]["kind"] == "default"


# -- secrets: there is none yet, so the test brings one --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vault:
    """A section with secrets."""

    SECTION: ClassVar[str] = "vault"

    token: str = field(default="", repr=False, metadata=setting("A token.", secret=True))
    digits: int = field(default=0, repr=False, metadata=setting("A number.", secret=True, low=0, high=9))
    kind: str = field(default="a", repr=False, metadata=setting("One of two.", secret=True, choices=("a", "b")))

    def __post_init__(self) -> None:
        check_settings(self)


CANARY = "c4n4ry"


def test_a_secret_is_in_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "SECTIONS", {"vault": Vault})
    path = tmp_path / "broker.toml"
    path.write_text(f"[vault]\ntoken = ['{CANARY}']\ndigits = '{CANARY}'\nkind = '{CANARY}'\n", encoding="utf-8")
    environ = {"BROKER_VAULT_DIGITS": "12345678"}
    problems = read_sources(str(path), environ, {"vault.kind": CANARY}).problems
    assert [problem.key for problem in problems] == [
        "vault.token", "vault.digits", "vault.kind", "vault.digits", "vault.kind",
    ]  # fmt: skip
    told = "".join(problem.detail for problem in problems)
    assert CANARY not in told
    assert "12345678" not in told
    assert HIDDEN in told
    assert CANARY not in repr(Vault(token=CANARY))
    with pytest.raises(BrokerError) as caught:
        Vault(kind=CANARY)
    assert CANARY not in str(caught.value)


def every_setting() -> list[tuple[Any, str, Setting]]:
    kinds: list[Any] = [*SECTIONS.values(), Profile, Vault]
    return [(kind, name, found) for kind in kinds for name, found in settings_of(kind).items()]


@pytest.mark.parametrize(("kind", "name", "found"), every_setting())
def test_a_secret_is_in_no_repr(kind: Any, name: str, found: Setting) -> None:
    assert not (found.secret and kind.__dataclass_fields__[name].repr)


def test_an_empty_secret_is_shown_as_empty() -> None:
    token = settings_of(Vault)["token"]
    assert (token.shown(""), token.shown("x")) == ("", HIDDEN)
