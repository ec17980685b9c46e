"""What a result processor promises: results, log lines, signs of life, from `async def` and from `def`."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseQueryError, ExperimentLostError, InvalidLogFieldError, InvalidResultFieldError
from asyncexp.experiment import ExperimentId
from tests.contract import sql
from tests.contract.conftest import Make
from tests.contract.modes import Mode
from tests.contract.shared import Shared
from tests.contract.support import eventually

ROW = {"number": 1, "kind": "a"}
NEAR = timedelta(seconds=30)
"""How well a worker knows the database's clock, at the least."""
TWO_TABLES = {"steps": {"step": "INT", "note": "TEXT"}, "losses": {"loss": "DOUBLE"}}


async def _one_row(make: Make, **study: Any) -> Experimenter:
    experimenter = make(**study)
    await experimenter.fill_table_with_rows([ROW])
    return experimenter


async def _row(target: Target, *columns: str) -> Any:
    names = ", ".join(f'"{name}"' for name in columns)
    [row] = await sql.fetch(target, f'SELECT {names} FROM "experiments"')
    return row if len(row) > 1 else row[0]


async def _lines(target: Target, table: str = "steps") -> int:
    [(count,)] = await sql.fetch(target, f'SELECT COUNT(*) FROM "experiments__{table}"')
    return int(count)


async def _any_line(target: Target) -> bool:
    return await _lines(target) > 0


# ------------------------------------------------------------------------------------------- results


