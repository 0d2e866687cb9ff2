"""Servers for the independent client: one on each kind of loop, shared, and one that a test may kill."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.contract.homes import Server
from tests.independent.client import Client
from tests.independent.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.independent.conversation import Address

LOOPS = ("asyncio", "uvloop")


class LoopServer(Server):
    """The contract suite's server on a loop of the test's choice.

    Args:
        settings: further settings as variables of the environment, without `BROKER_`.
    """

    def __init__(self, loop: str, **settings: str) -> None:
        super().__init__()
        self._settings = {"SERVER_LOOP": loop, **settings}

    def environment(self) -> dict[str, str]:  # type: ignore[override]
        return super().environment() | {f"BROKER_{key}": value for key, value in self._settings.items()}

    @property
    def tcp(self) -> tuple[str, int]:
        host, _, port = self._tcp.rpartition(":")
        return host, int(port)

    @property
    def unix(self) -> str:
        return str(self.folder / "socket")


@dataclass(frozen=True, slots=True)
class Place:
    """How to reach a server: for the independent client, and for the product's own."""

    address: Address
    url: str


def _running(loop: str) -> Iterator[LoopServer]:
    server = LoopServer(loop)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def asyncio_server() -> Iterator[LoopServer]:
    yield from _running("asyncio")


@pytest.fixture(scope="session")
def uvloop_server() -> Iterator[LoopServer]:
    yield from _running("uvloop")


@pytest.fixture(params=[f"{transport}-{loop}" for loop in LOOPS for transport in ("tcp", "unix")])
def place(request: pytest.FixtureRequest) -> Place:
    """Each transport to each kind of server."""
    transport, _, loop = request.param.partition("-")
    server: LoopServer = request.getfixturevalue(f"{loop}_server")
    return Place(server.tcp, server.tcp_url) if transport == "tcp" else Place(server.unix, server.unix_url)


@pytest.fixture(params=LOOPS)
def own_server(request: pytest.FixtureRequest) -> Iterator[LoopServer]:
    """A server that the test may kill."""
    yield from _running(request.param)


@pytest.fixture
def dial() -> Iterator[Callable[..., Client]]:
    """Make clients that try again soon when a connection is lost, and close them after the test."""
    clients: list[Client] = []

    def make(address: Address, **options: object) -> Client:
        clients.append(Client(address, **{"delay_s_max": 0.02, **options}))  # type: ignore[arg-type]
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def talk() -> Iterator[Callable[..., Conversation]]:
    """Begin conversations, and close them after the test."""
    begun: list[Conversation] = []

    def begin(address: Address, **options: object) -> Conversation:
        begun.append(Conversation(address, **options))  # type: ignore[arg-type]
        return begun[-1]

    yield begin
    for conversation in begun:
        conversation.close()


@pytest.fixture
def room() -> str:
    """A token that no other test uses, to be put into channels' names."""
    return secrets.token_hex(6)
