"""Authorities and certificates that live as long as a test.

authority = Authority(folder)
server.speak_tls(authority.issue("127.0.0.1"))
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, as PEM files; the key is its owner's alone."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates; `path` is its own, which those trust who trust it."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"{name} of the tests")
        self.path = folder / f"{name}.pem"
        made = _begun(self._name, self._name, self._key, -1, 1)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.path.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))

    def issue(
        self, name: str = HOST, *, from_days: float = -1, to_days: float = 1, passphrase: str | None = None
    ) -> Identity:
        """A certificate for a host name, an address or a user; valid between two moments counted from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _begun(_name(name), self._name, key, from_days, to_days)
        made = made.add_extension(x509.SubjectAlternativeName([_host(name)]), critical=False)
        base = self._folder / f"{self.path.stem}-{next(self._numbers)}"
        found = Identity(base.with_suffix(".crt"), base.with_suffix(".key"))
        found.certificate.write_bytes(_pem(made.sign(self._key, hashes.SHA256())))
        found.key.touch(0o600)
        found.key.write_bytes(_key_pem(key, passphrase))
        return found


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, from_days: float, to_days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=from_days))
        .not_valid_after(now + timedelta(days=to_days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey, passphrase: str | None) -> bytes:
    lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        lock = serialization.BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
