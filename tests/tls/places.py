"""Certificates, good and bad, and a server in this process that has one of them."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from broker import connect
from broker.access.issuing import Issuer
from broker.blocking import connect as connect_blocking
from broker.config import TlsConfig
from broker.edge.certificates import Certificates
from broker.edge.native import NativeListener
from broker.model.limits import Limits
from broker.model.profiles import Profile, Profiles
from broker.node.node import Node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from broker.access.issuing import Issued

LIMITS = Limits(hello_timeout_s=0.5)
LONG_AGO = datetime.now(UTC) - timedelta(days=400)


def put(folder: Path, name: str, issued: Issued) -> None:
    """Write a certificate and its key."""
    (folder / f"{name}.pem").write_bytes(issued.certificate)
    key = folder / f"{name}-key.pem"
    key.touch(mode=0o600)
    key.write_bytes(issued.key)


def write_certificates(folder: Path) -> None:
    """Write what the tests meet each other with.

    `ca` has signed `server` (127.0.0.1), `next` (the same name), `elsewhere` (another name) and the client `worker`;
    `old` has signed `expired`; `stranger` has signed the client `intruder`.
    """
    issuer, stranger = Issuer("ca"), Issuer("stranger")
    old = Issuer("old", begins=LONG_AGO, days=30)
    for name, authority in (("ca", issuer), ("old", old), ("stranger", stranger)):
        (folder / f"{name}.pem").write_bytes(authority.certificate)
    put(folder, "server", issuer.issue_server(["127.0.0.1"]))
    put(folder, "next", issuer.issue_server(["127.0.0.1"]))
    put(folder, "elsewhere", issuer.issue_server(["elsewhere.example"]))
    put(folder, "expired", old.issue_server(["127.0.0.1"]))
    put(folder, "worker", issuer.issue_client("worker"))
    put(folder, "intruder", stranger.issue_client("intruder"))


@dataclass
class Place:
    """A server that speaks TLS."""

    node: Node
    listener: NativeListener
    certificates: Certificates
    folder: Path

    @property
    def port(self) -> int:
        assert self.listener.tcp is not None
        return int(self.listener.tcp.rpartition(":")[2])

    def url(self, ca: str = "ca", **more: str) -> str:
        """Return what to connect to, with files of the folder by name, without `.pem`."""
        said = {"ca": ca, **more}
        query = "&".join(f"{key}={self.folder / value}.pem" for key, value in said.items())
        return f"broker+tls://127.0.0.1:{self.port}?{query}"

    def context(self, **settings: Any) -> ssl.SSLContext:
        """Return a client's context that believes `ca`."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        for name, value in settings.items():
            setattr(context, name, value)
        return context

    async def open(self, context: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a socket, with TLS if there is a context."""
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context)


@asynccontextmanager
async def served(data: Path, folder: Path, name: str = "server", **settings: str) -> AsyncIterator[Place]:
    """Serve with a certificate of the folder.

    Args:
        data: For the journal.
        folder: Has the certificates.
        name: Which of them.
        settings: More of `[tls]`.
    """
    config = TlsConfig(certificate=str(folder / f"{name}.pem"), key=str(folder / f"{name}-key.pem"), **settings)
    certificates = Certificates(config)
    node = await Node.open(
        data, profiles=Profiles([Profile(b">")]), limits=LIMITS, segment_bytes=4 << 20, reserve_bytes=0
    )
    listener = NativeListener(node, certificates)
    await listener.listen_tcp("127.0.0.1", 0)
    certificates.watch()
    try:
        yield Place(node, listener, certificates, folder)
    finally:
        certificates.close()
        listener.stop_accepting()
        await node.drain(0)
        await node.close()


async def publish_once(kind: str, url: str, **options: Any) -> int:
    """Connect by the asyncio or the blocking client, publish, and return the sequence."""
    if kind == "asyncio":
        async with connect(url, **options) as bus:
            return (await bus.publish("t.one", b"x")).sequence

    def work() -> int:
        with closing(connect_blocking(url, **options)) as bus:
            return bus.publish("t.one", b"x").sequence

    return await asyncio.to_thread(work)


async def until(done: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something has come about."""
    async with asyncio.timeout(seconds):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
