"""Adding what the configuration has and the tables lack; taking over PyExperimenter's tables.

Nothing is dropped or retyped. Where DDL is part of a transaction all of it is one; elsewhere (MySQL) each
step can be repeated, so that a migration that broke off is finished by the next call.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from asyncexp.db.base import Row, Transaction
from asyncexp.errors import ParameterCombinationError, TableHasWrongStructureError
from asyncexp.schema import DATE, Column, Table, column_ddl, quote
from asyncexp.store import setup, workers
from asyncexp.store.fill import KeyRow, end_turn, take_turn
from asyncexp.store.flush import update
from asyncexp.store.rows import Rows
from asyncexp.store.study import Study
from asyncexp.values import ColumnType, decoder, salted

CHUNK = 5_000
LIMIT_SECONDS = 3600.0
OWN_DATES = ("creation_date", "start_date", "end_date")


async def migrate(study: Study, keyfields: Sequence[Any], logger: logging.Logger) -> None:
    """Brings existing tables up to the configuration; tables that are missing are left for `create`.

    Raises:
        TableHasWrongStructureError: something differs that adding does not mend, a new keyfield has no default, or
            a row cannot be read as configured. Nothing was changed.
    """
    lacking = await missing(study, keyfields)
    defaults = {key.name: key.default for key in keyfields if key.has_default}

    async def work(tx: Transaction) -> list[tuple[int, int]]:
        await take_turn(study, tx)
        for name, columns in lacking.items():
            for column in columns:
                await study.execute(tx, f"ALTER TABLE {quote(name)} ADD COLUMN {column_ddl(column, study.dialect)}")
        new_keys = any(column.name in study.schema.key_names for column in lacking.get(study.schema.name, ()))
        if new_keys and study.schema.workers.name in lacking:
            # Functions under way do not know the new field, and rows without it would be other rows.
            await workers.stop_all(study, tx, "migrate(), which added a keyfield")
        for table in (*study.schema.logs.values(), study.schema.codecarbon):
            if table.name in lacking:
                await _take_over_lines(study, tx, table)
        return await _renew_rows(study, tx, defaults) if study.schema.name in lacking else []

    try:
        repeated = await study.db.run(work, limit_seconds=LIMIT_SECONDS)
    finally:
        await end_turn(study)
    _report(study, lacking, repeated, logger)


async def missing(study: Study, keyfields: Sequence[Any]) -> dict[str, list[Column]]:
    """Tables that exist -> the columns that `migrate` would add to them. Raises as it does."""
    await setup.check(study, missing_is_error=False, columns_may_miss=True)
    lacking = await _lacking(study)
    _check_new_keyfields(study, lacking, {key.name for key in keyfields if key.has_default})
    return lacking


async def _lacking(study: Study) -> dict[str, list[Column]]:
    """Tables that exist -> the columns that they lack."""
    lacking = {}
    for table in study.schema.tables:
        found = await study.db.columns(table.name)
        if found is not None:
            have = {name for name, _ in found}
            lacking[table.name] = [column for column in table.columns if column.name not in have]
    return lacking


def _check_new_keyfields(study: Study, lacking: Mapping[str, list[Column]], defaults: Collection[str]) -> None:
    for column in lacking.get(study.schema.name, ()):
        if column.name in study.schema.key_names and column.name not in defaults:
            raise TableHasWrongStructureError(
                f"keyfield {column.name!r} is new: give it a `default:` in the configuration, for the rows that exist"
            )


def _report(
    study: Study,
    lacking: Mapping[str, list[Column]],
    repeated: Sequence[tuple[int, int]],
    logger: logging.Logger,
) -> None:
    added = {name: [column.name for column in columns] for name, columns in lacking.items() if columns}
    logger.info("Migrated %s: added %s", study.schema.name, added or "nothing")
    if repeated:
        shown = ", ".join(f"{later} (as {first})" for first, later in repeated)
        logger.warning("%d rows repeat the keyfields of another and are kept: ID %s", len(repeated), shown)


async def _take_over_lines(study: Study, tx: Transaction, table: Table) -> None:
    """Lines without an attempt are PyExperimenter's: their dates are local time."""
    date = "timestamp" if any(column.name == "timestamp" for column in table.columns) else "codecarbon_timestamp"
    last = 0
    while rows := await study.fetch(
        tx,
        f'SELECT "ID", {quote(date)} FROM {quote(table.name)} WHERE "_attempt" IS NULL AND "ID" > :last '
        'ORDER BY "ID" LIMIT :chunk',
        last=last,
        chunk=CHUNK,
    ):
        last = rows[-1][0]
        for experiment_id, raw in rows:
            text = f'UPDATE {quote(table.name)} SET {quote(date)} = :date, "_attempt" = 0 WHERE "ID" = :id'
            await study.execute(tx, text, date=_utc(study, raw), id=experiment_id)


