"""The access file: the example of its documentation, every mistake by its key, and who may own and write it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import broker.access
from broker.access.access_file import FILE_BYTES_MAX, read_access_file
from broker.access.identity import Verb
from broker.access.static import hash_of
from broker.model.errors import BrokerError, ConfigError
from tests.unit.access.people import JWT, ROLES, Folder, key_of

if TYPE_CHECKING:
    from collections.abc import Callable

GUIDE = (Path(broker.access.__file__).parent / "access_file.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
HASH = hash_of("a secret of somebody")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_the_example(folder: Folder) -> None:
    rules = read_access_file(folder.write(EXAMPLE)).rules
    assert list(rules.roles) == ["member", "worker", "operator", "visitor"]
    assert rules.keys is not None
    assert len(rules.keys) == 1  # the other one is for an algorithm that the example has not
    assert rules.signed_roles == ("member",)
    assert rules.listed["nightly"].person.user == "backup"
    assert rules.anonymous == ("visitor",)
    assert rules.revoked.users == {"mallory"}
    nobody = rules.of_nobody("")
    root = rules.of_peer(0, 0, "")
    worker = rules.of_certificate(["x", "worker-1.example.com"], "")
    assert nobody is not None
    assert nobody.grants is not None
    assert nobody.grants.filters(Verb.SUBSCRIBE) == (b"news.public.>",)
    assert (root and root.user, worker and worker.user) == ("root", "worker-1")
    assert rules.of_peer(1, 0, "") is None
    assert rules.of_certificate(["worker-2.example.com"], "") is None


def test_the_guide_names_every_verb_and_key() -> None:
    for verb in Verb:
        assert f"| `{verb}` |" in GUIDE


def test_an_empty_file_lets_nobody_in(folder: Folder) -> None:
    rules = read_access_file(folder.write("")).rules
    assert rules.of_nobody("") is None
    assert rules.of_peer(0, 0, "") is None
    assert rules.keys is None


TOKEN = f'[tokens.a]\nhash = "{HASH}"\nuser = "a"\nroles = ["reader"]\n'
MISTAKES: dict[str, tuple[str, str]] = {
    "no TOML": ("[", "not TOML"),
    "deep": ("a = " + "[" * 100_000, "not TOML"),
    "unknown section": ("[role.a]\n", "role: unknown key"),
    "deny": (ROLES + '[deny]\nsubscribe = [">"]\n', "deny: unknown key"),
    "roles is a list": ("roles = []", "roles: got list, expected tables, [roles.NAME]"),
    "a role is text": ('[roles]\na = "b"', "roles.a: got str, expected a table"),
    "a role with a space": ('[roles."a b"]\n', "got role 'a b'"),
    "unknown verb": ('[roles.a]\nread = ["x"]\n', "roles.a.read: unknown key"),
    "filters are text": ('[roles.a]\npublish = "x"\n', "roles.a.publish: got str, expected a list of texts"),
    "filters are numbers": ("[roles.a]\npublish = [1]\n", "roles.a.publish: got a list of something else"),
    "no filter": ('[roles.a]\npublish = ["a..b"]\n', "roles.a.publish: pattern 'a..b'"),
    "reserved": ('[roles.a]\nsubscribe = ["$own.>"]\n', "names that begin with $ are reserved"),
    "no placeholder": ('[roles.a]\nsubscribe = ["user.{}.>"]\n', "expected placeholders"),
    "jwt without issuer": (JWT.replace("issuer", "# issuer"), "jwt.issuer: got nothing, expected text"),
    "jwt with an empty audience": (JWT.replace('"broker"', '""'), "jwt.audience: got empty text"),
    "jwt with no algorithm": (re.sub(r"algorithms = .*", "algorithms = []", JWT), "jwt.algorithms: got none"),
    "jwt with none": (JWT.replace('"HS256"', '"none"'), "jwt.algorithms: got 'none'"),
    "jwt with ES256": (JWT.replace('"HS256"', '"ES256"'), "jwt.algorithms: got 'ES256'"),
    "jwt without keys": (JWT.replace("keys.json", "other.json"), "other.json: cannot be read"),
    "jwt with half a path": (JWT.replace("keys.json", "keys\\u0000"), "jwt.keys: got 'keys"),
    "jwt with leeway": (JWT.replace("leeway_s = 5", "leeway_s = 61"), "jwt.leeway_s: got 61, expected 0 to 60 seconds"),
    "jwt with no number": (JWT.replace("leeway_s = 5", "leeway_s = nan"), "jwt.leeway_s: got nan"),
    "jwt with a role that is none": (JWT + 'roles = ["x"]', "jwt.roles: got 'x', which is no role"),
    "token with an id of two": (ROLES + TOKEN.replace("[tokens.a]", '[tokens."a.b"]'), "got id 'a.b'"),
    "token without hash": (ROLES + TOKEN.replace("hash", "# hash"), "tokens.a.hash: got nothing"),
    "token with its secret": (ROLES + TOKEN.replace(HASH, "a secret"), "tokens.a.hash: got text that is no argon2id"),
    "token without user": (ROLES + TOKEN.replace('user = "a"', ""), "tokens.a.user: got nothing"),
    "token of two lines": (ROLES + TOKEN.replace('user = "a"', 'user = "a\\nb"'), "tokens.a.user: got 'a\\nb'"),
    "token without roles": (ROLES + TOKEN.replace('["reader"]', "[]"), "tokens.a.roles: got none"),
    "token with a role that is none": (ROLES + TOKEN.replace('"reader"', '"x"'), "tokens.a.roles: got 'x'"),
    "token that ends at a date": (ROLES + TOKEN + "expires = 2037-01-31", "tokens.a.expires: got date, expected"),
    "token that ends somewhere": (ROLES + TOKEN + "expires = 2037-01-31T12:00:00", "tokens.a.expires: got datetime"),
    "token with a misspelt key": (ROLES + TOKEN + "expire = 1", "tokens.a.expire: unknown key"),
    "peer of nothing": (ROLES + '[[peers]]\nuser = "a"\nroles = ["reader"]', "peers[0]: got no uid and no gid"),
    "peer of -1": (ROLES + '[[peers]]\nuid = -1\nuser = "a"\nroles = ["reader"]', "peers[0].uid: got -1"),
    "peer of nobody": (ROLES + "[[peers]]\nuid = 4294967295", "peers[0].uid: got 4294967295"),
    "peer of true": (ROLES + "[[peers]]\nuid = true", "peers[0].uid: got True"),
    "peer of an unknown name": (ROLES + '[[peers]]\nsystem_user = "no one"', "which this machine does not have"),
    "peer twice": (ROLES + '[[peers]]\nuid = 0\nsystem_user = "root"', "expected one of them"),
    "peers is a table": ("[peers]\nuid = 1", "peers: got dict, expected tables, [[peers]]"),
    "certificate without name": (ROLES + '[[certificates]]\nuser = "a"', "certificates[0].name: got nothing"),
    "certificate twice": (
        ROLES + '[[certificates]]\nname = "n"\nuser = "a"\nroles = ["reader"]\n' * 2, "'n' a second time"
    ),
    "anonymous without roles": ("[anonymous]", "anonymous.roles: got none"),
    "anonymous with a user": (ROLES + '[anonymous]\nroles = ["reader"]\nuser = "a"', "anonymous.user: unknown key"),
    "revoked since text": ('[revoked]\nissued_before = "2026"', "revoked.issued_before: got str"),
    "revoked is a list": ("revoked = []", "revoked: got list, expected a table"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str, folder: Folder) -> None:
    text, complaint = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        read_access_file(folder.write(text))
    assert caught.value.detail.startswith(str(folder.path))
    assert complaint in caught.value.detail
    assert "a secret" not in str(caught.value)


def test_near_misses_are_named(folder: Folder) -> None:
    with pytest.raises(ConfigError) as caught:
        read_access_file(folder.write('[roles.a]\nsubscripe = ["x"]\n'))
    assert caught.value.hint == "did you mean subscribe?"


def swap_with_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap_with_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "cannot be read"),
    "others may write": (lambda path: path.chmod(0o602), "got mode 0602"),
    "a group may write": (lambda path: path.chmod(0o620), "got mode 0620"),
    "a folder": (swap_with_folder, "regular file"),
    "a pipe that nobody writes": (swap_with_pipe, "regular file"),
    "too large": (lambda path: path.write_bytes(b"#" * (FILE_BYTES_MAX + 1)), f"limit {FILE_BYTES_MAX} bytes"),
    "no UTF-8": (lambda path: path.write_bytes(b"# \xff"), "not UTF-8 at byte 2"),
}


@pytest.mark.parametrize("which", ["access.toml", "keys.json"])
@pytest.mark.parametrize("name", UNFIT)
def test_unfit_file(name: str, which: str, folder: Folder) -> None:
    make_unfit, complaint = UNFIT[name]
    path = folder.write()
    make_unfit(folder.path / which)
    with pytest.raises(ConfigError) as caught:
        read_access_file(path)
    assert complaint in caught.value.detail
    assert which in caught.value.detail


def test_a_shared_secret_is_for_nobody_else_to_read(folder: Folder) -> None:
    path = folder.write()
    (folder.path / "keys.json").chmod(0o644)
    with pytest.raises(ConfigError, match="0644 with a shared secret"):
        read_access_file(path)
    folder.keys = [key_of("EdDSA")]
    folder.write_keys()
    (folder.path / "keys.json").chmod(0o644)
    assert read_access_file(path).rules.keys is not None


def test_somebody_elses_file(folder: Folder) -> None:
    path = folder.write()
    os.chown(path, 65_534, 65_534)
    with pytest.raises(ConfigError, match="got owner 65534"):
        read_access_file(path)


def test_system_names(folder: Folder) -> None:
    rules = read_access_file(
        folder.write(ROLES + '[[peers]]\nsystem_user = "root"\nsystem_group = "root"\nuser = "a"\nroles = ["reader"]')
    ).rules
    assert [(peer.uid, peer.gid) for peer in rules.peers] == [(0, 0)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_a_bent_file_is_refused_or_read(folder: Folder, data: st.DataObject) -> None:
    """Whatever happens to the text of a good file: it is read, or refused with an error of the configuration."""
    text = EXAMPLE
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(text)))
        end = min(len(text), begin + data.draw(st.integers(0, 20)))
        text = (
            text[:begin]
            + data.draw(st.sampled_from(["", "[", "]", '"', "=", "1", "-1", "{}", "true", "\n"]))
            + text[end:]
        )
    try:
        read_access_file(folder.write(text))
    except BrokerError as failure:
        complaint = failure.name
    else:
        complaint = "INVALID_CONFIG"
    assert complaint == "INVALID_CONFIG"
