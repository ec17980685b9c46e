"""TLS to a database server: what a target asks for, and what its failures mean."""

from __future__ import annotations

import os
import shlex
import ssl
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from asyncexp.db.base import Target
from asyncexp.errors import DatabaseConnectionError

T = TypeVar("T")
_EXPIRED, _NOT_YET_VALID = 10, 9
_OTHER_NAME = (62, 64)
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
"""OpenSSL's numbers (X509_V_ERR_…) of what it finds wrong with a certificate."""


class _Context(ssl.SSLContext):
    """Looks for `server_name` in the certificate, if the server is dialled under another: through a tunnel."""

    server_name: str | None = None
    shows = False
    """Whether it has a certificate of ours to show."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.server_name or server_hostname, session)


def context(target: Target, place: str) -> ssl.SSLContext | None:
    """How to encrypt; None where nothing is to be encrypted: `tls: disable`, or a Unix socket, which stays here.

    Raises:
        DatabaseConnectionError: a file cannot be read or used; the message says which, and how to mend it.
    """
    if target.tls == "disable" or (target.host or "").startswith("/"):
        return None
    made = _Context(ssl.PROTOCOL_TLS_CLIENT)
    made.server_name = target.tls_name
    if target.tls == "prefer":
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    elif target.tls_ca:
        _trust(made, target.tls_ca, place)
    else:
        made.load_default_certs()
    if target.tls_cert:
        _show(made, target.tls_cert, target.tls_key, place)
    return made


def _trust(made: ssl.SSLContext, path: str, place: str) -> None:
    _read(path, "tls_ca", place)
    try:
        made.load_verify_locations(path)
    except ssl.SSLError as error:
        raise _unusable("tls_ca", path, place, "holds no certificate in PEM form") from error


def _show(made: _Context, certificate: str, key: str | None, place: str) -> None:
    name, key = ("tls_key", key) if key else ("tls_cert", certificate)
    if b"CERTIFICATE-----" not in _read(certificate, "tls_cert", place)[0]:
        raise _unusable("tls_cert", certificate, place, "holds no certificate in PEM form")
    content, about = _read(key, name, place)
    if b"PRIVATE KEY-----" not in content:
        raise _unusable(name, key, place, "holds no private key in PEM form; name the file that does in `tls_key`")
    _refuse_encrypted(content, name, key, place)
    _refuse_public(about, name, key, place)
    try:
        made.shows = True
        made.load_cert_chain(certificate, key, password="")  # without one OpenSSL asks the terminal
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            words = f"is not the key of tls_cert {certificate}; name the two that belong together"
            raise _unusable(name, key, place, words) from error
        raise _unusable(name, key, place, f"cannot be used with tls_cert {certificate} ({error.reason})") from error


def _read(path: str, name: str, place: str) -> tuple[bytes, os.stat_result]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(), os.fstat(file.fileno())
    except OSError as error:
        words = f"cannot be read ({error.strerror}); give the path of a PEM file that this user may read"
        raise _unusable(name, path, place, words) from error


def _refuse_encrypted(content: bytes, name: str, path: str, place: str) -> None:
    if b"ENCRYPTED" in content:
        words = "is locked by a passphrase, which cannot be given here; write a key without one: "
        command = f"(umask 077; openssl pkey -in {shlex.quote(path)} -out {shlex.quote(path + '.open')})"
        raise _unusable(name, path, place, words + command)


def _refuse_public(about: os.stat_result, name: str, path: str, place: str) -> None:
    """As libpq does: a key is its owner's alone; one of root's may be read by its group."""
    others = stat.S_IRWXG | stat.S_IRWXO
    if about.st_uid == 0:
        others &= ~stat.S_IRGRP
    if about.st_mode & others:
        mode = stat.filemode(about.st_mode)
        raise _unusable(name, path, place, f"is open to others ({mode}); run: chmod 600 {shlex.quote(path)}")


def _unusable(name: str, path: str, place: str, words: str) -> DatabaseConnectionError:
    return DatabaseConnectionError(f"{place}: {name} {path} {words}")


# ------------------------------------------------------------------------------------------ failures


def missing(place: str) -> DatabaseConnectionError:
    """The server has no TLS, and the target insists."""
    return DatabaseConnectionError(
        f"{place} offers no TLS, but `tls: verify-full` asks for it. Nothing was sent. Turn TLS on at the server, "
        "or set `tls: prefer` if the way there is safe."
    )


def failure(error: BaseException) -> ssl.SSLError | None:
    """The failure of TLS behind an error while connecting; None if TLS did not fail.

    A connection that was cut in the middle of a handshake is none: it may be better next time.
    """
    for each in _causes(error):
        if isinstance(each, ssl.SSLError) and not isinstance(each, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return each
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


async def dialled(dial: Callable[[ssl.SSLContext | None], Awaitable[T]], secret: ssl.SSLContext | None) -> T:
    """What `dial` gives; tried once more if the server ended the connection when it had seen our certificate.

    In TLS 1.3 it says why only when we have begun to speak, and mostly its word is lost: the connection just breaks.
    In TLS 1.2 it says so within the handshake. Where that is not to be had, the first failure stands.
    """
    try:
        return await dial(secret)
    except Exception as error:
        if not isinstance(secret, _Context) or not secret.shows or failure(error) or not _broke(error):
            raise
        first = error
    secret.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        return await dial(secret)
    except Exception as error:
        found = failure(error)
        if found is None or "ALERT" not in str(found.reason) or "VERSION" in str(found.reason):
            raise first from None
        raise


def _broke(error: BaseException) -> bool:
    return any(isinstance(each, ConnectionResetError | BrokenPipeError | EOFError) for each in _causes(error))


def explained(error: ssl.SSLError, target: Target, place: str) -> DatabaseConnectionError:
    """What it means, and how to mend it. It does not mend itself, so it is no outage."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return DatabaseConnectionError(f"{place}: {_distrust(error, target)}")
    reason = str(error.reason or error)
    if "CERTIFICATE_REQUIRED" in reason:
        words = "the server wants a certificate of ours; set `tls_cert` and `tls_key`"
    elif "ALERT" in reason and target.tls_cert:
        words = f"the server refused tls_cert {target.tls_cert} ({reason}); give one whose authority it trusts"
    else:
        words = f"TLS failed ({reason}); check `tls`, and the TLS settings of the server"
    return DatabaseConnectionError(f"{place}: {words}")


def _distrust(error: ssl.SSLCertVerificationError, target: Target) -> str:
    words = error.verify_message.rstrip(".")
    if error.verify_code == _EXPIRED:
        return f"the server's certificate is over its time ({words}); it must be renewed there"
    if error.verify_code == _NOT_YET_VALID:
        return f"the server's certificate is before its time ({words}); is the clock of this machine right?"
    if error.verify_code in _OTHER_NAME:
        mend = "set `host` (through a tunnel `Ssh.server`) to one that it is for"
        return f"the server's certificate is for another name ({words}); {mend}"
    if error.verify_code in _UNKNOWN_ISSUER:
        who = f"tls_ca {target.tls_ca}" if target.tls_ca else "this system"
        mend = "set `tls_ca` to the PEM file of the authority that signed it"
        return f"the server's certificate is signed by nobody whom {who} trusts ({words}); {mend}"
    return f"the server's certificate does not hold ({words})"
