"""When the database does not answer: nothing is lost, nothing doubled, and what became of a lost answer is looked up.

The limits after which an answer counts as lost are shortened here; all else is as in earnest.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncexp import ResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseConnectionError
from tests.contract.conftest import Make
from tests.contract.functions import nothing
from tests.contract.modes import CLASSES, Mode
from tests.contract.shared import Gate, Seen, Shared
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


Function = Callable[[Keys, ResultProcessor, Keys], Awaitable[None]]
Holds = Mapping[int, tuple[Gate, Gate]]
"""Number of a row -> the gate that its function opens when it has come so far, and the one that it waits for."""


def steps(ran: Seen, *, before_results: Holds | None = None, before_end: Holds | None = None) -> Function:
    """An experiment function that notes which rows it ran, and lets itself be held up."""

    async def hold(holds: Holds | None, number: int) -> None:
        if holds is not None and number in holds:
            reached, go_on = holds[number]
            reached.open()
            await go_on.passed()

    async def run(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        number = keys["number"]
        ran.append(number)
        await hold(before_results, number)
        await results.process_logs({"steps": {"step": number}})
        await results.process_results({"result": number * 2})
        await hold(before_end, number)

    return run


async def everything_ran_once(target: Target, ran: Seen, count: int) -> None:
    assert await audit(target) == {"done": count}
    assert Counter(ran) == Counter(range(count))
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


@servers_only
async def test_a_claim_whose_answer_never_comes_leaves_no_row_running(
    target: Target, tmp_path: Path, mode: Mode, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer to the first row's end, and to the claim that goes with it."""
    ran, at_end, go_on = shared.seen(), shared.gate(), shared.gate()
    study: Any = {"keyfields": numbers(5), "execution": SLOW_BEAT}
    proxy = Proxy(target)
    async with proxy, new_experimenter(tmp_path, proxy.target, CLASSES[mode], **study) as experimenter:
        await experimenter.fill_table_from_config()
        function = steps(ran, before_end={0: (at_end, go_on)})
        call = asyncio.create_task(experimenter.execute(function, n_jobs=1))
        await at_end.passed()
        await settled_in(target)
        proxy.swallow_after_commit()
        go_on.open()
        try:
            await eventually(proxy.fired.is_set)
            taken = (await statuses(target))["running"]
            assert await statuses(target) == {"done": 1, "running": taken, "created": 4 - taken}
            assert taken == 1 or (mode == "process" and taken == 2)  # of short calls a child's next one is taken ahead
            assert len(ran) == 1
            await eventually(said(caplog, "The database is away"))
        finally:
            proxy.resume()
        assert (await call).done == 5
    await everything_ran_once(target, ran, 5)
    first = 'SELECT "experiment_id", "outcome" FROM "experiments_attempts" WHERE "attempt" = 1 ORDER BY 1'
    assert (await sql(target, first))[:taken] == [(2, "released"), (3, "released")][:taken]


@servers_only
async def test_a_flush_whose_commit_was_not_answered_is_settled_and_not_repeated(
    target: Target, tmp_path: Path, mode: Mode, shared: Shared
) -> None:
    """The server has committed what the first row reports, then the second row's end, and cannot say so."""
    ran = shared.seen()
    began, begin, first_end, end_first, second_end, end_second = (shared.gate() for _ in range(6))
    ends = {0: (first_end, end_first), 1: (second_end, end_second)}
    study: Any = {"keyfields": numbers(3), "execution": SLOW_BEAT}
    proxy = Proxy(target)
    async with proxy, new_experimenter(tmp_path, proxy.target, CLASSES[mode], **study) as experimenter:
        await experimenter.fill_table_from_config()
        function = steps(ran, before_results={0: (began, begin)}, before_end=ends)
        call = asyncio.create_task(experimenter.execute(function, n_jobs=1))
        await began.passed()
        await settled_in(target)
        proxy.cut_after_commit()
        begin.open()
        await first_end.passed()
        await asyncio.wait_for(proxy.fired.wait(), 30)
        end_first.open()
        await second_end.passed()
        proxy.cut_after_commit()
        end_second.open()
        summary = await call
        assert proxy.fired.is_set()
    assert (summary.done, summary.lost) == (3, 0)
    await everything_ran_once(target, ran, 3)


