"""Migration: a study that grows while it is under way, and one that PyExperimenter 1.4.2 began."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseQueryError, TableHasWrongStructureError
from tests import legacy
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.modes import CLASSES, Mode
from tests.contract.shared import Shared
from tests.studies import KEYFIELDS, LOGTABLES, RESULTFIELDS, write_credentials

Keys = dict[str, Any]
ROWS = [{"number": number, "kind": "a"} for number in range(4)]


async def _under_way(make: Make) -> Experimenter:
    """Four rows: done, paused, done, created."""

    async def run(keyfields: Keys, results: ResultProcessor, _: Any) -> ExperimentStatus | None:
        await results.process_logs({"steps": {"step": keyfields["number"]}})
        await results.process_results({"result": keyfields["number"]})
        return ExperimentStatus.PAUSED if keyfields["number"] == 1 else None

    experimenter = make()
    await experimenter.fill_table_with_rows(ROWS)
    await experimenter.execute(run, max_experiments=3)
    return experimenter


# ---------------------------------------------------------------------------------- a study that grows


async def test_a_new_resultfield_is_null_in_old_rows_and_takes_values_from_then_on(make: Make) -> None:
    before = await (await _under_way(make)).get_table()
    grown = make(resultfields=RESULTFIELDS | {"more": "INT"}, result_timestamps=True)
    await grown.migrate()
    after = await grown.get_table()
    assert after["more"].isna().all()
    assert after["result_timestamp"].isna().all()
    assert after[before.columns].equals(before)

    async def run(_: Keys, results: ResultProcessor, __: Any) -> None:
        await results.process_results({"more": 7})

    assert (await grown.execute(run)).done == 1
    assert list((await grown.get_table({"ID": 4}))["more"]) == [7]


async def test_a_new_log_column_and_a_new_log_table(make: Make) -> None:
    before = await (await _under_way(make)).get_logtable("steps")
    grown = make(logtables={"steps": LOGTABLES["steps"] | {"loss": "DOUBLE"}, "other": {"x": "JSON"}})
    await grown.migrate()
    after = await grown.get_logtable("steps")
    assert after["loss"].isna().all()
    assert after[before.columns].equals(before)

    async def run(_: Keys, results: ResultProcessor, __: Any) -> None:
        await results.process_logs({"steps": {"loss": 0.5}, "other": {"x": [1]}})

    await grown.execute(run)
    assert list((await grown.get_logtable("steps"))["loss"])[-1] == 0.5
    assert list((await grown.get_logtable("other"))["x"]) == [[1]]


@pytest.mark.parametrize(
    ("type_", "default"), [("VARCHAR(9)", "old"), ("DOUBLE", 0.1), ("JSON", {"a": [1]}), ("INT", None)]
)
async def test_a_new_keyfield_takes_its_default_and_a_refill_adds_nothing_twice(
    make: Make, shared: Shared, type_: str, default: Any
) -> None:
    before = await (await _under_way(make)).get_table()
    grown = make(keyfields=KEYFIELDS | {"added": {"type": type_, "default": default}})
    await grown.migrate()
    after = await grown.get_table()
    assert [None if value is pd.NA else value for value in after["added"].astype(object)] == [default] * 4
    assert after[before.columns].equals(before)
    again = await grown.fill_table_with_rows([row | {"added": default} for row in ROWS])
    assert (again.added, again.existed) == (0, 4)
    given = shared.seen()

    async def run(keyfields: Keys, _: ResultProcessor, __: Any) -> None:
        given.append(keyfields["added"])

    await grown.execute(run)
    assert given == [default]


async def test_a_new_keyfield_without_a_default_is_refused_and_nothing_is_changed(make: Make, target: Target) -> None:
    await _under_way(make)
    before = await sql.columns(target, "experiments")
    grown = make(keyfields=KEYFIELDS | {"added": {"type": "INT"}}, resultfields=RESULTFIELDS | {"more": "INT"})
    with pytest.raises(TableHasWrongStructureError, match="keyfield 'added' is new: give it a `default:`"):
        await grown.migrate()
    assert await sql.columns(target, "experiments") == before


async def test_migrate_neither_drops_nor_retypes(make: Make, target: Target) -> None:
    await _under_way(make)
    before = await sql.columns(target, "experiments")
    for fields in ({"result": "DOUBLE"}, {"result": "TEXT", "text": "TEXT"}):
        with pytest.raises(TableHasWrongStructureError, match="in the database"):
            await make(resultfields=fields).migrate()
    assert await sql.columns(target, "experiments") == before


async def test_migrating_twice_or_without_need_changes_nothing(make: Make, target: Target) -> None:
    experimenter = await _under_way(make)
    before = await experimenter.get_table(), await sql.fetch(target, 'SELECT "_key_hash" FROM "experiments"')
    for _ in range(2):
        await experimenter.migrate()
        await make().migrate()
    after = await experimenter.get_table(), await sql.fetch(target, 'SELECT "_key_hash" FROM "experiments"')
    assert after[0].equals(before[0])
    assert after[1] == before[1]


@pytest.mark.executes_nothing
async def test_migrating_where_nothing_is_makes_the_tables(make: Make) -> None:
    experimenter = make()
    await experimenter.migrate()
    assert len(await experimenter.get_table()) == 0


async def test_reset_and_retry_work_on_rows_with_a_new_keyfield(make: Make) -> None:
    await _under_way(make)
    grown = make(keyfields=KEYFIELDS | {"added": {"type": "INT", "default": 5}})
    await grown.migrate()
    assert await grown.reset_experiments("done") == 2
    assert list((await grown.get_table())["added"]) == [5, 5, 5, 5]
    assert (await grown.fill_table_with_rows([row | {"added": 5} for row in ROWS])).added == 0


# ---------------------------------------------------------------------- a study that the predecessor began

KOLKATA = timedelta(hours=5, minutes=30)
only_its_databases = pytest.mark.parametrize("provider", ["sqlite", "mysql"])
STUDY: dict[str, Any] = {
    "name": "study",
    "keyfields": {
        "dataset": {"type": "VARCHAR(50)", "values": ["iris", "Wine"]},
        "seed": {"type": "int", "values": {"start": 0, "stop": 3, "step": 1}},
        "rate": {"type": "double", "values": [0.1]},
    },
    "resultfields": {"accuracy": "double", "note": "LONGTEXT"},
    "result_timestamps": True,
}
DATES = ("creation_date", "start_date", "end_date", "accuracy_timestamp", "note_timestamp")


@pytest.fixture
def in_kolkata(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where local time is not UTC, for us as for the predecessor."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def old(in_kolkata: None, target: Target, tmp_path: Path, request: pytest.FixtureRequest) -> Experimenter:
    """An experimenter on a table that PyExperimenter 1.4.2 made, and with its very configuration.

    Of the class that the mode of the test asks for, if it has one.
    """
    name = target.database.removesuffix(".db")
    database = {"provider": target.provider, "database": name, "table": STUDY}
    database["logtables"] = {"steps": {"step": "INT", "loss": "DOUBLE"}}
    content = {"n_jobs": 1, "Database": database, "Custom": {"path": "data"}, "CodeCarbon": {"offline_mode": False}}
    configuration = tmp_path / "old.yml"
    configuration.write_text(yaml.safe_dump({"PY_EXPERIMENTER": content}, sort_keys=False))
    credentials = write_credentials(tmp_path, target)
    port = str(target.port or "")
    done = subprocess.run(
        [
            str(legacy.python()),
            str(Path(__file__).parent / "legacy" / "make.py"),
            str(configuration),
            str(credentials),
            port,
        ],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kind = CLASSES[request.getfixturevalue("mode")] if "mode" in request.fixturenames else Experimenter
    return kind(configuration, credentials, logger_name="asyncexp-tests", log_file=None)


async def _dates(target: Target) -> list[dict[str, datetime | None]]:
    names = ", ".join(f'"{name}"' for name in DATES)
    rows = await sql.fetch(target, f'SELECT {names} FROM "study" ORDER BY "ID"')
    return [{name: _moment(value) for name, value in zip(DATES, row, strict=True)} for row in rows]


def _moment(value: Any) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


@only_its_databases
async def test_a_table_of_the_predecessor_is_told_as_one_and_left_alone(old: Experimenter, target: Target) -> None:
    before = await sql.columns(target, "study")
    async with old:
        for call in (old.get_table, old.fill_table_from_config, old.create_table):
            with pytest.raises(TableHasWrongStructureError, match=r"table of PyExperimenter's: call `migrate\(\)`"):
                await call()
    assert await sql.columns(target, "study") == before


@only_its_databases
async def test_what_the_predecessor_wrote_is_kept_and_its_dates_become_utc(
    old: Experimenter, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    local = await _dates(target)
    [(line,)] = await sql.fetch(target, 'SELECT "timestamp" FROM "study__steps" WHERE "experiment_id" = 1')
    async with old:
        await old.migrate()
        await old.migrate()
        table, lines = await old.get_table(), await old.get_logtable("steps")
        assert len(await old.get_codecarbon_table()) == 0
    assert list(table["ID"]) == list(range(1, 9))
    assert list(table["status"]) == ["done", "error", "paused", "running", *["created"] * 4]
    assert list(table["dataset"]) == ["iris"] * 3 + ["Wine"] * 3 + ["more"] * 2
    assert list(table["accuracy"].dropna()) == [0.75, 0.75]
    assert list(table["note"].dropna()) == ["Ünï", "Ünï"]
    assert "ValueError: bad seed" in table["error"][1]
    assert list(lines["step"]) == [1, 1, 1]
    assert lines["timestamp"][0] == _moment(line) - KOLKATA  # type: ignore[operator]
    for row, dates in zip(table.to_dict("records"), local, strict=True):
        for name, was in dates.items():
            assert str(row[name]) == (str(was - KOLKATA) if was else "NaT"), name
    assert "ID 8 (as 7)" in caplog.text


@only_its_databases
async def test_a_refill_of_the_predecessor_s_grid_adds_nothing(old: Experimenter, target: Target) -> None:
    async with old:
        await old.migrate()
        again = await old.fill_table_from_config()
        assert (again.added, again.existed) == (0, 6)
        assert (await old.fill_table_with_rows([{"dataset": "more", "seed": "1", "rate": 0.5}])).existed == 1
        other = [{"dataset": "wine", "seed": 0, "rate": 0.1}, {"dataset": "iris ", "seed": 0, "rate": 0.1}]
        assert (await old.fill_table_with_rows(other)).added == 2
        assert list((await old.get_table({"dataset": "Wine"}))["ID"]) == [4, 5, 6]
        assert list((await old.get_table({"dataset": "wine"}))["ID"]) == [9]
        assert list((await old.get_table({"dataset": "iris"}))["ID"]) == [1, 2, 3]
    hashes = [bytes(value) for (value,) in await sql.fetch(target, 'SELECT "_key_hash" FROM "study"')]
    assert len(set(hashes)) == 10


@only_its_databases
async def test_a_study_of_the_predecessor_goes_on(old: Experimenter, mode: Mode) -> None:
    async def run(keyfields: Keys, results: ResultProcessor, custom: Keys) -> None:
        assert custom == {"path": "data"}
        await results.process_logs({"steps": {"step": 2, "loss": keyfields["rate"]}})
        await results.process_results({"accuracy": 0.5})

    async with old:
        await old.migrate()
        assert (await old.execute(run)).done == 4
        assert await old.counts() == {"created": 0, "running": 1, "done": 5, "error": 1, "paused": 1}
        assert await old.unpause_experiment(3, run) == "done"
        assert list((await old.get_table({"ID": 3}))["note"]) == ["Ünï"]
        assert list((await old.get_logtable("steps", {"experiment_id": 3}))["step"]) == [1, 2]
        assert await old.retry_errors() == 1
        assert (await old.execute(run)).done == 1
        assert await old.cancel([4]) == []
        assert await old.reset_experiments("running") == 1
        assert (await old.execute(run)).done == 1
        assert await old.counts() == {"created": 0, "running": 0, "done": 8, "error": 0, "paused": 0}
        table = await old.get_table({"accuracy": 0.5})
        assert len(table) == 7
        second = timedelta(seconds=1)  # the predecessor's columns hold no fraction of it
        assert (table["accuracy_timestamp"] > table["start_date"] - second).all()
        assert (table["accuracy_timestamp"] < table["end_date"] + second).all()


@pytest.mark.executes_nothing
@pytest.mark.parametrize("provider", ["sqlite"])
async def test_what_is_no_study_at_all_cannot_be_migrated(make: Make, target: Target) -> None:
    await sql.execute(target, 'CREATE TABLE "experiments" ("something" INTEGER)')
    with pytest.raises((TableHasWrongStructureError, DatabaseQueryError)):
        await make().migrate()
    assert await sql.columns(target, "experiments") == ["something"]
