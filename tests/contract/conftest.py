"""The suite's one parameter: the home. And one server for all tests that may share it, each in channels of its own."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from tests.contract.homes import Home, Server, SharedFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCKING = {"blocking", "blocking client"}
HOMES = ("embedded", "thread", "shared", "tcp", "unix", "web", "blocking")
REMOTE = {"tcp", "unix", "web", "blocking"}
"""Those that need a server."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the blocking client beside one loop only (a hook of pytest): it has none, and is waited for in threads."""
    gone = [
        item
        for item in items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "uvloop" in item.callspec.id
        if BLOCKING & {value for value in item.callspec.params.values() if isinstance(value, str)}
    ]
    if gone:
        config.hook.pytest_deselected(items=gone)
        left_out = set(gone)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def evicts(request: pytest.FixtureRequest) -> bool:
    """Whether all homes of this run keep nothing in memory that they may evict."""
    return bool(request.config.getoption("--evicting"))


@pytest.fixture(scope="session")
def tls(request: pytest.FixtureRequest) -> bool:
    """Whether all homes of this run that are reached by TCP are reached by TLS."""
    return bool(request.config.getoption("--tls"))


@pytest.fixture(scope="session")
def shared_server(evicts: bool, tls: bool) -> Iterator[Server]:
    server = Server(evicts=evicts, tls=tls)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def shared_folder(evicts: bool) -> Iterator[SharedFolder]:
    folder = SharedFolder(evicts=evicts)
    try:
        yield folder
    finally:
        folder.stop()


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, tmp_path: Path, evicts: bool) -> Home:
    """Each home in turn."""
    kind = request.param
    if kind == "shared":
        shared: SharedFolder = request.getfixturevalue("shared_folder")
        return shared.home
    server = request.getfixturevalue("shared_server") if kind in REMOTE else None
    return Home(kind, tmp_path, server, evicts=evicts)


@pytest.fixture
def own_server(evicts: bool, tls: bool) -> Iterator[Server]:
    """A server that the test may kill."""
    server = Server(evicts=evicts, tls=tls)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def room() -> str:
    """A token that no other test uses, to be put into channels' names."""
    return secrets.token_hex(6)