async def test_results_are_committed_when_the_call_returns(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await _one_row(make)
    seen = shared.seen()
    look = 'SELECT "result", "text", "status" FROM "experiments"'

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        await results.process_results({"result": 1.5})
        seen.append(await sql.fetch(target, look))
        await results.process_results({"text": "later"})
        seen.append(await sql.fetch(target, look))

    assert (await experimenter.execute(run)).done == 1
    assert seen == [[[1.5, None, "running"]], [[1.5, "later", "running"]]]


async def test_the_last_write_of_a_field_wins_and_none_writes_null(make: Make) -> None:
    experimenter = await _one_row(make)

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for value in (1.0, 2.0, 3.0):
                group.create_task(results.process_results({"result": value, "text": "x"}))
        await results.process_results({"text": None})

    await experimenter.execute(run)
    table = await experimenter.get_table()
    assert list(table["result"]) == [3.0]
    assert table["text"].isna().all()


async def test_an_unknown_field_names_the_nearest_and_nothing_of_the_call_is_written(
    make: Make, shared: Shared
) -> None:
    experimenter = await _one_row(make)
    told = shared.seen()

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        try:
            await results.process_results({"text": "half", "resultt": 1.0})
        except InvalidResultFieldError as wrong:
            told.append(str(wrong))

    assert (await experimenter.execute(run)).done == 1
    [words] = told
    assert "'resultt'" in words
    assert "did you mean 'result'" in words
    assert (await experimenter.get_table())["text"].isna().all()


async def test_a_keyfield_or_bookkeeping_is_no_resultfield(make: Make) -> None:
    experimenter = await _one_row(make)

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        for name in ("kind", "status", "_attempt", "error"):
            with pytest.raises(InvalidResultFieldError, match=name):
                await results.process_results({name: "done"})

    assert (await experimenter.execute(run)).done == 1


async def test_a_value_that_does_not_fit_names_its_field(make: Make) -> None:
    experimenter = await _one_row(make)

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        await results.process_results({"text": "half", "result": "no number"})

    assert (await experimenter.execute(run)).error == 1
    [row] = (await experimenter.get_table()).to_dict("records")
    assert "resultfield 'result': 'no number'" in row["error"]
    assert row["text"] is None or row["text"] != row["text"]  # None, or NaN from pandas 3 on


async def test_each_result_has_the_time_when_it_was_written(make: Make) -> None:
    experimenter = await _one_row(make, result_timestamps=True)

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        await results.process_results({"result": 1.0})

    await experimenter.execute(run)
    [row] = (await experimenter.get_table()).to_dict("records")
    assert row["start_date"] - NEAR < row["result_timestamp"] < row["end_date"] + NEAR
    assert str(row["text_timestamp"]) == "NaT"


async def test_what_the_caller_gives_is_never_changed_nor_kept(make: Make, shared: Shared) -> None:
    experimenter = await _one_row(make, resultfields={"data": "JSON"}, logtables={"steps": {"data": "JSON"}})
    given = shared.seen()

    async def run(keyfields: dict[str, Any], results: ResultProcessor, __: Any) -> None:
        result: dict[str, Any] = {"data": {"b": [1, {"c": 2}], "a": None}}
        lines: dict[str, Any] = {"steps": [{"data": [1, 2]}, {}]}
        given.append([result, lines])
        await results.process_results(result)
        await results.process_logs(lines)
        given.append([result, lines])
        keyfields["number"] = 99
        lines["steps"][0]["data"].append(3)  # it is written later, and as it was
        result["data"].clear()

    assert (await experimenter.execute(run)).done == 1
    before, after = given
    assert before == after == [{"data": {"b": [1, {"c": 2}], "a": None}}, {"steps": [{"data": [1, 2]}, {}]}]
    table = await experimenter.get_table()
    assert list(table["data"]) == [{"b": [1, {"c": 2}], "a": None}]
    assert list(table["number"]) == [1]
    assert (await experimenter.get_logtable("steps"))["data"][0] == [1, 2]


# ---------------------------------------------------------------------------------------------- logs


async def test_lines_keep_their_order_over_calls_and_tables(make: Make) -> None:
    experimenter = await _one_row(make, logtables=TWO_TABLES)

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        for start in range(0, 300, 3):
            lines: list[dict[str, Any]] = [{"step": start}, {"note": "n", "step": start + 1}, {"step": start + 2}]
            await results.process_logs({"steps": lines, "losses": {"loss": start / 2}})

    await experimenter.execute(run)
    steps = await experimenter.get_logtable("steps")
    assert list(steps["step"]) == list(range(300))
    assert list(steps["note"].isna()) == [True, False, True] * 100
    losses = await experimenter.get_logtable("losses")
    assert list(losses["loss"]) == [n / 2 for n in range(0, 300, 3)]
    assert set(losses["experiment_id"]) == {1}
    assert set(losses["_attempt"]) == {1}


async def test_rows_may_come_from_a_generator(make: Make) -> None:
    experimenter = await _one_row(make)

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        await results.process_logs({"steps": ({"step": n} for n in range(3))})

    await experimenter.execute(run)
    assert list((await experimenter.get_logtable("steps"))["step"]) == [0, 1, 2]


async def test_lines_are_written_while_the_function_still_runs(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await _one_row(make)
    logged, go_on = shared.gate(), shared.gate()

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        await results.process_logs({"steps": {"step": 1}})
        logged.open()
        await go_on.passed()

    call = asyncio.create_task(experimenter.execute(run))
    await logged.passed()
    begin = time.monotonic()
    await eventually(lambda: _any_line(target))
    waited = time.monotonic() - begin
    assert await _row(target, "status") == "running"
    go_on.open()
    assert (await call).done == 1
    assert waited < 20  # 0.2 s, and what a busy machine adds; the function itself waits for this


async def test_no_row_is_done_before_its_lines_are_there(make: Make, target: Target, shared: Shared) -> None:
    experimenter = make(n_jobs=20)
    await experimenter.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(200)])
    early = (
        'SELECT "ID" FROM "experiments" WHERE "status" = \'done\' AND 20 <> '
        '(SELECT COUNT(*) FROM "experiments__steps" WHERE "experiment_id" = "experiments"."ID")'
    )

    go_on = shared.gate()

    async def run(keyfields: dict[str, Any], results: ResultProcessor, __: Any) -> None:
        for step in range(20):
            await results.process_logs({"steps": {"step": step}})
        if keyfields["number"] >= 195:
            await go_on.passed()

    running = asyncio.create_task(experimenter.execute(run))
    looks = 0
    while not running.done():
        assert await sql.fetch(target, early) == []
        looks += 1
        if looks > 5:
            go_on.open()
    assert (await running).done == 200
    assert await sql.fetch(target, early) == []


