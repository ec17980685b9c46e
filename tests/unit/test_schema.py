"""The tables as data: what is made of them, for each database, without any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncexp.config.models import Column as ConfigColumn
from asyncexp.config.models import DatabaseConfig, Keyfield, LogTable, TableConfig
from asyncexp.db import mysql, postgres, sqlite
from asyncexp.db.base import Dialect
from asyncexp.errors import InvalidColumnError
from asyncexp.schema import (
    BOOKKEEPING,
    CLAIM_INDEX,
    RANDOM_INDEX,
    Column,
    Index,
    Schema,
    Table,
    column_ddl,
    create_index,
    create_table,
    declared,
    differences,
    quote,
    render,
)
from asyncexp.values import ColumnType

DIALECTS = {"sqlite": sqlite.DIALECT, "postgresql": postgres.DIALECT, "mysql": mysql.DIALECT}
each_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS.keys())
TYPES = ["VARCHAR(9)", "INT", "BIGINT", "NUMERIC", "NUMERIC(8,2)", "DOUBLE", "FLOAT", "BOOLEAN", "DATETIME"]
TYPES += ["TEXT", "LONGTEXT", "JSON"]


def schema(**given: Any) -> Schema:
    """A study with two keyfields, one of them with an index, a resultfield and a log table."""
    keys = given.get("keys", {"b": "INT", "A": "VARCHAR(9)"})
    table = TableConfig(
        name="t",
        keyfields=tuple(
            Keyfield(name=name, type=ColumnType.parse(text), index=name in given.get("indexed", "b"))
            for name, text in keys.items()
        ),
        resultfields=(ConfigColumn(name="r", type=ColumnType.parse("DOUBLE")),),
        result_timestamps=given.get("timestamps", False),
    )
    logs = (LogTable(name="log", columns=(ConfigColumn(name="x", type=ColumnType.parse("INT")),)),)
    return Schema.from_config(DatabaseConfig(provider="sqlite", database="d", table=table, logtables=logs))


def names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def column(text: str, name: str = "c") -> Column:
    return Column(name, ColumnType.parse(text))


# ------------------------------------------------------------------------------------- from the configuration


def test_the_main_table_keeps_the_order_of_the_configuration_with_the_bookkeeping_last() -> None:
    fixed = ["creation_date", "status", "start_date", "name", "machine"]
    own = [*fixed, "r", "end_date", "error"]
    assert names(schema().main) == ["ID", "b", "A", *own, *(each.name for each in BOOKKEEPING)]
    assert BOOKKEEPING[-1].name == "_key_hash"


def test_with_timestamps_each_resultfield_is_followed_by_its_own() -> None:
    assert [each.name for each in schema(timestamps=True).result_columns] == ["r", "r_timestamp"]


def test_every_table_of_the_study_begins_with_its_name() -> None:
    assert [table.name for table in schema().tables] == ["t", "t__log", "t_codecarbon", "t_workers", "t_attempts"]


def test_keyfields_are_hashed_in_the_order_of_their_lower_case_names() -> None:
    assert schema().hash_order == [1, 0]


@pytest.mark.parametrize("text", ["TEXT", "LONGTEXT", "JSON"])
def test_an_index_on_a_text_without_a_length_is_refused(text: str) -> None:
    with pytest.raises(InvalidColumnError, match=rf"keyfield 'b': .* write VARCHAR\(n\) for {text}"):
        schema(keys={"b": text})


def test_the_channel_is_short_whatever_the_table_is_called() -> None:
    assert len(schema().channel) == len("asyncexp_") + 16


# -------------------------------------------------------------------------------------------------- indexes


def test_index_names_differ_by_table_columns_and_kind_and_are_the_same_everywhere() -> None:
    kinds = [
        Index(("a",)),
        Index(("a", "b")),
        Index(("ab",)),
        Index(("a",), unique=True),
        Index(("a",), created_only=True),
    ]
    found = {index.name(table) for index in kinds for table in ("t", "T")}
    assert len(found) == 10
    assert CLAIM_INDEX.name("experiments") == "ix_300e95e71d4b0977"


def test_an_index_for_claims_is_partial_where_the_database_can() -> None:
    table = schema().main
    assert create_index(table, RANDOM_INDEX, sqlite.DIALECT).endswith(
        """ON "t" ("_key_hash") WHERE "status" = 'created'"""
    )
    assert create_index(table, RANDOM_INDEX, mysql.DIALECT).endswith('ON "t" ("status", "_key_hash")')


def test_if_not_exists_stands_where_the_database_knows_it() -> None:
    table = schema().main
    unique = table.indexes[0]
    assert create_index(table, unique, postgres.DIALECT).startswith("CREATE UNIQUE INDEX IF NOT EXISTS ")
    assert create_index(table, unique, mysql.DIALECT).startswith("CREATE UNIQUE INDEX ")
    assert "IF NOT EXISTS" not in create_index(table, unique, mysql.DIALECT)


# ------------------------------------------------------------------------------------------------------ DDL


@each_dialect
@pytest.mark.parametrize("text", TYPES)
def test_every_type_has_its_declaration_and_is_recognised_by_it(dialect: Dialect, text: str) -> None:
    one = column(text)
    table = Table("t", (one,))
    assert "{" not in declared(one, dialect)
    assert list(differences(table, [("c", declared(one, dialect).split("(")[0].lower())], dialect)) == []


@each_dialect
def test_sizes_are_declared(dialect: Dialect) -> None:
    assert declared(column("VARCHAR(9)"), dialect).endswith("(9)")
    assert declared(column("NUMERIC(8,2)"), dialect) == "NUMERIC(8,2)"
    assert "(" not in declared(column("NUMERIC"), dialect)


def test_a_default_makes_a_column_not_null() -> None:
    assert column_ddl(Column("n", ColumnType("BIGINT"), 0), sqlite.DIALECT) == '"n" BIGINT NOT NULL DEFAULT 0'


def test_tables_are_made_with_their_key_and_no_error_if_they_are_there() -> None:
    text = create_table(schema().attempts, postgres.DIALECT)
    assert text.startswith('CREATE TABLE IF NOT EXISTS "t_attempts" ("experiment_id" BIGINT, ')
    assert text.endswith(', PRIMARY KEY ("experiment_id", "attempt"))')


# ------------------------------------------------------------------------------------------------- comparing


def catalogue(table: Table, dialect: Dialect) -> dict[str, str]:
    """The table as that database's catalogue would show it."""
    return {each.name: declared(each, dialect).split("(")[0].split(" NOT ")[0].lower() for each in table.columns}


