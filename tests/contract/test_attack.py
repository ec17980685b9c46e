"""What an adversary tried: races, silences and misuse that once lost a row, a request or a run."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter, ResultProcessor, SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseConnectionError, DatabaseError, ExperimentLostError, ParameterCombinationError
from tests.contract.conftest import Make
from tests.contract.functions import Waits, for_ever, nothing
from tests.contract.modes import CLASSES, Mode
from tests.contract.shared import Shared
from tests.contract.sql import execute as change
from tests.contract.sql import locked
from tests.contract.support import Keys, eventually, numbers, statuses
from tests.proxy import Proxy
from tests.studies import experimenter as new_experimenter

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])
servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
SLOW_BEAT = {"heartbeat_interval": 50, "lease": 200, "grace": 0.1}


# ------------------------------------------------------------------------------------- forks and threads


@sqlite_only
async def test_an_experiment_may_end_the_processes_that_it_forked(make: Make, target: Target) -> None:
    def forks(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        with multiprocessing.get_context("fork").Pool(2) as pool:  # which it leaves by SIGTERM to each
            results.process_results({"result": sum(pool.map(abs, range(-2, 1)))})

    experimenter = make(keyfields=numbers(3))
    await experimenter.fill_table_from_config()
    summary = await experimenter.execute(forks, n_jobs=1)
    assert (summary.done, summary.stopped_by) == (3, None)


@sqlite_only
async def test_a_thread_that_still_logs_does_not_spoil_the_end(make: Make, target: Target, shared: Shared) -> None:
    experimenter = make(keyfields=numbers(200))
    await experimenter.fill_table_from_config()
    told = shared.seen()

    def chatter(results: SyncResultProcessor, began: threading.Event) -> None:
        try:
            while True:
                results.process_logs({"steps": {"step": 1}})
                began.set()
        except ExperimentLostError:
            told.append(int(results.experiment_id))

    def leaves_a_thread(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        began = threading.Event()
        threading.Thread(target=chatter, args=(results, began)).start()
        began.wait()

    summary = await experimenter.execute(leaves_a_thread, n_jobs=4)
    await eventually(lambda: len(told) == 200)
    assert (summary.done, sorted(told)) == (200, list(range(1, 201))), summary.errors[:1]


# ---------------------------------------------------------------------------------------------- selecting


async def test_where_takes_thousands_of_values(make: Make, target: Target) -> None:
    keyfields = {"number": {"type": "INT", "values": [0, 1, 2]}, "kind": {"type": "VARCHAR(20)", "values": ["a"]}}
    experimenter = make(keyfields=keyfields)
    await experimenter.fill_table_from_config()
    assert (await experimenter.counts({"kind": [*map(str, range(3000)), "a"]}))["created"] == 3
    assert (await experimenter.execute(nothing, where={"number": range(1, 3000)})).done == 2


@pytest.mark.executes_nothing
@pytest.mark.parametrize("ids", [[1.5], ["1"], "12", [2**63], 1.5])
@sqlite_only
async def test_what_is_no_id_selects_nothing(make: Make, target: Target, ids: Any) -> None:
    experimenter = make(keyfields=numbers(3))
    await experimenter.fill_table_from_config()
    with pytest.raises(ParameterCombinationError, match="whole numbers of 64 bits, not"):
        await experimenter.delete_experiments(ids=ids)
    assert await statuses(target) == {"created": 3}


# ------------------------------------------------------------------------------------------------- adding


async def test_of_many_who_add_an_experiment_one_runs_it_and_the_others_hear_of_it(make: Make, target: Target) -> None:
    some = [make(keyfields=numbers(1)) for _ in range(5)]
    await some[0].create_table()
    for number in range(8):
        answers = await asyncio.gather(
            *(each.add_experiment_and_execute({"number": number}, nothing) for each in some), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, DatabaseError)]
        assert len(refused) == 4, answers
        assert all("exists already" in str(answer) for answer in refused), refused
    assert await statuses(target) == {"done": 8}


@servers_only
async def test_an_experiment_that_another_is_about_to_take_is_not_run(make: Make, target: Target) -> None:
    experimenter = make(keyfields=numbers(1))
    await experimenter.fill_table_from_config()
    async with locked(target, 1):
        with pytest.raises(DatabaseError, match="exists already"):
            await experimenter.add_experiment_and_execute({"number": 0}, nothing)
    assert await statuses(target) == {"created": 1}


async def test_a_table_may_be_filled_while_single_experiments_are_added(make: Make, target: Target) -> None:
    filling, adding = make(keyfields=numbers(2000)), make(keyfields=numbers(2000))
    await filling.create_table()
    added = 0
    enough = asyncio.Event()

    async def add() -> None:
        nonlocal added
        while not enough.is_set():
            await adding.add_experiment_and_execute({"number": 1999 - added}, nothing)
            added += 1

    one_by_one = asyncio.create_task(add())
    await eventually(lambda: added > 3)
    filled = await filling.fill_table_from_config()
    await eventually(lambda: added > filled.existed)
    enough.set()
    await one_by_one
    assert filled.added + filled.existed == 2000
    assert sum((await statuses(target)).values()) == 2000


# ----------------------------------------------------------------------------------------------- requests


def ask(call: Callable[[Experimenter], Any], experimenter: Experimenter) -> None:
    """Asks something from a thread, with an event loop and a connection of its own."""

    async def work() -> None:
        async with experimenter:
            await call(experimenter)

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    thread.join()


class Blocks:
    """Row 1 ends at once. Row 2 blocks the event loop when row 3 is taken, and this worker does not know yet.

    Until it goes on, somebody asks for row 3 to be cancelled, and the worker's thread hears of it.
    """

    def __init__(self, target: Target, other: Experimenter) -> None:
        self._target = target
        self._other = other
        self._third_began = False
        self.was_early = False

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        if keys["number"] == 1:
            await self._block()
        elif keys["number"] == 2:
            self._third_began = True
            await asyncio.sleep(60)

    async def _block(self) -> None:
        with closing(sqlite3.connect(self._target.database)) as table:
            taken = "SELECT 1 FROM experiments WHERE ID = 3 AND status = 'running'"
            while not table.execute(taken).fetchall():  # noqa: ASYNC110  (in every turn of the loop)
                await asyncio.sleep(0)
            self.was_early = not self._third_began
            ask(lambda other: other.cancel(3), self._other)
            for _ in range(2):
                self._wait_for_a_beat(table)

    def _wait_for_a_beat(self, table: sqlite3.Connection) -> None:
        beat = "SELECT MAX(heartbeat) FROM experiments_workers"
        last, end = table.execute(beat).fetchall(), time.monotonic() + 30
        while table.execute(beat).fetchall() == last:
            assert time.monotonic() < end
            time.sleep(0.005)


@sqlite_only
@pytest.mark.in_process_only("it blocks the event loop of its worker")
async def test_a_request_for_a_row_that_is_just_being_taken_is_heard(make: Make, target: Target) -> None:
    execution = {"heartbeat_interval": 0.1, "lease": 20}
    experimenter, other = (make(keyfields=numbers(3), execution=execution) for _ in range(2))
    await experimenter.fill_table_from_config()
    blocks = Blocks(target, other)
    summary = await experimenter.execute(blocks, n_jobs=2)
    assert blocks.was_early
    assert (summary.done, summary.error) == (2, 1)
    assert "cancelled by" in summary.errors[0]


# ------------------------------------------------------------------------------------------------ closing


def service_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "asyncexp service"]


@sqlite_only
async def test_closing_while_a_call_begins_leaves_no_thread(target: Target, tmp_path: Path, mode: Mode) -> None:
    for number in range(1, 80, 1 if mode == "task" else 6):  # fewer where each takes a process
        experimenter = new_experimenter(tmp_path, target, CLASSES[mode], keyfields=numbers(1))
        await experimenter.create_table()
        call = asyncio.create_task(experimenter.execute(nothing))
        await a_while(number, mode)
        await experimenter.aclose()
        await asyncio.wait([call])
        assert call.exception() is None or isinstance(call.exception(), DatabaseConnectionError)
        assert not service_threads(), number


async def a_while(number: int, mode: Mode) -> None:
    """So many turns of the event loop, or so much of the time in which a child process starts."""
    if mode == "task":
        for _ in range(number):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(number / 500)


@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_closing_that_is_cancelled_closes_all_the_same(target: Target, tmp_path: Path, mode: Mode) -> None:
    experimenter = new_experimenter(tmp_path, target, CLASSES[mode], keyfields=numbers(1))
    await experimenter.fill_table_from_config()
    await experimenter.execute(nothing)
    closing_it = asyncio.create_task(experimenter.aclose())
    await asyncio.sleep(0)
    closing_it.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing_it
    assert not service_threads()


# ------------------------------------------------------------------------------------------- the sign of life


@sqlite_only
async def test_a_sign_of_life_that_broke_is_given_again_by_the_next_call(make: Make, target: Target) -> None:
    experimenter = make(keyfields=numbers(2), execution={"heartbeat_interval": 0.05, "lease": 5, "grace": 0.1})
    await experimenter.fill_table_from_config()
    refuse = "BEFORE UPDATE OF heartbeat ON experiments_workers BEGIN SELECT RAISE(ABORT, 'not now'); END"
    await change(target, f"CREATE TRIGGER refuses {refuse}")
    with pytest.raises(DatabaseError, match="not now"):
        await experimenter.execute(for_ever)
    await change(target, "DROP TRIGGER refuses")
    call = asyncio.create_task(experimenter.execute(for_ever))

    async def beats() -> bool:
        [worker] = await experimenter.workers()
        return worker.heartbeat > worker.started

    await eventually(beats)
    await experimenter.stop()
    assert (await call).stopped_by == "stop"


# ----------------------------------------------------------------------------------- a database that is silent


@servers_only
async def test_a_call_that_meets_a_cut_connection_as_it_begins_goes_on(
    target: Target, tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.0)
    proxy = Proxy(target)
    async with proxy, new_experimenter(tmp_path, proxy.target, CLASSES[mode], keyfields=numbers(2)) as experimenter:
        await experimenter.fill_table_from_config()
        for milliseconds in range(0, 16, 2):
            call = asyncio.create_task(experimenter.execute(nothing, progress=lambda _: None))
            await asyncio.sleep(milliseconds / 1000)
            proxy.cut()
            assert (await call).done == 2
            await experimenter.reset_experiments("done")


@servers_only
@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_closing_ends_while_the_database_is_silent(
    target: Target, tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.0)
    monkeypatch.setattr("asyncexp.worker.LAST_FLUSH_SECONDS", 0.1)
    monkeypatch.setattr("asyncexp.session.CLOSE_LIMIT_SECONDS", 0.2)
    monkeypatch.setattr("asyncexp.lease.CLOSE_LIMIT_SECONDS", 0.2)
    async with Proxy(target) as proxy:
        study: Any = {"keyfields": numbers(3), "execution": SLOW_BEAT}
        experimenter = new_experimenter(tmp_path, proxy.target, CLASSES[mode], **study)
        await experimenter.fill_table_from_config()
        call = asyncio.create_task(experimenter.execute(for_ever, n_jobs=1))
        await eventually(lambda: running(target))
        proxy.stall()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(experimenter.aclose(), 40)
        proxy.cut()


async def running(target: Target) -> bool:
    return "running" in await statuses(target)


@servers_only
@pytest.mark.asyncio_only("a blocking call cannot be cancelled")
async def test_rows_that_come_after_the_run_gave_up_go_back(
    target: Target, tmp_path: Path, mode: Mode, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.0)
    monkeypatch.setattr("asyncexp.worker.LAST_FLUSH_SECONDS", 0.1)
    async with Proxy(target) as proxy:
        study: Any = {"keyfields": numbers(3), "execution": SLOW_BEAT}
        experimenter = new_experimenter(tmp_path, proxy.target, CLASSES[mode], **study)
        async with experimenter:
            await experimenter.fill_table_from_config()
            began, go_on = shared.gate(), shared.gate()
            call = asyncio.create_task(experimenter.execute(Waits(began, go_on), n_jobs=1))
            await began.passed()
            proxy.stall()
            go_on.open()
            [session] = experimenter._sessions.values()
            await eventually(lambda: not session.live)  # the function has ended, and its end is on its way
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            proxy.resume()
            proxy.cut()
    assert await statuses(target) == {"done": 1, "created": 2}


@servers_only
async def test_a_call_waits_for_its_own_retry_whose_answer_was_lost(
    target: Target, tmp_path: Path, mode: Mode, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 0.5)
    async with Proxy(target) as proxy:
        study: Any = {"keyfields": numbers(1), "execution": SLOW_BEAT}
        experimenter = new_experimenter(tmp_path, proxy.target, CLASSES[mode], **study)
        async with experimenter:
            await experimenter.fill_table_from_config()
            flushed, ready = shared.gate(), shared.gate()

            async def second_try(keys: Keys, results: ResultProcessor, _: Keys) -> None:
                if results.attempt == 1:
                    await results.flush()
                    flushed.open()
                    await ready.passed()
                    raise ValueError("first try")

            call = asyncio.create_task(experimenter.execute(second_try, retries=1, retry_delay=4))
            await flushed.passed()
            proxy.cut_after_commit()
            ready.open()
            summary = await call
    assert proxy.fired.is_set()
    assert (summary.retried, summary.done) == (1, 1)
