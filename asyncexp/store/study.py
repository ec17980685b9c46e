"""A study: its schema on one database, and what every statement about it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Protocol

from asyncexp.db.base import Database, Dialect, Params, Row
from asyncexp.errors import InvalidColumnError, ParameterCombinationError, unknown
from asyncexp.experiment import ExperimentStatus
from asyncexp.fields import Fields
from asyncexp.schema import BIGINT, WORD, Column, Schema, declared, quote, render
from asyncexp.values import ColumnType, decoder, encoder

STATUSES = [status.value for status in ExperimentStatus if status is not ExperimentStatus.ALL]

GROUP = 100
MOST_COMPOSED = 200
"""Texts of statements kept: experiments that report ever other fields must not fill the memory."""
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  (naive, as all our dates)
ALIKE = frozenset({"VARCHAR", "TEXT", "LONGTEXT", "JSON", "INT", "BIGINT", "DOUBLE", "FLOAT"})
"""Types whose canonical values every driver takes as they are: text and numbers of Python's own."""


class Runner(Protocol):
    """A transaction, or a database that commits each statement by itself."""

    async def fetch(self, sql: str, params: Params = ()) -> list[Row]: ...
    async def execute(self, sql: str, params: Params = ()) -> int: ...


@dataclass(frozen=True, slots=True)
class Condition:
    """A piece of a WHERE clause in standard SQL, with its parameters."""

    sql: str = "1 = 1"
    params: Mapping[str, Any] = field(default_factory=dict)


