"""What the table is read as: columns and dtypes, conditions, counts, errors, workers."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pandas as pd
import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor
from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.errors import MissingLogTableError, ParameterCombinationError
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.shared import Shared
from tests.contract.support import eventually

TEXT = str(pd.Series(["x"], dtype="str").dtype) if pd.__version__ >= "3" else "object"
TYPES = {
    "whole": ("INT", "Int64"),
    "large": ("BIGINT", "Int64"),
    "exact": ("NUMERIC(8,2)", "float64"),
    "free": ("NUMERIC", "float64"),
    "double": ("DOUBLE", "float64"),
    "float": ("FLOAT", "float64"),
    "flag": ("BOOLEAN", "boolean"),
    "moment": ("DATETIME", "datetime64[us]"),
    "short": ("VARCHAR(9)", TEXT),
    "text": ("TEXT", TEXT),
    "long": ("LONGTEXT", TEXT),
    "data": ("JSON", "object"),
}
VALUES = {
    "whole": 1,
    "large": 2**62,
    "exact": 1.25,
    "free": 0.1,
    "double": 1e300,
    "float": 0.5,
    "flag": True,
    "moment": datetime(2024, 5, 6, 7, 8, 9, 10),
    "short": "s",
    "text": "t",
    "long": "l",
    "data": {"a": [1]},
}
BOOKKEEPING = {
    "_attempt": "Int64",
    "_worker": "Int64",
    "_heartbeat": "datetime64[us]",
    "_progress": "float64",
    "_message": TEXT,
    "_not_before": "datetime64[us]",
    "_request": TEXT,
    "_requested_by": TEXT,
    "_continues": TEXT,
    "_counted_from": "Int64",
}
DTYPES = {
    "ID": "Int64",
    "number": "Int64",
    "creation_date": "datetime64[us]",
    "status": TEXT,
    "start_date": "datetime64[us]",
    "name": TEXT,
    "machine": TEXT,
    **{name: dtype for name, (_, dtype) in TYPES.items()},
    "end_date": "datetime64[us]",
    "error": TEXT,
    **BOOKKEEPING,
}
LOG_DTYPES = {
    "ID": "Int64",
    "experiment_id": "Int64",
    "timestamp": "datetime64[us]",
    **{name: dtype for name, (_, dtype) in TYPES.items()},
    "_attempt": "Int64",
}


@pytest.fixture
def study(make: Make) -> Experimenter:
    columns = {name: type_ for name, (type_, _) in TYPES.items()}
    return make(keyfields={"number": {"type": "INT"}}, resultfields=columns, logtables={"lines": columns})


def _dtypes(table: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(dtype) for name, dtype in table.dtypes.items()}


def _ids(table: pd.DataFrame) -> list[int]:
    return [int(experiment_id) for experiment_id in table["ID"]]


# ------------------------------------------------------------------------------------ columns and dtypes


@pytest.mark.parametrize("rows", [0, 1, 3])
async def test_dtypes_are_those_of_the_columns_with_values_without_and_with_no_row(
    study: Experimenter, rows: int
) -> None:
    await study.create_table()
    if rows:
        await study.fill_table_with_rows([{"number": number} for number in range(rows)])

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        await results.process_results(VALUES)
        await results.process_logs({"lines": [VALUES, {}]})

    await study.execute(run, max_experiments=max(0, rows - 1))
    table, lines = await study.get_table(), await study.get_logtable("lines")
    assert (len(table), len(lines)) == (rows, 2 * max(0, rows - 1))
    assert list(_dtypes(table).items()) == list(DTYPES.items())
    assert list(_dtypes(lines).items()) == list(LOG_DTYPES.items())
    assert list(table.index) == list(range(rows))


@pytest.mark.executes_nothing
async def test_missing_values_are_missing_in_every_dtype(study: Experimenter) -> None:
    await study.fill_table_with_rows([{"number": None}])
    table = await study.get_table()
    missing = table.columns[table.isna().all()]
    assert set(missing) >= {"number", *TYPES, "start_date", "end_date", "error", "_worker", "_progress"}


@pytest.mark.executes_nothing
async def test_the_energy_table_has_34_columns_and_the_attempt_without_a_row_too(study: Experimenter) -> None:
    await study.create_table()
    dtypes = _dtypes(await study.get_codecarbon_table())
    assert len(dtypes) == 35
    assert list(dtypes)[:3] == ["ID", "experiment_id", "codecarbon_timestamp"]
    assert list(dtypes)[-2:] == ["offline_mode", "_attempt"]
    assert (dtypes["codecarbon_timestamp"], dtypes["offline_mode"]) == ("datetime64[us]", "boolean")
    assert (dtypes["emissions_kg"], dtypes["cpu_model"]) == ("float64", TEXT)


@pytest.mark.executes_nothing
async def test_each_result_is_followed_by_its_timestamp(make: Make) -> None:
    experimenter = make(result_timestamps=True)
    await experimenter.create_table()
    dtypes = _dtypes(await experimenter.get_table())
    names = list(dtypes)
    first = names.index("result")
    assert names[first : first + 5] == ["result", "result_timestamp", "text", "text_timestamp", "end_date"]
    assert dtypes["text_timestamp"] == "datetime64[us]"


@pytest.mark.executes_nothing
async def test_dates_are_utc_by_the_database_s_clock(make: Make, target: Target) -> None:
    experimenter = make()
    await experimenter.fill_table_with_rows([{"number": 1, "kind": "a"}])
    [created] = (await experimenter.get_table())["creation_date"]
    now = pd.Timestamp.now("UTC").tz_localize(None)
    assert abs((now - created).total_seconds()) < 60
    assert created.tz is None


# ------------------------------------------------------------------------------------------- conditions


async def _words(make: Make) -> Experimenter:
    """IDs 1 to 9."""
    experimenter = make(keyfields={"word": {"type": "VARCHAR(20)"}, "number": {"type": "INT"}})
    words = ["A", "a", "a ", "á", None, "%", "_", "a'b", "1=1"]
    await experimenter.fill_table_with_rows([{"word": word, "number": n % 3} for n, word in enumerate(words)])
    return experimenter


CONDITIONS: list[tuple[Any, list[int]]] = [
    (None, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ({"word": "a"}, [2]),
    ({"word": "A"}, [1]),
    ({"word": "a "}, [3]),
    ({"word": ["a", "á", "b"]}, [2, 4]),
    ({"word": None}, [5]),
    ({"word": [None, "A"]}, [1, 5]),
    ({"word": []}, []),
    ({"word": "%"}, [6]),
    ({"word": "_"}, [7]),
    ({"word": "a'b"}, [8]),
    ({"word": "1=1"}, [9]),
    ({"word": "x' OR '1'='1"}, []),
    ({"number": 1}, [2, 5, 8]),
    ({"number": "1"}, [2, 5, 8]),
    ({"number": range(1, 3), "word": ["a", "a ", "A"]}, [2, 3]),
    ({"ID": 4}, [4]),
    ({"ID": [9, 1, 77]}, [1, 9]),
    ({"status": "created", "ID": (2, 3)}, [2, 3]),
    ({"status": ExperimentStatus.CREATED}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ({"status": ["done", "error"]}, []),
    ({"result": None}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
]


@pytest.mark.executes_nothing
async def test_a_condition_is_met_to_the_byte(make: Make) -> None:
    experimenter = await _words(make)
    for condition, ids in CONDITIONS:
        assert _ids(await experimenter.get_table(condition)) == ids, condition
        assert sum((await experimenter.counts(condition)).values()) == len(ids), condition


@pytest.mark.executes_nothing
async def test_columns_that_are_named_come_alone_and_in_that_order(make: Make) -> None:
    experimenter = await _words(make)
    whole = await experimenter.get_table({"number": 1})
    some = await experimenter.get_table({"number": 1}, columns=["word", "ID", "word"])
    assert list(some) == ["word", "ID"]
    assert some.equals(whole[["word", "ID"]])
    for columns, words in ((["wrod"], "no column 'wrod'; did you mean 'word'"), ("word", "a list of names")):
        with pytest.raises(ParameterCombinationError, match=words):
            await experimenter.get_table(columns=columns)


IMPOSSIBLE: list[tuple[Any, str]] = [
    ({"wrod": "a"}, "no column 'wrod'; did you mean 'word'"),
    ({'"word" = 1 OR 1': 1}, "no column"),
    ({"number": "one"}, "'number': 'one'"),
    ({"number": ["1; DROP TABLE experiments"]}, "'number'"),
]


@pytest.mark.executes_nothing
async def test_an_impossible_condition_is_an_error_that_names_it(make: Make) -> None:
    experimenter = await _words(make)
    for condition, words in IMPOSSIBLE:
        with pytest.raises(ParameterCombinationError, match=words):
            await experimenter.get_table(condition)
    assert len(await experimenter.get_table()) == 9


async def test_log_lines_by_experiment_and_by_value(make: Make) -> None:
    experimenter = await _some_ran(make)
    assert list((await experimenter.get_logtable("steps", {"experiment_id": 2}))["step"]) == [1, 2]
    found = await experimenter.get_logtable("steps", {"step": 2, "experiment_id": [1, 3, 99]})
    assert list(found["experiment_id"]) == [1, 3]
    assert list((await experimenter.get_logtable("experiments__steps"))["step"]) == [1, 2] * 4
    with pytest.raises(ParameterCombinationError, match="no column 'stp'; did you mean 'step'"):
        await experimenter.get_logtable("steps", {"stp": 1})


@pytest.mark.executes_nothing
async def test_an_unknown_log_table_names_the_nearest(make: Make) -> None:
    experimenter = make()
    with pytest.raises(MissingLogTableError, match="no log table 'step'; did you mean 'steps'"):
        await experimenter.get_logtable("step")


# --------------------------------------------------------------------------- counts, errors, workers


async def _some_ran(make: Make) -> Experimenter:
    """IDs 1 to 6: done, error, error, paused, created, created."""
    experimenter = make()
    await experimenter.fill_table_with_rows([{"number": n, "kind": "ab"[n % 2]} for n in range(6)])

    async def run(keyfields: dict[str, Any], results: ResultProcessor, _: Any) -> ExperimentStatus:
        await results.process_logs({"steps": [{"step": 1}, {"step": 2}]})
        if keyfields["number"] in (1, 2):
            raise ValueError(f"bad number\nof kind {keyfields['number'] * 0}")
        return ExperimentStatus.DONE if keyfields["number"] == 0 else ExperimentStatus.PAUSED

    await experimenter.execute(run, max_experiments=4)
    return experimenter


async def test_counts_name_every_status(make: Make) -> None:
    experimenter = await _some_ran(make)
    assert await experimenter.counts() == {"created": 2, "running": 0, "done": 1, "error": 2, "paused": 1}
    found = await experimenter.counts({"kind": "b", "status": ["error", "paused", "created"]})
    assert found == {"created": 1, "running": 0, "done": 0, "error": 1, "paused": 1}


async def test_errors_are_grouped_by_their_last_line(make: Make) -> None:
    experimenter = await _some_ran(make)

    async def other(_: Any, __: ResultProcessor, ___: Any) -> None:
        raise KeyError("x")

    await experimenter.execute(other, max_experiments=1)
    first, second = await experimenter.errors()
    assert (first.last_line, first.count, first.ids) == ("of kind 0", 2, (2, 3))
    assert first.example.startswith("Traceback")
    assert "ValueError: bad number" in first.example
    assert (second.last_line, second.count, second.ids) == ("KeyError: 'x'", 1, (5,))


@pytest.mark.executes_nothing
async def test_no_error_no_group(make: Make) -> None:
    experimenter = make()
    await experimenter.create_table()
    assert await experimenter.errors() == []
    assert await experimenter.workers() == []


async def test_a_worker_is_live_while_it_runs_and_stopped_after_it_was_closed(make: Make, shared: Shared) -> None:
    experimenter, watcher = await _some_ran(make), make()
    [before] = await watcher.workers()
    assert (before.state, before.running, before.role, before.stopped) == ("live", 0, "worker", None)
    began, go_on = shared.seen(), shared.gate()

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        began.append(int(results.experiment_id))
        await go_on.passed()

    call = asyncio.create_task(experimenter.execute(run))
    await eventually(lambda: len(began) == 2)
    [running] = await watcher.workers()
    go_on.open()
    await call
    assert (running.id, running.state, running.running) == (before.id, "live", 2)
    await experimenter.aclose()
    [after] = await watcher.workers()
    assert (after.state, after.running, after.ended_done, after.ended_error) == ("stopped", 0, 3, 2)
    assert after.stopped is not None
    assert after.started <= after.stopped


async def test_a_worker_whose_lease_is_over_is_lost(make: Make, target: Target) -> None:
    experimenter = await _some_ran(make)
    await experimenter.aclose()
    text = 'UPDATE "experiments_workers" SET "stopped" = NULL, "heartbeat" = :long_ago'
    await sql.execute(target, text, long_ago=_bound(target, datetime(2024, 1, 1)))
    [worker] = await make().workers()
    assert (worker.state, worker.heartbeat) == ("lost", datetime(2024, 1, 1))


async def test_the_latest_worker_comes_first(make: Make, shared: Shared) -> None:
    ran = shared.seen()

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        ran.append(results.experiment_id.worker)

    for experimenter in (first := make(), make()):
        await experimenter.fill_table_from_config()
        await experimenter.execute(run, max_experiments=1)
    earlier, later = ran
    assert earlier != later
    assert [worker.id for worker in await first.workers()] == [later, earlier]


def _bound(target: Target, moment: datetime) -> Any:
    bind = connect(target).dialect.bind.get(datetime)
    return bind(moment) if bind else moment
