"""`preview_fill` and `preview_migration`: what they say is what then happens, and they change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.errors import (
    DatabaseCreationError,
    InvalidValuesInConfiguration,
    ParameterCombinationError,
    TableHasWrongStructureError,
)
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.support import numbers
from tests.servers import Server
from tests.studies import KEYFIELDS, LOGTABLES, RESULTFIELDS

pytestmark = pytest.mark.executes_nothing
on_servers = pytest.mark.parametrize("provider", ["postgresql", "mysql"])


def _has_no_file(target: Target) -> bool:
    return target.provider == "sqlite" and not Path(target.database).exists()


async def _tables(target: Target) -> dict[str, Any]:
    """Every table with its columns; of SQLite, without making the file."""
    if _has_no_file(target):
        return {}
    database = connect(target)
    try:
        return {name: await database.columns(name) for name in await database.tables("experiments")}
    finally:
        await database.close()


async def test_a_preview_of_nothing_yet_makes_nothing(make: Make, target: Target) -> None:
    preview = await make().preview_fill(3)
    assert (preview.rows, preview.existing) == (10, 0)
    assert preview.first == ({"number": 0, "kind": "a"}, {"number": 0, "kind": "b"}, {"number": 1, "kind": "a"})
    assert not await _tables(target)
    assert target.provider != "sqlite" or _has_no_file(target)


async def test_a_preview_is_what_then_happens(make: Make, target: Target) -> None:
    await make().fill_table_from_config()
    wider = make(keyfields={**KEYFIELDS, "number": {"type": "INT", "values": {"start": 3, "stop": 9}}})
    preview = await wider.preview_fill()
    assert (preview.rows, preview.existing) == (12, 4)
    assert [row["number"] for row in preview.first] == [5, 5, 6, 6, 7], "the first of those that are new"
    assert len(await sql.fetch(target, 'SELECT "ID" FROM "experiments"')) == 10
    filled = await wider.fill_table_from_config()
    assert (filled.added, filled.existed) == (8, 4)
    assert (await wider.preview_fill()).existing == 12


async def test_a_preview_of_more_than_a_batch_counts_all(make: Make) -> None:
    experimenter = make(keyfields=numbers(10_500))
    await experimenter.fill_table_from_config()
    preview = await make(keyfields=numbers(21_000)).preview_fill(0)
    assert (preview.rows, preview.existing, preview.first) == (21_000, 10_500, ())


@pytest.mark.parametrize("form", [list, pd.DataFrame])
async def test_a_preview_of_rows(make: Make, target: Target, form: Any) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()
    rows = form([{"number": 1, "kind": "a"}, {"number": 77, "kind": None}])
    preview = await experimenter.preview_fill(rows=rows)
    assert (preview.rows, preview.existing) == (2, 1)
    assert preview.first == ({"number": 77, "kind": None},)
    with pytest.raises(ParameterCombinationError, match="row 1: no keyfield 'kid'; did you mean 'kind'"):
        await experimenter.preview_fill(rows=[{"number": 1, "kind": "a"}, {"number": 1, "kid": "a"}])


async def test_a_preview_of_another_structure_is_refused(make: Make) -> None:
    await make().fill_table_from_config()
    with pytest.raises(TableHasWrongStructureError):
        await make(resultfields={"result": "TEXT"}).preview_fill()
    with pytest.raises(TableHasWrongStructureError):
        await make(resultfields={"result": "TEXT"}).preview_migration()


async def test_a_preview_without_values_is_refused(make: Make) -> None:
    with pytest.raises(InvalidValuesInConfiguration, match="'number'"):
        await make(keyfields={"number": {"type": "INT"}}).preview_fill()


@on_servers
async def test_a_preview_without_a_database(make: Make, target: Target, server: Server) -> None:
    server.drop(target.database)
    with pytest.raises(DatabaseCreationError):
        await make().preview_fill()
    preview = await make().preview_fill(create_database=True)
    assert (preview.rows, preview.existing) == (10, 0)
    with pytest.raises(DatabaseCreationError):
        await make().preview_fill()


async def test_progress_is_told_after_each_batch(make: Make) -> None:
    told: list[int] = []
    experimenter = make(keyfields=numbers(10_500))
    await experimenter.fill_table_from_config(progress=lambda filled: told.append(filled.added))
    assert told == [10_000, 10_500]
    rows = [{"number": -number} for number in range(11_000)]
    await experimenter.fill_table_with_rows(rows, progress=lambda filled: told.append(filled.added))
    assert told[2:] == [9_999, 10_999], "-0 is 0, and exists"


# ---------------------------------------------------------------------------------------- migration


async def test_a_preview_of_a_migration_before_there_is_anything_names_every_table(make: Make, target: Target) -> None:
    lacking = await make().preview_migration()
    assert {"experiments", "experiments__steps", "experiments_workers"} <= lacking.keys()
    assert {"ID", "number", "kind", "result", "_key_hash"} <= set(lacking["experiments"])
    assert not await _tables(target)
    assert target.provider != "sqlite" or _has_no_file(target)


async def test_a_preview_of_a_migration_is_what_then_happens(make: Make, target: Target) -> None:
    await make().fill_table_from_config()
    assert await make().preview_migration() == {}
    more = make(
        keyfields={**KEYFIELDS, "depth": {"type": "INT", "values": [1], "default": 1}},
        resultfields={**RESULTFIELDS, "score": "DOUBLE"},
        logtables={"steps": {**LOGTABLES["steps"], "more": "INT"}, "others": {"x": "INT"}},
    )
    before = await _tables(target)
    lacking = await more.preview_migration()
    assert lacking.keys() == {"experiments", "experiments__steps", "experiments__others"}
    assert (lacking["experiments"], lacking["experiments__steps"]) == (["depth", "score"], ["more"])
    assert await _tables(target) == before
    await more.migrate()
    assert await more.preview_migration() == {}
    after = await _tables(target)
    for table, columns in lacking.items():
        assert set(columns) <= {name for name, _ in after[table]}


async def test_a_preview_of_a_migration_that_cannot_be_says_why(make: Make) -> None:
    await make().fill_table_from_config()
    experimenter = make(keyfields={**KEYFIELDS, "depth": {"type": "INT", "values": [1]}})
    with pytest.raises(TableHasWrongStructureError, match="'depth' is new: give it a `default:`"):
        await experimenter.preview_migration()
