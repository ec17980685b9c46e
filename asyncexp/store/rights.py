"""What this user may do to the tables: tried, each by a statement that changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex

from asyncexp.db.base import MissingTable, Outage, Transaction
from asyncexp.errors import DatabaseError
from asyncexp.schema import BIGINT, Column, Index, Table, create_index, create_table, quote
from asyncexp.store.study import Study

MAKING = ("CREATE", "INDEX", "ALTER", "DROP")


@dataclass(frozen=True, slots=True)
class Right:
    """One thing that was tried."""

    action: str
    """`SELECT`, `INSERT`, `UPDATE`, `DELETE`; of tables yet to be made `CREATE`, `INDEX`, `DROP`."""
    table: str | None
    """None: not of a single table."""
    refusal: str | None
    """What the database said; None: it is allowed."""


@dataclass(frozen=True, slots=True)
class Rights:
    """All that was tried."""

    tried: tuple[Right, ...]
    user: str | None
    """As whom the server knows us; None: there are no users."""
    grants: tuple[str, ...]
    """Statements by which the server's administrator gives what is lacking to read and write rows."""
    grants_to_make: tuple[str, ...]
    """The same to make and change tables."""

    @property
    def refused(self) -> tuple[Right, ...]:
        """What this user may not do."""
        return tuple(right for right in self.tried if right.refusal is not None)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that are there, or are not to be seen."""
        return tuple(dict.fromkeys(right.table for right in self.tried if right.table is not None))


async def tried(study: Study) -> Rights:
    """Tries the rows of every table that is there, and whether tables may be made."""
    found: list[Right] = []
    for table in study.schema.tables:
        found += await _of_rows(study, table)
    main_is_there = any(right.table == study.schema.name for right in found)
    found += await (_making(study) if study.dialect.transactional_ddl else _making_for_good(study, main_is_there))
    user = await _user(study)
    if user is None:
        return Rights(tuple(found), None, (), ())
    refused = [right for right in found if right.refusal is not None]
    of_rows = [right for right in refused if right.table is not None]
    to_make = _grants_to_make(study, *user) if len(of_rows) < len(refused) else ()
    return Rights(tuple(found), user[0], tuple(_grants(study, of_rows, *user)), to_make)


async def _of_rows(study: Study, table: Table) -> list[Right]:
    """Nothing if the table is not there."""
    found = []
    for action, text in _statements(table).items():
        try:
            found.append(Right(action, table.name, await _refusal(study, text)))
        except MissingTable:  # or a column, in a table of another structure
            return []
    return found


def _statements(table: Table) -> Mapping[str, str]:
    name, column = quote(table.name), quote(_nullable(table).name)
    # A key without a default must be among the columns: MariaDB looks before it sees that there are no rows.
    keys = [quote(key) for key in table.primary_key]
    columns, nulls = ", ".join([*keys, column]), ", ".join(["0"] * len(keys) + ["NULL"])
    return {
        "SELECT": f"SELECT {column} FROM {name} WHERE 1 = 0",
        "INSERT": f'INSERT INTO {name} ({columns}) SELECT {nulls} FROM (SELECT 1 AS "one") AS "nothing" WHERE 1 = 0',
        "UPDATE": f"UPDATE {name} SET {column} = NULL WHERE 1 = 0",
        "DELETE": f"DELETE FROM {name} WHERE 1 = 0",
    }


def _nullable(table: Table) -> Column:
    return next(
        column
        for column in table.columns
        if column.default is None and column.type != "ID" and column.name not in table.primary_key
    )


async def _refusal(study: Study, text: str) -> str | None:
    try:
        await study.execute(study.db, text)
    except (Outage, MissingTable):
        raise
    except DatabaseError as refused:
        return str(refused)
    return None


# ------------------------------------------------------------------------------------ making tables


class _Undone(Exception):
    """Rolls back what was only to be tried."""


def _probe() -> Table:
    return Table(f"asyncexp_probe_{token_hex(8)}", (Column("experiment_id", BIGINT),), (Index(("experiment_id",)),))


async def _making(study: Study) -> list[Right]:
    """In a transaction that is rolled back."""
    probe = _probe()

    async def work(tx: Transaction) -> None:
        await study.execute(tx, create_table(probe, study.dialect))
        raise _Undone

    try:
        await study.db.run(work)
    except _Undone:
        return [Right("CREATE", None, None)]
    except Outage:
        raise
    except DatabaseError as refused:
        return [Right("CREATE", None, str(refused))]
    raise AssertionError("a transaction that was to be rolled back was committed")


async def _making_for_good(study: Study, main_is_there: bool) -> list[Right]:
    """Where a CREATE cannot be rolled back: of a table that is there already, or of one that may be dropped again."""
    if main_is_there:
        text = create_table(Table(study.schema.name, _probe().columns), study.dialect)
        return [Right("CREATE", None, await _refusal(study, text))]
    probe = _probe()
    drop = f"DROP TABLE IF EXISTS {quote(probe.name)}"
    rights = [Right("DROP", None, await _refusal(study, drop))]
    if rights[0].refusal is not None:
        return rights
    rights.append(Right("CREATE", None, await _refusal(study, create_table(probe, study.dialect))))
    if rights[-1].refusal is None:
        rights.append(Right("INDEX", None, await _refusal(study, create_index(probe, probe.indexes[0], study.dialect))))
        await study.execute(study.db, drop)
    return rights


# ------------------------------------------------------------------------------------------ granting


async def _user(study: Study) -> tuple[str, str] | None:
    """As whom the server knows us, and where tables are made; None if there are no rights."""
    if study.dialect.schema_of_tables is None:
        return None
    [(user,)] = await study.fetch(study.db, "SELECT CURRENT_USER")
    [(schema,)] = await study.fetch(study.db, study.dialect.schema_of_tables)
    return str(user), str(schema or "public")


def _grants(study: Study, refused: Sequence[Right], user: str, schema: str) -> list[str]:
    if not refused:
        return []
    if not study.dialect.grants_by_table:
        return [_grant_on_all(study, dict.fromkeys(right.action for right in refused), user, schema)]
    return [
        f"GRANT {', '.join(actions)} ON {', '.join(map(quote, tables))} TO {quote(user)};"
        for actions, tables in alike(refused)
    ]


def _grants_to_make(study: Study, user: str, schema: str) -> tuple[str, ...]:
    if not study.dialect.grants_by_table:
        return (_grant_on_all(study, MAKING, user, schema),)
    return (f"GRANT USAGE, CREATE ON SCHEMA {quote(schema)} TO {quote(user)};",)


def _grant_on_all(study: Study, actions: Iterable[str], user: str, schema: str) -> str:
    name, _, host = user.rpartition("@")
    where = study.dialect.quote + schema + study.dialect.quote
    return f"GRANT {', '.join(actions)} ON {where}.* TO '{name}'@'{host}';"


def alike(refused: Iterable[Right]) -> list[tuple[tuple[str, ...], list[str]]]:
    """What is lacking, and of which tables."""
    lacking: dict[str, list[str]] = {}
    for right in refused:
        if right.table is not None:
            lacking.setdefault(right.table, []).append(right.action)
    together: dict[tuple[str, ...], list[str]] = {}
    for table, actions in lacking.items():
        together.setdefault(tuple(actions), []).append(table)
    return list(together.items())
