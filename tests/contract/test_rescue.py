"""Workers that die: their rows come back, once, and those who only seemed dead are told.

Real processes, killed and frozen. Those that are to look as if on another machine get another boot id by SQL.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from asyncexp.db.base import Target
from tests.contract.conftest import Make
from tests.contract.functions import nothing
from tests.contract.sql import execute as change
from tests.contract.sql import fetch as sql
from tests.contract.support import Child, audit, child, numbers

QUICK = {"heartbeat_interval": 0.25, "lease": 1, "grace": 5}
INTERVAL, LEASE = 0.25, 1.0
STUDY: dict[str, Any] = {"keyfields": numbers(6), "execution": QUICK}


async def elsewhere(target: Target) -> None:
    """Moves every worker so far to another machine, as far as anybody can tell."""
    await change(target, 'UPDATE "experiments_workers" SET "boot_id" = \'another\'')


async def began(worker: Child, count: int) -> list[int]:
    """The experiments that the worker says it began."""
    return sorted([(await worker.told())[1] for _ in range(count)])


def keywords(**given: Any) -> str:
    return json.dumps(given)


async def lost_attempts(target: Target) -> list[tuple[int, int]]:
    text = 'SELECT "experiment_id", "attempt" FROM "experiments_attempts" WHERE "outcome" = \'lost\' ORDER BY 1, 2'
    return [(int(row[0]), int(row[1])) for row in await sql(target, text)]


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
    assert took < 10
    assert summary.done == 6
    assert await audit(target) == {"done": 6}
    assert await lost_attempts(target) == [(each, 1) for each in ids]
    assert await sql(target, 'SELECT "ID" FROM "experiments" WHERE "_attempt" = 2 ORDER BY "ID"') == [(n,) for n in ids]


async def test_a_worker_killed_elsewhere_is_waited_for_until_its_lease_and_two_intervals_are_over(
    make: Make, target: Target, tmp_path: Path
) -> None:
    other = make(**STUDY)
    await other.fill_table_from_config()
    async with child("run", tmp_path, target, "task_hangs", keywords(n_jobs=2), **STUDY) as worker:
        ids = await began(worker, 2)
        worker.process.kill()
        await worker.process.wait()
        killed = time.monotonic()
        await elsewhere(target)
        summary = await other.execute(nothing, until="finished")
        took = time.monotonic() - killed
    assert took >= LEASE - INTERVAL + 2 * INTERVAL
    assert took < 15
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
        worker.process.send_signal(signal.SIGSTOP)
        summary = await other.execute(nothing, until="finished")
        assert summary.done == 6
        await other.reset_experiments(ids=[5, 6])
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
