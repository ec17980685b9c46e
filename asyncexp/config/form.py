"""What may stand in the file of an experiment, key for key; the JSON schema is written from it."""

from __future__ import annotations

from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from asyncexp.config.models import ExecutionConfig, Model, Port, Provider, Tls, Whole
from asyncexp.values import ColumnType, TypeName


def text(value: Any) -> Any:
    """Text as it is; a number is refused, for YAML has already read 007 as 7."""
    if isinstance(value, str):
        return value
    raise ValueError("must be text; write it in quotes")


def nothing(value: Any) -> Any:
    """A section that is left blank is an empty one."""
    return {} if value is None else value


def _column_type(value: Any) -> ColumnType:
    if not isinstance(value, str):
        raise ValueError("must be a column type, such as INT or VARCHAR(255)")
    return ColumnType.parse("VARCHAR" if value.strip().lower() in ("str", "string") else value)


def check_jobs(value: int) -> int:
    """
    Raises:
        ValueError: neither a number of jobs nor -1.
    """
    if value == 0 or value < -1:
        raise ValueError(f"must be a number from 1 on, or -1 for all usable cores, not {value}")
    return value


def _spelt(value: Any) -> Any:
    """The short `name: TYPE` is a keyfield without values."""
    return {"type": value} if isinstance(value, str) else value


def _any_case(word: str) -> str:
    return "".join(f"[{letter}{letter.lower()}]" for letter in word)


TYPES = [*get_args(TypeName), "INTEGER", "DECIMAL", "REAL", "BOOL", "TIMESTAMP", "STR", "STRING"]
TYPE_SCHEMA = {
    "type": "string",
    "pattern": rf"^\s*({'|'.join(map(_any_case, TYPES))})\s*(\(\s*[0-9]+\s*(,\s*[0-9]+\s*)?\))?\s*$",
    "description": "VARCHAR(n), INT, BIGINT, NUMERIC(p,s), DOUBLE, FLOAT, BOOLEAN, DATETIME, TEXT, LONGTEXT or JSON.",
}
_VALUES_SCHEMA = {
    "anyOf": [
        {"type": "array", "minItems": 1},
        {
            "type": "object",
            "properties": {
                "start": {"type": "number"},
                "stop": {"type": "number", "description": "Excluded."},
                "step": {"type": "number", "default": 1},
            },
            "required": ["start", "stop"],
            "additionalProperties": False,
        },
    ]
}

Text = Annotated[str, BeforeValidator(text)]
Name = Annotated[str, Field(min_length=1), BeforeValidator(text)]
Type = Annotated[ColumnType, PlainValidator(_column_type), WithJsonSchema(TYPE_SCHEMA)]
Jobs = Annotated[Whole, AfterValidator(check_jobs)]


class KeyfieldForm(Model):
    type: Type
    values: Annotated[Any, WithJsonSchema(_VALUES_SCHEMA)] = Field(
        default=None, description="A list, or a range; without values, rows are filled from code."
    )
    default: Any = Field(default=None, description="Fills old rows when `migrate` adds this keyfield.")
    index: bool = Field(default=False, description="Makes an index, for `where` on large tables.")


class TableForm(Model):
    name: Name = Field(description="The table's name.")
    keyfields: dict[Text, Annotated[KeyfieldForm, BeforeValidator(_spelt)]] = Field(
        min_length=1, description="The parameters: name: {type, values}, or name: TYPE."
    )
    resultfields: Annotated[dict[Text, Type], BeforeValidator(nothing)] = Field(
        default_factory=dict, description="The results: name: TYPE."
    )
    result_timestamps: bool = Field(
        default=False, description="Follows each resultfield by a column `<field>_timestamp`."
    )


LogColumns = Annotated[dict[Text, Type], Field(min_length=1)]


class DatabaseForm(Model):
    provider: Provider = Field(description="Which database.")
    database: Name = Field(description="Its name; for SQLite the file, `.db` appended unless it is there.")
    use_ssh_tunnel: bool | None = Field(default=None, description="Reach the database through SSH.")
    use_ssh: bool | None = Field(default=None, description="The older spelling of use_ssh_tunnel.")
    host: Name | None = Field(default=None, description="The database's host.")
    port: Port | None = Field(default=None, description="The database's port.")
    tls: Tls = Field(default="prefer", description="Whether the connection is encrypted and verified.")
    tls_ca: Name | None = Field(default=None, description="PEM file of the authorities to trust.")
    tls_cert: Name | None = Field(default=None, description="PEM file of the client's certificate.")
    tls_key: Name | None = Field(default=None, description="PEM file of the client's private key.")
    pgbouncer: bool = Field(default=False, description="PostgreSQL is reached through pgbouncer.")
    table: TableForm
    logtables: Annotated[dict[Text, LogColumns], BeforeValidator(nothing)] = Field(
        default_factory=dict, description="The log tables: name: {column: TYPE}."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if None not in (self.use_ssh, self.use_ssh_tunnel) and self.use_ssh != self.use_ssh_tunnel:
            raise ValueError("use_ssh and use_ssh_tunnel say different things; leave use_ssh out")
        if self.tls_key and not self.tls_cert:
            raise ValueError("tls_key is given without tls_cert")
        return self


AnyKeys = Annotated[dict[Any, Any], BeforeValidator(nothing)]


class RootForm(Model):
    n_jobs: Jobs = Field(default=1, description="How many experiments at once; -1: all usable cores.")
    database: DatabaseForm = Field(alias="Database")
    execution: Annotated[ExecutionConfig, BeforeValidator(nothing)] = Field(
        default=ExecutionConfig(), alias="Execution"
    )
    custom: AnyKeys = Field(
        default_factory=dict, alias="Custom", description="Given to every experiment as `custom_fields`."
    )
    codecarbon: AnyKeys = Field(
        default_factory=dict, alias="CodeCarbon", description="Settings of codecarbon's tracker."
    )


class ConfigurationForm(Model):
    """The file of an experiment."""

    root: RootForm = Field(alias="PY_EXPERIMENTER")
