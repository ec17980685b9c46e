"""Who wins over whom on the way into the database, and where that way leads."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from asyncexp.config import clients
from asyncexp.config.clients import Login
from asyncexp.config.credentials import DEFAULT_PLACES, AccessForm, SshForm, check_private, read_credentials
from asyncexp.config.document import Problem, looked_for
from asyncexp.config.environment import LOGIN, check_environment, login, place
from asyncexp.config.models import Configuration, DatabaseConfig, SshConfig
from asyncexp.db.base import Target
from asyncexp.errors import NoConfigFileError

Pathish = str | PathLike[str]
_REMOTE_PORTS = {"mysql": 3306, "postgresql": 5432}
_TLS = ("tls", "tls_ca", "tls_cert", "tls_key")


def target(configuration: Configuration, credentials: Pathish | None, environment: Mapping[str, str]) -> Target:
    """Where the database is and how to get in: see the package's `target`."""
    check_environment(environment)
    database = configuration.database
    if database.provider == "sqlite":
        return Target("sqlite", str(sqlite_file(database)))
    access, tried = _access(configuration, credentials)
    known = _from_environment(environment).over(_configured(database)).over(_from_file(access, database, tried))
    found, tls = _clients(known, database, environment)
    if found.user is None:
        raise NoConfigFileError(_nobody(database.provider, tried))
    if found.host is not None and "@" in found.host:  # it would be in every message
        text = "the database's host must be a name or an address, not a URL; user and password have keys of their own"
        raise Problem(tried, text).error()
    return Target(
        provider=database.provider,
        database=database.database,
        host=found.host,
        port=found.port,
        user=found.user,
        password=found.password,
        pgbouncer=database.pgbouncer,
        **tls,
    )


def sqlite_file(database: DatabaseConfig) -> Path:
    """The absolute path of the file; `~` is the home directory."""
    name = database.database
    path = Path(name if name.endswith(".db") else f"{name}.db").expanduser()
    return (database.folder / path).absolute()


def _nobody(provider: str, tried: str) -> str:
    own = "PGUSER" if provider == "postgresql" else "~/.my.cnf"
    return (
        f"Nothing says as which user to enter the {provider} database (credentials: {tried}). "
        f"Write CREDENTIALS.Database.user into that file, or set {LOGIN['user']}, DATABASE_URL or {own}."
    )


def _access(configuration: Configuration, credentials: Pathish | None) -> tuple[AccessForm, str]:
    """What the credentials file says, and which it is; nothing if none was named and none is at its place."""
    path = Path(credentials).expanduser().absolute() if credentials else configuration.credentials
    path = path or next((place.absolute() for place in DEFAULT_PLACES if place.exists()), None)
    if path is None:
        return AccessForm(), f"none at {looked_for(DEFAULT_PLACES)}"
    return read_credentials(path), str(path)


def _from_environment(environment: Mapping[str, str]) -> Login:
    given: dict[str, Any] = login(environment)
    if "port" in given:
        given["port"] = clients.parse_port(given["port"], place(LOGIN["port"]))
    return Login(**given)


def _configured(database: DatabaseConfig) -> Login:
    return Login(host=database.host, port=database.port)


def _from_file(access: AccessForm, database: DatabaseConfig, file: str) -> Login:
    """With a tunnel the server is the one at its far end, by the name and the port that it has there."""
    password = access.database.password
    found = Login(user=access.database.user, password=password.get_secret_value() if password else None)
    if database.use_ssh_tunnel:
        section = _ssh_section(access, file)
        return Login(host=section.server, port=section.remote_port).over(found)
    return Login(host=access.connection.standard.server, port=access.connection.standard.port).over(found)


def _clients(known: Login, database: DatabaseConfig, environment: Mapping[str, str]) -> tuple[Login, dict[str, Any]]:
    url, url_tls = clients.from_url(database.provider, environment)
    tls = url_tls if known.agrees(url) else {}
    known = known.over_whole(url)
    found, own = (_my_cnf if database.provider == "mysql" else _libpq)(known, database, environment)
    configured = {name: getattr(database, name) for name in _TLS}
    return found, configured | {k: v for k, v in (own | tls).items() if k not in database.model_fields_set}


def _libpq(known: Login, database: DatabaseConfig, environment: Mapping[str, str]) -> tuple[Login, clients.TlsFiles]:
    found = known.over(clients.from_pg_variables(environment))
    if found.password is None:
        found = found.over(Login(password=clients.pgpass(found, database.database, environment)))
    return found, clients.pg_tls(environment)


def _my_cnf(known: Login, _: DatabaseConfig, environment: Mapping[str, str]) -> tuple[Login, clients.TlsFiles]:
    own = clients.my_cnf(environment)
    found = known.over_whole(own.login)
    if found.password is not None and known.password is None:
        check_private(own.path, own.mode)
    return found, own.tls if known.agrees(own.login) else {}


# ------------------------------------------------------------------------------------------- ssh


def ssh(configuration: Configuration, credentials: Pathish | None, environment: Mapping[str, str]) -> SshConfig | None:
    """The way through an SSH server: see the package's `ssh`."""
    check_environment(environment)
    database = configuration.database
    if database.provider == "sqlite" or not database.use_ssh_tunnel:
        return None
    access, tried = _access(configuration, credentials)
    form = _ssh_section(access, tried)
    given = {name: getattr(form, name) for name in form.model_fields_set - {"ssh_private_key_password"}}
    given |= {name: str(Path(given[name]).expanduser().absolute()) for name in _FILES if given.get(name)}
    given["server"], given["passphrase"] = form.server, form.passphrase or form.ssh_private_key_password
    given["remote_port"] = form.remote_port or database.port or _REMOTE_PORTS[database.provider]
    return SshConfig(**given)


_FILES = ("key_file", "known_hosts")


def _ssh_section(access: AccessForm, file: str) -> SshForm:
    if access.connection.ssh is None:
        text = "use_ssh_tunnel is on, and CREDENTIALS.Connection.Ssh is missing; write it, or turn it off"
        raise Problem(file, text).error()
    return access.connection.ssh


def find_credentials(credentials: Pathish | None) -> Path | None:
    """The absolute path of the file named, or of the one at a default place; it is not read."""
    if credentials is not None:
        return Path(credentials).expanduser().absolute()
    return next((path.absolute() for path in DEFAULT_PLACES if path.exists()), None)
