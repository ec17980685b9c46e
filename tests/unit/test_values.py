"""Values: what each column type takes, refuses and gives back, and the hash that is made of them."""

from __future__ import annotations

import json
import math
import re
from collections import UserList
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncexp.experiment import ExperimentId
from asyncexp.values import (
    Canonical,
    ColumnType,
    decoder,
    encode,
    encoder,
    key_hash,
    key_order,
    key_part,
    salted,
)

SCALARS = ["INT", "BIGINT", "NUMERIC(6,3)", "NUMERIC", "DOUBLE", "FLOAT", "BOOLEAN", "DATETIME"]
TEXTS = ["VARCHAR(50)", "TEXT", "LONGTEXT"]
TYPES = [*SCALARS, *TEXTS, "JSON"]
NOT_FINITE = [math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("-Infinity"), np.float32("nan"), pd.NaT, pd.NA]


class Colour(Enum):
    RED = 3


class Small(IntEnum):
    ONE = 1


class Word(StrEnum):
    YES = "yes"


def stored(text: str, value: object, *, key: bool = False) -> Canonical:
    return encode(ColumnType.parse(text), value, key=key)


def read(text: str, raw: object) -> Any:
    return decoder(ColumnType.parse(text))(raw)


def alike(found: object, wanted: object) -> bool:
    return type(found) is type(wanted) and repr(found) == repr(wanted)


# --------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("int", "INT"),
        (" Varchar ( 50 ) ", "VARCHAR(50)"),
        ("VARCHAR", "VARCHAR(255)"),
        ("decimal(6,3)", "NUMERIC(6,3)"),
        ("numeric(6)", "NUMERIC(6,0)"),
        ("numeric", "NUMERIC"),
        ("Bool", "BOOLEAN"),
    ],
)
def test_a_type_is_read_in_any_case(text: str, wanted: str) -> None:
    assert str(ColumnType.parse(text)) == wanted


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean BIGINT"):
        ColumnType.parse("BIGNT")


# -------------------------------------------------------------------------------------------- accepted

