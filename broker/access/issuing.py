"""Certificates for development: an authority that signs a few and is forgotten.

The authority's key is never written and ends with the object, so nobody can sign anything else with it: a developer may
have a browser trust it without harm. What is missing later is made anew, authority included.

Needs `cryptography`, which is imported when an issuer is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

from broker.model.settings import invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Issued", "Issuer"]

SKEW = timedelta(hours=1)
"""How far another machine's clock may be behind."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, each a PEM text.

    Attributes:
        certificate: may be seen by anybody.
        key: may not.
    """

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Issued()"


class Issuer:
    """Somebody who signs certificates, for as long as this object lives.

    Args:
        name: What it is called in lists of authorities.
        begins: From when on what it signs is good; None: an hour ago.
        days: For how long, from then on.

    Raises:
        ConfigError: INVALID_CONFIG; `cryptography` is not installed.
    """

    def __init__(self, name: str = "broker development", *, begins: datetime | None = None, days: int = 365) -> None:
        try:
            from cryptography import x509
        except ImportError:
            raise invalid(
                "certificates", "need cryptography, which is not installed", "pip install broker-bus[auth]"
            ) from None
        self._begins = datetime.now(UTC) - SKEW if begins is None else begins
        self._ends = self._begins + SKEW + timedelta(days=days)
        self._subject = common_name(name)
        self._key = draw_key()
        # It signs certificates and no authorities.
        usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
        self._certificate = (
            self._builder(self._subject, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hash_of_signatures())
        )

    @property
    def certificate(self) -> bytes:
        """Its own certificate, PEM: what those hold who believe it."""
        return pem(self._certificate)

    def issue_server(self, names: Sequence[str]) -> Issued:
        """Sign a server's certificate.

        Args:
            names: Host names and IP addresses by which clients reach it; the first is its name.
        """
        return self._issue(names[0], names, for_server=True)

    def issue_client(self, name: str) -> Issued:
        """Sign a client's certificate; the name is what the access file knows it by."""
        return self._issue(name, (), for_server=False)

    def _issue(self, name: str, alternatives: Sequence[str], *, for_server: bool) -> Issued:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = draw_key()
        use = ExtendedKeyUsageOID.SERVER_AUTH if for_server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            self._builder(common_name(name), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        )
        if alternatives:
            names = x509.SubjectAlternativeName([general_name(each) for each in alternatives])
            builder = builder.add_extension(names, critical=False)
        return Issued(
            pem(builder.sign(self._key, hash_of_signatures())),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        from cryptography import x509

        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begins)
            .not_valid_after(self._ends)
            .add_extension(identifier, critical=False)
            .add_extension(signer, critical=False)
        )


def draw_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def hash_of_signatures() -> hashes.SHA256:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def common_name(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def general_name(name: str) -> x509.GeneralName:
    """Return a host's name or address as a certificate has it."""
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)
