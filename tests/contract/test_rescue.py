"""Workers that die: their rows come back, once, and those who only seemed dead are told.

Real processes, killed and frozen; real servers, stopped. Workers that are to look as if on another machine get another
boot id by SQL. Where hours would pass, the rescuer's own clock is the test's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, Summary, SyncResultProcessor, provenance
from asyncexp.db import connect
from asyncexp.db.base import Target, Transaction
from asyncexp.errors import DatabaseError
from asyncexp.rescue import Rescuer
from asyncexp.schema import render
from asyncexp.store import rescue
from asyncexp.store.rescue import Place
from asyncexp.store.study import Study
from asyncexp.worker import Run
from tests.contract.conftest import Make
from tests.contract.faulty import away
from tests.contract.functions import Held, Ran, never, nothing
from tests.contract.modes import CLASSES, Mode
from tests.contract.shared import Gate, Shared
from tests.contract.sql import execute as change
from tests.contract.sql import fetch as sql
from tests.contract.support import Child, Keys, audit, child, eventually, numbers, statuses
from tests.proxy import Proxy
from tests.servers import in_thread
from tests.studies import experimenter as new_experimenter

INTERVAL, LEASE = 0.25, 1.0
QUICK = {"heartbeat_interval": INTERVAL, "lease": 30, "grace": 5}
"""Whose signs come soon; who is held up for a few seconds is not dead."""
BRIEF = QUICK | {"lease": LEASE}
"""Of whom nobody is to live when the lease is over."""
STUDY: dict[str, Any] = {"keyfields": numbers(6), "execution": QUICK}
SLOW = {"heartbeat_interval": 60, "lease": 300}
"""Whose signs nobody waits for in a test."""

servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
runs_elsewhere = pytest.mark.in_process_only("what is tried runs in a worker program")


async def elsewhere(target: Target) -> None:
    """Moves every worker so far to another machine, as far as anybody can tell."""
    await change(target, 'UPDATE "experiments_workers" SET "boot_id" = \'another\'')


async def overdue(target: Target, pid: int | None = None) -> None:
    """Lets the leases of all workers so far be over, or that of one; they still may give signs."""
    whose = "1 = 1" if pid is None else f'"pid" = {pid}'
    await change(target, f'UPDATE "experiments_workers" SET "lease" = 0 WHERE {whose}')


async def in_time(target: Target) -> None:
    """Takes `overdue` back."""
    await change(target, 'UPDATE "experiments_workers" SET "lease" = 30')


async def freeze(worker: Told | Child, target: Target) -> None:
    """Stops a worker's clock, until SIGCONT, at a moment when it holds no lock of the database."""

    async def frozen_without_a_lock() -> bool:
        worker.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: psutil.Process(worker.process.pid).status() == psutil.STATUS_STOPPED)
        if not await is_locked(target):
            return True
        worker.process.send_signal(signal.SIGCONT)
        return False

    await eventually(frozen_without_a_lock)