ACCEPTED: list[tuple[str, object, Canonical]] = [
    ("INT", 1, 1),
    ("INT", True, 1),
    ("INT", 2.0, 2),
    ("INT", Decimal("2.00"), 2),
    ("INT", " 17 ", 17),
    ("INT", "-1", -1),
    ("INT", np.int64(5), 5),
    ("INT", np.array(5), 5),
    ("INT", Small.ONE, 1),
    ("INT", Colour.RED, 3),
    ("INT", ExperimentId(7, 1, 1), 7),
    ("INT", Fraction(4, 2), 2),
    ("INT", 2**31 - 1, 2**31 - 1),
    ("INT", -(2**31), -(2**31)),
    ("BIGINT", 2**63 - 1, 2**63 - 1),
    ("BIGINT", np.uint64(2**63 - 1), 2**63 - 1),
    ("BIGINT", str(-(2**63)), -(2**63)),
    ("NUMERIC(6,3)", 1.0005, Decimal("1.001")),
    ("NUMERIC(6,3)", -1.0005, Decimal("-1.001")),
    ("NUMERIC(6,3)", "2.5", Decimal("2.500")),
    ("NUMERIC(6,3)", 7, Decimal("7.000")),
    ("NUMERIC(6,3)", -0.0, Decimal("0.000")),
    ("NUMERIC(6,3)", "-0.0001", Decimal("0.000")),
    ("NUMERIC(6,3)", 999.9994, Decimal("999.999")),
    ("NUMERIC(3,3)", 0.9994, Decimal("0.999")),
    ("NUMERIC", 0.1, Decimal("0.1")),
    ("NUMERIC", np.float64(0.1), Decimal("0.1")),
    ("NUMERIC", 10**30 + 1, Decimal("1e30")),  # as it is stored
    ("NUMERIC", -0.0, Decimal(0)),
    ("DOUBLE", 1, 1.0),
    ("DOUBLE", "1.5e-3", 0.0015),
    ("DOUBLE", -0.0, 0.0),
    ("DOUBLE", "-0", 0.0),
    ("DOUBLE", Decimal("0.1"), 0.1),
    ("DOUBLE", 10**300, 1e300),
    ("DOUBLE", np.float32(0.5), 0.5),
    ("DOUBLE", np.longdouble(0.5), 0.5),
    ("DOUBLE", Fraction(1, 2), 0.5),
    ("FLOAT", True, 1.0),
    ("BOOLEAN", True, True),
    ("BOOLEAN", 0, False),
    ("BOOLEAN", np.True_, True),
    ("BOOLEAN", " TRUE ", True),
    ("BOOLEAN", "0", False),
    ("BOOLEAN", Decimal(1), True),
    ("DATETIME", datetime(2024, 5, 1, 12), datetime(2024, 5, 1, 12)),
    ("DATETIME", datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2))), datetime(2024, 5, 1, 10)),
    ("DATETIME", date(2024, 5, 1), datetime(2024, 5, 1)),
    ("DATETIME", "2024-05-01T12:00:00.5+02:00", datetime(2024, 5, 1, 10, 0, 0, 500000)),
    ("DATETIME", "2024-05-01 12:00:00", datetime(2024, 5, 1, 12)),
    ("DATETIME", "2024-05-01T12:00:00Z", datetime(2024, 5, 1, 12)),
    ("DATETIME", pd.Timestamp("2024-05-01 12:00:00.123456789"), datetime(2024, 5, 1, 12, 0, 0, 123456)),
    ("DATETIME", pd.Timestamp("2024-05-01 12:00", tz="Europe/Berlin"), datetime(2024, 5, 1, 10)),
    ("DATETIME", np.datetime64("2024-05-01T12:00:00.123456789"), datetime(2024, 5, 1, 12, 0, 0, 123456)),
    ("DATETIME", np.datetime64("2024-05-01"), datetime(2024, 5, 1)),
    ("DATETIME", datetime(1000, 1, 1), datetime(1000, 1, 1)),
    ("TEXT", "A ü 😀", "A ü 😀"),
    ("TEXT", 1, "1"),
    ("TEXT", Small.ONE, "1"),
    ("TEXT", 0.1, "0.1"),
    ("TEXT", np.float64(0.1), "0.1"),
    ("TEXT", True, "True"),
    ("TEXT", Decimal("1.50"), "1.50"),
    ("TEXT", Path("a/b"), "a/b"),
    ("TEXT", Word.YES, "yes"),
    ("TEXT", np.str_("x"), "x"),
    ("TEXT", date(2024, 5, 1), "2024-05-01"),
    ("TEXT", {"b": 1, "a": (1.5, None)}, '{"a":[1.5,null],"b":1}'),
    ("TEXT", ["ü"], '["\\u00fc"]'),
    ("VARCHAR(3)", "😀😀😀", "😀😀😀"),
    ("JSON", "x", '"x"'),
    ("JSON", True, "true"),
    ("JSON", 1.0, "1.0"),
    ("JSON", -0.0, "0.0"),
    ("JSON", Word.YES, '"yes"'),
    ("JSON", Colour.RED, "3"),
    ("JSON", Decimal("0.5"), "0.5"),
    ("JSON", Path("a/b"), '"a/b"'),
    ("JSON", datetime(2024, 5, 1), '"2024-05-01T00:00:00"'),
    ("JSON", {10: "x", 9: "y", None: 0, True: 1}, '{"10":"x","9":"y","null":0,"true":1}'),
    ("JSON", {1: "x", "b": {"z": 1, "a": 2}}, '{"1":"x","b":{"a":2,"z":1}}'),
    ("JSON", MappingProxyType({"a": UserList([1])}), '{"a":[1]}'),
    ("JSON", np.array([[1, 2], [3, 4]]), "[[1,2],[3,4]]"),
    ("JSON", {"a": np.float32(0.5), "b": [np.int8(1), np.bool_(True)]}, '{"a":0.5,"b":[1,true]}'),
    ("JSON", np.array(["2024-05-01"], "datetime64[ns]"), '["2024-05-01T00:00:00"]'),
    ("JSON", pd.Series([1, 2]), "[1,2]"),
    ("JSON", [pd.NaT, math.nan, math.inf, Decimal("NaN")], "[null,null,null,null]"),
    ("JSON", 2**70, str(2**70)),
]


def shown(value: object) -> str:
    """A name for a test that is the same in every process."""
    return "int" if isinstance(value, int) else re.sub(r" at 0x[0-9a-f]+", "", ascii(value))[:40]


