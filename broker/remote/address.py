"""Addresses of brokers: `broker://host:port`, `broker+tls://host:port`, `broker+unix:///path`, and `ws://host:port` or
`wss://host:port` over HTTP's port.

The scheme of TLS is a word of its own and no `brokers://`: there one letter would decide whether a token is read on the
way. What is to be known of certificates may stand in the URL, so that whatever takes a URL can be told:

    broker+tls://broker.example?ca=/etc/ssl/our-ca.pem
    broker+tls://10.0.0.7?ca=ca.pem&name=broker.example&certificate=me.pem&key=me-key.pem
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from broker.model.errors import BrokerError, error

PORT_DEFAULT = 4770
TCP_SCHEME = "broker"
TLS_SCHEME = "broker+tls"
UNIX_SCHEME = "broker+unix"
TLS_PARTS = ("ca", "name", "certificate", "key")
WEB_SCHEMES = ("ws", "wss")
WEB_PORTS = (80, 443)
"""Of the two schemes."""
WEB_PATH = "/v1/socket"
URL_DEFAULT = f"{TCP_SCHEME}://127.0.0.1:{PORT_DEFAULT}"


class TcpAddress(NamedTuple):
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class TlsAddress(NamedTuple):
    """A TCP address at which TLS is spoken.

    Attributes:
        ca: A PEM file of those who sign the server's certificate; empty for those whom the system believes.
        name: What the certificate must name; empty for the host.
        certificate, key: PEM files by which the server knows us; empty for none, or the key in the certificate's file.
    """

    host: str
    port: int
    ca: str = ""
    name: str = ""
    certificate: str = ""
    key: str = ""

    def __str__(self) -> str:
        return str(TcpAddress(self.host, self.port))

    @property
    def expected(self) -> str:
        """What the server's certificate must name."""
        return self.name or self.host


class UnixAddress(NamedTuple):
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return self.path


class WebAddress(NamedTuple):
    """Where a WebSocket is asked for.

    Attributes:
        secure: by TLS.
        ca, name, certificate, key: as for `TlsAddress`.
    """

    host: str
    port: int
    path: str
    secure: bool
    ca: str = ""
    name: str = ""
    certificate: str = ""
    key: str = ""

    @property
    def expected(self) -> str:
        """What the server's certificate must name."""
        return self.name or self.host

    @property
    def authority(self) -> str:
        """What the request's header Host says: the port only when it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == WEB_PORTS[self.secure] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{WEB_SCHEMES[self.secure]}://{self.authority}{self.path}"


def parse_web_url(url: str) -> WebAddress | None:
    """Take the URL of a WebSocket apart; None when it is of another scheme.

    Args:
        url: `ws://host[:port][/path]` or `wss://…`, the latter with a query as `broker+tls://` takes it; ports 80 and
            443, and the broker's path, by default.

    Raises:
        ConfigError: ADDRESS; it has no host, or parts that mean nothing here.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as failure:
        raise refusal(url, str(failure)) from None
    if parts.scheme not in WEB_SCHEMES:
        return None
    secure = parts.scheme == WEB_SCHEMES[True]
    tls = _tls_parts(url, parts.query) if secure else {}
    if (parts.query and not tls) or parts.fragment or parts.username is not None:
        raise refusal(url, "it has a user, a query or a fragment, which mean nothing here")
    if not parts.hostname or port == 0 or not parts.path.isascii() or not parts.path.isprintable() or " " in parts.path:
        raise refusal(url, f"expected {parts.scheme}://host:port")
    path = parts.path if parts.path not in ("", "/") else WEB_PATH
    return WebAddress(parts.hostname, WEB_PORTS[secure] if port is None else port, path, secure, **tls)


Address: TypeAlias = TcpAddress | TlsAddress | UnixAddress


def parse_url(url: str) -> Address:
    """Take a broker's URL apart.

    Args:
        url: `broker://host[:port]` (4770 by default; IPv6 in brackets), `broker+tls://host[:port][?ca=FILE&name=NAME&
            certificate=FILE&key=FILE]`, or `broker+unix:///path`; percent-encoded.

    Raises:
        ConfigError: ADDRESS; it is none of them, or has parts that mean nothing here.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as failure:
        raise refusal(url, str(failure)) from None
    tls = _tls_parts(url, parts.query) if parts.scheme == TLS_SCHEME else {}
    if (parts.query and not tls) or parts.fragment or parts.username is not None:
        raise refusal(url, "it has a user, a query or a fragment, which mean nothing here")
    if parts.scheme == UNIX_SCHEME:
        path = unquote(parts.path)
        if parts.netloc or len(path) < 2 or "\0" in path:
            raise refusal(url, f"expected {UNIX_SCHEME}:///path")
        return UnixAddress(path)
    if parts.scheme not in (TCP_SCHEME, TLS_SCHEME) or not parts.hostname or parts.path not in ("", "/") or port == 0:
        raise refusal(url, f"expected {TCP_SCHEME}://host:port, {TLS_SCHEME}://host:port or {UNIX_SCHEME}:///path")
    port = PORT_DEFAULT if port is None else port
    return TlsAddress(parts.hostname, port, **tls) if parts.scheme == TLS_SCHEME else TcpAddress(parts.hostname, port)


def _tls_parts(url: str, query: str) -> dict[str, str]:
    """Return what a URL says of certificates."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as failure:
        raise refusal(url, str(failure)) from None
    tls: dict[str, str] = {}
    for name, value in pairs:
        if name not in TLS_PARTS or name in tls or not value or "\0" in value:
            raise refusal(url, f"got {name[:64]!a} in its query, expected each of {', '.join(TLS_PARTS)} once at most")
        tls[name] = value
    if "key" in tls and "certificate" not in tls:
        raise refusal(url, "got a key without a certificate")
    return tls


def refusal(url: str, reason: str) -> BrokerError:
    return error("ADDRESS", f"url {url[:256]!a}: {reason}")
