"""Real faults under a running study, one named test each: afterwards nothing is lost and nothing done twice.

What is not here: dead, frozen and cut-off workers are in `test_rescue`, lost answers in `test_outage`, children that
die in `test_process_death`, stops under a fault in `test_stop_faults`.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import pickle
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, Summary
from asyncexp.db import connect
from asyncexp.db.base import Database, Target, Transaction
from tests.contract.audit import invariants
from tests.contract.conftest import Make
from tests.contract.faulty import end_of, heard, worker
from tests.contract.functions import Waits
from tests.contract.modes import CLASSES, Mode
from tests.contract.shared import Shared
from tests.contract.sql import execute as change
from tests.contract.sql import fetch as sql
from tests.contract.sql import locked
from tests.contract.support import Child, Keys, audit, child, eventually, numbers, statuses
from tests.contract.workers.fault import Steady, Task
from tests.proxy import Commits, Proxy
from tests.servers import PostgresServer, Server
from tests.studies import experimenter as new_experimenter

servers_only = pytest.mark.parametrize("provider", ["postgresql", "mysql"])
QUICK = {"heartbeat_interval": 0.25, "lease": 30, "grace": 5}
"""Who is held up for a few seconds is not dead."""


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
    """Kills its server with a COMMIT on the way: before it arrives, when it was sent, when it is answered."""

    MOMENTS = ("before", "sent", "answered")

    def __init__(self, server: Server, target: Target) -> None:
        super().__init__(target)
        self._of = server
        self.moment: str | None = None
        """When to kill it next."""
        self.dead = asyncio.Event()
        self._committing = False

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commits = Commits()
        while data := await reader.read(65536):
            commit = commits(data)
            if commit and self.moment == "before":
                self._kill()
            self._committing = commit and self.moment == "answered"
            writer.write(data)
            await writer.drain()
            if commit and self.moment == "sent":
                self._kill()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self._committing:
                self._committing = False
                self._kill()
                return
            writer.write(data)
            await writer.drain()

    def _kill(self) -> None:
        self.moment = None
        self._of.kill()
        self.dead.set()


@servers_only
async def test_a_server_that_dies_with_a_commit_on_the_way(
    target: Target, server: Server, tmp_path: Path, mode: Mode, shared: Shared
) -> None:
    """Whether it was committed is looked up afterwards; a guess would double or lose an experiment."""
    ran = shared.seen()
    proxy = Deadly(server, target)
    rare = {"heartbeat_interval": 50, "lease": 200}  # or else it could be the COMMIT of a sign of life
    study: dict[str, Any] = {"keyfields": numbers(120), "execution": QUICK | rare}
    async with proxy, new_experimenter(tmp_path, proxy.target, CLASSES[mode], **study) as experimenter:
        await experimenter.fill_table_from_config()
        call = asyncio.create_task(experimenter.execute(Task(ran, seconds=0.02), n_jobs=8))
        for death, moment in enumerate(Deadly.MOMENTS, 1):
            await eventually(lambda: len(ran) >= 25 * death)  # noqa: B023
            proxy.dead.clear()
            proxy.moment = moment
            await asyncio.wait_for(proxy.dead.wait(), 30)
            server.start()
        assert (await call).done == 120
    assert await invariants(target, 120, ran) == {"done": 120}
    assert len(ran) == 120


@contextmanager
def futures_that_asyncpg_forgets() -> Iterator[None]:
    """Lets pass what asyncpg 0.32 leaves behind where a session is ended between two statements of a transaction.

    The next statement raises before asyncpg waits for the future that it has just made for its answer, and asyncio
    says of that "Future exception was never retrieved".
    """
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def heard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), asyncpg.ConnectionDoesNotExistError):
            (before or asyncio.BaseEventLoop.default_exception_handler)(loop, context)  # type: ignore[arg-type]

    loop.set_exception_handler(heard)
    try:
        yield
    finally:
        gc.collect()
        loop.set_exception_handler(before)


@servers_only
async def test_sessions_that_the_server_ends_all_the_time(
    make: Make, target: Target, server: Server, shared: Shared
) -> None:
    ran, may_end = shared.seen(), shared.gate()
    rounds = ended = 0
    with futures_that_asyncpg_forgets():
        async with running(make, Steady(ran, seconds=0.02, may_end=may_end), 200) as call:
            while not call.done():
                ended += await asyncio.to_thread(server.end_sessions, target.database)
                rounds += 1
                if ended >= 10 and rounds >= 5:
                    may_end.open()
                # Longer each time, or else a slow machine would never get as far as a COMMIT.
                await asyncio.wait([call], timeout=0.1 + 0.03 * rounds)
            assert (await call).done == 200
    assert await invariants(target, 200, ran) == {"done": 200}
    assert len(ran) == 200


# --------------------------------------------------------------------------------------------- a slow system


@pytest.mark.in_process_only("the sign of life of a worker is the same whatever runs its functions")
async def test_a_slow_git_holds_up_no_sign_of_life(
    make: Make, target: Target, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow() -> dict[str, Any]:
        asked.set()
        answer.wait(60)
        return {"git_commit": "late", "git_dirty": False}

    monkeypatch.setattr("asyncexp.provenance.git", slow)
    experimenter = make(keyfields=numbers(1), execution={"heartbeat_interval": 0.1, "lease": 1})
    await experimenter.fill_table_from_config()
    began, go_on = shared.gate(), shared.gate()
    call = asyncio.create_task(experimenter.execute(Waits(began, go_on)))
    try:
        await began.passed()
        await eventually(asked.is_set)
        signs = set[Any]()

        async def several() -> bool:
            signs.update(await sql(target, 'SELECT "heartbeat" FROM "experiments_workers"'))
            return len(signs) > 3

        await eventually(several)  # long before git answers
    finally:
        answer.set()
        go_on.open()
    assert (await call).done == 1
    await experimenter.aclose()
    assert await sql(target, 'SELECT "git_commit" FROM "experiments_workers"') == [("late",)]


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
        server.sql(f"ALTER DATABASE {target.database} SET deadlock_timeout = '400ms'")
        return "SET LOCAL deadlock_timeout = '60s'"
    server.sql("CREATE TABLE ballast (x INT) SELECT seq AS x FROM seq_1_to_500", target.database)
    return "UPDATE ballast SET x = x + 1"  # who has changed less is ended


@servers_only
@pytest.mark.in_process_only("children open no connection: their deadlocks are those of this process")
async def test_a_deadlock_is_tried_again(make: Make, target: Target, server: Server, shared: Shared) -> None:
    """Our flush has the row and wants the worker's, somebody has the worker's and wants the row; three times."""
    first = make_us_the_victim(server, target)
    before = deadlocks(server)
    ran, enough, runs = shared.seen(), shared.gate(), list[int]()

    async def reports(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        while not enough.is_open:
            await results.process_results({"result": -1})
            await asyncio.sleep(0.01)
        await Task(ran)(keys, results, custom)

    async with running(make, reports, 1, heartbeat_interval=50, lease=200) as call:
        await eventually(lambda: has_beaten(target))
        crossings = 0
        while deadlocks(server) < before + 3:  # who is held up for a moment misses one
            crossings += 1
            assert crossings <= 20, "no deadlocks"
            held, cross = threading.Event(), threading.Event()
            with beside(crossing(first, held, cross, runs), target):
                await asyncio.to_thread(held.wait, 60)
                await eventually(lambda: waiting(server, target))
                cross.set()
        enough.open()
        assert (await call).done == 1
    assert len(runs) == crossings, "somebody else was the victim"
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
            cross.wait(60)
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


@servers_only
@pytest.mark.in_process_only("children open no connection: it is this process that claims")
async def test_a_claim_that_a_lock_holds_up_for_longer_than_its_caller_waits_leaves_no_row_running(
    make: Make, target: Target, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of one row and the claim of the next are in the flush that waits; its statement goes on meanwhile."""
    ran, may_end, held, let_go = shared.seen(), shared.gate(), threading.Event(), threading.Event()

    async def hold(database: Database) -> None:
        async def work(tx: Transaction) -> None:
            quote = database.dialect.quote
            await tx.execute(f"UPDATE {quote}experiments_workers{quote} SET {quote}name{quote} = 'held'")
            held.set()
            let_go.wait(60)

        await database.run(work)

    async with running(make, Task(ran, may_end=may_end), 6, n_jobs=1, heartbeat_interval=50, lease=200) as call:
        await eventually(lambda: lines_are_there(target, 2))
        await eventually(lambda: has_beaten(target))
        with beside(hold, target):
            try:
                await asyncio.to_thread(held.wait, 60)
                may_end.open()
                await eventually(lambda: "The database is away" in caplog.text)
                assert await statuses(target) == {"running": 1, "created": 5}
                assert len(ran) == 1
            finally:
                let_go.set()
        assert (await call).done == 6
    assert await invariants(target, 6, ran) == {"done": 6}
    assert len(ran) == 6