@pytest.mark.parametrize(("text", "value", "wanted"), ACCEPTED, ids=shown)
def test_a_value_takes_its_canonical_form(text: str, value: object, wanted: Canonical) -> None:
    found = stored(text, value)
    assert alike(found, wanted), f"{found!r} instead of {wanted!r}"


@pytest.mark.parametrize("text", TYPES)
@pytest.mark.parametrize("key", [True, False])
def test_none_is_null(text: str, key: bool) -> None:
    assert stored(text, None, key=key) is None


# --------------------------------------------------------------------------------------------- refused

LOOP: list[object] = []
LOOP.append(LOOP)
REFUSED: list[tuple[str, object, str]] = [
    ("INT", 1.5, r"1\.5 \(float\) does not fit INT: wanted is a whole number from -2147483648 to 2147483647"),
    ("INT", "1.0", "whole number"),
    ("INT", "1_000", "whole number"),
    ("INT", "", "whole number"),
    ("INT", "٣", "whole number"),
    ("INT", 2**31, "2147483648"),
    ("INT", -(2**31) - 1, "whole number"),
    ("INT", 10**5000, "an integer of 16610 bits"),
    ("INT", "9" * 5000, "whole number"),
    ("INT", Decimal("1E+999999999"), "whole number"),
    ("INT", [1], "whole number"),
    ("INT", np.array([1]), "whole number"),
    ("INT", b"1", "whole number"),
    ("INT", 1j, "whole number"),
    ("INT", np.timedelta64(1, "s"), "time span"),
    ("BIGINT", 2**63, "9223372036854775807"),
    ("BIGINT", np.uint64(2**63), "9223372036854775807"),
    ("NUMERIC(6,3)", 1000, "at most 6 digits, 3 of them behind the point"),
    ("NUMERIC(6,3)", 999.9995, "at most 6 digits"),
    ("NUMERIC(6,3)", 1e300, "at most 6 digits"),
    ("NUMERIC(6,3)", Decimal("1E+999999999"), "at most 6 digits"),
    ("NUMERIC(3,3)", 1, "at most 3 digits"),
    ("NUMERIC", 10**400, "64-bit floats"),
    ("NUMERIC", Decimal("1E-400"), "64-bit floats"),
    ("NUMERIC", "1,5", "a number"),
    ("NUMERIC", date(2024, 1, 1), "a number"),
    ("DOUBLE", 10**400, "64-bit floats"),
    ("DOUBLE", "1e400", "64-bit floats"),
    ("DOUBLE", "1_0", "a number"),
    ("DOUBLE", "abc", "'abc'"),
    ("DOUBLE", b"1", "a number"),
    ("DOUBLE", {}, "a number"),
    ("BOOLEAN", 2, "true or false"),
    ("BOOLEAN", "yes", "true or false"),
    ("BOOLEAN", [], "true or false"),
    ("DATETIME", datetime(999, 12, 31), "before the year 1000"),
    ("DATETIME", date(999, 12, 31), "before the year 1000"),
    ("DATETIME", datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "a date"),
    ("DATETIME", "yesterday", "ISO 8601"),
    ("DATETIME", 1714557600, "ISO 8601"),
    ("VARCHAR(3)", "abcd", r"at most 3 characters, this one has 4"),
    ("VARCHAR(3)", 1234, "at most 3 characters"),
    ("TEXT", "a\0b", "NUL"),
    ("TEXT", "a\ud800", "half a surrogate pair at position 1"),
    ("TEXT", Path("\udcff"), "surrogate"),
    ("TEXT", b"abc", "decode bytes"),
    ("TEXT", {1, 2}, r"sorted\("),
    ("TEXT", object(), "wanted are texts"),
    ("TEXT", LOOP, "contains itself"),
    ("JSON", LOOP, "contains itself"),
    ("JSON", {"a": [object()]}, "object object"),
    ("JSON", {"a": b"x"}, "decode bytes"),
    ("JSON", memoryview(b"x"), "decode bytes"),
    ("JSON", ["a\0"], "NUL"),
    ("JSON", {"a\0": 1}, "NUL"),
    ("JSON", {"\ud800": 1}, "surrogate"),
    ("JSON", {(1, 2): 1}, "key"),
    ("JSON", {1: 1, "1": 2}, "two of its keys are both '1'"),
    ("JSON", np.array([1, 2], "timedelta64[s]"), "time span"),
    ("JSON", pd.DataFrame({"a": [1]}), "no form in JSON"),
]


