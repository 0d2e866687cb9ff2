"""`broker serve` with certificates: TLS at every TCP address, names of clients as users, new files, what idle costs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from broker import Denied, connect
from broker.blocking import connect as connect_blocking
from tests.contract.homes import Server, happens
from tests.sizes import size

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE = size("BROKER_TLS_IDLE", 150, 1_000)
IDLE_BYTES_MAX = 32 << 10

ACCESS = """\
[roles.worker]
publish = ["w.>"]
subscribe = ["w.>"]

[[certificates]]
name = "worker"
user = "wanda"
roles = ["worker"]
"""


@pytest.fixture(scope="module")
def folder(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates that this file's server has, and its access file."""
    folder = Path(shutil.copytree(files, tmp_path_factory.mktemp("serve") / "tls"))
    (folder / "access.toml").touch(mode=0o600)
    (folder / "access.toml").write_text(ACCESS)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(
        config=f"""\
[tls]
certificate = "{folder}/server.pem"
key = "{folder}/server-key.pem"
client_ca = "{folder}/ca.pem"
clients = "optional"

[access]
file = "{folder}/access.toml"

[storage]
reserve_bytes = 0
"""
    )
    try:
        yield running.start()
    finally:
        running.stop()


def secure(url: str, folder: Path, client: str = "") -> str:
    """Return the URL of a listener, by TLS, of a client with a certificate or none."""
    scheme, _, place = url.partition("://")
    own = f"&certificate={folder}/{client}.pem&key={folder}/{client}-key.pem" if client else ""
    return f"{'wss' if scheme == 'ws' else 'broker+tls'}://{place}?ca={folder}/ca.pem{own}"


@pytest.mark.parametrize("listener", ["tcp", "web"])
async def test_a_certificate_says_who_it_is(server: Server, folder: Path, listener: str) -> None:
    url = server.web_url if listener == "web" else server.tcp_url
    async with connect(secure(url, folder, "worker")) as bus:
        await bus.publish("w.one", b"x")
        with pytest.raises(Denied, match="wanda"):
            await bus.publish("x.one", b"x")
    with pytest.raises(Denied):
        async with connect(secure(url, folder)):
            raise AssertionError("nobody was let in")


def test_the_blocking_client_too(server: Server, folder: Path) -> None:
    with closing(connect_blocking(secure(server.tcp_url, folder, "worker"))) as bus:
        bus.publish("w.two", b"x")
        with pytest.raises(Denied, match="wanda"):
            bus.publish("x.two", b"x")


def test_http_is_secure_as_well(server: Server, folder: Path) -> None:
    host, _, port = server.web_url.removeprefix("ws://").rpartition(":")
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    with closing(HTTPSConnection(host, int(port), context=context, timeout=10)) as connection:
        for _ in range(2):
            connection.request("GET", "/v1/version")
            answer = connection.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)
    assert context.get_ciphers()


async def test_sighup_looks_at_the_files_at_once(server: Server, folder: Path) -> None:
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    host, _, port = server.tcp_url.removeprefix("broker://").rpartition(":")

    async def shows_next() -> bool:
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return bool(shown == ssl.PEM_cert_to_DER_cert((folder / "next.pem").read_text()))

    assert not await shows_next()
    async with connect(secure(server.tcp_url, folder, "worker")) as bus:
        shutil.copy(folder / "next.pem", folder / "server.pem")
        shutil.copy(folder / "next-key.pem", folder / "server-key.pem")
        os.kill(server.pid, signal.SIGHUP)
        assert await happens(shows_next)
        await bus.publish("w.three", b"x")


async def test_what_an_idle_connection_takes() -> None:
    """Of the server's memory, with its session and a subscription: no more than TLS alone may."""
    server = Server(tls=True)
    buses = []
    before = 0
    try:
        url = server.start().tcp_url
        context = ssl.create_default_context(cafile=server.folder / "ca.pem")
        process = psutil.Process(server.pid)
        for number in range(20 + IDLE):
            if number == 20:
                before = process.memory_info().rss
            bus = await connect(url.partition("?")[0], tls=context)
            buses.append(bus)
            await bus.subscribe("s.idle").__aenter__()
        taken = (process.memory_info().rss - before) / IDLE
    finally:
        await asyncio.gather(*(bus.close() for bus in buses))
        server.stop()
    print(f"an idle connection: {taken / 1024:.1f} KiB, {IDLE} of them")
    assert taken < IDLE_BYTES_MAX
