"""The types of the blocking class, as an editor sees them: never run, checked by mypy (see `test_sync.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import pandas as pd

from asyncexp import ResultProcessor as AsyncResultProcessor
from asyncexp import SyncResultProcessor, errors
from asyncexp.experiment import Summary
from asyncexp.store.fill import Filled
from asyncexp.store.read import ErrorGroup
from asyncexp.store.workers import WorkerInfo
from asyncexp.sync import ExperimentStatus, PyExperimenter, ResultProcessor

Keys = dict[str, Any]


def plain(keyfields: Keys, result_processor: ResultProcessor, custom: Keys) -> None:
    assert_type(result_processor, SyncResultProcessor)
    assert_type(result_processor.process_results({"result": 1}), None)
    assert_type(result_processor.should_stop, bool)


async def task(keyfields: Keys, result_processor: AsyncResultProcessor, custom: Keys) -> ExperimentStatus:
    return ExperimentStatus.PAUSED


def worker(result_processor: ResultProcessor) -> int:
    return int(result_processor.experiment_id)


async def worker_task(result_processor: AsyncResultProcessor) -> str:
    return str(result_processor.experiment_id)


def positional_order_of_1_4_2() -> None:
    made = PyExperimenter("c.yml", "d.yml", False, "table", "database", False, "me", "logger", 10, "x.log")
    assert_type(made, PyExperimenter)
    assert_type(made.create_table(False), None)
    assert_type(made.fill_table_from_combination([{"a": 1}], {"b": [1, 2]}), Filled)
    assert_type(made.execute(plain, True, 4, -1), Summary)
    assert_type(made.add_experiment_and_execute({"a": 1}, plain), ExperimentStatus | None)
    assert_type(made.unpause_experiment(1, plain), ExperimentStatus | None)
    assert_type(made.attach(worker, 1), int)
    assert_type(made.reset_experiments("error", ExperimentStatus.DONE), int)
    assert_type(made.get_logtable("lines"), pd.DataFrame)


def both_spellings(made: PyExperimenter) -> None:
    assert_type(made.add_experiment_and_execute(keyfields={"a": 1}, experiment_function=plain), ExperimentStatus | None)
    assert_type(
        made.add_experiment_and_execute(keyfield_values={"a": 1}, experiment_function=plain), ExperimentStatus | None
    )
    assert_type(made.attach(worker_function=worker, experiment_id=1), int)
    assert_type(made.attach(experiment_function=worker, experiment_id=1), int)
    assert_type(made.get_logtable(name="lines"), pd.DataFrame)
    assert_type(made.get_logtable(logtable_name="lines"), pd.DataFrame)
    assert_type(made.close_ssh(), None)
    assert_type(made.close_ssh_tunnel(), None)


def what_comes_back(made: PyExperimenter) -> None:
    with PyExperimenter(Path("c.yml")) as entered:
        assert_type(entered, PyExperimenter)
    assert_type(made.execute(task, pool="process", where={"a": [1, 2]}, timeout=3.0), Summary)
    assert_type(made.attach(worker_task, 1, wait=2), str)
    assert_type(made.fill_table_from_config(), Filled)
    assert_type(made.fill_table_with_rows([{"a": 1}]), Filled)
    assert_type(made.delete_experiments("all", where={"a": 1}), int)
    assert_type(made.retry_errors(ids=[1]), int)
    assert_type(made.cancel(1), list[int])
    assert_type(made.release([1, 2]), list[int])
    assert_type(made.stop(), list[int])
    assert_type(made.counts({"a": 1}), dict[str, int])
    assert_type(made.workers(), list[WorkerInfo])
    assert_type(made.errors(), list[ErrorGroup])
    assert_type(made.get_table(), pd.DataFrame)
    assert_type(made.get_codecarbon_table(), pd.DataFrame)
    assert_type(made.migrate(), None)
    assert_type(made.delete_table(), None)
    assert_type(made.close(), None)


def what_an_editor_warns_of(made: PyExperimenter) -> None:
    made.execute(plain, pool="tasks")  # type: ignore[arg-type]
    made.execute(plain, timout=3)  # type: ignore[call-arg]
    made.get_table("status = 'done'")  # type: ignore[arg-type]
    made.fill_table_from_combination(fixed={})  # type: ignore[call-arg]
    made.create_tables()  # type: ignore[attr-defined]
    made.attach(plain, 1)  # type: ignore[arg-type]
    raise errors.PyExperimenterError