@pytest.mark.parametrize(("text", "value", "words"), REFUSED, ids=shown)
@pytest.mark.parametrize("key", [True, False])
def test_what_cannot_be_stored_is_refused_in_one_sentence(text: str, value: object, words: str, key: bool) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        stored(text, value, key=key)
    assert f"does not fit {text}: " in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(ValueError, match="does not fit") as refusal:
        stored("INT", "x" * 1_000_000)
    assert len(str(refusal.value)) < 200


# ------------------------------------------------------------------------------------- NaN and infinities


@pytest.mark.parametrize("text", TYPES)
@pytest.mark.parametrize("value", NOT_FINITE, ids=repr)
def test_nan_becomes_null_with_one_warning(text: str, value: object) -> None:
    said: list[str] = []
    turn = encoder(ColumnType.parse(text), warn=said.append)
    assert [turn(value), turn(value), turn(None)] == [None, None, None]
    assert len(said) == 1
    assert "NULL" in said[0]


@pytest.mark.parametrize("text", TYPES)
@pytest.mark.parametrize("value", NOT_FINITE, ids=repr)
def test_nan_is_refused_in_a_keyfield(text: str, value: object) -> None:
    with pytest.raises(ValueError, match="a keyfield cannot be"):
        stored(text, value, key=True)


@pytest.mark.parametrize("text", ["NUMERIC(6,3)", "NUMERIC", "DOUBLE"])
@pytest.mark.parametrize("value", ["nan", "-inf", "Infinity"])
def test_nan_spelt_out_is_nan_in_a_number_column(text: str, value: str) -> None:
    assert stored(text, value) is None
    with pytest.raises(ValueError, match="a keyfield cannot be"):
        stored(text, value, key=True)


def test_nan_spelt_out_is_a_text_in_a_text_column() -> None:
    assert stored("TEXT", "nan", key=True) == "nan"


def test_nan_inside_json_is_null_with_a_warning_and_refused_in_a_keyfield() -> None:
    said: list[str] = []
    assert encoder(ColumnType("JSON"), warn=said.append)({"a": [math.nan]}) == '{"a":[null]}'
    assert len(said) == 1
    with pytest.raises(ValueError, match="a keyfield cannot be nan"):
        stored("JSON", {"a": [math.nan]}, key=True)


# --------------------------------------------------------------------------------------------- properties

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
moments = st.datetimes(min_value=datetime(1000, 1, 1))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)
anything = (
    json_values
    | st.floats()
    | st.binary()
    | st.decimals()
    | st.text(st.characters())
    | st.datetimes()
    | st.dates()
    | st.fractions()
    | st.sets(st.integers())
    | st.complex_numbers()
    | st.dictionaries(st.integers() | st.text() | st.booleans(), st.floats() | st.binary())
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "INT": st.integers(-(2**31), 2**31 - 1),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "NUMERIC(6,3)": st.decimals(-999, 999, places=3),
    "DOUBLE": finite,
    "BOOLEAN": st.booleans(),
    "DATETIME": moments,
    "TEXT": texts,
    "JSON": json_values,
}
typed = st.sampled_from(sorted(VALUES)).flatmap(lambda name: st.tuples(st.just(name), VALUES[name]))


@given(st.sampled_from(TYPES), anything, st.booleans())
def test_any_value_is_stored_or_refused_by_a_value_error_and_never_changed(text: str, value: Any, key: bool) -> None:
    before = repr(value)
    found, refusal = None, f"does not fit {text}: "
    try:
        found = stored(text, value, key=key)
    except ValueError as refused:
        refusal = str(refused)
    assert repr(value) == before
    assert f"does not fit {text}: " in refusal
    assert found is None or type(found) in (int, float, Decimal, bool, str, datetime)
    assert text == "JSON" or stored(text, found, key=key) == found


@given(typed)
def test_a_value_comes_back_as_it_went(pair: tuple[str, Any]) -> None:
    text, value = pair
    found = read(text, stored(text, value))
    assert found == (float(value) if isinstance(value, Decimal) else value)


@given(json_values)
def test_json_is_the_same_text_whatever_the_order_of_keys(value: Any) -> None:
    def turned(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(item)}
        return [turned(each) for each in item] if isinstance(item, list) else item

    assert stored("JSON", turned(value)) == stored("JSON", value)


