"""One server for all tests of the web listener that may share it, each in channels of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.homes import CONFIG, Server
from tests.web.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB_CONFIG = f"""\
{CONFIG}
[web]
origins = "https://app.example"
hosts = "broker.example, other.example:8080"

[limits]
hello_timeout_s = 1.0
partial_bytes_max = 2097152
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server(config=WEB_CONFIG)
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture
def peer(server: Server) -> Iterator[Peer]:
    """A connection that has said nothing yet."""
    with Peer(server.web) as connected:
        yield connected


@pytest.fixture
def socket(peer: Peer) -> Peer:
    """The same, once it is a WebSocket of native frames."""
    peer.upgrade()
    return peer
