"""Making, checking and dropping the tables of a study."""

from __future__ import annotations

from asyncexp.db.base import Transaction
from asyncexp.errors import CreatingTableError, DatabaseQueryError, TableHasWrongStructureError
from asyncexp.schema import BOOKKEEPING, Index, Table, create_index, create_table, differences, quote
from asyncexp.store.fill import end_turn, take_turn
from asyncexp.store.study import Study


async def create(study: Study) -> None:
    """Makes what is missing and checks what is there; creating twice, or by many at once, is no error.

    Raises:
        TableHasWrongStructureError: a table of that name has another structure; nothing was made.
        CreatingTableError: the database refused; its words are in the message.
    """
    missing = await check(study, missing_is_error=False)
    try:
        if missing:
            await _make_all(study)
        await _complete_indexes(study)
    except DatabaseQueryError as refused:
        raise CreatingTableError(f"Table {study.schema.name!r} could not be made: {refused}") from refused


async def _make_all(study: Study) -> None:
    async def work(tx: Transaction) -> None:
        await take_turn(study, tx)
        for table in study.schema.tables:
            await study.execute(tx, create_table(table, study.dialect))
            if study.dialect.transactional_ddl:
                for index in table.indexes:
                    await study.execute(tx, create_index(table, index, study.dialect))

    try:
        await study.db.run(work)
    finally:
        await end_turn(study)


async def _complete_indexes(study: Study) -> None:
    """Makes what is not made with its table: by a database that cannot, by a creation that broke off."""
    for table in study.schema.tables:
        have = await study.db.indexes(table.name)
        for index in table.indexes:
            if index.name(table.name) not in have:
                await make_index(study, table, index)


async def make_index(study: Study, table: Table, index: Index) -> None:
    """Makes an index if it is missing; another process having been faster is no error."""
    name = index.name(table.name)
    if name in await study.db.indexes(table.name):
        return

    async def work(tx: Transaction) -> None:
        await study.execute(tx, create_index(table, index, study.dialect))

    try:
        await study.db.run(work, limit_seconds=600.0)
    except DatabaseQueryError:
        if name not in await study.db.indexes(table.name):
            raise


async def check(study: Study, *, missing_is_error: bool = True, columns_may_miss: bool = False) -> bool:
    """Compares the tables with the configuration; whether any is missing.

    Raises:
        TableHasWrongStructureError: naming each difference, and what to do.
    """
    found: list[str] = []
    missing = False
    for table in study.schema.tables:
        columns = await study.db.columns(table.name)
        if columns is None:
            missing = True
            found += [f"table {table.name!r} is missing"] if missing_is_error else []
            continue
        loose = [c.name for c in table.columns if study.schema.result_timestamps and c.name.endswith("_timestamp")]
        apart = differences(table, columns, study.dialect, loose=loose, missing=not columns_may_miss)
        found += [f"{table.name}: {line}" for line in apart]
    if found:
        raise TableHasWrongStructureError(_explain(study, found))
    return missing


def _explain(study: Study, found: list[str]) -> str:
    shown = "; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")
    mend = "Bring the configuration up to date (the table may have been migrated)"
    if all("missing" in line for line in found):
        old = any(f"column {BOOKKEEPING[0].name!r} is missing" in line for line in found)
        whose = "It looks like a table of PyExperimenter's: call `migrate()` to take it over"
        mend = whose if old else "Call `migrate()` to add what is missing"
    what = f"The table {study.schema.name!r} is not what the configuration describes"
    return f"{what}: {shown}. {mend}, or use another table name."


async def drop(study: Study) -> None:
    """Drops every table of the study; those that do not exist are passed over."""
    for table in reversed(study.schema.tables):
        await study.execute(study.db, f"DROP TABLE IF EXISTS {quote(table.name)}")