class Study:
    """One table of experiments and all that belongs to it.

    `run`, `fetch` and `execute` take standard SQL with `:name` parameters.
    """

    def __init__(self, db: Database, schema: Schema, warn: Callable[[str], None]) -> None:
        self.db = db
        self.schema = schema
        self.dialect: Dialect = db.dialect
        self.main = quote(schema.main.name)
        self.workers = quote(schema.workers.name)
        self.attempts = quote(schema.attempts.name)
        self._warn = warn
        self._clock_offset = timedelta(0)
        self._composed: dict[Hashable, str] = {}

    def sibling(self, db: Database) -> Study:
        """The same study over another connection."""
        twin = Study(db, self.schema, self._warn)
        twin._clock_offset = self._clock_offset
        return twin

    async def fetch(self, runner: Runner, text: str, **values: Any) -> list[Row]:
        return await runner.fetch(*self.statement(text, values))

    async def execute(self, runner: Runner, text: str, **values: Any) -> int:
        return await runner.execute(*self.statement(text, values))

    def statement(self, text: str, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """A text as the driver takes it, and its parameters in order."""
        sql, names = render(text, self.dialect.placeholder, self.dialect.quote)
        return sql, [values[name] for name in names]

    def composed(self, shape: Hashable, compose: Callable[[], str]) -> str:
        """The text of a statement of this shape, composed once."""
        text = self._composed.get(shape)
        if text is None:
            if len(self._composed) >= MOST_COMPOSED:
                self._composed.clear()
            text = self._composed[shape] = compose()
        return text

    def rendered(self, text: str) -> str:
        return render(text, self.dialect.placeholder, self.dialect.quote)[0]

    # ------------------------------------------------------------------------------------ the clock

    async def set_clock(self) -> None:
        """Learns how far the database's clock is from this process's."""
        asked = utc()
        [(now,)] = await self.fetch(self.db, f"SELECT {self.dialect.now}")
        self._clock_offset = self.date(now) - (asked + (utc() - asked) / 2)

    def clock_is(self, now: Any, asked: datetime) -> None:
        """Takes the database's `now`, read between `asked` and this moment.

        What is known of its clock is changed no further than that shows it to be wrong, however long the answer took.
        """
        date = self.date(now)
        self._clock_offset = min(max(self._clock_offset, date - utc()), date - asked)

    def clock_like(self, other: Study) -> None:
        """Takes over what a sibling learnt of the clock; safe from another thread."""
        self._clock_offset = other._clock_offset

    def now(self) -> Any:
        """The database's time, by this process's clock and the known offset, as a parameter."""
        return self.bound(utc() + self._clock_offset)

    def bound(self, value: Any) -> Any:
        """A canonical value as the driver takes it."""
        adapt = self.dialect.bind.get(type(value))
        return adapt(value) if adapt else value

    def date(self, raw: Any) -> datetime:
        """A date as the driver returned it."""
        value: datetime = decoder(ColumnType("DATETIME"))(raw)
        return value

    # ----------------------------------------------------------------------------------- the codecs

    def encoder(self, column: Column, *, key: bool = False) -> Callable[[object], Any]:
        """User's value -> parameter of the driver.

        The function raises ValueError for what the column cannot hold.
        """
        assert isinstance(column.type, ColumnType)
        encode = encoder(column.type, key=key, warn=lambda text: self._warn(f"{column.name}: {text}"))
        bind = self.dialect.bind
        if not bind or column.type.name in ALIKE:
            return encode
        return lambda value: bound(canonical) if (bound := bind.get(type(canonical := encode(value)))) else canonical

    @cached_property
    def result_encoders(self) -> dict[str, Callable[[object], Any]]:
        return {column.name: self.encoder(column) for column in self.schema.resultfields}

    @cached_property
    def log_encoders(self) -> dict[str, dict[str, Callable[[object], Any]]]:
        return {
            name: {column.name: self.encoder(column) for column in columns}
            for name, columns in self.schema.logtables.items()
        }

    @cached_property
    def fields(self) -> Fields:
        """What an experiment may report, encoded for the driver."""
        return Fields(self.result_encoders, self.log_encoders, lambda: self.db.max_value_bytes)

    @cached_property
    def key_decoders(self) -> list[Callable[[Any], Any]]:
        return [decoder(key.type) for key in self.schema.keyfields if isinstance(key.type, ColumnType)]

    @cached_property
    def _array_types(self) -> dict[str, str]:
        return {column.name: declared(column, self.dialect) for column in self.schema.main.columns}

    def array_type(self, column: str) -> str:
        """The database's type of a column of the main table."""
        return self._array_types[column]

    # ------------------------------------------------------------------------------- lists and dicts

    def member(self, column: str, parameter: str) -> str:
        """SQL for "`column` is one of the integers in `parameter`", bound by `integers`."""
        return self.dialect.member.format(column=column, values=parameter)

    def integers(self, values: Iterable[int]) -> Any:
        return self.dialect.bind_list(values)

    def condition(self, where: Mapping[str, Any] | None, columns: Sequence[Column], prefix: str = "w") -> Condition:
        """`where` as SQL: a value, None, or a list that means any of them, for each column named.

        Raises:
            ParameterCombinationError: an unknown column (the nearest is named) or an impossible value.
        """
        if not isinstance(where, Mapping | None):
            raise ParameterCombinationError(f"where is a dict of columns and values, not {type(where).__name__}")
        known = {column.name: column for column in columns}
        parts: list[str] = []
        params: dict[str, Any] = {}
        for name, wanted in (where or {}).items():
            if name not in known:
                raise ParameterCombinationError(unknown("where: no column", name, known))
            values = list(wanted) if isinstance(wanted, (list, tuple, set, frozenset, range)) else [wanted]
            parts.append(self._any_of(known[name], values, params, f"{prefix}{len(parts)}_"))
        return Condition(" AND ".join(parts) or "1 = 1", params)

    def _any_of(self, column: Column, values: list[Any], params: dict[str, Any], prefix: str) -> str:
        options: list[str] = []
        encode = self.encoder(column)
        for value in values:
            try:
                bound = encode(value)
            except ValueError as wrong:
                raise ParameterCombinationError(f"where: {column.name!r}: {wrong}") from None
            name = f"{prefix}{len(options)}"
            options.append(self._equal(column, bound, name))
            if bound is not None:
                params[name] = bound
        return _any(options) if options else "1 = 0"

    def _equal(self, column: Column, bound: Any, name: str) -> str:
        quoted = quote(column.name)
        if bound is None:
            return f"{quoted} IS NULL"
        assert isinstance(column.type, ColumnType)
        if column.type.name == "JSON":
            quoted = self.dialect.json_text.format(column=quoted)
        if isinstance(bound, str) and column.type.name != "DATETIME":
            return self.dialect.text_equal.format(column=quoted, value=f":{name}")
        return f"{quoted} = :{name}"

    @cached_property
    def filter_columns(self) -> list[Column]:
        """What `condition` of the main table may name."""
        own = [Column("ID", BIGINT), Column("status", WORD), Column("name", WORD), Column("machine", WORD)]
        return [*self.schema.keyfields, *self.schema.resultfields, *own]


def _any(options: list[str]) -> str:
    """Any of the conditions; in groups of groups, for SQLite takes no more than 1,000 `OR` in a row."""
    while len(options) > GROUP:
        options = [f"({' OR '.join(options[start : start + GROUP])})" for start in range(0, len(options), GROUP)]
    return f"({' OR '.join(options)})"


def statuses(given: Sequence[ExperimentStatus | str]) -> list[str]:
    """Names of statuses, `all` spelt out.

    Raises:
        InvalidColumnError: not a status; the nearest is named.
    """
    names = [str(getattr(status, "value", status)).lower() for status in given]
    for name in names:
        if name not in (*STATUSES, "all"):
            raise InvalidColumnError(unknown("no status", name, [*STATUSES, "all"]))
    return list(STATUSES) if "all" in names else list(dict.fromkeys(names))


def utc() -> datetime:
    """The time by this process's clock, naive."""
    return EPOCH + timedelta(seconds=time.time())
