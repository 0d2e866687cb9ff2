"""One server for all attacks, and an honest pair that uses it meanwhile.

Every test that attacks `service` is also a test of the pair: what it sent during the attack has come, once and in
order, on the same server process as before.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.hostile.service import Pair, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

FEW = {
    "channels_max": 600,
    "channels_per_connection_max": 64,
    "subscriptions_per_connection_max": 16,
    "filters_per_subscription_max": 100,
    "filters_per_connection_max": 150,
    "producers_max": 40,
    "payload_bytes_max": 16 << 10,
    "headers_bytes_max": 1 << 10,
    "partial_bytes_max": 512 << 10,
    "early_partial_bytes_max": 64 << 10,
    "connection_bytes_max": 1 << 20,
    "connections_max": 600,
}
"""Limits that a test reaches."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Memory and processor time of another process are read from /proc."""
    for item in items:
        if item.path.parent.name == "hostile":
            item.add_marker(pytest.mark.skipif(sys.platform != "linux", reason="reads /proc of the server"))


@pytest.fixture(scope="session")
def common_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with the limits that it has when nobody sets any."""
    with Service(tmp_path_factory.mktemp("hostile")) as service:
        yield service


@pytest.fixture(scope="session")
def few_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with limits that a test reaches."""
    with Service(tmp_path_factory.mktemp("hostile_few"), FEW) as service:
        # Names that are there before any flood of them.
        for name in (b"stored.same", b"ephemeral.attacked"):
            with service.publisher(name) as publisher:
                assert publisher.alive()
        yield service


@pytest.fixture(scope="session")
def common_pair(common_service: Service) -> Iterator[Pair]:
    pair = Pair(common_service.address, 200)
    yield pair
    pair.stop()


@pytest.fixture(scope="session")
def few_pair(few_service: Service) -> Iterator[Pair]:
    pair = Pair(few_service.address, 200)
    yield pair
    pair.stop()


def unharmed(service: Service, pair: Pair) -> None:
    """Check that an attack has harmed nobody else.

    Raises:
        AssertionError: the server has died, or the pair has missed something.
    """
    assert service.process.poll() is None, f"the server died: {service.said()}"
    window = pair.window()
    assert window.wrong == []
    assert window.delivered == window.sent


@pytest.fixture
def service(common_service: Service, common_pair: Pair) -> Iterator[Service]:
    """The server, with the pair at work."""
    yield common_service
    common_service.hang_up()
    unharmed(common_service, common_pair)


@pytest.fixture
def few(few_service: Service, few_pair: Pair) -> Iterator[Service]:
    """The server of few limits, with a pair at work."""
    yield few_service
    few_service.hang_up()
    unharmed(few_service, few_pair)
