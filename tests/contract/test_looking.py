"""Looking on: how the study stands, single experiments, past attempts, groups of errors, log tables line by line."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor
from asyncexp.db import connect
from asyncexp.db.base import Target, Transaction
from asyncexp.errors import InvalidConfigError, MissingLogTableError, ParameterCombinationError
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.shared import Shared
from tests.contract.support import Keys, eventually, numbers

LONG_AGO = datetime(2024, 1, 1)
servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])


async def _some(make: Make, **study: Any) -> Experimenter:
    """IDs 1 to 6: done, error, error, paused, created, created."""
    experimenter = make(**study)
    await experimenter.fill_table_with_rows([{"number": n, "kind": "ab"[n % 2]} for n in range(6)])

    async def run(keyfields: Keys, results: ResultProcessor, _: Keys) -> ExperimentStatus:
        number = keyfields["number"]
        await results.process_logs({"steps": [{"step": step, "note": f"{number}.{step}"} for step in range(3)]})
        await results.process_results({"result": number + 0.5})
        if number in (1, 2):
            raise ValueError(f"bad number {number}")
        return ExperimentStatus.DONE if number == 0 else ExperimentStatus.PAUSED

    await experimenter.execute(run, max_experiments=4)
    return experimenter


async def _long_ago(target: Target, text: str) -> None:
    bind = connect(target).dialect.bind.get(datetime)
    await sql.execute(target, text, long_ago=bind(LONG_AGO) if bind else LONG_AGO)


# -------------------------------------------------------------------------------------- the overview


@pytest.mark.executes_nothing
async def test_an_empty_table_has_counts_and_nobody(make: Make) -> None:
    experimenter = make()
    await experimenter.create_table()
    found = await experimenter.overview()
    assert found.counts == dict.fromkeys(("created", "running", "done", "error", "paused"), 0)
    assert (found.total, found.workers, found.oldest, found.rate) == (0, (), (), 0.0)


async def test_an_overview_counts_every_status_and_tells_of_workers(make: Make) -> None:
    experimenter = await _some(make)
    found = await make().overview()
    assert found.counts == await experimenter.counts()
    assert found.counts == {"created": 2, "running": 0, "done": 1, "error": 2, "paused": 1}
    [worker] = found.workers
    assert (worker.state, worker.running, worker.role) == ("live", 0, "worker")
    assert found.oldest == ()


async def test_what_runs_is_told_the_oldest_first_with_its_signs_of_life(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter, watcher = make(n_jobs=3), make()
    await experimenter.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(4)])
    began, go_on = shared.seen(), shared.gate()

    async def run(keyfields: Keys, results: ResultProcessor, _: Keys) -> None:
        await results.heartbeat(0.25 * keyfields["number"], f"at {keyfields['number']}")
        await results.flush()
        began.append(keyfields["number"])
        await go_on.passed()

    call = asyncio.create_task(experimenter.execute(run))
    await eventually(lambda: len(began) == 3)
    await _long_ago(target, 'UPDATE "experiments" SET "start_date" = :long_ago WHERE "ID" = 2')
    found, shorter, none = [await watcher.overview(longest=count) for count in (10, 2, 0)]
    other = await watcher.overview({"number": [1, 3]})
    go_on.open()
    await call
    assert found.counts == {"created": 1, "running": 3, "done": 0, "error": 0, "paused": 0}
    assert [worker.running for worker in found.workers] == [3]
    assert [each.id for each in found.oldest] == [2, 1, 3]
    by_id = {each.id: each for each in found.oldest}
    assert by_id[2].started == LONG_AGO
    assert {(each.progress, each.message) for each in by_id.values()} == {(0, "at 0"), (0.25, "at 1"), (0.5, "at 2")}
    assert by_id[2].keyfields == {"number": 1, "kind": "a"}
    assert {each.worker for each in by_id.values()} == {found.workers[0].id}
    assert all(each.heartbeat is not None and each.attempt == 1 for each in by_id.values())
    assert [each.id for each in shorter.oldest] == [2, 1]
    assert none.oldest == ()
    assert other.counts == {"created": 1, "running": 1, "done": 0, "error": 0, "paused": 0}
    assert [each.id for each in other.oldest] == [2]


@pytest.mark.executes_nothing
async def test_an_impossible_condition_of_an_overview_is_an_error_that_names_it(make: Make) -> None:
    experimenter = make()
    await experimenter.create_table()
    with pytest.raises(ParameterCombinationError, match="no column 'knid'; did you mean 'kind'"):
        await experimenter.overview({"knid": "a"})


async def test_the_rate_is_that_of_live_workers_since_they_began(make: Make, target: Target) -> None:
    experimenter = await _some(make)
    await experimenter.aclose()
    await _long_ago(target, 'UPDATE "experiments_workers" SET "started" = :long_ago')
    found = await make().overview()
    assert (found.rate, [each.state for each in found.workers]) == (0.0, ["stopped"])
    await sql.execute(target, 'UPDATE "experiments_workers" SET "stopped" = NULL, "lease" = 1e6')
    found = await make().overview()
    [worker] = found.workers
    assert worker.state == "live"
    assert found.rate == pytest.approx(3 / (worker.heartbeat - worker.started).total_seconds())
    assert found.eta_seconds == pytest.approx(2 / found.rate)


async def test_a_lost_worker_s_rows_are_counted_as_its_own(make: Make, target: Target) -> None:
    experimenter = await _some(make)
    await experimenter.aclose()
    await _long_ago(target, 'UPDATE "experiments_workers" SET "stopped" = NULL, "heartbeat" = :long_ago')
    await sql.execute(target, 'UPDATE "experiments" SET "status" = \'running\' WHERE "ID" IN (2, 4)')
    found = await make().overview()
    assert [(each.state, each.running, each.rescued) for each in found.workers] == [("lost", 2, None)]
    assert (found.counts["running"], [each.id for each in found.oldest]) == (2, [2, 4])


@pytest.mark.executes_nothing
async def test_a_running_row_without_worker_and_start_is_one(make: Make, target: Target) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()
    await sql.execute(target, 'UPDATE "experiments" SET "status" = \'running\' WHERE "ID" = 3')
    found = await experimenter.overview()
    [only] = found.oldest
    assert (only.id, only.worker, only.started, found.counts["running"]) == (3, None, None, 1)


# ------------------------------------------------------------------------- attempts, errors, details


async def test_past_attempts_are_told_in_their_order(make: Make) -> None:
    experimenter = await _some(make)
    [worker] = await experimenter.workers()
    [first] = await experimenter.attempts(2)
    assert (first.attempt, first.outcome, first.worker) == (1, "error", worker.id)
    assert (first.traceback or "").endswith("ValueError: bad number 1\n")
    assert await experimenter.retry_errors(ids=2) == 1

    async def run(_: Keys, __: ResultProcessor, ___: Keys) -> ExperimentStatus:
        return ExperimentStatus.PAUSED

    await experimenter.execute(run, experiment_ids=2)
    assert [(each.attempt, each.outcome) for each in await experimenter.attempts(2)] == [(1, "retried"), (2, "paused")]
    assert await experimenter.attempts(1) == []
    assert await experimenter.attempts(99) == []


async def test_errors_by_place_are_those_of_one_exception_in_one_line(make: Make) -> None:
    experimenter = await _some(make)

    async def other(keyfields: Keys, __: ResultProcessor, ___: Keys) -> ExperimentStatus:
        if keyfields["number"] == 5:
            return ExperimentStatus.ERROR
        raise KeyError("x")

    await experimenter.execute(other)
    assert [group.count for group in await experimenter.errors()] == [1, 1, 1, 1]
    first, *rest = await experimenter.errors(by="place")
    assert (first.count, first.ids, first.exception) == (2, (2, 3), "ValueError")
    assert first.frame is not None
    assert first.frame.startswith(__file__)
    assert first.frame.endswith(" in run")
    assert "bad number 1" in first.example
    assert {(each.exception, each.count, each.ids) for each in rest} == {("KeyError", 1, (5,)), (None, 1, (6,))}


async def test_errors_of_some_rows_only(make: Make) -> None:
    experimenter = await _some(make)
    some: list[tuple[dict[str, Any], tuple[int, ...]]] = [
        ({"kind": "b"}, (2,)),
        ({"number": [1, 2]}, (2, 3)),
        ({"ID": 3, "status": "error"}, (3,)),
    ]
    for condition, ids in some:
        [group] = await experimenter.errors(condition, by="place")
        assert group.ids == ids
    assert await experimenter.errors({"number": 0}) == []
    with pytest.raises(InvalidConfigError, match="did you mean 'place'"):
        await experimenter.errors(by="palce")  # type: ignore[arg-type]


async def test_details_tell_all_of_an_experiment(make: Make) -> None:
    experimenter = await _some(make, result_timestamps=True)
    [worker] = await experimenter.workers()
    paused, failed, created = await experimenter.details([4, 2, 99, 5])
    assert [(each.id, each.status, each.attempt) for each in (paused, failed, created)] == [
        (4, "paused", 1),
        (2, "error", 1),
        (5, "created", 0),
    ]
    assert paused.keyfields == {"number": 3, "kind": "b"}
    assert (paused.results["result"], paused.results["text"]) == (3.5, None)
    assert isinstance(paused.results["result_timestamp"], datetime)
    assert paused.created is not None
    assert paused.started is not None
    assert paused.ended is not None
    assert paused.created <= paused.started <= paused.ended
    assert paused.worker is not None
    assert (paused.worker.id, paused.worker.pid, paused.worker.started) == (worker.id, worker.pid, worker.started)
    assert (paused.worker.python_version, paused.worker.command_line) == (worker.python_version, worker.command_line)
    assert (failed.error or "").endswith("ValueError: bad number 1\n")
    assert (created.worker, created.started, created.error) == (None, None, None)
    assert await experimenter.details([]) == []


# ----------------------------------------------------------------------------------- lines of a log


def _notes(lines: list[dict[str, Any]]) -> list[str]:
    return [line["note"] for line in lines]


async def test_the_last_lines_of_a_log_and_pages_of_it(make: Make) -> None:
    experimenter = await _some(make, n_jobs=1)
    every = [f"{number}.{step}" for number in range(4) for step in range(3)]
    assert _notes(await experimenter.log_lines("steps")) == every
    assert _notes(await experimenter.log_lines("experiments__steps", last=4)) == every[-4:]
    assert _notes(await experimenter.log_lines("steps", last=100)) == every
    assert _notes(await experimenter.log_lines("steps", [1, 3], last=4)) == ["0.2", "2.0", "2.1", "2.2"]
    assert await experimenter.log_lines("steps", []) == []
    pages, after = [], 0
    while page := await experimenter.log_lines("steps", [2, 4], after=after, most=4):
        pages.append(_notes(page))
        after = page[-1]["ID"]
    assert pages == [["1.0", "1.1", "1.2", "3.0"], ["3.1", "3.2"]]
    [line] = await experimenter.log_lines("steps", 4, last=1)
    assert (line["experiment_id"], line["_attempt"], line["step"]) == (4, 1, 2)
    assert isinstance(line["timestamp"], datetime)
    with pytest.raises(MissingLogTableError, match="did you mean 'steps'"):
        await experimenter.log_lines("step")


async def test_lines_of_attempts_that_do_not_count_come_only_if_asked_for(make: Make) -> None:
    experimenter = await _some(make, n_jobs=1)
    _, mark = await experimenter.new_log_lines("steps")
    await experimenter.retry_errors(ids=2)
    assert await experimenter.log_lines("steps", 2) == []
    assert _notes(await experimenter.log_lines("steps", 2, all_attempts=True)) == ["1.0", "1.1", "1.2"]
    found, _ = await experimenter.new_log_lines("steps", mark)
    assert found == []


async def test_new_lines_come_once(make: Make) -> None:
    experimenter = await _some(make, n_jobs=1)
    none, mark = await make().new_log_lines("steps")
    assert none == []

    async def run(keyfields: Keys, results: ResultProcessor, _: Keys) -> None:
        await results.process_logs({"steps": {"step": 0, "note": f"new {keyfields['number']}"}})

    told: list[str] = []
    for ids in (None, [6]):
        await experimenter.execute(run, max_experiments=1)
        found, mark = await experimenter.new_log_lines("steps", mark, ids)
        told += _notes(found)
        again, mark = await experimenter.new_log_lines("steps", mark, ids)
        assert again == []
    assert told == ["new 4", "new 5"]


@asynccontextmanager
async def _writing(target: Target, note: str) -> AsyncIterator[None]:
    """Adds a log line in a transaction that is committed at the end."""
    written, commit = threading.Event(), threading.Event()

    async def insert() -> None:
        db = connect(target)
        text = 'INSERT INTO "experiments__steps" ("experiment_id", "note", "_attempt") VALUES (1, :note, 1)'

        async def work(tx: Transaction) -> None:
            await tx.execute(*sql.rendered(db, text, {"note": note}))
            written.set()
            commit.wait(60)  # blocks this thread's loop, which has nothing else to do

        try:
            await db.run(work)
        finally:
            await db.close()

    writing = asyncio.ensure_future(asyncio.to_thread(asyncio.run, insert()))
    try:
        assert await asyncio.to_thread(written.wait, 60)
        yield
    finally:
        commit.set()
        await writing


@servers_only
@pytest.mark.executes_nothing
async def test_a_line_committed_after_one_of_a_higher_id_is_not_lost(make: Make, target: Target) -> None:
    """Once before anybody looks, and once between two looks."""
    experimenter = make(keyfields=numbers(1))
    await experimenter.fill_table_from_config()
    told: list[str] = []
    async with _writing(target, "first"):
        async with _writing(target, "second"):
            pass
        _, mark = await experimenter.new_log_lines("steps")
        assert _notes(await experimenter.log_lines("steps", last=5)) == ["second"]
    async with _writing(target, "third"):
        async with _writing(target, "fourth"):
            pass
        for _ in range(2):
            found, mark = await experimenter.new_log_lines("steps", mark)
            told += _notes(found)
    for _ in range(2):
        found, mark = await experimenter.new_log_lines("steps", mark, 1)
        told += _notes(found)
    assert told == ["first", "fourth", "third"]
