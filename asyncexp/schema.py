"""The tables of a study as data, and the DDL that makes them; no connection, no driver.

SQL is written in standard form: identifiers in double quotes, parameters as `:name`. `render` turns
it into what a database takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from asyncexp.db.base import Dialect
from asyncexp.errors import InvalidColumnError
from asyncexp.values import ColumnType, key_order

if TYPE_CHECKING:
    from asyncexp.config.models import DatabaseConfig

Special = Literal["ID", "HASH"]

TEXT = ColumnType("LONGTEXT")
WORD = ColumnType("VARCHAR", 255)
INT = ColumnType("INT")
BIGINT = ColumnType("BIGINT")
DOUBLE = ColumnType("DOUBLE")
DATE = ColumnType("DATETIME")
BOOLEAN = ColumnType("BOOLEAN")


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: ColumnType | Special
    default: int | None = None
    """Makes the column NOT NULL with this default."""


@dataclass(frozen=True, slots=True)
class Index:
    columns: tuple[str, ...]
    unique: bool = False
    created_only: bool = False
    """Covers the rows that can be claimed: partial where the database can, led by `status` elsewhere."""

    def name(self, table: str) -> str:
        """`ix_` and 16 hex digits, short enough for every table name, the same on every machine."""
        words = "\0".join([table, *self.columns, str(self.unique), str(self.created_only)])
        return "ix_" + blake2b(words.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...] = ()
    primary_key: tuple[str, ...] = ()
    """Given where the key is not an `ID` of its own."""


BOOKKEEPING = (
    Column("_attempt", INT, 0),
    Column("_worker", BIGINT),
    Column("_heartbeat", DATE),
    Column("_progress", DOUBLE),
    Column("_message", TEXT),
    Column("_not_before", DATE),
    Column("_request", WORD),
    Column("_requested_by", WORD),
    Column("_continues", WORD),
    Column("_counted_from", INT, 0),
    Column("_key_hash", "HASH"),
)
CLAIM_INDEX = Index(("ID",), created_only=True)
RANDOM_INDEX = Index(("_key_hash",), created_only=True)

_EMISSIONS: tuple[tuple[str, ColumnType], ...] = (
    ("codecarbon_timestamp", DATE),
    *((name, WORD) for name in ("project_name", "run_id")),
    *(
        (name, DOUBLE)
        for name in (
            "duration_seconds",
            "emissions_kg",
            "emissions_rate_kg_sec",
            "cpu_power_watt",
            "gpu_power_watt",
            "ram_power_watt",
            "cpu_energy_kw",
            "gpu_energy_kw",
            "ram_energy_kw",
            "energy_consumed_kw",
        )
    ),
    *((name, WORD) for name in ("country_name", "country_iso_code", "region", "cloud_provider", "cloud_region")),
    *((name, WORD) for name in ("os", "python_version", "codecarbon_version")),
    ("cpu_count", DOUBLE),
    ("cpu_model", WORD),
    ("gpu_count", DOUBLE),
    ("gpu_model", WORD),
    ("longitude", WORD),
    ("latitude", WORD),
    ("ram_total_size", DOUBLE),
    ("tracking_mode", WORD),
    ("on_cloud", WORD),
    ("power_usage_efficiency", DOUBLE),
    ("offline_mode", BOOLEAN),
)
_WORKER = (
    Column("id", BIGINT),
    Column("role", WORD),
    Column("experiment_id", BIGINT),
    Column("name", TEXT),
    Column("machine", WORD),
    Column("boot_id", WORD),
    Column("pid_namespace", WORD),
    Column("pid", BIGINT),
    Column("started", DATE),
    Column("heartbeat", DATE),
    Column("lease", DOUBLE),
    Column("stopped", DATE),
    Column("stop_requested", WORD),
    Column("requests", BIGINT, 0),
    Column("last_flush", BIGINT, 0),
    Column("rescued", DATE),
    Column("ended_done", BIGINT, 0),
    Column("ended_error", BIGINT, 0),
    Column("git_commit", WORD),
    Column("git_dirty", BOOLEAN),
    Column("python_version", WORD),
    Column("asyncexp_version", WORD),
    Column("command_line", TEXT),
    Column("slurm_job_id", WORD),
    Column("slurm_array_job_id", WORD),
    Column("slurm_array_task_id", WORD),
)
_ATTEMPT = (
    Column("experiment_id", BIGINT),
    Column("attempt", INT),
    Column("worker", BIGINT),
    Column("ended", DATE),
    Column("outcome", WORD),
    Column("traceback", TEXT),
)


@dataclass(frozen=True)
class Schema:
    """All tables of one study, and which columns of the main table are the user's."""

    name: str
    keyfields: tuple[Column, ...]
    resultfields: tuple[Column, ...]
    result_timestamps: bool
    logtables: Mapping[str, tuple[Column, ...]]
    """Short name -> the user's columns."""
    indexed: tuple[str, ...] = ()
    """Keyfields with `index: true`."""

    @classmethod
    def from_config(cls, config: DatabaseConfig) -> Schema:
        """The schema that a configuration describes.

        Raises:
            InvalidColumnError: an index on a text without a length.
        """
        table = config.table
        for key in table.keyfields:
            if key.index and key.type.name in ("TEXT", "LONGTEXT", "JSON"):
                raise InvalidColumnError(
                    f"keyfield {key.name!r}: `index: true` needs a type with a length; write VARCHAR(n) for {key.type}"
                )
        return cls(
            table.name,
            tuple(Column(k.name, k.type) for k in table.keyfields),
            tuple(Column(r.name, r.type) for r in table.resultfields),
            table.result_timestamps,
            {log.name: tuple(Column(c.name, c.type) for c in log.columns) for log in config.logtables},
            tuple(k.name for k in table.keyfields if k.index),
        )

    @cached_property
    def result_columns(self) -> tuple[Column, ...]:
        """The resultfields, each followed by its timestamp if the study keeps them."""
        if not self.result_timestamps:
            return self.resultfields
        return tuple(c for r in self.resultfields for c in (r, Column(f"{r.name}_timestamp", DATE)))

    @cached_property
    def key_names(self) -> tuple[str, ...]:
        return tuple(k.name for k in self.keyfields)

    @cached_property
    def hash_order(self) -> list[int]:
        """Positions of the keyfields in the order in which their parts are hashed."""
        return [self.key_names.index(name) for name in key_order(self.key_names)]

    @cached_property
    def main(self) -> Table:
        columns = (
            Column("ID", "ID"),
            *self.keyfields,
            Column("creation_date", DATE),
            Column("status", WORD),
            Column("start_date", DATE),
            Column("name", TEXT),
            Column("machine", WORD),
            *self.result_columns,
            Column("end_date", DATE),
            Column("error", TEXT),
            *BOOKKEEPING,
        )
        indexed = tuple(Index((name, "ID"), created_only=True) for name in self.indexed)
        return Table(self.name, columns, (Index(("_key_hash",), unique=True), CLAIM_INDEX, *indexed))

    @cached_property
    def logs(self) -> dict[str, Table]:
        return {name: self._log(name, columns) for name, columns in self.logtables.items()}

    def _log(self, name: str, columns: tuple[Column, ...]) -> Table:
        first = (Column("ID", "ID"), Column("experiment_id", BIGINT), Column("timestamp", DATE))
        return Table(f"{self.name}__{name}", (*first, *columns, Column("_attempt", INT)), (Index(("experiment_id",)),))

    @cached_property
    def codecarbon(self) -> Table:
        fields = (Column(name, type) for name, type in _EMISSIONS)
        columns = (Column("ID", "ID"), Column("experiment_id", BIGINT), *fields, Column("_attempt", INT))
        return Table(f"{self.name}_codecarbon", columns, (Index(("experiment_id",)),))

    @cached_property
    def workers(self) -> Table:
        return Table(f"{self.name}_workers", _WORKER, primary_key=("id",))

    @cached_property
    def attempts(self) -> Table:
        return Table(f"{self.name}_attempts", _ATTEMPT, primary_key=("experiment_id", "attempt"))

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Every table of the study, the main one first."""
        return (self.main, *self.logs.values(), self.codecarbon, self.workers, self.attempts)

    @property
    def channel(self) -> str:
        """Name under which workers of this table wake each other, and of the lock that fills take."""
        return "asyncexp_" + blake2b(self.name.encode(), digest_size=8).hexdigest()


# ---------------------------------------------------------------------------------------------- SQL


def quote(name: str) -> str:
    """A name as a standard SQL identifier."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


