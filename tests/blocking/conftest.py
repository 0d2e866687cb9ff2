"""One server for all tests of this folder that do it no harm, and a bus of threads to it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from broker.blocking import connect
from tests.contract.homes import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.blocking import Client


@pytest.fixture(scope="session")
def running() -> Iterator[Server]:
    server = Server()
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that the test may stop or kill."""
    server = Server()
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def room() -> str:
    """A token that no other test uses, to be put into channels' names."""
    return secrets.token_hex(6)


@pytest.fixture
def threads(running: Server) -> Iterator[Client]:
    """A bus."""
    with connect(running.tcp_url) as client:
        yield client
