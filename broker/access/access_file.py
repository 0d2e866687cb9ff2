"""The access file: who may sign in, as whom, and what that one may do. TOML; every mistake is named by its key.

It decides who owns the broker, so it is taken only from a regular file that nobody else may write: its owner is who
runs the server, or root. A key set that holds a shared secret is one that nobody else may read either.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from broker.access.grants import Role, check_template
from broker.access.identity import USER_BYTES_MAX, Verb, is_user
from broker.access.rows import HINT, Row
from broker.access.rules import Peer, Person, Revoked, Rules, Static
from broker.access.signed import ALGORITHMS, Demands, Keys
from broker.access.static import Vault, check_hash, is_id
from broker.model.errors import ConfigError, InvalidPattern, error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["FILE_BYTES_MAX", "Loaded", "read_access_file", "stamp_of"]

FILE_BYTES_MAX = 4 << 20
_ROLE = re.compile(r"[!-~]{1,64}")
LEEWAY_S_MAX = 60
_SECTIONS = ("jwt", "roles", "tokens", "peers", "certificates", "anonymous", "revoked")

Stamp = tuple[int, ...]
"""What changes when a file does: device, inode, size, times of content and of status in nanoseconds."""


class Loaded(NamedTuple):
    """What an access file says, and the files that it was read from with their stamps."""

    rules: Rules
    stamps: Mapping[str, Stamp]


def stamp_of(path: str) -> Stamp:
    """Return what changes when a file does; nothing while it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return _stamp(found)


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_access_file(path: str) -> Loaded:
    """Read an access file and the key set that it names.

    Args:
        path: The file; a key set's path is relative to its folder.

    Raises:
        ConfigError: INVALID_CONFIG; it cannot be read, others may write it, or something in it is wrong.
    """
    text, status = _read(path)
    stamps = {path: _stamp(status)}
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as failure:
        raise error("INVALID_CONFIG", f"{path}: not TOML: {failure}", HINT) from None
    top = Row(data, path)
    roles = dict(_roles(top.rows_by_name("roles")))
    keys, demands, signed_roles = _jwt(top.row("jwt"), path, stamps, roles)
    listed = dict(_listed(top.rows_by_name("tokens"), roles))
    anonymous = top.row("anonymous")
    rules = Rules(
        roles,
        keys,
        demands,
        signed_roles,
        listed,
        tuple(_peers(top.rows("peers"), roles)),
        dict(_certificates(top.rows("certificates"), roles)),
        None if anonymous is None else _role_names(anonymous, "roles", roles),
        _revoked(top.row("revoked")),
        Vault({identifier: row.hash for identifier, row in listed.items()}),
    )
    if anonymous is not None:
        anonymous.end()
    top.end(_SECTIONS)
    return Loaded(rules, stamps)