_TOKEN = re.compile(r"""("(?:[^"]|"")*")|('(?:[^']|'')*')|(?<![:\w]):([a-z_]\w*)|(%)""")


@lru_cache(maxsize=4096)
def render(text: str, placeholder: str, quoting: str) -> tuple[str, tuple[str, ...]]:
    """Standard SQL as one database takes it, and the names of its parameters in order.

    A `%` is doubled where `%s` marks a parameter, if there are any.
    """
    names: list[str] = []
    numbers: dict[str, int] = {}
    has_parameters = any(match[3] for match in _TOKEN.finditer(text))

    def replace(match: re.Match[str]) -> str:
        identifier, string, name, percent = match.groups()
        if name:
            return _mark(name, names, numbers, placeholder)
        token: str = match[0]
        if identifier and quoting != '"':
            token = quoting + identifier[1:-1].replace('""', '"').replace(quoting, quoting * 2) + quoting
        if placeholder == "%s" and has_parameters and (identifier or string or percent):
            token = token.replace("%", "%%")
        return token

    return _TOKEN.sub(replace, text), tuple(names)


def _mark(name: str, names: list[str], numbers: dict[str, int], placeholder: str) -> str:
    if placeholder != "$":
        names.append(name)
        return placeholder
    if name not in numbers:
        names.append(name)
        numbers[name] = len(names)
    return f"${numbers[name]}"