@servers_only
async def test_a_try_again_whose_commit_was_not_answered_is_counted_once(
    target: Target, tmp_path: Path, mode: Mode, shared: Shared
) -> None:
    ran, at_end, go_on = shared.seen(), shared.gate(), shared.gate()
    once = steps(ran, before_end={0: (at_end, go_on)})

    async def fails_first(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        await once(keys, results, custom)
        if len(ran) == 1:
            raise ValueError("first try")

    study: Any = {"keyfields": numbers(1), "execution": SLOW_BEAT}
    proxy = Proxy(target)
    async with proxy, new_experimenter(tmp_path, proxy.target, CLASSES[mode], **study) as experimenter:
        await experimenter.fill_table_from_config()
        call = asyncio.create_task(experimenter.execute(fails_first, retries=1))
        await at_end.passed()
        await settled_in(target)
        proxy.cut_after_commit()
        go_on.open()
        summary = await call
        assert proxy.fired.is_set()
    assert (summary.done, summary.retried, summary.error) == (1, 1, 0)
    assert await audit(target) == {"done": 1}
    assert ran == [0, 0]


@servers_only
async def test_cut_connections_in_the_middle_of_a_run(
    target: Target, tmp_path: Path, mode: Mode, shared: Shared
) -> None:
    ran, proxy = shared.seen(), Proxy(target)
    async with proxy, new_experimenter(tmp_path, proxy.target, CLASSES[mode], keyfields=numbers(120)) as experimenter:
        await experimenter.fill_table_from_config()
        call = asyncio.create_task(experimenter.execute(steps(ran), n_jobs=10))
        await eventually(lambda: len(ran) >= 20)
        proxy.cut()
        await eventually(lambda: len(ran) >= 60)
        proxy.cut()
        assert (await call).done == 120
    await everything_ran_once(target, ran, 120)


# ------------------------------------------------------------------------------------------------ away and back


def waiting(ran: Seen, count: int, shared: Shared) -> tuple[Function, Gate]:
    """A function whose calls wait before they report, and the gate that lets them all through."""
    began, go_on = shared.gate(), shared.gate()
    return steps(ran, before_results=dict.fromkeys(range(count), (began, go_on))), go_on


def said(caplog: pytest.LogCaptureFixture, words: str) -> Callable[[], bool]:
    return lambda: any(words in record.getMessage() for record in caplog.records)


@servers_only
async def test_results_are_held_while_the_database_is_away_and_written_when_it_is_back(
    make: Make, target: Target, server: Server, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    experimenter = make(keyfields=numbers(8), execution={"heartbeat_interval": 0.5, "lease": 2})
    await experimenter.fill_table_from_config()
    ran = shared.seen()
    function, go_on = waiting(ran, 8, shared)
    call = asyncio.create_task(experimenter.execute(function, n_jobs=4))
    await eventually(lambda: len(ran) == 4)
    server.stop()
    try:
        go_on.open()
        await eventually(said(caplog, "The database is away"))
        assert not call.done()
    finally:
        server.start()
    assert (await call).done == 8
    assert said(caplog, "The database is back")()
    await everything_ran_once(target, ran, 8)


@servers_only
async def test_a_server_that_crashes_and_comes_back_in_the_middle_of_a_run(
    make: Make, target: Target, server: Server, shared: Shared
) -> None:
    experimenter = make(keyfields=numbers(80), execution={"heartbeat_interval": 0.5, "lease": 2})
    await experimenter.fill_table_from_config()
    ran = shared.seen()
    call = asyncio.create_task(experimenter.execute(steps(ran), n_jobs=5))
    await eventually(lambda: len(ran) > 20)
    server.restart(immediate=True)
    assert (await call).done == 80
    await everything_ran_once(target, ran, 80)


@servers_only
async def test_on_outage_stop_ends_the_run_when_the_database_goes_away(
    make: Make,
    target: Target,
    server: Server,
    shared: Shared,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 30)  # a slow answer is no outage
    execution = {"heartbeat_interval": 0.5, "lease": 2, "on_outage": "stop"}
    experimenter = make(keyfields=numbers(8), execution=execution)
    await experimenter.fill_table_from_config()
    ran = shared.seen()
    function, go_on = waiting(ran, 8, shared)
    call = asyncio.create_task(experimenter.execute(function, n_jobs=2))
    await eventually(lambda: len(ran) == 2)
    server.stop()
    try:
        go_on.open()
        await eventually(said(caplog, "The database is away"))
    finally:
        server.start()
    summary = await call
    assert (summary.done, summary.stopped_by) == (2, "outage")
    assert await audit(target) == {"done": 2, "created": 6}


@servers_only
async def test_execute_waits_for_the_database_at_its_start_and_then_says_that_it_is_away(
    make: Make, target: Target, server: Server, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (make(keyfields=numbers(3)) for _ in range(2))
    await make(keyfields=numbers(3)).fill_table_from_config()
    server.stop()
    try:
        with pytest.raises(DatabaseConnectionError):
            await first.execute(nothing, database_wait=0.3)
        caplog.clear()
        ran = shared.seen()
        call = asyncio.create_task(second.execute(steps(ran), database_wait=60))
        await eventually(said(caplog, "to reach the database"))
    finally:
        server.start()
    assert (await call).done == 3
    await everything_ran_once(target, ran, 3)


@servers_only
@pytest.mark.in_process_only("what happens before the first row is taken")
async def test_a_call_in_random_order_outlives_an_outage_while_its_index_is_made(
    target: Target, tmp_path: Path, shared: Shared
) -> None:
    ran, proxy = shared.seen(), Proxy(target)
    async with proxy, new_experimenter(tmp_path, proxy.target, keyfields=numbers(3)) as experimenter:
        await experimenter.fill_table_from_config()
        proxy.cut_after_commit()
        assert (await experimenter.execute(steps(ran), random_order=True)).done == 3
        assert proxy.fired.is_set()
    assert sorted(ran) == [0, 1, 2]


@pytest.mark.parametrize("provider", ["sqlite"])
async def test_results_are_held_while_somebody_holds_the_sqlite_file(
    make: Make, target: Target, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    experimenter = make(keyfields=numbers(8))
    await experimenter.fill_table_from_config()
    ran = shared.seen()
    function, go_on = waiting(ran, 8, shared)
    call = asyncio.create_task(experimenter.execute(function, n_jobs=4))
    await eventually(lambda: len(ran) == 4)
    other = sqlite3.connect(target.database, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        go_on.open()
        await eventually(said(caplog, "The database is away"))
        other.execute("ROLLBACK")
    finally:
        other.close()
    assert (await call).done == 8
    await everything_ran_once(target, ran, 8)


@servers_only
@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_a_run_that_is_told_to_stop_while_the_database_is_away_ends_in_time(
    make: Make,
    target: Target,
    server: Server,
    shared: Shared,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncexp.worker.LAST_FLUSH_SECONDS", 0.5)
    monkeypatch.setattr("asyncexp.session.CLOSE_LIMIT_SECONDS", 0.5)
    experimenter = make(keyfields=numbers(8), execution={"heartbeat_interval": 0.2, "lease": 1, "grace": 0.1})
    await experimenter.fill_table_from_config()
    ran = shared.seen()
    function, go_on = waiting(ran, 8, shared)
    call = asyncio.create_task(experimenter.execute(function, n_jobs=2))
    await eventually(lambda: len(ran) == 2)
    server.stop()
    try:
        go_on.open()
        await eventually(said(caplog, "The database is away"))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 30)
        assert said(caplog, "could not be stored")()
        await experimenter.aclose()
    finally:
        server.start()
    assert await statuses(target) == {"running": 2, "created": 6}
