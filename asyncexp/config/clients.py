"""What the databases' own clients read: DATABASE_URL, PG*, ~/.pgpass, ~/.my.cnf."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from asyncexp.config.credentials import check_private
from asyncexp.config.document import Problem, decode, read_bytes
from asyncexp.config.models import Tls
from asyncexp.errors import NoConfigFileError

_SCHEMES = {"postgres": "postgresql", "postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}
_PG = {"host": "PGHOST", "user": "PGUSER", "password": "PGPASSWORD"}
_TLS: dict[str, Tls] = {
    "disable": "disable",
    "allow": "prefer",
    "prefer": "prefer",
    "require": "verify-full",
    "verify-ca": "verify-full",
    "verify-full": "verify-full",
    # as MySQL calls them
    "disabled": "disable",
    "preferred": "prefer",
    "required": "verify-full",
    "verify-identity": "verify-full",
}


@dataclass(frozen=True, slots=True)
class Login:
    """Where the database is and as whom to enter, as far as one source says so."""

    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def over(self, other: Login) -> Login:
        """This, and what it leaves open from the other."""
        gaps = {f.name: getattr(other, f.name) for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **gaps)

    def over_whole(self, other: Login) -> Login:
        """The same, unless the other is about another server or user: its password is not for this one."""
        return self.over(other) if self.agrees(other) else self

    def agrees(self, other: Login) -> bool:
        """Whether the other may be about the same server and user."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("host", "port", "user")]
        return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)


def parse_port(text: str, origin: str) -> int:
    """
    Raises:
        InvalidConfigError: not a port.
    """
    if text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= 65535:
        return int(text)
    raise Problem(origin, f"must be a port, a number from 1 to 65535, not {text[:20]!r}").error()


def from_url(provider: str, environment: Mapping[str, str]) -> tuple[Login, TlsFiles]:
    """`DATABASE_URL`, if it is about such a database; the name of the database in it is not used.

    Raises:
        InvalidConfigError: it cannot be read; it is not in the message.
    """
    origin = "environment variable DATABASE_URL"
    text = environment.get("DATABASE_URL", "")
    if _SCHEMES.get(text.partition(":")[0].partition("+")[0].lower()) != provider:
        return Login(), {}
    try:
        url = urlsplit(text)
        given = Login(_plain(url.hostname), url.port, _plain(url.username), _plain(url.password))
        readable = not url.fragment and "@" not in url.path + url.query
        named = {key: values[0] for key, values in parse_qs(url.query).items()}
    except ValueError:
        readable = False
    if not readable:
        words = "is no URL such as postgresql://user:password@host:5432/database"
        raise Problem(origin, f"{words}; within a password write {_ENCODED}").error()
    return given, _tls_files(named, _IN_URL, origin)


_ENCODED = "%25 for %, %2F for /, %3F for ?, %23 for #, %40 for @, %5B for ["
TlsFiles = dict[str, str]
"""`tls`, `tls_ca`, `tls_cert`, `tls_key`, as far as a source has them."""


def _plain(part: str | None) -> str | None:
    return unquote(part) if part else None


def from_pg_variables(environment: Mapping[str, str]) -> Login:
    """
    Raises:
        InvalidConfigError: PGPORT is not a port.
    """
    port = environment.get("PGPORT")
    named = {key: environment.get(name) or None for key, name in _PG.items()}
    return Login(port=parse_port(port, "environment variable PGPORT") if port else None, **named)


def pg_tls(environment: Mapping[str, str]) -> TlsFiles:
    """`tls`, `tls_ca`, `tls_cert`, `tls_key` as PGSSLMODE and its kin say."""
    return _tls_files(environment, _IN_PG, "environment variable PGSSLMODE")


_IN_PG = {"PGSSLMODE": "tls", "PGSSLROOTCERT": "tls_ca", "PGSSLCERT": "tls_cert", "PGSSLKEY": "tls_key"}
_IN_URL = {"sslmode": "tls", "sslrootcert": "tls_ca", "sslcert": "tls_cert", "sslkey": "tls_key"}
_IN_MY_CNF = {"ssl-mode": "tls", "ssl-ca": "tls_ca", "ssl-cert": "tls_cert", "ssl-key": "tls_key"}
_IN_URL |= _IN_MY_CNF


