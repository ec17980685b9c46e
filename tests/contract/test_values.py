"""Values: what a function sends, and what a keyfield is given, comes back the same from every database.

Hypothesis draws whole tables; a value drawn is already in its canonical form, so what comes back must equal
it, in class too. What is drawn here is the meaning of page "Values"; odd values have a table of their own.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
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
from tests.contract.modes import Mode
from tests.contract.odd_values import ODD, REFUSED
from tests.contract.shared import Shared

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
def study(make: Make, mode: Mode) -> Experimenter:
    """A study with every type as a resultfield and as a column of a log table."""
    numbered = {"number": {"type": "BIGINT"}}
    return make(keyfields=numbered, resultfields=TYPES, logtables={"lines": TYPES}, n_jobs=_jobs(mode))


@pytest.fixture
def keyed(make: Make, mode: Mode) -> Experimenter:
    """A study with every type as a keyfield."""
    keyfields = {name: {"type": type_} for name, type_ in TYPES.items()}
    return make(keyfields=keyfields, resultfields={}, n_jobs=_jobs(mode))


def _jobs(mode: Mode) -> int:
    return 2 if mode == "process" else ROWS_PER_EXAMPLE  # each child is a process to start, in every example


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
    keyed: Experimenter, shared: Shared, table: list[dict[str, Any]]
) -> None:
    filled = await keyed.fill_table_with_rows(table)
    again = await keyed.fill_table_with_rows(reversed(table))
    assert (again.added, again.existed) == (0, len(table))
    seen = shared.seen()

    async def run(keyfields: dict[str, Any], results: ResultProcessor, _: Any) -> None:
        seen.append([int(results.experiment_id), pickle.dumps(keyfields).hex()])

    assert (await keyed.execute(run)).done == filled.added
    given_ = {experiment_id: pickle.loads(bytes.fromhex(sent)) for experiment_id, sent in seen}  # noqa: S301
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


async def test_what_cannot_be_stored_raises_in_the_caller_and_nothing_of_the_call_is_written(
    study: Experimenter, shared: Shared
) -> None:
    await _filled(study, 1)
    wrong = shared.seen()

    async def check(sent: Awaitable[None], error: type[Exception], field: str, value: Any) -> None:
        try:
            await sent
        except error as raised:
            if repr(field) in str(raised) and len(str(raised)) <= 500:
                return
        wrong.append([field, repr(value)])

    async def run(_: dict[str, Any], results: ResultProcessor, __: Any) -> None:
        for name, value in REFUSED:
            other = "long" if name != "long" else "text"
            await check(results.process_results({other: "half", name: value}), InvalidResultFieldError, name, value)
            line = {"lines": [{other: "half"}, {name: value}]}
            await check(results.process_logs(line), InvalidLogFieldError, name, value)

    assert (await study.execute(run)).done == 1
    assert wrong == []
    assert len(await study.get_logtable("lines")) == 0
    [row] = _cells(await study.get_table(), list(TYPES))
    assert set(row.values()) == {None}


@pytest.mark.executes_nothing
async def test_what_cannot_be_stored_is_no_keyfield_and_nothing_of_the_row_is_added(keyed: Experimenter) -> None:
    await keyed.create_table()
    nothing = dict.fromkeys(TYPES)
    for name, value in REFUSED:
        with pytest.raises(ParameterCombinationError, match=f"row 0, keyfield '{name}'"):
            await keyed.fill_table_with_rows([nothing | {name: value}])
    assert len(await keyed.get_table()) == 0


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


@pytest.mark.executes_nothing
@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), Decimal("Infinity"), pd.NaT, "nan"])
async def test_what_is_no_number_is_refused_in_a_keyfield(make: Make, value: Any) -> None:
    study = make(keyfields={"rate": {"type": "DOUBLE"}, "kind": {"type": "INT"}})
    with pytest.raises(ParameterCombinationError, match=r"row 1, keyfield 'rate'.*write null"):
        await study.fill_table_with_rows([{"rate": 0.5, "kind": 1}, {"rate": value, "kind": 1}])
    assert len(await study.get_table()) == 0


@pytest.mark.executes_nothing
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


async def test_texts_are_different_rows_to_the_byte(make: Make, shared: Shared) -> None:
    study = make(keyfields={"word": {"type": "VARCHAR(20)"}})
    words = ["a", "A", "a ", "á", "a\u0301", "😀", "😁", "", None]
    assert (await study.fill_table_with_rows([{"word": word} for word in words])).added == len(words)
    given_ = shared.seen()

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


@pytest.mark.executes_nothing
async def test_the_key_hash_is_the_same_on_every_database(keyed: Experimenter, target: Target) -> None:
    await keyed.fill_table_with_rows([KEYS])
    [(found,)] = await sql.fetch(target, 'SELECT "_key_hash" FROM "experiments"')
    assert bytes(found).hex() == KEY_HASH


# ------------------------------------------------------------------------ larger than the server takes


async def test_a_value_larger_than_the_server_takes_costs_only_its_caller(
    make: Make, target: Target, shared: Shared
) -> None:
    study = make(n_jobs=5)
    await study.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(5)])
    db = connect(target)
    await db.open()
    limit = db.max_value_bytes
    await db.close()
    if limit > 50_000_000:
        limit = 9_000_000  # a gigabyte is more than a test should send; that much is simply stored
    refused = shared.seen()

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
    if len(refused):
        [words] = refused
        assert "more than the server takes in one value" in words
        assert lengths[2] == len("too long")
    else:
        assert lengths[2] == limit // 2 + 1