async def test_who_logs_faster_than_the_database_writes_has_to_wait(
    make: Make, target: Target, shared: Shared, mode: Mode
) -> None:
    experimenter = await _one_row(make)
    began, row_is_locked, logged = shared.gate(), shared.gate(), shared.seen()

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        began.open()
        await row_is_locked.passed()
        for _ in range(60):
            await results.process_logs({"steps": [{"step": step, "note": "x" * 100} for step in range(1_000)]})
            logged.append(1_000)

    call = asyncio.create_task(experimenter.execute(run))
    await began.passed()
    async with sql.locked(target, 1):
        row_is_locked.open()
        await eventually(lambda: len(logged) >= 20)
        await asyncio.sleep(0.3)
        # 20,000 lines are held; from a child some thousands more are on their way.
        assert len(logged) < 40 if mode == "process" else len(logged) == 20
    assert (await call).done == 1
    assert await _lines(target) == 60_000


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        ({"stepps": {"step": 1}}, "no log table 'stepps'; did you mean 'steps'"),
        ({"steps": {"stepp": 1}}, "log table 'steps' has no column 'stepp'; did you mean 'step'"),
        ({"steps": [{"step": 1}, {"step": "one"}]}, "log table 'steps', column 'step': 'one'"),
    ],
)
async def test_a_bad_line_raises_at_once_and_nothing_of_the_call_is_written(
    make: Make, target: Target, logs: Any, words: str
) -> None:
    experimenter = await _one_row(make)

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        with pytest.raises(InvalidLogFieldError, match=words):
            await results.process_logs({"steps": {"step": 0}} | logs)

    assert (await experimenter.execute(run)).done == 1
    assert await _lines(target) == 0


async def test_a_line_that_the_database_refuses_raises_at_the_next_call(make: Make, target: Target) -> None:
    experimenter = await _one_row(make)
    await sql.forbid(target, "experiments__steps", "step", 13)

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        await results.process_logs({"steps": {"step": 1}})
        await results.process_logs({"steps": {"step": 13}})
        await results.process_logs({"steps": {"step": 2}})
        with pytest.raises(DatabaseQueryError, match="refused"):
            await results.flush()
        await results.process_logs({"steps": {"step": 3}})

    assert (await experimenter.execute(run)).done == 1
    assert list((await experimenter.get_logtable("steps"))["step"]) == [1, 2, 3]


async def test_or_at_the_end_and_then_only_that_row_is_in_error(make: Make, target: Target) -> None:
    experimenter = make(n_jobs=20)
    await experimenter.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(20)])
    await sql.forbid(target, "experiments__steps", "step", 13)

    async def run(keyfields: dict[str, Any], results: ResultProcessor, _: Any) -> None:
        await results.process_logs({"steps": [{"step": keyfields["number"]}, {"step": 100}]})

    summary = await experimenter.execute(run)
    assert (summary.done, summary.error) == (19, 1)
    [row] = (await experimenter.get_table({"status": "error"})).to_dict("records")
    assert row["number"] == 13
    assert "refused" in row["error"]
    assert len(await experimenter.get_logtable("steps")) == 38


# --------------------------------------------------------------------------------- heartbeat and flush


