"""YAML or .cfg → validated, frozen models; credentials; every error with its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from asyncexp.config import access, keywords
from asyncexp.config.build import build
from asyncexp.config.document import Document, first_existing, read_text, sealed
from asyncexp.config.environment import override
from asyncexp.config.ini_file import is_ini, parse_configuration
from asyncexp.config.keywords import retry_types
from asyncexp.config.models import Configuration, ExecutionConfig, SshConfig
from asyncexp.config.yaml_file import parse
from asyncexp.db.base import Target

__all__ = ["DEFAULT_PLACES", "execution", "json_schema", "load", "retry_types", "ssh", "target"]

DEFAULT_PLACES = tuple(Path(f"config/experiment_configuration.{suffix}") for suffix in ("yml", "yaml", "cfg"))


@sealed
def load(
    path: str | PathLike[str] | None = None,
    *,
    credentials: str | PathLike[str] | None = None,
    database_name: str | None = None,
    table_name: str | None = None,
    use_ssh_tunnel: bool | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Configuration:
    """The configuration of a file, or of the first at a default place, under what arguments and environment say.

    The credentials file is found, and not yet read. Nothing is connected to.

    Raises:
        NoConfigFileError: there is none; the message lists the places tried.
        ConfigError: something in it is wrong: one line each, with file, line and column.
    """
    if path is None:
        path = first_existing(DEFAULT_PLACES, "experiment configuration")
    file = Path(path).expanduser().absolute()
    document = override(_read(file, str(path)), environment)
    document = _arguments(document, database_name, table_name, use_ssh_tunnel)
    return build(document, file, access.find_credentials(credentials))


def _read(file: Path, shown: str) -> Document:
    text = read_text(file)
    return parse_configuration(text, shown) if is_ini(text) else parse(text, shown)


def _arguments(document: Document, database: str | None, table: str | None, tunnel: bool | None) -> Document:
    section = ("PY_EXPERIMENTER", "Database")
    if database is not None:
        document = document.override((*section, "database"), database, "argument database_name")
    if table is not None:
        document = document.override((*section, "table", "name"), table, "argument table_name")
    if tunnel is not None:
        document = document.override((*section, "use_ssh_tunnel"), tunnel, "argument use_ssh_tunnel")
        document = document.override((*section, "use_ssh"), tunnel, "argument use_ssh_tunnel")
    return document


@sealed
def target(
    configuration: Configuration,
    credentials: str | PathLike[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Target:
    """Where the database is and how to get in.

    Each of host, port, user and password comes from the first that says it: ASYNCEXP_DATABASE__*, the
    configuration, the credentials file, then DATABASE_URL, PG*, ~/.pgpass (PostgreSQL), ~/.my.cnf (MySQL).
    DATABASE_URL and ~/.my.cnf are passed over if they are about another server or user than is known by
    then. For SQLite it is the absolute path of the file, and nothing is read.

    Raises:
        NoConfigFileError: no credentials at the path given, or nothing that says a user.
        InvalidConfigError: the credentials are wrong, or others can read a secret in them.
    """
    return access.target(configuration, credentials, environment)


@sealed
def ssh(
    configuration: Configuration,
    credentials: str | PathLike[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> SshConfig | None:
    """The SSH server to go through; None if the configuration wants no tunnel.

    Raises:
        NoConfigFileError, InvalidConfigError: as `target`; the section Connection.Ssh is missing.
    """
    return access.ssh(configuration, credentials, environment)


@sealed
def execution(
    configuration: Configuration, environment: Mapping[str, str] = os.environ, **overrides: Any
) -> ExecutionConfig:
    """How one call of `execute` runs: its keywords, then ASYNCEXP_EXECUTION__*, then the configuration.

    Raises:
        InvalidConfigError: an unknown keyword or a value that does not fit; the message names the nearest.
    """
    return keywords.execution(configuration, environment, **overrides)


def json_schema() -> dict[str, Any]:
    """The JSON schema of the YAML, for editors."""
    from asyncexp.config.editors import json_schema as write

    return write()
