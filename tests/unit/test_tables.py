"""DataFrames: one dtype a column type, whichever database the rows come from."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncexp.tables import frame
from asyncexp.values import ColumnType, decoder

TEXT = "str" if int(pd.__version__.split(".")[0]) >= 3 else "object"
DTYPES = {
    "INT": "Int64",
    "BIGINT": "Int64",
    "NUMERIC(6,3)": "float64",
    "NUMERIC": "float64",
    "DOUBLE": "float64",
    "FLOAT": "float64",
    "BOOLEAN": "boolean",
    "DATETIME": "datetime64[us]",
    "VARCHAR(50)": TEXT,
    "TEXT": TEXT,
    "LONGTEXT": TEXT,
    "JSON": "object",
}
COLUMNS = [(text, ColumnType.parse(text)) for text in DTYPES]
NULLS = (None,) * len(COLUMNS)
MOMENT = datetime(2024, 5, 1, 12, 0, 0, 250000)
SQLITE = (5, 2**40, 1.5, 2, 0.1, 0.2, 1, "2024-05-01 12:00:00.250000", "a", "ü", "", '{"a":[1]}')
POSTGRESQL = (5, 2**40, Decimal("1.500"), Decimal(2), 0.1, 0.2, True, MOMENT, "a", "ü", "", '{"a": [1]}')
MYSQL = (5, 2**40, Decimal("1.500"), 2.0, 0.1, 0.2, 1, MOMENT, "a", "ü", "", b'{"a": [1]}')


def dtypes(table: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(dtype) for name, dtype in table.dtypes.items()}


def one(text: str, *cells: Any) -> pd.Series[Any]:
    column: pd.Series[Any] = frame([("x", ColumnType.parse(text))], [(cell,) for cell in cells])["x"]
    return column


@pytest.mark.parametrize(
    "rows",
    [[], [NULLS], [NULLS] * 3, [SQLITE], [NULLS, SQLITE], [POSTGRESQL, NULLS], [MYSQL, MYSQL, NULLS]],
    ids=["none", "null", "nulls", "sqlite", "sqlite-null", "postgresql", "mysql"],
)
def test_a_type_has_one_dtype_whatever_the_rows(rows: list[tuple[Any, ...]]) -> None:
    assert dtypes(frame(COLUMNS, rows)) == DTYPES


def test_all_databases_give_the_same_table() -> None:
    tables = [frame(COLUMNS, [row, NULLS, row]) for row in (SQLITE, POSTGRESQL, MYSQL)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


def test_the_values_are_those_that_were_stored() -> None:
    row = frame(COLUMNS, [NULLS, SQLITE]).iloc[1].tolist()
    assert row == [5, 2**40, 1.5, 2.0, 0.1, 0.2, True, pd.Timestamp(MOMENT), "a", "ü", "", {"a": [1]}]


def test_null_is_missing_in_every_column() -> None:
    table = frame(COLUMNS, [SQLITE, NULLS])
    assert not table.iloc[0].isna().any()
    assert table.iloc[1].isna().all()


def test_columns_and_rows_keep_their_order() -> None:
    table = frame([("b", "int"), ("a", "text")], [(2, "x"), (1, "y")])
    assert list(table.columns) == ["b", "a"]
    assert list(table.index) == [0, 1]
    assert table["b"].tolist() == [2, 1]


def test_a_kind_may_be_given_as_a_word() -> None:
    words = ["int", "float", "text", "datetime", "bool"]
    table = frame([(word, word) for word in words], [])
    assert [str(dtype) for dtype in table.dtypes] == ["Int64", "float64", TEXT, "datetime64[us]", "boolean"]
    with pytest.raises(KeyError):
        frame([("x", "integer")], [])


def test_rows_that_do_not_match_the_columns_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        frame([("a", "int"), ("b", "int")], [(1,)])


def test_rows_by_the_thousand_stay_in_order() -> None:
    rows = [(i, None if i % 7 == 0 else f"t{i}") for i in range(1001)]
    table = frame([("n", "int"), ("t", "text")], rows)
    assert table["n"].tolist() == list(range(1001))
    assert [None if pd.isna(cell) else cell for cell in table["t"]] == [text for _, text in rows]


def test_large_integers_beside_null_are_exact() -> None:
    assert one("BIGINT", 2**63 - 1, None, -(2**63)).tolist() == [2**63 - 1, pd.NA, -(2**63)]


def test_the_frame_can_be_written_to() -> None:
    table = frame(COLUMNS, [SQLITE, SQLITE])
    table.loc[0, "INT"] = 9
    table.loc[0, "DOUBLE"] = 9.5
    table.loc[0, "TEXT"] = "new"
    assert [table[name].iloc[0] for name in ("INT", "DOUBLE", "TEXT")] == [9, 9.5, "new"]


def test_dates_of_every_spelling_and_year() -> None:
    cells = ["2024-05-01 12:00:00", None, "2024-05-01 12:00:00.000001", "1000-01-01 00:00:00", "9999-12-31 23:59:59"]
    found = one("DATETIME", *cells)
    wanted = [decoder(ColumnType("DATETIME"))(cell) for cell in cells]
    assert str(found.dtype) == "datetime64[us]"
    assert found.tolist() == one("DATETIME", *wanted).tolist()
    assert [None if pd.isna(cell) else str(cell.to_pydatetime()) for cell in found] == cells


def test_dates_with_an_offset_become_utc() -> None:
    noon = pd.Timestamp("2024-05-01 12:00:00")
    aware = datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert one("DATETIME", "2024-05-01T14:00:00+02:00", "2024-05-01 12:00:00", aware).tolist() == [noon] * 3
    assert str(one("DATETIME", aware, aware).dtype) == "datetime64[us]"
    assert str(one("DATETIME", "2024-05-01T12:00:00Z").dtype) == "datetime64[us]"


def test_json_is_parsed_and_stays_as_it_is() -> None:
    cells = ['"x"', "[1,2]", "[3,4]", "1", "1.0", "true", None, '{"b":null}']
    found = one("JSON", *cells).tolist()
    assert found == ["x", [1, 2], [3, 4], 1, 1.0, True, None, {"b": None}]
    assert [type(cell) for cell in found[3:6]] == [int, float, bool]
    assert one("JSON", '"x"', '"y"').dtype == object


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("INT", [1, 1.5, None]),
        ("INT", ["many"]),
        ("INT", [b"\x05\0\0\0"]),
        ("BIGINT", [2**63, 1]),
        ("BIGINT", [2**63, None]),
        ("DOUBLE", [0.5, "much", None]),
        ("BOOLEAN", [1, 7]),
        ("BOOLEAN", [True, "perhaps"]),
        ("DATETIME", ["2024-05-01 12:00:00", "soon"]),
        ("DATETIME", [""]),
        ("DATETIME", [5]),
        ("TEXT", ["a", 5]),
        ("JSON", ["{", b"\xff"]),
    ],
)
def test_what_is_not_of_the_type_is_shown_as_it_is_stored(text: str, cells: list[Any]) -> None:
    found = one(text, *cells)
    decode = decoder(ColumnType.parse(text))
    assert found.dtype == object
    assert repr(found.tolist()) == repr([decode(cell) for cell in cells])
    assert cells[-1] is None or found.tolist()[-1] == cells[-1]


@pytest.mark.parametrize(
    ("text", "cells", "wanted"),
    [
        ("INT", ["5", 6.0, None], [5, 6, pd.NA]),
        ("DOUBLE", ["0.5", 1], [0.5, 1.0]),
        ("BOOLEAN", [1.0, 0], [True, False]),
        ("TEXT", [b"a", "b"], ["a", "b"]),
    ],
)
def test_what_means_a_value_of_the_type_becomes_one(text: str, cells: list[Any], wanted: list[Any]) -> None:
    found = one(text, *cells)
    assert str(found.dtype) == DTYPES[text]
    assert found.tolist() == wanted


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "INT": st.integers(-(2**31), 2**31 - 1),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "DOUBLE": st.floats(allow_nan=False),
    "BOOLEAN": st.integers(0, 1) | st.booleans(),
    "DATETIME": st.datetimes(datetime(1000, 1, 1)) | st.datetimes(datetime(1000, 1, 1)).map(str),
    "TEXT": texts,
}
columns = st.sampled_from(sorted(CELLS)).flatmap(
    lambda text: st.tuples(st.just(text), st.lists(st.none() | CELLS[text], max_size=8))
)


@given(columns)
def test_a_column_holds_what_the_decoder_gives_for_each_cell(column: tuple[str, list[Any]]) -> None:
    text, cells = column
    found = one(text, *cells)
    decode = decoder(ColumnType.parse(text))
    assert str(found.dtype) == DTYPES[text]
    assert [None if pd.isna(cell) else cell for cell in found.tolist()] == [decode(cell) for cell in cells]


def test_decimals_and_floats_are_the_same_numbers() -> None:
    found = one("NUMERIC(6,3)", Decimal("0.1"), 0.1, None, 1)
    assert np.array_equal(found.to_numpy(), np.array([0.1, 0.1, np.nan, 1.0]), equal_nan=True)