# ----------------------------------------------------------------------------------------- changes beside workers


async def test_deletes_and_unpauses_beside_workers_leave_neither_half_rows_nor_stray_lines(
    make: Make, target: Target, shared: Shared
) -> None:
    ran, count = shared.seen(), 80
    first, other, third = (make(keyfields=numbers(count), execution=QUICK) for _ in range(3))
    await first.fill_table_from_config()

    async def pauses(keys: Keys, results: ResultProcessor, custom: Keys) -> ExperimentStatus | None:
        if keys["number"] % 4 == 0 and results.attempt == 1:
            ran.append([int(results.experiment_id), 1])
            return ExperimentStatus.PAUSED
        return await Task(ran, seconds=0.01)(keys, results, custom)

    call = asyncio.create_task(first.execute(pauses, n_jobs=6))
    deleted = unpaused = 0
    while not call.done():
        unpaused += (await other.execute(pauses, n_jobs=2, from_status="paused")).done
        deleted += await third.delete_experiments("running", "done", where={"number": [1, 7, 23, 42, 61, 70]})
    summary = await call
    unpaused += (await other.execute(pauses, n_jobs=2, from_status="paused")).done
    deleted += await third.delete_experiments("all", where={"number": [1, 7, 23, 42, 61, 70]})
    assert deleted == 6
    assert unpaused == 20  # none of them is among those that were deleted
    assert summary.error == 0
    assert await audit(target) == {"done": count - 6}
    assert not await sql(target, LEFT_OF_DELETED)
    doubled = [key for key, many in Counter(map(tuple, ran)).items() if many > 1]
    assert not doubled


