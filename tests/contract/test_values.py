"""Values: what a function sends, and what a keyfield is given, comes back the same from every database.

Hypothesis draws whole tables; a value drawn is already in its canonical form, so what comes back must equal
it, in class too. What is drawn here is the meaning of page "Values"; odd values have a table of their own.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncexp import Experimenter, ResultProcessor
from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.errors import (
    InvalidLogFieldError,
    InvalidResultFieldError,
    ParameterCombinationError,
)
from tests.contract import sql
from tests.contract.conftest import Make

TYPES = {
    "short": "VARCHAR(8)",
    "whole": "INT",
    "large": "BIGINT",
    "exact": "NUMERIC(12,4)",
    "free": "NUMERIC",
    "double": "DOUBLE",
    "float": "FLOAT",
    "flag": "BOOLEAN",
    "moment": "DATETIME",
    "text": "TEXT",
    "long": "LONGTEXT",
    "data": "JSON",
}
ROWS_PER_EXAMPLE = 8
# Hypothesis takes the worker's own thread, which draws its pauses from `random`, for a strategy that does.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
once_a_database = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
floats = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "short": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    "whole": st.integers(-(2**31), 2**31 - 1),
    "large": st.integers(-(2**63), 2**63 - 1),
    "exact": st.integers(-(10**12) + 1, 10**12 - 1).map(lambda digits: float(Decimal(digits).scaleb(-4)) + 0.0),
    "free": floats,
    "double": floats,
    "float": floats,
    "flag": st.booleans(),
    "moment": st.datetimes(datetime(1000, 1, 1)),
    "text": texts,
    "long": texts,
    "data": json_values.filter(lambda value: value is not None),
}
rows = st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()})
tables = st.lists(rows, min_size=1, max_size=ROWS_PER_EXAMPLE)


def _same(found: Any, wanted: Any) -> bool:
    """Equal in class too, for 1 is not True and 1.0 not 1."""
    if isinstance(wanted, dict):
        return type(found) is dict and found.keys() == wanted.keys() and all(_same(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list):
        return type(found) is list and len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, float):
        return type(found) is float and repr(found) == repr(wanted)  # -0.0 is not 0.0
    return type(found) is type(wanted) and bool(found == wanted)


def _cells(table: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a table with Python's own values, None for what is missing."""
    found = {name: [_cell(value) for value in table[name]] for name in columns}
    return [dict(zip(columns, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _cell(value: Any) -> Any:
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, pd.Timestamp):
        return value.to_pydatetime()
    return value.item() if isinstance(value, np.generic) else value


def _check(found: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> None:
    wrong = [
        (name, left[name], right[name])
        for left, right in zip(found, wanted, strict=True)
        for name in right
        if not _same(left[name], right[name])
    ]
    assert not wrong, f"(column, found, wanted): {wrong[:3]}"


@pytest.fixture
def study(make: Make) -> Experimenter:
    """A study with every type as a resultfield and as a column of a log table."""
    numbered = {"number": {"type": "BIGINT"}}
    return make(keyfields=numbered, resultfields=TYPES, logtables={"lines": TYPES}, n_jobs=ROWS_PER_EXAMPLE)


@pytest.fixture
def keyed(make: Make) -> Experimenter:
    """A study with every type as a keyfield."""
    return make(
        keyfields={name: {"type": type_} for name, type_ in TYPES.items()}, resultfields={}, n_jobs=ROWS_PER_EXAMPLE
    )


async def _filled(experimenter: Experimenter, count: int) -> list[int]:
    """Adds so many rows; their numbers, which go on over the examples of a test."""
    await experimenter.create_table()
    first = sum((await experimenter.counts()).values())
    numbers = list(range(first, first + count))
    await experimenter.fill_table_with_rows([{"number": number} for number in numbers])
    return numbers


# -------------------------------------------------------------------------------------- round trips


@once_a_database
@given(table=tables)
async def test_results_come_back_as_they_were_sent(study: Experimenter, table: list[dict[str, Any]]) -> None:
    numbers = await _filled(study, len(table))
    sent = dict(zip(numbers, table, strict=True))

    async def run(keyfields: dict[str, Any], results: ResultProcessor, _: Any) -> None:
        await results.process_results(sent[keyfields["number"]])

    assert (await study.execute(run, max_errors=-1)).done == len(table)
    found = await study.get_table({"number": numbers})
    _check(_cells(found, list(TYPES)), table)


@once_a_database
@given(table=tables)
async def test_log_lines_come_back_as_they_were_sent(study: Experimenter, table: list[dict[str, Any]]) -> None:
    [number] = await _filled(study, 1)

    async def run(_: dict[str, Any], results: ResultProcessor, __: Any) -> None:
        await results.process_logs({"lines": table})

    assert (await study.execute(run)).done == 1
    found = await study.get_logtable("lines", {"experiment_id": number + 1})
    _check(_cells(found, list(TYPES)), table)


@once_a_database
@given(table=tables)
async def test_the_function_is_given_the_keyfields_that_were_filled(
    keyed: Experimenter, table: list[dict[str, Any]]
) -> None:
    filled = await keyed.fill_table_with_rows(table)
    again = await keyed.fill_table_with_rows(reversed(table))
    assert (again.added, again.existed) == (0, len(table))
    given_: dict[int, dict[str, Any]] = {}

    async def run(keyfields: dict[str, Any], results: ResultProcessor, _: Any) -> None:
        given_[int(results.experiment_id)] = keyfields

    assert (await keyed.execute(run)).done == filled.added
    new = [given_[experiment_id] for experiment_id in sorted(given_)]
    assert all(any(_equal_row(row, each) for each in table) for row in new)
    found = await keyed.get_table({"ID": sorted(given_)})
    _check(_cells(found, list(TYPES)), new)


def _equal_row(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(_same(found[name], wanted[name]) for name in wanted)


@once_a_database
@given(table=tables)
async def test_a_condition_finds_exactly_the_rows_with_that_value(
    study: Experimenter, table: list[dict[str, Any]]
) -> None:
    numbers = await _filled(study, len(table))
    sent = dict(zip(numbers, table, strict=True))

    async def run(keyfields: dict[str, Any], results: ResultProcessor, _: Any) -> None:
        await results.process_results(sent[keyfields["number"]])

    await study.execute(run)
    for name in TYPES:
        wanted = table[0][name]
        if name == "data" and isinstance(wanted, list):
            continue  # in a condition a list means any of them
        condition = {"number": numbers, name: wanted}
        found = [int(number) for number in (await study.get_table(condition))["number"]]
        assert found == [n for n in numbers if _same(sent[n][name], wanted)], name


# ---------------------------------------------------------------------------------------- odd values


class Colour(enum.Enum):
    RED = "red"
    DEEP = 7


LOCAL = timezone(timedelta(hours=5, minutes=30))
ODD: list[tuple[str, Any, Any]] = [
    ("short", "émigré 😀", "émigré 😀"),
    ("short", Colour.RED, "red"),
    ("whole", "12", 12),
    ("whole", 3.0, 3),
    ("whole", True, 1),
    ("whole", np.int8(-3), -3),
    ("whole", Colour.DEEP, 7),
    ("large", np.uint64(2**63 - 1), 2**63 - 1),
    ("large", Decimal(9007199254740993), 9007199254740993),
    ("exact", Decimal("1.00005"), 1.0001),
    ("exact", Decimal("-0.00001"), 0.0),
    ("exact", "2.5", 2.5),
    ("free", Decimal("1e-300"), 1e-300),
    ("free", 1.5, 1.5),
    ("double", 2**63, float(2**63)),
    ("double", -0.0, 0.0),
    ("double", 5e-324, 5e-324),
    ("double", 0.1 + 0.2, 0.1 + 0.2),
    ("double", np.float32(0.5), 0.5),
    ("double", Decimal("0.1"), 0.1),
    ("float", 1.7976931348623157e308, 1.7976931348623157e308),
    ("float", 16777217, 16777217.0),
    ("flag", np.True_, True),
    ("flag", "false", False),
    ("flag", 0, False),
    ("moment", datetime(2024, 5, 6, 7, 8, 9, 123456), datetime(2024, 5, 6, 7, 8, 9, 123456)),
    ("moment", datetime(2024, 5, 6, 7, 8, 9, tzinfo=LOCAL), datetime(2024, 5, 6, 1, 38, 9)),
    ("moment", datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1)),
    ("moment", "2024-05-06T07:08:09+02:00", datetime(2024, 5, 6, 5, 8, 9)),
    ("moment", date(1999, 12, 31), datetime(1999, 12, 31)),
    ("moment", np.datetime64("2024-05-06T07:08:09.5"), datetime(2024, 5, 6, 7, 8, 9, 500000)),
    ("moment", pd.Timestamp("2024-05-06", tz="UTC"), datetime(2024, 5, 6)),
    ("moment", pd.NaT, None),
    ("text", 2**63, "9223372036854775808"),
    ("text", 1.5, "1.5"),
    ("text", Path("/data/x y"), "/data/x y"),
    ("text", {"b": [1, 2.5, None], "a": "ü"}, '{"a":"\\u00fc","b":[1,2.5,null]}'),
    ("text", ["x", 1], '["x",1]'),
    ("text", "", ""),
    ("text", "trailing  ", "trailing  "),
    ("text", "'; DROP TABLE experiments; -- %s :x ?", "'; DROP TABLE experiments; -- %s :x ?"),
    ("text", "back\\slash\\", "back\\slash\\"),
    ("text", "line\r\n\ttab\x1a\x08", "line\r\n\ttab\x1a\x08"),
    ("text", np.str_("numpy"), "numpy"),
    ("data", {"z": 1, "a": [True, None, "x"]}, {"z": 1, "a": [True, None, "x"]}),
    ("data", [1, 2], [1, 2]),
    ("data", "a text", "a text"),
    ("data", 1.0, 1.0),
    ("data", 2**70, 2**70),
    ("data", np.arange(3), [0, 1, 2]),
    (
        "data",
        {"p": PurePosixPath("a/b"), "d": date(2024, 1, 2), "e": Colour.RED},
        {"p": "a/b", "d": "2024-01-02", "e": "red"},
    ),
    ("data", {1: "one", None: 0}, {"1": "one", "null": 0}),
    ("data", {"nan": math.nan, "list": [math.inf]}, {"nan": None, "list": [None]}),
]


async def _each(study: Experimenter, sent: Sequence[tuple[str, Any]], how: str) -> list[Any]:
    """Sends each value in an experiment of its own; what each came back as."""
    numbers = await _filled(study, len(sent))
    by_number = dict(zip(numbers, sent, strict=True))

    async def run(keyfields: dict[str, Any], results: ResultProcessor, _: Any) -> None:
        name, value = by_number[keyfields["number"]]
        if how == "results":
            await results.process_results({name: value})
        else:
            await results.process_logs({"lines": {name: value}})

    assert (await study.execute(run, max_errors=-1)).done == len(sent)
    found = await (study.get_table() if how == "results" else study.get_logtable("lines"))
    order = found["number"] if how == "results" else found["experiment_id"] - 1
    cells = dict(zip(map(int, order), _cells(found, list(TYPES)), strict=True))
    return [cells[number][name] for number, (name, _) in zip(numbers, sent, strict=True)]


@pytest.mark.parametrize("how", ["results", "logs"])
async def test_odd_values_mean_the_same_everywhere(study: Experimenter, how: str) -> None:
    found = await _each(study, [(name, value) for name, value, _ in ODD], how)
    wrong = [
        (name, value, came) for (name, value, wanted), came in zip(ODD, found, strict=True) if not _same(came, wanted)
    ]
    assert not wrong, f"(column, sent, found): {wrong}"


@pytest.mark.parametrize("how", ["results", "logs"])
async def test_a_megabyte_of_text_comes_back(study: Experimenter, how: str) -> None:
    text = "wörter \U0001f600 '\\ %s\n" * 60_000
    deep = {"rows": [[float(n), str(n)] for n in range(40_000)]}
    assert await _each(study, [("text", text), ("long", text), ("data", deep)], how) == [text, text, deep]


REFUSED = [
    ("short", "123456789"),
    ("short", b"bytes"),
    ("whole", 2**31),
    ("whole", 1.5),
    ("whole", "one"),
    ("large", 2**63),
    ("large", -(2**63) - 1),
    ("large", np.uint64(2**63)),
    ("exact", 10**8),
    ("exact", Decimal("99999999.99995")),
    ("free", Decimal("1e400")),
    ("double", 10**400),
    ("double", "1,5"),
    ("double", [1.0]),
    ("flag", 2),
    ("flag", "perhaps"),
    ("moment", datetime(999, 12, 31)),
    ("moment", "yesterday"),
    ("moment", 1_700_000_000),
    ("text", "a\0b"),
    ("text", "half \ud83d pair"),
    ("text", {"key\0": 1}),
    ("text", object()),
    ("long", {1, 2}),
    ("data", {"x": ["\udc00"]}),
    ("data", {"x": {1, 2}}),
    ("data", b"bytes"),
    ("data", lambda: None),
]


async def test_what_cannot_be_stored_raises_in_the_caller_and_nothing_of_the_call_is_written(
    study: Experimenter,
) -> None:
    await _filled(study, 1)
    wrong: list[tuple[str, Any]] = []

    async def run(_: dict[str, Any], results: ResultProcessor, __: Any) -> None:
        for name, value in REFUSED:
            other = "long" if name != "long" else "text"
            if await _taken(results.process_results, {other: "half", name: value}, InvalidResultFieldError, name):
                wrong.append((name, value))
            line = {"lines": [{other: "half"}, {name: value}]}
            if await _taken(results.process_logs, line, InvalidLogFieldError, name):
                wrong.append((name, value))

    assert (await study.execute(run)).done == 1
    assert wrong == []
    assert len(await study.get_logtable("lines")) == 0
    [row] = _cells(await study.get_table(), list(TYPES))
    assert set(row.values()) == {None}


async def test_what_cannot_be_stored_is_no_keyfield_and_nothing_of_the_row_is_added(keyed: Experimenter) -> None:
    await keyed.create_table()
    nothing = dict.fromkeys(TYPES)
    for name, value in REFUSED:
        with pytest.raises(ParameterCombinationError, match=f"row 0, keyfield '{name}'"):
            await keyed.fill_table_with_rows([nothing | {name: value}])
    assert len(await keyed.get_table()) == 0


async def _taken(send: Callable[[Any], Any], what: Any, error: type[Exception], field: str) -> bool:
    try:
        await send(what)
    except error as raised:
        return f"{field!r}" not in str(raised) or len(str(raised)) > 500
    return True


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan"), Decimal("NaN"), "inf", pd.NA])
async def test_what_is_no_number_is_stored_as_null_with_one_warning(
    study: Experimenter, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await _filled(study, 2)
    caplog.set_level(logging.WARNING)

    async def run(_: dict[str, Any], results: ResultProcessor, __: Any) -> None:
        await results.process_results({"double": value})
        await results.process_logs({"lines": [{"double": value}, {"double": 1.0}, {"double": value}]})

    assert (await study.execute(run)).done == 2
    assert (await study.get_table())["double"].isna().all()
    assert list((await study.get_logtable("lines"))["double"].isna()) == [True, False, True] * 2
    told = [record.getMessage() for record in caplog.records if "NULL" in record.getMessage()]
    assert len(told) == 2, told  # one for the resultfield, one for the column
    assert all("double" in line for line in told)


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), Decimal("Infinity"), pd.NaT, "nan"])
async def test_what_is_no_number_is_refused_in_a_keyfield(make: Make, value: Any) -> None:
    study = make(keyfields={"rate": {"type": "DOUBLE"}, "kind": {"type": "INT"}})
    with pytest.raises(ParameterCombinationError, match=r"row 1, keyfield 'rate'.*write null"):
        await study.fill_table_with_rows([{"rate": 0.5, "kind": 1}, {"rate": value, "kind": 1}])
    assert len(await study.get_table()) == 0


async def test_values_that_mean_the_same_are_one_row(make: Make) -> None:
    study = make(keyfields={"rate": {"type": "DOUBLE"}, "exact": {"type": "NUMERIC(6,2)"}, "data": {"type": "JSON"}})
    alike = [
        {"rate": 1, "exact": 0.1, "data": {"a": 1, "b": 2}},
        {"rate": 1.0, "exact": "0.10", "data": {"b": 2, "a": 1}},
        {"rate": Decimal("1.00"), "exact": Decimal("0.1"), "data": {"b": np.int64(2), "a": 1}},
        {"data": {"b": 2, "a": 1}, "rate": "1", "exact": 0.1000001},
    ]
    filled = await study.fill_table_with_rows(alike)
    assert (filled.added, filled.existed) == (1, 3)
    other = [
        {"rate": -0.0, "exact": None, "data": None},
        {"rate": 0.0, "exact": None, "data": None},
        {"rate": 0.0, "exact": 0, "data": None},
    ]
    assert (await study.fill_table_with_rows(other)).added == 2


async def test_texts_are_different_rows_to_the_byte(make: Make) -> None:
    study = make(keyfields={"word": {"type": "VARCHAR(20)"}})
    words = ["a", "A", "a ", "á", "a\u0301", "😀", "😁", "", None]
    assert (await study.fill_table_with_rows([{"word": word} for word in words])).added == len(words)
    given_: list[Any] = []

    async def run(keyfields: dict[str, Any], _: ResultProcessor, __: Any) -> None:
        given_.append(keyfields["word"])

    await study.execute(run, n_jobs=1)
    assert given_ == words


KEYS = {
    "short": "é",
    "whole": 7,
    "large": -(2**63),
    "exact": 1.5,
    "free": 1e-7,
    "double": 0.1,
    "float": -0.0,
    "flag": True,
    "moment": datetime(2024, 5, 6, 7, 8, 9, 10),
    "text": "",
    "long": None,
    "data": {"a": [1.0]},
}
KEY_HASH = "288faf380be0e1e8286b3c768c8ba775"


async def test_the_key_hash_is_the_same_on_every_database(keyed: Experimenter, target: Target) -> None:
    await keyed.fill_table_with_rows([KEYS])
    [(found,)] = await sql.fetch(target, 'SELECT "_key_hash" FROM "experiments"')
    assert bytes(found).hex() == KEY_HASH


# ------------------------------------------------------------------------ larger than the server takes


async def test_a_value_larger_than_the_server_takes_costs_only_its_caller(make: Make, target: Target) -> None:
    study = make(n_jobs=5)
    await study.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(5)])
    db = connect(target)
    await db.open()
    limit = db.max_value_bytes
    await db.close()
    if limit > 50_000_000:
        limit = 9_000_000  # a gigabyte is more than a test should send; that much is simply stored
    refused: list[str] = []

    async def run(keyfields: dict[str, Any], results: ResultProcessor, _: Any) -> None:
        text = "ü" * (limit // 2 + (1 if keyfields["number"] == 2 else -200_000))
        try:
            await results.process_results({"text": text})
        except InvalidResultFieldError as error:
            refused.append(str(error))
            await results.process_results({"text": "too long"})

    assert (await study.execute(run)).done == 5
    lengths = [len(text) for text in (await study.get_table())["text"]]
    assert [lengths[n] for n in (0, 1, 3, 4)] == [limit // 2 - 200_000] * 4
    if refused:
        assert "more than the server takes in one value" in refused[0]
        assert lengths[2] == len("too long")
    else:
        assert lengths[2] == limit // 2 + 1