async def test_heartbeats_are_merged_to_one_write_a_second(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await _one_row(make)
    lasted, enough = shared.seen(), shared.gate()

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        begin = time.monotonic()
        step = 0
        while not enough.is_open:
            step += 1
            await results.heartbeat(step / 1_000_000, f"step {step}")
            await asyncio.sleep(0.01)
        await results.heartbeat(0.25, "the last step")
        lasted.append(time.monotonic() - begin)

    call = asyncio.create_task(experimenter.execute(run))
    seen: set[float | None] = set()
    while not call.done():
        seen.add(await _row(target, "_progress"))
        if len(seen - {None}) >= 3:
            enough.open()
    assert (await call).done == 1
    [seconds] = lasted
    assert len(seen - {None}) <= seconds + 2  # the end writes what still waits
    [row] = (await experimenter.get_table()).to_dict("records")
    assert (row["_progress"], row["_message"]) == (0.25, "the last step")
    assert row["start_date"] - NEAR < row["_heartbeat"] < row["end_date"] + NEAR


async def test_progress_and_message_are_there_for_others_while_it_runs(make: Make, shared: Shared) -> None:
    experimenter = await _one_row(make)
    told, go_on = shared.gate(), shared.gate()

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        await results.heartbeat(0.5, "half\0way \ud800")
        await results.flush()
        await results.heartbeat(message="on")
        await results.flush()
        told.open()
        await go_on.passed()

    call = asyncio.create_task(experimenter.execute(run))
    await told.passed()
    [shown] = (await experimenter.get_table({"status": "running"})).to_dict("records")
    go_on.open()
    assert (await call).done == 1
    assert (shown["_progress"], shown["_message"]) == (0.5, "on")


async def test_after_flush_everything_sent_is_committed(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await _one_row(make)
    seen = shared.seen()

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        await results.process_logs({"steps": [{"step": n} for n in range(5_000)]})
        await results.heartbeat(0.9)
        await results.flush()
        seen.append(await sql.fetch(target, 'SELECT COUNT(*) FROM "experiments__steps"'))
        seen.append(await sql.fetch(target, 'SELECT "_progress" FROM "experiments"'))

    assert (await experimenter.execute(run)).done == 1
    assert seen == [[[5_000]], [[0.9]]]


# ------------------------------------------------------------------------------------ `def` functions


async def test_def_functions_have_the_same_by_plain_calls(make: Make, target: Target, shared: Shared) -> None:
    experimenter = make()
    await experimenter.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(6)])
    seen = shared.seen()

    def run(keyfields: dict[str, Any], results: SyncResultProcessor, __: Any) -> None:
        number = keyfields["number"]
        results.process_results({"result": number, "text": "x"})
        results.process_logs({"steps": [{"step": number}, {"step": -number}]})
        results.heartbeat(0.5, "half")
        results.flush()
        text = 'SELECT "result", "_message", "status" FROM "experiments" WHERE "ID" = :id'
        seen.append(asyncio.run(sql.fetch(target, text, id=int(results.experiment_id))))
        with pytest.raises(InvalidResultFieldError, match="did you mean 'result'"):
            results.process_results({"resul": 1})
        with pytest.raises(InvalidLogFieldError, match="did you mean 'note'"):
            results.process_logs({"steps": {"notes": 1}})
        assert results.attempt == results.experiment_id.attempt == 1
        assert not results.should_stop

    assert (await experimenter.execute(run)).done == 6
    assert sorted(seen) == [[[float(n), "half", "running"]] for n in range(6)]
    table = await experimenter.get_table()
    assert list(table["result"]) == list(table["number"])
    logs = await experimenter.get_logtable("steps")
    assert len(logs) == 12
    assert logs.groupby("experiment_id")["step"].sum().eq(0).all()


# --------------------------------------------------------------------------- the attempt and its end


async def test_the_experiment_id_is_an_int_that_carries_attempt_and_worker_through_a_pickle(
    make: Make, shared: Shared
) -> None:
    experimenter = await _one_row(make)
    found = shared.seen()

    async def run(_: Any, results: ResultProcessor, __: Any) -> ExperimentStatus | None:
        found.append([results.attempt, pickle.dumps(results.experiment_id).hex()])
        return ExperimentStatus.PAUSED if results.attempt == 1 else None

    await experimenter.execute(run)
    await experimenter.unpause_experiment(1, run)
    (first, one), (second, two) = ((attempt, pickle.loads(bytes.fromhex(sent))) for attempt, sent in found)  # noqa: S301
    assert (first, second, one.attempt, two.attempt) == (1, 2, 1, 2)
    assert one == two == 1
    assert isinstance(one, ExperimentId)
    [worker] = await experimenter.workers()
    assert one.worker == two.worker == worker.id


async def test_should_stop_turns_true_when_the_worker_is_told_to_stop(make: Make, shared: Shared) -> None:
    experimenter = await _one_row(make)
    before = shared.seen()

    async def run(_: Any, results: ResultProcessor, __: Any) -> ExperimentStatus:
        before.append(results.should_stop)
        while not results.should_stop:  # noqa: ASYNC110  (what users write)
            await asyncio.sleep(0.01)
        await results.process_results({"result": 7.0})
        return ExperimentStatus.CREATED

    call = asyncio.create_task(experimenter.execute(run))
    await eventually(lambda: len(before) == 1)
    await experimenter.stop()
    summary = await asyncio.wait_for(call, 20)
    assert before == [False]
    assert (summary.released, summary.stopped_by) == (1, "stop")
    table = await experimenter.get_table()
    assert list(table["status"]) == ["created"]
    assert list(table["result"]) == [7.0]


