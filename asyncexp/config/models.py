"""The configuration as the rest of the program sees it: validated, frozen, without a secret in any `repr`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    WithJsonSchema,
    model_validator,
)

from asyncexp.values import ColumnType

Provider = Literal["sqlite", "postgresql", "mysql"]
Tls = Literal["disable", "prefer", "verify-full"]


class Model(BaseModel):
    """Frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
Seconds = Annotated[Number, Field(ge=0)]
PositiveSeconds = Annotated[Number, Field(gt=0)]
Port = Annotated[Whole, Field(ge=1, le=65535)]

# ------------------------------------------------------------------------------------- tables


class Keyfield(Model):
    """A parameter: with every other keyfield it says which experiment a row is."""

    name: str
    type: ColumnType
    values: tuple[Any, ...] | None = None
    """Each once, in the column's canonical form (as written, in a JSON column); None: filled from code."""
    default: Any = None
    has_default: bool = False
    index: bool = False


class Column(Model):
    """A resultfield, or a column of a log table."""

    name: str
    type: ColumnType


class TableConfig(Model):
    name: str
    keyfields: tuple[Keyfield, ...]
    resultfields: tuple[Column, ...] = ()
    result_timestamps: bool = False
    """Whether each resultfield is followed by `<field>_timestamp`."""


class LogTable(Model):
    name: str
    """As in the file; the table in the database is `<table>__<name>`."""
    columns: tuple[Column, ...]


class DatabaseConfig(Model):
    provider: Provider
    database: str
    """The name; for SQLite of the file, `.db` appended unless it is there."""
    folder: Path = Path()
    """Where a relative SQLite file begins: the working directory when the configuration was read."""
    use_ssh_tunnel: bool | None = None
    host: str | None = None
    port: Port | None = None
    tls: Tls = "prefer"
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    pgbouncer: bool = False
    table: TableConfig
    logtables: tuple[LogTable, ...] = ()


# ---------------------------------------------------------------------------------- execution


def _retry_on(value: Any) -> Any:
    """One name, several in one text, one exception class, or a list of names and classes: as a list."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return [value] if isinstance(value, type) else value


def _exception(value: Any) -> Any:
    is_name = isinstance(value, str) and all(part.isidentifier() for part in value.split("."))
    if is_name or (isinstance(value, type) and issubclass(value, BaseException)):
        return value
    raise ValueError(f"must be exception classes or their dotted names, such as OSError, not {value!r}")


def _worker_env(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: _texts(name, item) for name, item in value.items()}


def _texts(name: Any, value: Any) -> Any:
    """Numbers as text; a list is kept as one, to be dealt out by slot number."""
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name!r}: the list is empty")
        return tuple(_texts(name, item) for item in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name!r} must be text (in quotes), a number, or a list of them, not {value!r}")
    return str(value)


_TEXT_OR_NUMBER = {"anyOf": [{"type": "string"}, {"type": "number"}]}
_ENV_SCHEMA = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [*_TEXT_OR_NUMBER["anyOf"], {"type": "array", "items": _TEXT_OR_NUMBER, "minItems": 1}]
    },
}
_RETRY_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
    "default": None,
}
ExceptionName = Annotated[str | type[BaseException], BeforeValidator(_exception)]


class ExecutionConfig(Model):
    """How `execute` runs experiments. Time spans are seconds."""

    pool: Literal["task", "process"] | None = None
    """None: tasks for `async def`, child processes for `def`."""
    timeout: PositiveSeconds | None = None
    stall_timeout: PositiveSeconds | None = None
    max_attempts: Annotated[Whole, Field(ge=1)] = 3
    retries: Annotated[Whole, Field(ge=0)] = 0
    retry_delay: Seconds = 0.0
    retry_on: Annotated[tuple[ExceptionName, ...] | None, BeforeValidator(_retry_on), WithJsonSchema(_RETRY_SCHEMA)] = (
        None
    )
    """Classes or dotted names; None: every exception. See `retry_types`."""
    max_errors: Annotated[Whole, Field(ge=-1)] | None = None
    """None: stop when the first 20 rows fail alike; -1: never."""
    grace: Seconds = 20.0
    heartbeat_interval: PositiveSeconds = 15.0
    lease: PositiveSeconds = 60.0
    on_outage: Literal["continue", "stop"] = "continue"
    database_wait: Seconds = 60.0
    poll_interval: PositiveSeconds = 1.0
    max_tasks_per_child: Annotated[Whole, Field(ge=1)] | None = None
    worker_env: Annotated[
        Mapping[str, str | tuple[str, ...]], BeforeValidator(_worker_env), WithJsonSchema(_ENV_SCHEMA)
    ] = Field(default_factory=dict)
    """Name -> value; of a tuple each slot gets the one at its number, modulo the length."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_errors == 0:
            raise ValueError("max_errors must be a number from 1 on, or -1 for no limit; 0 is neither")
        if self.lease < 4 * self.heartbeat_interval:
            raise ValueError(
                f"lease ({self.lease:g} s) must be at least four times heartbeat_interval "
                f"({self.heartbeat_interval:g} s), or a worker that is only busy would be taken for dead; "
                f"write lease: {4 * self.heartbeat_interval:g}"
            )
        return self


# ------------------------------------------------------------------------------------- the whole


class Configuration(Model):
    """One configuration, with what arguments and environment override. It pickles, and holds no secret."""

    path: Path | None = None
    credentials: Path | None = None
    """The credentials file given, or found at a default place; not yet read."""
    n_jobs: int = 1
    """How many at once; -1: the usable cores. See `slots`."""
    database: DatabaseConfig
    execution: ExecutionConfig = ExecutionConfig()
    custom: dict[Any, Any] = Field(default_factory=dict, repr=False)
    codecarbon: dict[Any, Any] = Field(default_factory=dict, repr=False)

    def slots(self, n_jobs: int | None = None) -> int:
        """How many experiments run at once: `n_jobs` if given, else as configured; -1 is the usable cores."""
        wanted = self.n_jobs if n_jobs is None else n_jobs
        return usable_cores() if wanted == -1 else wanted


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SshConfig(Model):
    """The way through an SSH server, as the credentials file gives it. The passphrase goes into no pickle."""

    server: str
    """The database's host under which its TLS certificate is checked."""
    address: str
    """The SSH server."""
    port: Port | None = None
    """None: as `~/.ssh/config` says, else 22; `user` likewise, else the user of this process."""
    user: str | None = None
    key_file: str | None = None
    """Absolute path of the private key; None: the agent's and the default ones."""
    passphrase: SecretStr | None = None
    known_hosts: str | None = None
    """Absolute path; None: those that ssh looks into. A host that is in none is refused."""
    remote_address: str = "127.0.0.1"
    """The database's host as the SSH server sees it."""
    remote_port: Port
    local_address: str = "127.0.0.1"
    local_port: Port | None = None
    """None: a free one."""

    def __getstate__(self) -> dict[Any, Any]:
        if self.passphrase is not None:
            raise TypeError("an SshConfig holds a passphrase: another process reads the credentials for itself")
        return super().__getstate__()


EXECUTION_KEYS = tuple(ExecutionConfig.model_fields)
PROVIDERS: tuple[str, ...] = get_args(Provider)