def _read(path: str) -> tuple[str, os.stat_result]:
    """Return a file's text and status; both of the same open file, whatever its name comes to mean meanwhile."""
    try:
        # A pipe at this place would have the open wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            _check_owner(path, status)
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(FILE_BYTES_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError as failure:
        raise error("INVALID_CONFIG", f"{path}: cannot be read: {failure.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise error("INVALID_CONFIG", f"{path}: got more than {FILE_BYTES_MAX} bytes, limit {FILE_BYTES_MAX} bytes")
    try:
        return content.decode(), status
    except UnicodeDecodeError as failure:
        raise error("INVALID_CONFIG", f"{path}: not UTF-8 at byte {failure.start}") from None


def _check_owner(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise error("INVALID_CONFIG", f"{path}: got something else, expected a regular file")
    if status.st_mode & 0o022:
        raise error(
            "INVALID_CONFIG",
            f"{path}: got mode {stat.S_IMODE(status.st_mode):04o}, expected a file that only its owner may write",
            f"chmod go-w {path}",
        )
    if status.st_uid not in (0, os.geteuid()):
        raise error(
            "INVALID_CONFIG",
            f"{path}: got owner {status.st_uid}, expected {os.geteuid()}, who runs this, or root",
            "Give the file to who runs the server.",
        )


def _roles(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Role]]:
    for name, row in rows:
        if _ROLE.fullmatch(name) is None:
            raise row.refusal("", f"got role {name[:64]!a}, expected 1 to 64 printable ASCII characters, no space")
        templates = {verb: tuple(row.texts(str(verb))) for verb in Verb}
        for verb, filters in templates.items():
            _check_templates(row, verb, filters)
        row.end()
        yield name, Role(name, {verb: each for verb, each in templates.items() if each})


def _check_templates(row: Row, verb: Verb, templates: tuple[str, ...]) -> None:
    for each in templates:
        try:
            check_template(each)
        except InvalidPattern as failure:
            raise row.refusal(str(verb), failure.detail) from None


def _check_installed(row: Row, package: str) -> None:
    if find_spec(package) is None:
        raise row.refusal("", f"got such a table, which needs {package}: pip install 'broker-bus[auth]'")


def _jwt(
    row: Row | None, path: str, stamps: dict[str, Stamp], roles: Mapping[str, Role]
) -> tuple[Keys | None, Demands | None, tuple[str, ...]]:
    if row is None:
        return None, None, ()
    _check_installed(row, "joserfc")
    algorithms = row.texts("algorithms")
    for each in algorithms:
        if each not in ALGORITHMS:
            raise row.refusal("algorithms", f"got {each[:32]!a}, expected some of {', '.join(ALGORITHMS)}")
    if not algorithms:
        raise row.refusal("algorithms", f"got none, expected some of {', '.join(ALGORITHMS)}")
    demands = Demands(
        tuple(dict.fromkeys(algorithms)),
        row.text("issuer"),
        row.text("audience"),
        row.number("leeway_s", 30.0, LEEWAY_S_MAX),
        row.text("user_claim", "sub"),
        row.text("roles_claim", "roles"),
    )
    keys_name = row.text("keys")
    if "\0" in keys_name:
        raise row.refusal("keys", f"got {keys_name[:64]!a}, expected a path without a zero byte")
    keys_path = os.path.join(os.path.dirname(path), keys_name)
    signed_roles = _role_names(row, "roles", roles, optional=True)
    row.end()
    text, status = _read(keys_path)
    stamps[keys_path] = _stamp(status)
    keys = Keys(text, keys_path, demands.algorithms)
    if keys.has_secret and status.st_mode & 0o007:
        mode = stat.S_IMODE(status.st_mode)
        raise error(
            "INVALID_CONFIG",
            f"{keys_path}: got mode {mode:04o} with a shared secret in it, expected others to have no access",
            f"chmod o= {keys_path}",
        )
    return keys, demands, signed_roles


def _listed(rows: Iterator[tuple[str, Row]], roles: Mapping[str, Role]) -> Iterator[tuple[str, Static]]:
    for identifier, row in rows:
        if not is_id(identifier):
            raise row.refusal("", f"got id {identifier[:64]!a}, expected 1 to 64 of A-Z a-z 0-9 _ -")
        _check_installed(row, "argon2")
        hash_text = row.text("hash")
        try:
            check_hash(hash_text)
        except ConfigError as failure:
            raise row.refusal("hash", failure.detail.removeprefix("hash: ")) from None
        static = Static(_person(row, roles), hash_text, row.time_s("expires"))
        row.end()
        yield identifier, static


def _peers(rows: Iterator[Row], roles: Mapping[str, Role]) -> Iterator[Peer]:
    for row in rows:
        uid = _system_id(row, "uid", "system_user")
        gid = _system_id(row, "gid", "system_group")
        if uid is None and gid is None:
            raise row.refusal("", "got no uid and no gid, expected one of uid, system_user, gid, system_group")
        peer = Peer(uid, gid, _person(row, roles))
        row.end()
        yield peer


def _system_id(row: Row, number_key: str, name_key: str) -> int | None:
    """Return a user's or a group's number, given as such or by its name on this machine."""
    number, name = row.whole(number_key), row.text(name_key, "")
    if not name:
        return number
    if number is not None:
        raise row.refusal(name_key, f"got {name_key} beside {number_key}, expected one of them")
    import grp
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid if number_key == "uid" else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise row.refusal(name_key, f"got {name[:64]!a}, which this machine does not have") from None


def _certificates(rows: Iterator[Row], roles: Mapping[str, Role]) -> Iterator[tuple[str, Person]]:
    seen = set()
    for row in rows:
        name = row.text("name")
        if name in seen:
            raise row.refusal("name", f"got {name[:64]!a} a second time, expected each once")
        seen.add(name)
        person = _person(row, roles)
        row.end()
        yield name, person


def _person(row: Row, roles: Mapping[str, Role]) -> Person:
    user = row.text("user")
    if not is_user(user):
        raise row.refusal("user", f"got {user[:64]!a}, expected 1 to {USER_BYTES_MAX} printable bytes")
    return Person(user, _role_names(row, "roles", roles))


def _role_names(row: Row, key: str, roles: Mapping[str, Role], optional: bool = False) -> tuple[str, ...]:
    names = row.texts(key)
    if not names and not optional:
        raise row.refusal(key, "got none, expected the names of one or more roles")
    for name in names:
        if name not in roles:
            raise row.refusal(key, f"got {name[:64]!a}, which is no role of this file")
    return tuple(dict.fromkeys(names))


def _revoked(row: Row | None) -> Revoked:
    if row is None:
        return Revoked()
    revoked = Revoked(frozenset(row.texts("tokens")), frozenset(row.texts("users")), row.time_s("issued_before") or 0.0)
    row.end()
    return revoked