@pytest.mark.in_process_only("the test keeps the very result processor; the next test is the one for every mode")
async def test_nothing_is_accepted_after_the_end(make: Make, target: Target) -> None:
    experimenter = await _one_row(make)
    kept: list[ResultProcessor] = []

    async def run(_: Any, results: ResultProcessor, __: Any) -> None:
        kept.append(results)

    await experimenter.execute(run)
    with pytest.raises(ExperimentLostError):
        await kept[0].process_results({"result": 1.0})
    with pytest.raises(ExperimentLostError):
        await kept[0].process_logs({"steps": {"step": 1}})
    with pytest.raises(ExperimentLostError):
        await kept[0].heartbeat()
    assert await _row(target, "result", "status") == (None, "done")
    assert await _lines(target) == 0


async def test_nothing_is_accepted_from_a_thread_that_outlives_its_function(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter = make(n_jobs=1)
    await experimenter.fill_table_with_rows([{"number": n, "kind": "a"} for n in range(2)])
    first_ended, refused = shared.gate(), shared.seen()

    def late(results: SyncResultProcessor) -> None:
        first_ended.wait()
        calls: list[tuple[Callable[[Any], None], Any]] = [
            (results.process_results, {"result": 1.0}),
            (results.process_logs, {"steps": {"step": 1}}),
            (results.heartbeat, 0.5),
        ]
        for call, given in calls:
            try:
                call(given)
            except Exception as refusal:  # noqa: BLE001  (the test says which it must be)
                refused.append(type(refusal).__name__)
            else:
                refused.append(f"{call} was accepted")

    def run(keyfields: dict[str, Any], results: SyncResultProcessor, _: Any) -> None:
        if keyfields["number"] == 0:
            threading.Thread(target=late, args=(results,)).start()
        else:
            first_ended.open()
            while len(refused) < 3:
                time.sleep(0.01)

    assert (await experimenter.execute(run)).done == 2
    assert refused == ["ExperimentLostError"] * 3
    assert await sql.fetch(target, 'SELECT "result", "_progress" FROM "experiments"') == [(None, None)] * 2
    assert await _lines(target) == 0


async def test_a_forgotten_await_is_an_error_that_says_so(make: Make) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()

    async def forgetful(keyfields: dict[str, Any], results: ResultProcessor, custom: dict[str, Any]) -> None:
        results.process_results({"result": 1.0}).close()  # closed, or Python would warn as well

    summary = await experimenter.execute(forgetful, max_experiments=1)
    assert summary.error == 1
    assert "write `await` before it" in (await experimenter.get_table({"status": "error"}))["error"].iloc[0]


@pytest.mark.parametrize(("given", "stored"), [(float("nan"), None), (1.7, 1.0), (-1, 0.0), (float("inf"), 1.0)])
async def test_a_fraction_that_is_none_costs_no_experiment(make: Make, given: float, stored: float | None) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()

    async def run(keyfields: dict[str, Any], results: ResultProcessor, custom: dict[str, Any]) -> None:
        await results.heartbeat(given, "still here")

    assert (await experimenter.execute(run, max_experiments=1)).done == 1
    row = (await experimenter.get_table({"status": "done"})).iloc[0]
    assert row["_message"] == "still here"
    assert (None if row["_progress"] != row["_progress"] else row["_progress"]) == stored


async def test_what_is_no_dict_is_refused_in_one_sentence(make: Make) -> None:
    experimenter = make()
    await experimenter.fill_table_from_config()

    async def run(keyfields: dict[str, Any], results: Any, custom: dict[str, Any]) -> None:
        for wrong in (None, [1], "result"):
            with pytest.raises(InvalidResultFieldError, match="results are a dict"):
                await results.process_results(wrong)
            with pytest.raises(InvalidLogFieldError, match="logs are a dict"):
                await results.process_logs(wrong)
        for rows in (5, [5]):
            with pytest.raises(InvalidLogFieldError, match="a row is a dict of columns and values, not int"):
                await results.process_logs({"steps": rows})
        with pytest.raises(InvalidResultFieldError, match="a fraction from 0 to 1, not 'x'"):
            await results.heartbeat("x")

    assert (await experimenter.execute(run, max_experiments=1)).done == 1
