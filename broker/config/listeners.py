"""What a server listens on and which loop it runs, judged before it starts."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from broker.model.errors import error
from broker.model.settings import invalid

if TYPE_CHECKING:
    from broker.config.sections import ServerConfig

# sun_path less its final zero: 108 bytes on Linux, 104 on macOS and the BSDs.
UNIX_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103


WEB_PACKAGES = ("picows", "uvicorn", "httptools", "starlette")
"""What the web listener needs beside the broker itself."""


class ListenAddress(NamedTuple):
    """A TCP address to listen on: a literal loopback IP address and a port, 0 for any free one."""

    host: str
    port: int


class Listeners(NamedTuple):
    """What a server listens on; at least one of them."""

    tcp: ListenAddress | None
    unix: str | None
    web: ListenAddress | None = None


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
        raise error(
            "ADDRESS",
            f"TCP address: got {address!a}, expected HOST:PORT or [IPv6]:PORT, port 0 to 65535",
            "write it as 127.0.0.1:4770",
        )
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


def check_unix_path(path: str) -> None:
    """Check that a Unix socket can have this path.

    Args:
        path: of server.unix; empty for no socket.

    Raises:
        ConfigError: ADDRESS; it is too long, or holds a zero byte.
    """
    path_bytes = len(os.fsencode(path))
    if path_bytes > UNIX_PATH_BYTES_MAX:
        raise error(
            "ADDRESS",
            f"server.unix: got a path of {path_bytes} bytes, limit {UNIX_PATH_BYTES_MAX} bytes",
            "Choose a shorter path, or one relative to the working directory.",
        )
    if "\0" in path:
        raise error("ADDRESS", f"server.unix: got {path!a}, expected a path without a zero byte")


def check_listeners(server: ServerConfig) -> Listeners:
    """Return what a server is to listen on.

    Raises:
        ConfigError: ADDRESS; an address is not acceptable, or there is none.
    """
    if not server.tcp and not server.unix and not server.web:
        raise error(
            "ADDRESS",
            "server.tcp, server.unix and server.web are all empty, expected at least one listener",
            "set --tcp HOST:PORT, --unix PATH or --web HOST:PORT",
        )
    check_unix_path(server.unix)
    check_web(server.web)
    return Listeners(
        check_listen_address(server.tcp) if server.tcp else None,
        server.unix or None,
        check_listen_address(server.web) if server.web else None,
    )


def check_web(address: str) -> None:
    """Check that what the web listener needs is installed, if there is to be one.

    Args:
        address: of server.web; empty for no listener.

    Raises:
        ConfigError: INVALID_CONFIG; it is not.
    """
    from importlib.util import find_spec

    missing = [name for name in WEB_PACKAGES if find_spec(name) is None] if address else []
    if missing:
        raise invalid(
            "server.web", f"needs {', '.join(missing)}, which is not installed", "pip install broker-bus[web]"
        )


def takes_uvloop(loop: str) -> bool:
    """Return whether the loop of this kind (auto, uvloop, asyncio) is uvloop's on this machine.

    Raises:
        ConfigError: INVALID_CONFIG; uvloop is asked for and not installed.
    """
    from importlib.util import find_spec

    installed = loop != "asyncio" and find_spec("uvloop") is not None
    if loop == "uvloop" and not installed:
        raise invalid("server.loop", "got uvloop, which is not installed", "pip install uvloop")
    return installed