async def _renew_rows(study: Study, tx: Transaction, defaults: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Gives every row the hash of its keyfields; rows that repeat another's, as (its ID, theirs)."""
    renewal = _Renewal(study, defaults)
    last = 0
    while rows := await study.fetch(
        tx,
        f'SELECT {", ".join(map(quote, renewal.columns))} FROM {study.main} WHERE "ID" > :last '
        'ORDER BY "ID" LIMIT :chunk',
        last=last,
        chunk=CHUNK,
    ):
        last = rows[-1][0]
        changed = [new for row in rows if (new := renewal.renewed(row)) is not None]
        if changed:
            await update(study, tx, renewal.columns[1:], changed)
    return renewal.repeated


class _Renewal:
    """Renews rows one by one, in the order of their IDs."""

    def __init__(self, study: Study, defaults: Mapping[str, Any]) -> None:
        self._study = study
        self._defaults = defaults
        self._rows = Rows(study)
        self._first: dict[bytes, int] = {}
        self._dates = [
            *OWN_DATES,
            *(c.name for c in study.schema.result_columns if c.type == DATE and _is_stamp(study, c)),
        ]
        self.columns = ["ID", "_key_hash", *study.schema.key_names, *self._dates]
        self.repeated: list[tuple[int, int]] = []

    def renewed(self, row: Row) -> Row | None:
        """The row as it must be, or None if it is so already."""
        experiment_id, old, rest = int(row[0]), row[1] and bytes(row[1]), row[2:]
        width = len(self._study.schema.key_names)
        key = self._key(experiment_id, rest[:width])
        if old is not None and old in (key.hash, salted(key.hash, experiment_id)):
            self._first.setdefault(key.hash, experiment_id)
            return None
        if old is None or self._has_gaps(rest[:width]):
            key = self._key(experiment_id, self._filled(rest[:width]))
        dates = rest[width:] if old is not None else tuple(_utc(self._study, raw) for raw in rest[width:])
        return (experiment_id, self._unique(key.hash, experiment_id), *key.values, *dates)

    def _unique(self, key_hash: bytes, experiment_id: int) -> bytes:
        first = self._first.setdefault(key_hash, experiment_id)
        if first == experiment_id:
            return key_hash
        self.repeated.append((first, experiment_id))
        return salted(key_hash, experiment_id)

    def _has_gaps(self, keys: Row) -> bool:
        names = self._study.schema.key_names
        return any(raw is None and name in self._defaults for name, raw in zip(names, keys, strict=True))

    def _filled(self, keys: Row) -> Row:
        names = self._study.schema.key_names
        return tuple(self._defaults.get(name) if raw is None else raw for name, raw in zip(names, keys, strict=True))

    def _key(self, experiment_id: int, keys: Row) -> KeyRow:
        values = {}
        for column, raw in zip(self._study.schema.keyfields, keys, strict=True):
            assert isinstance(column.type, ColumnType)
            # A Decimal is exact, the float that users see of it is not.
            values[column.name] = raw if isinstance(raw, Decimal) else decoder(column.type)(raw)
        try:
            return self._rows.one(values, f"row with ID {experiment_id}")
        except ParameterCombinationError as wrong:
            raise TableHasWrongStructureError(f"{self._study.schema.name!r} cannot be migrated: {wrong}") from None


def _is_stamp(study: Study, column: Column) -> bool:
    return study.schema.result_timestamps and column.name.endswith("_timestamp")


def _utc(study: Study, raw: Any) -> Any:
    """A date that PyExperimenter wrote, in local time, as ours."""
    if raw is None:
        return None
    local: datetime = study.date(raw)
    return study.bound(local.astimezone(UTC).replace(tzinfo=None))
