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


WEB_PACKAGES = ("picows", "uvicorn", "httptools", "starlette", "prometheus_client")
"""What the web listener needs beside the broker itself."""


class Guard(NamedTuple):
    """What stands between a listener and strangers: its bytes are secret, and everybody is asked who he is."""

    tls: bool
    access: bool


UNGUARDED = Guard(False, False)
EXPOSED = {
    "guarded": Guard(True, True),
    "without_tls": Guard(False, True),
    "without_access": Guard(True, False),
    "without_both": Guard(False, False),
}
"""What an address that is not loopback has to have, by what server.exposed says."""


class ListenAddress(NamedTuple):
    """A TCP address to listen on: a literal IP address and a port, 0 for any free one."""

    host: str
    port: int


class Listeners(NamedTuple):
    """What a server listens on; at least one of them."""

    tcp: ListenAddress | None
    unix: str | None
    web: ListenAddress | None = None


def check_listen_address(address: str, guard: Guard = UNGUARDED) -> ListenAddress:
    """Return the parts of a TCP address if a server may listen on it.

    Whoever is on the machine may reach loopback addresses. Any other address is the network's, and is taken only with
    TLS and with an access file, or for what the operator has said by name that it is to be without. `localhost` means
    127.0.0.1 whatever the resolver says, and any other host name is refused because nothing is resolved here.

    Args:
        address: `HOST:PORT`, an IPv6 host in brackets.
        guard: What stands before it, or need not.

    Raises:
        ConfigError: ADDRESS; it is malformed, or nothing stands between it and strangers.
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
        raise error(
            "ADDRESS",
            f"TCP address: got {address!a}, expected a literal IP address: no name is resolved here",
            "write it as 127.0.0.1:4770",
        ) from None
    missing = [what for what, there in (("TLS", guard.tls), ("an access file", guard.access)) if not there]
    if not loopback and missing:
        raise error(
            "ADDRESS",
            f"TCP address: got {address!a}, which is not loopback, without {' and '.join(missing)}",
            "Set tls.certificate and access.file, listen on 127.0.0.1, or say by name in server.exposed what you mean "
            "to be without.",
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


def guard_of(server: ServerConfig, guard: Guard = UNGUARDED) -> Guard:
    """Return what stands before a server's listeners, counting as there what it is said to need none of."""
    without = EXPOSED[server.exposed]
    return Guard(guard.tls or not without.tls, guard.access or not without.access)


def check_listeners(server: ServerConfig, guard: Guard = UNGUARDED) -> Listeners:
    """Return what a server is to listen on.

    Args:
        server: Its settings.
        guard: What stands before its listeners.

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
    guard = guard_of(server, guard)
    return Listeners(
        check_listen_address(server.tcp, guard) if server.tcp else None,
        server.unix or None,
        check_listen_address(server.web, guard) if server.web else None,
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
