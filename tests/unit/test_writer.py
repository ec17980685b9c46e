"""The writer: one bad value costs one caller, the last value of a field wins, and nothing passes the fence.

Seen through `Experimenter`, for what the writer promises is what callers of the result processor get.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import asyncexp.writer
from asyncexp import Experimenter, ResultProcessor, Summary
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseQueryError, ExperimentLostError
from asyncexp.store.claim import Wanted, Worker
from asyncexp.store.flush import End, Flushed, Unit
from asyncexp.store.study import Study
from asyncexp.store.together import store
from tests.contract.sql import execute as change
from tests.contract.sql import fetch as sql
from tests.contract.support import Keys, audit, eventually, numbers
from tests.studies import experimenter as new_experimenter

Make = Callable[[int], Awaitable[Experimenter]]


@pytest.fixture
async def filled(target: Target, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Experimenter] = []

    async def new(count: int) -> Experimenter:
        made.append(new_experimenter(tmp_path, target, keyfields=numbers(count)))
        await made[-1].fill_table_from_config()
        return made[-1]

    yield new
    for each in made:
        await each.aclose()


async def refuse(target: Target, table: str, column: str, value: float) -> None:
    """From now on the database refuses one value that the codec lets through."""
    if target.provider != "sqlite":
        await change(target, f'ALTER TABLE "{table}" ADD CONSTRAINT "refused" CHECK ("{column}" <> {value})')
        return
    for event in ("INSERT", "UPDATE"):
        await change(
            target,
            f'CREATE TRIGGER "refused_{event}" BEFORE {event} ON "{table}" WHEN NEW."{column}" = {value} '
            "BEGIN SELECT RAISE(ABORT, 'refused'); END",
        )


class Together:
    """Lets `count` callers go on at the same moment."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._go = asyncio.Event()

    async def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._go.set()
        await self._go.wait()


# ---------------------------------------------------------------------------------------------- one bad value


@pytest.mark.parametrize("caught", [True, False])
async def test_one_bad_value_among_200_results_in_a_flush_costs_one_caller(
    filled: Make, target: Target, caught: bool
) -> None:
    experimenter = await filled(200)
    await refuse(target, "experiments", "result", 113)
    together = Together(200)
    told: list[int] = []

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await together()
        try:
            await results.process_results({"result": keys["number"], "text": "stored"})
        except DatabaseQueryError:
            told.append(keys["number"])
            if not caught:
                raise

    summary = await experimenter.execute(run, n_jobs=200)
    assert told == [113]
    assert (summary.done, summary.error) == ((200, 0) if caught else (199, 1))
    stored = await sql(target, 'SELECT "number" FROM "experiments" WHERE "result" = "number" AND "text" = \'stored\'')
    assert sorted(number for (number,) in stored) == [number for number in range(200) if number != 113]
    assert await sql(target, 'SELECT "result", "text" FROM "experiments" WHERE "number" = 113') == [(None, None)]
    await audit(target)


async def test_several_bad_values_cost_their_callers_only(filled: Make, target: Target) -> None:
    experimenter = await filled(60)
    await refuse(target, "experiments", "result", 7)
    together = Together(60)

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await together()
        await results.process_results({"result": 7 if keys["number"] % 20 == 3 else 8})

    summary = await experimenter.execute(run, n_jobs=60)
    assert (summary.done, summary.error, summary.stopped_by) == (57, 3, None)
    await audit(target)


async def test_a_bad_log_line_that_nobody_waits_for_ends_its_row_as_error(filled: Make, target: Target) -> None:
    experimenter = await filled(50)
    await refuse(target, "experiments__steps", "step", 13)
    together = Together(50)

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await together()
        await results.process_logs({"steps": {"step": keys["number"]}})

    summary = await experimenter.execute(run, n_jobs=50)
    assert (summary.done, summary.error) == (49, 1)
    [(number, text)] = await sql(target, 'SELECT "number", "error" FROM "experiments" WHERE "status" = \'error\'')
    assert number == 13
    assert "refused" in text
    lines = await sql(target, 'SELECT "step" FROM "experiments__steps"')
    assert sorted(step for (step,) in lines) == [number for number in range(50) if number != 13]
    await audit(target)


async def test_a_bad_log_line_is_told_at_the_next_call(filled: Make, target: Target) -> None:
    experimenter = await filled(1)
    await refuse(target, "experiments__steps", "step", 13)

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await results.process_logs({"steps": {"step": 13}})
        with pytest.raises(DatabaseQueryError, match="sent earlier"):
            await results.flush()
        await results.process_logs({"steps": {"step": 14}})
        await results.flush()

    summary = await experimenter.execute(run)
    assert summary.done == 1
    assert await sql(target, 'SELECT "step" FROM "experiments__steps"') == [(14,)]


