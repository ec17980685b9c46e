"""Many processes on one table, and one `Experimenter` in many processes: pickled, spawned, forked."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
from collections.abc import Callable
from contextlib import AsyncExitStack
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter, ResultProcessor
from asyncexp.db.base import Target
from tests.contract.conftest import Make
from tests.contract.functions import reports_its_process
from tests.contract.modes import Mode
from tests.contract.shared import Shared
from tests.contract.sql import fetch as sql
from tests.contract.support import Keys, audit, child, eventually, numbers
from tests.servers import PASSWORD
from tests.studies import experimenter as new_experimenter


@pytest.mark.parametrize(("kind", "count"), [("task", 6), ("thread", 6), ("process", 2), ("random", 6)])
async def test_several_processes_share_500_rows_and_every_row_runs_exactly_once(
    target: Target, tmp_path: Path, kind: str, count: int
) -> None:
    study: dict[str, Any] = {"keyfields": numbers(500), "n_jobs": 2 if kind == "process" else 8}
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        await experimenter.fill_table_from_config()
    calls = tmp_path / "calls"
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(child("share", tmp_path, target, str(calls), kind, **study))
            for _ in range(count)
        ]
        assert [await worker.told() for worker in workers] == ["ready"] * count
        await asyncio.gather(*(worker.tell() for worker in workers))
        summaries = [await worker.told() for worker in workers]
        assert [await worker.ended() for worker in workers] == [0] * count
    ran = [line.split() for line in calls.read_text().splitlines()]
    assert sorted(int(number) for number, _ in ran) == list(range(1, 501))
    assert sum(summary["done"] for summary in summaries) == 500
    assert len({pid for _, pid in ran}) > 1
    assert await audit(target) == {"done": 500}
    rows = await sql(target, 'SELECT "ID", "text" FROM "experiments" WHERE "result" = 2 * "number"')
    assert sorted(rows) == sorted((int(number), pid) for number, pid in ran)
    lines = await sql(target, 'SELECT "experiment_id", "note" FROM "experiments__steps"')
    assert sorted(lines) == sorted(rows)


# ------------------------------------------------------------------------------------------------ pickle, spawn


def test_no_password_in_pickle_or_repr(target: Target, tmp_path: Path) -> None:
    experimenter = new_experimenter(tmp_path, target)
    asyncio.run(experimenter.fill_table_from_config())
    assert PASSWORD.encode() not in pickle.dumps(experimenter)
    for shown in (repr(experimenter), repr(experimenter.configuration), repr(vars(experimenter))):
        assert PASSWORD not in shown
    asyncio.run(experimenter.aclose())


async def run_one(experimenter: Experimenter) -> None:
    async with experimenter:
        summary = await experimenter.execute(reports_its_process, max_experiments=1)
        assert summary.done == 1


def in_child(experimenter: Experimenter) -> None:
    asyncio.run(run_one(experimenter))


def in_child_from_elsewhere(experimenter: Experimenter) -> None:
    os.chdir("/")
    in_child(experimenter)


@pytest.fixture(scope="module", autouse=True)
def _resource_tracker() -> None:
    """The process that `spawn` leaves for later use is none that a test leaves."""
    resource_tracker.ensure_running()


async def exit_code(method: str, function: Callable[[Experimenter], None], experimenter: Experimenter) -> int | None:
    """Runs the function in a child process, while this process's event loop goes on."""
    process = multiprocessing.get_context(method).Process(target=function, args=(experimenter,))  # type: ignore[attr-defined]
    process.start()
    await asyncio.to_thread(process.join, 60)
    code: int | None = process.exitcode
    process.close()
    return code


async def test_a_pickled_experimenter_works_in_a_spawned_child_while_the_parent_runs(
    make: Make, target: Target, tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experimenter = make(keyfields=numbers(6))
    await experimenter.fill_table_from_config()
    assert await exit_code("spawn", in_child_from_elsewhere, experimenter) == 0
    assert (await experimenter.execute(reports_its_process)).done == 5
    pids = {int(pid) for (pid,) in await sql(target, 'SELECT "text" FROM "experiments"')}
    assert len(pids) == 2 or (mode == "process" and 2 < len(pids) <= 1 + 4)  # each slot has a process of its own
    assert (os.getpid() in pids) == (mode != "process")
    assert await audit(target) == {"done": 6}
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments_workers"') == [(2,)]


# --------------------------------------------------------------------------------------------------------- fork


async def test_a_forked_child_uses_the_experimenter_and_the_parent_goes_on_undisturbed(
    make: Make, target: Target
) -> None:
    experimenter = make(keyfields=numbers(8))
    await experimenter.fill_table_from_config()
    assert (await experimenter.execute(reports_its_process, max_experiments=2)).done == 2
    assert await exit_code("fork", in_child, experimenter) == 0
    assert (await experimenter.execute(reports_its_process)).done == 5
    assert await audit(target) == {"done": 8}
    workers = await experimenter.workers()
    assert sorted(info.ended_done for info in workers if info.state == "stopped") == [1]
    assert [info.pid for info in workers if info.state == "live"] == [os.getpid()]


async def test_a_fork_while_experiments_run_takes_none_of_them_along(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter = make(keyfields=numbers(6), n_jobs=2)
    await experimenter.fill_table_from_config()
    began, go_on = shared.gate(), shared.gate()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        if keys["number"] == 0:
            began.open()
            await go_on.passed()
        await reports_its_process(keys, results, {})

    call = asyncio.create_task(experimenter.execute(run, experiment_ids=[1]))
    await began.passed()
    assert await exit_code("fork", in_child, experimenter) == 0
    go_on.open()
    assert (await call).done == 1
    assert await audit(target) == {"done": 2, "created": 4}


async def test_forks_at_any_moment_of_a_busy_worker(make: Make, target: Target, mode: Mode, shared: Shared) -> None:
    forks = 4 if mode == "process" else 12  # each of which starts processes of its own
    experimenter = make(keyfields=numbers(20))
    await experimenter.fill_table_from_config()
    began = shared.seen()

    async def report(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        began.append(keys["number"])
        while not results.should_stop:
            await results.process_results({"result": keys["number"]})

    call = asyncio.create_task(experimenter.execute(report, n_jobs=4, experiment_ids=[1, 2, 3, 4]))
    await eventually(lambda: len(began) == 4)
    codes = [await exit_code("fork", in_child, experimenter) for _ in range(forks)]
    assert codes == [0] * forks
    await experimenter.stop()
    assert (await call).done == 4
    assert await audit(target) == {"done": 4 + forks, "created": 16 - forks}
