"""The life of a row: what each event does to its status, dates, results and log lines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import (
    DatabaseError,
    DatabaseQueryError,
    InvalidColumnError,
    NoPausedExperimentsException,
    ParameterCombinationError,
)
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.functions import Waits, nothing
from tests.contract.shared import Shared
from tests.contract.support import eventually

Keys = dict[str, Any]
Function = Callable[[Keys, ResultProcessor, Any], Awaitable[ExperimentStatus | None]]
EVERY_TABLE = ("steps", "attempts", "codecarbon")


async def _rows(make: Make, count: int = 1, **study: Any) -> Experimenter:
    experimenter = make(**study)
    await experimenter.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(count)])
    return experimenter


async def _row(experimenter: Experimenter, experiment_id: int = 1) -> dict[str, Any]:
    """One row, with None for whatever pandas calls missing."""
    table = (await experimenter.get_table({"ID": experiment_id})).astype(object)
    [row] = table.where(table.notna(), None).to_dict("records")
    return {str(name): value for name, value in row.items()}


async def _steps(experimenter: Experimenter, *, all_attempts: bool = False) -> list[int]:
    return list((await experimenter.get_logtable("steps", all_attempts=all_attempts))["step"])


async def _attempts(target: Target) -> list[tuple[Any, ...]]:
    text = 'SELECT "experiment_id", "attempt", "outcome" FROM "experiments_attempts" ORDER BY 1, 2'
    return await sql.fetch(target, text)


def _ends(*how: ExperimentStatus | Exception | None) -> Function:
    """A function whose attempts end so, one after the other; each leaves its number as result and line."""

    async def run(_: Keys, results: ResultProcessor, __: Any) -> ExperimentStatus | None:
        await results.process_results({"result": results.attempt} if results.attempt == 1 else {"text": "more"})
        await results.process_logs({"steps": {"step": results.attempt}})
        end = how[results.attempt - 1]
        if isinstance(end, Exception):
            raise end
        return end

    return run


# ------------------------------------------------------------------------------------- claim and end


async def test_a_claim_begins_an_attempt_and_an_end_closes_it(make: Make, shared: Shared) -> None:
    experimenter = await _rows(make)
    before = await _row(experimenter)
    assert (before["status"], before["_attempt"], before["start_date"]) == ("created", 0, None)
    began, go_on = shared.gate(), shared.gate()
    call = asyncio.create_task(experimenter.execute(Waits(began, go_on)))
    await began.passed()
    running = await _row(experimenter)
    go_on.open()
    await call
    after = await _row(experimenter)
    [worker] = await experimenter.workers()
    assert (running["status"], running["_attempt"], running["end_date"]) == ("running", 1, None)
    assert (running["_worker"], running["name"], running["machine"]) == (worker.id, worker.name, worker.machine)
    assert (after["status"], after["error"], after["_attempt"]) == ("done", None, 1)
    assert after["creation_date"] <= after["start_date"] <= after["end_date"]


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        (None, "done", None),
        (ExperimentStatus.DONE, "done", None),
        (ExperimentStatus.PAUSED, "paused", None),
        (ExperimentStatus.ERROR, "error", None),
        (ExperimentStatus.RUNNING, "error", "returned <ExperimentStatus.RUNNING: 'running'>"),
        ("done", "error", "returned 'done' (str)"),
        (ValueError("no luck"), "error", "ValueError: no luck"),
    ],
)
async def test_what_the_function_returns_is_what_becomes_of_the_row(
    make: Make, target: Target, end: Any, status: str, error: str | None
) -> None:
    experimenter = await _rows(make)
    summary = await experimenter.execute(_ends(end))
    row = await _row(experimenter)
    assert row["status"] == status
    assert getattr(summary, status) == 1
    assert row["error"] is None if error is None else error in row["error"]
    assert (row["result"], row["end_date"] is None) == (1.0, False)
    assert await _steps(experimenter) == [1]
    assert await _attempts(target) == ([] if status == "done" else [(1, 1, status)])


async def test_a_returned_object_that_cannot_even_be_shown_ends_its_row_alone(make: Make) -> None:
    class Array:
        """As arrays do, it compares to something that is neither true nor false."""

        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth value is ambiguous")

        def __hash__(self) -> int:
            return 0

        def __repr__(self) -> str:
            raise RuntimeError("no words for it")

    async def run(keyfields: Keys, _: ResultProcessor, __: Any) -> Any:
        return Array() if keyfields["number"] == 0 else None

    experimenter = await _rows(make, 3)
    summary = await experimenter.execute(run)
    assert (summary.done, summary.error) == (2, 1)
    assert "(Array); it may return None or an ExperimentStatus" in (await _row(experimenter))["error"]


async def test_an_error_is_kept_with_its_whole_traceback(make: Make, target: Target) -> None:
    experimenter = await _rows(make)
    await experimenter.execute(_ends(ValueError("no luck \0 \ud800")))
    row = await _row(experimenter)
    assert row["error"].startswith("Traceback (most recent call last):")
    assert "in run\n    raise end" in row["error"]
    assert row["error"].rstrip().endswith(r"ValueError: no luck \x00 \ud800")
    [(worker, outcome, traceback)] = await sql.fetch(
        target, 'SELECT "worker", "outcome", "traceback" FROM "experiments_attempts" WHERE "ended" IS NOT NULL'
    )
    assert (worker, outcome, traceback) == (row["_worker"], "error", row["error"])


async def test_a_row_that_was_deleted_while_it_ran_is_lost_and_nothing_of_it_is_left(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter = await _rows(make, 2)
    logged, deleted = shared.gate(), shared.gate()

    async def run(keyfields: Keys, results: ResultProcessor, _: Any) -> None:
        await results.process_logs({"steps": {"step": 1}})
        if keyfields["number"] == 0:
            logged.open()
            await deleted.passed()
        await results.process_results({"result": 1.0})

    call = asyncio.create_task(experimenter.execute(run, n_jobs=1))
    await logged.passed()
    assert await experimenter.delete_experiments("running", ids=[1]) == 1
    deleted.open()
    summary = await call
    assert (summary.done, summary.lost) == (1, 1)
    assert await sql.fetch(target, 'SELECT "ID" FROM "experiments"') == [(2,)]
    assert await sql.fetch(target, 'SELECT "experiment_id" FROM "experiments__steps"') == [(2,)]


# ----------------------------------------------------------------------------------- pause and unpause


async def test_a_paused_row_goes_on_with_its_results_and_lines(make: Make, target: Target) -> None:
    experimenter = await _rows(make)
    await experimenter.execute(_ends(ExperimentStatus.PAUSED, None))
    paused = await _row(experimenter)
    status = await experimenter.unpause_experiment(1, _ends(ExperimentStatus.PAUSED, None))
    done = await _row(experimenter)
    assert status == ExperimentStatus.DONE
    assert (paused["status"], paused["_attempt"], done["status"], done["_attempt"]) == ("paused", 1, "done", 2)
    assert (done["result"], done["text"]) == (1.0, "more")
    assert done["start_date"] == paused["start_date"]
    assert done["end_date"] >= paused["end_date"]
    assert await _steps(experimenter) == [1, 2]
    assert await _attempts(target) == [(1, 1, "paused")]


async def test_only_the_row_asked_for_is_unpaused(make: Make) -> None:
    experimenter = await _rows(make, 3)
    await experimenter.execute(_ends(ExperimentStatus.PAUSED))
    assert await experimenter.unpause_experiment(2, _ends(None, None)) == "done"
    assert await experimenter.counts() == {"created": 0, "running": 0, "done": 1, "error": 0, "paused": 2}


async def test_execute_from_paused_continues_every_paused_row_once(make: Make) -> None:
    experimenter = await _rows(make, 5)
    await experimenter.execute(_ends(ExperimentStatus.PAUSED), max_experiments=4)
    again = _ends(ExperimentStatus.PAUSED, ExperimentStatus.PAUSED)
    summary = await experimenter.execute(again, from_status="paused")
    assert summary.paused == 4
    table = await experimenter.get_table()
    assert list(table["_attempt"]) == [2, 2, 2, 2, 0]
    assert list(table["status"]) == ["paused"] * 4 + ["created"]


@pytest.mark.parametrize("status", ["created", "done", "error"])
async def test_only_a_paused_row_is_unpaused_and_the_error_says_what_it_is(make: Make, status: str) -> None:
    experimenter = await _rows(make)
    if status != "created":
        await experimenter.execute(_ends(ExperimentStatus(status)))
    with pytest.raises(NoPausedExperimentsException, match=f"Experiment 1 is '{status}'"):
        await experimenter.unpause_experiment(1, _ends(None, None))
    assert (await _row(experimenter))["status"] == status


async def test_unpausing_what_does_not_exist_says_so(make: Make) -> None:
    experimenter = await _rows(make)
    with pytest.raises(NoPausedExperimentsException, match="Experiment 77 does not exist"):
        await experimenter.unpause_experiment(77, _ends(None))


async def test_unpausing_a_running_row_says_so(make: Make, shared: Shared) -> None:
    experimenter = await _rows(make)
    began, go_on = shared.gate(), shared.gate()
    call = asyncio.create_task(experimenter.execute(Waits(began, go_on)))
    await began.passed()
    with pytest.raises(NoPausedExperimentsException, match="is 'running'"):
        await experimenter.unpause_experiment(1, nothing)
    go_on.open()
    assert (await call).done == 1


async def test_a_continued_row_that_fails_is_in_error_and_no_exception_is_raised(make: Make) -> None:
    experimenter = await _rows(make)
    run = _ends(ExperimentStatus.PAUSED, ValueError("x"))
    await experimenter.execute(run)
    assert await experimenter.unpause_experiment(1, run) == ExperimentStatus.ERROR
    row = await _row(experimenter)
    assert (row["result"], row["error"].rstrip().endswith("ValueError: x")) == (1.0, True)


# ------------------------------------------------------------------------------------ returned CREATED


async def test_a_returned_created_keeps_results_and_lines_for_the_next_attempt(make: Make, target: Target) -> None:
    experimenter = await _rows(make)
    run = _ends(ExperimentStatus.CREATED, None)
    before = await _row(experimenter)
    summary = await experimenter.execute(run, lease=60.0)
    row = await _row(experimenter)
    assert (summary.released, summary.done) == (1, 0)  # the lease was not waited for
    assert summary.seconds < 30
    assert (row["status"], row["result"], row["end_date"], row["_worker"]) == ("created", 1.0, None, None)
    wait = (row["_not_before"] - before["creation_date"]).total_seconds()
    assert 59 < wait < 120
    assert await _attempts(target) == [(1, 1, "created")]
    assert (await experimenter.execute(run)).done == 0
    await sql.execute(target, 'UPDATE "experiments" SET "_not_before" = "creation_date"')
    assert (await experimenter.execute(run)).done == 1
    row = await _row(experimenter)
    assert (row["status"], row["_attempt"], row["result"], row["text"]) == ("done", 2, 1.0, "more")
    assert row["_not_before"] is None
    assert await _steps(experimenter) == [1, 2]


# ------------------------------------------------------------------ released, retried: results go, lines hide


@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_a_cancelled_call_puts_the_row_back_without_results_and_hides_its_lines(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter = await _rows(make)
    await _cancelled(experimenter, shared)
    row = await _row(experimenter)
    assert (row["status"], row["result"], row["start_date"], row["end_date"]) == ("created", None, None, None)
    assert (row["_worker"], row["_message"], row["_not_before"], row["_attempt"]) == (None, None, None, 1)
    assert await _steps(experimenter) == []
    assert await _steps(experimenter, all_attempts=True) == [1]
    assert await _attempts(target) == [(1, 1, "released")]
    assert (await experimenter.execute(_ends(None, None))).done == 1
    assert await _steps(experimenter) == [2]


@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_a_cancelled_attempt_that_continued_goes_back_to_paused_with_what_it_had(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter = await _rows(make)
    await experimenter.execute(_ends(ExperimentStatus.PAUSED))
    paused = await _row(experimenter)
    await _cancelled(experimenter, shared, from_status="paused")
    row = await _row(experimenter)
    assert (row["status"], row["result"], row["start_date"]) == ("paused", 2.0, paused["start_date"])
    assert await _steps(experimenter) == [1]
    assert await _attempts(target) == [(1, 1, "paused"), (1, 2, "released")]
    assert await experimenter.unpause_experiment(1, _ends(None, None, None)) == "done"
    assert await _steps(experimenter) == [1, 3]


@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_a_cancelled_attempt_after_a_returned_created_keeps_the_results(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter = await _rows(make)
    await experimenter.execute(_ends(ExperimentStatus.CREATED))
    await sql.execute(target, 'UPDATE "experiments" SET "_not_before" = NULL')
    await _cancelled(experimenter, shared)
    row = await _row(experimenter)
    assert (row["status"], row["result"]) == ("created", 2.0)
    assert await _steps(experimenter) == [1]


async def _cancelled(experimenter: Experimenter, shared: Shared, **keywords: Any) -> None:
    """Runs until an attempt has written its result and a line, and cancels the call."""
    reached = shared.gate()

    async def run(_: Keys, results: ResultProcessor, __: Any) -> None:
        await results.process_results({"result": results.attempt})
        await results.process_logs({"steps": {"step": results.attempt}})
        await results.heartbeat(0.5, "half way")
        await results.flush()
        reached.open()
        await asyncio.Event().wait()

    call = asyncio.create_task(experimenter.execute(run, **keywords))
    await reached.passed()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_retried_attempt_leaves_no_results_and_its_lines_are_hidden(make: Make, target: Target) -> None:
    experimenter = await _rows(make)
    run = _ends(ValueError("first"), ValueError("second"), None)
    summary = await experimenter.execute(run, retries=2)
    row = await _row(experimenter)
    assert (summary.done, summary.retried, summary.error) == (1, 2, 0)
    assert (row["status"], row["result"], row["text"], row["error"]) == ("done", None, "more", None)
    assert await _steps(experimenter) == [3]
    assert await _steps(experimenter, all_attempts=True) == [1, 2, 3]
    assert await _attempts(target) == [(1, 1, "retried"), (1, 2, "retried")]
    told = await sql.fetch(target, 'SELECT "traceback" FROM "experiments_attempts" ORDER BY "attempt"')
    assert [text.rstrip().splitlines()[-1] for (text,) in told] == ["ValueError: first", "ValueError: second"]


async def test_when_no_try_is_left_the_row_is_in_error_with_the_last_attempt_shown(make: Make) -> None:
    experimenter = await _rows(make)
    summary = await experimenter.execute(_ends(ValueError("1"), ValueError("2")), retries=1)
    assert (summary.error, summary.retried) == (1, 1)
    assert (await _row(experimenter))["_attempt"] == 2
    assert await _steps(experimenter) == [2]


async def test_a_release_by_request_puts_the_row_back_for_a_lease(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await _rows(make, 2)
    wrote = shared.gate()

    async def run(keyfields: Keys, results: ResultProcessor, _: Any) -> None:
        await results.process_results({"result": 1.0})
        if keyfields["number"] == 0:
            wrote.open()
            await asyncio.Event().wait()

    call = asyncio.create_task(experimenter.execute(run, n_jobs=1, heartbeat_interval=0.1, lease=60.0))
    await wrote.passed()
    assert await experimenter.release([1, 2, 77]) == [1]
    summary = await call
    row = await _row(experimenter)
    assert (summary.released, summary.done) == (1, 1)
    assert (row["status"], row["result"], row["_request"]) == ("created", None, None)
    assert row["_not_before"] > row["creation_date"]
    assert await _attempts(target) == [(1, 1, "released")]


async def test_a_cancel_by_request_ends_the_row_in_error_and_is_not_retried(make: Make, shared: Shared) -> None:
    experimenter = await _rows(make)
    wrote = shared.gate()

    async def run(_: Keys, results: ResultProcessor, __: Any) -> None:
        await results.process_results({"result": 1.0})
        wrote.open()
        await asyncio.Event().wait()

    call = asyncio.create_task(experimenter.execute(run, retries=3, heartbeat_interval=0.1, lease=1.0))
    await wrote.passed()
    assert await experimenter.cancel(1) == [1]
    summary = await call
    row = await _row(experimenter)
    assert (summary.error, summary.retried) == (1, 0)
    assert row["status"] == "error"
    assert row["error"].startswith("cancelled by PyExperimenter on ")
    assert row["result"] == 1.0


async def test_requests_leave_rows_alone_that_do_not_run(make: Make) -> None:
    experimenter = await _rows(make, 2)
    await experimenter.execute(_ends(None), max_experiments=1)
    assert await experimenter.cancel([1, 2]) == []
    assert await experimenter.release([1, 2]) == []
    assert (await _row(experimenter, 2))["_request"] is None


# -------------------------------------------------------------------------------- add and execute


async def test_a_new_row_is_added_claimed_and_run(make: Make, shared: Shared) -> None:
    experimenter = make()
    seen, go_on = shared.seen(), shared.gate()

    async def run(keyfields: Keys, results: ResultProcessor, _: Any) -> None:
        seen.append(keyfields)
        await go_on.passed()
        await results.process_results({"result": 3.0})

    call = asyncio.create_task(experimenter.add_experiment_and_execute({"kind": "z", "number": "7"}, run))
    await eventually(lambda: len(seen) == 1)
    running = await _row(experimenter)
    go_on.open()
    status = await call
    row = await _row(experimenter)
    assert status == ExperimentStatus.DONE
    assert seen == [{"number": 7, "kind": "z"}]
    assert running["status"] == "running"
    assert (row["number"], row["kind"], row["result"], row["_attempt"]) == (7, "z", 3.0, 1)
    assert row["creation_date"] <= row["start_date"] <= row["end_date"]
    assert (await experimenter.fill_table_with_rows([{"number": 7, "kind": "z"}])).added == 0


async def test_a_created_row_is_claimed_instead_of_added_and_no_other(make: Make) -> None:
    experimenter = await _rows(make, 3)
    assert await experimenter.add_experiment_and_execute({"number": 1, "kind": "a"}, _ends(None)) == "done"
    table = await experimenter.get_table()
    assert list(table["status"]) == ["created", "done", "created"]


@pytest.mark.parametrize("status", ["done", "error", "paused"])
async def test_a_row_that_exists_otherwise_is_an_error_that_says_its_status(make: Make, status: str) -> None:
    experimenter = await _rows(make)
    await experimenter.execute(_ends(ExperimentStatus(status)))
    before = await _row(experimenter)
    with pytest.raises(DatabaseError, match=f"ID 1, status '{status}'"):
        await experimenter.add_experiment_and_execute({"number": 0, "kind": "a"}, _ends(None, None))
    assert await _row(experimenter) == before


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"number": 1}, "keyfield 'kind' is missing"),
        ({"number": 1, "kind": "a", "knid": 1}, "no keyfield 'knid'; did you mean 'kind'"),
        ({"number": "one", "kind": "a"}, "keyfield 'number': 'one'"),
    ],
)
async def test_an_impossible_row_is_not_added(make: Make, row: Keys, words: str) -> None:
    experimenter = make()
    with pytest.raises(ParameterCombinationError, match=words):
        await experimenter.add_experiment_and_execute(row, _ends(None))
    assert len(await experimenter.get_table()) == 0


@pytest.mark.parametrize("end", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
async def test_the_function_s_own_exception_is_never_raised(make: Make, end: BaseException) -> None:
    experimenter = make()

    async def run(_: Keys, __: ResultProcessor, ___: Any) -> None:
        raise end

    assert await experimenter.add_experiment_and_execute({"number": 1, "kind": "a"}, run) == "error"
    assert type(end).__name__ in (await _row(experimenter))["error"]


async def test_added_rows_take_the_keywords_of_execute(make: Make) -> None:
    experimenter = make()
    run = _ends(ValueError("x"), None)
    assert await experimenter.add_experiment_and_execute({"number": 1, "kind": "a"}, run, retries=1) == "done"
    assert (await _row(experimenter))["_attempt"] == 2


# -------------------------------------------------------------------------------------------- reset


async def _one_of_each(make: Make) -> Experimenter:
    """IDs 1 to 5: done, error, paused, created, created; each that ran has a line in every table."""
    experimenter = await _rows(make, 5)
    statuses = (ExperimentStatus.DONE, ExperimentStatus.ERROR, ExperimentStatus.PAUSED)

    async def run(keyfields: Keys, results: ResultProcessor, _: Any) -> ExperimentStatus:
        await results.process_results({"result": 1.0})
        await results.process_logs({"steps": {"step": 1}})
        return statuses[keyfields["number"]]

    await experimenter.execute(run, max_experiments=3)
    return experimenter


async def _left(target: Target) -> dict[str, set[int]]:
    """Table -> the experiments that have something in it."""
    tables = {"steps": "experiments__steps"} | {name: f"experiments_{name}" for name in EVERY_TABLE[1:]}
    return {
        name: {row[0] for row in await sql.fetch(target, f'SELECT "experiment_id" FROM "{table}"')}
        for name, table in tables.items()
    }


async def _with_energy(target: Target) -> None:
    for experiment_id in (1, 2, 3):
        text = 'INSERT INTO "experiments_codecarbon" ("experiment_id", "_attempt") VALUES (:id, 1)'
        await sql.execute(target, text, id=experiment_id)


@pytest.mark.parametrize("named", ["error", ExperimentStatus.ERROR, "ERROR"])
async def test_reset_makes_the_rows_anew_under_new_ids_and_removes_all_that_was_theirs(
    make: Make, target: Target, named: Any
) -> None:
    experimenter = await _one_of_each(make)
    await _with_energy(target)
    assert await experimenter.reset_experiments(named) == 1
    table = await experimenter.get_table()
    assert list(table["ID"]) == [1, 3, 4, 5, 6]
    row = await _row(experimenter, 6)
    assert (row["number"], row["status"], row["result"], row["_attempt"]) == (1, "created", None, 0)
    assert row["creation_date"] > (await _row(experimenter, 1))["creation_date"]
    assert await _left(target) == {"steps": {1, 3}, "attempts": {3}, "codecarbon": {1, 3}}
    assert (await experimenter.fill_table_with_rows([{"number": 1, "kind": "a"}])).added == 0


async def test_reset_of_several_statuses_and_of_all(make: Make, target: Target) -> None:
    experimenter = await _one_of_each(make)
    assert await experimenter.reset_experiments("done", ExperimentStatus.PAUSED) == 2
    assert await experimenter.counts() == {"created": 4, "running": 0, "done": 0, "error": 1, "paused": 0}
    assert await experimenter.reset_experiments("all") == 5
    assert list((await experimenter.get_table())["ID"]) == [8, 9, 10, 11, 12]
    assert await _left(target) == {name: set() for name in EVERY_TABLE}


async def test_reset_by_keyfields_and_by_ids(make: Make) -> None:
    experimenter = await _one_of_each(make)
    assert await experimenter.reset_experiments(where={"number": [0, 3]}) == 2
    assert await experimenter.reset_experiments("error", ids=[3, 4]) == 0
    assert await experimenter.reset_experiments(ids=[3, 77]) == 1
    assert await experimenter.reset_experiments("all", ids=[]) == 0
    assert sorted((await experimenter.get_table())["ID"]) == [2, 5, 6, 7, 8]


async def test_running_rows_are_touched_only_if_named(make: Make, shared: Shared) -> None:
    experimenter = await _rows(make, 2)
    began, left_alone, wrote, was_reset = (shared.gate() for _ in range(4))

    async def run(keyfields: Keys, results: ResultProcessor, _: Any) -> None:
        if results.experiment_id == 1:
            began.open()
            await left_alone.passed()
            await results.process_results({"result": 1.0})
            wrote.open()
            await was_reset.passed()
            await results.process_results({"result": 2.0})

    call = asyncio.create_task(experimenter.execute(run, n_jobs=1))
    await began.passed()
    assert await experimenter.reset_experiments(where={"number": 0}) == 0
    assert await experimenter.delete_experiments(ids=[1]) == 0
    left_alone.open()
    await wrote.passed()
    assert await experimenter.reset_experiments("running") == 1
    was_reset.open()
    summary = await call
    assert (summary.done, summary.lost) == (2, 1)
    table = await experimenter.get_table()
    assert sorted(table["ID"]) == [2, 3]
    assert table["result"].isna().all()


@pytest.mark.parametrize("call", ["reset_experiments", "delete_experiments"])
async def test_no_filter_at_all_is_an_error_and_so_is_an_unknown_one(make: Make, call: str) -> None:
    experimenter = await _one_of_each(make)
    change = getattr(experimenter, call)
    with pytest.raises(ParameterCombinationError, match="at least one status"):
        await change()
    with pytest.raises(InvalidColumnError, match="no status 'eror'; did you mean 'error'"):
        await change("done", "eror")
    with pytest.raises(ParameterCombinationError, match="no column 'numbr'; did you mean 'number'"):
        await change(where={"numbr": 1})
    assert list((await experimenter.get_table())["ID"]) == [1, 2, 3, 4, 5]


async def _nothing_to_see(*_: object, **__: object) -> bool:
    return False


async def test_a_reset_that_fails_half_way_changes_nothing(
    make: Make, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    experimenter = await _one_of_each(make)
    await sql.execute(target, 'DROP TABLE "experiments_attempts"')
    # As if it went between the look at the tables and the reset.
    monkeypatch.setattr("asyncexp.session.setup.check", _nothing_to_see)
    with pytest.raises(DatabaseQueryError, match="experiments_attempts"):
        await experimenter.reset_experiments("all")
    assert list((await experimenter.get_table())["ID"]) == [1, 2, 3, 4, 5]
    assert await _steps(experimenter, all_attempts=True) == [1, 1, 1]


# ------------------------------------------------------------------------------------------- delete


async def test_delete_removes_the_rows_and_all_that_was_theirs(make: Make, target: Target) -> None:
    experimenter = await _one_of_each(make)
    await _with_energy(target)
    assert await experimenter.delete_experiments("error", "paused") == 2
    assert await experimenter.delete_experiments(where={"number": 3}) == 1
    assert list((await experimenter.get_table())["ID"]) == [1, 5]
    assert await _left(target) == {"steps": {1}, "attempts": set(), "codecarbon": {1}}
    filled = await experimenter.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(5)])
    assert (filled.added, filled.existed) == (3, 2)
    assert list((await experimenter.get_table())["ID"]) == [1, 5, 6, 7, 8]  # an ID is never used again


# ----------------------------------------------------------------------------------------- retry_errors


async def test_retry_errors_puts_rows_back_under_the_same_id(make: Make, target: Target) -> None:
    experimenter = await _rows(make)
    run = _ends(ValueError("x"), ValueError("y"), ValueError("z"), None)
    await experimenter.execute(run, retries=1)
    assert await experimenter.retry_errors() == 1
    row = await _row(experimenter)
    assert (row["ID"], row["status"], row["error"], row["result"]) == (1, "created", None, None)
    assert (row["start_date"], row["end_date"], row["_attempt"]) == (None, None, 2)
    assert await _steps(experimenter) == []
    assert await _steps(experimenter, all_attempts=True) == [1, 2]
    summary = await experimenter.execute(run, retries=1)  # earlier tries do not count
    assert (summary.done, summary.retried) == (1, 1)
    assert await _attempts(target) == [(1, n, "retried") for n in (1, 2, 3)]
    assert await _steps(experimenter) == [4]


async def test_retry_errors_takes_only_what_is_asked_for(make: Make) -> None:
    experimenter = await _rows(make, 5)

    async def run(keyfields: Keys, __: ResultProcessor, ___: Any) -> None:
        if keyfields["number"] < 4:
            raise ValueError

    await experimenter.execute(run)
    assert await experimenter.retry_errors(where={"number": [0, 4]}) == 1
    assert await experimenter.retry_errors(ids=[2, 5]) == 1
    with pytest.raises(ParameterCombinationError, match="did you mean 'number'"):
        await experimenter.retry_errors(where={"numbers": 1})
    assert list((await experimenter.get_table())["status"]) == ["created", "created", "error", "error", "done"]
    assert await experimenter.retry_errors() == 2


async def test_a_retried_error_of_a_continued_row_keeps_its_results_and_goes_back_to_paused(make: Make) -> None:
    experimenter = await _rows(make)
    run = _ends(ExperimentStatus.PAUSED, ValueError("x"), None)
    await experimenter.execute(run)
    await experimenter.unpause_experiment(1, run)
    assert await experimenter.retry_errors() == 1
    row = await _row(experimenter)
    assert (row["status"], row["result"], row["error"]) == ("paused", 1.0, None)
    assert await experimenter.unpause_experiment(1, run) == "done"
    assert await _steps(experimenter) == [1, 3]


# --------------------------------------------------------------------------------- several at once


async def test_resets_beside_workers_leave_neither_half_rows_nor_stray_lines(make: Make, target: Target) -> None:
    experimenter = await _rows(make, 40)

    async def run(_: Keys, results: ResultProcessor, __: Any) -> None:
        await results.process_logs({"steps": {"step": 1}})
        await results.process_results({"result": 1.0})
        await results.process_logs({"steps": {"step": 2}})

    async def some_are_done() -> bool:
        return (await experimenter.counts())["done"] > 0

    running = asyncio.create_task(experimenter.execute(run, n_jobs=5))
    await eventually(some_are_done)
    taken = [await experimenter.reset_experiments("running", "done") for _ in range(8)]
    assert sum(taken) > 0
    await running
    await experimenter.execute(run)
    assert await experimenter.counts() == {"created": 0, "running": 0, "done": 40, "error": 0, "paused": 0}
    stray = (
        'SELECT "experiment_id" FROM "experiments__steps" WHERE "experiment_id" NOT IN (SELECT "ID" FROM "experiments")'
    )
    assert await sql.fetch(target, stray) == []
    assert len(await experimenter.get_logtable("steps")) == 80
    assert sorted((await experimenter.get_table())["number"]) == list(range(40))
