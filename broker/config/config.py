"""Configuration: defaults, then a TOML file, then `BROKER_*` of the environment, then flags; the last one wins.

    [server]                               BROKER_SERVER_TCP=127.0.0.1:4770
    tcp = "127.0.0.1:4770"                 BROKER_SERVER_DATA=/var/lib/broker
    data = "/var/lib/broker"               BROKER_STORAGE_SEGMENT_BYTES="64 MiB"

    [limits]
    payload_bytes_max = "1 MiB"            sizes: an integer, or text in KiB, MiB or GiB

    [[profiles]]                           in the file only; the first match wins, so `>` comes last
    pattern = "typing.>"
    durability = "ephemeral"

    [[profiles]]
    pattern = ">"

Every value is checked where it was read, so that an error can name its source; a key that nobody knows is an error.
Sections are frozen and say of each field its unit, its range and whether SIGHUP changes it. Nothing here opens a
socket or looks at the data directory.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from broker.model.errors import BrokerError, ConfigError, error
from broker.model.levels import Level, parse_level
from broker.model.limits import Limits
from broker.model.positions import U64_MAX
from broker.model.profiles import Profile, Profiles
from broker.model.settings import GIB, KIB, MIB, Setting, check_settings, invalid, setting, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from broker.model.settings import Section

ENVIRONMENT_PREFIX = "BROKER"

# sun_path less its final zero: 108 bytes on Linux, 104 on macOS and the BSDs.
UNIX_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How the server home listens, where its data is, and how it speaks to its operator.

    Raises:
        ConfigError: INVALID_CONFIG; a value is out of its range.
    """

    SECTION: ClassVar[str] = "server"

    tcp: str = field(
        default="127.0.0.1:4770",
        metadata=setting("Address of the TCP listener, HOST:PORT; port 0 takes a free one, empty text none at all."),
    )
    unix: str = field(
        default="",
        metadata=setting("Path of the Unix socket's listener; empty text for none."),
    )
    data: str = field(
        default="broker-data",
        metadata=setting("Directory of the journal; created with mode 0700 if it does not exist."),
    )
    loop: str = field(
        default="auto",
        metadata=setting(
            "The event loop; auto takes uvloop where it is installed.", choices=("auto", "uvloop", "asyncio")
        ),
    )
    drain_s: float = field(
        default=10.0,
        metadata=setting(
            "How long SIGTERM lets connections finish before they are closed.", unit="seconds", low=0, high=3_600
        ),
    )
    log_level: str = field(
        default="info",
        metadata=setting(
            "The least severe messages that are logged.",
            choices=("debug", "info", "warning", "error"),
            reloadable=True,
        ),
    )
    log_format: str = field(
        default="text",
        metadata=setting("How a message is written: a line for people, or one JSON object.", choices=("text", "json")),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.data:
            raise invalid("server.data", "got empty text, expected a directory")


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """How the journal lies on the disk.

    Raises:
        ConfigError: INVALID_CONFIG; a value is out of its range.
    """

    SECTION: ClassVar[str] = "storage"

    segment_bytes: int = field(
        default=64 * MIB,
        metadata=setting(
            "Size of a journal segment; at least twice the largest group.", unit="bytes", low=1 * MIB, high=4 * GIB
        ),
    )
    reserve_bytes: int = field(
        default=256 * MIB,
        metadata=setting(
            "Free space kept on the data directory's file system; below it publishing is answered STORAGE_FULL.",
            unit="bytes",
            low=0,
            high=1024 * GIB,
        ),
    )

    def __post_init__(self) -> None:
        check_settings(self)


_S = TypeVar("_S", ServerConfig, Limits, StorageConfig)

_SECTIONS: dict[str, type[Section]] = {kind.SECTION: kind for kind in (ServerConfig, Limits, StorageConfig)}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a configuration was read from, so that it can be read again.

    Attributes:
        path: the file, or None.
        flags: what the command line set, by dotted key.
    """

    path: str | None
    flags: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; immutable.

    Raises:
        ConfigError: INVALID_CONFIG; two sections contradict each other.
    """

    server: ServerConfig = field(default_factory=ServerConfig)
    limits: Limits = field(default_factory=Limits)
    storage: StorageConfig = field(default_factory=StorageConfig)
    profiles: Profiles = field(default_factory=Profiles)
    origin: Origin = field(default_factory=lambda: Origin(None, {}), compare=False, repr=False)

    def __post_init__(self) -> None:
        # A segment takes the group that is over its bound by one largest frame, and the seal beside it.
        least = 2 * (self.limits.group_bytes_max + self.limits.frame_bytes_max)
        if self.storage.segment_bytes < least:
            raise invalid(
                "storage.segment_bytes",
                f"got {self.storage.segment_bytes} bytes, expected at least {least} bytes: "
                "2 x (limits.group_bytes_max + largest frame)",
            )
        for index, profile in enumerate(self.profiles):
            if profile.payload_bytes_max > self.limits.payload_bytes_max:
                raise invalid(
                    f"profiles[{index}].payload_bytes_max",
                    f"got {profile.payload_bytes_max} bytes, limit {self.limits.payload_bytes_max} bytes, "
                    "limits.payload_bytes_max",
                )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Config:
        """Read a configuration: defaults < file < environment < flags.

        Args:
            path: a TOML file, or None for no file.
            environ: the environment; None means `os.environ`.
            flags: values by dotted key, `{"server.tcp": "127.0.0.1:0"}`; a value of None was not given.

        Returns:
            The configuration, which remembers `path` and `flags` for `reload`.

        Raises:
            ConfigError: INVALID_CONFIG; a source cannot be read, or a key, a type or a range is wrong.
        """
        origin = Origin(None if path is None else os.fspath(path), dict(flags or {}))
        document = {} if origin.path is None else _read_file(origin.path)
        profiles = _profiles(document.pop("profiles", []), origin.path)
        values: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
        for layer in (
            _file_layer(document, origin.path),
            _environment_layer(os.environ if environ is None else environ),
            _flag_layer(origin.flags),
        ):
            for given in layer:
                values[given.section][given.name] = _convert(_SECTIONS[given.section], given)
        return cls(
            ServerConfig(**values["server"]),
            Limits(**values["limits"]),
            StorageConfig(**values["storage"]),
            profiles,
            origin,
        )

    def reload(self, environ: Mapping[str, str] | None = None) -> tuple[Config, tuple[str, ...]]:
        """Read the same sources again and take what a running server can change.

        Args:
            environ: the environment; None means `os.environ`.

        Returns:
            The configuration to go on with, and the keys whose new values wait for a restart.

        Raises:
            ConfigError: INVALID_CONFIG; the new configuration is not acceptable, so go on with this one.
        """
        return self.adopt(Config.load(self.origin.path, environ, self.origin.flags))

    def adopt(self, fresh: Config) -> tuple[Config, tuple[str, ...]]:
        """Return this configuration with the reloadable settings of another, and the keys that were not taken.

        Raises:
            ConfigError: INVALID_CONFIG; a setting that is taken contradicts one that is not.
        """
        server, kept_server = _adopt(self.server, fresh.server)
        limits, kept_limits = _adopt(self.limits, fresh.limits)
        storage, kept_storage = _adopt(self.storage, fresh.storage)
        taken = replace(self, server=server, limits=limits, storage=storage, profiles=fresh.profiles)
        return taken, (*kept_server, *kept_limits, *kept_storage)

    @classmethod
    def small(cls) -> Config:
        """Return a configuration whose every bound a test reaches quickly, on a free loopback port."""
        return cls(
            ServerConfig(tcp="127.0.0.1:0", drain_s=0.5),
            Limits.small(),
            StorageConfig(segment_bytes=1 * MIB, reserve_bytes=0),
        )


class ListenAddress(NamedTuple):
    """A TCP address to listen on: a literal loopback IP address and a port, 0 for any free one."""

    host: str
    port: int


class Listeners(NamedTuple):
    """What a server listens on; at least one of the two."""

    tcp: ListenAddress | None
    unix: str | None


def check_listen_address(address: str) -> ListenAddress:
    """Return the parts of a TCP address if a server may listen on it.

    Only literal loopback addresses are taken, since there is neither authentication nor TLS; `localhost` means
    127.0.0.1 whatever the resolver says, and any other host name is refused because nothing is resolved here.

    Args:
        address: `HOST:PORT`, an IPv6 host in brackets.

    Raises:
        ConfigError: ADDRESS; it is malformed or not loopback.
    """
    import ipaddress

    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", address)
    if found is None or int(found[3]) > 65_535:
        raise error("ADDRESS", f"TCP address: got {address!a}, expected HOST:PORT or [IPv6]:PORT, port 0 to 65535")
    host = "127.0.0.1" if found[2] == "localhost" else found[1] or found[2]
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise error(
            "ADDRESS",
            f"TCP address: got {address!a}, which is not loopback; there is no authentication and no TLS yet",
            "listen on 127.0.0.1 or a Unix socket and let a tunnel or proxy on this machine do the rest",
        )
    return ListenAddress(host, int(found[3]))


def check_listeners(server: ServerConfig) -> Listeners:
    """Return what a server is to listen on.

    Raises:
        ConfigError: ADDRESS; an address is not acceptable, or there is none.
    """
    if not server.tcp and not server.unix:
        raise error("ADDRESS", "server.tcp and server.unix are both empty, expected at least one listener")
    path_bytes = len(os.fsencode(server.unix))
    if path_bytes > UNIX_PATH_BYTES_MAX or "\0" in server.unix:
        raise error("ADDRESS", f"server.unix: got a path of {path_bytes} bytes, limit {UNIX_PATH_BYTES_MAX} bytes")
    return Listeners(check_listen_address(server.tcp) if server.tcp else None, server.unix or None)


class _Given(NamedTuple):
    """One value as one source gave it."""

    section: str
    name: str
    value: object
    source: str
    textual: bool  # the source knows nothing but text, so a number may come as one

    def refused(self, reason: str, hint: str | None = None) -> BrokerError:
        return invalid(f"{self.section}.{self.name}", f"{reason} ({self.source})", hint)


def _read_file(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as failure:
        raise error("INVALID_CONFIG", f"file {path}: {failure.strerror}") from failure
    except ValueError as failure:  # not TOML, or not UTF-8
        raise error("INVALID_CONFIG", f"file {path}: not valid TOML: {failure}") from failure


def _file_layer(document: dict[str, Any], path: str | None) -> Iterator[_Given]:
    source = f"file {path}"
    for section, table in document.items():
        if section not in _SECTIONS:
            raise invalid(section, f"unknown section ({source})", _similar(section, [*_SECTIONS, "profiles"]))
        if not isinstance(table, dict):
            raise invalid(section, f"got {_kind(table)}, expected a table ({source})")
        for name, value in table.items():
            yield _known(_Given(section, name, value, source, textual=False))


def _environment_layer(environ: Mapping[str, str]) -> Iterator[_Given]:
    # Variables of the build and of orchestrators share the BROKER_ prefix, so only those of a section are ours.
    for variable in sorted(environ):
        if variable.startswith(f"{ENVIRONMENT_PREFIX}_PROFILES"):
            raise invalid("profiles", f"profiles are set in the file only (environment {variable})")
        for section in _SECTIONS:
            prefix = f"{ENVIRONMENT_PREFIX}_{section.upper()}_"
            if variable.startswith(prefix):
                name = variable.removeprefix(prefix).lower()
                yield _known(_Given(section, name, environ[variable], f"environment {variable}", textual=True))


def _flag_layer(flags: Mapping[str, object]) -> Iterator[_Given]:
    for key, value in flags.items():
        if value is None:
            continue
        section, _, name = key.partition(".")
        if section not in _SECTIONS:
            raise invalid(key, "unknown setting (command line)", _similar(section, list(_SECTIONS)))
        yield _known(_Given(section, name, value, "command line", textual=True))


def _known(given: _Given) -> _Given:
    """Return what was given if its section has such a setting."""
    names = list(settings_of(_SECTIONS[given.section]))
    if given.name not in names:
        raise given.refused("unknown setting", _similar(given.name, names))
    return given


def _similar(word: str, known: list[str]) -> str:
    """Return a hint that names the nearest known word, or all of them."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _profiles(tables: object, path: str | None) -> Profiles:
    """Build the profiles of a file's `[[profiles]]`."""
    source = f"file {path}"
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise invalid("profiles", f"got {_kind(tables)}, expected tables [[profiles]] ({source})")
    profiles = []
    for index, table in enumerate(tables):
        section = f"profiles[{index}]"
        names = list(settings_of(Profile))
        values: dict[str, Any] = {}
        for name, value in table.items():
            given = _Given(section, name, value, source, textual=False)
            if name not in names:
                raise given.refused("unknown setting", _similar(name, names))
            values[name] = _convert(Profile, given)
        if "pattern" not in values:
            raise invalid(f"{section}.pattern", f"missing ({source})")
        try:
            profiles.append(Profile(**values))
        except ConfigError:
            raise
        except BrokerError as failure:
            raise invalid(f"{section}.pattern", f"{failure.detail} ({source})", failure.hint) from failure
    return Profiles(profiles)


def _convert(kind: type[Section], given: _Given) -> object:
    """Return a given value in the type of its field, within its range."""
    described = settings_of(kind)[given.name]
    if type(given.value) is int and abs(given.value) > U64_MAX:
        raise given.refused(f"got an integer of more than 64 bits, expected {described.accepted()}")
    # Annotations are text in every module of sections, which makes them a plain key of the table of converters.
    annotation = next(found.type for found in fields(kind) if found.name == given.name)
    value = _CONVERTERS[str(annotation)](given, described)
    reason = described.refusal(value)
    if reason:
        raise given.refused(reason)
    return value


def _to_int(given: _Given, described: Setting) -> int:
    value = given.value
    if type(value) is int:
        return value
    is_size = described.unit == "bytes"
    if isinstance(value, str) and (given.textual or is_size):
        found = re.fullmatch(r"(-?[0-9]{1,20}) ?(KiB|MiB|GiB)?", value)
        if found is not None and (is_size or found[2] is None) and (given.textual or found[2] is not None):
            return int(found[1]) * _SIZES[found[2]]
    raise given.refused(f"got {_shown(value)}, expected an integer, {described.accepted()}")


def _to_float(given: _Given, described: Setting) -> float:
    value = given.value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and given.textual and re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", value):
        return float(value)
    raise given.refused(f"got {_shown(value)}, expected a number, {described.accepted()}")


def _to_text(given: _Given, described: Setting) -> str:
    if isinstance(given.value, str):
        return given.value
    raise given.refused(f"got {_shown(given.value)}, expected {described.accepted()}")


def _to_level(given: _Given, described: Setting) -> Level:
    text = _to_text(given, described)
    try:
        return parse_level(text)
    except ValueError:
        raise given.refused(f"got {_shown(text)}, expected {described.accepted()}") from None


def _to_pattern(given: _Given, described: Setting) -> bytes:
    return _to_text(given, described).encode("utf-8", "surrogatepass")


_SIZES = {None: 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}

_CONVERTERS: dict[str, Callable[[_Given, Setting], object]] = {
    "int": _to_int,
    "float": _to_float,
    "str": _to_text,
    "Level": _to_level,
    "bytes": _to_pattern,
}


def _shown(value: object) -> str:
    """Return a value for a message, with its type, cut short."""
    text = ascii(value)
    return f"{_kind(value)} {text if len(text) <= 64 else text[:64] + '…'}"


def _kind(value: object) -> str:
    return {dict: "a table", list: "an array", str: "text", bool: "a boolean"}.get(type(value), type(value).__name__)


def _adopt(current: _S, fresh: _S) -> tuple[_S, list[str]]:
    """Return a section with the reloadable values of another, and the keys that differ and were not taken."""
    taken: dict[str, Any] = {}
    kept: list[str] = []
    for name, described in settings_of(current).items():
        value = getattr(fresh, name)
        if value == getattr(current, name):
            continue
        if described.reloadable:
            taken[name] = value
        else:
            kept.append(f"{current.SECTION}.{name}")
    return replace(current, **taken), kept
