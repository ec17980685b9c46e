"""Words of the command line that stand for something else: conditions and IDs."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from asyncexp.cli import words
from asyncexp.errors import ParameterCombinationError
from asyncexp.schema import Column
from asyncexp.values import ColumnType


def meant(type_: str, text: str) -> Any:
    return words.where([f"k={text}"], [Column("k", ColumnType.parse(type_))])["k"]


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        ("INT", "010", 10),
        ("INT", "-7", -7),
        ("INT", "'7'", 7),
        ("INT", "Null", None),
        ("VARCHAR(9)", "007", "007"),
        ("VARCHAR(9)", "'null'", "null"),
        ("VARCHAR(9)", "a=b,c", "a=b,c"),
        ("DOUBLE", "1e3", 1000.0),
        ("NUMERIC(10,3)", "1.5", Decimal("1.500")),
        ("BOOLEAN", "True", True),
        ("DATETIME", "2024-01-02", datetime(2024, 1, 2)),
        ("JSON", '{"a": [1e3, null]}', {"a": [1000.0, None]}),
        ("JSON", "{a: 1}", {"a": 1}),
        ("JSON", "yes", "yes"),
    ],
)
def test_a_value_is_what_the_column_makes_of_it(type_: str, text: str, value: Any) -> None:
    found = meant(type_, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        ("INT", "yes"),
        ("INT", "1:30"),
        ("INT", "0x10"),
        ("INT", "1_000"),
        ("INT", ""),
        ("INT", "2.5"),
        ("DOUBLE", "nan"),
    ],
)
def test_a_value_that_the_column_does_not_have_is_refused(type_: str, text: str) -> None:
    with pytest.raises(ParameterCombinationError, match="--where: 'k'"):
        meant(type_, text)


@pytest.mark.parametrize("text", ["", " ", ",", "7,", "-5", "1.0", "9" * 5_000, "1-" + "9" * 5_000, str(2**63)])
def test_what_is_no_id_is_not_taken_for_none(text: str) -> None:
    with pytest.raises(ParameterCombinationError, match="ID"):
        words.ids(["3", text])


def test_ids_are_numbers_and_ranges() -> None:
    assert words.ids(["7", "3-5,7", " 9 "]) == [7, 3, 4, 5, 9]
    assert words.ids([]) is None
    assert words.ids(None) is None
