"""Who meets whom by TLS and who does not, by either client: versions, names, signers, times, and no TLS at all."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import pytest

from broker.model.errors import BrokerError, ConfigError, Unavailable
from broker.wire.secure import NO_TLS
from tests.tls.places import publish_once, served, until

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = ("asyncio", "blocking")
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


async def test_both_clients_get_along(tmp_path: Path, files: Path, loop_kind: str) -> None:
    async with served(tmp_path, files) as place:
        assert await publish_once("asyncio", place.url()) == 1
        assert await publish_once("blocking", place.url()) == 2
        bare = f"broker+tls://127.0.0.1:{place.port}"
        assert await publish_once("asyncio", bare, tls=place.context()) == 3
        assert await publish_once("blocking", bare, tls=files / "ca.pem") == 4


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("server", "ca", "more", "said"),
    [
        ("server", "stranger", {}, "certificate"),
        ("expired", "old", {}, "certificate has expired"),
        ("elsewhere", "ca", {}, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ],
)
async def test_whom_a_client_does_not_believe(
    tmp_path: Path, files: Path, client: str, server: str, ca: str, more: dict[str, str], said: str
) -> None:
    async with served(tmp_path, files, server) as place:
        with pytest.raises(Unavailable, match=said) as refused:
            await publish_once(client, place.url(ca, **more))
        assert (refused.value.name, refused.value.hint[:8]) == ("TLS_FAILED", "Name the")
        await until(lambda: not place.node.connections)


async def test_the_name_of_the_url_is_what_is_checked(tmp_path: Path, files: Path) -> None:
    async with served(tmp_path, files, "elsewhere") as place:
        for client in CLIENTS:
            url = f"broker+tls://127.0.0.1:{place.port}?ca={files}/ca.pem&name=elsewhere.example"
            assert await publish_once(client, url) > 0


@pytest.mark.parametrize(
    ("least", "theirs", "spoken"),
    [("1.2", (V12, V12), "TLSv1.2"), ("1.2", (V12, V13), "TLSv1.3"), ("1.3", (V12, V13), "TLSv1.3")],
)
async def test_versions(
    tmp_path: Path, files: Path, least: str, theirs: tuple[ssl.TLSVersion, ssl.TLSVersion], spoken: str
) -> None:
    async with served(tmp_path, files, min_version=least) as place:
        context = place.context(minimum_version=theirs[0], maximum_version=theirs[1])
        for client in CLIENTS:
            assert await publish_once(client, f"broker+tls://127.0.0.1:{place.port}", tls=context) > 0
        _, writer = await place.open(context)
        assert writer.get_extra_info("ssl_object").version() == spoken
        writer.close()


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_version_that_is_too_old(tmp_path: Path, files: Path, client: str) -> None:
    async with served(tmp_path, files, min_version="1.3") as place:
        context = place.context(maximum_version=V12)
        with pytest.raises(Unavailable, match="protocol version") as refused:
            await publish_once(client, f"broker+tls://127.0.0.1:{place.port}", tls=context)
        assert refused.value.name == "TLS_FAILED"


async def test_what_is_older_than_1_2_is_refused_whoever_asks(tmp_path: Path, files: Path) -> None:
    """By hand, since no library here says it any more: a ClientHello of TLS 1.1 (RFC 4346)."""
    hello = b"\x03\x02" + bytes(32) + b"\x00" + b"\x00\x02\xc0\x13" + b"\x01\x00"
    record = b"\x01" + len(hello).to_bytes(3, "big") + hello
    async with served(tmp_path, files) as place:
        reader, writer = await place.open()
        writer.write(b"\x16\x03\x01" + len(record).to_bytes(2, "big") + record)
        told = await asyncio.wait_for(reader.read(), 5)
        assert (told[0], told[5:]) == (0x15, b"\x02\x46"), "a fatal alert: protocol_version"
        writer.close()


@pytest.mark.parametrize("client", CLIENTS)
async def test_no_tls_to_a_port_that_speaks_it(tmp_path: Path, files: Path, client: str) -> None:
    async with served(tmp_path, files) as place:
        with pytest.raises(Unavailable, match="broker\\+tls://") as lost:
            await publish_once(client, f"broker://127.0.0.1:{place.port}")
        assert lost.value.name == "TLS_FAILED"


async def test_http_to_a_port_that_speaks_tls(tmp_path: Path, files: Path) -> None:
    async with served(tmp_path, files) as place:
        reader, writer = await place.open()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        told = await asyncio.wait_for(reader.read(), 5)
        assert told == NO_TLS
        writer.close()


@pytest.mark.parametrize("client", CLIENTS)
async def test_tls_to_a_port_that_speaks_none(tmp_path: Path, files: Path, client: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(bytes(64))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable, match=r"TLS_FAILED.*wrong version") as refused:
            await publish_once(client, f"broker+tls://127.0.0.1:{port}?ca={files}/ca.pem")
        assert "broker://" in refused.value.hint


@pytest.mark.parametrize("client", CLIENTS)
async def test_what_clients_are_asked_for(tmp_path: Path, files: Path, client: str) -> None:
    async with served(tmp_path, files, client_ca=str(files / "ca.pem")) as place:
        known = place.url(certificate="worker", key="worker-key")
        assert await publish_once(client, known) == 1
        with pytest.raises(Unavailable) as nobody:
            await publish_once(client, place.url())
        with pytest.raises(Unavailable) as stranger:
            await publish_once(client, place.url(certificate="intruder", key="intruder-key"))
        assert (nobody.value.name, stranger.value.name) == ("TLS_FAILED", "TLS_FAILED")
        assert "certificate=FILE" in nobody.value.hint
        assert "certificate=FILE" in stranger.value.hint
        assert await publish_once(client, known) == 2


async def test_who_need_not_have_a_certificate_may(tmp_path: Path, files: Path) -> None:
    async with served(tmp_path, files, client_ca=str(files / "ca.pem"), clients="optional") as place:
        assert await publish_once("asyncio", place.url()) == 1
        assert await publish_once("asyncio", place.url(certificate="worker", key="worker-key")) == 2
        with pytest.raises(BrokerError, match="TLS_FAILED"):
            await publish_once("asyncio", place.url(certificate="intruder", key="intruder-key"))


@pytest.mark.parametrize("client", CLIENTS)
async def test_certificates_that_would_be_looked_at_by_nobody(files: Path, client: str) -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        await publish_once(client, "broker://127.0.0.1:1", tls=files / "ca.pem")
    with pytest.raises(ConfigError, match="got a context, and certificates in the URL"):
        await publish_once(client, f"broker+tls://127.0.0.1:1?ca={files}/ca.pem", tls=ssl.create_default_context())
    with pytest.raises(ConfigError, match="No such file"):
        await publish_once(client, f"broker+tls://127.0.0.1:1?ca={files}/none.pem")
    with pytest.raises(ConfigError, match=r"worker.pem, key .*server-key.pem: key values mismatch"):
        await publish_once(
            client, f"broker+tls://127.0.0.1:1?certificate={files}/worker.pem&key={files}/server-key.pem"
        )
