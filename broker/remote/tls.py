"""How a client meets a server by TLS: whom it believes, and what it says when they do not get along."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, TypeAlias

from broker.model.errors import error
from broker.model.settings import invalid
from broker.remote.address import TlsAddress, WebAddress

if TYPE_CHECKING:
    from broker.model.errors import BrokerError
    from broker.remote.address import Address

__all__ = [
    "Trust",
    "client_context",
    "context_for",
    "is_alert",
    "reason_of",
    "refuse_password",
    "speaks_tls",
    "tls_failed",
]

Trust: TypeAlias = "ssl.SSLContext | str | os.PathLike[str] | None"
"""A context, a PEM file of those who sign the server's certificate, or None for whom the system believes."""

HINT_UNTRUSTED = (
    "Name the PEM file of who signs the server's certificate, by ca=FILE in the URL or tls=FILE, and connect by a name "
    "that is in the certificate."
)
HINT_PLAIN = "Does the server speak TLS? It does once tls.certificate is set; else use broker://."
HINT_TLS = "Write broker+tls:// in place of broker://."
ALERT = b"\x15\x03"
HINT_CERTIFICATE = (
    "The server asks for a certificate that its tls.client_ca has signed: certificate=FILE&key=FILE in the URL."
)


def context_for(address: Address | WebAddress, tls: Trust) -> ssl.SSLContext | None:
    """Return the context for an address; None where no TLS is spoken.

    Args:
        address: What its URL says of certificates is taken unless there is a context.
        tls: What the program says; it goes before the URL.

    Raises:
        ConfigError: INVALID_CONFIG; a file cannot be used, or both say what one should. ADDRESS; there is no TLS.
    """
    if not isinstance(address, TlsAddress) and not (isinstance(address, WebAddress) and address.secure):
        if tls is not None:
            # Whoever names certificates expects them to be looked at.
            raise error(
                "ADDRESS",
                "tls: got certificates for a URL without TLS",
                "Connect to broker+tls://host:port or wss://host:port.",
            )
        return None
    if isinstance(tls, ssl.SSLContext):
        if address.ca or address.certificate:
            raise invalid("tls", "got a context, and certificates in the URL", "Say it in one place.")
        return tls
    return client_context(os.fspath(tls) if tls is not None else address.ca, address.certificate, address.key)


def client_context(ca: str = "", certificate: str = "", key: str = "") -> ssl.SSLContext:
    """Return a context that checks the server's certificate and its name. It reads files.

    Args:
        ca: A PEM file of those who sign the server's certificate; empty for whom the system believes.
        certificate, key: PEM files by which the server knows us; empty for none, or the key in the certificate's file.

    Raises:
        ConfigError: INVALID_CONFIG; a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except (OSError, ValueError) as failure:
        raise invalid("tls.ca", f"{ca}: {reason_of(failure)}", "Expected certificates in PEM.") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate:
        try:
            context.load_cert_chain(certificate, key or None, password=refuse_password)
        except (OSError, ValueError) as failure:
            raise invalid(
                "tls.certificate",
                f"{certificate}, key {key or certificate}: {reason_of(failure)}",
                "Expected a certificate and its key in PEM, unencrypted.",
            ) from None
    return context


def tls_failed(failure: ssl.SSLError) -> BrokerError:
    """Return the error of a handshake that failed, or of a connection that ended by an alert."""
    if isinstance(failure, ssl.SSLCertVerificationError):
        return error("TLS_FAILED", f"connecting: the server's certificate: {failure.verify_message}", HINT_UNTRUSTED)
    reason = reason_of(failure, str(failure))
    hint = None
    if "certificate required" in reason or "unknown ca" in reason or "bad certificate" in reason:
        hint = HINT_CERTIFICATE
    elif "wrong version number" in reason or "record layer failure" in reason:
        hint = HINT_PLAIN
    return error("TLS_FAILED", f"connecting: {reason}", hint)


def is_alert(data: memoryview) -> bool:
    """Whether a server's first bytes are an alert of TLS: as a frame, they would be one that is too large."""
    return len(data) > 2 and data[:2] == ALERT and 0 < data[2] < 5


def speaks_tls() -> BrokerError:
    """Return the error of a conversation without TLS that was answered by an alert."""
    return error("TLS_FAILED", "connecting: the server speaks TLS, expected broker+tls://host:port", HINT_TLS)


def refuse_password() -> str:
    """Be asked for the password of a key: a program has nobody to ask."""
    raise ValueError("the key is encrypted")


def reason_of(failure: Exception, otherwise: str = "it holds no PEM") -> str:
    """Return what the library, or the system, says in words; `otherwise` where the library says nothing."""
    if isinstance(failure, ssl.SSLError):
        return failure.reason.replace("_", " ").lower() if failure.reason else otherwise
    return getattr(failure, "strerror", None) or str(failure)
