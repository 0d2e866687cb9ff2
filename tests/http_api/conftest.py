"""One server for the tests of a file, each in channels of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.contract.homes import CONFIG, Server
from tests.http_api.client import Http

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB_CONFIG = f"""\
{CONFIG}
[server]
web = "127.0.0.1:0"

[limits]
payload_bytes_max = 65536
"""


def web_address(server: Server) -> str:
    """Return where a running server answers HTTP."""
    address: str = json.loads((server.folder / "ready").read_text())["web"]
    return address


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    running = Server(config=WEB_CONFIG)
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture
def http(served: Server) -> Iterator[Http]:
    asking = Http(web_address(served))
    yield asking
    asking.close()
