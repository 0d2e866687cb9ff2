"""The server's certificate, its key and whose clients it believes: read at the start, and again when a file changes.

Connections keep to what held when they came, so a new certificate drops nobody. Files are looked at once a second, and
at SIGHUP, by another thread than the loop's. A certificate and its key are two files that nobody replaces at one
instant: what does not fit together is told once and tried again when a file has changed, and until then the old ones
serve.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
from typing import TYPE_CHECKING, NamedTuple

from broker.events import emit
from broker.model.errors import BrokerError
from broker.model.settings import invalid
from broker.remote.tls import reason_of, refuse_password

if TYPE_CHECKING:
    from broker.config.sections import TlsConfig

__all__ = ["Certificates", "server_context"]

LOOK_S = 1.0
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has no others."""
PROTOCOLS = ("http/1.1",)
"""What browsers may ask for by ALPN; the native protocol asks for none."""


class Stamp(NamedTuple):
    """What tells one state of a file from another."""

    modified_ns: int
    size: int
    inode: int


class Certificates:
    """What new connections are met with.

    Args:
        config: Which files, and which versions.

    Attributes:
        context: For the next connection.

    Raises:
        ConfigError: INVALID_CONFIG; the files cannot be used.
    """

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._paths = [path for path in (config.certificate, config.key, config.client_ca) if path]
        self._stamps = self._look()
        self.context = server_context(config)
        self._watching: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def watch(self) -> None:
        """Begin to look for new files; on the loop, until `close`."""
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name="broker certificates")

    def look_now(self) -> None:
        """Look at once."""
        self._changed.set()

    def close(self) -> None:
        """Look no more."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            await asyncio.to_thread(self._renew)

    def _renew(self) -> None:
        """Read the files if one of them has changed. A thread of its own."""
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self.context = server_context(self._config)
        except BrokerError as failure:
            emit("certificates_refused", code=failure.name, detail=failure.detail, hint=failure.hint)
        else:
            emit("certificates_renewed", certificate=self._config.certificate)

    def _look(self) -> list[Stamp | None]:
        return [stamp_of(path) for path in self._paths]


def stamp_of(path: str) -> Stamp | None:
    """Return what a file is like; None when it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


def server_context(config: TlsConfig) -> ssl.SSLContext:
    """Return a context with what the files hold now. It reads files.

    Raises:
        ConfigError: INVALID_CONFIG; a file cannot be read, does not hold what it should, or others may read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[config.min_version]
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(PROTOCOLS)
    # A peer that asks for handshake after handshake would have us work for nothing.
    context.options |= ssl.OP_NO_RENEGOTIATION
    check_key(config.key)
    readable("tls.certificate", config.certificate)
    try:
        context.load_cert_chain(config.certificate, config.key, password=refuse_password)
    except (OSError, ValueError) as failure:
        raise invalid(
            "tls.certificate",
            f"{config.certificate} and tls.key {config.key}: {reason_of(failure)}",
            "Expected a PEM file with the certificate and those that sign it, and the key of the first, unencrypted.",
        ) from None
    if config.client_ca:
        readable("tls.client_ca", config.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if config.clients == "required" else ssl.CERT_OPTIONAL
        # A resumed session would outlive the certificate that it was opened with.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_verify_locations(config.client_ca)
        except (OSError, ValueError) as failure:
            raise invalid(
                "tls.client_ca", f"{config.client_ca}: {reason_of(failure)}", "Expected certificates in PEM."
            ) from None
    return context


def check_key(path: str) -> None:
    """Refuse a key that everybody on the machine may read."""
    mode = readable("tls.key", path)
    if mode & (stat.S_IRWXO):
        raise invalid(
            "tls.key",
            f"{path}: got mode {stat.S_IMODE(mode):04o}, expected nothing for others",
            f"chmod o= {path}; if others may have read it, make a new key.",
        )


def readable(key: str, path: str) -> int:
    """Return the mode of a file that can be read."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mode
    except OSError as failure:
        raise invalid(key, f"{path}: {failure.strerror}") from None