def declared(column: Column, dialect: Dialect) -> str:
    """The type of a column in DDL."""
    if column.type == "ID":
        return dialect.identity
    if column.type == "HASH":
        return dialect.types["HASH"]
    assert isinstance(column.type, ColumnType)
    sized = column.type.name == "NUMERIC" and column.type.size is not None
    form = dialect.types["NUMERIC_P" if sized else column.type.name]
    return form.format(size=column.type.size, scale=column.type.scale)


def column_ddl(column: Column, dialect: Dialect) -> str:
    """A column as CREATE TABLE and ALTER TABLE ADD take it."""
    default = "" if column.default is None else f" NOT NULL DEFAULT {column.default}"
    return f"{quote(column.name)} {declared(column, dialect)}{default}"


def create_table(table: Table, dialect: Dialect) -> str:
    """CREATE TABLE in standard quoting; no error if the table is there."""
    lines = [column_ddl(column, dialect) for column in table.columns]
    if table.primary_key:
        lines.append(f"PRIMARY KEY ({', '.join(map(quote, table.primary_key))})")
    body = ", ".join(lines)
    return f"CREATE TABLE IF NOT EXISTS {quote(table.name)} ({body}){dialect.table_options}"


def create_index(table: Table, index: Index, dialect: Dialect) -> str:
    """CREATE INDEX in standard quoting; no error if it is there, where DDL is part of a transaction."""
    columns = [quote(name) for name in index.columns]
    where = ""
    if index.created_only:
        if dialect.partial_indexes:
            where = " WHERE \"status\" = 'created'"
        else:
            columns.insert(0, '"status"')
    unique = "UNIQUE " if index.unique else ""
    missing = "IF NOT EXISTS " if dialect.transactional_ddl else ""
    what = f"{unique}INDEX {missing}{quote(index.name(table.name))}"
    return f"CREATE {what} ON {quote(table.name)} ({', '.join(columns)}){where}"


# -------------------------------------------------------------------------------------- comparing

_ALIKE = ({"json", "text"}, {"boolean", "integer"})


def differences(
    table: Table,
    found: Sequence[tuple[str, str]],
    dialect: Dialect,
    *,
    loose: Sequence[str] = (),
    missing: bool = True,
) -> Iterator[str]:
    """What separates a table in the database from its description, one phrase each.

    Names and kinds of type count, order and width do not. Columns named in `loose` may be of any kind;
    `missing` is false where columns that are not there yet do not matter.
    """
    have = dict(found)
    for column in table.columns:
        if column.name not in have:
            if missing:
                yield f"column {column.name!r} is missing"
        elif column.name not in loose and not _same_kind(column, have[column.name], dialect):
            there, here = have[column.name], _wanted(column, dialect)
            yield f"column {column.name!r} is {there!r} in the database, {here!r} in the configuration"
    wanted = {column.name for column in table.columns}
    for name in have:
        if name not in wanted:
            yield f"column {name!r} is in the database, not in the configuration"


def _wanted(column: Column, dialect: Dialect) -> str:
    return "integer" if column.type == "ID" else declared(column, dialect).split("(")[0].strip().lower()


def _same_kind(column: Column, declared_type: str, dialect: Dialect) -> bool:
    here = "integer" if column.type == "ID" else dialect.kinds.get(_bare(declared(column, dialect)))
    there = dialect.kinds.get(_bare(declared_type))
    return here == there or any({here, there} <= alike for alike in _ALIKE)


def _bare(declared_type: str) -> str:
    return re.sub(r"\(.*?\)", "", declared_type).split(" not ")[0].split(" character ")[0].strip().lower()
