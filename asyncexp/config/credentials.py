"""The file of credentials: read, checked, and refused if others can read a secret in it."""

from __future__ import annotations

import re
import shlex
import stat
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from asyncexp.config.document import Problem, decode, read_bytes
from asyncexp.config.form import Name, Text, nothing, text
from asyncexp.config.ini_file import is_ini, parse_credentials
from asyncexp.config.models import Model, Port
from asyncexp.config.validate import validate
from asyncexp.config.yaml_file import read_tree, resolve

DEFAULT_PLACES = tuple(Path(f"config/database_credentials.{suffix}") for suffix in ("yml", "yaml", "cfg"))
_SECRETS = ("password", "passphrase", "ssh_private_key_password")
_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:\w+\}")

Secret = Annotated[SecretStr, BeforeValidator(text)]


class LoginForm(Model):
    user: Text | None = None
    password: Secret | None = None


class StandardForm(Model):
    server: Name | None = None
    port: Port | None = None


class SshForm(Model):
    server: Name = "127.0.0.1"
    address: Name
    port: Port | None = None
    user: Name | None = None
    key_file: Name | None = None
    ssh_private_key_password: Secret | None = None
    passphrase: Secret | None = None
    known_hosts: Name | None = None
    remote_address: Name = "127.0.0.1"
    remote_port: Port | None = None
    local_address: Name = "127.0.0.1"
    local_port: Port | None = None

    @model_validator(mode="after")
    def _one_passphrase(self) -> Self:
        if self.passphrase is not None and self.ssh_private_key_password is not None:
            raise ValueError("passphrase and ssh_private_key_password are the same thing; leave one out")
        return self


class ConnectionForm(Model):
    standard: Annotated[StandardForm, BeforeValidator(nothing)] = Field(default=StandardForm(), alias="Standard")
    ssh: SshForm | None = Field(default=None, alias="Ssh")


class AccessForm(Model):
    database: Annotated[LoginForm, BeforeValidator(nothing)] = Field(default=LoginForm(), alias="Database")
    connection: Annotated[ConnectionForm, BeforeValidator(nothing)] = Field(
        default=ConnectionForm(), alias="Connection"
    )


class CredentialsForm(Model):
    """The file of credentials."""

    root: AccessForm = Field(alias="CREDENTIALS")


def read_credentials(path: Path) -> AccessForm:
    """
    Raises:
        NoConfigFileError: there is no such file.
        InvalidConfigError: it cannot be read or understood, or it holds a secret and its group or others can
            read it. No value of the file is in the message.
    """
    content, mode = read_bytes(path)
    words, file = decode(content, str(path)), str(path)
    document = parse_credentials(words, file) if is_ini(words) else read_tree(words, file, secret=True)
    if _holds_secret(document.value):
        check_private(path, mode)
    return validate(CredentialsForm, document if is_ini(words) else resolve(document)).root


def _holds_secret(value: Any) -> bool:
    """Whether a secret is written out; one that `${oc.env:NAME}` fetches is elsewhere."""
    if not isinstance(value, dict):
        return False
    return any(
        _is_written(item) if str(key).casefold() in _SECRETS else _holds_secret(item) for key, item in value.items()
    )


def _is_written(item: Any) -> bool:
    return item not in (None, "") and not _FROM_ENVIRONMENT.fullmatch(str(item))


def check_private(path: Path, mode: int) -> None:
    """
    Raises:
        InvalidConfigError: the file's group or others can read it; the message has the command that mends it.
    """
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        command = f"chmod 600 {shlex.quote(str(path))}"
        raise Problem(
            str(path), f"holds a secret and others can read it ({stat.filemode(mode)}); run: {command}"
        ).error()
