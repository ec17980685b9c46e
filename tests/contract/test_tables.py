"""The tables: made as page "Tables" lists them, made once, compared with the configuration, dropped whole."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.errors import (
    DatabaseCreationError,
    DatabaseQueryError,
    InvalidColumnError,
    TableHasWrongStructureError,
)
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.functions import never, nothing
from tests.contract.support import child
from tests.servers import Server
from tests.studies import experimenter as study

WORDS = dict[str, list[str]]
LAYOUT = {
    "experiments": "ID number kind creation_date status start_date name machine result text end_date error "
    "_attempt _worker _heartbeat _progress _message _not_before _request _requested_by _continues _counted_from "
    "_key_hash",
    "experiments__steps": "ID experiment_id timestamp step note _attempt",
    "experiments_codecarbon": "ID experiment_id codecarbon_timestamp project_name run_id duration_seconds "
    "emissions_kg emissions_rate_kg_sec cpu_power_watt gpu_power_watt ram_power_watt cpu_energy_kw gpu_energy_kw "
    "ram_energy_kw energy_consumed_kw country_name country_iso_code region cloud_provider cloud_region os "
    "python_version codecarbon_version cpu_count cpu_model gpu_count gpu_model longitude latitude ram_total_size "
    "tracking_mode on_cloud power_usage_efficiency offline_mode _attempt",
    "experiments_workers": "id role experiment_id name machine boot_id pid_namespace pid started heartbeat lease "
    "stopped stop_requested requests last_flush rescued ended_done ended_error git_commit git_dirty python_version "
    "asyncexp_version command_line slurm_job_id slurm_array_job_id slurm_array_task_id",
    "experiments_attempts": "experiment_id attempt worker ended outcome traceback",
}


async def _layout(target: Target) -> WORDS:
    return {name: await sql.columns(target, name) or [] for name in await sql.tables(target)}


async def _indexes(target: Target) -> list[str]:
    db = connect(target)
    try:
        return [name for table in LAYOUT for name in await db.indexes(table)]
    finally:
        await db.close()


# ------------------------------------------------------------------------------------------- creating


@pytest.mark.executes_nothing
async def test_the_tables_have_the_columns_of_the_page_in_their_order(make: Make, target: Target) -> None:
    await make().create_table()
    assert await _layout(target) == {name: words.split() for name, words in LAYOUT.items()}


@pytest.mark.executes_nothing
async def test_result_timestamps_follow_their_fields(make: Make, target: Target) -> None:
    await make(result_timestamps=True).create_table()
    columns = await sql.columns(target, "experiments") or []
    first = columns.index("machine") + 1
    assert columns[first : first + 4] == ["result", "result_timestamp", "text", "text_timestamp"]


@pytest.mark.executes_nothing
async def test_our_indexes_are_named_alike(make: Make, target: Target) -> None:
    keyfields = {"number": {"type": "INT", "index": True}, "kind": {"type": "VARCHAR(20)"}}
    await make(keyfields=keyfields).create_table()
    found = [name for name in await _indexes(target) if not re.match("PRIMARY|.*_pkey$|sqlite_autoindex", name)]
    assert len(found) == len(set(found)) == 5
    assert all(re.fullmatch("ix_[0-9a-f]{16}", name) for name in found)


@pytest.mark.executes_nothing
async def test_an_index_that_is_missing_is_made_by_the_next_create(make: Make, target: Target) -> None:
    await make().create_table()
    before = await _indexes(target)
    keyfields = {"number": {"type": "INT", "index": True}, "kind": {"type": "VARCHAR(20)"}}
    await make(keyfields=keyfields).create_table()
    [added] = set(await _indexes(target)) - set(before)
    where = ' ON "experiments"' if target.provider == "mysql" else ""
    await sql.execute(target, f'DROP INDEX "{added}"{where}')  # as a creation that broke off would have left it
    assert await _indexes(target) == before
    await make(keyfields=keyfields).fill_table_with_rows([{"number": 1, "kind": "a"}])
    assert added in await _indexes(target)


@pytest.mark.executes_nothing
async def test_an_id_is_never_used_again(make: Make) -> None:
    experimenter = make()
    await experimenter.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(3)])
    await experimenter.delete_experiments("all")
    await experimenter.fill_table_with_rows([{"number": 0, "kind": "a"}])
    assert list((await experimenter.get_table())["ID"]) == [4]


@pytest.mark.executes_nothing
async def test_creating_twice_changes_nothing(make: Make, target: Target) -> None:
    experimenter = make()
    await experimenter.create_table()
    await experimenter.fill_table_with_rows([{"number": 1, "kind": "a"}])
    before = await _layout(target), await _indexes(target)
    await experimenter.create_table()
    await make().create_table()
    assert (await _layout(target), await _indexes(target)) == before
    assert len(await experimenter.get_table()) == 1


async def test_four_processes_may_create_at_once(target: Target, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        children = [await stack.enter_async_context(child("create", tmp_path, target)) for _ in range(4)]
        assert [await each.told() for each in children] == ["ready"] * 4
        for each in children:
            await each.tell()
        assert [await each.told() for each in children] == ["made"] * 4
        assert [await each.ended() for each in children] == [0] * 4
    assert (await _layout(target)).keys() == LAYOUT.keys()
    async with study(tmp_path, target) as experimenter:
        assert (await experimenter.fill_table_from_config()).added == 10


@pytest.mark.executes_nothing
async def test_several_studies_live_in_one_database(make: Make, target: Target, tmp_path: Path) -> None:
    first, second = make(), make(table="others", name="others.yml")
    await first.fill_table_from_config()
    await second.fill_table_from_config()
    await second.delete_table()
    assert (await _layout(target)).keys() == LAYOUT.keys()
    assert len(await first.get_table()) == 10


# ------------------------------------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"resultfields": {"result": "DOUBLE", "text": "TEXT", "more": "INT"}},
            ["column 'more' is missing", "`migrate()`"],
        ),
        (
            {"logtables": {"steps": {"step": "INT", "note": "TEXT", "loss": "DOUBLE"}}},
            ["experiments__steps", "column 'loss' is missing", "`migrate()`"],
        ),
        (
            {"resultfields": {"result": "DOUBLE"}},
            ["column 'text' is in the database, not in the configuration", "another table name"],
        ),
        (
            {"resultfields": {"result": "TEXT", "text": "TEXT"}},
            ["column 'result' is", "in the database, ", "in the configuration", "another table name"],
        ),
        (
            {"keyfields": {"number": {"type": "DATETIME"}, "kind": {"type": "VARCHAR(20)"}}},
            ["column 'number' is", "another table name"],
        ),
        (
            {"keyfields": {"number": {"type": "INT"}, "sort": {"type": "VARCHAR(20)"}}},
            ["column 'sort' is missing", "column 'kind' is in the database"],
        ),
    ],
)
async def test_another_structure_is_an_error_that_names_the_difference_and_the_way_out(
    make: Make, target: Target, other: dict[str, Any], words: list[str]
) -> None:
    await make().fill_table_with_rows([{"number": 1, "kind": "a"}])
    before = await _layout(target)
    changed = make(**other)
    for call in (changed.create_table, changed.get_table, lambda: changed.execute(never)):
        with pytest.raises(TableHasWrongStructureError) as raised:
            await call()
        assert "The table 'experiments' is not what the configuration describes" in str(raised.value)
        assert [word for word in words if word not in str(raised.value)] == []
    assert await _layout(target) == before


@pytest.mark.executes_nothing
async def test_order_and_width_do_not_count(make: Make) -> None:
    await make().fill_table_with_rows([{"number": 1, "kind": "a"}])
    keyfields = {"kind": {"type": "VARCHAR(200)"}, "number": {"type": "BIGINT"}}
    other = make(keyfields=keyfields, resultfields={"text": "LONGTEXT", "result": "FLOAT"})
    assert (await other.fill_table_with_rows([{"number": 1, "kind": "a"}])).existed == 1
    assert len(await other.get_table()) == 1


@pytest.mark.executes_nothing
async def test_a_missing_log_table_is_made(make: Make, target: Target) -> None:
    await make(logtables={}).create_table()
    experimenter = make()
    await experimenter.create_table()
    assert await _layout(target) == {name: words.split() for name, words in LAYOUT.items()}


# ------------------------------------------------------------------------------------------- dropping


@pytest.mark.executes_nothing
async def test_delete_table_drops_all_that_belongs_to_it(make: Make, target: Target) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()
    await sql.execute(target, 'CREATE TABLE "experiments_of_another" ("x" INTEGER)')
    await experimenter.delete_table()
    await experimenter.delete_table()
    assert await sql.tables(target) == {"experiments_of_another"}
    assert (await experimenter.fill_table_from_config()).added == 10


async def test_a_worker_outlives_its_tables(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    experimenter = make(execution={"heartbeat_interval": 0.05, "lease": 30})

    for _ in range(2):
        await experimenter.fill_table_from_config()
        assert (await experimenter.execute(nothing)).done == 10
        [worker] = await experimenter.workers()
        assert worker.state == "live"
        await experimenter.delete_table()
        await asyncio.sleep(0.2)  # some beats come while there is no table
    await experimenter.fill_table_from_config()
    await experimenter.execute(nothing)
    await experimenter.aclose()
    [worker] = await experimenter.workers()
    assert (worker.state, worker.pid) == ("stopped", os.getpid())
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text for text in said if "event loop" not in text] == []  # which is slow on a slow machine


@pytest.mark.executes_nothing
@pytest.mark.parametrize("call", ["get_table", "counts", "workers", "errors", "retry_errors"])
async def test_without_tables_a_call_says_how_to_make_them(make: Make, target: Target, call: str) -> None:
    with pytest.raises(DatabaseQueryError, match=r"no table 'experiments'.*fill_table_from_config.*create_table"):
        await getattr(make(), call)()
    assert await sql.tables(target) == set()


async def test_execute_without_tables_says_how_to_make_them(make: Make) -> None:
    with pytest.raises(DatabaseQueryError, match=r"no table 'experiments'.*create_table"):
        await make().execute(never)


async def test_a_table_dropped_by_somebody_else_is_an_error_that_names_it(make: Make, target: Target) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()
    await sql.execute(target, 'DROP TABLE "experiments"')
    with pytest.raises(DatabaseQueryError, match="experiments"):
        await experimenter.get_table()
    with pytest.raises(DatabaseQueryError, match="experiments"):
        await experimenter.execute(never)


# ------------------------------------------------------------------------------------- the database


@pytest.mark.parametrize("provider", ["postgresql", "mysql"])
async def test_a_missing_database_is_made_only_when_asked_to(target: Target, server: Server, tmp_path: Path) -> None:
    missing = replace(target, database=f"{target.database}_new")
    async with study(tmp_path, missing) as experimenter:
        with pytest.raises(DatabaseCreationError, match=r"does not exist.*create_table\(create_database=True\)"):
            await experimenter.create_table()
        with pytest.raises(DatabaseCreationError, match="does not exist"):
            await experimenter.get_table()
        try:
            await experimenter.create_table(create_database=True)
            await experimenter.create_table(create_database=True)
            assert (await experimenter.fill_table_from_config()).added == 10
        finally:
            await experimenter.aclose()
            server.drop(missing.database)


@pytest.mark.parametrize("provider", ["postgresql", "mysql"])
async def test_several_may_make_the_database_at_once(target: Target, server: Server, tmp_path: Path) -> None:
    missing = replace(target, database=f"{target.database}_new")
    made = [study(tmp_path, missing) for _ in range(4)]
    try:
        await asyncio.gather(*(each.create_table(create_database=True) for each in made))
        assert (await _layout(missing)).keys() == LAYOUT.keys()
    finally:
        for each in made:
            await each.aclose()
        server.drop(missing.database)


@pytest.mark.executes_nothing
@pytest.mark.parametrize("provider", ["sqlite"])
async def test_an_sqlite_file_is_made_by_itself(make: Make, target: Target) -> None:
    assert not _is_there(target)
    await make().create_table()
    assert _is_there(target)


def _is_there(target: Target) -> bool:
    return Path(target.database).exists()


# ------------------------------------------------------------------------------- an index on a text


@pytest.mark.executes_nothing
async def test_an_index_needs_a_type_with_a_length(make: Make) -> None:
    with pytest.raises(InvalidColumnError, match=r"keyfield 'word': `index: true` needs a type with a length"):
        make(keyfields={"word": {"type": "TEXT", "index": True}})