def differ(found: Mapping[str, str], dialect: Dialect = sqlite.DIALECT, **options: Any) -> list[str]:
    return list(differences(schema().main, list(found.items()), dialect, **options))


@each_dialect
def test_a_table_that_was_made_does_not_differ_in_whatever_order(dialect: Dialect) -> None:
    for table in schema(timestamps=True).tables:
        found = [
            (name, kind.replace("integer primary key autoincrement", "integer"))
            for name, kind in catalogue(table, dialect).items()
        ]
        found = [(name, kind.replace(" generated by default as identity primary key", "")) for name, kind in found]
        assert list(differences(table, found[::-1], dialect)) == []


def test_each_difference_is_told() -> None:
    found = catalogue(schema().main, sqlite.DIALECT) | {"ID": "integer", "r": "text", "extra": "int"}
    del found["A"]
    assert differ(found) == [
        "column 'A' is missing",
        "column 'r' is 'text' in the database, 'double' in the configuration",
        "column 'extra' is in the database, not in the configuration",
    ]


def test_loose_columns_may_be_of_any_kind() -> None:
    found = catalogue(schema().main, sqlite.DIALECT) | {"ID": "integer", "r": "text"}
    assert differ(found, loose=["r"]) == []


@pytest.mark.parametrize(
    ("here", "there"),
    [("JSON", "longtext"), ("TEXT", "varchar"), ("INT", "bigint"), ("BOOLEAN", "int"), ("FLOAT", "decimal")],
)
def test_types_that_hold_the_same_do_not_differ(here: str, there: str) -> None:
    assert list(differences(Table("t", (column(here),)), [("c", there)], mysql.DIALECT)) == []


@pytest.mark.parametrize(
    ("here", "there"),
    [("INT", "varchar"), ("INT", "double"), ("DATETIME", "text"), ("DOUBLE", "bigint"), ("INT", "geometry")],
)
def test_types_that_hold_others_differ(here: str, there: str) -> None:
    assert len(list(differences(Table("t", (column(here),)), [("c", there)], mysql.DIALECT))) == 1


# -------------------------------------------------------------------------------------------------- rendering


@pytest.mark.parametrize(
    ("placeholder", "quoting", "sql", "parameters"),
    [
        ("?", '"', 'SELECT "a" FROM "t" WHERE "b" = ? AND "c" = ? OR "d" = ?', ("x", "y", "x")),
        ("%s", "`", "SELECT `a` FROM `t` WHERE `b` = %s AND `c` = %s OR `d` = %s", ("x", "y", "x")),
        ("$", '"', 'SELECT "a" FROM "t" WHERE "b" = $1 AND "c" = $2 OR "d" = $1', ("x", "y")),
    ],
)
def test_standard_sql_as_each_database_takes_it(
    placeholder: str, quoting: str, sql: str, parameters: tuple[str, ...]
) -> None:
    text = 'SELECT "a" FROM "t" WHERE "b" = :x AND "c" = :y OR "d" = :x'
    assert render(text, placeholder, quoting) == (sql, parameters)


def test_what_looks_like_a_parameter_in_names_texts_and_casts_is_none() -> None:
    text = """SELECT ":x", 'it''s :y', CAST("z" AS int), "a"::text WHERE "b" = :x"""
    sql, parameters = render(text, "?", '"')
    assert sql == text.replace("= :x", "= ?")
    assert parameters == ("x",)


def test_a_percent_sign_is_doubled_only_where_it_would_be_one_of_a_parameter() -> None:
    with_one = render("""SELECT "50%", '%f' WHERE 7 % 2 = :x""", "%s", "`")
    assert with_one == ("SELECT `50%%`, '%%f' WHERE 7 %% 2 = %s", ("x",))
    assert render('SELECT "50%"', "%s", "`") == ("SELECT `50%`", ())
    assert render('SELECT "50%" WHERE 1 = :x', "?", '"') == ('SELECT "50%" WHERE 1 = ?', ("x",))


@given(name=st.text(min_size=1), placeholder=st.sampled_from(["?", "%s", "$"]))
def test_any_name_stays_one_name(name: str, placeholder: str) -> None:
    doubled = name.replace('"', '""')
    assert quote(name) == f'"{doubled}"'
    assert render(f"SELECT {quote(name)}", placeholder, '"') == (f"SELECT {quote(name)}", ())
    backticks = name.replace("`", "``")
    assert render(f"SELECT {quote(name)}", placeholder, "`") == (f"SELECT `{backticks}`", ())
    assert render(f"SELECT {quote(name)}, :x", placeholder, "`")[1] == ("x",)
