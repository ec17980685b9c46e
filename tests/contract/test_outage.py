"""When the database does not answer: nothing is lost, nothing doubled, and what became of a lost answer is looked up.

The limits after which an answer counts as lost are shortened here; all else is as in earnest.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncexp import ResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseConnectionError
from tests.contract.conftest import Make
from tests.contract.sql import fetch as sql
from tests.contract.support import Keys, audit, eventually, numbers, statuses
from tests.proxy import Proxy
from tests.servers import Server
from tests.studies import experimenter as new_experimenter

servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
SLOW_BEAT = {"heartbeat_interval": 50, "lease": 200, "grace": 30}


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.5)
    monkeypatch.setattr("asyncexp.provenance.git", dict)  # or else what git says passes the proxy at any time


class Steps:
    """An experiment function that calls `before_results` and `before_end`, and notes how often each row ran."""

    def __init__(self) -> None:
        self.ran: Counter[int] = Counter()
        self.began = asyncio.Event()

    async def before_results(self, number: int) -> None: ...

    async def before_end(self, number: int) -> None: ...

    async def __call__(self, keys: Keys, results: ResultProcessor, _: Keys) -> None:
        number = keys["number"]
        self.ran[number] += 1
        self.began.set()
        await self.before_results(number)
        await results.process_logs({"steps": {"step": number}})
        await results.process_results({"result": number * 2})
        await self.before_end(number)


async def everything_ran_once(target: Target, steps: Steps, count: int) -> None:
    assert await audit(target) == {"done": count}
    assert steps.ran == Counter(range(count))
    assert await sql(target, 'SELECT COUNT(*) FROM "experiments" WHERE "result" = 2 * "number"') == [(count,)]
    lines = await sql(target, 'SELECT "experiment_id", "step" FROM "experiments__steps" ORDER BY "experiment_id"')
    assert lines == [(number + 1, number) for number in range(count)]


async def settled_in(target: Target) -> None:
    """Returns when the worker's first sign of life is over: what passes the proxy now is of its experiments."""

    async def beat() -> bool:
        # The row was written with two readings of the clock; the first beat comes from a connection made later.
        [(started, heartbeat)] = await sql(target, 'SELECT "started", "heartbeat" FROM "experiments_workers"')
        return bool(heartbeat - started > timedelta(milliseconds=1))

    await eventually(beat)


# ------------------------------------------------------------------------------------------------ lost answers


class Swallowed(Steps):
    """The answer to the first row's end, and to the claim that goes with it, never comes."""

    def __init__(self, proxy: Proxy, ready: Callable[[], Any]) -> None:
        super().__init__()
        self._proxy = proxy
        self._ready = ready

    async def before_end(self, number: int) -> None:
        if number == 0:
            await self._ready()
            self._proxy.swallow_after(b"COMMIT")


