"""A part of the suite over TLS, by each client, at each TCP address; `pytest tests/contract --tls` is all of it.

What a test does here it also does elsewhere; that nothing of it is different is the point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.homes import Home, Server
from tests.contract.test_bus import (
    test_a_receipt_says_where_and_how_safely as test_a_receipt_says_where_and_how_safely,
)
from tests.contract.test_bus import (
    test_messages_arrive_in_order_and_once as test_messages_arrive_in_order_and_once,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def secure_server() -> Iterator[Server]:
    server = Server(tls=True)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(params=["tcp", "web", "blocking"])
def home(request: pytest.FixtureRequest, tmp_path: Path, secure_server: Server) -> Home:
    """Homes that are reached by TLS."""
    assert secure_server.tcp_url.startswith("broker+tls://")
    assert secure_server.web_url.startswith("wss://")
    return Home(request.param, tmp_path, secure_server)