def _tls_files(given: Mapping[str, str], names: Mapping[str, str], origin: str) -> TlsFiles:
    found = {key: given[name] for name, key in names.items() if given.get(name)}
    if found.get("tls_ca") == "system":  # libpq's word for what is meant here without one
        del found["tls_ca"]
    return found | ({"tls": _tls(found["tls"], origin)} if "tls" in found else {})


def _tls(mode: str, origin: str) -> Tls:
    """`require` is taken as verify-full: encrypted to whom nobody knows is not what it promises."""
    known = _TLS.get(mode.lower().replace("_", "-"))
    if known is None:
        raise Problem(origin, f"unknown sslmode {mode!r}; known are {', '.join(_TLS)}").error()
    return known


# ------------------------------------------------------------------------------------- ~/.pgpass


def pgpass(login: Login, database: str, environment: Mapping[str, str]) -> str | None:
    """The password that PGPASSFILE or `~/.pgpass` has for this login.

    Raises:
        InvalidConfigError: the file has it, and others can read the file.
    """
    path = Path(environment.get("PGPASSFILE") or home(environment) / ".pgpass")
    wanted = (login.host or "localhost", str(login.port or 5432), database, login.user or "")
    lines, mode = _lines(path)
    for line in lines:
        fields = [found[1] for found in _FIELD.finditer(line)]
        if not line.startswith("#") and len(fields) > 4 and all(map(_means, fields, wanted)):
            check_private(path, mode)
            return _unescaped(fields[4])
    return None


_FIELD = re.compile(r"((?:\\.|[^:\\]|\\\Z)*)(?::|\Z)")
"""Up to the next colon that no backslash stands before."""


def _means(field: str, wanted: str) -> bool:
    return field == "*" or _unescaped(field) == wanted


def _unescaped(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field)


def _lines(path: Path) -> tuple[list[str], int]:
    """The lines of a file, and its mode; none if there is no file."""
    try:
        content, mode = read_bytes(path)
    except NoConfigFileError:
        return [], 0
    return [line.rstrip("\r") for line in decode(content, str(path)).split("\n")], mode


# ------------------------------------------------------------------------------------- ~/.my.cnf


@dataclass(frozen=True, slots=True)
class MyCnf:
    """What the section [client] of `~/.my.cnf` says."""

    path: Path
    mode: int
    login: Login
    tls: TlsFiles


def my_cnf(environment: Mapping[str, str]) -> MyCnf:
    """
    Raises:
        InvalidConfigError: it cannot be read, its port is not one, or its ssl-mode is unknown.
    """
    path = home(environment) / ".my.cnf"
    lines, mode = _lines(path)
    found = _client_section(lines)
    port = parse_port(found["port"], f"{path}: port") if "port" in found else None
    login = Login(found.get("host"), port, found.get("user"), found.get("password"))
    if found.get("ssl-verify-server-cert", "0").lower() in ("", "1", "on", "true"):
        found.setdefault("ssl-mode", "verify-full")
    return MyCnf(path, mode, login, _tls_files(found, _IN_MY_CNF, f"{path}: ssl-mode"))


def _client_section(lines: Sequence[str]) -> dict[str, str]:
    """Options as the clients read them: names with - or _, comments, quotes and escapes. A flag is "" here."""
    section, found = "", {}
    for line in map(str.strip, lines):
        if line.startswith("["):
            section = line[1:].partition("]")[0].rstrip()
        elif section == "client" and line and line[0] not in "#;!":
            name, _, value = _uncommented(line).partition("=")
            found[name.strip().replace("_", "-")] = _unquoted(value.strip())
    return found


def _uncommented(line: str) -> str:
    """Without what follows a # outside of quotes."""
    quote, escaped = "", False
    for at, sign in enumerate(line):
        if sign in "'\"" and not escaped and quote in ("", sign):
            quote = "" if quote else sign
        if sign == "#" and not quote:
            return line[:at]
        escaped = bool(quote) and sign == "\\" and not escaped
    return line


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "s": " ", '"': '"', "'": "'", "\\": "\\"}


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), value)


def home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or Path.home())
