"""What the databases' own clients read: DATABASE_URL, PG*, ~/.pgpass, ~/.my.cnf."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
}
_OPTION = re.compile(r"\s*(?P<key>[\w-]+)\s*=\s*(?P<value>.*?)\s*\Z")


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
        for name in ("host", "port", "user"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                return self
        return self.over(other)


def parse_port(text: str, origin: str) -> int:
    """
    Raises:
        InvalidConfigError: not a port.
    """
    if text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= 65535:
        return int(text)
    raise Problem(origin, f"must be a port, a number from 1 to 65535, not {text[:20]!r}").error()


def from_url(provider: str, environment: Mapping[str, str]) -> tuple[Login, Tls | None]:
    """`DATABASE_URL`, if it is about such a database; the name of the database in it is not used.

    Raises:
        InvalidConfigError: it cannot be read; it is not in the message.
    """
    origin = "environment variable DATABASE_URL"
    try:
        url = urlsplit(environment.get("DATABASE_URL", ""))
        if _SCHEMES.get(url.scheme.partition("+")[0].lower()) != provider:
            return Login(), None
        given = Login(_plain(url.hostname), url.port, _plain(url.username), _plain(url.password))
        mode = parse_qs(url.query).get("sslmode", [""])[0]
    except ValueError:
        mode = None
    if mode is None:
        raise Problem(origin, "is no URL such as postgresql://user:password@host:5432/database").error()
    return given, _tls(mode, origin) if mode else None


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


def pg_tls(environment: Mapping[str, str]) -> dict[str, str]:
    """`tls`, `tls_ca`, `tls_cert`, `tls_key` as PGSSLMODE and its kin say."""
    names = {"tls_ca": "PGSSLROOTCERT", "tls_cert": "PGSSLCERT", "tls_key": "PGSSLKEY"}
    found = {key: environment[name] for key, name in names.items() if environment.get(name)}
    if environment.get("PGSSLMODE"):
        found["tls"] = _tls(environment["PGSSLMODE"], "environment variable PGSSLMODE")
    return found


def _tls(mode: str, origin: str) -> Tls:
    """`require` is taken as verify-full: encrypted to whom nobody knows is not what it promises."""
    if mode not in _TLS:
        raise Problem(origin, f"unknown sslmode {mode!r}; known are {', '.join(_TLS)}").error()
    return _TLS[mode]


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
        parts = [part.replace("\0", ":") for part in _unescaped(line).split(":")]
        if len(parts) == 5 and all(p in ("*", w) for p, w in zip(parts, wanted, strict=False)):
            check_private(path, mode)
            return parts[4].replace("\1", "\\")
    return None


def _unescaped(line: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\0" if found[1] == ":" else "\1" if found[1] == "\\" else found[1], line)


def _lines(path: Path) -> tuple[list[str], int]:
    """The lines that are no comments, and the file's mode; none if there is no file."""
    try:
        content, mode = read_bytes(path)
    except NoConfigFileError:
        return [], 0
    lines = decode(content, str(path)).splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith(("#", ";"))], mode


# ------------------------------------------------------------------------------------- ~/.my.cnf


def from_my_cnf(environment: Mapping[str, str]) -> tuple[Login, Path, int]:
    """The section [client] of `~/.my.cnf`, the file and its mode.

    Raises:
        InvalidConfigError: it cannot be read, or its port is not one.
    """
    path = home(environment) / ".my.cnf"
    section, found = "", {}
    lines, mode = _lines(path)
    for line in lines:
        option = _OPTION.match(line)
        if line.strip().startswith("["):
            section = line.strip().strip("[]")
        elif option and section == "client":
            found[option["key"]] = _unquoted(option["value"])
    port = parse_port(found["port"], f"{path}: port") if "port" in found else None
    return Login(found.get("host"), port, found.get("user"), found.get("password")), path, mode


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value.partition(" #")[0].rstrip()


def home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or Path.home())