@given(st.decimals(-10, 10, allow_nan=False))
def test_numeric_is_rounded_half_away_from_zero(value: Decimal) -> None:
    found = stored("NUMERIC(6,3)", value)
    assert isinstance(found, Decimal)
    exact, rounded = Fraction(value), Fraction(found)
    assert abs(exact - rounded) <= Fraction(1, 2000)
    assert abs(exact - rounded) < Fraction(1, 2000) or abs(rounded) > abs(exact)


def test_the_callers_objects_stay_as_they_are() -> None:
    inner = {"b": np.arange(3), "a": [Path("x"), (1, 2)]}
    before = str(inner)
    stored("JSON", {"outer": inner})
    stored("TEXT", inner)
    assert str(inner) == before


# --------------------------------------------------------------------------------------------- decoding

READ: list[tuple[str, object, object]] = [
    ("INT", 5, 5),
    ("INT", 5.0, 5),
    ("INT", Decimal(5), 5),
    ("INT", "5", 5),
    ("BIGINT", True, 1),
    ("NUMERIC(6,3)", Decimal("1.500"), 1.5),
    ("NUMERIC", 2, 2.0),
    ("NUMERIC", "2.5", 2.5),
    ("DOUBLE", 1, 1.0),
    ("FLOAT", 0.5, 0.5),
    ("BOOLEAN", 1, True),
    ("BOOLEAN", 0, False),
    ("BOOLEAN", True, True),
    ("DATETIME", "2024-05-01 12:00:00", datetime(2024, 5, 1, 12)),
    ("DATETIME", "2024-05-01 12:00:00.000001", datetime(2024, 5, 1, 12, 0, 0, 1)),
    ("DATETIME", datetime(2024, 5, 1, 12), datetime(2024, 5, 1, 12)),
    ("DATETIME", datetime(2024, 5, 1, 12, tzinfo=UTC), datetime(2024, 5, 1, 12)),
    ("TEXT", "x", "x"),
    ("TEXT", "ü".encode(), "ü"),
    ("JSON", '{"a": [1, null]}', {"a": [1, None]}),
    ("JSON", b"[1.0]", [1.0]),
    ("JSON", 5, 5),
    # SQLite takes anything: what is not of the type comes back as it is stored.
    ("INT", 1.5, 1.5),
    ("INT", "many", "many"),
    ("INT", b"\x05\0", b"\x05\0"),
    ("DOUBLE", "much", "much"),
    ("BOOLEAN", 7, 7),
    ("DATETIME", "soon", "soon"),
    ("TEXT", b"\xff", b"\xff"),
    ("JSON", "{", "{"),
]


@pytest.mark.parametrize(("text", "raw", "wanted"), READ, ids=repr)
def test_what_a_driver_returns_becomes_the_users_value(text: str, raw: object, wanted: object) -> None:
    found = read(text, raw)
    assert alike(found, wanted), f"{found!r} instead of {wanted!r}"


@pytest.mark.parametrize("text", TYPES)
def test_null_is_none(text: str) -> None:
    assert read(text, None) is None


# --------------------------------------------------------------------------------------------- key hash


def hashed(columns: Sequence[tuple[str, str]], row: dict[str, object]) -> bytes:
    types = {name: ColumnType.parse(text) for name, text in columns}
    return key_hash(key_part(n, types[n], encode(types[n], row[n], key=True)) for n in key_order(types))


rows = st.dictionaries(st.text("abc:1", min_size=1, max_size=3), typed, min_size=1, max_size=4).filter(
    lambda row: len({name.lower() for name in row}) == len(row)
)


@given(rows)
def test_a_hash_does_not_depend_on_the_order_of_names(row: dict[str, tuple[str, Any]]) -> None:
    values = {name: value for name, (_, value) in row.items()}
    hashes = {hashed([(name, row[name][0]) for name in order], values) for order in permutations(row)}
    assert len(hashes) == 1


@given(
    st.lists(st.tuples(texts, texts | st.none()), max_size=3), st.lists(st.tuples(texts, texts | st.none()), max_size=3)
)
def test_no_two_rows_read_alike_when_put_together(one: list[tuple[str, Any]], other: list[tuple[str, Any]]) -> None:
    def joined(row: list[tuple[str, Any]]) -> bytes:
        return b"".join(key_part(name, ColumnType("TEXT"), value) for name, value in row)

    lowered = [[(name.lower(), value) for name, value in row] for row in (one, other)]
    assert (joined(one) == joined(other)) == (lowered[0] == lowered[1])