# ------------------------------------------------------------------------------------------------- merging


async def test_of_each_field_the_last_value_wins_and_absent_ones_are_untouched(filled: Make, target: Target) -> None:
    experimenter = await filled(1)

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await asyncio.gather(
            results.process_results({"result": 1, "text": "first"}),
            results.process_results({"result": 2}),
            results.process_results({"text": "second"}),
            results.process_results({}),
        )
        assert await sql(target, 'SELECT "result", "text" FROM "experiments"') == [(2.0, "second")]
        await results.process_results({"result": None})
        assert await sql(target, 'SELECT "result", "text" FROM "experiments"') == [(None, "second")]
        await asyncio.gather(results.process_results({"result": 3}), results.process_results({"result": None}))

    assert (await experimenter.execute(run)).done == 1
    assert await sql(target, 'SELECT "result", "text" FROM "experiments"') == [(None, "second")]


async def test_results_are_committed_when_the_call_returns_and_logs_before_the_row_ends(
    filled: Make, target: Target
) -> None:
    experimenter = await filled(3)

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await results.process_results({"result": 5})
        mine = f'SELECT "result", "status" FROM "experiments" WHERE "ID" = {int(results.experiment_id)}'
        assert await sql(target, mine) == [(5.0, "running")]
        for step in range(300):
            await results.process_logs({"steps": [{"step": 2 * step}, {"step": 2 * step + 1}]})

    assert (await experimenter.execute(run)).done == 3
    for number in (1, 2, 3):
        lines = await sql(
            target, f'SELECT "step" FROM "experiments__steps" WHERE "experiment_id" = {number} ORDER BY "ID"'
        )
        assert [step for (step,) in lines] == list(range(600))


async def test_log_lines_are_written_in_the_background_without_anybody_waiting(filled: Make, target: Target) -> None:
    experimenter = await filled(1)

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await results.process_logs({"steps": {"step": 1}})

        async def written() -> bool:
            return await sql(target, 'SELECT COUNT(*) FROM "experiments__steps"') == [(1,)]

        await eventually(written)

    assert (await experimenter.execute(run)).done == 1


