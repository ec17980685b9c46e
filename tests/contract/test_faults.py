"""Real faults under a running study, one named test each: afterwards nothing is lost and nothing done twice.

What is not here: dead, frozen and cut-off workers are in `test_rescue`, lost answers in `test_outage`, children that
die in `test_process_death`, stops under a fault in `test_stop_faults`.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncexp import ResultProcessor, Summary
from asyncexp.db import connect
from asyncexp.db.base import Database, Target, Transaction
from tests.contract.audit import invariants
from tests.contract.conftest import Make
from tests.contract.modes import CLASSES, Mode
from tests.contract.shared import Shared
from tests.contract.sql import fetch as sql
from tests.contract.sql import locked
from tests.contract.support import Keys, child, eventually, numbers
from tests.contract.workers.fault import Task
from tests.proxy import Proxy
from tests.servers import PostgresServer, Server
from tests.studies import experimenter as new_experimenter

servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
QUICK = {"heartbeat_interval": 0.25, "lease": 1, "grace": 5}


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 1.5)
    monkeypatch.setattr("asyncexp.provenance.git", dict)  # or else what git says is written at any time


@asynccontextmanager
async def running(
    make: Make, function: Callable[..., Any], count: int, *, n_jobs: int = 8, **execution: Any
) -> AsyncIterator[asyncio.Task[Summary]]:
    """A call of `execute` on `count` numbers; closed afterwards."""
    experimenter = make(keyfields=numbers(count), execution=QUICK | execution)
    await experimenter.fill_table_from_config()
    call = asyncio.create_task(experimenter.execute(function, n_jobs=n_jobs))
    try:
        yield call
    finally:
        await experimenter.aclose()
        await asyncio.wait([call])


# ---------------------------------------------------------------------------------------- servers that die


@servers_only
async def test_a_server_that_dies_again_and_again_costs_no_experiment(
    make: Make, target: Target, server: Server, shared: Shared
) -> None:
    """PostgreSQL by an immediate stop, MariaDB by SIGKILL."""
    ran = shared.seen()
    async with running(make, Task(ran, seconds=0.02), 120) as call:
        for restart in range(1, 4):
            await eventually(lambda: len(ran) >= 25 * restart)  # noqa: B023
            server.restart(immediate=True)
        assert (await call).done == 120
    assert await invariants(target, 120, ran) == {"done": 120}
    assert len(ran) == 120


class Deadly(Proxy):
    """Kills its server with a COMMIT on the way: just before it arrives, and just after it was sent, in turn."""

    def __init__(self, server: Server, target: Target) -> None:
        super().__init__(target)
        self._of = server
        self.armed = False
        self.dead = asyncio.Event()
        self._before = itertools.cycle((True, False))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            deadly = self.armed and data.rstrip(b"\0").endswith(b"COMMIT")
            before = deadly and next(self._before)
            if before:
                self._kill()
            writer.write(data)
            await writer.drain()
            if deadly and not before:
                self._kill()

    def _kill(self) -> None:
        self.armed = False
        self._of.kill()
        self.dead.set()


@servers_only
async def test_a_server_that_dies_with_a_commit_on_the_way(
    target: Target, server: Server, tmp_path: Path, mode: Mode, shared: Shared
) -> None:
    """Whether it was committed is looked up afterwards; a guess would double or lose an experiment."""
    ran = shared.seen()
    proxy = Deadly(server, target)
    study: dict[str, Any] = {"keyfields": numbers(120), "execution": QUICK}
    async with proxy, new_experimenter(tmp_path, proxy.target, CLASSES[mode], **study) as experimenter:
        await experimenter.fill_table_from_config()
        call = asyncio.create_task(experimenter.execute(Task(ran, seconds=0.02), n_jobs=8))
        for death in range(1, 3):
            await eventually(lambda: len(ran) >= 40 * death)  # noqa: B023
            proxy.dead.clear()
            proxy.armed = True
            await asyncio.wait_for(proxy.dead.wait(), 10)
            server.start()
        assert (await call).done == 120
    assert await invariants(target, 120, ran) == {"done": 120}
    assert len(ran) == 120


@servers_only
async def test_sessions_that_the_server_ends_all_the_time(
    make: Make, target: Target, server: Server, shared: Shared
) -> None:
    ran = shared.seen()
    rounds = ended = 0
    async with running(make, Task(ran, seconds=0.02), 200) as call:
        while not call.done():
            ended += await asyncio.to_thread(server.end_sessions, target.database)
            rounds += 1
            await asyncio.wait([call], timeout=0.15)  # or else nobody would ever get as far as a COMMIT
        assert (await call).done == 200
    assert rounds >= 5
    assert ended >= 5
    assert await invariants(target, 200, ran) == {"done": 200}
    assert len(ran) == 200


# ------------------------------------------------------------------------------------------- locks of others


@contextmanager
def beside(job: Callable[[Database], Any], target: Target) -> Iterator[threading.Thread]:
    """Runs a coroutine function over a connection of its own, in a thread whose event loop may be blocked."""
    failed: list[BaseException] = []

    async def work() -> None:
        database = connect(target)
        try:
            await job(database)
        finally:
            await database.close()

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as failure:  # noqa: BLE001  (raised in the test)
            failed.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
    if failed:
        raise failed[0]


LOCK_WAITS = {
    "postgresql": "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type = 'Lock'",
    "mysql": "SELECT CAST(VARIABLE_VALUE AS INTEGER) FROM information_schema.global_status "
    "WHERE VARIABLE_NAME = 'INNODB_ROW_LOCK_CURRENT_WAITS'",
}


def waiting(server: Server, target: Target) -> bool:
    """Whether anybody waits for a lock."""
    [(found,)] = server.sql(LOCK_WAITS[target.provider].format(database=target.database))
    return bool(found)


def noted(server: Server, words: str, status: str) -> int:
    """How often it happened: PostgreSQL says so in its log, MariaDB counts it."""
    if isinstance(server, PostgresServer):
        return (server.folder / "log").read_text().count(words)
    text = f"SELECT VARIABLE_VALUE FROM information_schema.global_status WHERE VARIABLE_NAME = '{status}'"
    [(found,)] = server.sql(text)
    return int(found)


def deadlocks(server: Server) -> int:
    return noted(server, "ERROR:  deadlock detected", "INNODB_DEADLOCKS")


def lock_waits(server: Server) -> int:
    """Those that were over their time; on MariaDB all of them."""
    return noted(server, "ERROR:  canceling statement due to lock timeout", "INNODB_ROW_LOCK_WAITS")


def make_us_the_victim(server: Server, target: Target) -> str:
    """What the other says first, so that a deadlock ends our transaction and not his."""
    if target.provider == "postgresql":  # who finds the deadlock ends himself; he looks once, so long after he began
        server.sql(f"ALTER DATABASE {target.database} SET deadlock_timeout = '300ms'")
        return "SET LOCAL deadlock_timeout = '60s'"
    server.sql("CREATE TABLE ballast (x INT) SELECT seq AS x FROM seq_1_to_500", target.database)
    return "UPDATE ballast SET x = x + 1"  # who has changed less is ended


@servers_only
@pytest.mark.in_process_only("children open no connection: their deadlocks are those of this process")
async def test_a_deadlock_is_tried_again(make: Make, target: Target, server: Server, shared: Shared) -> None:
    """Our flush has the row and wants the worker's, somebody has the worker's and wants the row; three times."""
    first = make_us_the_victim(server, target)
    before = deadlocks(server)
    ran, gates, runs = shared.seen(), [shared.gate() for _ in range(3)], list[int]()

    async def reports(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        for gate in gates:
            await gate.passed()
            await results.process_results({"result": -1})
        await Task(ran)(keys, results, custom)

    async with running(make, reports, 1, heartbeat_interval=50, lease=200) as call:
        await eventually(lambda: has_beaten(target))
        for gate in gates:
            held, cross = threading.Event(), threading.Event()
            with beside(crossing(first, held, cross, runs), target):
                await asyncio.to_thread(held.wait, 20)
                gate.open()
                await eventually(lambda: waiting(server, target))
                cross.set()
        assert (await call).done == 1
    assert len(runs) == 3, "somebody else was the victim"
    assert deadlocks(server) >= before + 3
    assert await invariants(target, 1, ran) == {"done": 1}


async def has_beaten(target: Target) -> bool:
    [(beaten,)] = await sql(target, 'SELECT COUNT(*) FROM "experiments_workers" WHERE "heartbeat" > "started"')
    return bool(beaten)


def crossing(
    first: str, held: threading.Event, cross: threading.Event, runs: list[int]
) -> Callable[[Database], Awaitable[None]]:
    async def job(database: Database) -> None:
        quote = database.dialect.quote

        async def work(tx: Transaction) -> None:
            runs.append(1)
            await tx.execute(first)
            await tx.execute(f"UPDATE {quote}experiments_workers{quote} SET {quote}name{quote} = 'crossed'")
            held.set()
            cross.wait(20)
            await tx.execute(f"UPDATE {quote}experiments{quote} SET {quote}_requested_by{quote} = NULL")

        await database.run(work)

    return job


@servers_only
@pytest.mark.in_process_only("children open no connection: their lock waits are those of this process")
async def test_a_lock_wait_that_is_over_its_time_is_tried_again(
    make: Make,
    target: Target,
    server: Server,
    shared: Shared,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """innodb_lock_wait_timeout=1 and error 1205; the same on PostgreSQL."""
    monkeypatch.setattr("asyncexp.writer.FLUSH_LIMIT_SECONDS", 30)
    for driver in ("mysql", "postgres"):
        monkeypatch.setattr(f"asyncexp.db.{driver}.LOCK_SHARE", 1 / 30)
    ran, go_on = shared.seen(), shared.gate()
    async with running(make, Task(ran, go_on), 4) as call:
        await eventually(lambda: len(ran) == 4)
        async with locked(target, 2):
            before = lock_waits(server)
            go_on.open()
            await eventually(lambda: lock_waits(server) >= before + 3)
        assert (await call).done == 4
    assert "The database is away" not in caplog.text
    assert await invariants(target, 4, ran) == {"done": 4}


@servers_only
@pytest.mark.in_process_only("children open no connection: their lock waits are those of this process")
async def test_a_lock_that_somebody_keeps_is_waited_for_like_a_database_that_is_away(
    make: Make, target: Target, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    ran, go_on = shared.seen(), shared.gate()
    async with running(make, Task(ran, go_on), 8, n_jobs=4) as call:
        await eventually(lambda: len(ran) == 4)
        async with locked(target, 2):
            go_on.open()
            await eventually(lambda: "The database is away" in caplog.text)
        assert (await call).done == 8
    assert await invariants(target, 8, ran) == {"done": 8}


# ---------------------------------------------------------------------------------------------------- SQLite


@pytest.mark.parametrize("provider", ["sqlite"])
async def test_32_processes_at_once_on_one_sqlite_file_each_claim_and_end_rows(
    target: Target, tmp_path: Path, shared: Shared
) -> None:
    ran = shared.seen()
    study: dict[str, Any] = {"keyfields": numbers(640)}
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        await experimenter.fill_table_from_config()
    async with child("share_many", tmp_path, target, str(ran.path), "32", **study) as process:
        assert await process.told() == [0] * 32
        assert await process.ended() == 0
    assert await invariants(target, 640, ran) == {"done": 640}
    [(workers,)] = await sql(target, 'SELECT COUNT(DISTINCT "_worker") FROM "experiments"')
    assert workers > 16
