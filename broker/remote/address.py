"""Addresses of brokers: `broker://host:port`, `broker+unix:///path`, and `ws://host:port` over HTTP's port."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from broker.model.errors import BrokerError, error

PORT_DEFAULT = 4770
TCP_SCHEME = "broker"
UNIX_SCHEME = "broker+unix"
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


class UnixAddress(NamedTuple):
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return self.path


class WebAddress(NamedTuple):
    """Where a WebSocket is asked for."""

    host: str
    port: int
    path: str
    secure: bool

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
        url: `ws://host[:port][/path]` or `wss://…`; ports 80 and 443, and the broker's path, by default.

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
    if parts.query or parts.fragment or parts.username is not None:
        raise refusal(url, "it has a user, a query or a fragment, which mean nothing here")
    if not parts.hostname or port == 0 or not parts.path.isascii() or not parts.path.isprintable() or " " in parts.path:
        raise refusal(url, f"expected {parts.scheme}://host:port")
    secure = parts.scheme == WEB_SCHEMES[True]
    path = parts.path if parts.path not in ("", "/") else WEB_PATH
    return WebAddress(parts.hostname, WEB_PORTS[secure] if port is None else port, path, secure)


def parse_url(url: str) -> TcpAddress | UnixAddress:
    """Take a broker's URL apart.

    Args:
        url: `broker://host[:port]` (4770 by default; IPv6 in brackets) or `broker+unix:///path`, percent-encoded.

    Raises:
        ConfigError: ADDRESS; it is neither, or has parts that mean nothing here.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as failure:
        raise refusal(url, str(failure)) from None
    if parts.query or parts.fragment or parts.username is not None:
        raise refusal(url, "it has a user, a query or a fragment, which mean nothing here")
    if parts.scheme == UNIX_SCHEME:
        path = unquote(parts.path)
        if parts.netloc or len(path) < 2 or "\0" in path:
            raise refusal(url, f"expected {UNIX_SCHEME}:///path")
        return UnixAddress(path)
    if parts.scheme != TCP_SCHEME or not parts.hostname or parts.path not in ("", "/") or port == 0:
        raise refusal(url, f"expected {TCP_SCHEME}://host:port or {UNIX_SCHEME}:///path")
    return TcpAddress(parts.hostname, PORT_DEFAULT if port is None else port)


def refusal(url: str, reason: str) -> BrokerError:
    return error("ADDRESS", f"url {url[:256]!a}: {reason}")
