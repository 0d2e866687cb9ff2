"""New certificates while connections are open: the old connections stay, new ones meet what the files hold now."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker import connect
from broker.config import TlsConfig
from broker.edge.certificates import server_context
from broker.model.errors import ConfigError, Unavailable
from tests.tls.places import publish_once, served, until

if TYPE_CHECKING:
    from tests.tls.places import Place


@pytest.fixture
def own(files: Path, tmp_path: Path) -> Path:
    """A copy of the certificates that the test may change."""
    return Path(shutil.copytree(files, tmp_path / "own"))


def replace(folder: Path, name: str, by: str) -> None:
    """Put one file in another's place, as tools do that renew certificates."""
    shutil.copy(folder / by, folder / "aside")
    os.utime(folder / "aside")
    (folder / "aside").replace(folder / name)


async def shown(place: Place) -> bytes:
    """Return the certificate that a new connection is shown."""
    _, writer = await place.open(place.context())
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


def der(folder: Path, name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((folder / f"{name}.pem").read_text())


async def test_connections_stay_when_the_certificate_changes(
    own: Path, tmp_path: Path, loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "broker"):
        async with (
            served(tmp_path / "data", own) as place,
            connect(place.url()) as bus,
            bus.subscribe("t.>") as reader,
        ):
            await bus.publish("t.one", b"before")
            assert await shown(place) == der(own, "server")
            replace(own, "server-key.pem", "next-key.pem")
            place.certificates.look_now()
            await until(lambda: "certificates_refused" in caplog.text)
            assert await shown(place) == der(own, "server"), "one file of two is no certificate"
            before = der(own, "server")
            replace(own, "server.pem", "next.pem")
            await until(lambda: "certificates_renewed" in caplog.text)
            assert await shown(place) == der(own, "next") != before
            await bus.publish("t.one", b"after")
            payloads = []
            async for message in reader:
                payloads.append(message.payload)
                if len(payloads) == 2:
                    break
            assert payloads == [b"before", b"after"]
            assert not reader.events
            assert caplog.text.count("certificates_refused") == 1, "told once, however often it is looked at"


async def test_who_is_believed_changes_too(own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "broker"):
        async with served(tmp_path / "data", own, client_ca=str(own / "ca.pem")) as place:
            worker = place.url(certificate="worker", key="worker-key")
            async with connect(worker) as bus:
                replace(own, "ours.pem", "ca.pem")
                replace(own, "ca.pem", "stranger.pem")
                place.certificates.look_now()
                await until(lambda: "certificates_renewed" in caplog.text)
                assert (await bus.publish("t.one", b"still here")).sequence == 1
            context = ssl.create_default_context(cafile=own / "ours.pem")
            with pytest.raises(Unavailable, match="unknown ca"):
                await publish_once("asyncio", worker.replace("ca.pem", "ours.pem", 1))
            context.load_cert_chain(own / "intruder.pem", own / "intruder-key.pem")
            assert await publish_once("asyncio", worker.partition("?")[0], tls=context) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no certificate", r"tls\.certificate: .*server\.pem: No such file"),
        ("no key", r"tls\.key: .*server-key\.pem: No such file"),
        ("not PEM", r"tls\.certificate: .*it holds no PEM"),
        ("another key", r"tls\.certificate: .*key values mismatch"),
        ("encrypted", r"tls\.certificate: .*the key is encrypted"),
        ("open key", r"tls\.key: .*got mode 0644, expected nothing for others"),
        ("no CA", r"tls\.client_ca: .*ca\.pem: No such file"),
        ("empty CA", r"tls\.client_ca: .*no certificate or crl found"),
    ],
)
def test_files_that_cannot_be_used(own: Path, change: str, said: str) -> None:
    key = own / "server-key.pem"
    if change == "no certificate":
        (own / "server.pem").unlink()
    elif change == "no key":
        key.unlink()
    elif change == "not PEM":
        (own / "server.pem").write_bytes(b"no PEM")
    elif change == "another key":
        shutil.copy(own / "next-key.pem", key)
    elif change == "encrypted":
        from cryptography.hazmat.primitives import serialization

        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        key.write_bytes(
            loaded.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"x"),
            )
        )
    elif change == "open key":
        key.chmod(0o644)
    elif change == "no CA":
        (own / "ca.pem").unlink()
    elif change == "empty CA":
        (own / "ca.pem").write_bytes(b"")
    config = TlsConfig(
        certificate=str(own / "server.pem"), key=str(key), client_ca=str(own / "ca.pem") if "CA" in change else ""
    )
    with pytest.raises(ConfigError, match=said):
        server_context(config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"certificate": "a"}, r"tls\.key"),
        ({"key": "a"}, r"tls\.certificate"),
        ({"client_ca": "a"}, r"tls\.certificate"),
        ({"min_version": "1.1"}, r"tls\.min_version"),
        ({"certificate": "a", "key": "b", "clients": "some"}, r"tls\.clients"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TlsConfig(**settings)