async def is_locked(target: Target) -> bool:
    """Whether a transaction under way has written to rows or workers."""
    if target.provider == "sqlite":
        with closing(sqlite3.connect(target.database, timeout=0, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            return False
    for table, number in (("experiments", "ID"), ("experiments_workers", "id")):
        free = await sql(target, f'SELECT "{number}" FROM "{table}" FOR UPDATE SKIP LOCKED')
        if [(len(free),)] != await sql(target, f'SELECT COUNT(*) FROM "{table}"'):
            return True
    return False


async def began(worker: Child, count: int) -> list[int]:
    """The experiments that the worker says it began."""
    return sorted([(await worker.told())[1] for _ in range(count)])


def keywords(**given: Any) -> str:
    return json.dumps(given)


async def lost_attempts(target: Target) -> list[tuple[int, int]]:
    text = 'SELECT "experiment_id", "attempt" FROM "experiments_attempts" WHERE "outcome" = \'lost\' ORDER BY 1, 2'
    return [(int(row[0]), int(row[1])) for row in await sql(target, text)]


async def signs(target: Target) -> dict[int, Any]:
    """The last sign of life of each worker."""
    rows = await sql(target, 'SELECT "id", "heartbeat" FROM "experiments_workers" WHERE "stopped" IS NULL')
    return dict(rows)


async def all_beat(target: Target, times: int = 1) -> None:
    """Returns when every worker that has not stopped has given so many more signs of life."""
    for _ in range(times):
        before = await signs(target)

        async def changed() -> bool:
            now = await signs(target)
            return all(now.get(worker) != sign for worker, sign in before.items())  # noqa: B023

        await eventually(changed)


class Told:
    """What a worker of `workers/hold.py` tells."""

    def __init__(self, worker: Child) -> None:
        self.process = worker.process
        self.lines: list[Any] = []
        self._worker = worker

    async def hear(self, word: str) -> list[Any]:
        """The next line that begins with this word."""
        while True:
            self.lines.append(await self._worker.told())
            if isinstance(self.lines[-1], list) and self.lines[-1][0] == word:
                found: list[Any] = self.lines[-1]
                return found

    async def began(self, count: int) -> list[int]:
        """The IDs of so many experiments that begin."""
        return sorted([(await self.hear("began"))[1] for _ in range(count)])

    async def summary(self) -> dict[str, Any]:
        while not isinstance(told := await self._worker.told(), dict):
            self.lines.append(told)
        return told

    def logged(self, words: str) -> list[str]:
        """What it has logged that has these words."""
        return [line[2] for line in self.lines if line[0] == "log" and words in line[2]]

    async def die(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def holder(
    folder: Path, target: Target, function: str, gate: Gate, *calls: str, **study: Any
) -> AsyncIterator[Told]:
    """A worker of `workers/hold.py`, which makes these calls of `execute`; its study has a file of its own."""
    arguments = (function, str(gate.path), *calls)
    async with child("hold", folder, target, *arguments, **({"name": "holder.yml"} | study)) as worker:
        yield Told(worker)


# ------------------------------------------------------------------------------------------------ death


async def test_a_worker_killed_on_this_machine_gives_its_rows_back_at_once(
    make: Make, target: Target, tmp_path: Path
) -> None:
    study = STUDY | {"execution": {"heartbeat_interval": 60, "lease": 300}}
    other = make(**study)
    await other.fill_table_from_config()
    async with child("run", tmp_path, target, "task_hangs", keywords(n_jobs=2), **study) as worker:
        ids = await began(worker, 2)
        worker.process.kill()
        await worker.process.wait()
        start = time.monotonic()
        summary = await other.execute(nothing)
        took = time.monotonic() - start
    assert took < 60
    assert summary.done == 6
    assert await audit(target) == {"done": 6}
    assert await lost_attempts(target) == [(each, 1) for each in ids]
    assert [each.state for each in await other.workers()] == ["live", "lost"]  # before its lease is over
    assert await sql(target, 'SELECT "ID" FROM "experiments" WHERE "_attempt" = 2 ORDER BY "ID"') == [(n,) for n in ids]


async def test_a_worker_killed_elsewhere_is_waited_for_until_its_lease_and_two_intervals_are_over(
    make: Make, target: Target, tmp_path: Path
) -> None:
    study = STUDY | {"execution": BRIEF}
    other = make(**study)
    await other.fill_table_from_config()
    async with child("run", tmp_path, target, "task_hangs", keywords(n_jobs=2), **study) as worker:
        ids = await began(worker, 2)
        worker.process.kill()
        await worker.process.wait()
        killed = time.monotonic()
        now = connect(target).dialect.now  # when its last sign came, that is
        await change(target, f'UPDATE "experiments_workers" SET "heartbeat" = {now}')
        await elsewhere(target)
        summary = await other.execute(nothing, until="finished")
        took = time.monotonic() - killed
    assert took >= LEASE + 2 * INTERVAL
    assert took < 30
    assert summary.done == 6
    assert await audit(target) == {"done": 6}
    assert await lost_attempts(target) == [(each, 1) for each in ids]


async def test_a_frozen_worker_loses_its_rows_is_told_and_goes_on_with_others(
    make: Make, target: Target, tmp_path: Path
) -> None:
    other = make(**STUDY)
    await other.fill_table_from_config()
    async with child("run", tmp_path, target, "task_listens", keywords(n_jobs=2), **STUDY) as worker:
        ids = await began(worker, 2)
        await freeze(worker, target)
        await overdue(target)
        summary = await other.execute(nothing, until="finished")
        assert summary.done == 6
        await other.reset_experiments(ids=[5, 6])
        await in_time(target)
        worker.process.send_signal(signal.SIGCONT)
        more = await began(worker, 2)
        assert not set(more) & set(ids)
        worker.process.send_signal(signal.SIGTERM)
        told = await worker.told()
    assert (told["lost"], told["done"]) == (2, 2)
    assert await audit(target) == {"done": 6}
    assert await lost_attempts(target) == [(each, 1) for each in ids]


async def test_a_row_that_kills_its_workers_ends_as_error_after_max_attempts(
    make: Make, target: Target, tmp_path: Path
) -> None:
    study = STUDY | {"keyfields": numbers(1), "execution": QUICK | {"max_attempts": 2}}
    other = make(**study)
    await other.fill_table_from_config()
    for attempt in range(3):
        async with child("run", tmp_path, target, "task_hangs", keywords(n_jobs=1), **study) as worker:
            assert await began(worker, 1) == [1], attempt
            worker.process.kill()
            await worker.process.wait()
    ran = Counter[int]()
    summary = await other.execute(nothing)
    assert not ran
    assert (summary.done, summary.error) == (0, 0)
    [(status, attempt, error)] = await sql(target, 'SELECT "status", "_attempt", "error" FROM "experiments"')
    assert (status, attempt) == ("error", 3)
    assert error.splitlines()[-1] == (
        "ExperimentLostError: 3 workers were lost while they ran this experiment (max_attempts=2)"
    )
    assert await lost_attempts(target) == [(1, 1), (1, 2)]
    assert await audit(target) == {"error": 1}
    assert await other.retry_errors() == 1  # what was lost before counts no more
    assert (await other.execute(nothing)).done == 1


# ------------------------------------------------------------------------------------------------ who is dead


class Clock:
    """A rescuer's monotonic clock, and the rescuer; one interval is a second."""

    def __init__(self, study: Study, place: Place | None = None) -> None:
        self.now = 1000.0
        here = provenance.here()
        place = place or Place(provenance.machine(), here["boot_id"], here["pid_namespace"])
        logger = logging.getLogger("asyncexp-tests")
        self._rescuer = Rescuer(1, place, 1.0, lambda: 3, logger, clock=lambda: self.now)
        self._study = study

    async def rescued(self, after_seconds: float = 0.0) -> bool:
        """Whether a look so much later takes back any row."""
        self.now += after_seconds
        return (await self._rescuer.look(self._study)).rescued

    def forget(self) -> None:
        self._rescuer.forget()


@asynccontextmanager
async def dead_worker(
    make: Make, target: Target, tmp_path: Path, shared: Shared, jobs: int = 1
) -> AsyncIterator[Experimenter]:
    """A worker was killed while it ran the first `jobs` rows, long before its lease is over; another one."""
    other = make(keyfields=numbers(max(6, jobs)), execution=SLOW)
    await other.fill_table_from_config()
    study = {"keyfields": numbers(max(6, jobs)), "execution": SLOW}
    async with holder(tmp_path, target, "task_holds", shared.gate(), keywords(n_jobs=jobs), **study) as worker:
        await worker.began(jobs)
        await worker.die()
        yield other


async def study_of(experimenter: Experimenter) -> Study:
    return (await experimenter._session()).study


@runs_elsewhere
@pytest.mark.parametrize("sign", ["heartbeat", "last_flush"])
async def test_a_late_worker_that_gives_either_sign_within_two_intervals_is_not_rescued(
    make: Make, target: Target, tmp_path: Path, shared: Shared, sign: str
) -> None:
    async with dead_worker(make, target, tmp_path, shared) as other:
        await elsewhere(target)
        clock = Clock(await study_of(other))
        assert not await clock.rescued()
        assert not await clock.rescued(10)  # its lease is not over
        await overdue(target)
        assert not await clock.rescued(1)
        assert not await clock.rescued(1.9)
        value = '"last_flush" + 1' if sign == "last_flush" else "'2024-02-29 00:00:00.000000'"
        await change(target, f'UPDATE "experiments_workers" SET "{sign}" = {value}')
        assert not await clock.rescued(0.2)
        assert not await clock.rescued(1.9)
        assert await clock.rescued(0.2)
    assert await lost_attempts(target) == [(1, 1)]


@runs_elsewhere
async def test_a_rescuer_that_did_not_look_on_all_the_time_begins_anew(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    """The database was away, or the rescuer itself was frozen, with all others perhaps."""
    async with dead_worker(make, target, tmp_path, shared) as other:
        await elsewhere(target)
        await overdue(target)
        clock = Clock(await study_of(other))
        assert not await clock.rescued()
        assert not await clock.rescued(1.9)
        clock.forget()
        assert not await clock.rescued(1.9)
        assert not await clock.rescued(1.9)
        assert not await clock.rescued(1000)
        assert not await clock.rescued(1.9)
        assert await clock.rescued(0.2)


PLACE = ("boot_id", "pid_namespace", "machine")


@runs_elsewhere
async def test_a_dead_pid_needs_no_wait_only_where_it_is_known_to_be_of_this_machine(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    columns = ", ".join(f'"{name}"' for name in PLACE)
    async with dead_worker(make, target, tmp_path, shared) as other:
        clock = Clock(await study_of(other))
        [place] = await sql(target, f'SELECT {columns} FROM "experiments_workers"')
        assert all(place)
        for name, right in zip(PLACE, place, strict=True):
            for wrong in ("another", "", *([] if name == "machine" else [None])):  # a machine has a name in the table
                await change(target, f'UPDATE "experiments_workers" SET "{name}" = :it', it=wrong)
                assert not await clock.rescued(), (name, wrong)
            await change(target, f'UPDATE "experiments_workers" SET "{name}" = :it', it=right)
        for nowhere in ("", None):
            change_all = ", ".join(f'"{name}" = :it' for name in PLACE[:2])
            await change(target, f'UPDATE "experiments_workers" SET {change_all}', it=nowhere)
            unknown = Clock(await study_of(other), Place(provenance.machine(), nowhere, nowhere))
            assert not await unknown.rescued(), "nothing is not the same as nothing"
        values = dict(zip(PLACE, place, strict=True))
        change_all = ", ".join(f'"{name}" = :{name}' for name in PLACE)
        await change(target, f'UPDATE "experiments_workers" SET {change_all}', **values)
        assert await clock.rescued()


@runs_elsewhere
async def test_a_process_that_is_dead_and_not_waited_for_is_dead_and_one_that_lives_is_not(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    async with dead_worker(make, target, tmp_path, shared) as other:
        clock = Clock(await study_of(other))
        with subprocess.Popen(["/bin/sleep", "1000"]) as process:  # noqa: ASYNC220  (asyncio would wait for it)
            try:
                await change(target, 'UPDATE "experiments_workers" SET "pid" = :pid', pid=process.pid)
                assert not await clock.rescued()
                process.kill()
                zombie = psutil.Process(process.pid)
                await eventually(lambda: zombie.status() == psutil.STATUS_ZOMBIE)
                assert await clock.rescued()
                assert zombie.status() == psutil.STATUS_ZOMBIE
            finally:
                process.kill()


@runs_elsewhere
@servers_only
@pytest.mark.parametrize("what", ["its row among the workers", "one of its experiments"])
async def test_a_worker_frozen_in_a_transaction_keeps_no_rescuer_waiting(
    make: Make, target: Target, tmp_path: Path, shared: Shared, what: str
) -> None:
    async with dead_worker(make, target, tmp_path, shared, jobs=2) as other:
        clock = Clock(await study_of(other))
        [(worker,)] = await sql(target, 'SELECT "id" FROM "experiments_workers" WHERE "stopped" IS NULL')
        text = f'UPDATE "experiments_workers" SET "git_commit" = NULL WHERE "id" = {worker}'
        if what == "one of its experiments":
            text = 'UPDATE "experiments" SET "_progress" = 0.5 WHERE "ID" = 2'
        async with holding(target, text):
            assert not await asyncio.wait_for(clock.rescued(), 20)
            assert not await lost_attempts(target)
        assert await clock.rescued()
    assert await lost_attempts(target) == [(1, 1), (2, 1)]


@asynccontextmanager
async def holding(target: Target, text: str) -> AsyncIterator[None]:
    """A transaction that has run this statement and goes on."""
    db = connect(target)
    held, go_on = asyncio.Event(), asyncio.Event()

    async def work(tx: Transaction) -> None:
        await tx.execute(render(text, db.dialect.placeholder, db.dialect.quote)[0], ())
        held.set()
        await go_on.wait()

    transaction = asyncio.create_task(db.run(work))
    try:
        await asyncio.wait_for(held.wait(), 10)
        yield
    finally:
        go_on.set()
        await transaction
        await db.close()


@runs_elsewhere
async def test_of_many_rescuers_one_takes_each_row_back_once(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    async with dead_worker(make, target, tmp_path, shared, jobs=20) as other:
        others = [other, *[make(keyfields=numbers(20), execution=SLOW) for _ in range(4)]]
        studies = [await study_of(each) for each in others]
        here = provenance.here()
        place = Place(provenance.machine(), here["boot_id"], here["pid_namespace"])
        found = [await rescue.suspects(each, 1, place) for each in studies]
        took: list[rescue.Rescued] = []
        while not took:  # who finds rows locked by another leaves them for now, perhaps each for the other
            tried = await asyncio.gather(
                *(rescue.rescue(each, suspect, 3) for each, [suspect] in zip(studies, found, strict=True))
            )
            took = [each for each in tried if each is not None]
        assert len(took) == 1
        assert sorted(took[0].back) == list(range(1, 21))
    assert await statuses(target) == {"created": 20}
    assert await lost_attempts(target) == [(number, 1) for number in range(1, 21)]
    await audit(target)


async def test_two_runs_that_begin_at_once_share_the_rows_of_a_dead_worker(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    async with dead_worker(make, target, tmp_path, shared, jobs=6):
        runs = [make(keyfields=numbers(6), execution=SLOW) for _ in range(2)]
        summaries = await asyncio.gather(*(each.execute(nothing, until="finished") for each in runs))
    assert sum(each.done for each in summaries) == 6
    assert await audit(target) == {"done": 6}
    assert await lost_attempts(target) == [(number, 1) for number in range(1, 7)]


# ------------------------------------------------------------------------------------------------ what comes back


async def test_a_lost_attempt_goes_back_where_it_began_with_what_was_there_then(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    """Row 1 continues after `PAUSED`, row 2 after a returned `CREATED`, row 3 began from nothing."""
    study = {"keyfields": numbers(3), "execution": SLOW}
    other = make(**study)
    await other.fill_table_from_config()
    await other.execute(Checkpoint(), experiment_ids=[1, 2])
    await change(target, 'UPDATE "experiments" SET "_not_before" = NULL')
    calls = keywords(n_jobs=1, from_status="paused"), keywords(n_jobs=2)
    async with holder(tmp_path, target, "task_holds", shared.gate(), *calls, **study) as worker:
        assert await worker.began(3) == [1, 2, 3]
        await worker.die()
    assert (await other.execute(never, where={"number": 99})).done == 0
    rows = await sql(target, 'SELECT "status", "result", "text", "_attempt" FROM "experiments" ORDER BY "ID"')
    text = "attempt 2"
    assert rows == [("paused", 0.5, text, 2), ("created", 1.5, text, 2), ("created", None, None, 1)]
    begun = 'SELECT "ID" FROM "experiments" WHERE "start_date" IS NOT NULL ORDER BY "ID"'
    assert await sql(target, begun) == [(1,), (2,)]
    assert await lost_attempts(target) == [(1, 2), (2, 2), (3, 1)]
    shown = await other.get_logtable("steps")
    assert sorted(zip(shown["experiment_id"], shown["step"], strict=True)) == [(1, 10), (2, 10)]
    everything = await other.get_logtable("steps", all_attempts=True)
    assert sorted(zip(everything["experiment_id"], everything["step"], strict=True)) == [
        *[(1, 2), (1, 10), (2, 2), (2, 10), (3, 1)]
    ]
    assert (await other.execute(nothing)).done == 2
    assert (await other.execute(nothing, from_status="paused")).done == 1
    kept = await sql(target, 'SELECT "result" FROM "experiments" ORDER BY "ID"')
    assert kept == [(0.5,), (1.5,), (None,)]
    assert await audit(target) == {"done": 3}


class Checkpoint:
    """Saves, and is to be continued: from `paused` the even numbers, from `created` the odd ones."""

    async def __call__(self, keys: Keys, results: ResultProcessor, _: Keys) -> ExperimentStatus:
        await results.process_logs({"steps": {"step": 10}})
        await results.process_results({"result": keys["number"] + 0.5})
        return ExperimentStatus.CREATED if keys["number"] % 2 else ExperimentStatus.PAUSED


LATE = ("task_is_late", "task"), ("thread_is_late", "task"), ("child_is_late", "process")


@runs_elsewhere
@pytest.mark.parametrize(("function", "pool"), LATE)
async def test_what_a_fenced_worker_still_sends_is_refused_and_its_function_is_ended(
    make: Make, target: Target, tmp_path: Path, shared: Shared, function: str, pool: str
) -> None:
    study = STUDY | {"keyfields": numbers(1)}
    other = make(**study)
    await other.fill_table_from_config()
    run = Held(shared.seen(), shared.gate(), shared.seen())
    gate = shared.gate()
    async with holder(tmp_path, target, function, gate, keywords(n_jobs=1, pool=pool), **study) as worker:
        [_, experiment, pid] = await worker.hear("began")
        await freeze(worker, target)
        await overdue(target)
        call = asyncio.create_task(other.execute(run, until="finished"))
        await eventually(lambda: len(run.began) == 1)
        gate.open()
        worker.process.send_signal(signal.SIGCONT)
        if pool == "process":
            await eventually(lambda: not psutil.pid_exists(pid))
        else:
            await worker.hear("cancelled" if function == "task_is_late" else "refused")
        summary = await worker.summary()
        assert await worker.process.wait() == 0
        assert worker.logged(f"Experiment {experiment} (attempt 1) was taken away from this worker")
    assert (summary["lost"], summary["done"], summary["error"]) == (1, 0, 0)
    run.let_go.open()
    assert (await call).done == 1
    assert await audit(target) == {"done": 1}
    assert await lost_attempts(target) == [(1, 1)]
    assert await sql(target, 'SELECT "result", "_attempt" FROM "experiments"') == [(1.0, 2)]
    assert await sql(target, 'SELECT "step" FROM "experiments__steps"') == []


@runs_elsewhere
@pytest.mark.parametrize("pool", ["task", "process"])
async def test_a_row_that_was_lost_and_put_back_is_taken_again_by_the_call_that_names_it(
    make: Make, target: Target, tmp_path: Path, shared: Shared, pool: str
) -> None:
    other = make(**STUDY)
    await other.fill_table_from_config()
    call = keywords(n_jobs=2, pool=pool, experiment_ids=[2, 5])
    gate = shared.gate()
    async with holder(tmp_path, target, "task_holds", gate, call, **STUDY) as worker:
        assert await worker.began(2) == [2, 5]
        await freeze(worker, target)
        await overdue(target)

        async def back() -> bool:
            await other.execute(never, where={"number": 99})
            return await statuses(target) == {"created": 6}

        await eventually(back)
        await in_time(target)
        worker.process.send_signal(signal.SIGCONT)
        assert await worker.began(2) == [2, 5]
        gate.open()
        summary = await worker.summary()
    assert (summary["lost"], summary["done"]) == (2, 2)
    assert await audit(target) == {"created": 4, "done": 2}
    assert await lost_attempts(target) == [(2, 1), (5, 1)]


# ------------------------------------------------------------------------------------------------ away and back


@servers_only
@pytest.mark.asyncio_only("needs a proxy")
async def test_a_worker_whose_link_is_gone_for_three_leases_gives_up_only_what_it_lost(
    make: Make, target: Target, tmp_path: Path, shared: Shared, mode: Mode
) -> None:
    """Nobody took its rows but one, which somebody reset."""
    run = Held(shared.seen(), shared.gate(), shared.seen())
    study: dict[str, Any] = {"keyfields": numbers(3), "execution": BRIEF}
    other = make(**study, name="other.yml")
    await other.fill_table_from_config()
    proxy = Proxy(target)
    async with proxy, new_experimenter(tmp_path, proxy.target, CLASSES[mode], **study) as worker:
        call = asyncio.create_task(worker.execute(run, n_jobs=3))
        await eventually(lambda: len(run.began) == 3)
        proxy.stall()
        proxy.cut()
        await asyncio.sleep(3 * LEASE)
        assert await other.reset_experiments("running", ids=[2]) == 1
        assert not call.done()
        proxy.resume()
        await eventually(lambda: sorted(run.began) == [1, 2, 3, 4])  # the row made anew
        assert run.cancelled == ([] if mode == "process" else [2])
        assert (await other.execute(never)).done == 0  # looks, too
        run.let_go.open()
        summary = await call
    assert (summary.done, summary.lost) == (3, 1)
    assert await audit(target) == {"done": 3}
    assert await sql(target, 'SELECT "ID", "_attempt" FROM "experiments" ORDER BY "ID"') == [(1, 1), (3, 1), (4, 1)]
    assert await lost_attempts(target) == []


INTERVALS = (0.4, 1.0, 2.5)
"""Who is held up for one just when the database is back is taken for dead, and rightly: then a longer one is tried."""


@runs_elsewhere
async def test_when_the_database_was_away_for_all_for_three_leases_nobody_is_rescued(
    make: Make, target: Target, tmp_path: Path, shared: Shared, request: pytest.FixtureRequest
) -> None:
    for interval in INTERVALS:
        study = STUDY | {"execution": {"heartbeat_interval": interval, "lease": 4 * interval, "grace": 5}}
        other = make(**study)
        await other.fill_table_from_config()
        await other.reset_experiments("all")
        summaries = await work_through_an_outage(other, study, target, tmp_path, shared.gate(), request)
        await other.aclose()
        if not await lost_attempts(target):
            break
    assert [(each["done"], each["lost"]) for each in summaries] == [(2, 0)] * 3
    assert await audit(target) == {"done": 6}
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments_attempts"') == [(0,)]


async def work_through_an_outage(
    other: Experimenter,
    study: dict[str, Any],
    target: Target,
    folder: Path,
    gate: Gate,
    request: pytest.FixtureRequest,
) -> list[dict[str, Any]]:
    """Summaries of three workers that ran two experiments each while the database was away; the other one watched."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                holder(folder, target, "task_holds", gate, keywords(n_jobs=2, until="finished"), **study)
            )
            for _ in range(3)
        ]
        for worker in workers:
            await worker.began(2)
        watching = asyncio.create_task(other.execute(never, until="finished"))
        await all_beat(target)
        with away(target, request):
            await asyncio.sleep(3 * study["execution"]["lease"])
        await all_beat(target, times=4)
        gate.open()
        summaries = [await worker.summary() for worker in workers]
        await watching
    return summaries


# ------------------------------------------------------------------------------------------------ until="finished"


CHOICES: dict[str, dict[str, Any]] = {
    "where": {"where": {"number": [1, 3]}},
    "experiment_ids": {"experiment_ids": [2, 4]},
    "paused": {"where": {"number": [1, 3]}, "from_status": "paused"},
}


@runs_elsewhere
@pytest.mark.parametrize("chosen", CHOICES)
async def test_until_finished_takes_over_what_it_asked_for_of_a_worker_that_dies(
    make: Make, target: Target, tmp_path: Path, shared: Shared, chosen: str
) -> None:
    """The worker runs rows 1 and 2; the other one wants 2 and 4."""
    other = make(**STUDY)
    await other.fill_table_from_config()
    asked = CHOICES[chosen]
    status = asked.get("from_status", "created")
    await change(target, f'UPDATE "experiments" SET "status" = \'{status}\'')
    call = keywords(n_jobs=2, experiment_ids=[1, 2], from_status=status)
    ran = Ran(shared.seen())
    async with holder(tmp_path, target, "task_holds", shared.gate(), call, **STUDY) as worker:
        assert await worker.began(2) == [1, 2]
        waiting = asyncio.create_task(other.execute(ran, until="finished", poll_interval=0.1, **asked))
        await eventually(lambda: ran.ids == [4])
        await all_beat(target, times=3)
        assert not waiting.done()
        await worker.die()
        summary = await asyncio.wait_for(waiting, 30)
    assert ran.ids == [4, 2]
    assert (summary.done, summary.lost) == (2, 0)
    assert await statuses(target) == {"done": 2, status: 4}
    assert await lost_attempts(target) == [(1, 1), (2, 1)]


@pytest.mark.in_process_only("a run waits, and runs next to nothing")
async def test_until_finished_returns_when_the_last_row_elsewhere_has_ended(
    make: Make, target: Target, shared: Shared
) -> None:
    worker, other = make(**STUDY), make(**STUDY)
    await worker.fill_table_from_config()
    run, running = await begun(worker, shared, 2, n_jobs=2, max_experiments=2)
    waiting = asyncio.create_task(other.execute(nothing, until="finished", poll_interval=0.2))
    await eventually(in_status(target, {"running": 2, "done": 4}))
    await all_beat(target, times=3)
    assert not waiting.done()
    run.let_go.open()
    await running
    summary = await asyncio.wait_for(waiting, 30)
    assert (summary.done, summary.left) == (4, 0)
    assert await audit(target) == {"done": 6}


async def begun(
    worker: Experimenter, shared: Shared, count: int, **keywords: Any
) -> tuple[Held, asyncio.Task[Summary]]:
    """A call under way of which so many experiments have begun, and are held."""
    run = Held(shared.seen(), shared.gate(), shared.seen())
    call = asyncio.create_task(worker.execute(run, **keywords))
    await eventually(lambda: len(run.began) == count)
    return run, call


def in_status(target: Target, wanted: dict[str, int]) -> Callable[[], Awaitable[bool]]:
    async def hold() -> bool:
        return await statuses(target) == wanted

    return hold


@pytest.mark.in_process_only("a run waits, and runs next to nothing")
async def test_waiting_for_others_ends_when_told_to_stop(make: Make, target: Target, shared: Shared) -> None:
    worker, other = make(**STUDY), make(**STUDY)
    await worker.fill_table_from_config()
    run, running = await begun(worker, shared, 1, n_jobs=1, max_experiments=1)
    waiting = asyncio.create_task(other.execute(nothing, until="finished", poll_interval=60))
    await eventually(in_status(target, {"running": 1, "done": 5}))
    await other.stop()
    summary = await asyncio.wait_for(waiting, 30)
    assert (summary.done, summary.stopped_by) == (5, "stop")
    run.let_go.open()
    assert (await running).done == 1


@runs_elsewhere
async def test_waiting_for_others_ends_with_a_signal(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    worker = make(**STUDY)
    await worker.fill_table_from_config()
    run, running = await begun(worker, shared, 1, n_jobs=1, max_experiments=1)
    gate = shared.gate()
    gate.open()
    call = keywords(until="finished", poll_interval=60)
    async with holder(tmp_path, target, "task_holds", gate, call, **STUDY) as waiting:
        await eventually(in_status(target, {"running": 1, "done": 5}))
        waiting.process.send_signal(signal.SIGTERM)
        summary = await asyncio.wait_for(waiting.summary(), 30)
    assert (summary["done"], summary["stopped_by"]) == (5, "SIGTERM")
    run.let_go.open()
    assert (await running).done == 1


@pytest.mark.in_process_only("a run waits, and runs next to nothing")
@pytest.mark.parametrize("provider", ["postgresql"])
async def test_until_finished_is_woken_on_postgresql_when_rows_come_back(
    make: Make, target: Target, shared: Shared
) -> None:
    worker, other = make(**STUDY), make(**STUDY)
    await worker.fill_table_from_config()
    _, running = await begun(worker, shared, 1, n_jobs=1, max_experiments=1)
    waiting = asyncio.create_task(other.execute(nothing, until="finished", poll_interval=60))
    await eventually(in_status(target, {"running": 1, "done": 5}))
    running.cancel()
    await asyncio.wait([running])
    summary = await asyncio.wait_for(waiting, 30)
    assert summary.done == 6
    assert await audit(target) == {"done": 6}


# ------------------------------------------------------------------------------------------------ until="empty"


@runs_elsewhere
async def test_until_empty_waits_for_a_late_worker_only_if_that_has_rows_of_its_selection(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    """Rows 1 and 2 are of the late worker, row 3 of one that lives, and the rescuer takes two minutes to be sure."""
    study = STUDY | {"execution": SLOW}
    other, patient = make(**study), make(**study)
    await other.fill_table_from_config()
    run, living = await begun(other, shared, 1, experiment_ids=[3])
    call = keywords(n_jobs=2, experiment_ids=[1, 2])
    async with holder(tmp_path, target, "task_holds", shared.gate(), call, **study) as worker:
        await worker.began(2)
        await worker.die()
        await elsewhere(target)
        await overdue(target, worker.process.pid)
        call_of_its_own = patient.execute(nothing, experiment_ids=[3, 4])
        assert (await asyncio.wait_for(call_of_its_own, 30)).done == 1
        waiting = asyncio.create_task(patient.execute(nothing, experiment_ids=[2, 5]))
        await eventually(in_status(target, {"running": 3, "done": 2, "created": 1}))
        await asyncio.sleep(1)
        assert not waiting.done()
        await patient.stop()
        assert (await asyncio.wait_for(waiting, 30)).done == 1
    run.let_go.open()
    assert (await living).done == 1


@runs_elsewhere
async def test_until_empty_runs_what_somebody_else_took_back_while_it_waited(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    study = STUDY | {"execution": {"heartbeat_interval": 2, "lease": 60}}  # so it needs four seconds to be sure itself
    slow, quick = make(**study), make(**STUDY, name="quick.yml")
    await slow.fill_table_from_config()
    call = keywords(n_jobs=2, experiment_ids=[1, 2])
    async with holder(tmp_path, target, "task_holds", shared.gate(), call, **study) as worker:
        await worker.began(2)
        await worker.die()
        await elsewhere(target)
        await overdue(target)
        waiting = asyncio.create_task(slow.execute(nothing, experiment_ids=[2, 5]))
        await eventually(in_status(target, {"running": 2, "done": 1, "created": 3}))
        found = await rescue.suspects(await study_of(quick), 1, Place(None, None, None))
        [dead] = [each for each in found if each.pid == worker.process.pid]
        assert await rescue.rescue(await study_of(quick), dead, 3)
        assert (await asyncio.wait_for(waiting, 30)).done == 2
    assert await audit(target) == {"done": 2, "created": 4}


@pytest.mark.in_process_only("reaches into a run")
@pytest.mark.parametrize("provider", ["sqlite"])
async def test_a_wake_up_that_comes_while_a_claim_is_under_way_is_not_lost(
    make: Make, target: Target, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row comes back, and that is told, when a claim has just found none."""
    experimenter = make(**STUDY)
    await experimenter.fill_table_from_config()
    await change(target, 'UPDATE "experiments" SET "status" = \'paused\'')
    run, running = await begun(experimenter, shared, 1, from_status="paused", experiment_ids=[1])
    take_answer = Run._take_answer

    def with_a_wake_up(run: Run, *answer: Any) -> None:
        with closing(sqlite3.connect(target.database, isolation_level=None)) as db:
            db.execute('UPDATE "experiments" SET "status" = \'created\' WHERE "ID" = 2')
        run.woken()
        monkeypatch.setattr(Run, "_take_answer", take_answer)
        take_answer(run, *answer)

    monkeypatch.setattr(Run, "_take_answer", with_a_wake_up)
    call = experimenter.execute(nothing, until="finished", poll_interval=60)
    waiting = asyncio.create_task(call)
    await eventually(in_status(target, {"running": 1, "done": 1, "paused": 4}))
    await experimenter.stop()
    assert (await waiting).done == 1
    run.let_go.open()
    assert (await running).done == 1


# ------------------------------------------------------------------------------------------------ a blocked loop

SHORT = {"heartbeat_interval": 0.15, "lease": 3, "grace": 5}
RESCUED_SECONDS = 3 + 2 * 0.15 + 0.5
"""Who has given no sign for so long has lost his rows."""


@runs_elsewhere
async def test_a_worker_whose_loop_is_blocked_for_five_leases_is_not_rescued_and_says_what_blocks_it(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    study = {"keyfields": numbers(4), "execution": SHORT | {"lease": 1.5}}
    other = make(**study)
    await other.fill_table_from_config()
    gate = shared.gate()
    async with holder(tmp_path, target, "task_blocks", gate, keywords(n_jobs=1), **study) as worker:
        assert await worker.began(1) == [1]
        waiting = asyncio.create_task(other.execute(nothing, until="finished", poll_interval=0.1))
        await asyncio.sleep(5 * 1.5)
        await all_beat(target)
        assert await statuses(target) == {"running": 1, "done": 3}
        gate.open()
        summary = await worker.summary()
        await waiting
    assert (summary["done"], summary["lost"]) == (1, 0)
    assert await audit(target) == {"done": 4}
    assert await lost_attempts(target) == []
    seconds = re.compile(r"blocked for (\d+) s by task_blocks\(\) \(.*hold\.py:\d+\)")
    said = [int(found[1]) for line in worker.logged("event loop") if (found := seconds.search(line))]
    assert max(said) >= 5


@runs_elsewhere
async def test_a_stall_timeout_ends_what_blocks_the_loop_while_it_does_and_the_worker_goes_on(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    """It waits for the other's row then, with signs of life, and runs its own again when that is put back."""
    study = {"keyfields": numbers(2), "execution": SHORT}
    other = make(**study)
    await other.fill_table_from_config()
    run, running = await begun(other, shared, 1, experiment_ids=[2])
    gate = shared.gate()
    call = keywords(n_jobs=1, stall_timeout=1.5, until="finished")
    async with holder(tmp_path, target, "task_blocks", gate, call, **study) as worker:
        assert await worker.began(1) == [1]
        await eventually(in_status(target, {"error": 1, "running": 1}))
        [(result, error)] = await sql(target, 'SELECT "result", "error" FROM "experiments" WHERE "ID" = 1')
        assert not gate.is_open
        gate.open()
        await all_beat(target)
        await other.retry_errors()
        await eventually(in_status(target, {"done": 1, "running": 1}))
        run.let_go.open()
        summary = await worker.summary()
        await running
    assert (summary["error"], summary["done"], summary["lost"]) == (1, 1, 0)
    assert "the event loop was blocked by task_blocks" in summary["errors"][0]
    assert result is None
    assert "stall_timeout of 1.5 s" in error
    assert "the event loop was blocked by task_blocks()" in error
    assert await statuses(target) == {"done": 2}
    assert await lost_attempts(target) == []


@runs_elsewhere
async def test_a_stall_timeout_of_one_call_does_not_cost_the_rows_of_another(
    make: Make, target: Target, tmp_path: Path, shared: Shared
) -> None:
    """Two calls on one loop, which the first one blocks; the second has no `stall_timeout`."""
    study = {"keyfields": numbers(2), "execution": SHORT}
    other = make(**study)
    await other.fill_table_from_config()
    gate = shared.gate()
    calls = keywords(experiment_ids=[1], stall_timeout=1.5), keywords(experiment_ids=[2])
    async with holder(tmp_path, target, "task_blocks_when_told", gate, *calls, **study) as worker:
        assert await worker.began(2) == [1, 2]
        waiting = asyncio.create_task(other.execute(never, until="finished", poll_interval=0.1))
        Gate(gate.path.with_suffix(".block")).open()
        await eventually(in_status(target, {"error": 1, "running": 1}))
        await asyncio.sleep(RESCUED_SECONDS)
        assert await statuses(target) == {"error": 1, "running": 1}
        gate.open()
        summaries = [await worker.summary(), await worker.summary()]
        await waiting
    assert [(each["error"], each["done"], each["lost"]) for each in summaries] == [(1, 0, 0), (0, 1, 0)]
    assert await audit(target) == {"error": 1, "done": 1}


# ------------------------------------------------------------------------------------------------ closed too early


@pytest.mark.asyncio_only("closes while a call runs")
async def test_a_worker_closed_while_its_database_is_away_leaves_nothing_running(
    make: Make, target: Target, shared: Shared, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it could not give back goes back when the database is there again, or when its lease is over."""
    monkeypatch.setattr("asyncexp.worker.LAST_FLUSH_SECONDS", 0.5)
    monkeypatch.setattr("asyncexp.session.CLOSE_LIMIT_SECONDS", 0.5)
    monkeypatch.setattr("asyncexp.lease.CLOSE_LIMIT_SECONDS", 0.5)
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.5)
    monkeypatch.setattr("asyncexp.db.sqlite.BUSY_SECONDS", 1.0)
    study = {"keyfields": numbers(4), "execution": BRIEF | {"grace": 0.2}}
    worker, other = make(**study), make(**study)
    await worker.fill_table_from_config()
    _, call = await begun(worker, shared, 2, n_jobs=2)
    with away(target, request):
        await asyncio.wait_for(worker.aclose(), 40)
        await asyncio.wait_for(asyncio.wait([call]), 30)
        assert isinstance(call.exception(), DatabaseError) or call.result().done == 0
    await eventually(lambda: not [thread for thread in threading.enumerate() if "asyncexp" in thread.name])
    assert (await other.execute(nothing, until="finished")).done == 4
    assert await audit(target) == {"done": 4}
    attempts = 'SELECT "experiment_id", "attempt" FROM "experiments_attempts" ORDER BY 1'
    assert await sql(target, attempts) == [(1, 1), (2, 1)]


@pytest.mark.asyncio_only("event loops of its own")
def test_an_event_loop_that_ends_in_the_middle_of_a_run_leaves_nothing_running(
    target: Target, tmp_path: Path, shared: Shared, mode: Mode
) -> None:
    """`asyncio.run` twice; it cancels what still runs, and nobody awaits that."""
    experimenter = new_experimenter(tmp_path, target, CLASSES[mode], **STUDY)
    run = Held(shared.seen(), shared.gate(), shared.seen())

    async def leave() -> None:
        await experimenter.fill_table_from_config()
        running.append(asyncio.create_task(experimenter.execute(run, n_jobs=2)))
        await eventually(lambda: len(run.began) == 2)

    running: list[asyncio.Task[Summary]] = []
    asyncio.run(leave())
    assert running.pop().cancelled()
    everything_ran_after(experimenter, target)


@pytest.mark.asyncio_only("nobody else can close the loop of a blocking call")
def test_an_event_loop_closed_in_the_middle_of_a_run_leaves_nothing_running(
    target: Target, tmp_path: Path, shared: Shared, mode: Mode
) -> None:
    """Nothing was cancelled or awaited: the next call gives the rows back."""
    experimenter = new_experimenter(tmp_path, target, CLASSES[mode], **STUDY)
    run = Held(shared.seen(), shared.gate(), shared.seen())

    def leave() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(experimenter.fill_table_from_config())
        call = loop.create_task(experimenter.execute(run, n_jobs=2))
        loop.run_until_complete(eventually(lambda: len(run.began) == 2))
        loop.close()
        assert not call.done()

    in_thread(leave)
    everything_ran_after(experimenter, target)


@pytest.mark.parametrize("provider", ["sqlite"])
@pytest.mark.in_process_only("threads of this process")
def test_threads_of_an_event_loop_that_was_closed_end(
    target: Target, tmp_path: Path, shared: Shared, mode: Mode
) -> None:
    """An idle one at the next call, one inside a function when that ends."""
    experimenter = new_experimenter(tmp_path, target, CLASSES[mode], keyfields=numbers(6), execution=QUICK)
    began, gate, idle = shared.seen(), shared.gate(), shared.gate()

    def run(keys: Keys, results: SyncResultProcessor, custom: Keys) -> None:
        began.append(keys["number"])
        (gate if keys["number"] == 0 else idle).wait()

    async def one_is_idle() -> None:
        call = asyncio.create_task(experimenter.execute(run, n_jobs=2, experiment_ids=[1, 2]))
        await eventually(lambda: len(began) == 2)
        idle.open()
        await eventually(one_is_done)
        assert not call.done()

    async def one_is_done() -> bool:
        return "done" in await statuses(target)

    async def next_call() -> None:
        async with experimenter:
            assert (await experimenter.counts())["created"] == 5

    def leave() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(experimenter.fill_table_from_config())
        loop.run_until_complete(one_is_idle())
        loop.close()

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if re.fullmatch(r"asyncexp-\d+", thread.name)]

    in_thread(leave)
    assert len(threads()) == 2
    asyncio.run(next_call())
    asyncio.run(eventually(lambda: len(threads()) == 1))
    gate.open()
    asyncio.run(eventually(lambda: not threads()))


def everything_ran_after(experimenter: Experimenter, target: Target) -> None:
    async def again() -> int:
        async with experimenter:
            summary = await experimenter.execute(nothing, until="finished")
            assert [each.state for each in await experimenter.workers()] == ["live", "stopped"]
            return summary.done

    assert asyncio.run(again()) == 6
    assert asyncio.run(audit(target)) == {"done": 6}
    attempts = 'SELECT "experiment_id", "attempt", "outcome" FROM "experiments_attempts" ORDER BY 1'
    assert asyncio.run(sql(target, attempts)) == [(1, 1, "released"), (2, 1, "released")]