@servers_only
async def test_a_claim_whose_answer_never_comes_leaves_no_row_running(
    target: Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(target) as proxy:
        experimenter = new_experimenter(tmp_path, proxy.target, keyfields=numbers(5), execution=SLOW_BEAT)
        async with experimenter:
            await experimenter.fill_table_from_config()
            steps = Swallowed(proxy, lambda: settled_in(target))
            call = asyncio.create_task(experimenter.execute(steps, n_jobs=1))

            try:
                await eventually(proxy.fired.is_set)
                assert await statuses(target) == {"done": 1, "running": 1, "created": 3}
                assert sum(steps.ran.values()) == 1
                await eventually(said(caplog, "The database is away"))
            finally:
                proxy.resume()
            assert (await call).done == 5
    await everything_ran_once(target, steps, 5)
    given_back = await sql(target, 'SELECT "experiment_id", "outcome" FROM "experiments_attempts"')
    assert given_back == [(2, "released")]


class Cut(Steps):
    """Connections are cut when the server has committed and before it can say so."""

    def __init__(self, proxy: Proxy, ready: Callable[[], Any]) -> None:
        super().__init__()
        self._proxy = proxy
        self._ready = ready

    async def before_results(self, number: int) -> None:
        if number == 0:
            await self._ready()
            self._proxy.cut_after(b"COMMIT")

    async def before_end(self, number: int) -> None:
        if number == 0:
            await asyncio.wait_for(self._proxy.fired.wait(), 10)
        if number == 1:
            self._proxy.cut_after(b"COMMIT")


@servers_only
async def test_a_flush_whose_commit_was_not_answered_is_settled_and_not_repeated(
    target: Target, tmp_path: Path
) -> None:
    async with Proxy(target) as proxy:
        experimenter = new_experimenter(tmp_path, proxy.target, keyfields=numbers(3), execution=SLOW_BEAT)
        async with experimenter:
            await experimenter.fill_table_from_config()
            steps = Cut(proxy, lambda: settled_in(target))
            summary = await experimenter.execute(steps, n_jobs=1)
            assert proxy.fired.is_set()
    assert (summary.done, summary.lost) == (3, 0)
    await everything_ran_once(target, steps, 3)


class Tried(Steps):
    """Fails once, and the answer to that end is lost."""

    def __init__(self, proxy: Proxy, ready: Callable[[], Any]) -> None:
        super().__init__()
        self._proxy = proxy
        self._ready = ready

    async def before_end(self, number: int) -> None:
        if self.ran[number] == 1:
            await self._ready()
            self._proxy.cut_after(b"COMMIT")
            raise ValueError("first try")


@servers_only
async def test_a_try_again_whose_commit_was_not_answered_is_counted_once(target: Target, tmp_path: Path) -> None:
    async with Proxy(target) as proxy:
        experimenter = new_experimenter(tmp_path, proxy.target, keyfields=numbers(1), execution=SLOW_BEAT)
        async with experimenter:
            await experimenter.fill_table_from_config()
            steps = Tried(proxy, lambda: settled_in(target))
            summary = await experimenter.execute(steps, retries=1)
    assert (summary.done, summary.retried, summary.error) == (1, 1, 0)
    assert await audit(target) == {"done": 1}
    assert steps.ran == {0: 2}


@servers_only
async def test_cut_connections_in_the_middle_of_a_run(target: Target, tmp_path: Path) -> None:
    steps = Steps()
    async with Proxy(target) as proxy, new_experimenter(tmp_path, proxy.target, keyfields=numbers(120)) as experimenter:
        await experimenter.fill_table_from_config()
        call = asyncio.create_task(experimenter.execute(steps, n_jobs=10))
        await eventually(lambda: len(steps.ran) >= 20)
        proxy.cut()
        await eventually(lambda: len(steps.ran) >= 60)
        proxy.cut()
        assert (await call).done == 120
    await everything_ran_once(target, steps, 120)


# ------------------------------------------------------------------------------------------------ away and back


class Gate(Steps):
    """Its calls wait before they report."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.all_began = asyncio.Event()
        self.go_on = asyncio.Event()
        self._count = count

    async def before_results(self, number: int) -> None:
        if len(self.ran) == self._count:
            self.all_began.set()
        await self.go_on.wait()


def said(caplog: pytest.LogCaptureFixture, words: str) -> Callable[[], bool]:
    return lambda: any(words in record.getMessage() for record in caplog.records)


@servers_only
async def test_results_are_held_while_the_database_is_away_and_written_when_it_is_back(
    make: Make, target: Target, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    experimenter = make(keyfields=numbers(8), execution={"heartbeat_interval": 0.5, "lease": 2})
    await experimenter.fill_table_from_config()
    steps = Gate(4)
    call = asyncio.create_task(experimenter.execute(steps, n_jobs=4))
    await steps.all_began.wait()
    server.stop()
    try:
        steps.go_on.set()
        await eventually(said(caplog, "The database is away"))
        assert not call.done()
    finally:
        server.start()
    assert (await call).done == 8
    assert said(caplog, "The database is back")()
    await everything_ran_once(target, steps, 8)


@servers_only
async def test_a_server_that_crashes_and_comes_back_in_the_middle_of_a_run(
    make: Make, target: Target, server: Server
) -> None:
    experimenter = make(keyfields=numbers(80), execution={"heartbeat_interval": 0.5, "lease": 2})
    await experimenter.fill_table_from_config()
    steps = Steps()
    call = asyncio.create_task(experimenter.execute(steps, n_jobs=5))
    await eventually(lambda: len(steps.ran) > 20)
    server.restart(immediate=True)
    assert (await call).done == 80
    await everything_ran_once(target, steps, 80)


@servers_only
async def test_on_outage_stop_ends_the_run_when_the_database_goes_away(
    make: Make, target: Target, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    execution = {"heartbeat_interval": 0.5, "lease": 2, "on_outage": "stop"}
    experimenter = make(keyfields=numbers(8), execution=execution)
    await experimenter.fill_table_from_config()
    steps = Gate(2)
    call = asyncio.create_task(experimenter.execute(steps, n_jobs=2))
    await steps.all_began.wait()
    server.stop()
    try:
        steps.go_on.set()
        await eventually(said(caplog, "The database is away"))
    finally:
        server.start()
    summary = await call
    assert (summary.done, summary.stopped_by) == (2, "outage")
    assert await audit(target) == {"done": 2, "created": 6}


@servers_only
async def test_execute_waits_for_the_database_at_its_start_and_then_says_that_it_is_away(
    make: Make, target: Target, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (make(keyfields=numbers(3)) for _ in range(2))
    await make(keyfields=numbers(3)).fill_table_from_config()
    server.stop()
    try:
        with pytest.raises(DatabaseConnectionError):
            await first.execute(Steps(), database_wait=0.3)
        caplog.clear()
        steps = Steps()
        call = asyncio.create_task(second.execute(steps, database_wait=60))
        await eventually(said(caplog, "to reach the database"))
    finally:
        server.start()
    assert (await call).done == 3
    await everything_ran_once(target, steps, 3)


@pytest.mark.parametrize("provider", ["sqlite"])
async def test_results_are_held_while_somebody_holds_the_sqlite_file(
    make: Make, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    experimenter = make(keyfields=numbers(8))
    await experimenter.fill_table_from_config()
    steps = Gate(4)
    call = asyncio.create_task(experimenter.execute(steps, n_jobs=4))
    await steps.all_began.wait()
    other = sqlite3.connect(target.database, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        steps.go_on.set()
        await eventually(said(caplog, "The database is away"))
        other.execute("ROLLBACK")
    finally:
        other.close()
    assert (await call).done == 8
    await everything_ran_once(target, steps, 8)


@servers_only
async def test_a_run_that_is_told_to_stop_while_the_database_is_away_ends_in_time(
    make: Make, target: Target, server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncexp.worker.LAST_FLUSH_SECONDS", 0.5)
    monkeypatch.setattr("asyncexp.session.CLOSE_LIMIT_SECONDS", 0.5)
    experimenter = make(keyfields=numbers(8), execution={"heartbeat_interval": 0.2, "lease": 1, "grace": 0.1})
    await experimenter.fill_table_from_config()
    steps = Gate(2)
    call = asyncio.create_task(experimenter.execute(steps, n_jobs=2))
    await steps.all_began.wait()
    server.stop()
    try:
        steps.go_on.set()
        await eventually(said(caplog, "The database is away"))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 10)
        assert said(caplog, "could not be stored")()
        await experimenter.aclose()
    finally:
        server.start()
    assert await statuses(target) == {"running": 2, "created": 6}
