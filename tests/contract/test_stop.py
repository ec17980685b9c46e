"""Stopping: no row stays `running`, what can finish finishes, and the rest runs later as if nothing had been."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import anyio
import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, Summary, SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import ExperimentLostError
from asyncexp.store import workers
from tests.contract.conftest import Make
from tests.contract.functions import Stoppable, short
from tests.contract.modes import Mode
from tests.contract.shared import Shared
from tests.contract.sql import fetch as sql
from tests.contract.support import Child, Keys, audit, child, eventually, numbers, statuses
from tests.studies import experimenter as new_experimenter

Name = Literal["SIGINT", "SIGTERM"]


async def filled(make: Make, count: int, **study: Any) -> Experimenter:
    experimenter = make(keyfields=numbers(count), **study)
    await experimenter.fill_table_from_config()
    return experimenter


def tasks(shared: Shared, end: Callable[[Keys], Any] | None = None) -> Stoppable:
    return Stoppable(shared.seen(), shared.seen(), end)


async def all_began(run: Stoppable, count: int) -> None:
    await eventually(lambda: len(run.began) == count)


async def everything_ran(experimenter: Experimenter, target: Target, count: int) -> None:
    """Each row is done once, with its result and the log lines of that attempt."""
    assert await audit(target) == {"done": count}
    wrong = 'SELECT "ID" FROM "experiments" WHERE "result" IS NULL OR "result" <> 2 * "number"'
    assert await sql(target, wrong) == []
    lines = await experimenter.get_logtable("steps")
    assert (lines.groupby("experiment_id").size() == 2).all()
    assert lines["experiment_id"].nunique() == count
    attempts = await sql(target, 'SELECT "ID", "_attempt" FROM "experiments"')
    assert dict(zip(lines["experiment_id"], lines["step"], strict=True)) == dict(attempts)


# --------------------------------------------------------------------------------------------- cancellation

Way = Callable[[Awaitable[Summary], float], Awaitable[None]]


async def by_task(call: Awaitable[Summary], seconds: float) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or task.result()


async def by_task_twice(call: Awaitable[Summary], seconds: float) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or task.result()


async def by_scope(call: Awaitable[Summary], seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await call


async def by_wait_for(call: Awaitable[Summary], seconds: float) -> None:
    try:
        await asyncio.wait_for(call, seconds)
    except TimeoutError:
        return


WAYS: tuple[Way, ...] = (by_task, by_task_twice, by_scope, by_wait_for)


@pytest.mark.asyncio_only("a blocking call is not cancelled: Ctrl-C is its way")
async def test_300_random_cancellations_leave_no_row_running_and_nothing_is_lost(
    make: Make, target: Target, mode: Mode
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    count = 1_500 if mode == "task" else 100
    experimenter = await filled(make, count)
    for _ in range(300 if mode == "task" else 10):  # children take longer to begin
        jobs = chance.choice((1, 5, 20) if mode == "task" else (1, 2, 3))
        call = experimenter.execute(short, n_jobs=jobs, random_order=chance.random() < 0.3)
        await chance.choice(WAYS)(call, chance.uniform(0, 0.02 if mode == "task" else 0.3))
        counts = await experimenter.counts()
        assert counts["running"] == 0, counts
    await experimenter.execute(short, n_jobs=50 if mode == "task" else 4)
    await everything_ran(experimenter, target, count)


@pytest.mark.asyncio_only("a blocking call is not cancelled: Ctrl-C is its way")
async def test_a_first_call_cancelled_at_any_moment_can_be_made_again(make: Make, target: Target, mode: Mode) -> None:
    count, steps = (3_000, 48) if mode == "task" else (100, 5)
    await filled(make, count)
    seconds = 0.0
    for step in range(steps):
        experimenter = make(keyfields=numbers(count))
        call = experimenter.execute(short, n_jobs=3, max_experiments=count // steps - 2)
        await WAYS[step % len(WAYS)](call, seconds * step * 1.2 / steps)
        assert "running" not in await statuses(target)
        began = time.monotonic()
        assert (await experimenter.execute(short, max_experiments=1)).done == 1
        await experimenter.aclose()
        seconds = seconds or time.monotonic() - began
    last = make(keyfields=numbers(count))
    await last.execute(short, n_jobs=50 if mode == "task" else 4)
    await everything_ran(last, target, count)


@pytest.mark.asyncio_only("a blocking call is not cancelled: Ctrl-C is its way")
async def test_a_call_cancelled_while_its_worker_is_registered_can_be_made_again(
    make: Make, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    registering = asyncio.Event()

    async def register(*arguments: Any) -> None:
        registering.set()
        await workers.register(*arguments)

    monkeypatch.setattr("asyncexp.session.workers", SimpleNamespace(**vars(workers) | {"register": register}))
    experimenter = await filled(make, 3)
    for _ in range(2):  # the second time the database refuses what is there already, and nobody is left to be told
        registering.clear()
        with anyio.CancelScope() as scope:
            cancelling = asyncio.create_task(_cancel_after(registering, scope))
            await experimenter.execute(short)
        assert scope.cancelled_caught
        await cancelling
    assert (await experimenter.execute(short)).done == 3
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments_workers"') == [(1,)]


async def _cancel_after(event: asyncio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


@pytest.mark.asyncio_only("a blocking call is not cancelled: Ctrl-C is its way")
async def test_cancelling_stops_at_once_whatever_the_grace(
    make: Make, target: Target, shared: Shared, mode: Mode
) -> None:
    experimenter = await filled(make, 10)
    run = tasks(shared)
    call = asyncio.create_task(experimenter.execute(run, n_jobs=5, grace=600))
    await all_began(run, 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 60)
    assert len(run.cancelled) == (0 if mode == "process" else 5)
    assert await audit(target) == {"created": 10}
    assert await sql(target, 'SELECT DISTINCT "text", "start_date", "_worker" FROM "experiments"') == [(None,) * 3]
    assert await sql(target, 'SELECT DISTINCT "outcome" FROM "experiments_attempts"') == [("released",)]


@pytest.mark.in_process_only("a thread cannot be ended")
async def test_cancelling_gives_back_the_rows_of_threads_that_live_on(make: Make, target: Target) -> None:
    experimenter = await filled(make, 6)
    began, release, lost = threading.Barrier(4), threading.Event(), threading.Semaphore(0)

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        began.wait(30)
        release.wait(30)
        with pytest.raises(ExperimentLostError):
            results.process_results({"result": 1})
        lost.release()

    call = asyncio.create_task(experimenter.execute(run, n_jobs=3))
    await asyncio.to_thread(began.wait, 30)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 60)
    assert await audit(target) == {"created": 6}
    release.set()
    for _ in range(3):
        assert await asyncio.to_thread(lost.acquire, timeout=30)
    assert await audit(target) == {"created": 6}


async def test_closing_stops_what_runs_and_gives_it_back(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await filled(make, 6)
    run = tasks(shared)
    call = asyncio.create_task(experimenter.execute(run, n_jobs=3))
    await all_began(run, 3)
    await experimenter.aclose()
    assert (await call).released == 3
    assert await audit(target) == {"created": 6}


def test_an_event_loop_that_shuts_down_around_execute_leaves_no_row_running(target: Target, tmp_path: Path) -> None:
    experimenter = new_experimenter(tmp_path, target, keyfields=numbers(300))
    chance = random.Random()

    async def leave(seconds: float) -> None:
        call = asyncio.create_task(experimenter.execute(short, n_jobs=5))
        await asyncio.sleep(seconds)
        assert call.cancelled() or not call.done() or call.result()

    asyncio.run(experimenter.fill_table_from_config())
    for _ in range(10):
        asyncio.run(leave(chance.uniform(0.02, 0.1)))
        assert "running" not in asyncio.run(statuses(target))

    async def finish() -> None:
        async with experimenter:
            await experimenter.execute(short)
            await everything_ran(experimenter, target, 300)

    asyncio.run(finish())


# ------------------------------------------------------------------------------------------- graceful, from within


async def test_stop_lets_tasks_finish_and_claims_no_more(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await filled(make, 20)
    run = tasks(shared, end=lambda _: None)
    call = asyncio.create_task(experimenter.execute(run, n_jobs=4))
    await all_began(run, 4)
    assert len(await experimenter.stop()) == 1
    summary = await call
    assert (summary.done, summary.released, summary.stopped_by) == (4, 0, "stop")
    assert await audit(target) == {"done": 4, "created": 16}


async def test_plain_functions_see_should_stop(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await filled(make, 20)
    began = shared.seen()

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        assert not results.should_stop
        began.append(keys["number"])
        while not results.should_stop:
            time.sleep(0.005)

    call = asyncio.create_task(experimenter.execute(run, n_jobs=3))
    await eventually(lambda: len(began) == 3)
    await experimenter.stop()
    summary = await call
    assert (summary.done, summary.stopped_by) == (3, "stop")
    await audit(target)


async def test_what_returns_created_or_paused_within_grace_keeps_its_results(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter = await filled(make, 8)
    ends = (ExperimentStatus.CREATED, ExperimentStatus.PAUSED)
    run = tasks(shared, end=lambda keys: ends[keys["number"] % 2])
    call = asyncio.create_task(experimenter.execute(run, n_jobs=4))
    await all_began(run, 4)
    await experimenter.stop()
    summary = await call
    assert (summary.released, summary.paused) == (2, 2)
    kept = 'SELECT "status", "_not_before" FROM "experiments" WHERE "text" = \'kept\' ORDER BY "ID"'
    assert await sql(target, kept) == [("created", None), ("paused", None)] * 2
    assert len(await experimenter.get_logtable("steps")) == 4
    again = tasks(shared, end=lambda _: None)
    call = asyncio.create_task(experimenter.execute(again, experiment_ids=[1, 3]))
    await all_began(again, 2)
    await experimenter.stop()
    assert (await call).done == 2
    assert sorted((await experimenter.get_logtable("steps", {"experiment_id": 1}))["step"]) == [1, 2]


async def test_after_grace_what_still_runs_is_cancelled_and_goes_back(
    make: Make, target: Target, shared: Shared, mode: Mode
) -> None:
    experimenter = await filled(make, 8)
    run = tasks(shared)
    call = asyncio.create_task(experimenter.execute(run, n_jobs=3, grace=0.2))
    await all_began(run, 3)
    began = time.monotonic()
    await experimenter.stop()
    summary = await call
    assert time.monotonic() - began >= 0.2
    assert (summary.released, summary.done) == (3, 0)
    assert len(run.cancelled) == (0 if mode == "process" else 3)
    assert await audit(target) == {"created": 8}


@pytest.mark.in_process_only("a child is killed and sees no cancellation")
async def test_a_function_that_ends_by_itself_after_the_forced_stop_keeps_its_end(make: Make, target: Target) -> None:
    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await results.process_results({"result": 5})

    began = asyncio.Event()
    experimenter = await filled(make, 1)
    call = asyncio.create_task(experimenter.execute(run, grace=1))
    await began.wait()
    await experimenter.stop()
    assert (await call).done == 1
    assert await sql(target, 'SELECT "status", "result" FROM "experiments"') == [("done", 5.0)]


@pytest.mark.in_process_only("a child is killed and sees no cancellation")
async def test_a_wrong_return_value_after_the_forced_stop_is_still_an_error(
    make: Make, target: Target, shared: Shared
) -> None:
    began = shared.gate()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> int | None:
        began.open()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 5
        return None

    experimenter = await filled(make, 1)
    call = asyncio.create_task(experimenter.execute(run, grace=0.1))
    await began.passed()
    await experimenter.stop()
    assert (await call).error == 1
    [(text,)] = await sql(target, 'SELECT "error" FROM "experiments"')
    assert "returned 5 (int)" in text


async def test_a_stopped_experimenter_runs_again_when_asked(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await filled(make, 20, execution={"heartbeat_interval": 0.1, "lease": 1})
    for _ in range(2):
        run = tasks(shared, end=lambda _: None)
        call = asyncio.create_task(experimenter.execute(run, n_jobs=4))
        await all_began(run, 4)
        await experimenter.stop()
        assert (await call).stopped_by == "stop"
    summary = await experimenter.execute(short)
    assert (summary.done, summary.stopped_by) == (12, None)
    assert await audit(target) == {"done": 20}


# --------------------------------------------------------------------------------------- signals to this process


@asynccontextmanager
async def running(experimenter: Experimenter, run: Stoppable, **keywords: Any) -> AsyncIterator[asyncio.Task[Summary]]:
    call = asyncio.create_task(experimenter.execute(run, n_jobs=2, **keywords))
    await all_began(run, 2)
    yield call
    if not call.done():
        call.cancel()
        await asyncio.wait([call])


@pytest.mark.asyncio_only("the main thread, which gets the signals, is that of the test's event loop")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("handle", [None, True])
async def test_a_signal_stops_gracefully_and_the_handlers_come_back(
    make: Make, name: Name, handle: bool | None, shared: Shared
) -> None:
    number = getattr(signal, name)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    async with running(await filled(make, 6), run := tasks(shared, end=lambda _: None), handle_signals=handle) as call:
        os.kill(os.getpid(), number)
        summary = await asyncio.wait_for(call, 60)
    assert (summary.done, summary.stopped_by) == (2, name)
    assert len(run.cancelled) == 0
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.asyncio_only("the main thread, which gets the signals, is that of the test's event loop")
async def test_two_runs_share_the_handlers_until_the_last_has_ended(make: Make, shared: Shared) -> None:
    before = signal.getsignal(signal.SIGTERM)
    experimenter = await filled(make, 20)
    async with running(experimenter, tasks(shared, end=lambda _: None)) as first:
        assert (await experimenter.execute(short, experiment_ids=[9])).done == 1
        assert signal.getsignal(signal.SIGTERM) != before
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await asyncio.wait_for(first, 60)).stopped_by == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.asyncio_only("the main thread, which gets the signals, is that of the test's event loop")
async def test_signals_are_left_alone_when_told_so_or_when_others_handle_them(make: Make, shared: Shared) -> None:
    experimenter = await filled(make, 8)
    before = signal.getsignal(signal.SIGTERM)
    async with running(experimenter, tasks(shared), handle_signals=False):
        assert signal.getsignal(signal.SIGTERM) == before

    def own(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, own)
    try:
        async with running(experimenter, tasks(shared)):
            assert signal.getsignal(signal.SIGTERM) is own
        async with running(experimenter, tasks(shared), handle_signals=True):
            assert signal.getsignal(signal.SIGTERM) is not own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_signals_are_not_handled_and_cannot_be(target: Target, tmp_path: Path) -> None:
    async def run(handle: bool | None) -> Summary:
        async with new_experimenter(tmp_path, target, keyfields=numbers(3)) as experimenter:
            await experimenter.fill_table_from_config()
            return await experimenter.execute(short, handle_signals=handle, max_experiments=1)

    ended: list[Summary] = []
    failed: list[BaseException] = []

    def work() -> None:
        ended.append(asyncio.run(run(None)))
        try:
            asyncio.run(run(True))
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [summary.done for summary in ended] == [1]
    assert "main thread" in str(failed[0])
    assert asyncio.run(statuses(target)) == {"done": 1, "created": 2}


# ----------------------------------------------------------------------------------------- signals to a real process


@asynccontextmanager
async def worker(target: Target, folder: Path, function: str, jobs: int = 3, **keywords: Any) -> AsyncIterator[Child]:
    """A worker process of which `jobs` of its 12 experiments have begun."""
    study: dict[str, Any] = {"keyfields": numbers(12)}
    experimenter = new_experimenter(folder, target, **study)
    await experimenter.fill_table_from_config()
    await experimenter.aclose()
    arguments = json.dumps({"n_jobs": jobs, "progress": False, "pool": "task"} | keywords)
    async with child("run", folder, target, function, arguments, **study) as process:
        began = [await process.told() for _ in range(jobs)]
        assert sorted(began) == [["began", number] for number in range(1, jobs + 1)]
        yield process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("pool", ["task", "process"])
@pytest.mark.parametrize("function", ["task_listens", "thread_listens"])
async def test_a_signalled_worker_finishes_what_runs_and_exits(
    target: Target, tmp_path: Path, name: Name, function: str, pool: str
) -> None:
    async with worker(target, tmp_path, function, pool=pool) as process:
        process.process.send_signal(getattr(signal, name))
        summary = await process.told()
        assert await process.ended() == 0
    assert (summary["done"], summary["released"], summary["stopped_by"]) == (3, 0, name)
    assert await audit(target) == {"done": 3, "created": 9}
    assert await sql(target, 'SELECT "result" FROM "experiments" WHERE "status" = \'done\' ORDER BY "ID"') == [
        (0.0,),
        (1.0,),
        (2.0,),
    ]
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments_workers" WHERE "stopped" IS NULL') == [(0,)]


async def test_a_signalled_worker_keeps_checkpoints(target: Target, tmp_path: Path) -> None:
    async with worker(target, tmp_path, "task_saves") as process:
        process.process.terminate()
        assert (await process.told())["stopped_by"] == "SIGTERM"
        assert await process.ended() == 0
    kept = 'SELECT "ID", "status", "result" FROM "experiments" WHERE "result" IS NOT NULL ORDER BY "ID"'
    assert await sql(target, kept) == [(1, "created", 0.0), (2, "paused", 1.0), (3, "created", 2.0)]


@pytest.mark.parametrize("pool", ["task", "process"])
@pytest.mark.parametrize("function", ["task_hangs", "thread_hangs"])
async def test_after_grace_a_signalled_worker_gives_rows_back_and_exits(
    target: Target, tmp_path: Path, function: str, pool: str
) -> None:
    async with worker(target, tmp_path, function, grace=0.3, pool=pool) as process:
        process.process.terminate()
        summary = await process.told()
        assert await process.ended() == 0
    assert (summary["released"], summary["done"]) == (3, 0)
    assert await audit(target) == {"created": 12}


@pytest.mark.parametrize("pool", ["task", "process"])
@pytest.mark.parametrize("function", ["task_hangs", "thread_hangs"])
async def test_a_second_signal_skips_the_grace(target: Target, tmp_path: Path, function: str, pool: str) -> None:
    async with worker(target, tmp_path, function, grace=600, pool=pool) as process:
        process.process.send_signal(signal.SIGINT)
        process.process.send_signal(signal.SIGTERM)
        summary = await asyncio.wait_for(process.told(), 60)
        assert await process.ended() == 0
    assert (summary["released"], summary["done"]) == (3, 0)
    assert await audit(target) == {"created": 12}