async def test_a_full_buffer_makes_the_caller_wait_and_loses_nothing(
    filled: Make, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncexp.writer.LOG_ROOM", 50)
    experimenter = await filled(4)

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        for step in range(200):
            await results.process_logs({"steps": [{"step": step}] * 3})

    assert (await experimenter.execute(run, n_jobs=4)).done == 4
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments__steps"') == [(2_400,)]


async def test_callers_dicts_are_left_as_they_are(filled: Make) -> None:
    given: dict[str, Any] = {"result": math.nan, "text": "x"}
    logs: dict[str, Any] = {"steps": [{"step": 1}, {"note": None}]}

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await results.process_results(given)
        await results.process_logs(logs)

    assert (await (await filled(1)).execute(run)).done == 1
    assert math.isnan(given.pop("result"))
    assert (given, logs) == ({"text": "x"}, {"steps": [{"step": 1}, {"note": None}]})


# --------------------------------------------------------------------------------------------------- the fence

Take = Callable[[Target, Experimenter], Awaitable[object]]


async def reset(target: Target, other: Experimenter) -> None:
    await other.reset_experiments("running", ids=[1])


async def delete(target: Target, other: Experimenter) -> None:
    await other.delete_experiments("running", ids=[1])


async def rescued(target: Target, other: Experimenter) -> None:
    """As somebody does who takes the worker for dead."""
    await change(target, 'UPDATE "experiments" SET "status" = \'created\', "_worker" = NULL WHERE "ID" = 1')


async def taken_over(target: Target, other: Experimenter) -> None:
    await change(target, 'UPDATE "experiments" SET "_worker" = 12345, "_attempt" = "_attempt" + 1 WHERE "ID" = 1')


async def ended(target: Target, other: Experimenter) -> None:
    await change(target, 'UPDATE "experiments" SET "status" = \'done\', "end_date" = "start_date" WHERE "ID" = 1')


class Fenced:
    """The first experiment loses its row half-way and reports what its calls came to; the others just run."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.lost = asyncio.Event()
        self.raised: list[BaseException] = []

    async def __call__(self, keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if keys["number"] > 0:
            await results.process_results({"result": keys["number"]})
            return
        self.began.set()
        with suppress(asyncio.CancelledError):  # it may hear of its loss before it sends anything
            await self.lost.wait()
        with suppress(ExperimentLostError):
            await results.process_logs({"steps": {"step": 99}})
        for _try in range(2):
            try:
                await results.process_results({"result": 99})
            except (ExperimentLostError, asyncio.CancelledError) as error:
                self.raised.append(error)
        raise ValueError("which is nobody's business any more")


@pytest.mark.parametrize("take", [reset, delete, rescued, taken_over, ended])
async def test_a_row_lost_under_the_worker_takes_nothing_and_its_caller_is_told(
    filled: Make, target: Target, take: Take
) -> None:
    worker, other = await filled(6), await filled(6)
    run = Fenced()
    call: asyncio.Task[Summary] = asyncio.create_task(worker.execute(run, n_jobs=2, max_experiments=6))
    await run.began.wait()
    await take(target, other)
    before = await sql(target, 'SELECT * FROM "experiments" WHERE "number" = 0')
    run.lost.set()
    summary = await call
    assert ExperimentLostError in map(type, run.raised), run.raised
    assert (summary.lost, summary.done, summary.error) == (1, 5, 0)
    assert await sql(target, 'SELECT * FROM "experiments" WHERE "number" = 0') == before
    assert await sql(target, 'SELECT * FROM "experiments" WHERE "result" = 99') == []
    assert await sql(target, 'SELECT * FROM "experiments__steps" WHERE "step" = 99') == []


async def test_a_function_that_reports_nothing_learns_of_its_loss_by_its_end(filled: Make, target: Target) -> None:
    worker, other = await filled(3), await filled(3)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if keys["number"] == 0:
            began.set()
            await go_on.wait()

    call = asyncio.create_task(worker.execute(run))
    await began.wait()
    await other.delete_experiments("running", ids=[1])
    go_on.set()
    summary = await call
    assert (summary.lost, summary.done) == (1, 2)
    assert await audit(target) == {"done": 2}


# ------------------------------------------------------------------- the server stores, and experiments run meanwhile

on_postgresql = pytest.mark.parametrize("provider", ["postgresql"])


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many experiments each flush was that wrote of any."""
    sizes: list[int] = []

    def counting(study: Study, worker: Worker, units: Sequence[Unit], *rest: Any, **more: Any) -> Awaitable[Flushed]:
        sizes.extend([len(units)] * bool(units))
        return store(study, worker, units, *rest, **more)

    monkeypatch.setattr(asyncexp.writer, "store", counting)
    return sizes


@on_postgresql
async def test_of_many_answers_half_are_told_while_the_database_stores_what_came_of_the_others(
    filled: Make, flushes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncexp.writer, "REST_SECONDS", 60)
    experimenter = await filled(64)
    together = Together(64)

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await together()
        for step in range(4):
            await results.process_results({"result": keys["number"] + step})

    assert (await experimenter.execute(run, n_jobs=64)).done == 64
    assert flushes == [64, *[32] * 8]


@on_postgresql
async def test_what_is_told_later_waits_for_nobody(filled: Make, flushes: list[int]) -> None:
    """Nothing comes of the half that was told first."""
    experimenter = await filled(64)
    together, all_told = Together(64), Together(64)

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        await together()
        await results.process_results({"result": keys["number"]})
        await all_told()

    assert (await experimenter.execute(run, n_jobs=64)).done == 64
    assert flushes[0] == 64


async def test_rows_just_taken_are_known_when_those_that_nobody_knows_are_given_back(
    filled: Make, target: Target
) -> None:
    experimenter = await filled(6)
    taken: list[int] = []

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        [session] = experimenter._sessions.values()
        claim = session.writer.claim(Wanted(5))
        await eventually(lambda: not session.writer._queue)
        told = session.writer.send((int(results.experiment_id), results.attempt), {"result": 1.0})
        left = session.writer.any_left(Wanted(1))
        await told
        taken.extend(int(row.id) for row in await claim or ())
        assert not await left
        running = await sql(target, 'SELECT "ID" FROM "experiments" WHERE "status" = \'running\'')
        assert sorted(number for (number,) in running) == [results.experiment_id, *taken]
        for row in claim.result() or ():
            session.writer.end((int(row.id), row.id.attempt), End("released"), lambda *_: None)

    assert (await experimenter.execute(run, n_jobs=1, max_experiments=1)).done == 1
    assert len(taken) == 5