LEFT_OF_DELETED = (
    'SELECT "experiment_id" FROM "experiments_attempts" WHERE "experiment_id" NOT IN (SELECT "ID" FROM "experiments")'
)


# ------------------------------------------------------------------------------------------------ hostile rows


@dataclass(frozen=True)
class Hostile:
    """Makes a file when it is unpickled."""

    path: str

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


STEERING = {"status", "role", "outcome", "_request", "_continues", "stop_requested"}
"""Columns of a few words by which is decided what to do: they are compared, and nothing else."""


def hostile_hash(number: int) -> bytes:
    """Makes a folder of that name when it is unpickled, and has exactly the size of a key hash."""
    return b"cos\nmkdir\nU\x01%d\x85R." % number


def texts(experimenter: Experimenter) -> list[tuple[str, str]]:
    """(table, column) of every text of a study."""
    tables = [table for table in experimenter._schema.tables if not table.name.endswith("_codecarbon")]
    named = [(table.name, column) for table in tables for column in table.columns if column.name not in STEERING]
    kinds = ("VARCHAR", "TEXT", "LONGTEXT", "JSON")
    return [(name, column.name) for name, column in named if getattr(column.type, "name", "") in kinds]


async def test_a_pickle_in_any_text_or_blob_of_the_tables_is_a_text_or_a_blob(
    make: Make, target: Target, tmp_path: Path, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm, harms = tmp_path / "harm", tmp_path / "harms"
    harms.mkdir()
    monkeypatch.chdir(harms)
    hostile = pickle.dumps(Hostile(str(harm)), protocol=0).decode()
    pickle.loads(hostile.encode()).close()  # noqa: S301  (it would do harm)
    pickle.loads(hostile_hash(0))  # noqa: S301
    harm.unlink()
    (harms / "0").rmdir()
    keyfields = numbers(4) | {"word": {"type": "TEXT", "values": ["a"]}}
    experimenter = make(keyfields=keyfields, execution={"lease": 600})
    await experimenter.fill_table_from_config()
    ran, words = shared.seen(), shared.seen()

    async def fails_at_last(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        await Task(ran)(keys, results, custom)
        words.append(keys["word"])
        if keys["number"] == 3:
            raise ValueError(keys["word"])

    assert (await experimenter.execute(fails_at_last, experiment_ids=[2, 4])).error == 1
    found = texts(experimenter)
    assert {table for table, _ in found} == {f"experiments{name}" for name in ("", "__steps", "_attempts", "_workers")}
    for table, column in found:
        await change(target, f'UPDATE "{table}" SET "{column}" = :hostile', hostile=hostile)
    for each in range(1, 5):
        text = 'UPDATE "experiments" SET "_key_hash" = :hostile WHERE "ID" = :id'
        assert await change(target, text, hostile=hostile_hash(each), id=each) == 1
    assert await experimenter.retry_errors() == 1
    assert (await experimenter.execute(fails_at_last, random_order=True)).done == 2
    assert set(words) == {"a", hostile}
    assert set((await experimenter.get_table())["word"]) == {hostile}
    assert hostile in set((await experimenter.get_logtable("steps"))["note"])
    assert [hostile in each.example for each in await experimenter.errors()] == [True]
    assert hostile in {each.name for each in await experimenter.workers()}
    hashes = await sql(target, 'SELECT "_key_hash" FROM "experiments" ORDER BY "ID"')
    assert [bytes(key_hash) for (key_hash,) in hashes] == [hostile_hash(each) for each in range(1, 5)]
    assert await experimenter.reset_experiments("all") == 4
    assert (await experimenter.fill_table_from_config()).added == 4
    assert not harm.exists()
    assert not list(harms.iterdir())


# ---------------------------------------------------------------------------------------------------- SQLite


@pytest.mark.parametrize("provider", ["sqlite"])
async def test_32_processes_at_once_on_one_sqlite_file_each_claim_and_end_rows(
    target: Target, tmp_path: Path, shared: Shared
) -> None:
    ran, go_on = shared.seen(), shared.gate()
    study: dict[str, Any] = {"keyfields": numbers(640)}
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        await experimenter.fill_table_from_config()
    async with child("share_many", tmp_path, target, str(ran.path), str(go_on.path), "32", **study) as process:
        await eventually(lambda: len(ran) == 32)
        go_on.open()
        assert await process.told() == [0] * 32
        assert await process.ended() == 0
    assert await invariants(target, 640, ran) == {"done": 640}
    [(workers,)] = await sql(target, 'SELECT COUNT(DISTINCT "_worker") FROM "experiments"')
    assert workers == 32


async def frozen_inside_a_transaction(path: str, process: Child) -> None:
    """Stops the process at a moment at which it holds the lock of the file."""
    for _ in range(500):
        process.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: psutil.Process(process.process.pid).status() == psutil.STATUS_STOPPED)
        if is_locked(path):
            return
        process.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.003)
    raise AssertionError("it never held the lock")


