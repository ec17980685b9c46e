"""Filling the table: each combination is one row, once, in the order given, whoever fills and however often."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from asyncexp.db.base import Target
from asyncexp.errors import EmptyFillDatabaseCallError, InvalidValuesInConfiguration, ParameterCombinationError
from tests.contract.conftest import Make
from tests.contract.sql import fetch as sql
from tests.contract.support import child, numbers

pytestmark = pytest.mark.executes_nothing
PAIRS: dict[str, Any] = {"number": {"type": "INT"}, "kind": {"type": "VARCHAR(20)"}}
ROWS = [{"number": 1, "kind": "a"}, {"number": 2, "kind": "a"}, {"number": 1, "kind": "b"}]
STORED = [(1, 1, "a"), (2, 2, "a"), (3, 1, "b")]


async def stored(target: Target) -> list[tuple[Any, ...]]:
    return await sql(target, 'SELECT "ID", "number", "kind" FROM "experiments" ORDER BY "ID"')


async def test_the_grid_is_filled_in_product_order_and_ids_follow_it(make: Make, target: Target) -> None:
    filled = await make().fill_table_from_config()
    assert (filled.added, filled.existed) == (10, 0)
    grid = [(number, kind) for number in range(5) for kind in "ab"]
    assert await stored(target) == [(index, *pair) for index, pair in enumerate(grid, 1)]


async def test_new_rows_are_created_and_nothing_else(make: Make, target: Target) -> None:
    await make().fill_table_from_config()
    states = 'SELECT DISTINCT "status", "_attempt", "start_date", "end_date", "error", "result" FROM "experiments"'
    assert await sql(target, states) == [("created", 0, None, None, None, None)]
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments" WHERE "creation_date" IS NULL') == [(0,)]


async def test_filling_again_adds_only_what_is_missing_and_burns_no_id(make: Make, target: Target) -> None:
    experimenter = make(keyfields=PAIRS)
    await experimenter.fill_table_with_rows(ROWS[:2])
    again = await experimenter.fill_table_with_rows(ROWS)
    assert (again.added, again.existed) == (1, 2)
    assert await stored(target) == STORED


async def test_the_same_list_twice_adds_nothing(make: Make, target: Target) -> None:
    experimenter = make(keyfields=PAIRS)
    await experimenter.fill_table_with_rows(ROWS)
    again = await experimenter.fill_table_with_rows(ROWS)
    assert (again.added, again.existed) == (0, 3)
    doubled = await experimenter.fill_table_with_rows([*ROWS, *ROWS, {"number": 9, "kind": "z"}])
    assert (doubled.added, doubled.existed) == (1, 6)
    assert await stored(target) == [*STORED, (4, 9, "z")]


async def test_rows_go_by_name_whatever_the_order_of_their_keys(make: Make, target: Target) -> None:
    mixed = [dict(reversed(row.items())) if row["number"] == 1 else row for row in ROWS]
    await make(keyfields=PAIRS).fill_table_with_rows(mixed)
    assert await stored(target) == STORED


async def test_callers_rows_are_left_as_they_are(make: Make) -> None:
    experimenter = make(keyfields=PAIRS)
    rows, fixed, parameters = deepcopy(ROWS), [{"number": 7}], {"kind": ["x", "y"]}
    await experimenter.fill_table_with_rows(rows)
    await experimenter.fill_table_from_combination(fixed, parameters)
    assert (rows, fixed, parameters) == (ROWS, [{"number": 7}], {"kind": ["x", "y"]})


async def _asynchronous() -> AsyncIterator[dict[str, Any]]:
    for row in ROWS:
        yield row


def _generator() -> Iterator[dict[str, Any]]:
    yield from ROWS


@pytest.mark.parametrize("rows", [_generator, _asynchronous, lambda: tuple(ROWS), lambda: pd.DataFrame(ROWS)])
async def test_rows_come_from_any_iterable_and_from_a_dataframe(make: Make, target: Target, rows: Any) -> None:
    filled = await make(keyfields=PAIRS).fill_table_with_rows(rows())
    assert (filled.added, filled.existed) == (3, 0)
    assert await stored(target) == STORED


async def test_missing_cells_of_a_dataframe_are_null(make: Make, target: Target) -> None:
    cells = pd.DataFrame({"number": [1.0, float("nan")], "kind": [None, "b"]})
    await make(keyfields=PAIRS).fill_table_with_rows(cells)
    assert await stored(target) == [(1, 1, None), (2, None, "b")]


async def test_fixed_combinations_times_parameters_the_parameters_faster(make: Make, target: Target) -> None:
    experimenter = make(keyfields=PAIRS)
    filled = await experimenter.fill_table_from_combination([{"number": 3}, {"number": 1}], {"kind": ["b", "a"]})
    assert filled.added == 4
    assert await stored(target) == [(1, 3, "b"), (2, 3, "a"), (3, 1, "b"), (4, 1, "a")]


async def test_combinations_need_not_have_both_parts(make: Make, target: Target) -> None:
    experimenter = make(keyfields=PAIRS)
    await experimenter.fill_table_from_combination(fixed_parameter_combinations=ROWS[:1])
    await experimenter.fill_table_from_combination(parameters={"kind": ["a", "b"], "number": [1]})
    assert await stored(target) == [(1, 1, "a"), (2, 1, "b")]


async def test_values_are_the_same_if_their_column_says_so(make: Make, target: Target) -> None:
    experimenter = make(keyfields=PAIRS)
    alike = [{"number": number, "kind": kind} for number, kind in [("1", 5), (1, "5"), (1.0, "5")]]
    filled = await experimenter.fill_table_with_rows(alike)
    assert (filled.added, filled.existed) == (1, 2)
    assert await stored(target) == [(1, 1, "5")]


async def test_texts_are_the_same_only_to_the_byte(make: Make, target: Target) -> None:
    kinds = ["a", "A", "a ", "ä", "🐍", "🐢", ""]
    filled = await make(keyfields=PAIRS).fill_table_with_rows([{"number": 1, "kind": kind} for kind in kinds])
    assert filled.added == len(kinds)
    assert [kind for _, _, kind in await stored(target)] == kinds


async def test_null_equals_null(make: Make, target: Target) -> None:
    experimenter = make(keyfields=PAIRS)
    nulls: list[dict[str, Any]] = [
        {"number": None, "kind": "a"},
        {"number": None, "kind": None},
        {"number": 0, "kind": None},
    ]
    await experimenter.fill_table_with_rows(nulls)
    again = await experimenter.fill_table_with_rows(nulls)
    assert (again.added, again.existed) == (0, 3)
    assert await stored(target) == [(1, None, "a"), (2, None, None), (3, 0, None)]


# -------------------------------------------------------------------------------------------- bad input


async def _as_stream(rows: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for row in rows:
        yield row


@pytest.mark.parametrize("given", [list, iter, _as_stream])
async def test_a_bad_row_names_index_and_field_and_earlier_batches_stay(make: Make, target: Target, given: Any) -> None:
    good = [{"number": number, "kind": "a"} for number in range(10_005)]
    with pytest.raises(ParameterCombinationError, match=r"row 10005.*'number'.*10000 rows were added") as raised:
        await make(keyfields=PAIRS).fill_table_with_rows(given([*good, {"number": "one", "kind": "a"}]))
    assert raised.value.__cause__ is None
    assert await sql(target, 'SELECT COUNT(*), MAX("number") FROM "experiments"') == [(10_000, 9_999)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"number": 1}, r"row 1.*'kind' is missing"),
        ({"number": 1, "kind": "a", "knid": "b"}, r"row 1.*'knid'.*did you mean 'kind'"),
        ({"number": 1.5, "kind": "a"}, r"row 1.*'number'"),
        ({"number": 1, "kind": "a" * 21}, r"row 1.*'kind'"),
        ({"number": float("nan"), "kind": "a"}, r"row 1.*'number'"),
        ({"number": 1, "kind": "a\0b"}, r"row 1.*'kind'"),
        (["number", "kind"], r"row 1.*list"),
    ],
)
async def test_a_row_that_cannot_be_stored_adds_nothing(make: Make, target: Target, row: Any, words: str) -> None:
    with pytest.raises(ParameterCombinationError, match=words):
        await make(keyfields=PAIRS).fill_table_with_rows([ROWS[0], row])
    assert await stored(target) == []


async def test_rows_that_are_no_list_of_dicts_are_refused(make: Make) -> None:
    experimenter = make(keyfields=PAIRS)
    for wrong in ("number", {"number": 1, "kind": "a"}, 5):
        with pytest.raises(ParameterCombinationError, match="list of dicts"):
            await experimenter.fill_table_with_rows(wrong)  # type: ignore[arg-type]


async def test_a_keyfield_given_twice_or_unknown_in_a_combination_is_named(make: Make) -> None:
    experimenter = make(keyfields=PAIRS)
    with pytest.raises(ParameterCombinationError, match=r"fixed combination 0: kind"):
        await experimenter.fill_table_from_combination([{"number": 1, "kind": "a"}], {"kind": ["b"]})
    with pytest.raises(ParameterCombinationError, match=r"'knid'.*did you mean 'kind'"):
        await experimenter.fill_table_from_combination([{"number": 1}], {"knid": ["b"]})
    with pytest.raises(ParameterCombinationError, match=r"'kind' is missing"):
        await experimenter.fill_table_from_combination([{"number": 1}])


@pytest.mark.parametrize("rows", [list, pd.DataFrame, lambda: iter(()), lambda: _as_stream([])])
async def test_filling_with_nothing_is_an_error(make: Make, rows: Any) -> None:
    with pytest.raises(EmptyFillDatabaseCallError):
        await make(keyfields=PAIRS).fill_table_with_rows(rows())


async def test_a_keyfield_without_values_cannot_be_filled_from_the_configuration(make: Make) -> None:
    with pytest.raises(InvalidValuesInConfiguration, match="'number'"):
        await make(keyfields=PAIRS).fill_table_from_config()


# ----------------------------------------------------------------------------------------- many, large


async def test_eight_processes_fill_the_same_grid_at_once_from_an_empty_database(
    target: Target, tmp_path: Path
) -> None:
    study: dict[str, Any] = {"keyfields": numbers(3_000) | {"kind": {"type": "VARCHAR(20)", "values": ["a", "b"]}}}
    async with AsyncExitStack() as stack:
        fillers = [await stack.enter_async_context(child("fill", tmp_path, target, **study)) for _ in range(8)]
        assert [await filler.told() for filler in fillers] == ["ready"] * 8
        await asyncio.gather(*(filler.tell() for filler in fillers))
        filled = [await filler.told() for filler in fillers]
        assert [await filler.ended() for filler in fillers] == [0] * 8
    assert sum(added for added, _ in filled) == 6_000
    assert all(added + existed == 6_000 for added, existed in filled)
    distinct = 'SELECT COUNT(*), COUNT(DISTINCT "_key_hash"), MIN("ID"), MAX("ID") FROM "experiments"'
    assert await sql(target, distinct) == [(6_000, 6_000, 1, 6_000)]


async def test_200_000_rows_in_flat_memory(make: Make) -> None:
    blocks: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(200_000):
            if number % 10_000 == 0:  # where a batch begins
                blocks.append(sys.getallocatedblocks())
            yield {"number": number, "kind": "a"}

    filled = await make(keyfields=PAIRS).fill_table_with_rows(rows())
    assert filled.added == 200_000
    # The first 100,000 values of a keyfield may be kept; from there on, a row held would show as some blocks.
    assert max(blocks[11:]) - blocks[11] < 40_000


@pytest.mark.parametrize(
    ("fixed", "parameters", "words"),
    [
        (None, {"number": [1], "kind": "abc"}, r"parameter 'kind': wanted is a list of values, \['abc'\] for a single"),
        (None, {"number": 5, "kind": ["a"]}, "parameter 'number': wanted is a list"),
        (None, {"number": {"start": 0, "stop": 3}, "kind": ["a"]}, "parameter 'number': wanted is a list"),
        (None, 5, "parameters: a dict of keyfields"),
        ({"number": [1]}, None, "fixed_parameter_combinations: a list of dicts"),
    ],
)
async def test_what_is_no_list_of_values_is_refused_and_not_taken_apart(
    make: Make, target: Target, fixed: Any, parameters: Any, words: str
) -> None:
    experimenter = make()
    with pytest.raises(ParameterCombinationError, match=words):
        await experimenter.fill_table_from_combination(fixed, parameters)
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments"') == [(0,)]
