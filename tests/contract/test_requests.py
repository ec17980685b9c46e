"""Requests through the table: another `Experimenter` asks a worker to cancel, to release, or to stop."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter, ResultProcessor, Summary, SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import ExperimentLostError
from asyncexp.store.rescue import Place, Rescued, rescue, suspects
from tests.contract.conftest import Make
from tests.contract.functions import Held
from tests.contract.modes import Mode
from tests.contract.shared import Shared, until
from tests.contract.sql import execute as change
from tests.contract.sql import fetch as sql
from tests.contract.sql import locked
from tests.contract.support import Keys, audit, eventually, numbers
from tests.servers import in_thread
from tests.studies import experimenter as new_experimenter

STATES = 'SELECT "status", "_attempt" FROM "experiments" WHERE "ID" <= 2 ORDER BY "ID"'
SLOW = {"heartbeat_interval": 50, "lease": 200}
QUICK = {"heartbeat_interval": 0.2, "lease": 30}
"""How soon requests are noticed where the database has no NOTIFY."""


def new_held(shared: Shared) -> Held:
    return Held(shared.seen(), shared.gate(), shared.seen())


@asynccontextmanager
async def held(
    make: Make, held: Held, jobs: int = 4, execution: dict[str, Any] = QUICK
) -> AsyncIterator[tuple[asyncio.Task[Summary], Experimenter]]:
    """A worker that runs the first `jobs` of 10 experiments, and another `Experimenter` on the same table."""
    worker, other = (make(keyfields=numbers(10), execution=execution) for _ in range(2))
    await worker.fill_table_from_config()
    call = asyncio.create_task(worker.execute(held, n_jobs=jobs, max_experiments=jobs))
    await eventually(lambda: len(held.began) == jobs)
    yield call, other
    held.let_go.open()
    await asyncio.wait([call])


async def ended(target: Target, run: Held, ids: list[int], mode: Mode) -> None:
    """Returns when these attempts run no more, and have seen that they are cancelled."""
    listed = ", ".join(map(str, ids))
    text = f'SELECT COUNT(*) FROM "experiments" WHERE "ID" IN ({listed}) AND "status" = \'running\''

    async def over() -> bool:
        return await sql(target, text) == [(0,)]

    await eventually(over)
    if mode != "process":
        await eventually(lambda: sorted(run.cancelled) == ids)


async def test_cancel_ends_running_rows_as_error_and_says_who_asked(
    make: Make, target: Target, shared: Shared, mode: Mode
) -> None:
    async with held(make, run := new_held(shared)) as (call, other):
        assert await other.cancel([2, 4]) == [2, 4]
        await ended(target, run, [2, 4], mode)
        run.let_go.open()
        summary = await call
    assert (summary.done, summary.error, summary.retried) == (2, 2, 0)
    errors = await sql(target, 'SELECT "ID", "error" FROM "experiments" WHERE "status" = \'error\' ORDER BY "ID"')
    assert [number for number, _ in errors] == [2, 4]
    assert all(text.startswith("cancelled by PyExperimenter on ") for _, text in errors)
    assert await audit(target) == {"done": 2, "error": 2, "created": 6}


@pytest.mark.parametrize("take", ["reset_experiments", "delete_experiments"])
async def test_a_silent_function_whose_row_is_reset_or_deleted_is_ended_soon(
    make: Make, target: Target, shared: Shared, mode: Mode, take: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with held(make, run := new_held(shared), jobs=2) as (call, other):
        assert await getattr(other, take)("running", ids=[1]) == 1
        if mode != "process":
            await eventually(lambda: run.cancelled == [1])
        told = "Experiment 1 (attempt 1) was taken away from this worker: the row was reset or deleted"
        await eventually(lambda: told in caplog.text)
        run.let_go.open()
        summary = await call
    assert (summary.lost, summary.done) == (1, 1)


@pytest.mark.asyncio_only("reaches into the store")
async def test_a_worker_taken_for_dead_is_told_why_and_who_has_its_row_now(
    make: Make, target: Target, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    async with held(make, run := new_held(shared), jobs=2, execution=SLOW) as (call, other):
        study = await other._reading()
        await change(target, 'UPDATE "experiments_workers" SET "heartbeat" = "started", "lease" = 0')
        [suspect] = await suspects(study, 0, Place(None, None, None))
        assert await rescue(study, suspect, 3) == Rescued((1, 2))
        await change(target, 'UPDATE "experiments" SET "status" = \'done\', "_attempt" = 2 WHERE "ID" = 2')
        run.let_go.open()
        await call
    why = "this worker gave no sign of life for its lease and was taken for dead"
    told = "Experiment %d (attempt 1) was taken away from this worker: %s; %s. What it sends is refused."
    await eventually(lambda: told % (1, why, "it waits for its next attempt") in caplog.text)
    await eventually(lambda: told % (2, why, "it is done in attempt 2") in caplog.text)


@pytest.mark.asyncio_only("reaches into the store")
@pytest.mark.parametrize("provider", ["postgresql", "mysql"])
async def test_a_rescue_waits_for_no_lock(make: Make, target: Target, shared: Shared) -> None:
    async with held(make, run := new_held(shared), jobs=2, execution=SLOW) as (call, other):
        study = await other._reading()
        await change(target, 'UPDATE "experiments_workers" SET "heartbeat" = "started", "lease" = 0')
        [suspect] = await suspects(study, 0, Place(None, None, None))
        async with locked(target, 2):  # as by a flush of its worker's that is half-way
            assert await asyncio.wait_for(rescue(study, suspect, 3), 15) is None
            assert await sql(target, STATES) == [("running", 1), ("running", 1)]
        assert await rescue(study, suspect, 3) == Rescued((1, 2))
        run.let_go.open()
        await call
    assert await sql(target, STATES) == [("created", 1), ("created", 1)]


async def test_a_cancelled_row_is_not_tried_again(make: Make, target: Target, shared: Shared, mode: Mode) -> None:
    async with held(make, run := new_held(shared), jobs=1, execution=QUICK | {"retries": 3}) as (call, other):
        await other.cancel(1)
        summary = await asyncio.wait_for(call, 30)
    assert (summary.error, summary.retried) == (1, 0)
    assert run.cancelled == ([] if mode == "process" else [1])


async def test_release_puts_running_rows_back_and_the_worker_does_not_take_them_at_once(
    make: Make, target: Target, shared: Shared, mode: Mode
) -> None:
    async with held(make, run := new_held(shared)) as (call, other):
        assert await other.release([3]) == [3]
        await ended(target, run, [3], mode)
        run.let_go.open()
        summary = await call
    assert (summary.done, summary.released) == (4, 1)  # a released attempt is not counted: one more was started
    row = 'SELECT "status", "result", "_worker" FROM "experiments" WHERE "ID" = 3 AND "_not_before" IS NOT NULL'
    assert await sql(target, row) == [("created", None, None)]
    assert await audit(target) == {"done": 4, "created": 6}


@pytest.mark.in_process_only("threads; a child is killed")
async def test_threads_are_told_and_may_end_by_themselves(make: Make, target: Target) -> None:
    worker, other = (make(keyfields=numbers(4), execution=QUICK) for _ in range(2))
    await worker.fill_table_from_config()
    began = threading.Barrier(3)

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        began.wait(30)
        while not results.should_stop:
            time.sleep(0.005)
        results.process_results({"result": 2})

    call = asyncio.create_task(worker.execute(run, n_jobs=2, max_experiments=2))
    await asyncio.to_thread(began.wait, 30)
    assert await other.cancel([1]) == [1]
    assert await other.release([2]) == [2]
    began.abort()  # whatever begins after that fails at once
    summary = await asyncio.wait_for(call, 30)
    assert summary.error >= 1
    states = await sql(target, 'SELECT "status", "error" FROM "experiments" WHERE "ID" IN (1, 2) ORDER BY "ID"')
    assert [status for status, _ in states] == ["error", "created"]
    assert "cancelled by" in states[0][1]
    await audit(target)


@pytest.mark.in_process_only("threads; a child is killed")
async def test_a_thread_whose_row_is_reset_sees_that_it_should_stop(make: Make, target: Target) -> None:
    worker, other = (make(keyfields=numbers(1), execution=QUICK) for _ in range(2))
    await worker.fill_table_from_config()
    began, over, listened = threading.Event(), threading.Event(), threading.Event()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        began.set()
        while not (results.should_stop or over.is_set()):
            time.sleep(0.005)
        if results.should_stop:
            listened.set()

    call = asyncio.create_task(worker.execute(run, max_experiments=1))
    await asyncio.to_thread(began.wait, 30)
    assert await other.reset_experiments("running", ids=[1]) == 1
    heard = await asyncio.to_thread(listened.wait, 30)
    over.set()
    assert heard
    assert (await asyncio.wait_for(call, 30)).lost == 1


@pytest.mark.in_process_only("a thread cannot be ended")
async def test_a_thread_that_does_not_listen_loses_its_row_after_grace(make: Make, target: Target) -> None:
    execution = QUICK | {"grace": 0.2}
    worker, other = (make(keyfields=numbers(1), execution=execution) for _ in range(2))
    await worker.fill_table_from_config()
    began, release, refused = threading.Event(), threading.Event(), threading.Event()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        began.set()
        release.wait(30)
        with pytest.raises(ExperimentLostError):
            results.process_results({"result": 2})
        refused.set()

    call = asyncio.create_task(worker.execute(run))
    await asyncio.to_thread(began.wait, 30)
    await other.cancel([1])
    assert (await asyncio.wait_for(call, 30)).error == 1
    release.set()
    assert await asyncio.to_thread(refused.wait, 30)
    assert await sql(target, 'SELECT "status", "result" FROM "experiments"') == [("error", None)]


async def test_rows_that_do_not_run_are_left_alone(make: Make, target: Target, shared: Shared) -> None:
    async with held(make, new_held(shared), jobs=2) as (_, other):
        before = await sql(target, 'SELECT * FROM "experiments" WHERE "status" <> \'running\' ORDER BY "ID"')
        assert await other.cancel([5, 6, 999]) == []
        assert await other.release(7) == []
        assert await other.release([]) == []
        assert await other.cancel(iter([1, 8])) == [1]
        after = await sql(
            target, 'SELECT * FROM "experiments" WHERE "status" <> \'running\' AND "ID" > 1 ORDER BY "ID"'
        )
        assert after == before


async def test_a_request_for_an_attempt_that_has_ended_does_not_meet_the_next_one(
    make: Make, target: Target, shared: Shared
) -> None:
    async with held(make, run := new_held(shared), jobs=1, execution={"heartbeat_interval": 100, "lease": 400}) as (
        call,
        other,
    ):
        await change(
            target, 'UPDATE "experiments" SET "_request" = \'cancel\', "_requested_by" = \'me\' WHERE "ID" = 1'
        )
        run.let_go.open()
        assert (await call).done == 1
        await other.reset_experiments("done")
        assert await sql(target, 'SELECT DISTINCT "_request", "_requested_by" FROM "experiments"') == [(None, None)]


async def test_another_experimenter_stops_a_worker_gracefully(make: Make, target: Target, shared: Shared) -> None:
    began = shared.seen()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        began.append(keys["number"])
        await until(lambda: results.should_stop)

    execution = QUICK | {"grace": 60}
    worker, other = (make(keyfields=numbers(10), execution=execution) for _ in range(2))
    await worker.fill_table_from_config()
    for expected in (3, 6):  # a worker may be stopped, set to work, and stopped again
        call = asyncio.create_task(worker.execute(run, n_jobs=3))
        await eventually(lambda: len(began) == expected)  # noqa: B023  (called within this turn)
        [info] = await other.workers()
        assert (info.state, info.running) == ("live", 3)
        assert await other.stop([info.id]) == [info.id]
        summary = await asyncio.wait_for(call, 30)
        assert (summary.done, summary.stopped_by) == (3, "stop")
        assert await audit(target) == {"done": expected, "created": 10 - expected}
    await worker.aclose()
    assert [info.state for info in await other.workers()] == ["stopped"]
    assert await other.stop([info.id, 12345]) == []


@pytest.mark.parametrize("ask", ["cancel", "release", "stop"])
@pytest.mark.parametrize("provider", ["postgresql"])
async def test_by_notify_a_request_is_noticed_at_once(
    make: Make, target: Target, ask: str, shared: Shared, mode: Mode
) -> None:
    slow = {"heartbeat_interval": 100, "lease": 400, "grace": 0.1}
    async with held(make, run := new_held(shared), jobs=2, execution=slow) as (call, other):
        [info] = await other.workers()
        began = time.monotonic()
        assert await getattr(other, ask)([info.id] if ask == "stop" else [1, 2])
        await ended(target, run, [1, 2], mode)
        took = time.monotonic() - began
        run.let_go.open()
        await call
    assert took < 30, f"{took:.1f} s; the next beat was 100 s away"


class Blocking:
    """Runs rows 1 and 2 at once; row 2 blocks the event loop when row 3 is taken and nobody here knows of it yet."""

    def __init__(self, path: str, ask: Callable[[int], None]) -> None:
        self._path = path
        self._ask = ask
        self._begun: set[int] = set()

    async def __call__(self, keys: Keys, results: ResultProcessor, _: Keys) -> None:
        number = int(results.experiment_id)
        self._begun.add(number)
        if number == 2:
            await self._catch()
        elif number > 2:
            await asyncio.Event().wait()

    async def _catch(self) -> None:
        with closing(sqlite3.connect(self._path)) as look:
            while True:
                [(taken,)] = look.execute("SELECT COUNT(*) FROM experiments WHERE ID = 3 AND status = 'running'")
                if taken:
                    assert 3 not in self._begun, "the claim was answered before it could be seen"
                    self._ask(3)
                    self._wait_for_two_beats(look)
                    return
                await asyncio.sleep(0)

    def _wait_for_two_beats(self, look: sqlite3.Connection) -> None:
        seen: set[str] = set()
        end = time.monotonic() + 20
        while len(seen) < 4 and time.monotonic() < end:
            seen.update(beat for (beat,) in look.execute("SELECT heartbeat FROM experiments_workers"))
            time.sleep(0.005)
        assert len(seen) == 4


@pytest.mark.in_process_only("it blocks the worker's event loop")
@pytest.mark.parametrize("provider", ["sqlite"])
async def test_a_request_that_comes_before_the_worker_knows_of_its_row_is_kept(
    make: Make, target: Target, tmp_path: Path
) -> None:
    execution = {"heartbeat_interval": 0.05, "lease": 30}
    worker = make(keyfields=numbers(3), execution=execution)
    await worker.fill_table_from_config()

    def ask(number: int) -> None:
        async def cancel() -> list[int]:
            async with new_experimenter(tmp_path, target, keyfields=numbers(3), execution=execution) as other:
                return await other.cancel(number)

        assert in_thread(lambda: asyncio.run(cancel())) == [number]

    run = Blocking(target.database, ask)
    summary = await asyncio.wait_for(worker.execute(run, n_jobs=2), 60)
    assert (summary.done, summary.error) == (2, 1)
    [(text,)] = await sql(target, 'SELECT "error" FROM "experiments" WHERE "ID" = 3')
    assert text.startswith("cancelled by ")