def is_locked(path: str) -> bool:
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as probe:
        try:
            probe.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        probe.execute("ROLLBACK")
    return False


@pytest.mark.parametrize("provider", ["sqlite"])
@pytest.mark.in_process_only("children open no connection: it is this process that waits for the file")
async def test_a_worker_frozen_inside_a_sqlite_transaction_keeps_the_others_waiting_and_nothing_is_lost(
    make: Make, target: Target, tmp_path: Path, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """For longer than its lease; when it goes on, nobody takes its rows, for nobody could write meanwhile."""
    ran, go_on, frozen_may_end = shared.seen(), shared.gate(), shared.gate()
    frail = {"heartbeat_interval": 0.75, "lease": 3}
    study: dict[str, Any] = {"keyfields": numbers(6), "execution": QUICK | frail}
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        await experimenter.fill_table_from_config()
    async with worker(target, tmp_path, "writes", ran, frozen_may_end, n_jobs=1, max_experiments=1, **study) as frozen:
        async with running(make, Task(ran, go_on), 6, n_jobs=2, **frail) as call:
            await eventually(lambda: len(ran) == 3)
            await frozen_inside_a_transaction(target.database, frozen)
            began = time.monotonic()
            go_on.open()
            await eventually(lambda: "The database is away" in caplog.text)
            await asyncio.sleep(began + 3 + 2 * 0.75 + 0.5 - time.monotonic())
            assert not call.done()
            frozen_may_end.open()
            frozen.process.send_signal(signal.SIGCONT)
            summary = await call
        ended = await end_of(frozen)
        assert (ended["done"], ended["lost"]) == (1, 0)
        assert (summary.done, summary.lost) == (5, 0)
        assert await frozen.ended() == 0
    assert await invariants(target, 6, ran) == {"done": 6}
    assert len(ran) == 6


# ----------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_up(disk: Path, *, leave: int) -> Path:
    """Takes the room of a disk except for so many bytes; the file that takes it."""
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    try:
        with ballast.open("wb") as file:
            file.write(bytes(room.f_bavail * room.f_frsize - leave))
    except OSError as full:  # a worker wrote meanwhile, so that there was less
        if leave or full.errno != errno.ENOSPC:
            raise
    return ballast


@pytest.mark.in_process_only("children open no connection: it is this process that finds the disk full")
async def test_on_a_full_disk_results_are_held_and_written_when_there_is_room(
    small_disk: Path, tmp_path: Path, mode: Mode, shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    size, count = 60_000, 60
    target = Target("sqlite", str(small_disk / "experiments.db"))
    ran = shared.seen()
    study: dict[str, Any] = {"keyfields": numbers(count), "execution": QUICK}
    async with new_experimenter(tmp_path, target, CLASSES[mode], **study) as experimenter:
        await experimenter.fill_table_from_config()
        ballast = fill_up(small_disk, leave=1_000_000)
        call = asyncio.create_task(experimenter.execute(Task(ran, size=size), n_jobs=4))
        await eventually(lambda: "the disk is full" in caplog.text)
        begun = len(ran)
        assert await whole_or_absent(target, size)
        await asyncio.sleep(1)  # in which it tries again, and could claim
        assert not call.done()
        assert len(ran) == begun < count
        assert sum((await statuses(target)).values()) == count
        ballast.unlink()
        assert (await call).done == count
    assert await invariants(target, count, ran) == {"done": count}
    assert len(ran) == count
    assert await whole_or_absent(target, size)
    with closing(sqlite3.connect(target.database)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def whole_or_absent(target: Target, size: int) -> bool:
    """Whether no result is half there."""
    rows = await sql(target, 'SELECT "text", "result" FROM "experiments"')
    return all((text is None) == (result is None) and len(text or "x" * size) >= size for text, result in rows)


@pytest.mark.parametrize("kind", ["task", "plain"])
async def test_a_worker_told_to_stop_on_a_full_disk_says_what_it_could_not_store_and_exits_not_with_0(
    small_disk: Path, tmp_path: Path, shared: Shared, kind: str
) -> None:
    target = Target("sqlite", str(small_disk / "experiments.db"))
    ran, go_on = shared.seen(), shared.gate()
    study: dict[str, Any] = {"keyfields": numbers(8), "execution": QUICK | {"grace": 0.3}}
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        await experimenter.fill_table_from_config()
    limits = {"asyncexp.worker.LAST_FLUSH_SECONDS": 0.5, "asyncexp.session.CLOSE_LIMIT_SECONDS": 0.5}
    async with worker(target, tmp_path, kind, ran, go_on, limits=limits, n_jobs=2, pool="task", **study) as process:
        await eventually(lambda: len(ran) == 2)
        await eventually(lambda: lines_are_there(target, 2))
        ballast = fill_up(small_disk, leave=0)
        go_on.open()
        await heard(process, "The database is away")
        process.process.terminate()
        await heard(process, "could not be stored")
        assert await process.ended() != 0
    ballast.unlink()
    with closing(sqlite3.connect(target.database)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert await statuses(target) == {"running": 2, "created": 6}
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        assert (await experimenter.execute(Task(ran), n_jobs=2)).done == 8
    assert await invariants(target, 8, ran, killed=1) == {"done": 8}


async def lines_are_there(target: Target, count: int) -> bool:
    return await sql(target, 'SELECT COUNT(*) FROM "experiments__steps"') == [(count,)]


# ---------------------------------------------------------------------------------------------------- clocks


def with_clock(offset: str) -> list[str]:
    """What makes a program see a clock that is so much ahead or behind; its monotonic one runs on."""
    [library] = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    return ["env", f"LD_PRELOAD={library}", f"FAKETIME={offset}", "FAKETIME_DONT_FAKE_MONOTONIC=1"]


CLOCKS = {"heartbeat_interval": 0.25, "lease": 1.2, "grace": 5}


@pytest.fixture
def clean_shared_memory() -> Iterator[None]:
    """A process with another clock that is killed leaves that clock behind."""
    before = set(Path("/dev/shm").glob("*faketime*"))  # noqa: S108
    yield
    for left in set(Path("/dev/shm").glob("*faketime*")) - before:  # noqa: S108
        left.unlink()


@pytest.mark.usefixtures("clean_shared_memory")
@pytest.mark.parametrize("provider", ["sqlite", "postgresql"])
@pytest.mark.parametrize("offset", ["+10m", "-10m"])
async def test_of_two_workers_whose_clocks_differ_by_10_minutes_neither_takes_the_others_rows(
    target: Target, tmp_path: Path, shared: Shared, offset: str
) -> None:
    ran, go_on = shared.seen(), shared.gate()
    study: dict[str, Any] = {
        "keyfields": numbers(6),
        "execution": CLOCKS | {"heartbeat_interval": 1, "lease": 4},
    }  # a busy machine is no dead worker
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        await experimenter.fill_table_from_config()
        through = with_clock(offset)
        async with worker(target, tmp_path, "task", ran, go_on, n_jobs=2, through=through, **study) as other:
            await eventually(lambda: len(ran) == 2)
            call = asyncio.create_task(experimenter.execute(Task(ran, go_on), n_jobs=2, until="finished"))
            await eventually(lambda: len(ran) == 4)
            await asyncio.sleep(3.5)  # more than two intervals, after which whose sign is old and the same is dead
            assert len(ran) == 4
            go_on.open()
            summary, ended = await call, await end_of(other)
            assert await other.ended() == 0
    assert (summary.done + ended["done"], summary.lost, ended["lost"]) == (6, 0, 0)
    assert await invariants(target, 6, ran) == {"done": 6}
    assert len(ran) == 6


@pytest.mark.usefixtures("clean_shared_memory")
@pytest.mark.parametrize(
    ("provider", "offset", "late"),
    [("sqlite", "+3s", 3.0), ("sqlite", "-10m", 0.0), ("postgresql", "+10m", 0.0), ("postgresql", "-10m", 0.0)],
)
async def test_the_rows_of_a_dead_worker_come_back_as_late_as_its_clock_was_ahead_and_no_later(
    target: Target, tmp_path: Path, shared: Shared, offset: str, late: float
) -> None:
    ran, go_on = shared.seen(), shared.gate()
    study: dict[str, Any] = {"keyfields": numbers(2), "execution": CLOCKS}
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        await experimenter.fill_table_from_config()
        through = with_clock(offset)
        async with worker(target, tmp_path, "task", ran, go_on, n_jobs=2, through=through, **study) as other:
            await eventually(lambda: len(ran) == 2)
            await eventually(lambda: lines_are_there(target, 2))
            other.process.kill()
            await other.process.wait()
            died = time.monotonic()
            await change(target, 'UPDATE "experiments_workers" SET "boot_id" = \'of another machine\'')
            summary = await experimenter.execute(Task(ran), until="finished")
            took = time.monotonic() - died
    assert summary.done == 2
    assert late <= took + CLOCKS["heartbeat_interval"]
    assert took < late + CLOCKS["lease"] + 2 * CLOCKS["heartbeat_interval"] + 20
    assert await invariants(target, 2, ran, killed=1) == {"done": 2}
    assert len(ran) == 4
