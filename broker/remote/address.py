"""Addresses of brokers: `broker://host:port` and `broker+unix:///path`."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from broker.model.errors import BrokerError, error

PORT_DEFAULT = 4770
TCP_SCHEME = "broker"
UNIX_SCHEME = "broker+unix"
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