def test_names_and_values_cannot_be_shifted_into_one_another() -> None:
    columns = [("a", "TEXT"), ("b", "TEXT")]
    rows = [("1", "2"), ("12", ""), ("", "12"), ("1:s", "2"), ("11:b2:s2", ""), ("1", None), (None, "1"), ("-", "None")]
    assert len({hashed(columns, {"a": a, "b": b}) for a, b in rows}) == len(rows)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("INT", [1, "1", 1.0, True, Decimal("1.0"), np.int8(1)]),
        ("DOUBLE", [0.0, -0.0, 0, "0", False]),
        ("DOUBLE", [0.1, "0.1", Decimal("0.1")]),
        ("NUMERIC(6,3)", [1.0004, 1, "1.00", Decimal("0.9995")]),
        ("NUMERIC", [100, 1e2, "1E+2", Decimal("100.00")]),
        ("BOOLEAN", [True, 1, "true"]),
        ("DATETIME", ["2024-05-01T12:00:00+02:00", datetime(2024, 5, 1, 10), pd.Timestamp("2024-05-01 10:00")]),
        ("TEXT", [1, "1"]),
        ("JSON", [{"a": 1, "b": [1]}, {"b": (1,), "a": 1}]),
        ("JSON", [None, None]),
    ],
)
def test_values_that_the_column_holds_alike_are_one_row(text: str, values: list[object]) -> None:
    assert len({hashed([("x", text)], {"x": value}) for value in values}) == 1


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("TEXT", ["A", "a", "a ", "á", "a\u0301", "", None, "null", "None"]),
        ("JSON", [1, 1.0, "1", True, None, [1], {"1": 1}, "null"]),
        ("NUMERIC(6,3)", ["1.001", "1.002"]),
        ("DATETIME", ["2024-05-01T12:00:00", "2024-05-01T12:00:00.000001"]),
        ("INT", [0, None, 1, -1]),
    ],
)
def test_values_that_differ_are_different_rows(text: str, values: list[object]) -> None:
    assert len({hashed([("x", text)], {"x": value}) for value in values}) == len(values)


@given(finite, finite)
def test_floats_are_told_apart_to_the_last_bit(one: float, other: float) -> None:
    same = hashed([("x", "DOUBLE")], {"x": one}) == hashed([("x", "DOUBLE")], {"x": other})
    assert same == (one == other)


def test_wider_types_of_the_same_kind_and_case_of_names_give_the_same_hash() -> None:
    assert hashed([("X", "INT")], {"X": 5}) == hashed([("x", "BIGINT")], {"x": 5})
    assert hashed([("x", "VARCHAR(9)")], {"x": "5"}) == hashed([("x", "LONGTEXT")], {"x": "5"})
    assert hashed([("x", "TEXT")], {"x": "5"}) != hashed([("x", "INT")], {"x": "5"})


def test_the_hash_of_a_row_stays_what_it_was_when_it_was_stored() -> None:
    columns = [("seed", "INT"), ("Dataset", "VARCHAR(9)"), ("C", "NUMERIC(6,3)"), ("on", "BOOLEAN"), ("lr", "DOUBLE")]
    row = {"seed": 1, "Dataset": "iris", "C": 0.5, "on": None, "lr": 0.1}
    parts = b"1:c4:n0.57:dataset5:siris2:lr4:f0.12:on1:-4:seed2:i1"
    assert hashed(columns, row) == key_hash([parts])
    assert key_hash([parts]).hex() == "442c39ff12eea07a6207d3fbd8997b71"


def test_duplicates_get_hashes_of_their_own() -> None:
    plain = key_hash([b"x"])
    hashes = {plain, *(salted(plain, id) for id in range(100)), salted(key_hash([b"y"]), 1)}
    assert len(hashes) == 102
    assert {len(each) for each in hashes} == {16}
    assert salted(plain, 7) == salted(plain, 7)


def test_canonical_json_is_ascii_and_has_no_spaces() -> None:
    found = stored("JSON", {"ü": [1, {"b": "😀 x", "a": None}]})
    assert found == '{"\\u00fc":[1,{"a":null,"b":"\\ud83d\\ude00 x"}]}'
    assert json.loads(str(found)) == {"ü": [1, {"b": "😀 x", "a": None}]}
