"""What there is to set: the sections of a configuration, each a frozen dataclass of settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from broker.model.limits import Limits
from broker.model.settings import GIB, MIB, check_settings, invalid, setting

if TYPE_CHECKING:
    from broker.model.settings import Section


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
    web: str = field(
        default="",
        metadata=setting(
            "Address of the listener for browsers and HTTP, HOST:PORT, usually port 4780; empty text for none."
        ),
    )
    exposed: str = field(
        default="guarded",
        metadata=setting(
            "What listeners on addresses that are not loopback may lack: nothing (guarded), or what is named. Without "
            "TLS everybody on the way reads along; without access everybody may do everything.",
            choices=("guarded", "without_tls", "without_access", "without_both"),
        ),
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
    exit_when_idle_s: float = field(
        default=0.0,
        metadata=setting(
            "The server ends when no connection has been open for so long; 0 is never.",
            unit="seconds",
            low=0,
            high=31_536_000,
            reloadable=True,
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
        if "\0" in self.data:
            raise invalid("server.data", f"got {self.data[:64]!a}, expected a path without a zero byte")


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
    backlog_bytes_max: int = field(
        default=4 * GIB,
        metadata=setting(
            "What may wait for the archive; publishing slows down as it nears this, and then gets STORAGE_FULL.",
            unit="bytes",
            low=16 * MIB,
            high=1024 * GIB,
        ),
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True)
class WebConfig:
    """Whom the web listener answers: browsers send where a page comes from, and by what name they found the server.

    Raises:
        ConfigError: INVALID_CONFIG; a value is out of its range.
    """

    SECTION: ClassVar[str] = "web"

    origins: str = field(
        default="",
        metadata=setting(
            "Origins of pages that may use the broker, such as https://app.example, with commas between; "
            "the broker's own pages always may."
        ),
    )
    hosts: str = field(
        default="",
        metadata=setting(
            "Names by which browsers may find the server, HOST or HOST:PORT, with commas between; loopback names and "
            "the listener's address always are."
        ),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        for origin in listed(self.origins):
            if _ORIGIN.fullmatch(origin) is None:
                raise invalid(
                    "web.origins", f"got {origin[:64]!a}, expected an origin such as https://app.example:8443"
                )
        for host in listed(self.hosts):
            if _HOST.fullmatch(host) is None:
                raise invalid("web.hosts", f"got {host[:64]!a}, expected HOST or HOST:PORT")


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """Whether what becomes of messages is told to OpenTelemetry, and how much of it.

    Raises:
        ConfigError: INVALID_CONFIG; a value is out of its range.
    """

    SECTION: ClassVar[str] = "tracing"

    exporter: str = field(
        default="",
        metadata=setting(
            "Where spans go: the name of an installed exporter of OpenTelemetry, such as otlp_proto_http or console, "
            "which takes its own settings from OTEL_ variables; empty text for no tracing."
        ),
    )
    sample_ratio: float = field(
        default=0.0,
        metadata=setting(
            "The share of batches that are traced though none of their messages belongs to a trace; those that do "
            "are traced as their trace says.",
            low=0,
            high=1,
        ),
    )
    spans_per_s_max: int = field(
        default=100,
        metadata=setting("Spans that are made in a second; more are left out.", unit="spans", low=1, high=10_000),
    )

    def __post_init__(self) -> None:
        check_settings(self)


_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ORIGIN = re.compile(rf"https?://{_HOST.pattern}")


def listed(text: str) -> tuple[str, ...]:
    """Return what a setting lists with commas between, in lower case."""
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """The certificate of all TCP listeners. With one, none of them takes a plain connection; Unix sockets stay plain.

    One switch for all, since the listener that was forgotten would be the one that is found. What runs on the machine
    itself and needs no TLS has the Unix socket.

    Raises:
        ConfigError: INVALID_CONFIG; a value is out of its range, or goes with another that is missing.
    """

    SECTION: ClassVar[str] = "tls"

    certificate: str = field(
        default="",
        metadata=setting(
            "PEM file of the server's certificate and those that sign it, read again when it changes; "
            "empty text for no TLS."
        ),
    )
    key: str = field(
        default="",
        metadata=setting("PEM file of the certificate's key, unencrypted; nobody but its user and group may have it."),
    )
    client_ca: str = field(
        default="",
        metadata=setting(
            "PEM file of those that sign the certificates of clients, read again when it changes; "
            "empty text asks no client for one."
        ),
    )
    clients: str = field(
        default="required",
        metadata=setting(
            "Whether a client must have a certificate once tls.client_ca is set.", choices=("required", "optional")
        ),
    )
    min_version: str = field(
        default="1.2",
        metadata=setting("The oldest version of TLS that is spoken.", choices=("1.2", "1.3")),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if bool(self.certificate) != bool(self.key):
            missing, given = ("key", "certificate") if self.certificate else ("certificate", "key")
            raise invalid(f"tls.{missing}", f"got empty text, expected a file, since tls.{given} is set")
        if self.client_ca and not self.certificate:
            raise invalid("tls.certificate", "got empty text, expected a file, since tls.client_ca is set")


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Whether whoever connects has to say who he is.

    Raises:
        ConfigError: INVALID_CONFIG; a value is out of its range.
    """

    SECTION: ClassVar[str] = "access"

    file: str = field(
        default="",
        metadata=setting(
            "Path of the access file: who may sign in, as whom, and what that one may do. Empty text: nobody is asked, "
            "and everybody may do everything. What stands in the file is taken whenever it changes."
        ),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if "\0" in self.file:
            raise invalid("access.file", f"got {self.file[:64]!a}, expected a path without a zero byte")


SECTIONS: dict[str, type[Section]] = {
    kind.SECTION: kind
    for kind in (
        ServerConfig,
        WebConfig,
        TlsConfig,
        AccessConfig,
        Limits,
        StorageConfig,
        TracingConfig,
    )
}
"""Every section but the profiles, by name, in the order in which they are shown."""
